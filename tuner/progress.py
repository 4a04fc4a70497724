"""What a person sees while a study runs: bars on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from tuner.executors.base import Slot
from tuner.records import Trial, assigned
from tuner.spec import StudySpec
from tuner.standing import Left

_NO_SCORE = ("lr-range", "screen")  # a range test, and short runs whose scores are no full ones


class Reporter(Protocol):
    """Told by the coordinator what happens; writes to stderr only."""

    def study_started(self, slots: Sequence[Slot], total: int, finished: Sequence[Trial]) -> None:
        """A study starts or goes on: at most `total` trials, some of them finished already."""

    def plan_changed(self, total: int, left: Left) -> None:
        """The study has `total` trials at most, and `left` is what they still cost."""

    def trial_started(self, slot: int, trial: Trial) -> None:
        """A slot took a trial."""

    def trial_moved(self, slot: int, step: int, total_steps: int) -> None:
        """A trial made steps."""

    def trial_ended(self, slot: int, trial: Trial) -> None:
        """A slot is free again; the trial is in its final state, or will be tried again."""

    def message(self, text: str) -> None:
        """One line that a person should read."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class Scoreboard:
    """Best value per arm and time left, from finished trials."""

    def __init__(self, spec: StudySpec) -> None:
        self.spec = spec
        self.best: dict[str, Trial] = {}
        self.done = 0
        self.total = 0
        self.left: Left | None = None

    def start(self, total: int, finished: Sequence[Trial]) -> None:
        """Begin with what is finished already."""
        self.total = total
        for trial in finished:
            self.add(trial)

    def add(self, trial: Trial) -> None:
        """Count a finished trial."""
        self.done += 1
        best = self.best.get(trial.arm)
        sign = 1.0 if self.spec.study.direction == "minimize" else -1.0
        if trial.state != "completed" or trial.value is None or trial.stage in _NO_SCORE:
            return
        if best is None or sign * trial.value < sign * (best.value or 0.0):
            self.best[trial.arm] = trial

    def time_left(self) -> str:
        """At most, from the time of the finished trials; "?" before there are any."""
        return clock(None if self.left is None else self.left.seconds)


def clock(seconds: float | None) -> str:
    """Hours, minutes and seconds; "?" for an unknown time."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def describe(trial: Trial, metric: str) -> str:
    """A trial's result in a few words."""
    result = {
        "completed": f"{metric} {trial.value:.5g}" if trial.value is not None else "no value",
        "pruned": f"stopped early at {metric} {trial.value or 0.0:.5g}",
        "diverged": "diverged",
    }.get(trial.state, trial.state)
    if trial.stage == "lr-range":
        suggested = "no suggestion" if trial.value is None else f"suggests lr {trial.value:.3g}"
        return suggested if trial.state == "completed" else result
    if trial.state == "failed" and trial.failure is not None:
        result = f"failed: {trial.failure.message}"
    return f"{result}   {assigned(trial.params)}"


class LineReporter:
    """One line for each finished trial; for pipes, logs and continuous integration."""

    def __init__(self, spec: StudySpec) -> None:
        self._board = Scoreboard(spec)

    def study_started(self, slots: Sequence[Slot], total: int, finished: Sequence[Trial]) -> None:
        """Say where trials run."""
        self._board.start(total, finished)
        places = ", ".join(s.device for s in slots)
        where = f"{len(slots)} slots ({places})"
        self.message(f"at most {total} trials on {where}; {len(finished)} done")

    def plan_changed(self, total: int, left: Left) -> None:
        """For the next line."""
        self._board.total, self._board.left = total, left

    def trial_started(self, slot: int, trial: Trial) -> None:
        """Nothing: the end of a trial is news enough."""

    def trial_moved(self, slot: int, step: int, total_steps: int) -> None:
        """Nothing."""

    def trial_ended(self, slot: int, trial: Trial) -> None:
        """One line."""
        if trial.state in ("running", "interrupted"):
            return
        self._board.add(trial)
        board = self._board
        result = describe(trial, board.spec.study.metric)
        self.message(
            f"[{board.done}/{board.total}] {trial.stage} {trial.arm} seed {trial.seed}: {result}"
            f"   ({board.time_left()} left)"
        )

    def message(self, text: str) -> None:
        """Print to stderr."""
        print(text, file=sys.stderr, flush=True)  # noqa: T201

    def close(self) -> None:
        """Nothing to restore."""


class LiveReporter:
    """A bar per slot, one for the study, and the best so far of each arm, redrawn in place."""

    def __init__(self, spec: StudySpec, console: Console) -> None:
        self._board = Scoreboard(spec)
        self._console = console
        self._progress = Progress(
            TextColumn("{task.fields[place]}", style="dim"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            console=console,
        )
        self._slots: dict[int, TaskID] = {}
        self._study = self._progress.add_task("study", place="all", total=None)
        self._live = Live(
            get_renderable=self._render, console=console, refresh_per_second=4, transient=True
        )

    def study_started(self, slots: Sequence[Slot], total: int, finished: Sequence[Trial]) -> None:
        """Draw the bars."""
        self._board.start(total, finished)
        for slot in slots:
            self._slots[slot.index] = self._progress.add_task(
                "starting", place=slot.device, total=None
            )
        self._update_study()
        self._live.start()

    def _update_study(self) -> None:
        self._progress.update(self._study, completed=self._board.done, total=self._board.total)

    def plan_changed(self, total: int, left: Left) -> None:
        """Draw the new end of the study's bar."""
        self._board.total, self._board.left = total, left
        self._update_study()

    def trial_started(self, slot: int, trial: Trial) -> None:
        """Start the slot's bar again."""
        name = f"#{trial.number} {trial.stage} {trial.arm}"
        self._progress.reset(self._slots[slot], description=name, total=None)

    def trial_moved(self, slot: int, step: int, total_steps: int) -> None:
        """Move the slot's bar."""
        self._progress.update(self._slots[slot], completed=step, total=total_steps)

    def trial_ended(self, slot: int, trial: Trial) -> None:
        """Count the trial and free its bar."""
        self._progress.reset(self._slots[slot], description="idle", total=None)
        if trial.state not in ("running", "interrupted"):
            self._board.add(trial)
            self._update_study()

    def message(self, text: str) -> None:
        """Print above the bars."""
        self._console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Take the bars away."""
        self._live.stop()

    def _render(self) -> Group:
        metric = self._board.spec.study.metric
        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("arm", f"best {metric} so far", "settings"):
            table.add_column(column, header_style="dim")
        for arm in self._board.spec.arms:
            best = self._board.best.get(arm.name)
            if best is None:
                table.add_row(arm.name, "-", "")
            else:
                table.add_row(arm.name, f"{best.value:.5g}", assigned(best.params))
        left = Text(f"about {self._board.time_left()} left; Ctrl-C stops and keeps", style="dim")
        return Group(self._progress, table, left)


def reporter(spec: StudySpec, quiet: bool = False) -> Reporter:
    """Bars when stderr is a terminal, else lines; nothing but messages when `quiet`."""
    console = Console(stderr=True)
    if console.is_terminal and not quiet:
        return LiveReporter(spec, console)
    return QuietReporter(spec) if quiet else LineReporter(spec)


class QuietReporter(LineReporter):
    """Messages only."""

    def study_started(self, slots: Sequence[Slot], total: int, finished: Sequence[Trial]) -> None:
        """Nothing."""

    def trial_ended(self, slot: int, trial: Trial) -> None:
        """Nothing."""
