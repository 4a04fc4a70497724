"""The procedure, on a make-believe training whose best learning rate is known at every length."""

import math

import numpy as np
import pytest

from optimizers import schedules
from tuner.errors import UsageError
from tuner.lr_fit import FIXED_SLOPE
from tuner.lr_search import Fork, Plan, Search
from tuner.records import LrCurve

RUN = 300


class Valley:
    """Loses most at `best` decades for a run of RUN steps, and more than that for shorter ones.

    Above `cliff` training explodes, below `best` by three decades nothing happens; rates above
    `cap` are as good as `cap`. No loss is below `least`.
    """

    def __init__(
        self,
        best: float = -2.0,
        slope: float = -0.4,
        cliff: float = 0.7,
        gain: float = 1.0,
        noise: float = 0.01,
        seed: int = 0,
        level: float = 2.0,
        cap: float = math.inf,
        least: float = -math.inf,
    ) -> None:
        self.best, self.slope, self.cliff, self.log_cap = best, slope, cliff, cap
        self.gain, self.noise, self.level, self.least = gain, noise, level, least
        self.batches = np.random.default_rng(seed).standard_normal(5000)
        self.steps = self.looks = 0
        self.most_looks = 32
        self.gentle = 0.0
        self.resets = 0
        self.reset()

    def reset(self) -> None:
        self.resets += 1
        self.count, self.peak, self.exploded = 0, 1e-300, False

    def loss(self) -> float:
        if self.exploded:
            return math.inf
        x = math.log10(self.peak)
        centre = self.best + self.slope * math.log10(max(self.count, 1) / RUN)
        done = min(1.0, 0.3 + 0.3 * math.log10(max(self.count, 1)))
        fall = self.gain * done * math.exp(-((x - centre) ** 2)) * (self.count > 0)
        return max(self.level - fall, self.least)

    def step(self, index: int, lr: float, factor: float = 1.0) -> float:
        before = self.loss() + self.noise * self.batches[index + 10]
        self.steps += 1
        self.count += 1
        self.peak = max(self.peak, min(lr * factor, 10**self.log_cap))
        self.exploded |= math.log10(self.peak) > self.best + self.cliff + 0.8
        return before

    def warm(self, steps: int) -> None:
        self.steps += steps

    def response(self, lr: float) -> float:
        """The one whose slope theory says this valley to have."""
        self.steps += 1
        self.gentle = lr
        return 1 - self.slope / FIXED_SLOPE

    def cap(self, low: float, high: float) -> float:
        self.steps += 1
        return 10**self.log_cap

    def held_out(self, batches: int) -> list[float]:
        self.looks += batches
        return [self.loss() + self.noise * each for each in self.batches[:batches]]


def search(rig: Valley, run_steps: int = RUN, budget: int | None = None) -> LrCurve:
    plan = Plan.create(run_steps, budget)
    return Search(rig, plan, schedules.create("warmup_cosine", warmup=0.1)).run()


@pytest.mark.parametrize("best", [-6.0, -3.3, -2.0, -0.6, 1.0])
@pytest.mark.parametrize("slope", [-0.6, -0.3, 0.0, 0.3])
def test_the_rate_of_a_whole_run_is_found(best: float, slope: float) -> None:
    curve = search(Valley(best, slope))
    assert curve.suggested_lr is not None, curve.reason
    assert math.log10(curve.suggested_lr) == pytest.approx(best, abs=0.3)
    assert (curve.interval_low or 0) < 10**best < (curve.interval_high or 0)
    assert (curve.safe_low or 0) <= curve.suggested_lr <= (curve.safe_high or 0)
    assert (curve.low or 0) < curve.suggested_lr < (curve.high or 0)
    assert curve.diverges_at is not None
    assert curve.diverges_at > curve.suggested_lr
    assert [steps for steps, _ in curve.optima] == [11, 67]


@pytest.mark.parametrize("distance", [-0.4, 0.0, 0.4])
def test_a_rate_that_is_capped_is_looked_for_below_the_cap(distance: float) -> None:
    """At the cap or above all rates are the same, and whether one explodes is never seen."""
    rig = Valley(slope=0.0, cap=-2.0 + distance)
    curve = search(rig)
    assert curve.suggested_lr is not None, curve.reason
    assert math.log10(curve.suggested_lr) == pytest.approx(min(-2.0, rig.log_cap), abs=0.35)
    assert curve.diverges_at is None
    assert "are all the same" in curve.reason
    assert max(lr for _, lr, _ in curve.grid) < 3 * 10**rig.log_cap


def test_where_no_loss_is_left_higher_rates_are_not_looked_for() -> None:
    """Rates from 0.0005 to 0.2 are the same after a few steps; the lower ones get the budget."""
    curve = search(Valley(slope=0.0, cliff=2.0, least=1.9))
    assert curve.flags == []
    assert max(lr for _, lr, _ in curve.grid) < 0.01
    assert curve.optima[1][1] == pytest.approx(0.001, rel=0.2)


