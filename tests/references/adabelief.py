"""Zhuang et al. 2020, algorithm 2, with decoupled weight decay."""

import numpy as np


def adabelief(p, g, s, t, *, lr, beta1=0.9, beta2=0.999, eps=1e-16, weight_decay=0.0):
    s["m"] = beta1 * s.get("m", 0.0) + (1 - beta1) * g
    s["s"] = beta2 * s.get("s", 0.0) + (1 - beta2) * (g - s["m"]) ** 2 + eps
    m_hat = s["m"] / (1 - beta1**t)
    s_hat = s["s"] / (1 - beta2**t)
    return p - lr * (m_hat / (np.sqrt(s_hat) + eps) + weight_decay * p)
