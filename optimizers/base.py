"""`torch.optim.Optimizer` that does not import torch._dynamo.

torch guards four methods against `torch.compile`, and the guard's first call imports torch._dynamo,
which takes as long as torch itself. Where nothing is being compiled, nothing needs the guard.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch

Method = TypeVar("Method", bound=Callable[..., Any])


def guarded_only_in_compile(guarded: Method) -> Method:
    """A method of torch's that goes through its guard only while `torch.compile` reads it."""
    plain = getattr(guarded, "__wrapped__", guarded)

    @wraps(plain)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return (guarded if torch.compiler.is_compiling() else plain)(self, *args, **kwargs)

    return cast(Method, method)


class TorchOptimizer(torch.optim.Optimizer):
    """What optimizers and wrappers inherit from torch."""

    add_param_group = guarded_only_in_compile(torch.optim.Optimizer.add_param_group)
    load_state_dict = guarded_only_in_compile(torch.optim.Optimizer.load_state_dict)
    state_dict = guarded_only_in_compile(torch.optim.Optimizer.state_dict)
    zero_grad = guarded_only_in_compile(torch.optim.Optimizer.zero_grad)
