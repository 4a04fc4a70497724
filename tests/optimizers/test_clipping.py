"""The pure clipping functions: never above the limit, direction kept, per model under vmap."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizers import clip_grad_norm_, clipping
from tests.optimizers.helpers import generator, problem


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
@settings(max_examples=100, deadline=None)
def test_never_above_the_limit_and_never_turned(size, limit):
    grads = {"a": size * problem((4, 3), 1)[0], "b": size * problem((3,), 1)[0]}
    clipped, norm = clipping.clip_by_global_norm(grads, limit)
    after = clipping.global_norm(clipped.values())
    assert norm.item() == pytest.approx(clipping.global_norm(grads.values()).item())
    assert after <= limit * (1 + 1e-12)
    for name, grad in grads.items():
        torch.testing.assert_close(clipped[name] * norm, grad * after)
        assert norm > limit or torch.equal(clipped[name], grad)


def test_each_model_has_its_own_norm_under_vmap():
    stack = torch.stack([scale * problem((4, 3), 1)[0] for scale in (0.01, 1.0, 100.0)])
    limits = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    clipped, norms = torch.func.vmap(
        lambda grad, limit: clipping.clip_by_global_norm({"w": grad}, limit)
    )(stack, limits)
    for index, grad in enumerate(stack):
        alone, norm = clipping.clip_by_global_norm({"w": grad}, limits[index])
        torch.testing.assert_close(clipped["w"][index], alone["w"])
        torch.testing.assert_close(norms[index], norm)


def test_in_place_form_equals_torch():
    pairs = []
    for clip in (clip_grad_norm_, torch.nn.utils.clip_grad_norm_):
        params = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((4, 3), (3,))]
        for param in params:
            param.grad = problem(tuple(param.shape), 1, torch.float32)[0]
        pairs.append((clip(params, 0.5), [param.grad for param in params]))
    torch.testing.assert_close(pairs[0][0].float(), pairs[1][0])
    torch.testing.assert_close(pairs[0][1], pairs[1][1], rtol=1e-5, atol=1e-6)


def test_nonfinite_gradients_are_left_for_the_optimizer_to_name():
    param = torch.nn.Parameter(torch.zeros(2))
    param.grad = torch.tensor([1.0, float("inf")])
    assert clip_grad_norm_(param, 0.5).item() == float("inf")
    assert param.grad.tolist() == [1.0, float("inf")]
    with pytest.raises(RuntimeError, match="norm is inf"):
        clip_grad_norm_([param], 0.5, error_if_nonfinite=True)


@pytest.mark.parametrize("most", [2**17, 2**15])
def test_norms_of_gradients_of_every_kind_come_in_order(most):
    source = generator("norms")
    dense = [
        torch.randn(shape, generator=source, dtype=torch.float64)
        for shape in ((3, 4), (), (0, 3), (2, 3, 4, 5), (3, 4), (200, 200), (3, 4), (1,), ())
    ]
    grads = [
        *(own.float() for own in dense),
        *dense,
        *(own.bfloat16() for own in dense),
        dense[3].float().clone(memory_format=torch.channels_last),
        dense[5].float()[::2, ::3],
        torch.complex(dense[0], dense[4]),
        torch.sparse_coo_tensor(
            torch.tensor([[0, 0, 2]]), dense[0][:3], (9, 4), check_invariants=True
        ),
    ]
    found = clipping.float_norms(grads, most=most)
    for norm, grad in zip(found, grads, strict=True):
        exact = grad.to_dense().to(torch.complex128).abs().square().sum().sqrt()
        assert norm == pytest.approx(float(exact), rel=1e-5)
    assert clipping.float_norms([]) == []
    empty = [torch.empty(3, device="meta"), torch.ones(4)]
    assert clipping.float_norms(empty) == [0.0, 2.0]
