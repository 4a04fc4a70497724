"""Chen et al. 2023, algorithm 2."""

import numpy as np


def lion(p, g, s, t, *, lr, beta1=0.9, beta2=0.99, weight_decay=0.0):
    m = s.get("m", np.zeros_like(p))
    c = beta1 * m + (1 - beta1) * g
    s["m"] = beta2 * m + (1 - beta2) * g
    return p - lr * (np.sign(c) + weight_decay * p)
