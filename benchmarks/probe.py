"""What needs a process of its own: memory, and the time to the first step.

    python -m benchmarks.probe memory RULE ENGINE MODEL THREADS
    python -m benchmarks.probe first RULE ENGINE MODEL THREADS

prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks import models, timing
from benchmarks.ours import ours

STEPS = 3
LATER = 10  # steps after the first, one of which refreshes SOAP's bases


def prepared(rule: str, engine: str, shapes: Sequence[Any]) -> tuple[Any, int]:
    """An optimizer whose parameters have gradients, and the bytes of the parameters."""
    named = models.parameters(shapes, "cpu", torch.float32)
    for (_, param), grad in zip(named, models.gradients(shapes, "cpu", torch.float32), strict=True):
        param.grad = grad
    optimizer = ours(rule, named, engine)
    return optimizer, sum(param.nbytes for _, param in named)


def memory(rule: str, engine: str, model: str) -> dict[str, Any]:
    """Bytes that a step needs beyond parameters, gradients and the rule's own state.

    Another optimizer of such a model has stepped before, so that what a process makes once is
    there: code, thread pools, kernels, and the buffers into which MKL packs products of matrices
    and which it keeps, as after a forward pass. ``later`` is what steps after the first need.
    State is counted as a copy of it takes memory: large tensors have pages of their own.
    """
    shapes = models.MODELS[model]()
    other, _ = prepared(rule, engine, shapes)
    for _ in range(1 + LATER):
        other.step()
    del other
    optimizer, parameters = prepared(rule, engine, shapes)
    timing.trim()
    before, peaks = timing.resident(), []
    for steps in (1, LATER):
        timing.forget_peak()
        for _ in range(steps):
            optimizer.step()
        peaks.append(timing.resident(peak=True))
        timing.trim()
    tensors = [t for state in optimizer.state.values() for t in state.values()]
    with_state = timing.resident()
    copies = [tensor.clone() for tensor in tensors]
    taken, state = timing.resident() - with_state, sum(copy.nbytes for copy in copies)
    first, later = (max(0, peak - before - taken) for peak in peaks)
    return {"parameters": parameters, "state": state, "extra": max(first, later), "later": later}


def first(rule: str, engine: str, model: str) -> dict[str, Any]:
    """Seconds that the first step takes more than a later one."""
    optimizer, _ = prepared(rule, engine, models.MODELS[model]())
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        optimizer.step()
        times.append(time.perf_counter() - start)
    return {"seconds": times[0] - min(times[1:])}


def run(kind: str, rule: str, engine: str, model: str, threads: int, **env: str) -> dict[str, Any]:
    """One probe in a new process; raises RuntimeError with the last line of what went wrong."""
    command = [sys.executable, "-m", "benchmarks.probe", kind, rule, engine, model, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env})
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no output"])[-1])
    return dict(json.loads(done.stdout.splitlines()[-1]))


def compile_time(rule: str, engine: str, threads: int) -> dict[str, Any]:
    """Seconds until the first step is done, with an empty cache on disk and with a full one."""
    with tempfile.TemporaryDirectory() as folder:
        names = ("XDG_CACHE_HOME", "HOME", "TORCHINDUCTOR_CACHE_DIR", "TORCH_EXTENSIONS_DIR")
        env = dict.fromkeys(names, folder)
        cold, warm = (run("first", rule, engine, "tiny", threads, **env) for _ in range(2))
    return {"rule": rule, "engine": engine, "cold": cold["seconds"], "warm": warm["seconds"]}


if __name__ == "__main__":
    KIND, RULE, ENGINE, MODEL, THREADS = sys.argv[1:]
    torch.set_num_threads(int(THREADS))
    print(json.dumps({"memory": memory, "first": first}[KIND](RULE, ENGINE, MODEL)))
