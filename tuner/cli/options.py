"""Options that several commands share."""

from __future__ import annotations

import click

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON on stdout and nothing else there."
)
yes_option = click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
