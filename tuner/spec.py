"""The study file: TOML in, a validated `StudySpec` with every default filled in out.

    [study]  what is asked: task, metric, direction, preset
    [budget] how much is spent: length of a full trial, trials and seeds of each stage
    [search] the box that every arm searches; an arm may override each key
    [run]    where and how trials run
    [[arms]] what is compared: an optimizer with a schedule

Every error is one line that names the file, the key, the value and what is allowed.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from tuner.errors import UsageError
from tuner.records import Study
from tuner.spec_sections import (
    DERIVED,
    PRESETS,
    BudgetSection,
    Join,
    RunSection,
    SearchSection,
    Section,
    StudySection,
    WarmArm,
    WarningCode,
)
from tuner.spec_values import (
    BatchSizes,
    LearningRates,
    WeightDecays,
    near_miss,
    require_known,
    require_known_keys,
)

__all__ = [
    "PRESETS",
    "ArmSection",
    "BudgetSection",
    "RunSection",
    "SearchSection",
    "StudySection",
    "StudySpec",
    "WarmArm",
    "WarningCode",
    "load_spec",
    "override",
    "parse_spec",
]


class ArmSection(Section):
    """One `[[arms]]`: an optimizer with a schedule; `[search]`'s keys override it per arm."""

    name: str = Field(default="", pattern=r"^$|^[A-Za-z0-9][A-Za-z0-9._+-]{0,99}$")
    optimizer: str
    wrapper: str | None = None
    schedule: str = "constant"
    clip_norm: float | None = Field(default=None, gt=0)
    clip_value: float | None = Field(default=None, gt=0)
    clip_per_layer: float | None = Field(default=None, gt=0)
    clip_agc: float | None = Field(default=None, gt=0)
    optimizer_args: dict[str, Any] = Field(default={})
    wrapper_args: dict[str, Any] = Field(default={})
    schedule_args: dict[str, Any] = Field(default={})
    lr: LearningRates | None = None
    batch_size: BatchSizes | None = None
    weight_decay: WeightDecays | None = None
    join: Join | None = None
    # Numbers of the optimizer or the schedule to search as well: "auto" = the row's own range.
    search: dict[str, WeightDecays] = Field(default={})

    @field_validator("optimizer")
    @classmethod
    def _known_optimizer(cls, value: str) -> str:
        import optimizers

        return require_known(value, optimizers.names(), "an optimizer")

    @field_validator("wrapper")
    @classmethod
    def _known_wrapper(cls, value: str | None) -> str | None:
        from optimizers.wrappers import WRAPPERS

        return value if value is None else require_known(value, list(WRAPPERS), "a wrapper")

    @field_validator("schedule")
    @classmethod
    def _known_schedule(cls, value: str) -> str:
        from optimizers import schedules

        return require_known(value, schedules.names(), "a schedule")

    @model_validator(mode="after")
    def _args_fit(self) -> Self:
        """Ask the rows of optimizer, wrapper and schedule: they are the only validation."""
        import optimizers
        from optimizers import schedules
        from optimizers.core import Hyper
        from optimizers.wrappers import WRAPPERS

        for key in ("lr", "weight_decay", "clip_norm", "schedule", "total_steps"):
            if key in self.optimizer_args:
                raise ValueError(f"optimizer_args.{key} is a key of the arm or of [search]")
        rule, schedule = (
            optimizers.get_rule(self.optimizer),
            schedules.get_schedule(self.schedule),
        )
        allowed = set(rule.arguments) - {"lr", "weight_decay"} | {"weight_decay_mode"}
        require_known_keys("optimizer_args", self.optimizer_args, allowed)
        rows = WRAPPERS[self.wrapper].hypers if self.wrapper else {}
        limit = Hyper(1.0, 0.1, 10.0, above=0.0)  # of clipping
        numbers = {**dict.fromkeys(self.clip, limit), **schedule.numbers(), **rows, **rule.hypers}
        searchable = {k: row for k, row in numbers.items() if isinstance(row, Hyper)}
        require_known_keys("search", self.search, set(searchable) - {"lr", "weight_decay"})
        for name, given in self.search.items():
            for end in () if given == "auto" else given:
                whole = searchable[name].integer and end.is_integer()
                searchable[name].validate("search", name, int(end) if whole else end)
        searched = {k: rule.hypers[k].default for k in self.search if k in rule.hypers}
        try:
            schedules.create(self.schedule, **self.schedule_args)
        except (TypeError, ValueError) as error:
            raise ValueError(f"schedule_args: {error}") from None
        if len(self.clip) > 1:
            raise ValueError(f"{' and '.join(self.clip)} are given; allowed: one of them")
        try:
            rule.validate(rule.arguments | rule.pack({**self.optimizer_args, **searched}))
        except (TypeError, ValueError) as error:
            raise ValueError(f"optimizer_args: {error}") from None
        require_known_keys("wrapper_args", self.wrapper_args, set(rows))
        try:
            for name, value in self.wrapper_args.items():
                rows[name].validate(str(self.wrapper), name, value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"wrapper_args: {error}") from None
        return self

    @property
    def clip(self) -> dict[str, float]:
        """The kind of clipping and its limit; empty without."""
        kinds = ("clip_norm", "clip_value", "clip_per_layer", "clip_agc")
        return {kind: getattr(self, kind) for kind in kinds if getattr(self, kind) is not None}

    @property
    def default_name(self) -> str:
        """Wrapper, optimizer and schedule."""
        return "-".join(filter(None, (self.wrapper, self.optimizer, self.schedule)))


