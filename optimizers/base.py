"""`torch.optim.Optimizer` that does not import torch._dynamo.

torch guards four methods against `torch.compile`, and the guard's first call imports torch._dynamo,
which takes as long as torch itself. Where nothing is being compiled, nothing needs the guard.

Around every step torch tells a profiler and runs hooks. Where there are neither, that takes longer
than the step of a small model, and is left out. What watches operators without a profiler
(torch's ExecutionTraceObserver alone) does not see a step by its name.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch.optim import optimizer as of_torch

Method = TypeVar("Method", bound=Callable[..., Any])


def guarded_only_in_compile(guarded: Method) -> Method:
    """A method of torch's that goes through its guard only while `torch.compile` reads it."""
    plain = getattr(guarded, "__wrapped__", guarded)

    @wraps(plain)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return (guarded if torch.compiler.is_compiling() else plain)(self, *args, **kwargs)

    return cast(Method, method)


def watched(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a profiler or a hook wants to know of an optimizer's steps."""
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or of_torch._global_optimizer_pre_hooks
        or of_torch._global_optimizer_post_hooks
        or torch._C._autograd._profiler_enabled()
    )


def without_grad(call: Callable[[], None]) -> None:
    """Call as under `torch.no_grad`, which itself takes as long as the update of a small model."""
    before = torch.is_grad_enabled()
    torch._C._set_grad_enabled(False)
    try:
        call()
    finally:
        torch._C._set_grad_enabled(before)


class TorchOptimizer(torch.optim.Optimizer):
    """What optimizers and wrappers inherit from torch."""

    @staticmethod
    def profile_hook_step(func: Method) -> Method:
        """What torch makes of each class's ``step``: one that tells whoever watches it."""
        telling = torch.optim.Optimizer.profile_hook_step(func)

        @wraps(func)
        def step(self: Any, *args: Any, **kwargs: Any) -> Any:
            return (telling if watched(self) else func)(self, *args, **kwargs)

        return cast(Method, step)

    add_param_group = guarded_only_in_compile(torch.optim.Optimizer.add_param_group)
    load_state_dict = guarded_only_in_compile(torch.optim.Optimizer.load_state_dict)
    state_dict = guarded_only_in_compile(torch.optim.Optimizer.state_dict)
    zero_grad = guarded_only_in_compile(torch.optim.Optimizer.zero_grad)
