"""The range test: a ramp finds the range, short runs at two horizons find the rate.

Every short run is the whole run in miniature: the same start, its schedule rescaled to its few
steps, and a loss measured on common held-out batches. Nothing here knows what is trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.special import stdtrit

from optimizers.schedules import Schedule
from tuner import lr_fit
from tuner.lr_curve import MIN_POINTS, explosion, refusal, shape
from tuner.lr_ramp import CEILING, HIGH, LOW, Points, coarse
from tuner.lr_rigs import MOST_LOOKS, Rig
from tuner.records import BELOW_DIVERGENCE, LrCurve

Progress = Callable[[int, int], None]

# A test costs this share of the run that it is for, and no more than BUDGET steps.
SHARE, BUDGET = 1.48, 2000
# Of the budget: the longer horizon takes three or four runs of this share.
LONG_SHARE, SHORT_OF_LONG = 0.15, 0.17
RAMP_SHARE, RAMP_STEPS = 0.09, (36, 60)
SHORTEST, LONG_ENOUGH = 4, 12
# Decades between neighbouring runs; a gap wider than WIDE_GAP beside the best one may be halved.
STEP, WIDE_GAP = 0.45, 0.35
SHORT_RUNS, FEWEST_LONG, LONG_RUNS = 9, 3, 6
# Held-out batches that judge a run, of longer ones as a share of its steps and within bounds; a
# forward pass costs a third of a step.
SHORT_LOOKS, LOOKS_SHARE, LONG_LOOKS, LOOK = 4, 0.2, (8, MOST_LOOKS), 1 / 3
# A run within this share of the best one's gain is as good as the best.
TOLERANCE = 0.05
# Gains as probable as this without learning are chance, and doubtful if as probable as that. A loss
# is lost so many deviations of a batch up.
CHANCE, DOUBTFUL, LOST = 0.1, 0.02, 3.0
# The search box around the suggestion: a study also moves what was fixed here.
BOX_BELOW, BOX_ABOVE = 10.0, 4.0
WIDE = 1.25  # decades: an interval that tells little
# Share of a short run that its warm-up may take: a tenth of the whole run fits the longer ones.
MOST_WARMUP = 0.4
# The response is measured at this share of a rate: a trust ratio grows with the parameters.
GENTLE = 0.1
# Steps at rate zero before the snapshot that all runs start from, so that moments are warm.
WARM = 20


@dataclass(frozen=True)
class Plan:
    """How many steps a test takes where; `run_steps` is the run that it is for."""

    run_steps: int
    budget: int
    ramp: int
    short: int
    long: int

    @classmethod
    def create(cls, run_steps: int, budget: int | None = None, refresh: int = 1) -> Plan:
        """Horizons that fit the budget, each long enough for two refreshes of the rule."""
        budget = budget or min(round(SHARE * run_steps), BUDGET)
        long = max(round(LONG_SHARE * budget), 2 * SHORTEST)
        short = max(round(SHORT_OF_LONG * long), SHORTEST, 2 * refresh if refresh > 1 else 0)
        ramp = min(max(round(RAMP_SHARE * budget), RAMP_STEPS[0]), RAMP_STEPS[1])
        return cls(run_steps, budget, ramp, short, max(long, 2 * short))

    @property
    def looks(self) -> int:
        """Held-out batches that judge one of the longer runs."""
        return min(max(round(LOOKS_SHARE * self.long), LONG_LOOKS[0]), LONG_LOOKS[1])

    @property
    def batches(self) -> int:
        """Training batches that the longest run sees."""
        return max(self.long, self.ramp)


@dataclass(frozen=True)
class Fork:
    """A short run: `losses` of the held-out batches, infinite when it diverged."""

    log_lr: float
    losses: tuple[float, ...]

    @property
    def loss(self) -> float:
        """Mean loss."""
        return float(np.mean(self.losses))


@dataclass
class Search:
    """One range test of a rig."""

    rig: Rig
    plan: Plan
    schedule: Schedule
    progress: Progress = lambda step, steps: None
    low: float = LOW
    high: float = HIGH
    axis: str = "lr"
    start: float | None = None  # where to look first; None to ask the ramp
    before: list[float] = field(default_factory=list)
    noise: float = 0.0
    cap: float = math.inf  # the rate above which all rates are the same
    forks: dict[int, list[Fork]] = field(default_factory=dict)

    def run(self) -> LrCurve:
        """Ramp, short runs, longer runs, answer; or a refusal that says why."""
        self.rig.reset()
        looks = min(self.plan.looks, self.rig.most_looks)
        self.before = self.rig.held_out(looks)
        if not np.isfinite(self.before).all():
            reason = "the loss is not finite before the first step: look at the data and the loss"
            return self._told(refusal([], None, "diverges-everywhere", reason))
        if self.start is None:
            self.rig.warm(WARM)
        self.noise = float(np.std(self.before))
        cap = self.rig.cap(LOW, CEILING)
        self.cap = cap if cap > self.low else math.inf
        high, ceiling = min(self.high, self.cap), min(CEILING, self.cap)
        points = coarse(self._ramp, self.low, high, self.plan.ramp, self.noise, ceiling)
        usable = explosion([loss for _, loss in points], self.noise)
        top = None if usable is None else points[usable][0]
        if usable is not None and usable < 3:
            reason = "no learning rate gives a finite loss: it explodes at every rate tried"
            return self._told(refusal(points, top, "diverges-everywhere", reason))
        start = _start(points, top, self.noise) if self.start is None else math.log10(self.start)
        short = self._explore(self.plan.short, start, SHORT_RUNS, min(SHORT_LOOKS, looks))
        first = self._locate(self.plan.short)
        slope = lr_fit.slope(self.rig.response(GENTLE * 10**first.log_lr))
        start = lr_fit.continued(first, self.plan.long, lr_fit.START_SLOPE).log_lr
        learned = any(learns(self.before, fork.losses) for fork in short)
        long = self._explore(self.plan.long, start, LONG_RUNS, self._longer_looks(learned))
        if all(map(self._is_lost, long)) and not learned:
            reason = "every short run explodes, whatever its learning rate"
            return self._told(refusal(points, top, "diverges-everywhere", reason))
        answer = lr_fit.continued(self._locate(self.plan.long), self.plan.run_steps, slope)
        return self._answer(points, top, long, answer)

    @property
    def cost(self) -> float:
        """Steps so far, forward passes counted as thirds."""
        return self.rig.steps + LOOK * self.rig.looks

    def _longer_looks(self, learned: bool) -> int:
        """Batches that judge each longer run; in doubt all that the budget leaves."""
        left = (self.plan.budget - self.cost) / FEWEST_LONG - self.plan.long
        most = min(self.plan.looks if learned else MOST_LOOKS, self.rig.most_looks)
        looks = min(max(int(left / LOOK), LONG_LOOKS[0]), most)
        if looks > len(self.before):
            self.rig.reset()
            self.before = self.rig.held_out(looks)
        return looks

    def _ramp(self, lrs: Iterator[float]) -> Points:
        self.rig.reset()
        points: Points = []
        for index, lr in enumerate(lrs):
            points.append((lr, self.rig.step(index, lr)))
            self._tick()
            if explosion([loss for _, loss in points], self.noise) is not None:
                break
        return points

    def _explore(self, horizon: int, start: float, most: int, looks: int) -> list[Fork]:
        """Runs around `start`, on outwards until both ends are out, then beside the best one.

        Upwards first, because a run that diverges ends early. Of the longer runs as many as the
        budget has room for.
        """
        tried: dict[float, Fork] = {}
        place: float | None = 0.0
        while place is not None and len(tried) < most and self._has_room(horizon, looks):
            tried[place] = self._fork(horizon, start + place * STEP, looks)
            self.forks[horizon] = [tried[each] for each in sorted(tried)]
            place = self._next(horizon, tried)
        return self.forks[horizon]

    def _has_room(self, horizon: int, looks: int) -> bool:
        few = horizon == self.plan.short or len(self.forks.get(horizon, [])) < FEWEST_LONG
        return few or self.cost + horizon + LOOK * looks <= self.plan.budget

    def _next(self, horizon: int, tried: dict[float, Fork]) -> float | None:
        """Where to look next, in steps from the start; None when nothing is left open.

        An end that is nearly as good as the best run may hide a better one beyond it. Above the cap
        there is none, nor where rates are equally good: a few examples without any loss left.
        """
        lowest, *_, highest = places = sorted(tried) if len(tried) > 1 else [0.0, 0.0]
        capped = self._is_capped(tried[highest])
        if not any(self._is_alive(horizon, fork) for fork in tried.values()):
            too_low = horizon == self.plan.short and not self._is_lost(tried[highest])
            return highest + 1 if too_low and not capped else lowest - 1
        if lowest == highest:
            return lowest - 1 if capped else highest + 1
        losses = np.array([tried[place].losses for place in places])
        before = np.array(self.before[: losses.shape[1]])
        lost = lr_fit.excess(losses, before)
        done = capped or all(lr_fit.are_best(losses, before)[-2:])  # of equals the lower counts
        least, place = min((lost[0], lowest - 1), (1.0 if done else lost[-1], highest + 1))
        if least < lr_fit.OUT:
            return place
        return self._between(places, lost.tolist()) if horizon == self.plan.long else None

    def _between(self, places: list[float], lost: list[float]) -> float | None:
        """The middle of the gap beside the best run, on its better side; None if that is narrow."""
        best = lost.index(0.0)
        sides = [each for each in (best - 1, best + 1) if 0 <= each < len(lost)]
        beside = min(sides, key=lambda each: lost[each])
        gap = abs(places[beside] - places[best]) * STEP
        return (places[beside] + places[best]) / 2 if gap > WIDE_GAP else None

    def _is_capped(self, fork: Fork) -> bool:
        return 10**fork.log_lr >= self.cap

    def _is_alive(self, horizon: int, fork: Fork) -> bool:
        """Whether a run learns; a longer one has to do better than the best of the shorter ones."""
        if horizon == self.plan.short:
            return learns(self.before, fork.losses)
        so_far = float(np.mean(fork.losses[:SHORT_LOOKS]))  # by the batches that judged those
        return so_far < min(each.loss for each in self.forks[self.plan.short])

    def _is_lost(self, fork: Fork) -> bool:
        """Whether a run ends above its start by more than one batch differs from another."""
        start = float(np.mean(self.before))
        return not fork.loss <= start + LOST * max(self.noise, 1e-6 * abs(start))

    def _fork(self, horizon: int, log_lr: float, looks: int) -> Fork:
        self.rig.reset()
        schedule = miniature(self.schedule, horizon, self.plan.run_steps)
        for step in range(horizon):
            loss = self.rig.step(step, 10**log_lr, schedule.factor(step, horizon))
            self._tick()
            if not math.isfinite(loss):
                return Fork(log_lr, (math.inf,) * looks)
        losses = self.rig.held_out(looks)
        return Fork(log_lr, tuple(losses) if np.isfinite(losses).all() else (math.inf,) * looks)

    def _locate(self, horizon: int) -> lr_fit.Belief:
        forks = self.forks[horizon]
        losses = np.array([fork.losses for fork in forks])
        before = np.array(self.before[: losses.shape[1]])
        capped = self._is_capped(forks[-1])
        return lr_fit.locate(horizon, [fork.log_lr for fork in forks], losses, before, capped)

    def _tick(self) -> None:
        done = math.ceil(self.cost)
        self.progress(min(done, self.plan.budget), self.plan.budget)

    def _answer(
        self, points: Points, top: float | None, long: list[Fork], answer: lr_fit.Belief
    ) -> LrCurve:
        before, best = self.before, min(long, key=lambda fork: fork.loss)
        diverges_at = self._divergence(top)
        if not learns(before, best.losses):
            gain = float(np.mean(before)) - best.loss
            reason = (
                f"{self.plan.long} steps at the best rate lower the loss by {gain:.2g}, which is "
                "chance: use larger batches or a longer test"
            )
            return self._told(refusal(points, diverges_at, "noise-dominated", reason))
        optima = [self._locate(horizon) for horizon in sorted(self.forks)]
        if not optima[-1].bracketed and not optima[0].bracketed:
            reason = "the lowest loss lies at the end of the rates tried: give the test more steps"
            return self._told(refusal(points, diverges_at, "boundary", reason))
        below, above = answer.interval
        lr, interval = 10**answer.log_lr, (10**below, 10**above)
        limit = math.inf if diverges_at is None else diverges_at / BELOW_DIVERGENCE
        safe = _safe(long, before, answer.log_lr - optima[-1].log_lr)
        flags = {
            "boundary": not all(each.bracketed for each in optima),
            "no-divergence": diverges_at is None,
            "noise-dominated": above - below > WIDE or not learns(before, best.losses, DOUBTFUL),
            "non-monotone": any(map(_is_wavy, self.forks.values())),
            "too-short": self.plan.long < LONG_ENOUGH,
        }
        return self._told(
            LrCurve(
                points=_finite(points),
                suggested_lr=lr,
                low=min(lr / BOX_BELOW, interval[0]),
                high=max(min(lr * BOX_ABOVE, limit), min(interval[1], limit), 1.01 * lr),
                diverges_at=diverges_at,
                flags=[flag for flag, is_so in flags.items() if is_so],
                reason=self._reason(optima, diverges_at),
                interval_low=interval[0],
                interval_high=interval[1],
                safe_low=min(safe[0], lr),
                safe_high=max(min(safe[1], limit), lr),
                optima=[(each.horizon, 10**each.log_lr) for each in optima],
            )
        )

    def _divergence(self, top: float | None) -> float | None:
        """The lowest rate above a horizon's best whose run has lost all that can be gained."""
        lost = [] if top is None else [top]
        for forks in self.forks.values():
            best = min(forks, key=lambda fork: fork.loss)
            higher = [fork for fork in forks if fork.log_lr > best.log_lr]
            lost += [10**fork.log_lr for fork in higher if self._is_lost(fork)]
        return min(lost, default=None)

    def _reason(self, optima: list[lr_fit.Belief], diverges_at: float | None) -> str:
        seen = " and ".join(f"{10**o.log_lr:.2g} for {o.horizon}" for o in optima)
        if diverges_at is not None:
            end = f"training explodes at {diverges_at:.2g}"
        elif math.isfinite(self.cap):
            end = f"rates above {self.cap:.2g} are all the same to this optimizer"
        else:
            end = "no rate exploded"
        return f"the best rate is {seen} steps, continued to {self.plan.run_steps}; {end}"

    def _told(self, curve: LrCurve) -> LrCurve:
        grid = [
            (horizon, 10**fork.log_lr, fork.loss)
            for horizon, forks in sorted(self.forks.items())
            for fork in forks
        ]
        how = {"axis": self.axis, "method": "forks", "run_steps": self.plan.run_steps}
        return curve.model_copy(update={**how, "grid": grid, "cost": round(self.cost, 1)})


