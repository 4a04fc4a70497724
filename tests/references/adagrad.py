"""Duchi et al. 2011, figure 1 (diagonal, unconstrained), with a decaying rate; L2 penalty."""

import numpy as np


def adagrad(
    p, g, s, t, *, lr, lr_decay=0.0, weight_decay=0.0, initial_accumulator_value=0.0, eps=1e-10
):
    g = g + weight_decay * p
    s.setdefault("history", [])
    s["history"].append(g)
    total = initial_accumulator_value + sum(np.square(past) for past in s["history"])
    rate = lr / (1 + lr_decay * (t - 1))
    return p - rate * g / (np.sqrt(total) + eps)
