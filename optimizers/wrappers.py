"""SAM, ASAM and Lookahead: what can be put around any optimizer.

Foret, Kleiner, Mobahi, Neyshabur, "Sharpness-Aware Minimization for Efficiently Improving
Generalization", ICLR 2021, https://arxiv.org/abs/2010.01412. Kwon, Kim, Park, Choi, "ASAM", ICML
2021, https://arxiv.org/abs/2102.11600. Zhang, Lucas, Hinton, Ba, "Lookahead Optimizer: k steps
forward, 1 step back", NeurIPS 2019, https://arxiv.org/abs/1907.08610.

A wrapper shares ``param_groups`` and ``state`` with the optimizer in its ``base``, passes on every
attribute that it does not have (``current_lr``, ``last_grad_norm``, ``eval()``...), and keeps its
own numbers in the groups, so that they are saved. A base's argument of the same name (Sophia's
``rho``) is set in its groups. ``passes`` says how often a step calls its closure:

    def closure():
        opt.zero_grad()
        with opt.statistics(model):  # BatchNorm counts the first pass only
            loss = model(inputs)
        loss.backward()
        return loss

    opt = SAM(model.parameters(), base="sgd", lr=0.1, momentum=0.9, rho=0.05)
    opt.step(closure)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from optimizers.base import TorchOptimizer
from optimizers.clipping import float_norms
from optimizers.construct import from_rule
from optimizers.core import Hyper, Option
from optimizers.precision import compute_dtype

Base = str | Callable[..., torch.optim.Optimizer]
Group = dict[str, Any]


class Wrapper(TorchOptimizer):
    """What wrappers share; ``own`` are the values of ``hypers``, ``base_args`` are the base's."""

    prefix: ClassVar[str]
    hypers: ClassVar[Mapping[str, Hyper | Option]]

    def __init__(
        self, params: Any, base: Base, own: Mapping[str, Any], base_args: Mapping[str, Any]
    ) -> None:
        owner = type(self).__name__
        for name, row in self.hypers.items():
            row.validate(owner, name, own[name])
        self.own = {f"{self.prefix}_{name}": value for name, value in own.items()}
        self.base = build(base, params, base_args)
        super().__init__(self.base.param_groups, self.base.defaults)
        self._link()

    def _link(self) -> None:
        self.param_groups = self.base.param_groups
        self.state = self.base.state
        for group in self.param_groups:
            for name, value in self.own.items():
                group.setdefault(name, value)

    @property
    def passes(self) -> int:
        """How often one step calls its closure."""
        return int(getattr(self.base, "passes", 1))

    def add_param_group(self, param_group: Group) -> None:
        """Add a group to the base; its own groups are there already."""
        if any(param_group is group for group in self.base.param_groups):
            return
        self.base.add_param_group(param_group)
        self._link()

    def state_dict(self) -> dict[str, Any]:
        """The base's checkpoint; the wrapper's numbers are in its groups."""
        return self.base.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a checkpoint of this wrapper, or of the base alone."""
        self.base.load_state_dict(dict(state_dict))
        self._link()

    def __getattr__(self, name: str) -> Any:
        if name == "base" or name.startswith("__"):  # not there yet while unpickling
            raise AttributeError(name)
        return getattr(self.base, name)

    def __getstate__(self) -> dict[str, Any]:
        # hooks, and the step that an LR scheduler has wrapped, belong to this object alone
        left = {key for key in self.__dict__ if key.endswith("_hooks")} | {"step"}
        return {key: value for key, value in self.__dict__.items() if key not in left}


def build(base: Base, params: Any, arguments: Mapping[str, Any]) -> torch.optim.Optimizer:
    """The optimizer inside: a rule or wrapper by name, or whatever ``base(params, ...)`` makes."""
    if not isinstance(base, str):
        return base(params, **arguments)
    if base in WRAPPERS:
        return WRAPPERS[base](params, **arguments)
    return from_rule(base, params, **arguments)


def present(groups: Iterable[Group]) -> Iterator[tuple[Group, Tensor, Tensor]]:
    """Group, parameter and dense gradient of everything that has a gradient."""
    for group in groups:
        for param in group["params"]:
            if param.grad is not None:
                grad = param.grad.to_dense() if param.grad.is_sparse else param.grad
                yield group, param, grad.to(compute_dtype(grad.dtype))


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Within it BatchNorm normalises by the batch as ever, but its running statistics stay."""
    layers = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats
    ]
    training = [layer for layer in layers if layer.training]
    for layer in training:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in training:
            layer.track_running_stats = True


