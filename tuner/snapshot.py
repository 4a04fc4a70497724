"""Everything that trying out training changes, kept and put back bit by bit."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tuner.seeding import preserved_rng

Restore = Callable[[], None]
# What a module keeps its tensors and submodules in; they are kept one by one.
_MODULE_TABLES = ("_parameters", "_buffers", "_modules")
# Handles of hooks hold on to the very dictionaries of a module, so these stay.
_MODULES_OWN = frozenset(vars(nn.Module()))


@contextlib.contextmanager
def preserved(
    model: nn.Module, optimizer: torch.optim.Optimizer, *others: Any
) -> Iterator[Restore]:
    """Model, optimizer and all random generators are afterwards as before, also after exceptions.

    Covers parameters, their gradients, all buffers and train or eval mode, plain attributes of
    modules; the optimizer's state, groups and attributes, and those of optimizers inside it; the
    generators of Python, NumPy and PyTorch; of `others` (loaders, a scaler) the generators, the
    position of samplers, and what `state_dict` says. Parameters keep their identity. Yields a
    function that puts everything but the global generators back at once, as often as wanted.
    """
    restore = snapshot(model, optimizer, *others)
    with preserved_rng():
        try:
            yield restore
        finally:
            restore()


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer, *others: Any) -> Restore:
    """A function that puts everything back, except the global random generators."""
    parts = [_module(module) for module in model.modules()]
    parts += [_optimizer(each) for each in nested(optimizer)]
    parts += [_feeder(each) for each in _feeders(others)]

    def restore() -> None:
        with torch.no_grad():
            for part in parts:
                part()

    return restore


def nested(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """The optimizer and those that it wraps."""
    inner = [each for each in vars(optimizer).values() if isinstance(each, torch.optim.Optimizer)]
    return [optimizer, *(found for each in inner for found in nested(each))]


def _module(module: nn.Module) -> Restore:
    """Tensors are written back in place, and a tensor that was replaced is put back, too."""
    tables = [(getattr(module, name), dict(getattr(module, name))) for name in _MODULE_TABLES]
    tensors = [t for _, table in tables[:2] for t in table.values() if t is not None]
    kept = [_tensor(tensor) for tensor in tensors]
    attributes = _attributes(module, leave=_MODULES_OWN)
    training = module.training

    def restore() -> None:
        for table, content in tables:
            if table.keys() != content.keys() or any(table[k] is not content[k] for k in content):
                table.clear()
                table.update(content)
        for each in kept:
            each()
        attributes()
        module.training = training

    return restore


def _tensor(tensor: Tensor) -> Restore:
    value, grad = tensor.detach().clone(), tensor.grad
    grad_value = None if grad is None else grad.detach().clone()

    def restore() -> None:
        tensor.copy_(value)
        tensor.grad = grad
        if grad is not None and grad_value is not None:
            grad.copy_(grad_value)

    return restore


def _optimizer(optimizer: torch.optim.Optimizer) -> Restore:
    hooks = {name for name in vars(optimizer) if name.endswith("_hooks")}
    attributes = _attributes(optimizer, leave=frozenset({"state", "param_groups", *hooks}))
    groups = [
        (group, {name: _copy(value) for name, value in group.items() if name != "params"})
        for group in optimizer.param_groups
    ]
    listed = list(optimizer.param_groups)
    state = {param: _copy(dict(value)) for param, value in optimizer.state.items()}

    def restore() -> None:
        attributes()
        optimizer.param_groups[:] = listed
        for group, values in groups:
            params = group["params"]
            group.clear()
            group.update({"params": params, **_copy(values)})
        optimizer.state.clear()
        optimizer.state.update({param: _copy(value) for param, value in state.items()})

    return restore


def _feeder(owner: Any) -> Restore:
    """A loader, sampler, data set or scaler: by its own `state_dict`, else by its attributes."""
    if hasattr(owner, "state_dict") and hasattr(owner, "load_state_dict"):
        saved = copy.deepcopy(owner.state_dict())
        return lambda: owner.load_state_dict(copy.deepcopy(saved))
    generators = [_generator(value) for value in getattr(owner, "__dict__", {}).values()]
    attributes = _attributes(owner, leave=frozenset({"_iterator"}), keep=_is_small)
    # workers that outlive an epoch (`persistent_workers`) keep their position there
    alive = getattr(owner, "_iterator", None)

    def restore() -> None:
        attributes()
        for generator in generators:
            generator()
        if "_iterator" in getattr(owner, "__dict__", {}):
            owner._iterator = alive

    return restore


def _feeders(others: tuple[Any, ...]) -> list[Any]:
    """Loaders with their samplers and data sets, each object once."""
    found: dict[int, Any] = {}
    waiting = [each for each in others if each is not None]
    while waiting:
        owner = waiting.pop()
        if id(owner) in found or isinstance(owner, (list, tuple, Tensor, nn.Module)):
            continue
        found[id(owner)] = owner
        parts = ("sampler", "batch_sampler", "dataset", "datasets")
        for name in parts:
            part = getattr(owner, name, None)
            waiting += part if isinstance(part, (list, tuple)) else [] if part is None else [part]
    return list(found.values())


def _generator(value: Any) -> Restore:
    if isinstance(value, torch.Generator):
        state = value.get_state()
        return lambda: _ignore(value.set_state(state))
    if isinstance(value, random.Random):
        numbers = value.getstate()
        return lambda: value.setstate(numbers)
    if isinstance(value, np.random.Generator):
        bits: Any = value.bit_generator
        position = copy.deepcopy(bits.state)
        return lambda: setattr(bits, "state", copy.deepcopy(position))
    if isinstance(value, np.random.RandomState):
        legacy = value.get_state()
        return lambda: value.set_state(legacy)
    return lambda: None


def _ignore(_: Any) -> None:
    return None


def _attributes(
    owner: Any, leave: frozenset[str], keep: Callable[[Any], bool] | None = None
) -> Restore:
    """Attributes made of plain data; what appeared since then is taken away again."""
    table: dict[str, Any] = getattr(owner, "__dict__", {})
    keep = keep or _is_data
    before = {name: value for name, value in table.items() if name not in leave}
    saved = {name: _copy(value) for name, value in before.items() if keep(value)}

    def restore() -> None:
        for name in table.keys() - before.keys() - leave:
            del table[name]
        for name, original in before.items():
            table[name] = _written(original, saved[name]) if name in saved else original

    return restore


def _written(original: Any, saved: Any) -> Any:
    """The original object with its content of before: others may hold it, too."""
    if isinstance(original, Tensor):
        original.detach().copy_(saved)
    elif isinstance(original, dict):
        original.clear()
        original.update(_copy(saved))
    elif isinstance(original, list):
        original[:] = _copy(saved)
    return original


def _is_data(value: Any) -> bool:
    """Numbers, texts, tensors and containers of them: what a step may change in place."""
    if isinstance(value, dict):
        return all(map(_is_data, value.values()))
    if type(value) in (list, tuple):
        return all(map(_is_data, value))
    return value is None or isinstance(value, (bool, int, float, str, Tensor))


def _is_small(value: Any) -> bool:
    """Plain data without tensors: a position, and not the data set itself."""
    if type(value) in (list, tuple):
        return len(value) < 1000 and all(map(_is_small, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _copy(value: Any) -> Any:
    """A copy that shares nothing that a step may change; keys, such as parameters, stay."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        copied = copy.copy(value)
        copied.update({key: _copy(each) for key, each in value.items()})
        return copied
    if type(value) in (list, tuple):
        return type(value)(map(_copy, value))
    return copy.deepcopy(value)
