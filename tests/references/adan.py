"""Xie et al. 2024, algorithm 1, with the authors' bias corrections and their ``no_prox`` decay.

The authors' betas are one minus the paper's.
"""

import numpy as np


def adan(p, g, s, t, *, lr, beta1=0.98, beta2=0.92, beta3=0.99, eps=1e-8, weight_decay=0.0):
    b1, b2, b3 = 1 - beta1, 1 - beta2, 1 - beta3
    diff = g - s.get("g", g)
    s["g"] = g
    s["m"] = (1 - b1) * s.get("m", 0.0) + b1 * g
    s["v"] = (1 - b2) * s.get("v", 0.0) + b2 * diff
    s["n"] = (1 - b3) * s.get("n", 0.0) + b3 * (g + (1 - b2) * diff) ** 2
    m, v, n = s["m"] / (1 - beta1**t), s["v"] / (1 - beta2**t), s["n"] / (1 - beta3**t)
    eta = lr / (np.sqrt(n) + eps)
    return (1 - lr * weight_decay) * p - eta * (m + (1 - b2) * v)
