"""Interleaved medians, memory and the machine they were measured on."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

PACKAGES = ("torch", "pytorch_optimizer", "timm", "torch-optimi", "heavyball")


@dataclass(frozen=True)
class Sample:
    """Milliseconds of one call: the median and the lowest and highest tenth."""

    median: float
    low: float
    high: float
    rounds: int


def clock(device: str) -> Callable[[Callable[[], object]], float]:
    """How to time one call in milliseconds: by events on a GPU, by the wall clock on a CPU.

    One thread is timed by its processor time, which hardly depends on what else is running.
    """
    now = time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def on_cpu(call: Callable[[], object]) -> float:
        start = now()
        call()
        return (now() - start) * 1e3

    def on_gpu(call: Callable[[], object]) -> float:
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        first.record()
        call()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last))

    return on_cpu if device == "cpu" else on_gpu


def summary(times: list[float]) -> Sample:
    """The median and the tenths of some times."""
    ordered = sorted(times)
    tenth = len(ordered) // 10
    return Sample(
        statistics.median(ordered), ordered[tenth], ordered[-1 - tenth], len(ordered)
    )  # fmt: skip


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    device: str,
    *,
    rounds: int,
    seconds: float,
    least: int = 5,
    prepare: Callable[[str], None] = lambda name: None,
) -> dict[str, Sample]:
    """Time all calls in turn, in a new order each round, so that noise hits all of them alike.

    Stops after ``rounds``, or after ``seconds`` if ``least`` rounds are done. ``prepare`` runs
    before each call, outside the measurement.
    """
    measure = clock(device)
    times: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    shuffle = random.Random(0)
    gc.collect()
    gc.disable()
    start = time.perf_counter()
    try:
        for done in range(rounds):
            if done >= least and time.perf_counter() - start > seconds:
                break
            shuffle.shuffle(order)
            for name in order:
                prepare(name)
                times[name].append(measure(calls[name]))
    finally:
        gc.enable()
    return {name: summary(found) for name, found in times.items()}


def versions() -> dict[str, str]:
    """The versions of torch and of the peers that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine(device: str) -> dict[str, str | int]:
    """The processor, the cores in use and, if it is one, the GPU."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    found: dict[str, str | int] = {
        "cpu": model,
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
    if device != "cpu":
        found["gpu"] = torch.cuda.get_device_name()
    return found


def resident(peak: bool = False) -> int:
    """Bytes of memory this process holds, or the most it held since `forget_peak`."""
    name = "VmHWM" if peak else "VmRSS"
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel does not say how much memory this process holds")


def trim() -> None:
    """Give back what has been freed, which the C library may keep for later."""
    gc.collect()
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if give_back is not None:
        give_back(0)


def forget_peak() -> None:
    """Start `resident(peak=True)` anew."""
    Path("/proc/self/clear_refs").write_text("5")