def miniature(schedule: Schedule, horizon: int, run_steps: int) -> Schedule:
    """The schedule of a short run: the whole run's warm-up in steps, as far as it fits.

    How high a rate training survives depends on the number of warm-up steps, not on their share.
    """
    if not schedule.warmup:
        return schedule
    return replace(schedule, warmup=min(MOST_WARMUP, schedule.warmup * run_steps / horizon))


def _start(points: Points, top: float | None, noise: float) -> float:
    """Where to look first, in log10: the lowest loss of the ramp, well below the explosion."""
    usable = explosion([loss for _, loss in points], noise)
    if (len(points) if usable is None else usable) < MIN_POINTS:
        return math.log10(points[usable or 0][0]) - 1.0
    curve = shape(points, noise)
    if not curve.learns and top is not None:
        return math.log10(top) - 1.0
    lowest = math.log10(curve.lrs[int(np.argmin(curve.smooth))])
    return lowest if top is None else min(lowest, math.log10(top) - STEP)


def learns(before: Sequence[float], after: Sequence[float], chance: float = CHANCE) -> bool:
    """Whether common batches fell by more than chance."""
    if math.isinf(before[0]) or math.isinf(after[0]):
        return math.isinf(before[0]) and not math.isinf(after[0])
    count = min(len(before), len(after))
    drops = np.subtract(before[:count], after[:count])
    fall = float(drops.mean())
    error = float(np.std(drops, ddof=1)) / math.sqrt(count) if count > 1 else 0.0
    if fall <= 0 or fall > error * -stdtrit(max(count - 1, 1), chance):
        return fall > 0
    from scipy.stats import wilcoxon  # a second to import, and most tests need none

    # a few batches with outliers drown the mean, not the signed ranks
    return bool(wilcoxon(drops, alternative="greater").pvalue < chance)


