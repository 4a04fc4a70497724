"""Tables for a terminal beside the verdicts: targets, one factor, batch sizes, several studies."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from tuner.compare import wording
from tuner.compare.batches import BatchArm, BatchRow
from tuner.compare.marginal import Marginal
from tuner.compare.pooled import Pooled
from tuner.compare.targets import Targets
from tuner.compare.terminal import STYLES
from tuner.compare.verdicts import Comparison


def _table(title: str, *columns: str, left: int = 1) -> Table:
    """A table whose first `left` columns are text and the others numbers."""
    table = Table(title=title, title_justify="left", expand=False)
    for k, name in enumerate(columns):
        if k < left:
            table.add_column(name, overflow="fold", style="bold" if k == 0 else "")
        else:
            table.add_column(name, justify="right")
    return table


def _row(table: Table, *cells: str | Text) -> None:
    table.add_row(*(Text(c) if isinstance(c, str) else c for c in cells))


def wins_table(comparison: Comparison) -> Table:
    """P(row beats column) for one run of each."""
    names = [a.name for a in comparison.arms]
    table = _table(
        "P(row beats column), one run of each", "arm", *map(str, range(1, len(names) + 1))
    )
    for k, (name, row) in enumerate(zip(names, comparison.p_better, strict=True), 1):
        cells = ["-" if k == c else f"{p:.2f}" for c, p in enumerate(row, 1)]
        _row(table, f"{k} {name}", *cells)
    return table


def targets_table(targets: Targets, metric: str) -> Table:
    """When each arm reaches the target on one cost axis."""
    goal = f"time to {metric} {targets.target:.4g} in {targets.cost}"
    title = f"{goal} (speed-up over {targets.baseline})"
    table = _table(title, "arm", "reached", "median", "speed-up")
    reached = {arm.name: arm.reached for arm in targets.arms}
    for arm in targets.arms:
        _row(
            table,
            arm.name,
            f"{arm.reached} of {len(arm.times)}",
            wording.cost_amount(arm.median, targets.cost),
            # Two arms that are not there are not equally fast.
            wording.speedup(arm.speedup_low, arm.speedup, arm.speedup_high)
            if arm.reached and reached[targets.baseline]
            else "-",
        )
    return table


def marginal_table(marginal: Marginal) -> Table:
    """The contrasts of a factor's levels over matched arms."""
    table = _table(
        f"{marginal.metric} by {marginal.factor}: first minus second, matched arms only",
        "first", "second", "difference", "95 % interval", "p", "pairs", "seeds", left=2,
    )  # fmt: skip
    for c in marginal.contrasts:
        _row(
            table,
            c.level,
            c.other,
            f"{c.difference:+.2g}",
            wording.span(c.low, c.high),
            "-" if c.p_value is None else f"{c.p_value:.3f}",
            str(len(c.blocks)),
            str(c.seeds),
        )
    return table


def batch_table(arm: BatchArm, metric: str) -> Table:
    """The batch sizes of one arm at equal trials, and at equal examples and seconds."""
    table = _table(
        f"{arm.arm}: expected best {metric} of {arm.equal_trials} trials",
        "batch size", "trials", "at the end", "95 % interval",
        f"at {wording.cost_amount(arm.examples, 'examples')}" if arm.examples else "equal examples",
        f"at {wording.cost_amount(arm.seconds, 'seconds')}" if arm.seconds else "equal seconds",
        "confirmed",
    )  # fmt: skip
    for level in arm.levels:
        cut = {n: "*" if n in level.truncated else "" for n in ("examples", "seconds")}
        _row(
            table,
            str(level.batch_size),
            str(level.trials),
            _number(level.best),
            wording.span(level.low, level.high),
            _number(level.at_examples) + cut["examples"],
            _number(level.at_seconds) + cut["seconds"],
            "-"
            if level.confirmed is None
            else f"{level.confirmed:.4g} ({level.confirmed_runs} runs)",
        )
    return table


def across_table(rows: Sequence[BatchRow], metric: str) -> Table:
    """The arms side by side at each batch size."""
    names = list(rows[0].best)
    table = _table(f"expected best {metric} at equal trials", "batch size", "trials each", *names)
    for row in rows:
        cells = [_number(row.best[n]) + (" <" if n == row.leader else "") for n in names]
        _row(table, str(row.batch_size), str(row.trials or "-"), *cells)
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def pooled_table(pooled: Pooled) -> Table:
    """Arms over several studies, best first; scores in seed deviations from each task's best."""
    table = _table(
        f"{len(pooled.studies)} studies (speed-up and score: {pooled.cost} to the target)",
        "arm", "verdict", "mean rank", "IQM", "95 % interval", "P(best)", "score", "speed-up",
        left=2,
    )  # fmt: skip
    for arm in pooled.arms:
        _row(
            table,
            arm.name,
            Text(arm.verdict, style=STYLES[arm.verdict]),
            f"{arm.mean_rank:.2f}",
            f"{arm.iqm:.2f}",
            wording.span(arm.iqm_low, arm.iqm_high),
            f"{arm.p_best:.2f}",
            "-" if arm.score is None else f"{arm.score:.2f}",
            "-" if arm.speedup is None else f"{arm.speedup:.2f}x",
        )
    return table


def per_study_table(pooled: Pooled) -> Table:
    """Mean of each arm in each study."""
    heads: Sequence[str] = [
        f"{study}: {metric}" for study, metric in zip(pooled.studies, pooled.metrics, strict=True)
    ]
    table = _table("mean over fresh seeds (rank)", "arm", *heads)
    for arm in pooled.arms:
        cells = [f"{m:.4g} ({r:g})" for m, r in zip(arm.means, arm.ranks, strict=True)]
        _row(table, arm.name, *cells)
    return table
