"""What else a user could pick for a rule: one row per optimizer of another library.

Every peer steps after torch's ``clip_grad_norm_``. Arguments make it the same rule as ours, or the
nearest that does the same work; where the libraries disagree on details (HeavyBall's eps is a
bound, timm's NAdamW has another schedule) the work per entry is still the same.
"""

from __future__ import annotations

import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import nn

from benchmarks.models import Named, is_hidden

MODULES = {
    "torch": "torch.optim",
    "pytorch_optimizer": "pytorch_optimizer",
    "timm": "timm",
    "optimi": "optimi",
    "heavyball": "heavyball",
}


class Stepper(Protocol):
    """All that the benchmark needs of an optimizer."""

    def step(self) -> Any: ...


@dataclass(frozen=True)
class Peer:
    """One class of a library, with the arguments that make it do the rule's work.

    ``variants`` maps how it runs to arguments that choose it. ``path`` is ``Class`` or
    ``module.Class`` inside the library; ``build`` replaces the ordinary call ``Class(params)``.
    """

    library: str
    path: str
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"eager": {}})
    arguments: Mapping[str, Any] = field(default_factory=dict)
    build: Callable[[Callable[..., Any], Named, dict[str, Any]], Stepper] | None = None

    def make(self, variant: str, named: Named) -> Stepper:
        """The optimizer over these parameters."""
        kind = load(self.library, self.path)
        arguments = {**self.arguments, **self.variants[variant]}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if self.build is not None:
                return self.build(kind, named, arguments)
            return kind([param for _, param in named], **arguments)


@cache
def installed(library: str) -> bool:
    """Whether a library can be imported."""
    return importlib.util.find_spec(MODULES[library].split(".")[0]) is not None


def load(library: str, path: str) -> Callable[..., Any]:
    """A class of a library."""
    if library == "timm":
        return getattr(import_module(f"{timm_optim()}.{path.split('.')[0]}"), path.split(".")[1])
    return getattr(import_module(MODULES[library]), path)


def timm_optim() -> str:
    """timm's package of optimizers, without the rest of timm, which would need torchvision."""
    if "timm" not in sys.modules:
        spec = importlib.util.find_spec("timm")
        assert spec is not None
        assert spec.submodule_search_locations
        home = spec.submodule_search_locations[0]
        for name, place in (("timm", home), ("timm.optim", f"{home}/optim")):
            package = types.ModuleType(name)
            package.__path__ = [place]
            sys.modules[name] = package
    return "timm.optim"


def torch_peer(path: str, *variants: str, **arguments: Any) -> Peer:
    choices = {
        "for-loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True},
    }  # fmt: skip
    return Peer("torch", path, {name: choices[name] for name in variants}, arguments)


def lists(library: str, path: str, **arguments: Any) -> Peer:
    """A class that runs as a loop or over lists."""
    fixed = {"triton": False} if library == "optimi" else {}
    variants = {"for-loop": {"foreach": False, **fixed}, "foreach": {"foreach": True, **fixed}}
    return Peer(library, path, variants, arguments)


class HeavyBall:
    """An optimizer of HeavyBall, compiled or not: a global of its module says so for its parts."""

    def __init__(self, build: Callable[[], Stepper], *, compiled: bool) -> None:
        self.utils = import_module("heavyball.utils")
        self.mode = self.utils.compile_mode or "max-autotune-no-cudagraphs" if compiled else None
        self.utils.compile_mode = self.mode
        self.optimizer = build()

    def step(self) -> None:
        self.utils.compile_mode = self.mode
        self.optimizer.step()


def heavy(kind: Callable[..., Any], named: Named, arguments: dict[str, Any]) -> Stepper:
    params = [param for _, param in named]
    return HeavyBall(lambda: kind(params, **arguments), compiled=arguments["compile_step"])


def heavyball(
    path: str,
    build: Callable[[Callable[..., Any], Named, dict[str, Any]], Stepper] = heavy,
    **arguments: Any,
) -> Peer:
    variants = {"eager": {"compile_step": False}, "compiled": {"compile_step": True}}
    return Peer("heavyball", path, variants, arguments, build)


class Pair:
    """Two optimizers that share the parameters of a model."""

    def __init__(self, first: Stepper, second: Stepper) -> None:
        self.both = (first, second)

    def step(self) -> None:
        for optimizer in self.both:
            optimizer.step()


def split(named: Named) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters that Muon is meant for, and the others."""
    hidden = [param for name, param in named if is_hidden(name, param)]
    others = [param for name, param in named if not is_hidden(name, param)]
    return hidden, others


def torch_muon(kind: Callable[..., Any], named: Named, arguments: dict[str, Any]) -> Stepper:
    hidden, others = split(named)
    if any(param.dim() != 2 for param in hidden):
        raise ValueError("torch's Muon takes no convolutions")
    return Pair(kind(hidden, **arguments), torch.optim.AdamW(others, lr=3e-4, fused=True))


def grouped_muon(kind: Callable[..., Any], named: Named, arguments: dict[str, Any]) -> Stepper:
    hidden, others = split(named)
    groups = ({"params": hidden, "use_muon": True}, {"params": others, "use_muon": False})
    return kind([group for group in groups if group["params"]], **arguments)


def marked_muon(kind: Callable[..., Any], named: Named, arguments: dict[str, Any]) -> Stepper:
    hidden, others = split(named)
    return kind([{"params": hidden}, {"params": others, "use_fallback": True}], **arguments)


def heavy_muon(kind: Callable[..., Any], named: Named, arguments: dict[str, Any]) -> Stepper:
    hidden, others = split(named)
    compiled = arguments["compile_step"]
    plain = load("heavyball", "AdamW")
    return Pair(
        HeavyBall(lambda: kind(hidden, **arguments), compiled=compiled),
        HeavyBall(lambda: plain(others, compile_step=compiled), compiled=compiled),
    )


class GivenHessian:
    """SophiaH between two of its Hessian estimates, which are no part of our step either."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer, self.first = optimizer, True

    def step(self) -> None:
        params = self.optimizer.param_groups[0]["params"]
        hessian = [torch.ones_like(param) for param in params] if self.first else None
        self.first = False
        self.optimizer.step(hessian=hessian)


