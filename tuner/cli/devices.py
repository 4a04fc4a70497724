"""`tuner devices`: where trials would run."""

from __future__ import annotations

import click

from tuner.cli.options import json_option
from tuner.cli.render import print_json, print_table


@click.command()
@click.option("--slots", type=click.IntRange(min=1), help="Ask for this many slots.")
@json_option
def devices(slots: int | None, as_json: bool) -> None:
    """List the slots of this machine: one trial runs on each.

    One slot for every GPU, or for every physical core where there is none. CUDA_VISIBLE_DEVICES
    and the CPU affinity of this process are respected.

    \b
    Examples:
      tuner devices
      CUDA_VISIBLE_DEVICES=0,1 tuner devices --json
    """
    from tuner.executors.devices import plan_slots

    planned = plan_slots(slots)
    if as_json:
        print_json([slot.model_dump(mode="json") for slot in planned])
    else:
        rows = [(slot.index, slot.device, _cores(slot.cores)) for slot in planned]
        print_table(("slot", "device", "cores"), rows)


def _cores(cores: tuple[int, ...]) -> str:
    return ", ".join(str(core) for core in cores)
