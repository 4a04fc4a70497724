"""Writes docs/optimizers.md from the rows of rules, schedules, wrappers, recipes and warnings.

python tools/optimizers_page.py      (`make docs`; a test fails when the page is behind)
"""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from optimizers import Hyper, Option, Rule, create, get_rule, names, schedules
from optimizers.core import DecayMode, advance
from optimizers.mistakes import MISTAKES
from optimizers.monitor import EXPLODING, VANISHING
from optimizers.wrappers import WRAPPERS
from tuner.recipes import RECIPES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "optimizers.md"

INTRODUCTION = """\
# Optimizers

<!-- Written by tools/optimizers_page.py (`make docs`) from the rows of the library. -->

Everything here comes from the rows that the code itself reads: constructors take these defaults and
refuse what is not valid, studies search these ranges, and every number on this page was computed
with the library when the page was made.

How to read the equations: `g` is the gradient after clipping, `p` the parameter, `t` counts the
updates of this parameter from 1, and `lr` already contains the schedule. Where weight decay is
*l2*, `g` already contains `weight_decay · p`.

Weight decay is one of: *l2* (into the gradient), *decoupled* (`p` shrinks by `lr · weight_decay`),
*independent* (by `schedule · weight_decay`, whatever the learning rate), *inside* (the rule places
it itself). Each rule's own is in its row; `weight_decay_mode=` changes it.
"""

CLASSICS = """\
## What the rules do with a gradient

A constant gradient of 0.5 with `lr=0.01`: the learning rate that the parameter in fact sees, which
is the step over the gradient. AdaGrad's dies, RMSprop's settles.
"""

MEMORY = """\
Memory beside the parameter, in arrays of its size; for a 1024 × 1024 matrix.
"""

DECAY = """\
L2 and decoupled decay are the same for SGD and differ for Adam. A parameter starts at 1 and gets
100 gradients that alternate in sign, with `lr=0.01` and `weight_decay=0.1`; without noise it would
end at 0.905. Adam divides L2 decay by the size of the gradient, so that it depends on it.
"""

SEEING = """\
## Seeing inside

A monitor looks at the first step and at every hundredth after it. Per layer it gives the norm of
the gradient, the update over the weight (about 1e-3 is usual), and a verdict: *dead* (no gradient,
or exactly zero), *vanishing* (below {vanishing:g} of the largest layer's), *exploding* (not finite,
{exploding:g} times the layer's own median, or an update larger than the weights), or *ok*. It works
with every `torch.optim.Optimizer` and does not change the training; studies keep four looks at each
trial, which `tuner trial show` prints.

```python
import torch
from optimizers import Monitor, create

model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
optimizer = create("adamw", model, lr=1e-3)
monitor = Monitor(model, every=100)
monitor.attach(optimizer)

model(torch.randn(16, 4)).square().mean().backward()
optimizer.step()
for name, stats in monitor.last.layers.items():
    print(name, stats.grad_norm, stats.update_ratio, monitor.last.verdicts[name])
```
"""

