"""Pagliardini et al. 2025, algorithm 1 with the schedulers of its equations for alpha and beta3."""

import numpy as np


def _beta3(t, steps, start, end):
    if not steps or start == 0:
        return end if t >= steps else end ** (steps / t)
    a = t / steps
    value = np.exp(np.log(start) * np.log(end) / ((1 - a) * np.log(end) + a * np.log(start)))
    return end if t >= steps else min(value, end)


def ademamix(
    p, g, s, t, *, lr, beta1=0.9, beta2=0.999, beta3=0.9999, alpha=5.0, beta3_warmup=0,
    alpha_warmup=0, eps=1e-8, weight_decay=0.0,
):  # fmt: skip
    slow = _beta3(t, beta3_warmup, beta1, beta3)
    weight = min(t * alpha / alpha_warmup, alpha) if alpha_warmup else alpha
    s["m1"] = beta1 * s.get("m1", 0.0) + (1 - beta1) * g
    s["m2"] = slow * s.get("m2", 0.0) + (1 - slow) * g
    s["nu"] = beta2 * s.get("nu", 0.0) + (1 - beta2) * g**2
    m1_hat, nu_hat = s["m1"] / (1 - beta1**t), s["nu"] / (1 - beta2**t)
    return p - lr * ((m1_hat + weight * s["m2"]) / (np.sqrt(nu_hat) + eps) + weight_decay * p)
