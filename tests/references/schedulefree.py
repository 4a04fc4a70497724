"""Defazio et al. 2024, algorithm 1 with x, y and z kept, weighted as in the authors' reference."""

import numpy as np


def _points(p, step, s, t, lr, beta, weight_decay, warmup_steps, r, weight_lr_power):
    z, x = s.get("z", p), s.get("x", p)
    lr = lr * min(1.0, t / warmup_steps) if warmup_steps else lr
    s["lr_max"] = max(lr, s.get("lr_max", -1.0))
    weight = t**r * s["lr_max"] ** weight_lr_power
    s["weight_sum"] = s.get("weight_sum", 0.0) + weight
    c = weight / s["weight_sum"]
    s["z"] = z - lr * step - lr * weight_decay * p
    s["x"] = (1 - c) * x + c * s["z"]
    return (1 - beta) * s["z"] + beta * s["x"]


def sgd(
    p, g, s, t, *, lr, momentum=0.9, weight_decay=0.0, warmup_steps=0, r=0.0, weight_lr_power=2.0
):
    return _points(p, g, s, t, lr, momentum, weight_decay, warmup_steps, r, weight_lr_power)


def adamw(
    p, g, s, t, *, lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, warmup_steps=0, r=0.0,
    weight_lr_power=2.0,
):  # fmt: skip
    s["v"] = beta2 * s.get("v", 0.0) + (1 - beta2) * g * g
    step = g / (np.sqrt(s["v"] / (1 - beta2**t)) + eps)
    return _points(p, step, s, t, lr, beta1, weight_decay, warmup_steps, r, weight_lr_power)
