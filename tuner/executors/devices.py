"""Which GPUs and CPU cores there are, how they are cut into slots, and who holds which GPU.

A GPU is named by its UUID (a MIG instance by its own), because indices differ between tools.
`TUNER_FAKE_DEVICES=4` pretends four GPUs: everything around a GPU can be tried without one.
"""

from __future__ import annotations

import fcntl
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tuner.errors import TunerError, UsageError
from tuner.executors.base import Slot

MAX_CPU_SLOTS = 8


@dataclass(frozen=True)
class Gpu:
    """A GPU or a MIG instance."""

    uuid: str
    name: str


def discover_gpus() -> tuple[Gpu, ...]:
    """GPUs of this machine that an outer CUDA_VISIBLE_DEVICES leaves; none without a driver."""
    fake = os.environ.get("TUNER_FAKE_DEVICES", "")
    if fake:
        if not fake.isdigit():
            raise UsageError(f'TUNER_FAKE_DEVICES = "{fake}": expected a number')
        return tuple(Gpu(f"GPU-fake-{index}", "Fake GPU") for index in range(int(fake)))
    return visible(_nvml_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible(gpus: Sequence[Sequence[Gpu]], setting: str | None) -> tuple[Gpu, ...]:
    """Apply CUDA_VISIBLE_DEVICES: indices, or (beginnings of) UUIDs; the first bad entry ends it.

    `gpus` has one sequence per physical GPU: itself, or its MIG instances.
    """
    instances = [gpu for group in gpus for gpu in group]
    if setting is None:
        return tuple(instances)
    chosen: list[Gpu] = []
    for entry in filter(None, (part.strip() for part in setting.split(","))):
        if entry.isdigit():
            matches = list(gpus[int(entry)]) if int(entry) < len(gpus) else []
        else:
            matches = [gpu for gpu in instances if gpu.uuid.startswith(entry)]
        if not matches:
            break
        chosen += [gpu for gpu in matches if gpu not in chosen]
    return tuple(chosen)


def _nvml_gpus() -> list[list[Gpu]]:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return [_instances(handle) or [_gpu(handle)] for handle in handles]
    finally:
        pynvml.nvmlShutdown()


def _gpu(handle: object) -> Gpu:
    import pynvml

    return Gpu(str(pynvml.nvmlDeviceGetUUID(handle)), str(pynvml.nvmlDeviceGetName(handle)))


def _instances(handle: object) -> list[Gpu]:
    """MIG instances of a GPU; empty when it is not cut into instances."""
    import pynvml

    found = []
    try:
        for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            found.append(_gpu(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)))
    except pynvml.NVMLError:  # this GPU has no MIG, or fewer instances than it could have
        return found
    return found


def available_cores() -> tuple[tuple[int, ...], ...]:
    """Physical cores that this process may use, each as its logical CPUs.

    Respects the affinity mask and the CPU quota of a container.
    """
    if not hasattr(os, "sched_getaffinity"):
        allowed = set(range(os.cpu_count() or 1))
    else:
        allowed = os.sched_getaffinity(0)
    cores = sorted({tuple(sorted(_siblings(cpu) & allowed)) for cpu in allowed})
    return tuple(cores[: max(1, math.ceil(_cpu_quota()))] if _cpu_quota() else cores)


def _siblings(cpu: int) -> set[int]:
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        ranges = path.read_text().strip().split(",")
    except OSError:
        return {cpu}
    bounds = [[int(number) for number in part.split("-")] for part in ranges]
    return {cpu}.union(*(range(ends[0], ends[-1] + 1) for ends in bounds))


def _cpu_quota() -> float:
    """CPUs that the control group grants; 0 without a limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return 0.0
    return 0.0 if quota == "max" else int(quota) / int(period)


def plan_slots(
    slots: int | None = None,
    *,
    gpus: Sequence[Gpu] | None = None,
    cores: Sequence[tuple[int, ...]] | None = None,
) -> tuple[Slot, ...]:
    """Cut this machine into slots with disjoint cores.

    By default one slot per GPU, or without a GPU one per physical core, at most 8. More slots than
    GPUs share GPUs in turn. Raises UsageError for a number that is not possible.
    """
    gpus = discover_gpus() if gpus is None else gpus
    cores = available_cores() if cores is None else cores
    if slots is not None and slots < 1:
        raise UsageError(f"slots = {slots}: at least 1 is needed")
    if gpus:
        return _gpu_slots(slots or len(gpus), gpus, cores)
    logical = [(cpu,) for core in cores for cpu in core]
    if slots is not None and slots > len(logical):
        raise UsageError(f"slots = {slots}: this machine offers {len(logical)} CPUs and no GPU")
    count = slots or min(len(cores), MAX_CPU_SLOTS)
    shares = _shares(cores if count <= len(cores) else logical, count)
    return tuple(
        Slot(index=index, device=f"cpu:{_ranges(share)}", cores=share)
        for index, share in enumerate(shares)
    )


def _gpu_slots(
    count: int, gpus: Sequence[Gpu], cores: Sequence[tuple[int, ...]]
) -> tuple[Slot, ...]:
    shares = _shares(cores, count)
    return tuple(
        Slot(
            index=index,
            device=f"{gpus[index % len(gpus)].uuid} {gpus[index % len(gpus)].name}",
            cores=shares[index],
            visible_device=gpus[index % len(gpus)].uuid,
        )
        for index in range(count)
    )


def _shares(cores: Sequence[tuple[int, ...]], count: int) -> list[tuple[int, ...]]:
    """Neighbouring cores for each of `count` slots; too few cores are given out in turn."""
    if count > len(cores):
        return [cores[index % len(cores)] for index in range(count)]
    edges = [round(len(cores) * index / count) for index in range(count + 1)]
    return [
        tuple(sorted(cpu for core in cores[start:end] for cpu in core))
        for start, end in pairwise(edges)
    ]


def _ranges(cpus: Sequence[int]) -> str:
    """(0, 1, 2, 5) -> "0-2,5"."""
    parts: list[list[int]] = []
    for cpu in cpus:
        if parts and parts[-1][-1] == cpu - 1:
            parts[-1].append(cpu)
        else:
            parts.append([cpu])
    return ",".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


@contextmanager
def leased(slots: Sequence[Slot], folder: Path) -> Iterator[tuple[Slot, ...]]:
    """The slots whose GPU no other study on this host holds; ours until the block ends.

    A lease is a locked file in `folder`; the operating system frees it when its holder dies. Slots
    without a GPU need none. Raises TunerError when every GPU is taken.
    """
    held: dict[str, int] = {}
    try:
        for device in sorted({slot.visible_device for slot in slots if slot.visible_device}):
            lock = _lock(folder, device)
            if lock is not None:
                held[device] = lock
        free = tuple(s for s in slots if s.visible_device is None or s.visible_device in held)
        if slots and not free:
            raise TunerError("every GPU is in use by another study on this host")
        yield free
    finally:
        for lock in held.values():
            os.close(lock)


def _lock(folder: Path, device: str) -> int | None:
    """A descriptor that holds the device's lock, or None when another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{re.sub('[^A-Za-z0-9-]', '_', device)}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
