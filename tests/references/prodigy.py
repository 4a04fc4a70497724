"""Mishchenko and Defazio 2024, algorithm 4, with the options of the authors' implementation.

Theirs differs from the paper in one place: the new d multiplies eps, not the old one.
"""

import numpy as np


def estimate(params, grads, s, t, *, lr, beta1, beta2, d0, d_coef, growth_rate, bias, safeguard):
    """``(d of this step, the new d, the step's factor)``, over lists of arrays."""
    if not s:
        s |= {"d": d0, "d_max": d0, "r": 0.0, "p0": params, "s": [0.0] * len(params)}
    d, beta3 = s["d"], np.sqrt(beta2)
    step = d * lr * (np.sqrt(1 - beta2**t) / (1 - beta1**t) if bias else 1.0)
    inner = sum(np.sum(g * (p0 - p)) for g, p0, p in zip(grads, s["p0"], params, strict=True))
    s["r"] = beta3 * s["r"] + d * step * inner
    weight = d * (d if safeguard else step)
    s["s"] = [beta3 * old + weight * g for old, g in zip(s["s"], grads, strict=True)]
    d_hat = d_coef * s["r"] / sum(np.sum(np.abs(one)) for one in s["s"])
    s["d_max"] = max(s["d_max"], d_hat)
    limit = np.inf if d == d0 else d * growth_rate
    s["d"] = min(s["d_max"], limit)
    return d, s["d"], step


def prodigy_model(
    params, grads, s, t, *, lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, d0=1e-6,
    d_coef=1.0, growth_rate=np.inf, use_bias_correction=False, safeguard_warmup=False,
):  # fmt: skip
    """One step of a whole model, as lists of arrays."""
    d, d_next, step = estimate(
        params, grads, s.setdefault("d", {}), t, lr=lr, beta1=beta1, beta2=beta2, d0=d0,
        d_coef=d_coef, growth_rate=growth_rate, bias=use_bias_correction,
        safeguard=safeguard_warmup,
    )  # fmt: skip
    new = []
    for number, (p, g) in enumerate(zip(params, grads, strict=True)):
        m, v = s.get(number, (0.0, 0.0))
        m = beta1 * m + (1 - beta1) * d * g
        v = beta2 * v + (1 - beta2) * d**2 * g**2
        s[number] = (m, v)
        new.append(p - step * weight_decay * p - step * m / (np.sqrt(v) + d_next * eps))
    return new


def prodigy(p, g, s, t, **settings):
    return prodigy_model([p], [g], s, t, **settings)[0]
