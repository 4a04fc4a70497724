"""Which parameters decay, and how fast each layer learns."""

import pytest
import torch
from torch import nn

import optimizers
from optimizers import param_groups


class LlamaRMSNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, size))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(3)
        )
        self.attention = nn.MultiheadAttention(4, 2)
        self.norms = nn.ModuleList([nn.BatchNorm1d(4), nn.GroupNorm(2, 4), LlamaRMSNorm(4)])
        self.head = nn.Linear(4, 10)
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)


def decaying(groups):
    return {n for group in groups if group["weight_decay"] for n, _ in group["params"]}


def names(groups):
    return [n for group in groups for n, _ in group["params"]]


def test_only_weights_decay():
    groups = param_groups(Net(), 0.1)
    weights = {f"blocks.{i}.0.weight" for i in range(3)} | {"embed.weight", "head.weight"}
    assert decaying(groups) == weights | {"attention.in_proj_weight", "attention.out_proj.weight"}
    trainable = [name for name, p in Net().named_parameters() if p.requires_grad]
    assert sorted(names(groups)) == sorted(trainable)


def test_embeddings_on_request_also_when_tied():
    model = Net()
    model.head.weight = model.embed.weight
    assert "embed.weight" in decaying(param_groups(model, 0.1))
    groups = param_groups(model, 0.1, decay_embeddings=False)
    assert not {"embed.weight", "head.weight"} & decaying(groups)
    assert names(groups).count("embed.weight") == 1


def test_layer_wise_learning_rate():
    groups = param_groups(Net(), 0.1, lr=1.0, layer_decay=0.5)
    lrs = {name: group["lr"] for group in groups for name, _ in group["params"]}
    assert lrs["embed.weight"] == 0.0625
    assert [lrs[f"blocks.{i}.0.weight"] for i in range(3)] == [0.125, 0.25, 0.5]
    assert lrs["head.weight"] == 1.0


@pytest.mark.parametrize("layer_decay", [0.0, 1.5])
def test_bad_layer_decay(layer_decay):
    with pytest.raises(ValueError, match=r"layer_decay=.* is not valid; allowed"):
        param_groups(Net(), 0.1, lr=1.0, layer_decay=layer_decay)


def test_create_groups_a_model_with_the_rules_own_default():
    opt = optimizers.create("adamw", Net(), silence=("OPT002", "OPT003"))
    assert sorted({group["weight_decay"] for group in opt.param_groups}) == [0.0, 0.01]
    plain = optimizers.create("adamw", Net().parameters())
    assert len(plain.param_groups) == 1


def test_unknown_optimizer():
    with pytest.raises(ValueError, match="optimizer 'adamm' is not known; allowed: sgd, "):
        optimizers.create("adamm", Net())
