"""Slots: which devices and cores there are, who gets which, and who holds a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.errors import TunerError, UsageError
from tuner.executors.devices import (
    Gpu,
    available_cores,
    discover_gpus,
    leased,
    plan_slots,
    visible,
)

CORES = tuple((2 * index, 2 * index + 1) for index in range(12))  # two threads a core
GPUS = [[Gpu(f"GPU-{letter}{letter}", "H100")] for letter in "abc"]
MIG = [[Gpu("MIG-1", "1g"), Gpu("MIG-2", "1g")], [Gpu("GPU-zz", "H100")]]


def test_without_a_gpu_a_slot_per_core_and_at_most_eight() -> None:
    slots = plan_slots(gpus=(), cores=CORES)
    assert len(slots) == 8
    assert [slot.index for slot in slots] == list(range(8))
    assert all(slot.visible_device is None for slot in slots)
    assert plan_slots(gpus=(), cores=CORES[:2])[1].cores == (2, 3)
    assert plan_slots(gpus=(), cores=CORES[:2])[1].device == "cpu:2-3"


def test_a_slot_per_gpu() -> None:
    slots = plan_slots(gpus=discover(GPUS), cores=CORES)
    assert [slot.visible_device for slot in slots] == ["GPU-aa", "GPU-bb", "GPU-cc"]
    assert slots[0].device == "GPU-aa H100"
    assert [len(slot.cores) for slot in slots] == [8, 8, 8]


def discover(groups: list[list[Gpu]]) -> tuple[Gpu, ...]:
    return visible(groups, None)


def test_more_slots_than_gpus_share_them() -> None:
    slots = plan_slots(5, gpus=discover(GPUS), cores=CORES[:2])
    assert [slot.visible_device for slot in slots] == [
        "GPU-aa", "GPU-bb", "GPU-cc", "GPU-aa", "GPU-bb",
    ]  # fmt: skip
    assert all(slot.cores for slot in slots)


@given(count=st.integers(1, 24), machine=st.integers(1, 12))
def test_cores_are_disjoint_and_all_used(count: int, machine: int) -> None:
    cores = CORES[:machine]
    threads = {cpu for core in cores for cpu in core}
    if count > len(threads):
        with pytest.raises(UsageError, match=f"offers {len(threads)} CPUs"):
            plan_slots(count, gpus=(), cores=cores)
        return
    slots = plan_slots(count, gpus=(), cores=cores)
    assert len(slots) == count
    assert all(slot.cores for slot in slots)
    given_out = [cpu for slot in slots for cpu in slot.cores]
    assert sorted(given_out) == sorted(threads)


@pytest.mark.parametrize("count", [0, -1])
def test_there_is_at_least_one_slot(count: int) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        plan_slots(count, gpus=(), cores=CORES)


@pytest.mark.parametrize(
    ("groups", "setting", "chosen"),
    [
        (GPUS, None, ["GPU-aa", "GPU-bb", "GPU-cc"]),
        (GPUS, "", []),
        (GPUS, "-1", []),
        (GPUS, "2,0", ["GPU-cc", "GPU-aa"]),
        (GPUS, "0,7,1", ["GPU-aa"]),
        (GPUS, "GPU-bb, GPU-a", ["GPU-bb", "GPU-aa"]),
        (GPUS, "1,1", ["GPU-bb"]),
        (MIG, None, ["MIG-1", "MIG-2", "GPU-zz"]),
        (MIG, "MIG-2", ["MIG-2"]),
        (MIG, "0", ["MIG-1", "MIG-2"]),
        (MIG, "1", ["GPU-zz"]),
    ],
)
def test_an_outer_setting_is_respected(
    groups: list[list[Gpu]], setting: str | None, chosen: list[str]
) -> None:
    assert [gpu.uuid for gpu in visible(groups, setting)] == chosen


def test_fake_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNER_FAKE_DEVICES", "4")
    assert len(discover_gpus()) == len(plan_slots()) == 4
    monkeypatch.setenv("TUNER_FAKE_DEVICES", "many")
    with pytest.raises(UsageError, match='TUNER_FAKE_DEVICES = "many"'):
        discover_gpus()


def test_cores_are_those_of_the_affinity_mask() -> None:
    allowed = os.sched_getaffinity(0)
    assert {cpu for core in available_cores() for cpu in core} <= allowed
    one = min(allowed)
    code = "from tuner.executors.devices import *; print(available_cores())"
    run = subprocess.run(
        ["taskset", "-c", str(one), sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == f"(({one},),)"


HOLDER = """
import sys, time
from pathlib import Path
from tuner.executors.devices import Gpu, leased, plan_slots

slots = plan_slots(gpus=[Gpu("GPU-aa", "H100")], cores=[(0,)])
with leased(slots, Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_gpu_is_leased_to_one_study_until_its_process_dies(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    both = plan_slots(gpus=discover(GPUS[:2]), cores=CORES)
    with leased(both, tmp_path) as free:
        assert [slot.visible_device for slot in free] == ["GPU-bb"]
    with pytest.raises(TunerError, match="in use by another study"), leased(both[:1], tmp_path):
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with leased(both, tmp_path) as free:
        assert free == both


def test_cpu_slots_need_no_lease(tmp_path: Path) -> None:
    slots = plan_slots(gpus=(), cores=CORES)
    with leased(slots, tmp_path / "locks") as free, leased(slots, tmp_path / "locks") as again:
        assert free == again == slots
