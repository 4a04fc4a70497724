"""Sutskever et al. 2013, with dampening; weight decay is an L2 penalty."""

import numpy as np


def sgd(p, g, s, t, *, lr, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False):
    g = g + weight_decay * p
    if momentum == 0:
        return p - lr * g
    if t == 1:
        s["b"] = np.copy(g)
    else:
        s["b"] = momentum * s["b"] + (1 - dampening) * g
    return p - lr * (g + momentum * s["b"] if nesterov else s["b"])
