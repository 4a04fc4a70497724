"""Many small training runs at once: the numbers of `tuner.training`, at a tenth of the time.

Runs of one task, optimizer, schedule, batch size and length differ in nothing but numbers, so they
train as one stack of models: parameters (K, P), one update for all. Initial weights, data order,
learning rates and the update rule are the project's own. `check` compares with `tuner.training`.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from optimizers import get_rule, schedules
from optimizers.clipping import norm_scale
from optimizers.core import Values, advance
from optimizers.groups import param_groups
from tuner import data, training
from tuner.records import Evaluation, Failure, Job, Outcome
from tuner.seeding import seed_everything
from tuner.workload import task_of, total_steps

MAX_STACK = 48


def stacks(jobs: Iterable[Job]) -> list[list[Job]]:
    """Jobs that can train together; range tests and checks run alone."""
    together: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        together[_kind(job) if _stackable(job) else job.id].append(job)
    return [
        jobs[start : start + MAX_STACK]
        for jobs in together.values()
        for start in range(0, len(jobs), MAX_STACK)
    ]


def largest_stack(jobs: Iterable[Job]) -> list[Job]:
    """The most jobs that can train together; the others wait for company."""
    return max(stacks(jobs), key=len)


def execute(jobs: Iterable[Job]) -> dict[str, Outcome]:
    """The outcome of every job, by its id."""
    outcomes: list[Outcome] = []
    for stack in stacks(jobs):
        if _stackable(stack[0]):
            outcomes += train_stack(stack)
        else:
            outcomes += [training.run(job, lambda *_: True) for job in stack]
    return {outcome.job_id: outcome for outcome in outcomes}


def _stackable(job: Job) -> bool:
    used = job.configuration
    elementwise = get_rule(used.optimizer).scope == "element" and used.wrapper is None
    others = {"clip_value", "clip_per_layer", "clip_agc"} & used.optimizer_args.keys()
    return job.kind == "train" and job.micro_batch is None and elementwise and not others


def _kind(job: Job) -> str:
    """What runs of one stack have in common."""
    used, shape = job.configuration, sorted(job.configuration.optimizer_args)
    same = [job.task, used.optimizer, shape, used.schedule, used.schedule_args, used.batch_size]
    length = [job.max_steps, job.max_epochs, job.max_examples, job.evaluations, job.metric]
    return json.dumps([*same, *length])


def train_stack(jobs: Sequence[Job]) -> list[Outcome]:
    """Train runs that differ in seeds and in the optimizer's numbers only."""
    first = jobs[0]
    task, used, rule = task_of(first), first.configuration, get_rule(first.configuration.optimizer)
    size = len(task.train)  # type: ignore[arg-type]
    batch_size = min(used.batch_size, size)
    steps = total_steps(first, size, batch_size)
    models = []
    for job in jobs:
        seed_everything(job.seed)
        models.append(task.model())
    model = models[0]
    shapes = {name: p.shape for name, p in model.named_parameters()}
    params = torch.stack(
        [torch.cat([p.detach().flatten() for p in m.parameters()]) for m in models]
    )
    decaying = {n for g in param_groups(model, 1.0) if g["weight_decay"] for n, _ in g["params"]}
    mask = torch.cat([torch.full((s.numel(),), float(n in decaying)) for n, s in shapes.items()])
    flats = [rule.flatten(rule.arguments | rule.pack(j.configuration.optimizer_args)) for j in jobs]
    numbers = {
        name: torch.tensor([[flat[name]] for flat in flats], dtype=torch.float32)
        if name in rule.hypers
        else flats[0][name]
        for name in flats[0]
    }
    numbers["weight_decay"] = numbers["weight_decay"] * mask
    peak = numbers.pop("lr")
    example = Values(**{k: flats[0].get(k) for k in flats[0]})
    state = rule.state(params, example)
    schedule = schedules.create(used.schedule, **used.schedule_args)

    def losses(flat: Tensor, batch: Any) -> Tensor:
        parts = torch.split(flat, [s.numel() for s in shapes.values()])
        named = {n: p.view(s) for (n, s), p in zip(shapes.items(), parts, strict=True)}
        return task.loss(lambda *inputs: functional_call(model, named, inputs), batch)  # type: ignore[arg-type]

    def scores(flat: Tensor, batch: Any) -> Tensor:
        """The loss and the metric that is judged."""
        parts = torch.split(flat, [s.numel() for s in shapes.values()])
        named = {n: p.view(s) for (n, s), p in zip(shapes.items(), parts, strict=True)}

        def call(*inputs: Any) -> Any:
            return functional_call(model, named, inputs)

        found = {"loss": task.loss(call, batch)}  # type: ignore[arg-type]
        if task.metrics is not None and first.metric != "loss":
            found |= task.metrics(call, batch)  # type: ignore[arg-type]
        return torch.stack([found["loss"], found[first.metric]])

    stacked = vmap(losses, in_dims=(0, 0))
    shared = vmap(scores, in_dims=(0, None))
    limits = [j.configuration.optimizer_args.get("clip_norm", math.inf) for j in jobs]
    limit = torch.tensor(limits, dtype=torch.float64)[:, None]
    fetch, fetch_val = data.fetcher(task.train, task.collate), data.fetcher(task.val, task.collate)
    order = _orders(size, batch_size, steps, [job.seed for job in jobs])
    evaluate_at = training.evaluation_steps(steps, first.evaluations)
    val = torch.split(torch.arange(len(task.val)), task.val_batch_size)  # type: ignore[arg-type]
    diverged = torch.zeros(len(jobs), dtype=torch.long)  # step, 0 = not
    curves: list[tuple[int, float, list[float]]] = []
    for step in range(1, steps + 1):
        leaf = params.requires_grad_()
        loss = stacked(leaf, fetch(order[:, step - 1]))
        (grad,) = torch.autograd.grad(loss.sum(), leaf)
        diverged[(diverged == 0) & ~loss.detach().isfinite()] = step
        norm = grad.double().square().sum(1, keepdim=True).sqrt()
        grad = (grad * norm_scale(norm, limit)).to(params.dtype)
        factor = schedule.factor(step - 1, steps)
        hyper = Values(lr=peak * factor, schedule=factor, **numbers)
        with torch.no_grad():
            mode = rule.weight_decay_mode
            params, state = advance(rule, mode, grad, params.detach(), state, hyper, step)
            if step in evaluate_at:
                sums = [shared(params, fetch_val(c)).double() * len(c) for c in val]
                values = torch.stack(sums).sum(0) / sum(map(len, val))  # (K, 2)
                diverged[(diverged == 0) & ~values.isfinite().all(1)] = step
                curves.append((step, factor, values[:, 1].tolist()))
    return [_outcome(job, k, curves, int(diverged[k]), batch_size) for k, job in enumerate(jobs)]


