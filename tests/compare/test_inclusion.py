"""The self-check: a more general optimizer that loses was not tuned well enough."""

import numpy as np
import pytest

from tuner.compare.inclusion import ArmSetup, inclusion_caveats
from tuner.compare.verdicts import ArmScores, compare

NOTHING = frozenset()


def setup(name, optimizer, schedule="cosine", momentum=False, fixed=NOTHING, searched=NOTHING):
    return ArmSetup(name, optimizer, schedule, momentum, frozenset(fixed), frozenset(searched))


def comparison(**means):
    noise = np.random.default_rng(0)
    arms = [
        ArmScores(name=n, optimizer=n, schedule="cosine", seeds=list(range(8)),
                  scores=[float(m + 0.01 * x) for x in noise.standard_normal(8)])
        for n, m in means.items()
    ]  # fmt: skip
    return compare(arms, "minimize", rng=np.random.default_rng(0))


MOMENTUM = setup("sgd", "sgd", momentum=True)


@pytest.mark.parametrize("optimizer", ["adam", "nadamw"])
def test_adam_that_loses_to_momentum_is_under_tuned(optimizer):
    [line] = inclusion_caveats([MOMENTUM, setup("a", optimizer)], comparison(sgd=1.0, a=2.0))
    assert line.startswith("a is worse than sgd, which it can imitate with the right eps")


def test_momentum_that_loses_to_plain_sgd_is_under_tuned():
    plain = setup("plain", "sgd")
    [line] = inclusion_caveats([MOMENTUM, plain], comparison(sgd=2.0, plain=1.0))
    assert "the right momentum" in line


@pytest.mark.parametrize(
    ("general", "means"),
    [
        (setup("a", "adam"), {"sgd": 2.0, "a": 1.0}),  # it wins
        (setup("a", "adam"), {"sgd": 1.0, "a": 1.003}),  # not told apart
        (setup("a", "adam", fixed={"eps"}), {"sgd": 1.0, "a": 2.0}),  # on purpose
        (setup("a", "adam", schedule="constant"), {"sgd": 1.0, "a": 2.0}),
        (setup("a", "lion"), {"sgd": 1.0, "a": 2.0}),  # cannot imitate it
    ],
)
def test_other_losses_are_no_sign_of_it(general, means):
    assert inclusion_caveats([MOMENTUM, general], comparison(**means)) == []
