"""Sharded parameters: FSDP2 on CPU for elementwise rules, a clear error for the others."""

from dataclasses import asdict

import pytest
import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_tensor,
    init_device_mesh,
)

import optimizers
from tests.integration.processes import (
    SCHEDULE,
    STEPS,
    WORLD,
    batches,
    identical,
    network,
    together,
    train,
)
from tests.optimizers.helpers import drive, problem
from tests.optimizers.table import ROWS

pytestmark = pytest.mark.slow  # other people's frameworks take long to start

LIMITS = {"clip_norm": 0.2, "clip_per_layer": 0.1, "clip_agc": 0.01, "clip_value": 0.01}
ELEMENTWISE = [row for row in ROWS if optimizers.get_rule(row.rule).scope == "element"]
WHOLE = [row for row in ROWS if row not in ELEMENTWISE]
CASES = [(row.rule, "clip_norm") for row in ELEMENTWISE]
CASES += [("sgd", limit) for limit in LIMITS if limit != "clip_norm"]
SETTINGS = {row.rule: row.settings[-1] for row in ROWS}
WRAPPERS = {"sam": optimizers.SAM, "asam": optimizers.ASAM, "lookahead": optimizers.Lookahead}
PLACEMENTS = {"rows": Shard(0), "columns": Shard(1), "copies": Replicate()}


def optimizer(rule, model, limit="clip_norm"):
    arguments = {**SETTINGS[rule], **SCHEDULE, limit: LIMITS[limit]}
    return optimizers.create(rule, model.named_parameters(), **arguments)


def sharded():
    model = network()
    for module in (*model, model):
        fully_shard(module)
    return model


def full(tensors):
    return [tensor.full_tensor().detach() for tensor in tensors]


def train_wrapped(wrapper, model, rank=None):
    """A training loop with closures; what a monitor saw of the layers in the last step."""
    opt = WRAPPERS[wrapper](model.parameters(), "adamw", lr=0.02, clip_norm=0.2)
    monitor = optimizers.Monitor(model, every=1)
    monitor.attach(opt)
    for batch in batches(range(STEPS)):
        x, y = batch if rank is None else (tensor.chunk(WORLD)[rank] for tensor in batch)

        def closure(x=x, y=y):
            opt.zero_grad()
            loss = torch.nn.functional.mse_loss(model(x), y)
            loss.backward()
            return loss

        opt.step(closure)
    return {name: asdict(stats) for name, stats in monitor.last.layers.items()}


def by_state_dict(model, opt, resumed):
    resumed.load_state_dict(opt.state_dict())


def by_shards(model, opt, resumed):
    set_optimizer_state_dict(model, resumed, get_optimizer_state_dict(model, opt))


def by_whole(model, opt, resumed):
    """The checkpoint holds whole tensors, and each process takes its part."""
    options = StateDictOptions(full_state_dict=True)
    saved = get_optimizer_state_dict(model, opt, options=options)
    resumed.zero_grad()
    set_optimizer_state_dict(model, resumed, saved, options=options)


WAYS = {way.__name__: way for way in (by_state_dict, by_shards, by_whole)}

# What the processes do ----------------------------------------------------------------------------


def training(rank):
    ends = {}
    for rule, limit in CASES:
        model = sharded()
        opt = optimizer(rule, model, limit)
        norms = train(model, opt, rank)
        opt.eval()
        ends[f"{rule} {limit}"] = {"norms": norms, "params": full(model.parameters())}
    return ends


def wrapping(rank):
    ends = {}
    for wrapper in WRAPPERS:
        model = sharded()
        layers = train_wrapped(wrapper, model, rank)
        ends[wrapper] = {"params": full(model.parameters()), "layers": layers}
    return ends


def refusals(rank):
    found = {}
    for row in WHOLE:
        with pytest.raises(TypeError) as error:
            optimizer(row.rule, sharded())
        found[row.rule] = str(error.value)
    return found


def resumption(rank):
    """The ways to save and load in the middle, and the run without an interruption."""
    ends = {}
    for way in ("none", *WAYS):
        model = sharded()
        opt = optimizer("adamw", model)
        train(model, opt, rank, range(3))
        if way != "none":
            resumed = optimizer("adamw", model)
            WAYS[way](model, opt, resumed)
            opt = resumed
        train(model, opt, rank, range(3, STEPS))
        exp_avg = opt.state[model[0].weight]["exp_avg"]
        ends[way] = {
            "params": full(model.parameters()),
            "placement": repr(exp_avg.placements),
            "schedule_step": opt.param_groups[0]["schedule_step"],
        }
    return ends


def allocation(rank):
    """torch allocates state by a step at learning rate 0; nothing may move."""
    model = sharded()
    before = full(model.parameters())
    opt = optimizers.AdamW(
        model.parameters(), lr=0.1, weight_decay=0.5, weight_decay_mode="independent"
    )
    get_optimizer_state_dict(model, opt)
    return {"before": before, "after": full(model.parameters())}