class StudySpec(Section):
    """A whole study file, every default filled in."""

    study: StudySection
    budget: BudgetSection
    search: SearchSection = SearchSection()
    run: RunSection = RunSection()
    arms: tuple[ArmSection, ...]
    warm: dict[str, WarmArm] = Field(default={})  # by arm; filled in from `study.warm_start`

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("study", {}), dict):
            return data
        # An unknown preset is named by the field's own validation.
        preset = PRESETS.get(str(data.get("study", {}).get("preset")), PRESETS["standard"])
        budget = data.get("budget", {})
        if not isinstance(budget, dict):
            return data
        given_length = any(k in budget for k in ("max_steps", "max_epochs", "max_examples"))
        fill = {k: v for k, v in preset.items() if not (given_length and k == "max_epochs")}
        return {**data, "budget": {**fill, **budget}}

    @model_validator(mode="after")
    def _arms_are_named_and_distinct(self) -> Self:
        arms = tuple(a.model_copy(update={"name": a.name or a.default_name}) for a in self.arms)
        if not arms:
            raise ValueError("arms: empty; allowed: at least 1 [[arms]]")
        names = [a.name for a in arms]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"arms.name: {twice[0]!r} occurs twice; give each arm a name")
        object.__setattr__(self, "arms", arms)
        return self

    @classmethod
    def of(cls, study: Study) -> Self:
        """That of a stored study. Raises UsageError: it is a range test, which has no arms."""
        if "arms" not in study.spec:
            raise UsageError(f"{study.name!r} is a range test; see `tuner trial list {study.name}`")
        return cls.model_validate(study.spec)

    def trials_of(self, arm: str) -> int:
        """How many configurations an arm explores."""
        return self.budget.arm_trials.get(arm, self.budget.trials_per_arm)

    def arm(self, name: str) -> ArmSection:
        """The arm of that name."""
        return next(a for a in self.arms if a.name == name)

    def box(self, arm: ArmSection) -> SearchSection:
        """`[search]` with the arm's own keys on top, and its reference batch size filled in.

        That is the middle one; where the learning rate comes from a range test and trials are
        equally many steps, the largest: with its rate tuned, a larger batch needs no more steps
        (Shallue et al. 2019, arXiv:1811.03600), so the search begins where the best is likely.
        """
        own = {k: getattr(arm, k) for k in ("lr", "batch_size", "weight_decay", "join")}
        box = self.search.model_copy(update={k: v for k, v in own.items() if v is not None})
        if box.reference_batch_size is not None:
            return box
        sizes = box.batch_size
        largest = self.budget.max_steps and box.lr == "auto"
        reference = sizes[-1] if largest else sizes[(len(sizes) - 1) // 2]
        return box.model_copy(update={"reference_batch_size": reference})


def _section_keys(location: tuple[int | str, ...]) -> list[str]:
    """The keys allowed beside the one at `location`."""
    model: type[BaseModel] = StudySpec
    sections: dict[str, type[BaseModel]] = {
        "study": StudySection,
        "budget": BudgetSection,
        "search": SearchSection,
        "run": RunSection,
        "arms": ArmSection,
        "warm": WarmArm,
    }
    if len(location) > 1:
        model = sections[str(location[0])]
    return list(model.model_fields)


def _explain(error: Any) -> str:
    """One line for one pydantic error: key, bad value, what is allowed."""
    location = tuple(p for p in error["loc"] if not (isinstance(p, str) and "[" in p))
    location = tuple(p for p in location if p not in ("literal['auto']",))
    key = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in location).lstrip(".")
    message = re.sub(r"^Value error, ", "", error["msg"])
    message = re.sub(r"^Input should be (a valid )?", "allowed: ", message)
    if error["type"] == "extra_forbidden":
        allowed = _section_keys(location)
        near = near_miss(str(location[-1]), allowed)
        return f"{key}: unknown key{near}; allowed: {', '.join(allowed)}"
    if error["type"] == "missing":
        return f"{key}: missing"
    if error["type"] == "tuple_type":  # TOML has no tuples
        message = "allowed: [[arms]], once for each arm" if key == "arms" else "allowed: a list"
    if error["type"] == "string_pattern_mismatch":
        message = {
            "study.task": 'allowed: "package.module:function"',
        }.get(key, "allowed: letters, digits, '.', '_' and '-', at most 100, no leading '-'")
    value = error.get("input")
    shown = "" if isinstance(value, dict | BaseModel) or value is None else f" = {value!r}"
    return f"{key}{shown}: {message}".removeprefix(": ")


