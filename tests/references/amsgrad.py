"""Reddi et al. 2018, algorithm 2, and the two rules that libraries made of it; L2 penalty.

The paper has no eps; here it is added to the root, as everywhere.
"""

import numpy as np


def amsgrad(p, g, s, t, *, lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, variant="torch"):
    g = g + weight_decay * p
    s["m"] = beta1 * s.get("m", 0.0) + (1 - beta1) * g
    s["v"] = beta2 * s.get("v", 0.0) + (1 - beta2) * g**2
    m_hat, v_hat = s["m"] / (1 - beta1**t), s["v"] / (1 - beta2**t)
    s["v_max"] = np.maximum(s.get("v_max", 0.0), s["v"])
    s["v_hat_max"] = np.maximum(s.get("v_hat_max", 0.0), v_hat)
    m, v = {
        "paper": (s["m"], s["v_max"]),
        "torch": (m_hat, s["v_max"] / (1 - beta2**t)),
        "optax": (m_hat, s["v_hat_max"]),
    }[variant]
    return p - lr * m / (np.sqrt(v) + eps)
