"""How often a search returns to the cliff, by what its sampler is told of a diverged trial.

The optimum lies 0.3 decades under the learning rate from which training diverges, in a box from
1e-5 to 10. Our search is the whole plan of a study (`tuner.stages.next_trials`); Optuna's is its
TPE sampler as its documentation uses it, told of divergence as NaN, by an exception, by +inf or as
pruned. The table shows the share of diverged trials after the first ten, the mean over seeds.

    python -m benchmarks.divergence [--seeds 12] [--trials 50]
"""

from __future__ import annotations

import argparse
import math
import statistics
import warnings
from collections.abc import Callable

import optuna

from tuner.records import Trial
from tuner.spec import parse_spec
from tuner.stages import History, next_trials

CLIFF, OPTIMUM = 0.1, 0.1 / 10**0.3
BOX = (1e-5, 10.0)
DECAY = (1e-6, 1e-1)
STARTUP = 10


def loss(lr: float, decay: float) -> float | None:
    """A bowl on log scales; None above the cliff."""
    if lr > CLIFF:
        return None
    return math.log10(lr / OPTIMUM) ** 2 + 0.1 * (math.log10(decay) + 4) ** 2


def ours(trials: int, seed: int) -> list[float | None]:
    """The losses of exploration, in order."""
    spec = parse_spec(
        {
            "study": {"task": "planted:build", "seed": seed},
            "budget": {
                "max_steps": 100,
                "trials_per_arm": trials,
                "screen_length": 1.0,
                "extend_trials": 0,
                "calibrate_seeds": 0,
                "default_seeds": 0,
            },
            "search": {
                "lr": list(BOX),
                "weight_decay": list(DECAY),
                "batch_size": 32,
                "join": "none",
            },
            "run": {"slots": 1},
            "arms": [{"optimizer": "sgd"}],
        },
        "planted",
        "planted",
    )
    done: dict[int, Trial] = {}
    while len(done) < trials:
        trial = next(next_trials(spec, History(done, {})))
        value = loss(trial.point["lr"], trial.point["weight_decay"])
        state = "diverged" if value is None else "completed"
        done[trial.number] = trial.model_copy(update={"state": state, "value": value, "steps": 100})
    return [t.value for t in done.values()]


def optunas(answer: Callable[[], float]) -> Callable[[int, int], list[float | None]]:
    """Optuna's search, where `answer` says what the objective does when it diverges."""

    def search(trials: int, seed: int) -> list[float | None]:
        found: list[float | None] = []

        def objective(trial: optuna.Trial) -> float:
            lr = trial.suggest_float("lr", *BOX, log=True)
            decay = trial.suggest_float("weight_decay", *DECAY, log=True)
            found.append(loss(lr, decay))
            return answer() if found[-1] is None else found[-1]

        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        study.optimize(objective, n_trials=trials, catch=(FloatingPointError,))
        return found

    return search


def raising() -> float:
    """What a training loop with an anomaly check does."""
    raise FloatingPointError


def pruning() -> float:
    """What a careful user does."""
    raise optuna.TrialPruned


SEARCHES = {
    "this project": ours,
    "Optuna, NaN": optunas(lambda: math.nan),
    "Optuna, exception": optunas(raising),
    "Optuna, pruned": optunas(pruning),
    "Optuna, +inf": optunas(lambda: math.inf),
}


def main() -> None:
    """Print the table."""
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)  # it tells every divergence
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--trials", type=int, default=50)
    options = parser.parse_args()
    optuna.logging.disable_default_handler()
    warnings.simplefilter("ignore")
    print(f"{'told of divergence':20s} {'diverged':>9s} {'median gap of the best':>23s}")
    for name, search in SEARCHES.items():
        runs = [search(options.trials, seed) for seed in range(options.seeds)]
        shares = [statistics.fmean(value is None for value in run[STARTUP:]) for run in runs]
        gaps = [min(v for v in run if v is not None) for run in runs]
        print(f"{name:20s} {statistics.fmean(shares):9.2f} {statistics.median(gaps):23.4f}")


if __name__ == "__main__":
    main()
