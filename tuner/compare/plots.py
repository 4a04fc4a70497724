"""Figures of a comparison: values in, a matplotlib `Figure` out, without pyplot's global state.

Every figure says what its axes are, gives each arm the same colour and line style, and needs
neither colour nor interaction to be read. Colours: Okabe and Ito, safe for the colour-blind.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tuner.compare import statistics as st
from tuner.compare.scales import loss_limits, lr_lines, robust_limits
from tuner.compare.verdicts import ArmResult, Comparison
from tuner.records import Direction, LrCurve, setting

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#333333")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
INK, GREY, FAINT = "#1f2933", "#6b7785", "#e4e8ee"
WIDTH = 8.0  # inches
_COLUMNS = 2  # of small multiples
_LEGEND_CHARACTERS = 100  # that fit into a figure's width


@dataclass(frozen=True)
class Explored:
    """The exploration of one arm: learning rate and value of each trial, None = diverged."""

    lrs: list[float]
    values: list[float | None]
    chosen_lr: float | None = None
    box: tuple[float, float] | None = None  # of the learning rate


@dataclass(frozen=True)
class Runs:
    """The runs of one arm's chosen configuration: one (x, y) line for each seed."""

    metric: list[list[tuple[float, float]]] = field(default_factory=list)
    lr: list[list[tuple[float, float]]] = field(default_factory=list)