PRIORITIES = {0: "on request", 1: "always", 2: "medium budgets", 3: "large budgets"}
EFFECTIVE_AT = (1, 10, 100, 1000, 10_000)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; bars within cells are escaped."""
    lines = [columns, ["---"] * len(columns), *rows]
    cells = ([str(cell).replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def number(value: float | None) -> str:
    """A number as it would be typed."""
    if value is None or math.isnan(value):
        return "None"
    return f"{value:g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")


def range_of(hyper: Hyper) -> str:
    """Where a search looks, and on which scale."""
    scale = "log" if hyper.log else ""
    if hyper.complement:
        scale = f"{scale} of 1 - value".strip()
    return f"{number(hyper.low)} .. {number(hyper.high)}" + (f" ({scale})" if scale else "")


def hyper_rows(hypers: Mapping[str, Hyper]) -> Iterator[tuple[str, ...]]:
    """Name, default, valid values, search range, when it is searched, meaning, source."""
    for name, hyper in hypers.items():
        yield (
            f"`{name}`", number(hyper.default), allowed(hyper), range_of(hyper),
            PRIORITIES[hyper.priority], hyper.doc, hyper.source,
        )  # fmt: skip


HYPER_COLUMNS = ("", "default", "valid", "search range", "searched", "meaning", "source of range")


def option_rows(options: Mapping[str, Option]) -> Iterator[tuple[str, ...]]:
    """Name, default, choices, meaning."""
    for name, option in options.items():
        yield f"`{name}`", f"`{option.default!r}`", option.allowed, option.doc


OPTION_COLUMNS = ("", "default", "choices", "meaning")


def memory(arrays: float) -> str:
    """Arrays of state per parameter, rounded."""
    return number(round(arrays, 3))


def allowed(hyper: Hyper) -> str:
    """The valid values in words."""
    return hyper.allowed.replace("-inf < value < inf", "any number")


def summary_table() -> str:
    """One line for each rule."""
    rows = (
        (
            f"[{rule.name}](#{rule.name})", f"`{rule.class_name}`",
            number(rule.hypers["lr"].default), rule.weight_decay_mode,
            memory(rule.memory()), rule.batch_scaling, rule.when,
        )
        for rule in map(get_rule, names())
    )  # fmt: skip
    columns = ("rule", "class", "lr", "weight decay", "memory", "lr with batch size", "when")
    return table(columns, rows)


def rule_section(rule: Rule) -> str:
    """Everything about one rule."""
    partner = (
        f" Parameters that it cannot handle go to {rule.partner.rule}." if rule.partner else ""
    )
    packs = "; ".join(f"`{pack}` = ({', '.join(own)})" for pack, own in rule.packs.items())
    return "\n".join(
        (
            f"### {rule.name}\n",
            f"`{rule.class_name}`. {rule.summary}{partner}\n",
            f"When: {rule.when}\n",
            f"```math\n\\begin{{gathered}}\n{rule.equations.strip()}\n\\end{{gathered}}\n```\n",
            f"Weight decay: {rule.weight_decay_mode}. Memory: {memory(rule.memory())} times "
            f"the parameter. The learning rate follows the batch size: {rule.batch_scaling}.\n",
            table(HYPER_COLUMNS, hyper_rows(rule.hypers)),
            *([f"As arguments: {packs}.\n"] if packs else []),
            *([table(OPTION_COLUMNS, option_rows(rule.options))] if rule.options else []),
            f"Source: {rule.paper}\n",
        )
    )


def walk(
    rule: Rule, mode: DecayMode, gradient: Callable[[int], float], steps: int, **values: Any
) -> list[float]:
    """Parameters after each of some steps of one entry that starts at 1."""
    hyper = rule.values(schedule=1.0, **values)
    param = torch.ones((), dtype=torch.float64)
    state = rule.state(param, hyper)
    path = [float(param)]
    for t in range(1, steps + 1):
        grad = torch.tensor(gradient(t), dtype=torch.float64)
        param, state = advance(rule, mode, grad, param, state, hyper, t)
        path.append(float(param))
    return path


def effective_steps() -> str:
    """The classic table of AdaGrad's and RMSprop's effective learning rates."""
    settings: dict[str, dict[str, float]] = {"adagrad": {}, "rmsprop": {"alpha": 0.9}}
    rows = []
    for name, values in settings.items():
        path = walk(get_rule(name), "none", lambda t: 0.5, EFFECTIVE_AT[-1], lr=0.01, **values)
        label = ", ".join([name, *(f"{key}={value:g}" for key, value in values.items())])
        rows.append([label, *(f"{(path[t - 1] - path[t]) / 0.5:.4f}" for t in EFFECTIVE_AT)])
    return table(("step", *map(str, EFFECTIVE_AT)), rows)


def memory_table() -> str:
    """The classic table of optimizer state."""
    settings: dict[str, dict[str, Any]] = {
        "SGD": {}, "SGD with momentum": {"momentum": 0.9}, "AdaGrad": {}, "RMSprop": {},
        "Lion": {}, "Adam, AdamW": {}, "Adafactor": {},
    }  # fmt: skip
    arrays = (
        memory(get_rule(label.split()[0].strip(",").lower()).memory(**changes))
        for label, changes in settings.items()
    )
    return table(tuple(settings), [tuple(arrays)])


def alternating(size: float) -> Callable[[int], float]:
    """A gradient of one size that changes its sign every step."""
    return lambda t: size * (-1) ** t


def decay_table() -> str:
    """Where a decaying parameter ends, for L2 and decoupled decay."""
    modes: tuple[DecayMode, DecayMode] = ("l2", "decoupled")
    values = {"lr": 0.01, "weight_decay": 0.1}
    rows = []
    for name in ("sgd", "adam"):
        for size in (10.0, 0.1):
            gradient = alternating(size)
            ends = (walk(get_rule(name), mode, gradient, 100, **values)[-1] for mode in modes)
            rows.append((name, number(size), *(f"{end:.3f}" for end in ends)))
    return table(("rule", "size of the gradient", *modes), rows)


def schedule_table() -> str:
    """One line for each schedule: its factor in a run of 100 steps."""
    steps = (0, 10, 25, 50, 75, 99)
    rows = (
        (f"[{name}](#{name})", *(f"{kind().factor(step, 100):.2f}" for step in steps))
        for name, kind in schedules.SCHEDULES.items()
    )
    return table(("schedule", *(f"step {step}" for step in steps)), rows)


def schedule_section(name: str) -> str:
    """Everything about one schedule."""
    kind = schedules.SCHEDULES[name]
    parts = (
        f"### {name}\n",
        f"{inspect.getdoc(kind)}\n",
        table(HYPER_COLUMNS, hyper_rows(kind.numbers())),
    )
    return "\n".join(parts)


def wrapper_section(name: str) -> str:
    """Everything about one wrapper."""
    kind = WRAPPERS[name]
    passes = create(name, [torch.nn.Parameter(torch.zeros(1))], base="sgd").passes
    given = inspect.signature(kind).parameters
    rows = {key: row for key, row in kind.hypers.items() if key in given}
    hypers = {key: row for key, row in rows.items() if isinstance(row, Hyper)}
    options = {key: row for key, row in rows.items() if isinstance(row, Option)}
    numbers = (
        (cells[0], number(given[key].default), *cells[2:])
        for key, cells in zip(hypers, hyper_rows(hypers), strict=True)
    )
    return "\n".join(
        (
            f"### {name}\n",
            f"`{kind.__name__}(params, base=...)`. {inspect.getdoc(kind)}\n",
            f"Forward and backward passes per step: {passes}.\n",
            table(HYPER_COLUMNS, numbers),
            *([table(OPTION_COLUMNS, option_rows(options))] if options else []),
        )
    )


def recipe_table() -> str:
    """One line for each kind of problem."""
    rows = (
        (
            f"`{recipe.problem}`", recipe.title, f"[{recipe.optimizer}](#{recipe.optimizer})",
            f"[{recipe.schedule}](#{recipe.schedule})",
            ", ".join(f"{key} {number(value)}" for key, value in recipe.start.items()),
        )
        for recipe in RECIPES.values()
    )  # fmt: skip
    return table(("", "problem", "optimizer", "schedule", "start with"), rows)


def mistake_table() -> str:
    """One line for each known mistake."""
    rows = ((code, mistake.what, mistake.why, mistake.remedy) for code, mistake in MISTAKES.items())
    return table(("code", "mistake", "why", "instead"), rows)


def render() -> str:
    """The whole page."""
    return "\n".join(
        (
            INTRODUCTION,
            "## All of them\n",
            summary_table(),
            "## Where to start\n",
            "`tuner optimizers advise --problem NAME` gives the reasons, and arms for a study.\n",
            recipe_table(),
            "## Known mistakes\n",
            "`optimizers.create` warns of what it sees in a model, `tuner study start` of the rest;"
            ' `silence=("OPT002",)` or `run.silence = ["OPT002"]` in a study file silences.\n',
            mistake_table(),
            CLASSICS,
            effective_steps(),
            MEMORY,
            memory_table(),
            DECAY,
            decay_table(),
            SEEING.format(vanishing=VANISHING, exploding=EXPLODING),
            "## Rules\n",
            *(rule_section(get_rule(name)) for name in names()),
            "## Wrappers\n",
            "Around any rule, or any optimizer of torch: `SAM(params, base=\"adamw\", lr=1e-3)`.\n",
            *map(wrapper_section, WRAPPERS),
            "## Schedules\n",
            "The factor of the learning rate in a run of 100 steps, with default numbers. A study\n"
            "can search each number.\n",
            schedule_table(),
            *map(schedule_section, schedules.names()),
        )
    ).rstrip() + "\n"  # fmt: skip


if __name__ == "__main__":
    PAGE.write_text(render())
