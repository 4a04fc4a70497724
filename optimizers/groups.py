"""Parameter groups: which parameters decay, layer-wise learning rates, and who has which rule."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from optimizers.core import Rule

NORM_LAYERS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)
NORM_NAME = re.compile(r"(Batch|Layer|Group|Instance|RMS)Norm|Norm(\d[dD])?$")
DECAY_MODES = ("l2", "decoupled", "independent", "inside")
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises, by type or by a class name such as ``LlamaRMSNorm``."""
    name = type(module).__name__
    return isinstance(module, NORM_LAYERS) or bool(NORM_NAME.search(name))


def owners(model: nn.Module) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Every trainable parameter once per module that holds it: full name, module, parameter."""
    for prefix, module in model.named_modules():
        for name, param in module.named_parameters(recurse=False):
            if param.requires_grad:
                yield f"{prefix}.{name}" if prefix else name, module, param


def decays(name: str, module: nn.Module, param: Tensor, decay_embeddings: bool) -> bool:
    """Whether a parameter should decay: no bias, no normalisation, no vector or scalar."""
    if param.dim() <= 1 or name.endswith("bias") or is_norm(module):
        return False
    return decay_embeddings or not isinstance(module, EMBEDDINGS)


def layer_depths(model: nn.Module) -> dict[str, int]:
    """The depth of every parameter by name: 0 before the blocks, i + 1 in block i, then one more.

    The blocks are the longest ModuleList or Sequential of the model; without one every depth is 0.
    """
    stacks = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
    }
    if not stacks:
        return {name: 0 for name, _, _ in owners(model)}
    blocks = max(stacks, key=lambda name: len(stacks[name]))
    prefix = f"{blocks}." if blocks else ""
    depths: dict[str, int] = {}
    reached = False
    for name, _, _ in owners(model):
        if name.startswith(prefix) and name[len(prefix) :].split(".")[0].isdigit():
            reached = True
            depths[name] = int(name[len(prefix) :].split(".")[0]) + 1
        else:
            depths[name] = len(stacks[blocks]) + 1 if reached else 0
    return depths


def param_groups(
    model: nn.Module,
    weight_decay: float,
    *,
    decay_embeddings: bool = True,
    layer_decay: float | None = None,
    lr: float | None = None,
) -> list[dict[str, Any]]:
    """Named parameter groups of a model in which only weights decay.

    Biases, every normalisation layer and other vectors get weight decay 0, embeddings too on
    request. With ``layer_decay`` the learning rate of each layer is ``lr·layer_decay^(layers
    above it)`` (Clark et al., ELECTRA, 2020). A parameter that several modules share is listed
    once and decays only if all agree. Raises ValueError for a ``layer_decay`` outside (0, 1] or
    without ``lr``.
    """
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise ValueError(f"param_groups: layer_decay={layer_decay!r} is not valid; allowed: (0, 1]")
    if layer_decay is not None and lr is None:
        raise ValueError("param_groups: layer_decay needs lr=...")
    named: dict[Tensor, str] = {}
    decaying: dict[Tensor, bool] = {}
    for name, module, param in owners(model):
        named.setdefault(param, name)
        agrees = decays(name, module, param, decay_embeddings)
        decaying[param] = decaying.get(param, True) and agrees
    depths = layer_depths(model) if layer_decay is not None else dict.fromkeys(named.values(), 0)
    top = max(depths.values(), default=0)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for param, name in named.items():
        key = (depths[name], decaying[param])
        if key not in groups:
            group: dict[str, Any] = {"params": [], "weight_decay": weight_decay if key[1] else 0.0}
            if layer_decay is not None and lr is not None:
                group["lr"] = lr * layer_decay ** (top - key[0])
            groups[key] = group
        groups[key]["params"].append((name, param))
    return list(groups.values())


def decay_modes(rule: Rule) -> list[str]:
    """The places for weight decay that a rule allows."""
    if rule.points is not None and rule.weight_decay_mode == "inside":
        return ["l2", "inside"]  # decay beside the rule would reach one of its two points only
    return [m for m in DECAY_MODES if m != "inside" or rule.weight_decay_mode == "inside"]


def check_group(rule: Rule, group: Mapping[str, Any]) -> None:
    """Raise ValueError or TypeError, in one line, for what a rule cannot do with a group."""
    rule.validate(group)
    mode, allowed = group["weight_decay_mode"], decay_modes(rule)
    if mode not in allowed:
        raise ValueError(
            f"{rule.class_name}: weight_decay_mode={mode!r} is not valid; allowed: "
            f"{', '.join(allowed)}"
        )
    if rule.scope != "element" and any(param.is_complex() for param in group["params"]):
        raise TypeError(f"{rule.class_name}: complex parameters are not supported")


def hidden_groups(
    model: nn.Module, groups: list[dict[str, Any]], partner: str
) -> list[dict[str, Any]]:
    """Take embeddings and the output head out of groups of a rule for hidden matrices.

    They go to groups of the rule ``partner``. The head is the model's last linear layer, unless it
    is the only matrix. ``groups`` are those of `param_groups`.
    """
    held = [(module, param) for _, module, param in owners(model) if param.dim() >= 2]
    chosen = {param for module, param in held if isinstance(module, EMBEDDINGS)}
    inner = [(module, param) for module, param in held if param not in chosen]
    if len(inner) > 1:
        chosen |= set([param for module, param in inner if isinstance(module, nn.Linear)][-1:])
    result = []
    for group in groups:
        inside = [(name, param) for name, param in group["params"] if param not in chosen]
        outside = [(name, param) for name, param in group["params"] if param in chosen]
        if inside:
            result.append({**group, "params": inside})
        if outside:
            rest = {key: value for key, value in group.items() if key != "lr"}  # its own rule's
            result.append({**rest, "params": outside, "rule": partner})
    return result


def split_group(
    rule: Rule, group: dict[str, Any], defaults: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """One group per rule: the parameters ``rule`` handles, and those its partner gets.

    A group that names its rule already is kept whole. ``defaults`` are the optimizer's arguments.
    """
    partner = rule.partner
    if partner is None:
        return [group]

    def with_partner(params: list[Any]) -> dict[str, Any]:
        values = {**defaults, **group}
        own = {name: values[source] for name, source in partner.arguments.items()}
        rest = {key: value for key, value in group.items() if key not in partner.arguments}
        return {**rest, **own, "params": params, "rule": partner.rule}

    params = group["params"]
    params = [params] if isinstance(params, Tensor) else list(params)
    if group.get("rule") == partner.rule:
        return [{**with_partner(params), **group, "params": params}]
    if "rule" in group:
        return [{**group, "params": params}]
    handled = [p for p in params if partner.handles(p[1] if isinstance(p, tuple) else p)]
    chosen = {id(p) for p in handled}
    others = [p for p in params if id(p) not in chosen]
    groups = [{**group, "params": handled}] if handled or not others else []
    return [*groups, with_partner(others)] if others else groups
