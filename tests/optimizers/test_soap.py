"""SOAP: the bases stay orthonormal, which dimensions have one, and resuming."""

import copy

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import optimizers
from optimizers import around, engines
from optimizers.parts import Room
from optimizers.rules import bases
from tests.optimizers.helpers import LAYOUTS, drive, problem
from tests.optimizers.test_engines import close, expected


def test_bases_are_orthonormal_and_diagonalize():
    start, grads = problem((6, 6), 60)
    skew = torch.diag(torch.logspace(0, -3, 6, dtype=torch.float64))
    param = nn.Parameter(start.clone())
    opt = optimizers.create("soap", [param], precondition_frequency=1, betas=(0.9, 0.99))
    drive(opt, param, [skew @ grad @ skew for grad in grads])
    state = opt.state[param]
    for dim in (0, 1):
        basis, gram = state[f"basis_{dim}"], state[f"gram_{dim}"]
        torch.testing.assert_close(basis @ basis.mT, torch.eye(6, dtype=torch.float64))
        rotated = basis @ gram @ basis.mT
        off = rotated - torch.diag(rotated.diagonal())
        assert off.norm() < 0.05 * rotated.norm()
        assert (rotated.diagonal().diff() < 0).all()


def test_which_dimensions_have_a_basis():
    row = optimizers.get_rule("soap")
    values = row.values(max_precond_dim=4)
    shapes = {(): 0, (3,): 0, (3, 4): 2, (5, 3): 1, (4, 3, 2, 2): 4, (5, 6): 0}
    for shape, count in shapes.items():
        state = row.state(torch.empty(shape), values)
        assert sum(name.startswith("basis") for name in state) == count


def test_tall_matrices_and_a_resume_in_the_middle():
    start, grads = problem((7, 3), 20, torch.float32)
    param = nn.Parameter(start.clone())
    opt = optimizers.create("soap", [param], precondition_frequency=4)
    drive(opt, param, grads[:9])
    twin = nn.Parameter(param.detach().clone())
    resumed = optimizers.create("soap", [twin])
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert torch.equal(drive(opt, param, grads[9:])[-1], drive(resumed, twin, grads[9:])[-1])
    assert param.isfinite().all()


@pytest.mark.parametrize("shape", [(9, 9), (5, 4, 3, 2)])
def test_half_of_each_gram_matrix_is_enough(shape, monkeypatch):
    """Of Gram matrices only strips of rows from the diagonal on are written."""
    monkeypatch.setattr(bases, "STRIP", 2)
    start, grads = problem(shape, 12)
    settings = {"lr": 0.02, "precondition_frequency": 3, "weight_decay": 0.1}
    param = nn.Parameter(start.clone())
    opt = optimizers.create("soap", [param], **settings)
    drive(opt, param, grads)
    close(param, expected("soap", start, grads, **settings))
    stale = opt.state[param]["gram_0"].clone()
    gram = bases.complete_(stale.clone(), Room(*torch.empty(2, 36, dtype=stale.dtype)))
    torch.testing.assert_close(gram, gram.mT, rtol=1e-12, atol=1e-14)  # a strip's own rounding
    assert torch.equal(gram.triu(), stale.triu())
    assert not torch.equal(gram, stale)


SHAPES = ((40,), (40, 4), (4, 40), (40, 30), (40, 5, 6), (40, 3, 2, 2))


@pytest.mark.parametrize(
    ("shape", "layout"),
    [(shape, layout) for shape in SHAPES for layout in ("contiguous", "sliced")]
    + [((40, 4), "transposed"), ((40, 5, 6), "transposed"), ((40, 3, 2, 2), "channels_last")],
)
def test_slices_along_a_dimension_without_a_basis(shape, layout, monkeypatch):
    """Slices share bases, and refreshes work in the memory of one."""
    monkeypatch.setattr(around, "PART", 3 * max(shape[1:], default=1))
    start, grads = problem(shape, 12)
    settings = {"lr": 0.02, "precondition_frequency": 3, "weight_decay": 0.1}
    param = nn.Parameter(LAYOUTS[layout](start))
    opt = optimizers.create("soap", [param], **settings, max_precond_dim=20)
    drive(opt, param, grads)
    close(param, expected("soap", start, grads, **settings, max_precond_dim=20))


@pytest.mark.parametrize("shape", [(6, 6), (12, 3), (3, 12), (9, 2, 2)])
def test_first_steps_alone_and_in_stacks_make_the_same_bases(shape):
    """Also of dimensions longer than all others together, where many bases would do."""
    start, grads = problem(shape, 9)
    twins, alone = [[nn.Parameter(start.clone()) for _ in range(n)] for n in (2, 1)]
    for params in (twins, alone):
        opt = optimizers.create("soap", params, lr=0.02, precondition_frequency=3)
        for grad in grads:
            for param in params:
                param.grad = grad.clone()
            opt.step()
    for twin in twins:
        close(twin, alone[0].detach())


def test_one_state_for_steps_alone_and_in_stacks():
    """Parameters of one shape are stepped in a stack, purely; one of them alone is in place."""
    start, grads = problem((6, 6), 12)
    settings = {"lr": 0.02, "precondition_frequency": 3}
    twins = [nn.Parameter(start.clone()) for _ in range(2)]
    opt = optimizers.create("soap", twins, **settings)
    together = [0, 1, 2, 5, 6, 9]
    for step, grad in enumerate(grads):
        twins[0].grad = grad.clone()
        twins[1].grad = grad.clone() if step in together else None
        opt.step()
    close(twins[0], expected("soap", start, grads, **settings))
    close(twins[1], expected("soap", start, [grads[step] for step in together], **settings))


