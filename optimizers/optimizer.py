"""The torch.optim.Optimizer around a rule: groups, clipping, schedule, skipping, checkpoints.

A drop-in for torch's own: the same param groups, closures, hooks and ``state_dict`` layout.
Different from them: ``group["lr"]`` is the base learning rate and a ``schedule`` multiplies it
inside the step, so that it composes with torch's LR schedulers and with changes of
``param_groups`` by hand.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from functools import partial
from operator import is_
from typing import Any, ClassVar, cast

import torch

from optimizers import checkpoint, clipping, schedules, stepping
from optimizers.base import TorchOptimizer, without_grad
from optimizers.batch import Batch
from optimizers.core import Rule, State, Values
from optimizers.groups import check_group, split_group
from optimizers.kernels.plan import Planner
from optimizers.kernels.policy import check_engine
from optimizers.points import move, observe
from optimizers.precision import LOW_PRECISION
from optimizers.repeat import Repeat
from optimizers.rules import get_rule
from optimizers.schedules import Schedule
from optimizers.scheduling import Reader, check_schedule
from optimizers.sharding import check_whole
from optimizers.signatures import bind, signature

logger = logging.getLogger("optimizers")

Group = dict[str, Any]


class Optimizer(TorchOptimizer):
    """Base of every optimizer class; a subclass only adds its ``rule`` and a constructor signature.

    After the rule's own hyperparameters every class takes:

    maximize: climb instead of descend. weight_decay_mode: "l2" (into the gradient), "decoupled"
    (lr·wd), "independent" (schedule·wd, not lr), or
        "inside" for rules that place it themselves; None is the rule's own.
    clip_norm, clip_value, clip_per_layer, clip_agc: at most one; the gradients themselves never
    change. schedule, total_steps: multiplies the learning rate (`optimizers.schedules`).
    skip_nonfinite: skip the step when a gradient is not finite; counted in ``skipped_steps``.
    low_precision: how bfloat16 and float16 parameters keep steps that are smaller than their
    resolution: "kahan", "stochastic" or "none" (`optimizers.precision`).
    engine: how the rule runs, "auto", "eager", "fused" or "compiled"
        (`optimizers.kernels.policy`).

    Raises ValueError for values out of bounds, TypeError for sparse gradients of rules that have
    no sparse form and for complex or sharded parameters of rules that are not elementwise.
    """

    rule: ClassVar[Rule]
    passes: ClassVar[int] = 1  # how often a step calls its closure
    _last: Repeat | None  # the last step, if the next may be like it

    def __init__(self, params: Iterable[Any], *args: Any, **kwargs: Any) -> None:
        given = bind(self.rule, params, args, kwargs)
        owner = self.rule.class_name
        limits = {name: given[name] for name in ("clip_value", *clipping.SCALINGS)}
        self.clip = clipping.parse(owner, **limits)
        self.schedule: Schedule | None = given["schedule"]
        self.total_steps: int | None = given["total_steps"]
        check_schedule(owner, self.schedule, self.total_steps)
        self.skip_nonfinite: bool = given["skip_nonfinite"]
        self.engine: str = given["engine"]
        check_engine(owner, self.engine)
        self._forget()
        self.low_precision: str = given["low_precision"]
        if self.low_precision not in LOW_PRECISION:
            raise ValueError(
                f"{owner}: low_precision={self.low_precision!r} is not valid; allowed: "
                f"{', '.join(LOW_PRECISION)}"
            )
        self.skipped_steps = 0
        self.nonfinite_parameter: str | None = None
        self.last_grad_norm: float | None = None
        self._last_values: list[Values] | None = None
        defaults = {name: given[name] for name in self.rule.arguments}
        self.rule.validate(defaults)
        defaults["maximize"] = given["maximize"]
        defaults["weight_decay_mode"] = given["weight_decay_mode"] or self.rule.weight_decay_mode
        defaults["schedule_step"] = 0
        super().__init__(given["params"], defaults)

    # Groups ---------------------------------------------------------------------------------------

    def add_param_group(self, param_group: Group) -> None:
        """Add a group; raises ValueError for values out of bounds.

        A rule with a partner adds two: what it handles itself, and the rest with ``"rule"`` naming
        the partner. A group may also name its rule.
        """
        before = len(self.param_groups)
        for group in split_group(self.rule, param_group, self.defaults):
            rule = self.rule_of(group)
            if rule is not self.rule:
                group.setdefault("weight_decay_mode", rule.weight_decay_mode)
                for name, default in rule.arguments.items():
                    group.setdefault(name, default)
            for key in ("schedule_step", "schedule_memory"):  # the run's, not the group's
                if self.param_groups and key in self.param_groups[0]:
                    group.setdefault(key, self.param_groups[0][key])
            super().add_param_group(group)
            try:
                check_group(rule, self.param_groups[-1])
                self._refuse_shards(len(self.param_groups) - 1)
            except (TypeError, ValueError):
                del self.param_groups[before:]
                raise

    def rule_of(self, group: Group) -> Rule:
        """The rule that a group runs: the class's own unless the group names another."""
        return get_rule(group["rule"]) if "rule" in group else self.rule

    def _refuse_shards(self, group_index: int) -> None:
        group = self.param_groups[group_index]
        names = [self.parameter_name(group_index, index) for index in range(len(group["params"]))]
        check_whole(self.rule_of(group), zip(names, group["params"], strict=True))

    def parameter_name(self, group_index: int, index: int) -> str:
        """The name of a parameter, as good as it is known."""
        group = self.param_groups[group_index]
        if "param_names" in group:
            return str(group["param_names"][index])
        shape = tuple(group["params"][index].shape)
        return f"parameter {index} of group {group_index}, shape {shape}"

    # Learning rate --------------------------------------------------------------------------------

    @property
    def current_lrs(self) -> list[float]:
        """Per group, the learning rate of the last step; before any step, of the first."""
        values = self._last_values
        if values is None:
            values = [*map(self.hyper, self.param_groups)]
        return [own.lr for own in values]

    @property
    def current_lr(self) -> float:
        """The first group's learning rate in the last step; before any step, in the first."""
        return self.current_lrs[0]

    def hyper(self, group: Group) -> Values:
        """The numbers and options that a rule sees for a group, schedule included."""
        return self._reader(group).values(group, self.schedule, self.total_steps)

    def _reader(self, group: Group) -> Reader:
        reader = self._readers.get(id(group))
        if reader is None:
            reader = self._readers[id(group)] = Reader(self.rule_of)
        return reader

    def report(self, metric: float) -> None:
        """Tell a metric to a schedule that waits for one (`schedules.plateau`).

        Raises TypeError for the others.
        """
        schedule = self.schedule or schedules.constant()
        for group in self.param_groups:
            group["schedule_memory"] = schedule.observe(group.get("schedule_memory", {}), metric)

    # The step -------------------------------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; returns the closure's loss, if there is one.

        A step with a non-finite gradient changes nothing but ``skipped_steps``. Parameters on the
        meta device get their state, and their gradients' norm counts as 0.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self._again():
            without_grad(self._update)
        return loss

    def _again(self) -> bool:
        """Step as the last time, if nothing but numbers has changed since."""
        last, key = self._last, (self.clip, self.low_precision, self.state, self.param_groups)
        if last is None or not all(map(is_, last.key, key)):
            return False
        values = last.values(self.schedule, self.total_steps)
        norm = None if values is None else last.step(values)
        if norm is None:
            return False
        self.last_grad_norm, self._last_values = norm, values
        return True

    def _update(self) -> None:
        """Step with the present gradients."""
        self._last = None
        groups = self.param_groups
        values = [*map(self.hyper, groups)]
        batches = self._batches(values)
        if not self._scale(batches):
            return
        self._last_values = values
        self._prepare(batches)
        for group, batch in zip(groups, batches, strict=True):
            stepping.run(batch, compiled=self.engine == "compiled")
            group["schedule_step"] += 1
        key = self.clip, self.low_precision, self.state, groups
        self._last = Repeat.after(*key, [*map(self._reader, groups)], self._planner.known)

    def _prepare(self, batches: list[Batch]) -> None:
        """Have all state ready, and what is known of all parameters together."""
        held = self._planner.held  # then tables have all their state
        for group, batch in zip(self.param_groups, batches, strict=True):
            if batch.params or not held:
                self._prepare_states(group, batch)
        if not held:
            self._planner.remember(self.state)
        stepping.share_sums(self.param_groups, batches)

    def _batches(self, values: list[Values]) -> list[Batch]:
        """What each group's step needs, and which engine does what of it."""
        groups = self.param_groups
        for group in groups:
            if group.get("evaluating"):
                raise RuntimeError(f"{self.rule.class_name}: call train() before step()")
        units = self.clip.kind == "clip_agc"
        asked = [
            (self.rule_of(group), group["weight_decay_mode"], own, self.low_precision, units)
            for group, own in zip(groups, values, strict=True)
        ]
        left = self.total_steps and self.total_steps - groups[0]["schedule_step"]
        plans = self._planner.plans(groups, asked, self.state, left)
        return [*map(partial(stepping.batch_of, self.clip), groups, values, plans)]

    def _scale(self, batches: list[Batch]) -> bool:
        """Fill in the clipping scales; False when the step has to be skipped."""
        norms, total = stepping.norms_of(batches)
        if not math.isfinite(total):
            if self.skip_nonfinite and self._report_nonfinite():
                return False
            norms, total = stepping.norms_of(batches, torch.float64)
        self.last_grad_norm = total
        stepping.set_scales(self.clip, batches, norms, total)
        return True

    def _report_nonfinite(self) -> bool:
        """Name the first offending parameter; False when the norm overflowed on finite ones."""
        for group_index, group in enumerate(self.param_groups):
            for index, param in enumerate(group["params"]):
                grad = param.grad
                if grad is None or clipping.is_finite(grad):
                    continue
                self.nonfinite_parameter = self.parameter_name(group_index, index)
                self.skipped_steps += 1
                logger.warning(
                    "step skipped: the gradient of %s is not finite (%d skipped so far)",
                    self.nonfinite_parameter,
                    self.skipped_steps,
                )
                return True
        return False

    # Other points, other gradients ----------------------------------------------------------------

    def eval(self) -> None:
        """Move parameters to where the rule evaluates; without effect for most rules."""
        self._move(to_eval=True)

    def train(self) -> None:
        """Move parameters back to where the rule trains."""
        self._move(to_eval=False)

    @torch.no_grad()
    def _move(self, *, to_eval: bool) -> None:
        for group in self.param_groups:
            rule = self.rule_of(group)
            if rule.points is None or group.get("evaluating", False) == to_eval:
                continue
            move(rule.points, self.hyper(group), group["params"], self.state, to_eval=to_eval)
            group["evaluating"] = to_eval

    @property
    def hessian_due(self) -> bool:
        """Whether the next step should come after an `update_hessian`: every update_period steps.

        Always False for rules that keep no Hessian estimate.
        """
        if self.rule.observe is None:
            return False
        group = self.param_groups[0]
        return bool(group["schedule_step"] % group["update_period"] == 0)

    @torch.no_grad()
    def update_hessian(self) -> None:
        """Fold the present gradients into the rule's curvature estimate, without a step.

        A gradient that is not finite changes nothing but ``skipped_steps``. Raises TypeError for
        rules that keep no estimate.
        """
        if self.rule.observe is None:
            raise TypeError(f"{self.rule.class_name} keeps no Hessian estimate")
        if self.skip_nonfinite and self._report_nonfinite():
            return
        for group in self.param_groups:
            rule, hyper = self.rule_of(group), self.hyper(group)
            params = [p for p in group["params"] if p.grad is not None and rule.observe]
            for param in params:
                checkpoint.allocate(rule, param, self.state[param], hyper, self.low_precision)
            observe(rule, hyper, params, self.state)

    # State ----------------------------------------------------------------------------------------

    def _prepare_states(self, group: Group, batch: Batch) -> None:
        """Allocate missing state, count the update, and hand the rule's tensors to the batch."""
        # a hyperparameter that leaves zero may need state that was not there (momentum)
        changed = self._zeros.get(id(group)) != batch.zeros
        self._zeros[id(group)] = batch.zeros

        def allocate(param: torch.Tensor, state: State) -> None:
            if not state or changed:
                checkpoint.allocate(batch.rule, param, state, batch.hyper, self.low_precision)

        stepping.prepare_rows(batch, self.state, allocate)
        stepping.prepare_tables(batch, self.state, allocate)

    def state_dict(self) -> dict[str, Any]:
        """The checkpoint, which torch's optimizer with the same rule can load, too."""
        checkpoint_dict = super().state_dict()
        for group, saved in zip(self.param_groups, checkpoint_dict["param_groups"], strict=True):
            rule = self.rule_of(group)
            saved.update(checkpoint.for_torch(group, rule))
            for index, param in zip(saved["params"], group["params"], strict=True):
                if rule.state_first and index not in checkpoint_dict["state"]:
                    fresh = checkpoint.fresh(rule, param, self.hyper(group), self.low_precision)
                    checkpoint_dict["state"][index] = fresh
        return checkpoint_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of this class or of torch's optimizer with the same rule.

        State comes back in the precision this library computes in; nothing is shared with
        ``state_dict``.
        """
        # after the hooks of others have seen it, and before they see the result
        seen: dict[str, Any] = {}
        handles = (
            self.register_load_state_dict_pre_hook(lambda _, final: seen.update(final)),
            self.register_load_state_dict_post_hook(lambda _: self._adopt(seen), prepend=True),
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()

    def _adopt(self, state_dict: dict[str, Any]) -> None:
        for param, saved in checkpoint.saved_states(self.param_groups, state_dict):
            self.state[param] = checkpoint.restore(param, saved)
        newest = max((float(s["step"]) for s in self.state.values() if "step" in s), default=0.0)
        for group in self.param_groups:
            rule = self.rule_of(group)
            checkpoint.complete(group, rule, self.defaults, newest)
            check_group(rule, group)
            for param in filter(self.state.get, group["params"]):
                checkpoint.check_shapes(rule, param, self.state[param], self.hyper(group))
        self._last_values = None
        self._forget()

    def _forget(self) -> None:
        """Begin anew what is kept for speed alone."""
        self._zeros: dict[int, tuple[bool, ...]] = {}
        self._readers: dict[int, Reader] = {}
        self._planner = Planner(self.engine)
        self._last = None

    def __getstate__(self) -> dict[str, Any]:
        # hooks, and the step that an LR scheduler has wrapped, belong to this object alone
        own = {key for key in self.__dict__ if key.endswith("_hooks")}
        own |= {"step", "_zeros", "_readers", "_planner", "_last"}
        return {key: value for key, value in self.__dict__.items() if key not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()
        self.defaults.pop("differentiable", None)  # torch's own argument, which it fills in


def make_class(rule: Rule, module: str = __name__) -> type[Optimizer]:
    """The optimizer class of a rule, with its real signature and a docstring from the row."""
    doc = f"{rule.summary}\n\n{rule.equations.strip()}\n\nWhen: {rule.when}\nSource: {rule.paper}\n"
    names = {"rule": rule, "__doc__": doc, "__module__": module, "__signature__": signature(rule)}
    return cast(type[Optimizer], type(rule.class_name, (Optimizer,), names))
