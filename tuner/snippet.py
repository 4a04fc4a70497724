"""A configuration as the Python that trains with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tuner.records import Configuration


def python_of(configuration: Configuration, steps: int, title: str) -> str:
    """The lines that make the optimizer of a run of `steps` steps, for a `model` that is there.

    Numbers are written in full, so the optimizer is that of the trials. Not in it: a task's own
    `param_groups`, and the engine that trials are pinned to.
    """
    c = configuration
    schedule = ", ".join([_literal(c.schedule), *_keywords(c.schedule_args)])
    arguments = [
        _literal(c.wrapper or c.optimizer),
        "model",
        *_keywords({"base": c.optimizer, **c.wrapper_args} if c.wrapper else {}),
        *_keywords(c.optimizer_args),
        f"schedule=schedules.create({schedule})",
        "total_steps=total_steps",
    ]
    return "\n".join(
        [
            f"# {title}",
            "from optimizers import create, schedules",
            "",
            f"batch_size = {c.batch_size}",
            f"total_steps = {steps}  # of the trials: the learning rate is tuned for this length",
            "optimizer = create(",
            *(f"    {argument}," for argument in arguments),
            ")",
        ]
    )


def _keywords(values: Mapping[str, Any]) -> list[str]:
    return [f"{name}={_literal(value)}" for name, value in values.items()]


def _literal(value: Any) -> str:
    return json.dumps(value) if isinstance(value, str) else repr(value)
