"""The kinds of values in a study file, and how a wrong name is answered."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

Range = tuple[float, float]


def _range(value: Any, *, positive: bool) -> Any:
    """Check "auto", `[low, high]` or a single number; bools and empty ranges are errors."""
    if value is None or value == "auto":
        return value
    numbers = value if isinstance(value, list | tuple) else [value, value]
    if len(numbers) != 2 or any(
        isinstance(n, bool) or not isinstance(n, int | float) for n in numbers
    ):
        raise ValueError('allowed: "auto", a number or [low, high]')
    low, high = (float(n) for n in numbers)
    if not 0 <= low < float("inf") or not 0 <= high < float("inf") or (positive and low == 0):
        raise ValueError(f"allowed: numbers {'above' if positive else 'from'} 0")
    if low > high:
        raise ValueError("empty range; allowed: [low, high] with low <= high")
    return (low, high)


def _batch_sizes(value: Any) -> Any:
    """Turn a size, a range of powers of two or a list of sizes into a sorted tuple of sizes."""
    sizes = value if isinstance(value, list | tuple) else [value]
    if not sizes or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in sizes):
        raise ValueError(
            "allowed: a whole number above 0, a range [low, high] of powers of two, or a list"
        )
    if len(sizes) == 2:
        low, high = sizes
        powers = tuple(2**k for k in range(31) if low <= 2**k <= high)
        if low > high or not powers:
            raise ValueError("empty range; allowed: [low, high] with a power of two inside")
        return powers
    if len(set(sizes)) < len(sizes):
        raise ValueError("a size occurs twice; allowed: a list of different sizes")
    return tuple(sorted(sizes))


LearningRates = Annotated[Literal["auto"] | Range, BeforeValidator(partial(_range, positive=True))]
WeightDecays = Annotated[Literal["auto"] | Range, BeforeValidator(partial(_range, positive=False))]
BatchSizes = Annotated[tuple[int, ...], BeforeValidator(_batch_sizes)]


def near_miss(word: str, allowed: Collection[str]) -> str:
    """What was probably meant, as the end of a sentence; empty when nothing is near."""
    close = difflib.get_close_matches(word.lower(), allowed, n=1, cutoff=0.6)  # as in AdamW, SGD
    return f"; did you mean {close[0]!r}" if close else ""


def require_known_keys(section: str, given: dict[str, Any], allowed: set[str]) -> None:
    """Raise ValueError, naming the key and what is allowed, unless all keys are known."""
    for key in given:
        if key not in allowed:
            near = near_miss(key, sorted(allowed))
            choices = ", ".join(sorted(allowed)) or "nothing"
            raise ValueError(f"{section}.{key}: unknown{near}; allowed: {choices}")


def require_known(value: str, allowed: list[str], what: str) -> str:
    """Return the value; raises ValueError, naming what is allowed, unless it is known."""
    if value not in allowed:
        near = near_miss(value, allowed)
        raise ValueError(f"not {what}{near}; allowed: {', '.join(allowed)}")
    return value