@pytest.mark.parametrize("seed", range(5))
def test_a_test_costs_less_than_one_run_and_a_half(seed: int) -> None:
    rig = Valley(seed=seed, best=-2 - seed / 7)
    curve = search(rig)
    assert curve.cost == pytest.approx(rig.steps + rig.looks / 3, abs=0.1)
    assert curve.cost <= 1.5 * RUN


@pytest.mark.parametrize("run_steps", [20, 100, 1000, 100_000])
def test_every_length_has_a_plan_within_its_budget(run_steps: int) -> None:
    plan = Plan.create(run_steps)
    assert plan.short < plan.long
    assert plan.ramp + 4 * plan.short + 3 * plan.long <= max(plan.budget, 90)
    assert plan.budget <= 2000


def test_the_response_is_measured_where_parameters_hardly_move() -> None:
    rig = Valley()
    first, _ = search(rig).optima
    assert rig.gentle == pytest.approx(first[1] / 10)


def test_a_refresh_of_the_rule_is_inside_the_short_runs() -> None:
    plan = Plan.create(100, refresh=10)
    assert plan.short >= 20
    assert plan.long >= 2 * plan.short


@pytest.mark.parametrize("level", [-1000.0, 0.0, 1e4])
def test_the_level_of_the_loss_does_not_matter(level: float) -> None:
    found = search(Valley(level=level)).suggested_lr
    assert found == pytest.approx(search(Valley(level=2.0)).suggested_lr, rel=0.05)


def test_runs_go_outwards_until_both_ends_are_out_and_then_beside_the_best() -> None:
    search = Search(Valley(), Plan.create(RUN), schedules.create("cosine"))
    search.before = [2.0] * 8
    search.forks[search.plan.short] = [Fork(-3.0, (1.9,) * 8)]

    def next_of(tried: dict[float, float], horizon: int = search.plan.long) -> float | None:
        forks = {k: Fork(0.45 * k, (level,) * 8) for k, level in tried.items()}
        return search._next(horizon, forks)

    assert next_of({0: 1.0}) == 1
    assert next_of({0: 1.5, 1: 1.0}) == 2
    assert next_of({0: 1.0, 1: 1.5}) == -1
    assert next_of({-1: 1.5, 0: 1.0, 1: 1.05}) == 2  # the upper end loses 5 % of the gain
    assert next_of({-1: 1.05, 0: 1.0, 1: math.inf}) == -2
    assert next_of({-1: 1.5, 0: 1.0, 1: 1.3}) == 0.5
    assert next_of({-1: 1.5, 0: 1.0, 0.5: 1.1, 1: 1.3}) is None
    assert next_of({-1: 1.5, 0: 1.0, 1: 1.3}, horizon=search.plan.short) is None
    assert next_of({0: math.inf}) == -1
    assert next_of({0: 2.0}, horizon=search.plan.short) == 1


def refused(curve: LrCurve, flag: str) -> bool:
    assert curve.reason.startswith("no suggestion: ")
    bounds = (curve.suggested_lr, curve.low, curve.high, curve.interval_low, curve.safe_high)
    return curve.flags == [flag] and set(bounds) == {None}


def test_training_that_changes_nothing_gets_no_answer() -> None:
    assert refused(search(Valley(gain=0.0)), "noise-dominated")


def test_training_that_explodes_at_every_rate_gets_no_answer() -> None:
    assert refused(search(Valley(best=-30.0)), "diverges-everywhere")


def test_a_loss_that_is_never_finite_gets_no_answer() -> None:
    rig = Valley(level=math.nan)
    curve = search(rig)
    assert refused(curve, "diverges-everywhere")
    assert "before the first step" in curve.reason
    assert rig.steps == 0


def test_a_rate_beyond_every_range_gets_no_answer() -> None:
    curve = search(Valley(best=9.0, cliff=50.0))
    assert curve.suggested_lr is None
    assert curve.flags in (["noise-dominated"], ["boundary"])


def test_no_explosion_is_no_obstacle_when_higher_rates_are_worse() -> None:
    curve = search(Valley(cliff=50.0))
    assert curve.suggested_lr == pytest.approx(1e-2, rel=1.0)


def test_twenty_seeds_agree() -> None:
    found = [search(Valley(seed=seed, noise=0.05)).suggested_lr or 0.0 for seed in range(20)]
    assert min(found) > 0
    assert max(found) / min(found) < 10**0.3


def test_a_longer_run_gets_a_lower_rate_and_a_wider_interval() -> None:
    short, long = (search(Valley(), steps, budget=435) for steps in (300, 30_000))
    assert (long.suggested_lr or 0) < (short.suggested_lr or 0) / 2
    ratios = [(c.interval_high or 0) / (c.interval_low or 1) for c in (short, long)]
    assert ratios[1] > 2 * ratios[0]


def test_an_empty_range_is_refused() -> None:
    with pytest.raises(UsageError, match="expected 0 < low < high"):
        Search(Valley(), Plan.create(100), schedules.create("cosine"), low=1.0, high=0.1).run()
