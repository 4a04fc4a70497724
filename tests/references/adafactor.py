"""Shazeer and Stern 2018, algorithms 4 and 5, with torch's documented lr, decay and eps1.

The paper adds eps1 to each square and fixes lr at 0.01; torch's documentation bounds the factors
and the root by eps1, takes means for sums, and decays by lr.
"""

import numpy as np


def _rms(x):
    return np.sqrt(np.mean(np.square(x)))


def adafactor(p, g, s, t, *, lr, beta2_decay=-0.8, eps1=None, eps2=1e-3, d=1.0, weight_decay=0.0):
    eps1 = np.finfo(p.dtype).eps if eps1 is None else eps1
    beta2 = 1 - float(t) ** beta2_decay
    alpha = max(eps2, _rms(p)) * min(lr, 1 / np.sqrt(t))
    if p.ndim >= 2:
        rows, columns = np.mean(g**2, axis=-1), np.mean(g**2, axis=-2)
        s["R"] = beta2 * s.get("R", 0.0) + (1 - beta2) * rows
        s["C"] = beta2 * s.get("C", 0.0) + (1 - beta2) * columns
        whole = np.maximum(np.mean(s["R"], axis=-1), eps1)
        v = np.einsum("...i,...j->...ij", s["R"], s["C"]) / whole[..., None, None]
    else:
        v = s["V"] = beta2 * s.get("V", 0.0) + (1 - beta2) * g**2
    u = g / np.maximum(np.sqrt(v), eps1)
    return p - lr * weight_decay * p - alpha * u / max(1.0, _rms(u) / d)