@pytest.mark.parametrize("shape", [(7,), (40, 5), (5, 40)])
def test_stacks_without_bases_are_stepped_in_place(shape, monkeypatch):
    """As one vector, also where it is larger than all that are stepped alone."""
    monkeypatch.setattr(engines, "over_stack", None)  # what is pure
    start, grads = problem(shape, 4)
    params = [nn.Parameter(start.clone()) for _ in range(50)]
    opt = optimizers.create("soap", params, engine="eager", lr=0.02, max_precond_dim=4)
    for grad in grads:
        for param in params:
            param.grad = grad.clone()
        opt.step()
    for param in params:
        close(param, expected("soap", start, grads, lr=0.02, max_precond_dim=4))


def most_made(opt):
    """The bytes of the largest tensor that a step makes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        opt.step()
    return max(event.cpu_memory_usage for event in profiler.events() or ())


def test_a_step_moves_no_state(monkeypatch):
    """All of it is written over, and nothing as large as a Gram matrix is made on the way."""
    monkeypatch.setattr(bases, "STRIP", 8)
    start, grads = problem((64, 48), 4)
    param = nn.Parameter(start.clone())
    opt = optimizers.create("soap", [param], precondition_frequency=1, engine="eager")
    drive(opt, param, grads[:1])
    places = {key: value.data_ptr() for key, value in opt.state[param].items()}
    param.grad = grads[1].clone()
    assert most_made(opt) < 1.1 * param.nbytes < opt.state[param]["gram_0"].nbytes
    assert {key: value.data_ptr() for key, value in opt.state[param].items()} == places


@pytest.mark.parametrize("scale", [1.0, 0.0])
@pytest.mark.parametrize("shape", [(50, 12), (12, 50), (64, 3, 2, 2), (20, 1), (24, 12), (23, 12)])
def test_first_bases_are_eigenvectors_of_the_first_gradient(shape, scale):
    """Also those of a dimension that is longer than all others together, which has few of them."""
    start, (grad,) = problem(shape, 1)
    param = nn.Parameter(start.clone())
    opt = optimizers.create("soap", [param], engine="eager")
    drive(opt, param, [grad * scale])
    assert torch.equal(param, start)
    state = opt.state[param]
    assert not state["exp_avg"].any()
    for dim, size in enumerate(shape):
        basis, rows = state[f"basis_{dim}"], scale * grad.movedim(dim, 0).flatten(1)
        torch.testing.assert_close(basis @ basis.mT, torch.eye(size, dtype=torch.float64))
        rotated = basis @ rows @ rows.mT @ basis.mT
        values = rotated.diagonal()
        torch.testing.assert_close(rotated, values.diag())
        assert (values.diff() <= 1e-12 * values.max()).all()


def test_a_first_step_needs_no_memory_for_eigenvectors_of_long_dimensions():
    start, (grad,) = problem((256, 32), 1)
    param = nn.Parameter(start.clone())
    opt = optimizers.create("soap", [param], engine="eager")
    drive(opt, param, [grad * 0])  # allocates the state
    state = opt.state[param]
    state["step"].zero_()
    param.grad = grad
    assert most_made(opt) < 0.3 * state["gram_0"].nbytes
    assert not torch.equal(state["basis_0"], torch.eye(256, dtype=torch.float64))


@pytest.mark.parametrize("engine", ["eager", "compiled"])
@pytest.mark.parametrize("clip_norm", [1e3, 0.5, 1e-6])
@pytest.mark.parametrize("shape", [(6, 6), (6, 4, 3), (40,), (40, 30)])
def test_clipped_gradients_are_read_alone(shape, clip_norm, engine):
    """Whether products with them scale them on the way, or they are scaled first."""
    start, grads = problem(shape, 9)
    settings = {"lr": 0.02, "precondition_frequency": 3, "max_precond_dim": 20, "eps": 1e-15}
    param = nn.Parameter(start.clone())
    opt = optimizers.create("soap", [param], engine=engine, clip_norm=clip_norm, **settings)
    for grad in grads:
        param.grad = grad.clone()
        opt.step()
        assert torch.equal(param.grad, grad)
    scaled = [grad * min(1.0, clip_norm / grad.norm().item()) for grad in grads]
    close(param, expected("soap", start, scaled, **settings), 1e-8)


@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_gradients_whose_squares_no_number_holds_are_clipped_first(engine):
    start, grads = problem((6, 6), 9)
    param = nn.Parameter(start.float())
    opt = optimizers.create("soap", [param], engine=engine, clip_norm=1.0, lr=0.02)
    drive(opt, param, [grad.float() * 1e30 for grad in grads])
    other = nn.Parameter(start.float())
    opt = optimizers.create("soap", [other], engine=engine, clip_norm=1.0, lr=0.02)
    drive(opt, other, [grad.float() * 1e3 for grad in grads])
    assert (param - start).abs().max() > 0
    torch.testing.assert_close(param, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mode", ["l2", "decoupled", "independent"])
@pytest.mark.parametrize("shape", [(6, 6), (40, 30), (30, 40), (5, 4, 3), (40, 5, 6)])
def test_directions_are_added_to_parameters_wherever_they_lie(shape, mode):
    """By the last product where parameters are contiguous, and afterwards where they are not."""
    start, grads = problem(shape, 9)
    settings = {"lr": 0.02, "precondition_frequency": 3, "max_precond_dim": 35, "maximize": True}
    ends = []
    for layout in ("contiguous", "sliced"):
        param = nn.Parameter(LAYOUTS[layout](start))
        opt = optimizers.create(
            "soap", [param], weight_decay_mode=mode, weight_decay=0.3, clip_norm=1.0, **settings
        )
        drive(opt, param, grads)
        ends.append(param.detach().contiguous())
    close(ends[0], ends[1], 1e-9)
