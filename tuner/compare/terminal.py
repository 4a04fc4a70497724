"""The comparison and LR curves for a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from tuner.compare import wording
from tuner.compare.scales import loss_limits
from tuner.compare.verdicts import Comparison
from tuner.records import LrCurve

STYLES = {
    "best": "bold green",
    "contender": "cyan",
    "equivalent": "blue",
    "worse": "red",
    "under-explored": "yellow",
}
_MARKERS = ("braille", "dot", "+", "x", "o", "*")
_SMALLEST_PLOT = (40, 10)
SETTINGS_WIDTH = 100  # the narrowest console with room for every column
INTERVAL_WIDTH = 64


def comparison_table(comparison: Comparison, console_width: int = 100) -> Table:
    """Arms, best first; a narrow console loses the settings first, then interval and seeds."""
    level = round(100 * (1 - comparison.alpha))
    arrow = "higher" if comparison.direction == "maximize" else "lower"
    table = Table(
        title=f"{comparison.metric} ({arrow} is better)", title_justify="left", expand=False
    )
    table.add_column("arm", overflow="fold", style="bold", min_width=6)
    table.add_column("verdict", no_wrap=True)
    table.add_column("mean", justify="right", no_wrap=True)
    if console_width >= INTERVAL_WIDTH:
        table.add_column(f"{level} % interval", justify="right", no_wrap=True)
    table.add_column("P(best)", justify="right", no_wrap=True)
    if console_width >= INTERVAL_WIDTH:
        table.add_column("seeds", justify="right", no_wrap=True)
    if console_width >= SETTINGS_WIDTH:
        table.add_column("settings", overflow="fold")
    for arm in comparison.arms:
        row = [
            Text(arm.name),
            Text(arm.verdict, style=STYLES[arm.verdict]),
            Text(wording.mean(arm)),
        ]
        if console_width >= INTERVAL_WIDTH:
            row.append(Text(wording.span(arm.ci_low, arm.ci_high)))
        row.append(Text(f"{arm.p_best:.2f}"))
        if console_width >= INTERVAL_WIDTH:
            row.append(Text(str(len(arm.seeds))))
        if console_width >= SETTINGS_WIDTH:
            row.append(Text(wording.settings(arm.params)))
        table.add_row(*row)
    return table


def lr_curve_text(curves: Mapping[str, LrCurve], width: int = 80, height: int = 20) -> str:
    """Range-test curves in characters, without colour codes; suggestions are vertical lines.

    The loss axis ends a little above the starting loss, so that an explosion does not flatten
    what matters. `width` and `height` are in characters.
    """
    import plotext

    drawn = {n: [(x, y) for x, y in c.points if math.isfinite(y)] for n, c in curves.items()}
    drawn = {name: points for name, points in drawn.items() if points}
    if not drawn:
        return "no curve to draw: no finite loss"
    low, high = loss_limits(list(drawn.values()))
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plotsize(max(width, _SMALLEST_PLOT[0]), max(height, _SMALLEST_PLOT[1]))
    for k, points in enumerate(drawn.values()):
        kept = [(math.log10(x), y) for x, y in points if y <= high]
        marker = _MARKERS[k % len(_MARKERS)]
        plotext.plot([x for x, _ in kept], [y for _, y in kept], marker=marker)
    for name in drawn:
        if suggested := curves[name].suggested_lr:
            plotext.vline(math.log10(suggested))
    decades = [math.log10(x) for points in drawn.values() for x, _ in points]
    ticks = list(range(math.ceil(min(decades)), math.floor(max(decades)) + 1))
    plotext.xticks(ticks, [f"1e{t}" for t in ticks])
    plotext.ylim(low, high)
    plotext.xlabel("learning rate")
    text = str(plotext.uncolorize(plotext.build())).rstrip("\n")
    plotext.clear_figure()
    names = ", ".join(f"{n} ({_MARKERS[k % len(_MARKERS)]})" for k, n in enumerate(drawn))
    return f"loss of {names}; vertical line: suggested learning rate\n{text}"
