"""The adaptive decide stage: after a look at the scores, who needs more seeds?

    looks = (7, 12, 20)                        # seeds of each arm at each look, as a study plans it
    more = undecided(scores, "minimize", look=1, looks=len(looks), margin=None, rng=rng)
    # run the arms in `more` on the seeds of the next look; empty = decided
    compare(arms, "minimize", looks=len(looks), rng=rng)     # the verdicts, at the same price

With the same generator state at every call, what one look decided, the last comparison repeats.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tuner.compare.evidence import gather
from tuner.records import Direction


def undecided(
    scores: Mapping[str, Mapping[int, float | None]],
    direction: Direction,
    *,
    look: int,
    looks: int,
    rng: np.random.Generator,
    margin: float | None = None,
    alpha: float = 0.05,
) -> frozenset[str]:
    """The arms that need more seeds at interim look `look` of `looks`; empty = decided.

    These are the leader and every rival that is shown neither worse than another arm nor
    equivalent to the leader. An arm that lacks the newest seeds was dropped at an earlier look and
    stays dropped, unless it leads. At the last look, and when every run diverged, the set is empty.

    Args:
        scores: arm -> seed -> metric of every finished run so far, None = diverged (the worst).
        margin: differences below it do not matter; None = the pooled deviation over seeds.
        look: 1 for the first. `looks` is the number planned: all of them together call one of
            equal arms worse or best with probability `alpha` at most.

    Raises ValueError for a NaN or infinite score, or a look outside 1..looks.
    """
    if not 1 <= look <= looks:
        raise ValueError(f"look = {look}; allowed: 1..{looks}")
    names = [name for name, seeds in scores.items() if seeds]
    if (
        look == looks
        or len(names) < 2
        or all(v is None for name in names for v in scores[name].values())
    ):
        return frozenset()
    evidence = gather(
        [scores[name] for name in names],
        direction,
        rng=rng,
        margin=margin,
        alpha=alpha,
        looks=looks,
    )
    if evidence.leader_is_best:
        return frozenset()
    most = max(len(scores[name]) for name in names)
    open_rivals = {
        k
        for k in evidence.order[1:]
        if len(scores[names[k]]) == most
        and not evidence.is_worse(k)
        and not evidence.is_equivalent(k)
    }
    if not open_rivals:
        return frozenset()
    return frozenset(names[k] for k in {evidence.leader, *open_rivals})
