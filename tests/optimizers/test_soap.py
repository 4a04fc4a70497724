"""SOAP: the bases stay orthonormal, which dimensions have one, and resuming."""

import copy

import pytest
import torch
from torch import nn

import optimizers
from optimizers.rules import soap
from tests.optimizers.helpers import drive, problem
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
        torch.testing.assert_close(basis.mT @ basis, torch.eye(6, dtype=torch.float64))
        rotated = basis.mT @ gram @ basis
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
    """Large parameters write over their state, and of Gram matrices only strips of rows."""
    monkeypatch.setattr(soap, "STRIP", 2)
    monkeypatch.setattr(soap, "LARGE", 0)
    start, grads = problem(shape, 12)
    settings = {"lr": 0.02, "precondition_frequency": 3, "weight_decay": 0.1}
    param = nn.Parameter(start.clone())
    opt = optimizers.create("soap", [param], **settings)
    drive(opt, param, grads)
    close(param, expected("soap", start, grads, **settings))
    stale = opt.state[param]["gram_0"].clone()
    gram = soap.symmetric(stale.clone())
    torch.testing.assert_close(gram, gram.mT, rtol=1e-12, atol=1e-14)  # a strip's own rounding
    assert torch.equal(gram.triu(), stale.triu())
    assert not torch.equal(gram, stale)
