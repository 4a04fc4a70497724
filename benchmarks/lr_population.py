"""Whole runs of many learning rates and seeds at once, by `torch.func.vmap`: for the truth.

Overhead dominates models this small, so that 56 runs at once cost little more than a few. The
update is the library's own rule, `optimizers.core.advance`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

import optimizers
from benchmarks.lr_tasks import WARMUP, BenchTask, make_optimizer
from optimizers.core import Values, advance
from tuner.data import stream


def train(
    task: BenchTask,
    optimizer: str,
    lrs: Sequence[float],
    seeds: Sequence[int],
    steps: int,
    held_out: int = 0,
) -> dict[str, Tensor]:
    """Final losses of a warmup+cosine run for every seed and peak learning rate.

    Returns "val", shape (seeds, lrs), and with `held_out` > 0 "train": the mean loss of that many
    training batches after the last one of the run. What has diverged is infinite.
    """
    models, rows = [], []
    for seed in seeds:
        torch.manual_seed(seed)
        model = task.model().train()
        models += [model] * len(lrs)
        order = stream(len(task.train[1]), task.batch_size, seed)
        rows.append([next(order) for _ in range(steps + held_out)])
    params, buffers = stack_module_state(models)
    rates = torch.tensor(list(lrs)).repeat(len(seeds))
    shape = models[0]
    row = make_optimizer(optimizer, shape, 1.0, None)
    values = {id(p): row.hyper(group) for group in row.param_groups for p in group["params"]}
    hypers = {name: values[id(p)] for name, p in shape.named_parameters()}
    rule, schedule = row.rule, optimizers.schedules.warmup_cosine(warmup=WARMUP)

    def loss(p: dict[str, Tensor], b: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return task.criterion(functional_call(shape, (p, b), (x,)), y)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        each = [order[step] for order in rows for _ in lrs]
        index = torch.stack(each)
        return task.train[0][index], task.train[1][index]

    gradients = vmap(grad_and_value(loss))
    state: dict[str, dict[str, Tensor]] = {}
    for name, param in params.items():
        one = rule.state(param[0].detach(), hypers[name])
        state[name] = {key: torch.stack([v] * len(models)) for key, v in one.items()}
    params = {name: param.detach() for name, param in params.items()}
    broken = torch.zeros(len(models), dtype=torch.bool)
    for step in range(steps):
        grads, value = gradients(params, buffers, *batch(step))
        broken |= ~torch.isfinite(value)
        lr = rates * schedule.factor(step, steps)
        for name in params:
            update = functools.partial(_one, rule, hypers[name], float(step + 1))
            params[name], state[name] = vmap(update)(grads[name], params[name], state[name], lr)
    measured = vmap(loss)
    with torch.no_grad():
        val = torch.zeros(len(models), dtype=torch.float64)
        for part in torch.arange(len(task.val[1])).split(64):
            each = vmap(loss, in_dims=(0, 0, None, None))
            losses = each(params, buffers, task.val[0][part], task.val[1][part])
            val += losses.double() * len(part) / len(task.val[1])
        out = {"val": val}
        if held_out:
            later = [measured(params, buffers, *batch(steps + i)) for i in range(held_out)]
            out["train"] = torch.stack(later).double().mean(0)
    for values_ in out.values():
        values_[broken | ~torch.isfinite(values_)] = float("inf")
    return {key: v.view(len(seeds), len(lrs)) for key, v in out.items()}


def _one(
    rule: Any, hyper: Values, t: float, grad: Tensor, param: Tensor, state: Any, lr: Tensor
) -> tuple[Tensor, Any]:
    mine = Values(**{**vars(hyper), "lr": lr})
    return advance(rule, rule.weight_decay_mode, grad, param, state, mine, t)
