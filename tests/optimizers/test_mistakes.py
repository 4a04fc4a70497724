"""The known mistakes are seen where they are, nowhere else, and can be silenced."""

import re
import warnings

import pytest
import torch
from torch import nn

import optimizers
from optimizers import OptimizerWarning, schedules
from optimizers.mistakes import DETECTORS, MISTAKES, find, traits


class CausalSelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(4, 12)


class ChannelAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.squeeze = nn.Conv2d(4, 4, 1)


def transformer():
    return nn.TransformerEncoderLayer(4, 2, 8)


MLP = lambda: nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))  # noqa: E731
CNN = lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), ChannelAttention())  # noqa: E731
WARM = schedules.warmup_cosine(warmup=0.05)

TRAITS = [
    (MLP, set()),
    (CNN, set()),
    (transformer, {"attention"}),
    (lambda: nn.TransformerDecoderLayer(4, 2, 8), {"attention"}),
    (CausalSelfAttention, {"attention"}),
    (lambda: nn.LSTM(4, 4), {"recurrent"}),
    (lambda: nn.GRUCell(4, 4), {"recurrent"}),
    (lambda: MLP().bfloat16(), {"half precision"}),
    (lambda: transformer().half(), {"attention", "half precision"}),
]


@pytest.mark.parametrize(("model", "expected"), TRAITS)
def test_what_a_model_shows(model, expected):
    assert traits(model()) == expected


# (rule, model, arguments) -> the codes of all warnings
CASES = [
    ("adamw", MLP, {}, []),
    ("adam", CNN, {"weight_decay": 1e-4}, []),
    ("sgd", CNN, {"lr": 0.1, "weight_decay": 1e-4}, []),
    ("adamw", transformer, {}, ["OPT002", "OPT003"]),
    ("adamw", transformer, {"schedule": WARM, "total_steps": 9, "clip_norm": 1.0}, []),
    ("adamw", transformer, {"schedule": schedules.cosine(), "total_steps": 9, "clip_value": 1.0},
     ["OPT002"]),
    ("adam", transformer, {"schedule": WARM, "total_steps": 9, "clip_agc": 0.1}, []),
    ("adam", transformer,
     {"schedule": WARM, "total_steps": 9, "clip_norm": 1.0, "weight_decay": 0.1}, ["OPT001"]),
    ("adam", transformer,
     {"schedule": WARM, "total_steps": 9, "clip_norm": 1.0, "weight_decay": 0.1,
      "weight_decay_mode": "decoupled"}, []),
    ("adamw", transformer,
     {"schedule": WARM, "total_steps": 9, "clip_norm": 1.0, "weight_decay_mode": "l2"}, ["OPT001"]),
    ("sgd", transformer,
     {"schedule": WARM, "total_steps": 9, "clip_norm": 1.0, "weight_decay": 0.1}, []),
    ("radam", transformer, {"clip_norm": 1.0}, []),
    ("schedulefree_adamw", transformer, {"clip_norm": 1.0, "warmup_steps": 10}, []),
    ("schedulefree_adamw", transformer, {"clip_norm": 1.0}, ["OPT002"]),
    ("lion", transformer, {"schedule": WARM, "total_steps": 9}, []),
    ("rmsprop", lambda: nn.GRU(4, 4), {"weight_decay": 1e-4}, ["OPT003"]),
    ("rmsprop", lambda: nn.GRU(4, 4), {"clip_per_layer": 1.0}, []),
    ("adamw", lambda: MLP().bfloat16(), {}, ["OPT003"]),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "model", "arguments", "codes"), CASES)
def test_create_warns(rule, model, arguments, codes):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizers.create(rule, model(), **arguments)
    assert [str(one.message)[:6] for one in caught] == codes
    assert all(one.category is OptimizerWarning for one in caught)
    assert all(one.filename == __file__ for one in caught)


@pytest.mark.parametrize("name", ["sam", "lookahead"])
def test_a_wrapper_warns_of_its_base(name):
    with pytest.warns(OptimizerWarning, match="^OPT003: .*rule rmsprop") as caught:
        optimizers.create(name, nn.GRU(4, 4), base="rmsprop")
    assert caught[0].filename == __file__
    optimizers.create(name, nn.GRU(4, 4), base="rmsprop", silence=("OPT003",))


def test_silence_for_one_optimizer_and_by_pythons_filters():
    optimizers.create("adamw", transformer(), silence=("OPT002", "OPT003"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="OPT002")
        with pytest.raises(OptimizerWarning, match=r"^OPT003: "):
            optimizers.create("adamw", transformer())


def test_parameters_alone_show_nothing():
    optimizers.create("adam", transformer().parameters(), weight_decay=0.1)


@pytest.mark.parametrize("silence", [("OPT999",), "OPT001"])
def test_an_unknown_code_is_an_error(silence):
    with pytest.raises(ValueError, match=r"silence=.* is not valid; allowed: some of OPT001, "):
        optimizers.create("adamw", MLP(), silence=silence)


def test_codes_are_stable_and_in_order():
    assert list(MISTAKES) == [f"OPT{number:03}" for number in range(1, len(MISTAKES) + 1)]
    assert list(DETECTORS) == ["OPT001", "OPT002", "OPT003"]
    assert all(not re.search(r"[.;]$", str(mistake)) for mistake in MISTAKES.values())


@pytest.mark.parametrize("name", optimizers.names())
def test_every_rule_can_be_asked(name):
    rule = optimizers.get_rule(name)
    assert find(rule, rule.arguments, frozenset()) == []
    assert "OPT001" not in find(rule, rule.arguments, frozenset({"attention"}))
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OptimizerWarning)
        optimizers.create(name, transformer())
