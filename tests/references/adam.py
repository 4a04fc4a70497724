"""Kingma and Ba 2015, algorithm 1; Loshchilov and Hutter 2019, algorithm 2."""

import numpy as np


def _direction(g, s, t, beta1, beta2, eps):
    s["m"] = beta1 * s.get("m", 0.0) + (1 - beta1) * g
    s["v"] = beta2 * s.get("v", 0.0) + (1 - beta2) * g**2
    m_hat = s["m"] / (1 - beta1**t)
    v_hat = s["v"] / (1 - beta2**t)
    return m_hat / (np.sqrt(v_hat) + eps)


def adam(p, g, s, t, *, lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
    return p - lr * _direction(g + weight_decay * p, s, t, beta1, beta2, eps)


def adamw(p, g, s, t, *, lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01):
    return p - lr * (_direction(g, s, t, beta1, beta2, eps) + weight_decay * p)