class SAM(Wrapper):
    """The gradient at the worst point within ``rho``, found by one step uphill; two passes.

    e = rho·g/(||g|| + 1e-12) over all groups, adaptive: e = rho·p²·g/(||p·g|| + 1e-12); the base
    then steps from p with the gradient at p + e. Clipping, schedule and skipping are the base's
    and see this second gradient.

    When: vision models and fine-tuning that overfit, if twice the time per step is affordable.
    Source: Foret et al., ICLR 2021, https://arxiv.org/abs/2010.01412; adaptive: Kwon et al., ICML
    2021, https://arxiv.org/abs/2102.11600.
    """

    prefix = "sam"
    hypers: ClassVar[Mapping[str, Hyper | Option]] = {
        "rho": Hyper(
            0.05, 0.01, 0.2, log=True, priority=1, at_least=0.0,
            doc="size of the step uphill", source="AlgoPerf 0.01, 0.02, 0.05; authors 0.05",
        ),
        "adaptive": Option(False, (False, True), "measure the step relative to each entry (ASAM)"),
    }  # fmt: skip

    def __init__(
        self,
        params: Any,
        base: Base = "sgd",
        rho: float = 0.05,
        adaptive: bool = False,
        **base_args: Any,
    ) -> None:
        self._origins: list[tuple[Tensor, Tensor]] = []
        super().__init__(params, base, {"rho": rho, "adaptive": adaptive}, base_args)

    @property
    def passes(self) -> int:
        """Two: at the parameters, and uphill."""
        return 2

    @property
    def perturbed(self) -> bool:
        """Whether the parameters are uphill, between the two passes."""
        return bool(self._origins)

    def statistics(self, model: nn.Module) -> AbstractContextManager[None]:
        """For the forward pass in a closure: BatchNorm's statistics follow the first pass only."""
        return frozen_statistics(model) if self.perturbed else nullcontext()

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        """Move the parameters uphill; a gradient that is not finite leaves them to the base.

        Raises RuntimeError when they are uphill already.
        """
        if self.perturbed:
            raise RuntimeError("SAM: call second_step() before the next first_step()")
        rows = list(present(self.param_groups))
        adaptive = [(param.abs() if group["sam_adaptive"] else 1.0) for group, param, _ in rows]
        scaled = [grad * size for (_, _, grad), size in zip(rows, adaptive, strict=True)]
        norm = math.hypot(*float_norms(scaled))
        reach = 1 / (norm + 1e-12) if math.isfinite(norm) else 0.0
        for (group, param, _), one, size in zip(rows, scaled, adaptive, strict=True):
            self._origins.append((param, param.detach().clone()))
            sign = -1.0 if group.get("maximize") else 1.0
            if reach:
                param.copy_(param + one * size * (sign * group["sam_rho"] * reach))
        if zero_grad:
            self.zero_grad()

    def second_step(self, zero_grad: bool = False) -> None:
        """Put the parameters back, exactly, and let the base step with the present gradients."""
        self._restore()
        self.base.step()
        self._opt_called = True  # LR schedulers look for it
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def _restore(self) -> None:
        for param, origin in self._origins:
            param.copy_(origin)
        self._origins = []

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Both passes; returns the loss of the first.

        ``closure`` clears the gradients, computes the loss, calls ``backward()`` and returns the
        loss. When it fails, the parameters are back where they were. Raises TypeError without it.
        """
        if closure is None:
            raise TypeError("SAM: step() needs a closure, or call first_step() and second_step()")
        with torch.enable_grad():
            loss = closure()
        self.first_step()
        try:
            with torch.enable_grad():
                closure()
        finally:
            self._restore()
        self.base.step()
        return loss


class ASAM(SAM):
    """SAM with ``adaptive=True`` and the larger ``rho`` that goes with it."""

    def __init__(self, params: Any, base: Base = "sgd", rho: float = 2.0, **base_args: Any) -> None:
        super().__init__(params, base, rho, True, **base_args)


class Lookahead(Wrapper):
    """Every ``k`` steps of the base the slow weights follow, and the parameters return to them.

    slow += alpha·(p - slow); p = slow. A step that the base skips does not count.

    When: a base that is noisy or hard to tune; costs one copy of the parameters.
    Source: Zhang et al., NeurIPS 2019, https://arxiv.org/abs/1907.08610.
    """

    prefix = "lookahead"
    hypers: ClassVar[Mapping[str, Hyper | Option]] = {
        "k": Hyper(
            5, 5, 20, integer=True, priority=2, at_least=1,
            doc="steps of the base for one of the slow weights", source="authors: 5, 10, 20",
        ),
        "alpha": Hyper(
            0.5, 0.2, 0.8, priority=2, at_least=0.0, at_most=1.0,
            doc="how far the slow weights follow", source="authors: 0.5, 0.8",
        ),
    }  # fmt: skip

    def __init__(
        self, params: Any, base: Base = "sgd", k: int = 5, alpha: float = 0.5, **base_args: Any
    ) -> None:
        self.slow: dict[Tensor, Tensor] = {}
        super().__init__(params, base, {"k": k, "alpha": alpha}, base_args)

    def _link(self) -> None:
        super()._link()
        for group in self.param_groups:
            group.setdefault("lookahead_steps", 0)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """A step of the base and, every ``k`` steps, of the slow weights."""
        for group in self.param_groups:
            for param in group["params"]:
                if param not in self.slow:
                    wide = compute_dtype(param.dtype)
                    self.slow[param] = param.detach().to(wide, copy=True)
        skipped = getattr(self.base, "skipped_steps", 0)
        loss = self.base.step(closure)
        if getattr(self.base, "skipped_steps", 0) == skipped:
            self._follow()
        return loss

    @torch.no_grad()
    def _follow(self) -> None:
        for group in self.param_groups:
            group["lookahead_steps"] += 1
            if group["lookahead_steps"] % group["lookahead_k"]:
                continue
            for param in group["params"]:
                slow = self.slow[param]
                slow.lerp_(param.to(slow.dtype), group["lookahead_alpha"])
                param.copy_(slow)

    def state_dict(self) -> dict[str, Any]:
        """The base's checkpoint, with ``slow_param`` in the state of each parameter."""
        saved = self.base.state_dict()
        state = dict(saved["state"])
        for number, param in self._numbered(saved):
            if param in self.slow:
                state[number] = {**state.get(number, {}), "slow_param": self.slow[param]}
        return {**saved, "state": state}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a checkpoint of this wrapper, or of the base alone; shares nothing with it."""
        states = {number: dict(state) for number, state in state_dict["state"].items()}
        slow = {number: state.pop("slow_param", None) for number, state in states.items()}
        kept = {number: state for number, state in states.items() if state}
        super().load_state_dict({**state_dict, "state": kept})
        self.slow = {
            param: slow[number].to(param.device, copy=True)
            for number, param in self._numbered(state_dict)
            if slow.get(number) is not None
        }

    def _numbered(self, saved: Mapping[str, Any]) -> Iterator[tuple[int, Tensor]]:
        numbers = [number for group in saved["param_groups"] for number in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        return zip(numbers, params, strict=True)


WRAPPERS: dict[str, type[Wrapper]] = {"sam": SAM, "asam": ASAM, "lookahead": Lookahead}
