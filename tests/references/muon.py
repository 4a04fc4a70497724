"""Jordan et al. 2024 (Newton-Schulz in float64); AdamW for what is no matrix; Liu et al. 2025."""

import numpy as np

from tests.references.adam import adamw


def _newton_schulz(g, steps, a, b, c):
    if g.shape[0] > g.shape[1]:
        return _newton_schulz(g.T, steps, a, b, c).T
    x = g / np.linalg.norm(g)
    for _ in range(steps):
        x = a * x + b * (x @ x.T @ x) + c * (x @ x.T @ x @ x.T @ x)
    return x


def muon(
    p, g, s, t, *, lr=1e-3, weight_decay=0.1, momentum=0.95, nesterov=True, ns_steps=5,
    ns_a=3.4445, ns_b=-4.775, ns_c=2.0315, adjust_lr_fn=None, adamw_lr=3e-4, adamw_beta1=0.9,
    adamw_beta2=0.95, adamw_eps=1e-10, ns_precision="full",
):  # fmt: skip
    assert ns_precision == "full"
    if p.ndim < 2:
        return adamw(
            p, g, s, t, lr=adamw_lr, beta1=adamw_beta1, beta2=adamw_beta2, eps=adamw_eps,
            weight_decay=weight_decay,
        )  # fmt: skip
    s["b"] = momentum * s.get("b", 0.0) + (1 - momentum) * g
    u = (1 - momentum) * g + momentum * s["b"] if nesterov else s["b"]
    o = _newton_schulz(u.reshape(len(p), -1), ns_steps, ns_a, ns_b, ns_c)
    rows, columns = o.shape
    ratio = np.sqrt(max(1, rows / columns))
    if adjust_lr_fn == "spectral_unclamped":
        ratio = np.sqrt(rows / columns)
    if adjust_lr_fn == "match_rms_adamw":
        ratio = 0.2 * np.sqrt(max(rows, columns))
    return p * (1 - lr * weight_decay) - lr * ratio * o.reshape(p.shape)
