"""A page of the report: a template filled in, and figures inside it."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Plot:
    """A figure of the page; `source` is a data URI."""

    title: str
    caption: str
    source: str


def image(figure: Figure) -> str:
    """A figure as the data URI of an SVG image; the same figure gives the same text."""
    import matplotlib

    out = io.BytesIO()
    if (layout := figure.get_layout_engine()) is not None:  # saving would draw twice for it
        layout.execute(figure)
        figure.set_layout_engine("none")
    # A fixed salt and no date: the same study gives the same file.
    with matplotlib.rc_context({"svg.hashsalt": "tuner"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode()


def rendered(template: str, **values: Any) -> str:
    """A template of this folder with its values, everything escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)
