"""Muon: which parameters it takes, what it makes of a convolution, and its AdamW partner."""

import copy
from dataclasses import replace
from functools import partial
from math import prod

import pytest
import torch
from torch import nn

import optimizers
from optimizers.optimizer import make_class
from optimizers.rules import muon
from tests.optimizers.helpers import LAYOUTS, drive, generator, problem
from tests.optimizers.test_engines import close, expected


class Language(nn.Module):
    """Embedding, two hidden matrices, a norm and a head."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.blocks = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 6))
        self.head = nn.Linear(6, 11)

    def forward(self, tokens):
        return self.head(self.blocks(self.embedding(tokens)))


def names_by_rule(opt):
    found = {}
    for group in opt.param_groups:
        found.setdefault(group.get("rule", "muon"), []).extend(group["param_names"])
    return {rule: sorted(names) for rule, names in found.items()}


def test_a_model_gives_its_hidden_matrices():
    opt = optimizers.create("muon", Language(), lr=0.02, adamw_lr=0.01)
    assert names_by_rule(opt) == {
        "muon": ["blocks.0.weight", "blocks.2.weight"],
        "adamw": [
            "blocks.0.bias", "blocks.1.bias", "blocks.1.weight", "blocks.2.bias",
            "embedding.weight", "head.bias", "head.weight",
        ],
    }  # fmt: skip
    decayed = {name for g in opt.param_groups if g["weight_decay"] for name in g["param_names"]}
    assert {name.rsplit(".", 1)[1] for name in decayed} == {"weight"}
    assert {g["lr"] for g in opt.param_groups if "rule" in g} == {0.01}


def test_layer_decay_scales_the_learning_rate_of_either_rule():
    arguments = {"lr": 0.8, "adamw_lr": 0.08, "layer_decay": 0.5}
    opt = optimizers.create("muon", Language(), **arguments)
    rates = {name: g["lr"] for g in opt.param_groups for name in g["param_names"]}
    assert rates == {
        "embedding.weight": 0.005,
        "blocks.0.weight": 0.1, "blocks.0.bias": 0.01,
        "blocks.1.weight": 0.02, "blocks.1.bias": 0.02,
        "blocks.2.weight": 0.4, "blocks.2.bias": 0.04,
        "head.weight": 0.08, "head.bias": 0.08,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("model", "hidden"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 4)), ["0.weight"]),
        (nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4)), ["1.weight"]),
    ],
)
def test_the_last_linear_layer_is_the_head_unless_it_is_all_there_is(model, hidden):
    assert names_by_rule(optimizers.create("muon", model))["muon"] == hidden


def test_groups_may_name_the_partner():
    model = Language()
    outer = [model.embedding.weight, model.head.weight]
    body = list(model.blocks.parameters())
    opt = optimizers.Muon([{"params": body}, {"params": outer, "rule": "adamw"}], adamw_lr=0.125)
    assert [len(group["params"]) for group in opt.param_groups] == [2, 4, 2]
    assert opt.param_groups[2]["lr"] == 0.125


def test_the_direction_is_close_to_orthogonal():
    start, grads = problem((8, 4, 3, 3), 1)
    param = nn.Parameter(start.clone())
    opt = optimizers.Muon([param], lr=1.0, weight_decay=0.0)
    moved = start - drive(opt, param, grads)[-1]
    values = torch.linalg.svdvals(moved.reshape(8, 36))
    assert (values > 0.6).all()
    assert (values < 1.3).all()


@pytest.mark.parametrize("clip", [{"clip_norm": 0.5}, {"clip_per_layer": 0.5}], ids=str)
def test_a_stack_of_matrices_gives_each_its_own(clip):
    """Kernels take those of one shape together, wherever they are in the group."""
    ends = []
    for engine in ("eager", "compiled"):
        source = torch.Generator().manual_seed(0)
        draw = partial(torch.randn, generator=source, dtype=torch.float64)
        shapes = [(6, 4), (3, 9), (6, 4), (5, 5), (3, 9), (6, 4)]
        params = [nn.Parameter(draw(shape)) for shape in shapes]
        opt = optimizers.Muon(params, lr=0.1, engine=engine, **clip)
        for _ in range(3):
            for param in params:  # the size of one gradient alone would make no difference
                param.grad = draw(param.shape) * draw(()).exp()
            opt.step()
        ends.append([param.detach() for param in params])
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_learns_and_resumes(dtype):
    torch.manual_seed(0)
    model = Language().to(dtype)
    tokens = torch.randint(11, (256,))
    opt = optimizers.create("muon", model, lr=0.02, adamw_lr=0.01)

    def go(model, opt, steps):
        for _ in range(steps):
            opt.zero_grad()
            loss = nn.functional.cross_entropy(model(tokens), tokens)
            loss.backward()
            opt.step()
        return loss.item()

    first = go(model, opt, 1)
    go(model, opt, 20)
    twin = copy.deepcopy(model)
    resumed = optimizers.create("muon", twin)
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert go(model, opt, 40) == go(twin, resumed, 40) < 0.2 * first


def test_bad_values_are_named_with_their_own_argument():
    with pytest.raises(ValueError, match=r"Muon: adamw_lr=-1.0 is not valid"):
        optimizers.Muon([nn.Parameter(torch.zeros(3))], adamw_lr=-1.0)
    with pytest.raises(ValueError, match=r"Muon: ns_steps=100 is not valid; allowed: 1..99"):
        optimizers.Muon([nn.Parameter(torch.zeros(3))], ns_steps=100)


SPECTRA = {
    "flat": torch.ones(128),
    "harmonic": 1 / torch.arange(1.0, 129.0),
    "steep": torch.arange(1.0, 129.0) ** -2,
    "few": torch.cat([torch.ones(8), torch.full((120,), 1e-2)]),
    "exponential": torch.logspace(0, -6, 128),
}


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("long", [128, 320, 512])
def test_bfloat16_is_no_worse_on_gram_matrices_than_as_published(spectrum, long):
    """Against the iteration in float64; wide and tall."""
    source = generator(spectrum, long)
    left, right = (
        torch.linalg.qr(torch.randn(size, 128, generator=source, dtype=torch.float64)).Q
        for size in (128, long)
    )
    matrix = left * SPECTRA[spectrum].double() @ right.mT
    hyper = optimizers.get_rule("muon").values()
    exact = muon.orthogonalized(matrix.clone(), hyper)
    rounded = matrix.bfloat16()
    published = muon.by_products(rounded / rounded.norm(), hyper, 5).double()
    most = max(1.25 * (published - exact).norm(), 0.04 * exact.norm())
    for form in (matrix, matrix.mT):
        found = muon.orthogonalized(form.bfloat16().contiguous(), hyper).double()
        found = found if form is matrix else found.mT
        assert (found - exact).norm() <= most
        assert torch.linalg.svdvals(found).max() < 1.25


@pytest.mark.parametrize("size", [0.0, 1e-12, 1e-3, 1e12])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_long_matrices_of_any_size_are_divided_by_their_norm_or_eps(size, dtype):
    hyper = optimizers.get_rule("muon").values()
    matrix = size * torch.randn(16, 40, generator=generator("size"), dtype=torch.float64)
    expected = muon.by_products(matrix / matrix.norm().clamp(min=hyper.eps), hyper, 5)
    for form, wanted in ((matrix, expected), (matrix.mT, expected.mT)):
        found = muon.orthogonalized(form.to(dtype).contiguous(), hyper).double()
        assert (found - wanted).norm() <= 30 * torch.finfo(dtype).eps * wanted.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_matrix_whose_squares_overflow_moves_nothing(dtype):
    hyper = optimizers.get_rule("muon").values()
    for shape in ((16, 40), (40, 16), (16, 16)):
        matrix = 1e25 * torch.randn(shape, generator=generator("huge"))
        assert not muon.orthogonalized(matrix.to(dtype), hyper).any()


@pytest.mark.parametrize("fast", [False, True])
def test_who_iterates_in_bfloat16(monkeypatch, fast):
    monkeypatch.setattr(muon, "fast_bfloat16", lambda device: fast)
    values, half = optimizers.get_rule("muon").values, torch.bfloat16
    large, small = torch.empty(128, 128), torch.empty(127, 500)
    auto = values()
    assert muon.precision(large, auto) == (half if fast else torch.float32)
    assert muon.precision(large.bfloat16(), auto) == (half if fast else torch.float32)
    assert muon.precision(large.double(), auto) == torch.float64
    assert muon.precision(small, auto) == torch.float32
    assert muon.precision(torch.empty(128, 16, 3, 3), auto) == muon.precision(large, auto)
    assert muon.precision(large, values(ns_precision="full")) == torch.float32
    assert muon.precision(small, values(ns_precision="bfloat16")) == half


@pytest.mark.parametrize("engine", ["eager", "compiled"])
@pytest.mark.parametrize("ns_precision", ["full", "bfloat16"])
def test_a_resumed_run_repeats_every_bit(engine, ns_precision):
    start, grads = problem((160, 136), 6)
    arguments = {"lr": 0.1, "engine": engine, "ns_precision": ns_precision, "clip_norm": 1.0}
    param = nn.Parameter(start.float())
    opt = optimizers.Muon([param], **arguments)
    drive(opt, param, [grad.float() for grad in grads[:3]])
    twin = nn.Parameter(param.detach().clone())
    resumed = optimizers.Muon([twin], **arguments)
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    for each, own in ((opt, param), (resumed, twin)):
        drive(each, own, [grad.float() for grad in grads[3:]])
    assert torch.equal(param, twin)


def test_engines_agree_in_bfloat16():
    start, grads = problem((160, 520), 4)
    ends = []
    for engine in ("eager", "compiled"):
        param = nn.Parameter(start.float())
        opt = optimizers.Muon([param], lr=0.1, engine=engine, ns_precision="bfloat16")
        drive(opt, param, [grad.float() for grad in grads])
        ends.append(param.detach() - start.float())
    assert (ends[0] - ends[1]).norm() < 0.02 * ends[0].norm()


@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_matrices_of_one_shape_go_together(engine, monkeypatch):
    monkeypatch.setattr(muon, "STACK", 2 * 20 * 20 * torch.float64.itemsize)
    shapes = [(24, 20), (20, 24), (24, 20), (20, 4, 5), (24, 20), (20, 24)]
    assert {muon.together(shape, torch.float64) for shape in shapes} == {2}
    starts, paths = zip(*(problem(shape, 3 + n) for n, shape in enumerate(shapes)), strict=True)
    params = [nn.Parameter(start.clone()) for start in starts]
    opt = optimizers.Muon(params, lr=0.1, weight_decay=0.2, engine=engine)
    for grads in zip(*(path[:3] for path in paths), strict=True):
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.clone()
        opt.step()
    for param, start, path in zip(params, starts, paths, strict=True):
        close(param, expected("muon", start, path[:3], lr=0.1, weight_decay=0.2))


@pytest.mark.parametrize("shape", [(200, 180), (64, 64, 3, 3)], ids=str)
def test_large_parameters_of_one_shape_go_together_in_whatever_layout_and_age(shape, monkeypatch):
    short, long = sorted((shape[0], prod(shape[1:])))
    monkeypatch.setattr(muon, "STACK", 2 * 8 * short * max(short, long // 4))
    counts = []
    whole = muon.CORE.whole
    core = replace(
        muon.CORE,
        whole=lambda v, hyper, memory: (counts.append(len(v)), whole(v, hyper, memory))[1],
    )
    rule = replace(muon.MUON, core=core, partner=None)
    starts, grads = zip(*(problem(shape, steps) for steps in (4, 5, 6)), strict=True)
    layout = LAYOUTS["transposed" if len(shape) == 2 else "channels_last"]
    params = [nn.Parameter(layout(start)) for start in starts]
    make = partial(make_class(rule), lr=0.1, engine="eager", clip_norm=1e9)
    together = make(params)
    for step in range(4):  # the last one has its first gradient late
        for param, own in zip(params[: 2 + step // 2], grads, strict=False):
            param.grad = own[step].clone()
        together.step()
    assert counts == [2, 2, 2, 1, 2, 1]
    for index, (start, own) in enumerate(zip(starts, grads, strict=True)):
        alone = nn.Parameter(start.clone())
        drive(make([alone]), alone, own[2 if index == 2 else 0 : 4])
        torch.testing.assert_close(params[index], alone, rtol=1e-12, atol=1e-12)


def test_a_stack_is_its_matrices_one_by_one():
    hyper = optimizers.get_rule("muon").values()
    for rows, columns in [(12, 12), (9, 30), (30, 9)]:
        stack = torch.randn(4, rows, columns, generator=generator("stack"), dtype=torch.float64)
        whole = muon.orthogonalized(stack.clone(), hyper)
        for matrix, found in zip(stack, whole, strict=True):
            torch.testing.assert_close(
                muon.orthogonalized(matrix.clone(), hyper), found, rtol=0, atol=1e-12
            )
    assert muon.together((8, 2**20), torch.float32) == 1
    assert muon.together((128, 128), torch.float32) == 8
    assert muon.together((128, 128), torch.bfloat16) == 16


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(12, 12), (9, 30), (30, 9), (9, 18), (9, 17), (17, 9), (1, 5)])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("part", [muon.PART, 1])
def test_memory_to_work_in_changes_nothing(shape, count, dtype, part, monkeypatch):
    """Also where a product is made in parts."""
    monkeypatch.setattr(muon, "PART", part)
    stack = torch.randn(count, *shape, generator=generator("memory"), dtype=dtype)
    for steps in (1, 2, 3, 4, 6):
        hyper = optimizers.get_rule("muon").values(ns_steps=steps)
        needed = count * muon.Work.entries(shape)
        memory = torch.full((needed + 5,), float("nan"), dtype=dtype)
        own = stack.clone()
        found = muon.direction(own, hyper, memory)
        assert found.data_ptr() == own.data_ptr(), "what has worked in memory may be written over"
        assert torch.equal(found, muon.direction(stack.clone(), hyper))
        assert memory[needed:].isnan().all()


@pytest.mark.parametrize("shape", [(1, 2**18), (2**17, 2), (3, 2**18)])
def test_short_sides_do_not_make_many_products(shape, monkeypatch):
    made, real = [], muon.times
    monkeypatch.setattr(muon, "times", lambda *args: (made.append(args), real(*args))[1])
    memory = torch.empty(muon.Work.entries(shape))
    assert len(memory) < 0.6 * prod(shape)
    muon.direction(torch.randn(1, *shape), optimizers.get_rule("muon").values(), memory)
    assert len(made) < 20
