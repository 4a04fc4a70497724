"""You et al. 2020, algorithm 2 with phi the identity."""

import numpy as np


def lamb(p, g, s, t, *, lr, beta1=0.9, beta2=0.999, eps=1e-6, weight_decay=1e-2):
    s["m"] = beta1 * s.get("m", 0.0) + (1 - beta1) * g
    s["v"] = beta2 * s.get("v", 0.0) + (1 - beta2) * g**2
    r = s["m"] / (1 - beta1**t) / (np.sqrt(s["v"] / (1 - beta2**t)) + eps)
    total = r + weight_decay * p
    norm, length = np.sqrt(np.sum(p**2)), np.sqrt(np.sum(total**2))
    ratio = norm / length if norm > 0 and length > 0 else 1.0
    return p - lr * ratio * total
