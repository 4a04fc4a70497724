"""Liu et al. 2020, algorithm 2, with decoupled weight decay.

As torch documents it: the limit is rho > 5 (paper: 4), and eps is added to the root of the square
before the bias is corrected (paper: no eps).
"""

import numpy as np


def radam(p, g, s, t, *, lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
    s["m"] = beta1 * s.get("m", 0.0) + (1 - beta1) * g
    s["v"] = beta2 * s.get("v", 0.0) + (1 - beta2) * g**2
    m_hat = s["m"] / (1 - beta1**t)
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
    if rho > 5:
        length = np.sqrt(1 - beta2**t) / (np.sqrt(s["v"]) + eps)
        above = (rho - 4) * (rho - 2) * rho_inf
        r = np.sqrt(above / ((rho_inf - 4) * (rho_inf - 2) * rho))
        u = r * m_hat * length
    else:
        u = m_hat
    return p - lr * (u + weight_decay * p)
