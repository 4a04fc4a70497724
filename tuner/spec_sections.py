"""The sections of a study file that say what is asked, what it may cost and how it runs."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from tuner.records import Direction
from tuner.spec_values import BatchSizes, LearningRates, WeightDecays

Preset = Literal["quick", "standard", "thorough"]
Join = Literal["auto", "none", "all"]
# Those of `optimizers.mistakes`.
WarningCode = Literal[
    "OPT001", "OPT002", "OPT003", "OPT004", "OPT005", "OPT006", "OPT007", "OPT008"
]

# What each preset gives to the keys of [budget] that the file leaves out. With ten seeds four arms
# are told apart at two seed deviations in 94 % of studies, with eight in 79 %, with five never.
PRESETS: dict[str, dict[str, int]] = {
    "quick": {
        "max_epochs": 5,
        "calibrate_seeds": 2,
        "lr_range_steps": 120,
        "trials_per_arm": 18,
        "confirm_top": 4,
        "confirm_seeds": 1,
        "decide_seeds": 15,
        "decide_looks": 3,
    },
    "standard": {
        "max_epochs": 10,
        "calibrate_seeds": 4,
        "lr_range_steps": 200,
        "trials_per_arm": 24,
        "confirm_top": 3,
        "confirm_seeds": 5,
        "decide_seeds": 20,
        "decide_looks": 4,
    },
    "thorough": {
        "max_epochs": 20,
        "calibrate_seeds": 4,
        "lr_range_steps": 300,
        "trials_per_arm": 64,
        "confirm_top": 3,
        "confirm_seeds": 5,
        "decide_seeds": 30,
        "decide_looks": 4,
    },
}

# A screening run must be long enough to say something about a full one.
_SCREEN_STEPS, _SCREEN_EPOCHS, _SCREEN_TRIALS = 50, 1.0, 6
# What follows from a budget for the whole study, and is not given beside one.
DERIVED = ("trials_per_arm", "confirm_seeds", "decide_seeds")


class Section(BaseModel):
    """Base of all sections: frozen; an unknown key is an error, and so is infinity."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, str_strip_whitespace=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic reads `true` as 1."""
        field = cls.model_fields[str(info.field_name)]
        if isinstance(value, bool) and field.annotation in (int, int | None, float, float | None):
            raise ValueError("allowed: a number")
        return value


class StudySection(Section):
    """`[study]`: what is asked."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    task: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    metric: str = "loss"
    direction: Direction = "minimize"
    preset: Preset = "standard"
    seed: int = Field(default=0, ge=0, le=9999)
    margin: float | None = Field(default=None, gt=0)  # smaller differences do not matter
    warm_start: tuple[str, ...] = ()  # older studies to learn from


class BudgetSection(Section):
    """`[budget]`: how much is spent. Exactly one `max_*` gives the length of a full trial."""

    max_steps: int | None = Field(default=None, ge=1)
    max_epochs: float | None = Field(default=None, gt=0)
    max_examples: int | None = Field(default=None, ge=1)
    evaluations: int = Field(default=10, ge=1)
    # The whole study, in one of two units; the numbers of trials and seeds follow from it.
    total_steps: int | None = Field(default=None, ge=1)
    hours: float | None = Field(default=None, gt=0)
    equal: Literal["steps", "wall-clock"] = "steps"
    explore_share: float = Field(default=0.55, gt=0, lt=1)  # of total_steps or hours
    confirm_share: float = Field(default=0.2, gt=0, lt=1)  # decide gets the rest

    calibrate_seeds: int = Field(ge=0, le=99)
    calibrate_arms: Literal["baseline", "all"] = "baseline"
    default_seeds: int = Field(default=1, ge=0, le=99)
    lr_range_steps: int = Field(ge=20)
    trials_per_arm: int = Field(ge=1, le=999)
    screen_length: float = Field(default=0.2, gt=0, le=1)
    promote: float = Field(default=0.16, gt=0, le=1)
    refine: float = Field(default=0.29, ge=0, le=1)
    extend_trials: float = Field(default=0.25, ge=0, le=1)
    confirm_top: int = Field(ge=1)
    confirm_seeds: int = Field(ge=1, le=999)
    decide_seeds: int = Field(ge=0, le=999)
    decide_looks: int = Field(ge=1, le=20)
    # Filled in by the plan: what total_steps, hours or equal = "wall-clock" came to.
    arm_trials: dict[str, int] = {}

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        given = [k for k in ("max_steps", "max_epochs", "max_examples") if getattr(self, k)]
        if len(given) > 1:
            values = ", ".join(f"{k} = {getattr(self, k):g}" for k in given)
            raise ValueError(f"{values}: allowed: only one of them")
        return self

    @model_validator(mode="after")
    def _one_total(self) -> Self:
        if self.total_steps and self.hours:
            raise ValueError(
                f"total_steps = {self.total_steps}, hours = {self.hours:g}: allowed: one of them"
            )
        if self.is_open and not self.calibrate_seeds + self.default_seeds:
            raise ValueError(
                "calibrate_seeds = 0, default_seeds = 0: allowed: one of them from 1, which"
                " measures what a trial costs"
            )
        if self.explore_share + self.confirm_share >= 1:
            raise ValueError(
                f"explore_share = {self.explore_share:g}, confirm_share = {self.confirm_share:g}:"
                " allowed: a sum below 1; decide gets the rest"
            )
        return self

    @property
    def total_given(self) -> bool:
        """Whether the file limits the whole study."""
        return self.total_steps is not None or self.hours is not None

    @property
    def is_open(self) -> bool:
        """Whether trials and seeds still wait for what the first stages measure."""
        return (self.total_given or self.equal == "wall-clock") and not self.arm_trials

    @property
    def screens(self) -> bool:
        """Whether exploration begins with short runs."""
        if self.screen_length == 1 or self.trials_per_arm < _SCREEN_TRIALS:
            return False
        if self.max_steps is not None:
            return self.max_steps * self.screen_length >= _SCREEN_STEPS
        return self.max_epochs is None or self.max_epochs * self.screen_length >= _SCREEN_EPOCHS


class SearchSection(Section):
    """`[search]`: the box of every arm."""

    lr: LearningRates = "auto"  # "auto": from the LR range test
    batch_size: BatchSizes = (16, 32, 64, 128, 256)
    weight_decay: WeightDecays = "auto"  # "auto": the range that the rule's row recommends
    reference_batch_size: int | None = Field(
        default=None, ge=1
    )  # where learning rates are searched
    join: Join = "auto"  # further numbers of the optimizer and the schedule, by budget

    @property
    def reference(self) -> int:
        """The batch size at which learning rates are searched; of a box that it is filled in."""
        if self.reference_batch_size is None:
            raise ValueError("reference_batch_size: ask StudySpec.box")
        return self.reference_batch_size


class RunSection(Section):
    """`[run]`: where and how trials run."""

    slots: int | None = Field(default=None, ge=1)
    retries: int = Field(default=2, ge=0)  # of a trial whose worker was killed
    max_identical_failures: int = Field(
        default=3, ge=1
    )  # of the user's code before the study stops
    checkpoint_seconds: float = Field(default=30.0, gt=0)
    prune: bool = True
    silence: tuple[WarningCode, ...] = ()  # warnings that are not wanted


class WarmArm(Section):
    """What an older study knows about an arm of this one; written by `--from`, not by people."""

    study: str
    points: tuple[dict[str, float], ...]  # best first, in the axes of this study
    lr: tuple[float, float] | None = None  # the older box, at this study's reference batch
