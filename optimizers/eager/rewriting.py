"""Fewer operations for the same arithmetic, among those that were recorded of a piece.

A rule says what it computes in the order that reads best. Of an eager step every operation is a
call and a walk through the cache, so a factor (clipping, most of all) moves into the coefficient
that a later operation has anyway, and a product or quotient that is only added goes into
``addcmul`` or ``addcdiv``. A sum of sums becomes one, of which ``lerp`` or `blend` does two terms.
Results differ from the rule's own by their rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

import torch
from torch import Tensor

from optimizers.eager.calls import COMBINED, blend, dot_of, norm_of, sum_of

# Factors that may move: their squares, times a decay of a thousandth, are normal in float32.
LEAST, MOST = 2.0**-40, 2.0**40


@dataclass(frozen=True)
class Place:
    """Where an argument is: the number of a value, or of an input or buffer.

    ``single`` values are numbers that are known only when a step runs (0-D tensors).
    """

    number: int
    single: bool = False


@dataclass(frozen=True)
class Step:
    """``call(*args, **kwargs, out=...)``, whose result is the value of that number."""

    call: Callable[..., Any]
    args: tuple[Any, ...]  # places, numbers, 0-D tensors; a number may be a sum's first
    result: int
    kwargs: dict[str, Any] = field(default_factory=dict)

    def reads(self, value: int) -> bool:
        """Whether a value is among the arguments."""
        return any(is_value(arg, value) for arg in self.args)


def is_value(arg: object, number: int) -> bool:
    """Whether an argument is the value of this number."""
    return isinstance(arg, Place) and arg.number == number


def is_number(arg: object) -> TypeGuard[float]:
    """Whether an argument is a plain number."""
    return isinstance(arg, int | float) and not isinstance(arg, bool)


def plain(step: Step) -> Step:
    """Differences, negations and quotients by a number as sums and products; numbers come last."""
    if step.call is torch.neg:
        return replace(step, call=torch.mul, args=(*step.args, -1.0))
    if step.call in (torch.mul, torch.div):
        args = [a.item() if isinstance(a, Tensor) and a.is_cpu else a for a in step.args]
        if step.call is torch.div and not step.kwargs and is_number(args[1]) and args[1]:
            return replace(step, call=torch.mul, args=(args[0], 1 / args[1]))
        if step.call is torch.mul and is_number(args[0]):
            args.reverse()
        return replace(step, args=tuple(args))
    if step.call is torch.sub and all(isinstance(arg, Place) for arg in step.args):
        return replace(step, call=torch.add, kwargs={"alpha": -step.kwargs.get("alpha", 1)})
    return step


def absorb(step: Step, value: int, base: Place, factor: float) -> Step | None:
    """A step with a value, which is ``factor·base``, replaced by the base; None if it cannot be."""
    args, kwargs = step.args, step.kwargs
    places = [is_value(arg, value) for arg in args]
    if step.call is torch.mul and places == [True, False] and is_number(args[1]):
        return replace(step, args=(base, args[1] * factor))
    if step.call is torch.add and not all(places):
        first, second = args
        alpha = kwargs.get("alpha", 1)
        if places[1]:
            return replace(step, args=(first, base), kwargs={"alpha": alpha * factor})
        if is_number(second):
            return replace(step, args=(second * alpha, base), kwargs={"alpha": factor})
        if alpha == 1:
            return replace(step, args=(second, base), kwargs={"alpha": factor})
    if step.call in (torch.lerp, blend) and not all(places[:2]):
        return blended(step, places[0], base, factor)
    if step.call in COMBINED:
        power = sum(places)
        moved = tuple(base if own else arg for own, arg in zip(places, args, strict=True))
        size = abs(factor) if step.call is norm_of else factor
        return replace(step, args=(*moved[:-1], args[-1] * size**power))
    if step.call in (torch.addcmul, torch.addcdiv) and not places[0]:
        power = places[1] + (1 if step.call is torch.addcmul else -1) * places[2]
        moved = tuple(base if own else arg for own, arg in zip(places, args, strict=True))
        coefficient = kwargs.get("value", 1) * factor**power
        return replace(step, args=moved, kwargs={"value": coefficient})
    return None


def blended(step: Step, is_first: bool, base: Place, factor: float) -> Step | None:
    """As `absorb`, for weighted sums of two values."""
    terms = addends(step)
    if terms is None:
        return None
    (first, a), (second, b) = terms
    if is_first:
        first, a = base, a * factor
    else:
        second, b = base, b * factor
    if first == second:
        return replace(step, call=torch.mul, args=(first, a + b))
    return replace(step, call=blend, args=(first, second, a, b)) if a and b else None


def fuse(step: Step, maker: Step) -> Step | None:
    """A sum with a product or quotient of two values as one operation; None if it is not that."""
    if step.call is sum_of and maker.call is torch.mul and not is_number(maker.args[1]):
        single = any(arg.single for arg in maker.args)
        return None if single else replace(step, call=dot_of, args=(*maker.args, step.args[1]))
    fused = {torch.mul: torch.addcmul, torch.div: torch.addcdiv}.get(maker.call)
    terms, alpha = step.args, step.kwargs.get("alpha", 1)
    if fused is None or maker.kwargs or step.call is not torch.add:
        return None
    if not all(isinstance(arg, Place) for arg in (*maker.args, *terms)):
        return None
    if is_value(terms[0], maker.result):
        if alpha != 1:
            return None
        terms = terms[::-1]
    if is_value(terms[0], maker.result):  # twice the product
        return None
    return replace(step, call=fused, args=(terms[0], *maker.args), kwargs={"value": alpha})


def addends(step: Step) -> list[tuple[Place, float]] | None:
    """The values that a step adds up, and their factors; None if it does something else."""
    args, alpha = step.args, step.kwargs.get("alpha", 1)
    numbers = [is_number(arg) for arg in args]
    if any(isinstance(arg, Place) and arg.single for arg in args):
        return None
    if step.call is blend:
        return [(args[0], args[2]), (args[1], args[3])]
    if step.call is torch.mul and numbers == [False, True]:
        return [(args[0], args[1])]
    if step.call is torch.add and numbers == [False, False]:
        return [(args[0], 1.0), (args[1], alpha)]
    if step.call is torch.lerp and numbers == [False, False, True]:
        return [(args[0], 1.0 - args[2]), (args[1], args[2])]
    return None


def summed(terms: Mapping[int, float], result: int, unused: int) -> list[Step]:
    """Steps that add up values times their factors; ``unused`` and up number what is between."""
    (first, factor), *rest = sorted(terms.items(), key=lambda term: term[1] != 1)
    steps = []
    if factor != 1:
        second = next((v for v, f in rest if abs(factor + f - 1) < 1e-15), None)
        if second is not None:
            steps.append(Step(torch.lerp, (Place(first), Place(second), terms[second]), unused))
            rest = [term for term in rest if term[0] != second]
        elif rest and factor and rest[0][1]:
            (second, weight), *rest = rest
            steps.append(Step(blend, (Place(first), Place(second), factor, weight), unused))
        else:
            steps.append(Step(torch.mul, (Place(first), factor), unused))
        first = unused
    for number, (value, each) in enumerate(rest, unused + 1):
        steps.append(Step(torch.add, (Place(first), Place(value)), number, {"alpha": each}))
        first = number
    return [*steps[:-1], replace(steps[-1], result=result)] if steps else []


class Rewriting:
    """Steps in their order, each value made once, and the values that are wanted at the end."""

    def __init__(self, steps: Sequence[Step], wanted: set[int]) -> None:
        self.steps, self.wanted = [plain(step) for step in steps], wanted

    @property
    def made(self) -> dict[int, int]:
        """Which step makes each value that is no input."""
        return {step.result: index for index, step in enumerate(self.steps)}

    def readers(self, value: int) -> list[int]:
        """Which steps read a value."""
        return [index for index, step in enumerate(self.steps) if step.reads(value)]

    def alone(self, index: int) -> int | None:
        """The only reader of what a step makes, if there is one and nothing else wants it."""
        result = self.steps[index].result
        readers = self.readers(result)
        return readers[0] if len(readers) == 1 and result not in self.wanted else None

    def drop(self, index: int) -> bool:
        """Leave out a step that makes what nobody reads."""
        result = self.steps[index].result
        if result in self.wanted or self.readers(result):
            return False
        del self.steps[index]
        return True

    def fuse(self, index: int) -> bool:
        """Let the only reader of a product or quotient compute it."""
        reader = self.alone(index)
        fused = None if reader is None else fuse(self.steps[reader], self.steps[index])
        if fused is None or reader is None:
            return False
        self.steps[reader] = fused
        del self.steps[index]
        return True

    def apart(self, index: int) -> bool:
        """A weighted sum with a product or quotient that it alone reads: that is only added.

        It takes as many steps, and then factors may move into the product.
        """
        step, made = self.steps[index], self.made
        if step.call is not blend:
            return False
        first, second, a, b = step.args
        for one, other, weights in ((first, second, (a, b)), (second, first, (b, a))):
            maker = made.get(other.number)
            if maker is None or one == other or self.alone(maker) != index:
                continue
            unused = 1 + max(made)
            sum_ = Step(torch.add, (Place(unused), other), step.result, {"alpha": weights[1]})
            fused = fuse(sum_, self.steps[maker])
            if fused is not None:
                scaled = Step(torch.mul, (one, weights[0]), unused)
                self.steps[index : index + 1] = [scaled, fused]
                del self.steps[maker]
                return True
        return False

    def move(self, index: int) -> bool:
        """Let all readers of ``factor·base`` read the base."""
        step = self.steps[index]
        readers = self.readers(step.result)
        if step.call is not torch.mul or not is_number(step.args[1]) or not readers:
            return False
        base, factor = step.args
        if step.result in self.wanted or not LEAST <= factor * factor <= MOST:
            return False
        moved = [absorb(self.steps[reader], step.result, base, factor) for reader in readers]
        found = [new for new in moved if new is not None]
        if len(found) < len(readers):
            return self.past_root(index)
        for reader, new in zip(readers, found, strict=True):
            self.steps[reader] = new
        del self.steps[index]
        return True

    def terms(self, index: int) -> tuple[dict[int, float], set[int]]:
        """What a step adds up, sums that it alone reads taken apart, and all steps of that."""
        terms: dict[int, float] = {}
        used = {index}
        for place, factor in addends(self.steps[index]) or ():
            maker = self.made.get(place.number)
            within = {place.number: 1.0}
            if maker is not None and self.alone(maker) == index and addends(self.steps[maker]):
                within, inner = self.terms(maker)
                used |= inner
            for value, each in within.items():
                terms[value] = terms.get(value, 0.0) + factor * each
        return terms, used

    def straighten(self, index: int) -> bool:
        """Add up at once, as early as can be, what takes more steps as a sum of sums."""
        terms, used = self.terms(index)
        made = self.made
        unused = 1 + max([*made, *terms, 0])
        steps = summed(terms, self.steps[index].result, unused) if len(used) > 1 else []
        if not steps or len(steps) >= len(used):
            return False
        begin = 1 + max(made.get(value, -1) for value in terms)
        early = [step for i, step in enumerate(self.steps[:begin]) if i not in used]
        late = [step for i, step in enumerate(self.steps) if i >= begin and i not in used]
        self.steps = [*early, *steps, *late]
        return True

    def past_root(self, index: int) -> bool:
        """``√(factor·base)`` as ``√factor·√base``, whose factor may go on."""
        step, reader = self.steps[index], self.alone(index)
        if reader is None or self.steps[reader].call is not torch.sqrt or step.args[1] <= 0:
            return False
        base, factor = step.args
        root = self.steps[reader]
        self.steps[index] = replace(root, args=(base,), result=step.result)
        self.steps[reader] = replace(
            step, args=(Place(step.result), factor**0.5), result=root.result
        )
        return True

    def run(self) -> list[Step]:
        """Rewrite until nothing changes: every change removes a step, or moves one back."""
        changes = (self.drop, self.fuse, self.apart, self.move, self.straighten)
        while any(change(i) for change in changes for i in range(len(self.steps))):
            pass
        return self.steps


def fewer(steps: Sequence[Step], wanted: set[int]) -> list[Step]:
    """The steps that make the wanted values, with as few calls as these rewritings find."""
    return Rewriting(steps, wanted).run()