def line_style(k: int) -> dict[str, Any]:
    """Colour and dashes of the k-th arm; 28 arms differ."""
    dash = DASHES[(k + 2 * (k // len(COLOURS))) % len(DASHES)]
    return {"color": COLOURS[k % len(COLOURS)], "linestyle": dash}


def _figure(
    height: float, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, **options)
    axes = [grid[r][c] for r, c in product(range(rows), range(columns))]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(GREY)
        ax.tick_params(colors=INK, labelsize=9)
        ax.grid(color=FAINT, linewidth=0.8)
        ax.set_axisbelow(True)
    return figure, axes


def _empty(ax: Axes, text: str) -> None:
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=GREY)
    ax.set(xticks=[], yticks=[])


def _labels(ax: Axes, x: str, y: str, title: str = "") -> None:
    ax.set_xlabel(x, color=INK, fontsize=10)
    ax.set_ylabel(y, color=INK, fontsize=10)
    if title:
        ax.set_title(title, loc="left", color=INK, fontsize=10.5, fontweight="bold")


def _legend(figure: Figure, ax: Axes) -> None:
    handles, names = ax.get_legend_handles_labels()
    if handles:
        columns = max(1, min(4, _LEGEND_CHARACTERS // (max(map(len, names)) + 8)))
        figure.legend(
            handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=9
        )


def _rows(ax: Axes, arms: Sequence[ArmResult]) -> None:
    ax.set_yticks(range(len(arms)), [f"{a.name}\n{a.verdict}" for a in arms])
    ax.set_ylim(len(arms) - 0.4, -0.6)
    ax.grid(visible=False, axis="y")


def _metric_label(comparison: Comparison) -> str:
    arrow = "higher" if comparison.direction == "maximize" else "lower"
    return f"{comparison.metric} ({arrow} is better)"


def arms_figure(comparison: Comparison) -> Figure:
    """Mean and interval of each arm, best on top, with a dot for each seed, a cross if diverged."""
    arms = comparison.arms
    figure, (ax,) = _figure(1.2 + 0.62 * len(arms))
    _rows(ax, arms)
    leader = arms[0]
    if leader.ci_low is not None and leader.ci_high is not None:
        ax.axvspan(leader.ci_low, leader.ci_high, color=FAINT, zorder=0, linewidth=0)
    for row, arm in enumerate(arms):
        colour = COLOURS[row % len(COLOURS)]
        reached = [s for s in arm.scores if s is not None]
        ax.plot(reached, [row + 0.2] * len(reached), "o", color=colour, ms=4, alpha=0.6, mew=0)
        if arm.ci_low is not None and arm.ci_high is not None:
            ax.plot([arm.ci_low, arm.ci_high], [row, row], color=colour, lw=3, zorder=3)
        ax.plot([arm.mean], [row], "D", color=colour, ms=7, mec="white", zorder=4)
        if diverged := arm.scores.count(None):
            text = f"{diverged} diverged"
            ax.annotate(text, (1, row + 0.2), (-4, 0), xycoords=("axes fraction", "data"),
                        textcoords="offset points", ha="right", va="center", fontsize=8.5,
                        color=INK)  # fmt: skip
    level = round(100 * (1 - comparison.alpha))
    _labels(ax, f"{_metric_label(comparison)}; mean, {level} % interval, seeds", "")
    return figure


def differences_figure(comparison: Comparison) -> Figure:
    """Difference of each arm to the leader on common seeds: interval, seeds, and the margin."""
    leader, *others = comparison.arms
    figure, (ax,) = _figure(1.2 + 0.62 * max(len(others), 1))
    if not others:
        _empty(ax, "one arm: no difference to show")
        return figure
    _rows(ax, others)
    ax.axvline(0, color=INK, lw=1)
    if comparison.margin:
        kind = "given" if comparison.margin_given else "deviation over seeds"
        ax.axvspan(-comparison.margin, comparison.margin, color=FAINT, zorder=0, linewidth=0,
                   label=f"margin ±{comparison.margin:.2g} ({kind})")  # fmt: skip
    reference = dict(zip(leader.seeds, leader.scores, strict=True))
    for row, arm in enumerate(others):
        colour = COLOURS[(row + 1) % len(COLOURS)]
        pairs = [(s, reference.get(i)) for i, s in zip(arm.seeds, arm.scores, strict=True)]
        dots = [a - b for a, b in pairs if a is not None and b is not None]
        ax.plot(dots, [row + 0.2] * len(dots), "o", color=colour, ms=4, alpha=0.6, mew=0)
        if arm.difference_low is not None and arm.difference_high is not None:
            ax.plot([arm.difference_low, arm.difference_high], [row, row], color=colour, lw=3)
        if arm.difference is not None:
            ax.plot([arm.difference], [row], "D", color=colour, ms=7, mec="white", zorder=4)
    side = "left" if comparison.direction == "maximize" else "right"
    _labels(ax, f"{comparison.metric} minus that of {leader.name} ({side} of 0 is worse)", "")
    _legend(figure, ax)
    return figure


def exploration_figure(arms: Mapping[str, Explored], metric: str, direction: Direction) -> Figure:
    """Value against learning rate for each arm: where the good region lies, and where it ends."""
    columns = min(_COLUMNS, max(len(arms), 1))
    rows = math.ceil(max(len(arms), 1) / columns)
    figure, axes = _figure(0.4 + 2.5 * rows, rows, columns, sharey=True)
    reached = [v for arm in arms.values() for v in arm.values if v is not None]
    if not reached:
        _empty(axes[0], "no completed exploration trial")
        return figure
    low, high = robust_limits(reached, direction)
    edge = high if direction == "minimize" else low
    for k, (ax, (name, arm)) in enumerate(zip(axes, arms.items(), strict=False)):
        colour = COLOURS[k % len(COLOURS)]
        points = list(zip(arm.lrs, arm.values, strict=True))
        inside = [(x, v) for x, v in points if v is not None and low <= v <= high]
        beyond = [x for x, v in points if v is not None and not low <= v <= high]
        diverged = [x for x, v in points if v is None]
        ax.set_xscale("log")
        ax.set_xlim(*_decades([*arm.lrs, *(arm.box or ())]))
        ax.set_ylim(low, high)
        for end in arm.box or ():
            ax.axvline(end, color=GREY, lw=1, ls=(0, (4, 3)))
        ax.plot(*_xy(inside), "o", color=colour, ms=5, alpha=0.75, mew=0, label="trial")
        ax.step(*_xy(_best_by_bucket(inside, direction)), where="post", color=GREY, lw=1.2,
                label="best of each half decade")  # fmt: skip
        marks: dict[str, Any] = {"clip_on": False, "zorder": 5}
        if beyond:
            ax.plot(beyond, [edge] * len(beyond), "^" if edge == high else "v", color=GREY, ms=6,
                    label="worse than the axis shows", **marks)  # fmt: skip
        if diverged:
            ax.plot(diverged, [edge] * len(diverged), "x", color="#B00020", ms=7, mew=2,
                    label="diverged", **marks)  # fmt: skip
        if arm.chosen_lr:
            ax.axvline(arm.chosen_lr, color=colour, lw=2, alpha=0.5, zorder=1)
        y = metric if k % columns == 0 else ""
        x = "learning rate at the reference batch" if k >= len(arms) - columns else ""
        _labels(ax, x, y, name)
    for ax in axes[len(arms) :]:
        ax.set_visible(False)
    fullest = max(axes[: len(arms)], key=lambda ax: len(ax.get_legend_handles_labels()[0]))
    _legend(figure, fullest)
    return figure


def _best_by_bucket(
    points: Sequence[tuple[float, float]], direction: Direction
) -> list[tuple[float, float]]:
    """The best value in each half decade that has one, as the steps of a line (isolation plot)."""
    best = min if direction == "minimize" else max
    buckets: dict[int, list[float]] = {}
    for x, value in points:
        buckets.setdefault(math.floor(2 * math.log10(x)), []).append(value)
    steps: list[tuple[float, float]] = []
    for k in sorted(buckets):
        height = best(buckets[k])
        if steps and steps[-1][0] < 10 ** (k / 2) * (1 - 1e-9):
            steps.append((10 ** (k / 2), math.nan))
        steps += [(10 ** (k / 2), height), (10 ** ((k + 1) / 2), height)]
    return steps


def _decades(lrs: Sequence[float]) -> tuple[float, float]:
    """Limits of a logarithmic axis with room at both ends."""
    return (min(lrs) / 1.5, max(lrs) * 1.5) if lrs else (1e-5, 1.0)


def _xy(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _band(
    lines: Sequence[Sequence[tuple[float, float]]],
) -> tuple[list[float], st.Array, st.Array, st.Array]:
    """Steps that every line has, and mean, lowest and highest over the lines there."""
    by_step = [dict(line) for line in lines]
    common = sorted(set.intersection(*(set(d) for d in by_step))) if by_step else []
    values = np.array([[d[x] for x in common] for d in by_step]).reshape(len(by_step), len(common))
    if not common:
        return [], values, values, values
    return common, values.mean(axis=0), values.min(axis=0), values.max(axis=0)


def curves_figure(arms: Mapping[str, Runs], metric: str, direction: Direction) -> Figure:
    """Validation metric and learning rate against the step, for the chosen configurations."""
    figure, (left, right) = _figure(3.6, 1, 2)
    ends: list[float] = []
    for k, (name, runs) in enumerate(arms.items()):
        steps, mean, low, high = _band(runs.metric)
        if not steps:
            continue
        ends += [v for line in runs.metric for _, v in line if math.isfinite(v)]
        left.fill_between(steps, low, high, color=COLOURS[k % len(COLOURS)], alpha=0.15, lw=0)
        left.plot(steps, mean, lw=1.8, label=name, **line_style(k))
        lr_steps, lr_mean, *_ = _band(runs.lr)
        right.plot(lr_steps, lr_mean, lw=1.8, **line_style(k))
    if not ends:
        _empty(left, "no evaluation stored")
        _empty(right, "no evaluation stored")
        return figure
    left.set_ylim(*robust_limits(ends, direction))
    right.set_yscale("log")
    for ax in (left, right):
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    _labels(left, "optimizer step", f"validation {metric}", "Mean and range over seeds")
    _labels(right, "optimizer step", "learning rate", "Schedule as it ran")
    _legend(figure, left)
    return figure


def lr_curves_figure(curves: Mapping[str, LrCurve]) -> Figure:
    """All range tests in one picture; see `lr_axes`."""
    figure, (ax,) = _figure(4.4)
    lr_axes(curves, ax)
    _legend(figure, ax)
    return figure


def lr_axes(curves: Mapping[str, LrCurve], ax: Axes | None = None) -> Axes:
    """Range tests on matplotlib axes, new ones if none are given; returns the axes.

    The line with dots is the held-out loss of the longer runs, the dashed one of the shorter, the
    faint one the ramp. A circle is the suggestion; below, a thick bar is its 80 % interval and a
    thin one the search box; a cross is where training explodes.
    """
    if ax is None:
        ax = _figure(4.4)[1][0]
    drawn = {name: lr_lines(curve) for name, curve in curves.items()}
    drawn = {name: lines for name, lines in drawn.items() if lines}
    if not drawn:
        _empty(ax, "no finite loss to draw")
        return ax
    low, high = loss_limits([line for lines in drawn.values() for line in lines])
    room = 0.05 * (high - low) * len(drawn)
    ax.set_xscale("log")
    ax.set_ylim(low - room, high)
    for k, (name, lines) in enumerate(drawn.items()):
        curve, style = curves[name], line_style(k)
        colour = style["color"]
        *shorter, longest = lines
        for line, dashes in zip(shorter, ("-", "--")[-len(shorter) :], strict=False):
            ax.plot(*_xy(line), lw=1.0, ls=dashes, color=colour, alpha=0.35)
        lrs, losses = _xy(longest)
        text = "no suggestion"
        if curve.suggested_lr is not None:
            text = setting(curve.suggested_lr)
            height = float(np.interp(math.log(curve.suggested_lr), np.log(lrs), losses))
            ax.plot([curve.suggested_lr], [min(height, high)], "o", color=colour, ms=9,
                    mec="white", zorder=5)  # fmt: skip
        dots = "o" if curve.grid else None
        ax.plot(lrs, losses, lw=1.8, marker=dots, ms=4, label=f"{name}: {text}", **style)
        bar = low - 0.05 * (high - low) * (k + 0.2)
        for left, right, width in (
            (curve.low, curve.high, 1.0),
            (curve.interval_low, curve.interval_high, 4.0),
        ):
            if left and right:
                ax.plot([left, right], [bar, bar], color=colour, lw=width, alpha=0.7,
                        marker="|", ms=6)  # fmt: skip
        if curve.diverges_at is not None:
            ax.plot([curve.diverges_at], [high], "x", color=colour, ms=9, mew=2.5,
                    clip_on=False, zorder=6)  # fmt: skip
    forks = any(curve.grid for curve in curves.values())
    _labels(ax, "learning rate", "held-out loss of short runs" if forks else "training loss")
    return ax
