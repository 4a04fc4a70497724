"""Dozat 2016, algorithm 2 with the paper's momentum schedule; L2 and decoupled decay.

As torch documents it, m decays with beta1 where the paper has mu_t.
"""

import numpy as np


def _direction(g, s, t, beta1, beta2, eps, momentum_decay):
    def mu(i):
        return beta1 * (1 - 0.5 * 0.96 ** (i * momentum_decay))

    def product(last):
        return np.prod([mu(i) for i in range(1, last + 1)])

    s["m"] = beta1 * s.get("m", 0.0) + (1 - beta1) * g
    s["n"] = beta2 * s.get("n", 0.0) + (1 - beta2) * g**2
    g_hat = g / (1 - product(t))
    m_hat = s["m"] / (1 - product(t + 1))
    n_hat = s["n"] / (1 - beta2**t)
    return ((1 - mu(t)) * g_hat + mu(t + 1) * m_hat) / (np.sqrt(n_hat) + eps)


def nadam(
    p, g, s, t, *, lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, momentum_decay=4e-3
):
    return p - lr * _direction(g + weight_decay * p, s, t, beta1, beta2, eps, momentum_decay)


def nadamw(
    p, g, s, t, *, lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=1e-2, momentum_decay=4e-3
):
    u = _direction(g, s, t, beta1, beta2, eps, momentum_decay)
    return p - lr * (u + weight_decay * p)
