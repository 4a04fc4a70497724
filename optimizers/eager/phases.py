"""Recorded steps as phases: each walks over all pieces once, and sums end between them.

What a sum is made of is computed before it, and as much else as possible after it, so that few
values have to wait. A value that both sides need is taken from where it was written, if it is a new
state. Else it is computed again, which takes no memory, or it is kept in memory as large as the
parameter: what can no longer be computed always, and of small parameters what takes several steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from optimizers.eager.calls import COMBINED, copied
from optimizers.eager.recording import Recording, is_single
from optimizers.eager.rewriting import Place, Step

FEW = 2  # steps for one value take less than its way through memory


@dataclass
class Phase:
    """``steps`` on the entries of a piece, and ``after`` all pieces those on numbers.

    Inputs come in three rows, which have the first places: the arrays, the numbers, and the values
    that are kept. ``results`` says which value replaces each of them, or None.
    """

    steps: list[Step] = field(default_factory=list)
    results: list[int | None] = field(default_factory=list)
    after: list[Step] = field(default_factory=list)


def read(step: Step) -> list[int]:
    """The values among a step's arguments."""
    return [arg.number for arg in step.args if isinstance(arg, Place)]


def useful(recording: Recording) -> list[Step]:
    """The steps that results and outputs need."""
    wanted = {*recording.outputs.values()}
    wanted.update(value for value in recording.results if value is not None)
    kept: list[Step] = []
    for step in reversed(recording.steps):
        if step.result in wanted:
            wanted.update(read(step))
            kept.append(step)
    return kept[::-1]


class Phases:
    """How a recording falls into phases; with ``keep``, only `FEW` are computed again."""

    def __init__(self, recording: Recording, keep: bool = False) -> None:
        self.recording, self.keep = recording, keep
        self.steps = {step.result: step for step in useful(recording)}
        self.replaced = {
            place: value for place, value in enumerate(recording.results) if value is not None
        }
        self.single = recording.single
        self.level = self.levels()
        sums = [step for step in self.steps.values() if step.call in COMBINED]
        entries = [step for step in self.steps.values() if not is_single(step)]
        levels = [self.level[step.result] for step in entries]
        self.last = max([*levels, *(self.level[step.result] - 1 for step in sums)], default=0)
        self.phase = self.placed()
        self.written = {place: self.write(place) for place in self.replaced}
        self.kept: dict[int, int] = {}  # counted

    def levels(self) -> dict[int, int]:
        """How many phases have to be over before each value is known."""
        level = dict.fromkeys(range(len(self.recording.results)), 0)
        for step in self.steps.values():
            level[step.result] = max(level[value] for value in read(step))
            level[step.result] += step.call in COMBINED
        return level

    def placed(self) -> dict[int, int]:
        """The phase of all steps on entries: the first that has a sum of it, or the last."""
        phase: dict[int, int] = {}
        for step in reversed([*self.steps.values()]):
            if step.call in COMBINED:
                phase[step.result] = self.level[step.result] - 1
            if step.result in phase:
                for value in read(step):
                    if value in self.steps and value not in self.single:
                        phase[value] = min(phase[step.result], phase.get(value, self.last))
            elif step.result not in self.single:
                phase[step.result] = self.last
        return phase

    def write(self, place: int) -> int:
        """The phase in which a result may replace what was there: nobody reads that later."""
        phase = self.phase[self.replaced[place]]
        readers = [step.result for step in self.steps.values() if place in read(step)]
        return self.last if any(self.phase[r] > phase for r in readers) else phase

    def available(self, value: int, phase: int) -> Place | None:
        """Where a phase finds a value that was not made in it; None if nowhere."""
        arrays = len(self.recording.results)
        if value in self.single:
            return Place(arrays + self.single[value], single=True)
        if value < arrays:
            return None if self.written.get(value, phase) < phase else Place(value)
        written = [place for place, after in self.replaced.items() if after == value]
        return next((Place(place) for place in written if self.written[place] < phase), None)

    def again(self, value: int, phase: int) -> list[int] | None:
        """Values that have to be computed again for one of an earlier phase; None: it cannot be."""
        if self.available(value, phase) is not None:
            return []
        if value not in self.steps:
            return None
        found: list[int] = []
        for needed in read(self.steps[value]):
            more = self.again(needed, phase)
            if more is None:
                return None
            found += more
        return [*found, value]

    def missing(self, phase: int) -> set[int]:
        """What a phase computes again. Values that it cannot, or need not, are kept for it."""
        extra: set[int] = set()
        for value in self.needed(phase):
            more = self.again(value, phase)
            if more is None or (self.keep and len(more) > FEW):
                self.kept.setdefault(value, len(self.kept))
            else:
                extra.update(more)
        return extra

    def needed(self, phase: int) -> Iterator[int]:
        """What a phase reads of earlier ones, and their results that are written in it."""
        own = [step for step in self.steps.values() if self.phase.get(step.result) == phase]
        for value in (value for step in own for value in read(step)):
            if value in self.phase and self.phase[value] < phase:
                yield value
        for place, value in self.replaced.items():
            if self.written[place] == phase and self.phase[value] < phase:
                yield value

    def run(self) -> list[Phase]:
        """The phases, in their order."""
        extras = [self.missing(phase) for phase in range(self.last + 1)]
        return [self.build(phase, extra) for phase, extra in enumerate(extras)]

    def build(self, phase: int, extra: set[int]) -> Phase:
        """One phase, its values counted behind all inputs."""
        first = len(self.recording.results) + len(self.single)
        inputs = first + len(self.kept)
        places = {}
        for value in self.level:
            where = self.available(value, phase)
            if where is not None:
                places[value] = where
        places |= {value: Place(first + count) for value, count in self.kept.items()}
        own = [v for v in self.steps if self.phase.get(v) == phase or v in extra]
        made = {value: inputs + value for value in own}
        places |= {value: Place(number, value in self.single) for value, number in made.items()}
        results: list[int | None] = [None] * inputs
        found = Phase(results=results)
        for value in own:
            found.steps.append(moved(self.steps[value], places, made[value]))
        for place, value in self.replaced.items():
            if self.written[place] == phase:
                if value not in made:  # it was kept, or is elsewhere, too
                    made[value] = inputs + value
                    found.steps.append(Step(copied, (places[value],), made[value]))
                results[place] = made[value]
        for value, count in self.kept.items():
            if self.phase[value] == phase:
                results[first + count] = made[value]
        for value in own:
            if value in self.single:
                results[len(self.recording.results) + self.single[value]] = made[value]
        found.after = list(self.numbers(phase + 1))
        return found

    def numbers(self, level: int) -> Iterator[Step]:
        """The steps on numbers that follow on the sums of a phase."""
        for value, step in self.steps.items():
            if value in self.single and step.call not in COMBINED and self.level[value] == level:
                yield moved(step, self.numbered(read(step)), self.single[value])

    def numbered(self, values: Iterable[int]) -> Mapping[int, Place]:
        """Where numbers are among numbers."""
        return {value: Place(self.single[value], single=True) for value in values}


def moved(step: Step, places: Mapping[int, Place], result: int) -> Step:
    """A step whose values are elsewhere."""
    args = tuple(places[arg.number] if isinstance(arg, Place) else arg for arg in step.args)
    return replace(step, args=args, result=result)
