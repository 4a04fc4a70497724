"""More figures of a comparison: who wins against whom, how soon, at what cost, over which tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tuner.compare import plots as base
from tuner.compare import statistics as st
from tuner.compare.pooled import Pooled
from tuner.compare.scales import robust_limits
from tuner.compare.targets import Targets, kaplan_meier
from tuner.compare.verdicts import Comparison
from tuner.records import Direction

_DRAWS = 400
_AXES = {"steps": "optimizer steps", "examples": "training examples", "seconds": "training seconds"}


@dataclass(frozen=True)
class Spent:
    """The exploration of one arm in order: value (None = diverged) and cost of each trial."""

    values: list[float | None] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def wins_figure(comparison: Comparison) -> Figure:
    """P(row beats column) as a matrix with its numbers."""
    names = [a.name for a in comparison.arms]
    n = len(names)
    figure, (ax,) = base._figure(1.4 + 0.45 * max(n, 2))
    if n < 2:
        base._empty(ax, "one arm: nobody to beat")
        return figure
    p = np.array(comparison.p_better)
    np.fill_diagonal(p, np.nan)
    ax.grid(visible=False)
    ax.imshow(p, cmap="RdBu", vmin=-0.25, vmax=1.25, aspect="auto")
    for row, column in np.ndindex(p.shape):
        if row != column:
            text = f"{p[row, column]:.2f}"
            ax.text(column, row, text, ha="center", va="center", color=base.INK, fontsize=10)
    ax.set_yticks(range(n), [f"{k}  {name}" for k, name in enumerate(names, 1)])
    ax.set_xticks(range(n), [str(k) for k in range(1, n + 1)])
    ax.tick_params(length=0)
    base._labels(ax, "against arm", "")
    return figure


def _reached(ax: Axes, targets: Targets, level: float) -> None:
    """Share of the runs of each arm that reached the target by each cost, with its interval."""
    end = max(max(a.ends) for a in targets.arms)
    for k, arm in enumerate(targets.arms):
        costs, share, low, high = kaplan_meier(arm.times, arm.ends, level)
        x = np.concatenate([[0.0], costs, [max(end, costs[-1])]])
        style = base.line_style(k)
        y = np.concatenate([[0.0], share, share[-1:]])
        ax.step(x, y, where="post", lw=1.9, label=arm.name, **style)
        if len(targets.arms) <= 4:  # more bands than that hide each other
            ax.fill_between(
                x,
                np.concatenate([[0.0], low, low[-1:]]),
                np.concatenate([[0.0], high, high[-1:]]),
                step="post", color=style["color"], alpha=0.10, lw=0,
            )  # fmt: skip
    ax.axvline(targets.horizon, color=base.GREY, lw=1, ls=(0, (4, 3)))
    ax.set_ylim(-0.02, 1.04)
    ax.set_xlim(0, end * 1.06)
    ax.xaxis.set_major_locator(MaxNLocator(4))


def targets_figure(targets: Sequence[Targets], level: float = 0.95) -> Figure:
    """Share of runs that reached the target against steps, examples and seconds (Kaplan-Meier)."""
    figure, axes = base._figure(3.6, 1, max(len(targets), 1), sharey=True)
    if not targets:
        base._empty(axes[0], "no target: the baseline has no median score")
        return figure
    for k, (ax, one) in enumerate(zip(axes, targets, strict=True)):
        _reached(ax, one, level)
        base._labels(ax, _AXES[one.cost], "share of runs at the target" if k == 0 else "")
    base._legend(figure, axes[0])
    return figure


def spending_figure(arms: Mapping[str, Spent], metric: str, direction: Direction) -> Figure:
    """Expected best of k trials against what k trials cost, with bootstrap bands of 80 %.

    Only up to half of an arm's trials, where the estimate does not lean on the few best ones.
    """
    figure, axes = base._figure(3.6, 1, 2, sharey=True)
    names = [n for n, arm in arms.items() if any(v is not None for v in arm.values)]
    if not names:
        for ax in axes:
            base._empty(ax, "no completed exploration trial")
        return figure
    rng = np.random.default_rng(0)
    shown: list[float] = []
    filled = st.finite_worst([arms[n].values for n in names], direction)
    for name, values in zip(names, filled, strict=True):
        style = base.line_style(list(arms).index(name))
        upto = max(1, (len(values) + 1) // 2)
        best = st.expected_best_of_k(values, direction)[:upto]
        band = _bands(np.array(values), upto, direction, rng)
        shown += [float(v) for v in best]
        k = np.arange(1, upto + 1)
        for ax, costs in zip(axes, (arms[name].steps, arms[name].seconds), strict=True):
            x = k * float(np.mean(costs))
            ax.fill_between(x, band[0], band[1], color=style["color"], alpha=0.13, lw=0)
            ax.plot(x, best, lw=1.9, marker="o", ms=3, label=name, **style)
    for ax, cost in zip(axes, ("steps", "seconds"), strict=True):
        ax.set_ylim(*robust_limits(shown, direction))
        ax.xaxis.set_major_locator(MaxNLocator(5))
        base._labels(ax, f"{_AXES[cost]} spent on the search", "")
    axes[0].set_ylabel(f"expected best {metric}", color=base.INK, fontsize=10)
    base._legend(figure, axes[0])
    return figure


def _bands(values: st.Array, upto: int, direction: Direction, rng: np.random.Generator) -> st.Array:
    """10 % and 90 % quantiles of the expected best of k, trials drawn anew; (2, upto)."""
    sign = 1.0 if direction == "maximize" else -1.0
    drawn = np.sort(sign * rng.choice(values, size=(_DRAWS, values.size)), axis=1)
    best = sign * drawn @ st.expected_best_weights(values.size)[:upto].T
    return np.asarray(np.quantile(best, [0.1, 0.9], axis=0))


def profile_figure(pooled: Pooled) -> Figure:
    """Performance profiles: on what share of the tasks an arm is within tau of the fastest."""
    figure, (ax,) = base._figure(3.6)
    if not pooled.profile:
        base._empty(ax, "no task has a target that its baseline reaches")
        return figure
    for k, arm in enumerate(pooled.arms):
        label = f"{arm.name} (score {arm.score:.2f})" if arm.score is not None else arm.name
        ax.step(
            pooled.taus, pooled.profile[arm.name], where="post", lw=2, label=label,
            **base.line_style(k),
        )  # fmt: skip
    ax.set_ylim(-0.02, 1.04)
    ax.set_xlim(1, pooled.taus[-1])
    unit = {"steps": "steps", "examples": "examples", "seconds": "time"}[pooled.cost]
    base._labels(ax, f"{unit} to target / that of the fastest arm (tau)", "share of tasks")
    base._legend(figure, ax)
    return figure


def pooled_figure(pooled: Pooled) -> Figure:
    """Interquartile mean of each arm over all tasks, and its mean on each task."""
    figure, (ax,) = base._figure(1.2 + 0.62 * len(pooled.arms))
    for row, arm in enumerate(pooled.arms):
        colour = base.COLOURS[row % len(base.COLOURS)]
        if arm.iqm_low is not None and arm.iqm_high is not None:
            ax.plot([arm.iqm_low, arm.iqm_high], [row, row], color=colour, lw=3)
        ax.plot([arm.iqm], [row], "D", color=colour, ms=7, mec="white", zorder=4)
    ax.set_yticks(range(len(pooled.arms)), [f"{a.name}\n{a.verdict}" for a in pooled.arms])
    ax.set_ylim(len(pooled.arms) - 0.4, -0.6)
    ax.grid(visible=False, axis="y")
    level = round(100 * (1 - pooled.alpha))
    base._labels(ax, f"seed deviations from each task's best arm; IQM, {level} % interval", "")
    return figure
