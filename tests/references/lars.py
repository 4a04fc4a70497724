"""You et al. 2017, algorithm 1, with the learning rate in the buffer.

Biases and normalisation (fewer than two dimensions) have neither local rate nor decay.
"""

import numpy as np


def lars(p, g, s, t, *, lr, momentum=0.9, weight_decay=0.0, trust_coefficient=1e-3):
    local, decay = 1.0, 0.0
    if p.ndim >= 2:
        decay = weight_decay
        w_norm, g_norm = np.linalg.norm(p.ravel()), np.linalg.norm(g.ravel())
        if w_norm > 0 and g_norm + decay * w_norm > 0:
            local = trust_coefficient * w_norm / (g_norm + decay * w_norm)
    s["v"] = momentum * s.get("v", 0.0) + lr * local * (g + decay * p)
    return p - s["v"]
