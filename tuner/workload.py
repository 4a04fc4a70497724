"""A job made concrete: the task's model, data and optimizer on this process's device."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

import optimizers
from optimizers.mistakes import MISTAKES
from tuner import data
from tuner.errors import UsageError
from tuner.records import Configuration, Job
from tuner.seeding import preserved_rng, seed_everything
from tuner.task import Task, load_task, one_number, user_code

# `build` may split its data at random: every trial and every worker must get the same split.
_TASK_SEED = 0
_tasks: dict[tuple[str, tuple[str, ...]], Task] = {}


def task_of(job: Job) -> Task:
    """The job's task; built once per process, because loading its data may take long."""
    key = (job.task, job.search_path)
    if key not in _tasks:
        seed_everything(_TASK_SEED)
        _tasks[key] = load_task(*key)
    return _tasks[key]


def current_device() -> torch.device:
    """The one GPU that this process may see, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """For people: "cpu" or "cuda:GPU-<uuid> (NVIDIA H100)"."""
    if device.type != "cuda":
        return device.type
    properties = torch.cuda.get_device_properties(device)
    return f"cuda:GPU-{properties.uuid} ({properties.name})"


def environment() -> dict[str, Any]:
    """What the numbers of a run depend on besides its job: threads, cores, visible devices."""
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "threads": torch.get_num_threads(),
        "cores": sorted(affinity(0)) if affinity else [],
        "visible_device": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }


def total_steps(job: Job, train_size: int, batch_size: int) -> int:
    """Optimizer steps of the whole run: the smallest of the limits that the job gives, at least 1.

    Raises UsageError when it gives none.
    """
    limits = []
    if job.max_steps is not None:
        limits.append(job.max_steps)
    if job.max_epochs is not None:
        limits.append(int(job.max_epochs * train_size / batch_size))
    if job.max_examples is not None:
        limits.append(job.max_examples // batch_size)
    if not limits:
        raise UsageError("the length of a run is missing: max_steps, max_epochs or max_examples")
    return max(1, min(limits))


def make_optimizer(
    configuration: Configuration, task: Task, model: nn.Module, steps: int
) -> optimizers.Optimizer:
    """The configured optimizer with its schedule; raises UsageError for arguments it rejects."""
    target: Any = model
    if task.param_groups is not None:
        with user_code("param_groups raised"):
            target = task.param_groups(model)
    try:
        schedule = optimizers.schedules.create(
            configuration.schedule, **configuration.schedule_args
        )
        wrapped = {"base": configuration.optimizer, **configuration.wrapper_args}
        return optimizers.create(
            configuration.wrapper or configuration.optimizer,
            target,
            **(wrapped if configuration.wrapper else {}),
            # "auto" would depend on what is in a cache, and a rerun may have to equal the run
            **{"engine": "compiled", **configuration.optimizer_args},
            schedule=schedule,
            total_steps=steps,
            silence=MISTAKES,  # said once, before the study (`tuner.advice`)
        )
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error


@dataclass
class Workload:
    """Everything that one run trains with; `create` builds it from the job's seed."""

    task: Task
    model: nn.Module
    optimizer: optimizers.Optimizer
    device: torch.device
    seed: int
    batch_size: int
    micro_batch: int
    val_batch: int
    steps: int
    fetch_train: data.Fetch
    fetch_val: data.Fetch

    @classmethod
    def create(cls, job: Job) -> Workload:
        """Seed, build model and optimizer; a batch larger than the data set becomes the data set.

        Raises TaskError for exceptions of the user's code, UsageError for a bad configuration.
        """
        task = task_of(job)
        device = current_device()
        size = len(task.train)  # type: ignore[arg-type]
        batch_size = min(job.configuration.batch_size, size)
        steps = total_steps(job, size, batch_size)
        seed_everything(job.seed)
        with user_code("model() raised"):
            model = task.model()
            if not isinstance(model, nn.Module):
                raise TypeError(f"model() must return an nn.Module, not {type(model).__name__}")
            if any(is_lazy(p) for p in model.parameters()):
                raise TypeError("layers without a shape: run one batch through the model first")
            if not any(p.requires_grad for p in model.parameters()):
                raise TypeError("the model has no parameter to train")
            model = model.to(device).train()
        return cls(
            task=task,
            model=model,
            optimizer=make_optimizer(job.configuration, task, model, steps),
            device=device,
            seed=job.seed,
            batch_size=batch_size,
            micro_batch=min(job.micro_batch or batch_size, batch_size),
            val_batch=min(task.val_batch_size, job.micro_batch or task.val_batch_size),
            steps=steps,
            fetch_train=data.fetcher(task.train, task.collate),
            fetch_val=data.fetcher(task.val, task.collate),
        )

    @property
    def train_size(self) -> int:
        """Number of training examples."""
        return len(self.task.train)  # type: ignore[arg-type]

    @property
    def val_size(self) -> int:
        """Number of validation examples."""
        return len(self.task.val)  # type: ignore[arg-type]

    @property
    def parameters(self) -> int:
        """Number of trainable scalars."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    @property
    def description(self) -> dict[str, int]:
        """Sizes of the run, for its outcome."""
        return {
            "parameters": self.parameters,
            "batch_size": self.batch_size,
            "micro_batch": self.micro_batch,
            "total_steps": self.steps,
        }

    def batches(self, start: int = 0) -> Iterator[Tensor]:
        """Indices of the training examples of step `start`, `start + 1`, ..."""
        return data.stream(self.train_size, self.batch_size, self.seed, start)

    def gradients(self, indices: Tensor) -> float:
        """Put the gradients of the batch's mean loss into the parameters; returns the loss.

        Micro-batches are weighted by their sizes, so accumulation changes rounding only.
        """
        self.optimizer.zero_grad(set_to_none=True)
        pieces = -(-len(indices) // self.micro_batch)
        chunks = torch.tensor_split(indices, pieces)
        with user_code("loading a training batch raised"):
            batches = [self.fetch_train(chunk) for chunk in chunks]
            weights = [
                self._weight(batch, chunk) for batch, chunk in zip(batches, chunks, strict=True)
            ]
        total = sum(weights)
        mean = 0.0
        for batch, weight in zip(batches, weights, strict=True):
            share = weight / total
            with user_code("the training step raised"), self._statistics():
                loss = self._loss(self._move(batch))
                (loss if pieces == 1 else loss * share).backward()  # type: ignore[no-untyped-call]
            mean += loss.item() * share
        return mean

    def step(self, indices: Tensor) -> float:
        """One optimizer step on a batch; returns its loss before the step.

        A curvature estimate that is due folds in the gradients of this same batch: a general loss
        gives no labels to sample. An optimizer of two passes (SAM) sees the batch twice.
        """
        if self.optimizer.passes > 1:
            return float(self.optimizer.step(lambda: self.gradients(indices)))
        loss = self.gradients(indices)
        if self.optimizer.hessian_due:
            self.optimizer.update_hessian()
        self.optimizer.step()
        return loss

    def tell_schedule(self, loss: float) -> None:
        """Report a validation loss to a schedule that waits for one."""
        if isinstance(self.optimizer.schedule, optimizers.schedules.plateau):
            self.optimizer.report(loss)

    @torch.no_grad()
    def evaluate(self, max_batches: int | None = None) -> dict[str, float]:
        """The loss and the task's metrics on the validation data (its first batches), in eval mode.

        Random numbers drawn here do not move the training run.
        """
        sums: dict[str, Any] = {}
        weights = 0.0
        whole: dict[str, Any] = {}
        with preserved_rng(), self._evaluating():
            for batch, weight in self._val_batches(max_batches):
                with user_code("validation raised"):
                    for name, value in self._measure(batch).items():
                        sums[name] = sums.get(name, 0.0) + value * weight
                weights += weight
            if self.task.evaluate is not None:
                with user_code("evaluate raised"):
                    batches = (batch for batch, _ in self._val_batches(max_batches))
                    whole = _numbers("evaluate", self.task.evaluate(self.model, batches))
        means = {name: value / weights for name, value in sums.items()}
        return {name: float(value) for name, value in (means | whole).items()}

    def _val_batches(self, at_most: int | None) -> Iterator[tuple[Any, float]]:
        """Each validation batch on the device, and its weight."""
        for chunk in torch.split(torch.arange(self.val_size), self.val_batch)[:at_most]:
            with user_code("loading a validation batch raised"):
                batch = self.fetch_val(chunk)
                weight = self._weight(batch, chunk)
            yield self._move(batch), weight

    @torch.no_grad()
    def measure(self, indices: Tensor, *, val: bool = False) -> float:
        """Mean loss of training or validation examples at the present point, mode as it is."""
        size = min(self.micro_batch, self.val_batch) if val else self.micro_batch
        total = weights = 0.0
        for chunk in torch.split(indices, size):
            with user_code("loading a batch raised"):
                batch = (self.fetch_val if val else self.fetch_train)(chunk)
                weight = self._weight(batch, chunk)
            with user_code("the loss raised"):
                total += self._loss(self._move(batch)).item() * weight
            weights += weight
        return total / weights

    def _measure(self, batch: Any) -> dict[str, Any]:
        metrics = {} if self.task.metrics is None else self.task.metrics(self.model, batch)
        return {"loss": self._loss(batch).double(), **_numbers("metrics", metrics)}

    def _loss(self, batch: Any) -> Tensor:
        return one_number(self.task.loss(self.model, batch), TypeError)

    def _weight(self, batch: Any, indices: Tensor) -> float:
        of = self.task.batch_size_of
        weight = float(len(indices) if of is None else of(batch))
        if not 0 < weight < math.inf:
            raise ValueError(f"batch_size_of must return a number above 0, not {weight:g}")
        return weight

    def _move(self, batch: Any) -> Any:
        return batch if self.device.type == "cpu" else data.to_device(batch, self.device)

    def _statistics(self) -> contextlib.AbstractContextManager[None]:
        """Lets BatchNorm follow the first of several passes only."""
        if self.optimizer.passes == 1:
            return contextlib.nullcontext()
        return self.optimizer.statistics(self.model)  # type: ignore[no-any-return, attr-defined]

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Eval mode of the model, and of an optimizer that evaluates at another point."""
        self.model.eval()
        _call(self.optimizer, "eval")
        try:
            yield
        finally:
            _call(self.optimizer, "train")
            self.model.train()


def _call(owner: object, method: str) -> None:
    getattr(owner, method, lambda: None)()


def _numbers(function: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What the task's `function` returned, each value as `_scalar` has it."""
    if not isinstance(metrics, Mapping):
        raise TypeError(f"{function} must return a dict, not {type(metrics).__name__}")
    for name in metrics:
        if not isinstance(name, str):
            raise TypeError(f"{function}: the name of a metric must be text, not {name!r}")
    return {name: _scalar(name, value) for name, value in metrics.items()}


def _scalar(name: str, value: Any) -> Any:
    """A metric's value in double precision, left on its device."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise TypeError(f"metric {name!r} must be one number, not {tuple(value.shape)}")
        return value.detach().reshape(()).double()
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"metric {name!r} must be one number, not {value!r}") from None


def require_metric(name: str, metrics: Collection[str]) -> None:
    """Raises UsageError when the task has no such metric."""
    if name not in metrics:
        raise UsageError(f"metric {name!r}: the task has {', '.join(sorted(metrics))}")