def _is_wavy(forks: list[Fork]) -> bool:
    """Whether the loss rises on its way down to the best rate."""
    losses = [fork.loss for fork in forks if math.isfinite(fork.loss)]
    falling = np.array(losses[: int(np.argmin(losses)) + 1]) if losses else np.zeros(1)
    rise = float(np.max(falling - np.minimum.accumulate(falling)))
    return rise > 0.1 * float(falling[0] - falling[-1])


def _safe(forks: list[Fork], before: list[float], shift: float) -> tuple[float, float]:
    """Rates around the best one within TOLERANCE of its gain, moved to the length of the run."""
    xs = np.array([fork.log_lr for fork in forks])
    ys = np.array([min(fork.loss, 1e300) for fork in forks])
    best = int(np.argmin(ys))
    limit = ys[best] + TOLERANCE * abs(float(np.mean(before)) - ys[best])

    def reach(step: int) -> float:
        k = best
        while 0 <= k + step < len(xs) and ys[k + step] <= limit:
            k += step
        if not 0 <= k + step < len(xs):
            return float(xs[k])
        share = (limit - ys[k]) / (ys[k + step] - ys[k])
        return float(xs[k] + share * (xs[k + step] - xs[k]))

    return 10 ** (reach(-1) + shift), 10 ** (reach(1) + shift)


def _finite(points: Points) -> Points:
    return [(lr, loss) for lr, loss in points if math.isfinite(loss)]