def parse_spec(data: dict[str, Any], source: str, default_name: str) -> StudySpec:
    """Validate a study's data.

    Raises:
        UsageError: one line for each error: source, key, value and what is allowed.
    """
    study = data.get("study")
    if isinstance(study, dict):
        data = {**data, "study": {"name": default_name, **study}}
    try:
        spec = StudySpec.model_validate(data)
    except ValidationError as error:
        lines = [f"{source}: {_explain(e)}" for e in error.errors()]
        raise UsageError("\n".join(dict.fromkeys(lines))) from None
    total = "total_steps" if spec.budget.total_steps else "hours"
    for key in DERIVED:
        if spec.budget.total_given and key in data.get("budget", {}):
            raise UsageError(
                f"{source}: budget.{key} = {data['budget'][key]!r}: follows from budget.{total};"
                " allowed: one of the two"
            )
    for key, where in (("warm", "warm"), ("arm_trials", "budget.arm_trials")):
        if key in (data if key == where else data.get("budget", {})):
            raise UsageError(f"{source}: {where}: filled in by the plan; allowed: leave it out")
    return spec


def override(data: dict[str, Any], assignment: str) -> dict[str, Any]:
    """Apply `section.key=value` (value in TOML; a bare word is a string) to a study's data.

    Raises:
        UsageError: the assignment cannot be read.
    """
    path, separator, text = assignment.partition("=")
    parts = path.strip().split(".")
    if not separator or len(parts) != 2 or parts[0] == "arms":
        raise UsageError(f"-S {assignment}: allowed: section.key=value, e.g. budget.max_steps=100")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    section, key = parts
    before = data.get(section, {})
    if not isinstance(before, dict):
        raise UsageError(f"{section} = {before!r}: allowed: a section, [{section}]")
    return {**data, section: {**before, key: value}}


def load_spec(path: Path, overrides: tuple[str, ...] = ()) -> StudySpec:
    """Read a study file.

    Raises:
        UsageError: the file cannot be read, is not TOML, or says something that is not allowed.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML: {error}") from None
    for assignment in overrides:
        data = override(data, assignment)
    return parse_spec(data, str(path), path.stem)
