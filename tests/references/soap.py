"""Vyas et al. 2025, algorithm 3 for tensors of any order, with the authors' first step and QR."""

import numpy as np


def _multiply(tensor, matrix, axis):
    """The mode product: ``matrix`` applied along one axis."""
    return np.moveaxis(np.tensordot(matrix, tensor, axes=(1, axis)), 0, axis)


def _gram(tensor, axis):
    others = [other for other in range(tensor.ndim) if other != axis]
    return np.tensordot(tensor, tensor, axes=(others, others))


def _project(tensor, bases, transpose):
    for axis, basis in bases.items():
        tensor = _multiply(tensor, basis.T if transpose else basis, axis)
    return tensor


def _refresh(s):
    for axis, gram in s["L"].items():
        q = s["Q"][axis]
        order = np.argsort(-np.diag(q.T @ gram @ q))
        s["v"] = np.take(s["v"], order, axis=axis)
        s["Q"][axis] = np.linalg.qr(gram @ q[:, order])[0]


def soap(
    p, g, s, t, *, lr, beta1=0.95, beta2=0.95, shampoo_beta=-1.0, eps=1e-8, weight_decay=0.01,
    precondition_frequency=10, max_precond_dim=10_000,
):  # fmt: skip
    beta3 = beta2 if shampoo_beta < 0 else shampoo_beta
    axes = range(p.ndim) if p.ndim > 1 else ()
    if t == 1:
        s["L"] = {
            axis: (1 - beta3) * _gram(g, axis) for axis in axes if p.shape[axis] <= max_precond_dim
        }
        s["Q"] = {axis: np.linalg.eigh(gram)[1][:, ::-1] for axis, gram in s["L"].items()}
        s["m"], s["v"] = np.zeros_like(p), np.zeros_like(p)
        return p
    s["m"] = beta1 * s["m"] + (1 - beta1) * g
    s["v"] = beta2 * s["v"] + (1 - beta2) * _project(g, s["Q"], transpose=True) ** 2
    scaled = _project(s["m"], s["Q"], transpose=True) / (np.sqrt(s["v"]) + eps)
    step = lr * np.sqrt(1 - beta2 ** (t - 1)) / (1 - beta1 ** (t - 1))
    new = p - lr * weight_decay * p - step * _project(scaled, s["Q"], transpose=False)
    for axis in s["L"]:
        s["L"][axis] = beta3 * s["L"][axis] + (1 - beta3) * _gram(g, axis)
    if (t - 1) % precondition_frequency == 0:
        _refresh(s)
    return new
