"""The check before a study: a few steps tell what a run costs, and what is wrong with the task."""

from __future__ import annotations

import gc
import time
import weakref
from typing import Any

import torch

from optimizers.mistakes import traits
from tuner import data
from tuner.errors import UsageError
from tuner.records import Job
from tuner.task import Task
from tuner.workload import Workload, task_of

STEPS = 3


def check(job: Job) -> dict[str, Any]:
    """What a few steps of the job and a validation batch show; seconds are those of one.

    Raises:
        TaskError: the task's code raised.
        UsageError: the task cannot be tried fairly.
    """
    started = time.perf_counter()
    task = task_of(job)
    info: dict[str, Any] = {"build_seconds": time.perf_counter() - started}
    work = Workload.create(job)
    # the generator's seed is still the run's, unless the task's own code has set another one
    info["reseeds"] = torch.initial_seed() != job.seed
    info |= work.description | _tried(work)
    trained = [weakref.ref(p) for p in work.model.parameters() if p.requires_grad]
    del work
    _require_fresh_weights(task, trained)
    return info


def _tried(work: Workload) -> dict[str, Any]:
    seconds = []
    for _, indices in zip(range(STEPS), work.batches(), strict=False):
        started = time.perf_counter()
        loss = work.step(indices)
        seconds.append(time.perf_counter() - started)
    started = time.perf_counter()
    val_batches = -(-work.val_size // work.val_batch)
    tried = val_batches if work.task.evaluate else 1  # what is no mean over batches may need all
    metrics = work.evaluate(max_batches=tried)
    return {
        "seconds_per_eval": (time.perf_counter() - started) * val_batches / tried,
        "seconds_per_step": min(seconds),
        "train_loss": loss,
        "metrics": sorted(metrics),
        "data": {
            name: data.fingerprint(part)
            for name, part in (("train", work.task.train), ("val", work.task.val))
        },
        "n_train": work.train_size,
        "n_val": work.val_size,
        "traits": sorted(traits(work.model)),
        "validates_on_train": work.task.val is work.task.train,
    }


def _require_fresh_weights(task: Task, trained: list[weakref.ref[Any]]) -> None:
    """Nobody but the task can still hold weights that were trained; then are they used again?"""
    gc.collect()
    held = {id(weight) for weight in (reference() for reference in trained) if weight is not None}
    if held and held & {id(p) for p in task.model().parameters()}:
        raise UsageError(
            "model() returns weights that an earlier call returned, and so a run would begin where"
            " another one ended: build every layer that is trained inside the function"
        )
