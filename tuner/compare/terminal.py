"""The comparison and LR curves for a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from tuner.compare import wording
from tuner.compare.scales import loss_limits, lr_lines
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
    """Range tests in characters, without colour codes; suggestions are vertical lines.

    Drawn are the runs of both lengths, or the ramp of a quick test; at the bottom lie the 80 %
    intervals, at the top an "x" where training explodes. The loss axis ends a little above the
    losses of the lowest rates, so that an explosion does not flatten what matters. `width` and
    `height` are in characters.
    """
    import plotext

    every = {name: lr_lines(curve) for name, curve in curves.items()}
    drawn = {name: lines[1:] or lines for name, lines in every.items() if lines}
    if not drawn:
        return "no curve to draw: no finite loss"
    low, high = loss_limits([line for lines in drawn.values() for line in lines])
    low -= 0.06 * (high - low) * len(drawn)
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plotsize(max(width, _SMALLEST_PLOT[0]), max(height, _SMALLEST_PLOT[1]))
    seen: list[float] = []
    for k, (name, lines) in enumerate(drawn.items()):
        curve, marker = curves[name], _MARKERS[k % len(_MARKERS)]
        for line in lines:
            kept = [(math.log10(x), y) for x, y in line if y <= high]
            plotext.plot([x for x, _ in kept], [y for _, y in kept], marker=marker)
            seen += [x for x, _ in kept]
        if curve.interval_low and curve.interval_high:
            ends = [math.log10(curve.interval_low), math.log10(curve.interval_high)]
            row = low + (high - low) * 0.05 * (k + 0.5)
            plotext.plot(ends, [row, row], marker=marker)
            seen += ends
        if curve.diverges_at is not None and curve.grid:
            plotext.scatter([math.log10(curve.diverges_at)], [high], marker="x")
            seen.append(math.log10(curve.diverges_at))
    for name in drawn:
        if suggested := curves[name].suggested_lr:
            plotext.vline(math.log10(suggested))
    ticks = list(range(math.floor(min(seen)), math.ceil(max(seen)) + 1))
    plotext.xticks(ticks, [f"1e{t}" for t in ticks])
    plotext.ylim(low, high)
    plotext.xlabel("learning rate")
    text = str(plotext.uncolorize(plotext.build())).rstrip("\n")
    plotext.clear_figure()
    names = ", ".join(f"{n} ({_MARKERS[k % len(_MARKERS)]})" for k, n in enumerate(drawn))
    legend = "vertical: suggested learning rate; bars at the bottom: 80 % interval; x: explodes"
    return f"loss of {names}\n{legend}\n{text}"
