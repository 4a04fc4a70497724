"""Tieleman and Hinton 2012; Graves 2013, equations 38-41 with eps outside the root; L2 penalty."""

import numpy as np


def rmsprop(
    p, g, s, t, *, lr, alpha=0.99, eps=1e-8, weight_decay=0.0, momentum=0.0, centered=False
):
    g = g + weight_decay * p
    s["n"] = alpha * s.get("n", 0.0) + (1 - alpha) * g**2
    s["g"] = alpha * s.get("g", 0.0) + (1 - alpha) * g
    variance = s["n"] - s["g"] ** 2 if centered else s["n"]
    s["delta"] = momentum * s.get("delta", 0.0) - lr * g / (np.sqrt(variance) + eps)
    return p + s["delta"]
