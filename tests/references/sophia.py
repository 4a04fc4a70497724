"""Liu et al. 2024, algorithm 3 with algorithm 2 (Gauss-Newton-Bartlett) as its estimator."""

import numpy as np


def sophia(
    p, g, s, t, *, lr, beta1=0.965, beta2=0.99, rho=0.04, bs=5120, weight_decay=0.1, sampled=None
):
    """``sampled`` is the gradient on sampled labels, in the steps that have one."""
    if sampled is not None:
        s["h"] = beta2 * s.get("h", 0.0) + (1 - beta2) * bs * sampled**2
    s["m"] = beta1 * s.get("m", 0.0) + (1 - beta1) * g
    p = p - lr * weight_decay * p
    with np.errstate(divide="ignore", invalid="ignore"):
        newton = np.where(s["m"] == 0, 0.0, s["m"] / (rho * s.get("h", 0.0)))
    return p - lr * np.clip(newton, -1.0, 1.0)
