"""Taniguchi et al. 2024, algorithm 2, counting from the gradient g_0 that only initialises v.

Weight decay is decoupled and, as in the authors' code, begins with the first step that moves.
"""

import numpy as np


def adopt(p, g, s, t, *, lr, beta1=0.9, beta2=0.9999, eps=1e-6, weight_decay=0.0):
    if t == 1:
        s["v"], s["m"] = g * g, np.zeros_like(g)
        return p
    c = (t - 1) ** 0.25
    s["m"] = beta1 * s["m"] + (1 - beta1) * np.clip(g / np.maximum(np.sqrt(s["v"]), eps), -c, c)
    s["v"] = beta2 * s["v"] + (1 - beta2) * g * g
    return p - lr * weight_decay * p - lr * s["m"]