def sophia(kind: Callable[..., Any], named: Named, arguments: dict[str, Any]) -> Stepper:
    return GivenHessian(kind([param for _, param in named], update_period=10**9, **arguments))


TORCH = ("for-loop", "foreach")
FUSED = (*TORCH, "fused")
PO = "pytorch_optimizer"

PEERS: Mapping[str, tuple[Peer, ...]] = {
    "sgd": (
        torch_peer("SGD", *FUSED, lr=1e-2, momentum=0.9),
        lists("optimi", "SGD", lr=1e-2, momentum=0.9),
        lists("timm", "sgdw.SGDW", lr=1e-2, momentum=0.9),
        heavyball("SGD"),
    ),
    "adagrad": (torch_peer("Adagrad", *FUSED),),
    "rmsprop": (
        torch_peer("RMSprop", *TORCH, lr=1e-3),
        lists("timm", "rmsprop_tf.RMSpropTF", lr=1e-3),
        heavyball("RMSprop"),
    ),
    "adam": (torch_peer("Adam", *FUSED), lists("optimi", "Adam", lr=1e-3), heavyball("AdamW")),
    "adamw": (
        torch_peer("AdamW", *FUSED),
        lists("optimi", "AdamW", lr=1e-3),
        lists("timm", "adamw.AdamWLegacy"),
        heavyball("AdamW", weight_decay=0.01),
    ),
    "nadam": (
        torch_peer("NAdam", *TORCH), Peer("timm", "nadam.NAdamLegacy"), heavyball("NAdam")
    ),
    "nadamw": (
        torch_peer("NAdam", *TORCH, decoupled_weight_decay=True, weight_decay=1e-2),
        lists("timm", "nadamw.NAdamW"),
        heavyball("NAdam", decoupled_weight_decay=True, weight_decay=1e-2),
    ),
    "amsgrad": (
        torch_peer("Adam", *FUSED, amsgrad=True), lists("timm", "adamw.AdamWLegacy", amsgrad=True)
    ),
    "adabelief": (
        lists(PO, "AdaBelief"), lists("timm", "adabelief.AdaBelief", rectify=False)
    ),
    "radam": (
        torch_peer("RAdam", *TORCH), lists(PO, "RAdam"), lists("optimi", "RAdam", lr=1e-3),
        Peer("timm", "radam.RAdamLegacy"),
    ),
    "adan": (
        lists(PO, "Adan"), lists("optimi", "Adan", lr=1e-3), lists("timm", "adan.Adan")
    ),
    "adopt": (lists(PO, "ADOPT"), lists("timm", "adopt.Adopt"), heavyball("ADOPT")),
    "ademamix": (lists(PO, "AdEMAMix"), heavyball("AdEMAMix")),
    "lion": (
        lists(PO, "Lion"), lists("optimi", "Lion", lr=1e-4), lists("timm", "lion.Lion")
    ),
    "lamb": (
        lists(PO, "Lamb", weight_decay=0.01), lists("timm", "lamb.Lamb", max_grad_norm=None)
    ),
    "lars": (
        lists(PO, "LARS", weight_decay=1e-4),
        lists("timm", "lars.Lars", momentum=0.9, weight_decay=1e-4),
    ),
    "adafactor": (
        torch_peer("Adafactor", *TORCH),
        lists(PO, "AdaFactor", betas=(None, 0.999)),
        Peer("timm", "adafactor.Adafactor"),
    ),
    "sophia": (
        Peer(
            PO, "SophiaH", {"for-loop": {"foreach": False}, "foreach": {"foreach": True}},
            build=sophia,
        ),
    ),
    "schedulefree_sgd": (lists(PO, "ScheduleFreeSGD"),),
    "schedulefree_adamw": (lists(PO, "ScheduleFreeAdamW"), heavyball("SFAdamW")),
    "prodigy": (lists(PO, "Prodigy"),),
    "muon": (
        Peer("torch", "Muon", {"for-loop": {}}, build=torch_muon),
        Peer(
            PO, "Muon",
            {
                "for-loop": {"foreach": False},
                "foreach": {"foreach": True},
                "foreach, Gram form": {"foreach": True, "ns_method": "gram_newton_schulz"},
            },
            build=grouped_muon,
        ),
        Peer("timm", "muon.Muon", {"for-loop": {}}, {"nesterov": True}, build=marked_muon),
        heavyball("Muon", heavy_muon),
    ),
    "soap": (
        Peer(PO, "SOAP", {"for-loop": {}}),
        heavyball(
            "SOAP", precondition_frequency=10, max_precond_dim=10_000, merge_dims=False,
            use_precond_schedule=False,
        ),
    ),
}  # fmt: skip

# What torch's fused kernel is compared with where a rule has none of its own.
FUSED_ADAMW = torch_peer("AdamW", "fused")


def entrants(rule: str, compiled: bool) -> Iterator[tuple[Peer, str]]:
    """Every installed peer of a rule and every way in which it runs."""
    for peer in PEERS.get(rule, ()):
        if installed(peer.library):
            for variant in peer.variants:
                if compiled or variant != "compiled":
                    yield peer, variant


def missing() -> list[str]:
    """Libraries that are not installed, whose columns stay empty."""
    return [library for library in MODULES if not installed(library)]
