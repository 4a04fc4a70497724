"""The comparison and LR curves for a terminal."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from tuner.compare import wording
from tuner.compare.verdicts import ArmResult, Comparison

STYLES = {
    "best": "bold green",
    "contender": "cyan",
    "equivalent": "blue",
    "worse": "red",
    "under-explored": "yellow",
}
SETTINGS_WIDTH = 100  # the narrowest console with room for every column
INTERVAL_WIDTH = 64


def _interval(arm: ArmResult) -> str:
    if arm.ci_low is None or arm.ci_high is None:
        return "-"
    half = (arm.ci_high - arm.ci_low) / 2
    return f"{wording.number(arm.ci_low, half)} .. {wording.number(arm.ci_high, half)}"


def _mean(arm: ArmResult) -> str:
    half = (arm.ci_high - arm.ci_low) / 2 if arm.ci_low is not None and arm.ci_high else None
    return wording.number(arm.mean, half)


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
        row = [Text(arm.name), Text(arm.verdict, style=STYLES[arm.verdict]), Text(_mean(arm))]
        if console_width >= INTERVAL_WIDTH:
            row.append(Text(_interval(arm)))
        row.append(Text(f"{arm.p_best:.2f}"))
        if console_width >= INTERVAL_WIDTH:
            row.append(Text(str(len(arm.seeds))))
        if console_width >= SETTINGS_WIDTH:
            row.append(Text(wording.settings(arm.params)))
        table.add_row(*row)
    return table