def skipping(rank):
    """One entry of one process is not finite."""
    model = sharded()
    opt = optimizer("adamw", model)
    train(model, opt, rank, range(1))
    before = full(model.parameters())
    if rank == 0:
        model[2].bias.grad.to_local().fill_(float("nan"))
    opt.step()
    return {
        "before": before,
        "after": full(model.parameters()),
        "skipped": opt.skipped_steps,
        "name": opt.nonfinite_parameter,
    }


def in_place(rank):
    """`clip_grad_norm_`: the norm, and the gradients it leaves."""
    model = sharded()
    train(model, optimizer("sgd", model), rank, range(1))
    norm = optimizers.clip_grad_norm_(model.parameters(), 0.1)
    return {"norm": norm, "grads": full(param.grad for param in model.parameters())}


def placements(rank):
    """Other placements than FSDP's, half precision, and gradients whose sum is still pending."""
    mesh = init_device_mesh("cpu", (WORLD,))
    ends = {}
    for name, placement in PLACEMENTS.items():
        for dtype in (torch.float64, torch.bfloat16):
            start, grads = problem((5, 3), 4, dtype)
            param = torch.nn.Parameter(distribute_tensor(start, mesh, [placement]))
            opt = optimizers.AdamW([param], lr=1e-3)
            drive(opt, param, [distribute_tensor(grad, mesh, [placement]) for grad in grads])
            ends[f"{name} {dtype}"] = param.full_tensor().detach()
    start, grads = problem((5, 3), 4)
    param = torch.nn.Parameter(distribute_tensor(start, mesh, [Replicate()]))
    halves = [DTensor.from_local(grad / WORLD, mesh, [Partial()]) for grad in grads]
    drive(optimizers.AdamW([param], lr=1e-3), param, halves)
    ends["pending"] = param.full_tensor().detach()
    return ends


WORK = (training, wrapping, refusals, resumption, allocation, skipping, in_place, placements)


def work(rank):
    return {part.__name__: part(rank) for part in WORK}


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """What the first process found; the other one found the same."""
    first, second = together(work, tmp_path_factory.mktemp("fsdp"))
    assert identical(first, second)
    return first


# What has to come out -----------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "limit"), CASES)
def test_shards_train_like_the_whole(rule, limit, ends):
    found = ends["training"][f"{rule} {limit}"]
    model = network()
    opt = optimizer(rule, model, limit)
    norms = train(model, opt)
    opt.eval()
    torch.testing.assert_close(found["norms"], norms, rtol=1e-10, atol=0)
    expected = [param.detach() for param in model.parameters()]
    torch.testing.assert_close(found["params"], expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_and_monitor_see_the_whole(wrapper, ends):
    model = network()
    layers = train_wrapped(wrapper, model)
    expected = {"params": [param.detach() for param in model.parameters()], "layers": layers}
    torch.testing.assert_close(ends["wrapping"][wrapper], expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("row", WHOLE, ids=lambda row: row.rule)
def test_rules_of_whole_tensors_refuse_shards(row, ends):
    message = ends["refusals"][row.rule]
    rule = optimizers.get_rule(row.rule)
    assert message.startswith(f"{rule.class_name}: 0.weight is sharded over processes")
    assert "allowed: an elementwise rule such as AdamW" in message


@pytest.mark.parametrize("way", WAYS)
def test_a_sharded_run_resumes_exactly(way, ends):
    assert ends["resumption"][way]["schedule_step"] == STEPS
    assert "Shard(dim=0)" in ends["resumption"][way]["placement"]
    assert identical(ends["resumption"][way], ends["resumption"]["none"])


def test_allocating_state_for_a_checkpoint_moves_nothing(ends):
    found = ends["allocation"]
    assert identical(found["after"], found["before"])


def test_all_processes_skip_what_one_of_them_cannot_use(ends):
    found = ends["skipping"]
    assert (found["skipped"], found["name"]) == (1, "2.bias")
    assert identical(found["after"], found["before"])


def test_clipping_in_place_is_global(ends):
    model = network()
    train(model, optimizer("sgd", model), steps=range(1))
    norm = optimizers.clip_grad_norm_(model.parameters(), 0.1)
    grads = [param.grad for param in model.parameters()]
    expected = {"norm": norm, "grads": grads}
    torch.testing.assert_close(ends["in_place"], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_any_placement_is_bit_identical(placement, dtype, ends):
    start, grads = problem((5, 3), 4, dtype)
    param = torch.nn.Parameter(start)
    drive(optimizers.AdamW([param], lr=1e-3), param, grads)
    assert torch.equal(ends["placements"][f"{placement} {dtype}"], param)


def test_pending_sums_are_taken(ends):
    assert torch.equal(ends["placements"]["pending"], ends["placements"]["copies torch.float64"])