def _orders(size: int, batch_size: int, steps: int, seeds: Sequence[int]) -> Tensor:
    """Indices of the examples, shape (K, steps, batch): `tuner.data.stream` of every seed."""
    epochs = -(-steps * batch_size // size)
    rows = [torch.cat([data.order(size, s, e) for e in range(epochs)]) for s in seeds]
    return torch.stack(rows)[:, : steps * batch_size].reshape(len(seeds), steps, batch_size)


def _outcome(
    job: Job, row: int, curves: list[tuple[int, float, list[float]]], diverged: int, batch_size: int
) -> Outcome:
    """What `tuner.training.run` says of the run, its stop rules included; no training loss."""
    sign = 1.0 if job.direction == "minimize" else -1.0
    evaluations: list[Evaluation] = []
    peak = float(job.configuration.optimizer_args["lr"])
    state, value, steps = "completed", math.nan, 0
    for number, (step, factor, values) in enumerate(curves, start=1):
        if diverged and step >= diverged:
            break
        value, steps = values[row], step
        evaluations.append(
            Evaluation(
                step=step,
                examples=step * batch_size,
                seconds=0.0,
                lr=peak * factor,
                train_loss=0.0,
                grad_norm=0.0,
                metrics={job.metric: value},
            )
        )
        if any(
            r.evaluation == number and sign * value > sign * r.threshold for r in job.stop_rules
        ):
            state = "pruned"
            break
    if diverged and state != "pruned":
        state, steps = "diverged", diverged
    failed = state == "diverged"
    return Outcome(
        job_id=job.id,
        state=state,  # type: ignore[arg-type]
        value=None if failed else value,
        evaluations=evaluations,
        lrs=[peak] * steps,
        failure=Failure(kind="diverged", message=f"at step {diverged}") if failed else None,
        device="cpu",
    )


def check(jobs: Sequence[Job]) -> float:
    """The largest relative difference of a finite value to that of `tuner.training`."""
    together = execute(jobs)
    worst = 0.0
    for job in jobs:
        alone, stacked = training.run(job, lambda *_: True), together[job.id]
        if (alone.value is None) != (stacked.value is None):
            return math.inf
        if alone.value is not None and stacked.value is not None:
            worst = max(worst, abs(stacked.value / alone.value - 1))
    return worst
