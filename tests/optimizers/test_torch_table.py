"""torch's own table of optimizer inputs, errors and schedulers, run over our classes."""

import inspect

import pytest
import torch
from torch import nn
from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db

import optimizers
from tests.optimizers.helpers import problem
from tests.optimizers.peers import ExactMuon
from tests.optimizers.table import ROWS

RULES = {
    "Adafactor": "adafactor",
    "Adagrad": "adagrad",
    "Adam": "adam",
    "AdamW": "adamw",
    "Muon": "muon",
    "NAdam": "nadam",
    "RAdam": "radam",
    "RMSprop": "rmsprop",
    "SGD": "sgd",
}
# Defaults of torch that are not ours.
DEFAULTS = {"SGD": {"lr": 1e-3}, "RMSprop": {"lr": 1e-2}}
L2 = {"Adagrad", "Adam", "NAdam", "RAdam", "RMSprop", "SGD"}
# torch's optimizers that have no rule here.
ABSENT = {
    "ASGD": "averages the weights, which torch.optim.swa_utils does for any optimizer",
    "Adadelta": "a learning rate of 1 on an early form of RMSprop; nobody's default any more",
    "Adamax": "Adam with a maximum norm; nobody's default any more",
    "LBFGS": "a line search that owns the closure, not an update rule",
    "Rprop": "for full batches only",
    "SparseAdam": "a lazy Adam: another rule than Adam's; sgd and adagrad take sparse gradients",
}
# Error inputs of torch that are none here, or that have another type here, with the reason.
OTHER_ERRORS = {
    "betas must be either both floats or both Tensors": None,  # both kinds work
    "only support 2D parameters": None,  # Muon gives the others to AdamW
    "lr as Tensor doesn't work with foreach & not capturable": TypeError,  # no foreach argument
    r"betas\[0\] as a Tensor is not supported for capturable=False and foreach=True": TypeError,
    "does not support complex parameters": TypeError,  # RuntimeError in torch, and only at step()
}
# Messages of the shared base class, which are torch's own; the others are in our words.
SHARED = ("params argument", "duplicate param", "more than one", "with/without names", "1-element")

INFOS = [info for info in optim_db if info.name in RULES]
INPUTS = [
    pytest.param(info, given, id=f"{info.name}-{given.desc}")
    for info in INFOS
    for given in info.optim_inputs_func("cpu", torch.float64)
]
ERRORS = [
    pytest.param(info, given, id=f"{info.name}-{given.optimizer_error_input.desc}")
    for info in INFOS
    for given in info.optim_error_inputs_func("cpu", torch.float64)
]


def test_every_optimizer_of_torch_is_accounted_for():
    assert {info.name for info in optim_db} == RULES.keys() | ABSENT.keys()


def ours(info, params, kwargs):
    """Our optimizer for torch's arguments, two of which are called otherwise here."""
    arguments = {**DEFAULTS.get(info.name, {}), **kwargs}
    kind = getattr(optimizers, info.name)
    if arguments.pop("amsgrad", False):
        kind = optimizers.AMSGrad
    decoupled = arguments.pop("decoupled_weight_decay", info.name not in L2)
    arguments["weight_decay_mode"] = "decoupled" if decoupled else "l2"
    return kind(params, **arguments)


def theirs(info, params, kwargs):
    return (ExactMuon if info.name == "Muon" else info.optim_cls)(params, **kwargs)


def weights(info):
    shapes = ((5, 3), (4, 2)) if info.name == "Muon" else ((5, 3), (5,), ())
    return [nn.Parameter(problem(shape, 1)[0]) for shape in shapes]


def march(opt, params, steps, scheduler=()):
    for step in range(steps):
        for param in params:
            param.grad = problem(tuple(param.shape), steps)[1][step]
        opt.step()
        for each in scheduler:
            takes_metric = "metrics" in inspect.signature(each.step).parameters
            each.step(1.0) if takes_metric else each.step()


def tolerance(info, kwargs=()):
    """Wider for a float32 tensor as learning rate, whose arithmetic torch does in float32."""
    if isinstance(dict(kwargs).get("lr"), torch.Tensor):
        return 1e-6
    return 10 * next(row.torch_error for row in ROWS if row.rule == RULES[info.name])


@pytest.mark.parametrize(("info", "given"), INPUTS)
def test_inputs(info, given):
    """The same parameters and the same state as torch's, and a checkpoint that torch can load."""
    mine, peers = weights(info), weights(info)
    opt, peer = ours(info, mine, given.kwargs), theirs(info, peers, given.kwargs)
    march(opt, mine, 6)
    march(peer, peers, 6)
    close = {"rtol": tolerance(info, given.kwargs), "atol": 1e-13}
    torch.testing.assert_close(mine, peers, **close)
    for param, other in zip(mine, peers, strict=True):
        for key, value in peer.state[other].items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(opt.state[param][key].to(value.dtype), value, **close)
    peer.load_state_dict(opt.state_dict())
    opt.load_state_dict(peer.state_dict())
    march(opt, mine, 3)
    march(peer, peers, 3)
    torch.testing.assert_close(mine, peers, **close)


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
def test_schedulers(info):
    for make in info.scheduler_inputs:
        mine, peers = weights(info), weights(info)
        opt, peer = ours(info, mine, {"lr": 0.01}), theirs(info, peers, {"lr": 0.01})
        march(opt, mine, 6, [one(opt) for one in make])
        march(peer, peers, 6, [one(peer) for one in make])
        assert opt.param_groups[0]["lr"] == peer.param_groups[0]["lr"]
        torch.testing.assert_close(mine, peers, rtol=tolerance(info), atol=1e-13)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # in torch's own Adagrad
@pytest.mark.parametrize(
    "info", [i for i in INFOS if i.supports_sparse], ids=lambda info: info.name
)  # fmt: skip
def test_sparse_gradients(info):
    for kwargs in ({}, info.metadata_for_sparse[0]):
        mine, peers = weights(info)[:1], weights(info)[:1]
        opt, peer = ours(info, mine, kwargs), theirs(info, peers, kwargs)
        for step in range(4):
            index = torch.tensor([[step, 0, step]])
            values = problem((3, 3), 4)[1][step]
            for param, optimizer in ((mine[0], opt), (peers[0], peer)):
                param.grad = torch.sparse_coo_tensor(index, values, (5, 3), check_invariants=True)
                optimizer.step()
        torch.testing.assert_close(mine, peers, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("info", "given"), ERRORS)
def test_error_inputs(info, given):
    case = given.optimizer_error_input
    params = weights(info) if case.params is None else case.params
    kind = OTHER_ERRORS.get(case.desc, given.error_type)
    if kind is None:
        ours(info, params, case.kwargs).step()
        return
    pattern = given.error_regex if any(s in given.error_regex for s in SHARED) else info.name
    raised = pytest.warns if issubclass(kind, Warning) else pytest.raises
    with raised(kind, match=pattern):
        ours(info, params, case.kwargs)
    assert given.error_on is not OptimizerErrorEnum.STEP_ERROR or case.desc in OTHER_ERRORS
