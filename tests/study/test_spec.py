"""The study file: every mistake is one line with file, key, value and what is allowed."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.study.specs import ADAMW, SGD, study_data, study_spec
from tuner.errors import UsageError
from tuner.spec import (
    PRESETS,
    ArmSection,
    BudgetSection,
    RunSection,
    SearchSection,
    StudySection,
    StudySpec,
    load_spec,
    override,
    parse_spec,
)

GOOD = """
[study]
task = "tiny:build"
[budget]
max_steps = 100
[[arms]]
optimizer = "adamw"
"""

# (what is wrong in the file, all that the message must contain)
MISTAKES = [
    ({"study": {"preset": "qick"}}, ["study.preset", "'qick'", "'quick', 'standard'"]),
    ({"study": {"metrik": "acc"}}, ["study.metrik", "did you mean 'metric'"]),
    ({"study": {"task": "tiny"}}, ["study.task", "'tiny'", "package.module:function"]),
    ({"study": {"name": "../x"}}, ["study.name", "'../x'", "letters, digits"]),
    ({"study": {"direction": "up"}}, ["study.direction", "'up'", "'minimize' or 'maximize'"]),
    ({"study": {"seed": 1.5}}, ["study.seed", "1.5", "integer"]),
    ({"budget": {"max_steps": 0}}, ["budget.max_steps", "0", "greater than or equal to 1"]),
    ({"budget": {"max_steps": "many"}}, ["budget.max_steps", "'many'", "integer"]),
    ({"budget": {"max_epochs": 3}}, ["max_steps = 12", "max_epochs = 3", "only one"]),
    ({"budget": {"trials": 3}}, ["budget.trials", "unknown key", "trials_per_arm"]),
    ({"search": {"lr": [1e-1, 1e-3]}}, ["search.lr", "[0.1, 0.001]", "low <= high"]),
    ({"search": {"lr": "autto"}}, ["search.lr", "'autto'", '"auto"']),
    ({"search": {"lr": [0, 1]}}, ["search.lr", "above 0"]),
    ({"search": {"lr": True}}, ["search.lr", "True", "a number"]),
    ({"search": {"batch_size": [5, 7]}}, ["search.batch_size", "power of two"]),
    ({"search": {"batch_size": []}}, ["search.batch_size", "[]", "whole number"]),
    ({"search": {"batch_size": [8, 8, 4]}}, ["search.batch_size", "different sizes"]),
    ({"search": {"weight_decay": [-1, 1]}}, ["search.weight_decay", "from 0"]),
    ({"serch": {}}, ["serch", "did you mean 'search'"]),
    ({"arms": []}, ["arms", "at least 1"]),
    ({"arms": [{"optimizer": "adamm"}]}, ["arms[0].optimizer", "'adamm'", "did you mean 'adam'"]),
    ({"arms": [{}]}, ["arms[0].optimizer", "missing"]),
    ({"arms": [ADAMW, ADAMW]}, ["'adamw-warmup_cosine' occurs twice"]),
    (
        {"arms": [{"optimizer": "sgd", "schedule": "cosin"}]},
        ["arms[0].schedule", "'cosin'", "did you mean 'cosine'"],
    ),
    (
        {"arms": [{**SGD, "optimizer_args": {"momentun": 0.9}}]},
        ["optimizer_args.momentun", "did you mean 'momentum'"],
    ),
    ({"arms": [{**SGD, "optimizer_args": {"momentum": -1}}]}, ["optimizer_args", "momentum=-1"]),
    ({"arms": [{**SGD, "optimizer_args": {"lr": 1}}]}, ["optimizer_args.lr", "[search]"]),
    ({"arms": [{**SGD, "schedule_args": {"warm": 1}}]}, ["schedule_args", "'warm'"]),
    ({"arms": [{**SGD, "clip_norm": -1}]}, ["arms[0].clip_norm", "-1", "greater than 0"]),
    (
        {"arms": [{**ADAMW, "search": {"beta3": "auto"}}]},
        ["search.beta3", "did you mean 'beta", "warmup"],
    ),
    ({"arms": [{**ADAMW, "search": {"beta2": [0.9, 0.1]}}]}, ["search.beta2", "low <= high"]),
    (
        {"arms": [{**ADAMW, "search": {"beta1": [0.9, 1.5]}}]},
        ["arms[0]", "search", "beta1=1.5", "0 <= value < 1"],
    ),
    ({"arms": [{**ADAMW, "search": {"warmup": [0.5, 3]}}]}, ["search", "warmup=3.0", "<= 1"]),
    ({"arms": [{**ADAMW, "search": {"clip_norm": [0, 2]}}]}, ["search", "clip_norm=0.0", "0 <"]),
    (
        {"arms": [{**SGD, "wrapper": "lookahead", "search": {"k": [5.2, 5.8]}}]},
        ["search", "k=5.2", "a whole number"],
    ),
    (
        {"arms": [{**SGD, "wrapper": "sam", "search": {"adaptive": "auto"}}]},
        ["search.adaptive", "unknown", "rho"],
    ),
    ({"arms": [{**SGD, "optimizer": "adam", "optimizer_args": {"betas": 0.9}}]}, ["betas=0.9"]),
    ({"arms": [{**ADAMW, "wrapper": "sum"}]}, ["arms[0].wrapper", "'sum'", "did you mean 'sam'"]),
    (
        {"arms": [{**ADAMW, "wrapper": "sam", "wrapper_args": {"rho": -1}}]},
        ["wrapper_args", "rho=-1"],
    ),
    ({"arms": [{**ADAMW, "wrapper_args": {"rho": 1}}]}, ["wrapper_args.rho", "allowed: nothing"]),
    ({"arms": [{**ADAMW, "clip_agc": 0.01}]}, ["clip_norm and clip_agc", "one of them"]),
    (
        {"budget": {"total_steps": 900, "hours": 2}},
        ["total_steps = 900", "hours = 2", "one of them"],
    ),
    (
        {"budget": {"total_steps": 90_000}},
        ["budget.trials_per_arm = 5", "follows from budget.total_steps"],
    ),
    ({"budget": {"hours": 0}}, ["budget.hours", "0", "greater than 0"]),
    ({"budget": {"equal": "trials"}}, ["budget.equal", "'trials'", "'steps' or 'wall-clock'"]),
    (
        {"budget": {"explore_share": 0.8, "confirm_share": 0.3}},
        ["explore_share = 0.8", "confirm_share = 0.3", "below 1"],
    ),
    (
        {"budget": {"equal": "wall-clock", "calibrate_seeds": 0, "default_seeds": 0}},
        ["calibrate_seeds = 0", "default_seeds = 0", "from 1"],
    ),
    ({"budget": {"screen_length": 0}}, ["budget.screen_length", "0", "greater than 0"]),
    ({"budget": {"promote": 2}}, ["budget.promote", "2", "less than or equal to 1"]),
    ({"budget": {"decide_looks": 0}}, ["budget.decide_looks", "0"]),
    ({"budget": {"calibrate_arms": "some"}}, ["budget.calibrate_arms", "'baseline' or 'all'"]),
    ({"budget": {"arm_trials": {"adamw": 3}}}, ["budget.arm_trials", "filled in by the plan"]),
    ({"warm": {}}, ["warm", "filled in by the plan"]),
    ({"search": {"join": "some"}}, ["search.join", "'some'", "'auto', 'none' or 'all'"]),
    ({"study": {"warm_start": "old"}}, ["study.warm_start", "'old'", "a list"]),
    ({"arms": "sgd"}, ["arms = 'sgd': allowed: [[arms]], once for each arm"]),
    ({"arms": [{"optimizer": "SGD"}]}, ["arms[0].optimizer", "'SGD'", "did you mean 'sgd'"]),
    ({"budget": {"trials_per_arm": True}}, ["budget.trials_per_arm = True", "a number"]),
    ({"budget": {"hours": float("inf")}}, ["budget.hours = inf", "finite"]),
    ({"study": {"margin": True}}, ["study.margin = True", "a number"]),
    ({"run": {"slots": 0}}, ["run.slots", "0", "greater than or equal to 1"]),
]


@pytest.mark.parametrize(("change", "parts"), MISTAKES, ids=[str(c) for c, _ in MISTAKES])
def test_a_mistake_is_one_line(change: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        parse_spec(study_data(**change), "my.toml", "my")
    message = str(caught.value)
    assert message.startswith("my.toml: ")
    assert "\n" not in message
    assert all(part in message for part in parts), message


def test_several_mistakes_are_told_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        study_spec(study={"preset": "qick"}, run={"slots": 0})
    assert len(str(caught.value).splitlines()) == 2


def test_the_name_is_the_files(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(GOOD)
    spec = load_spec(file)
    assert spec.study.name == "mine"
    assert spec.arms[0].name == "adamw-constant"


def test_a_preset_fills_in_what_is_not_given() -> None:
    data = {"study": {"task": "tiny:build", "preset": "quick"}, "arms": [ADAMW]}
    spec = parse_spec(data, "f", "f")
    assert spec.budget.model_dump() | PRESETS["quick"] == spec.budget.model_dump()
    given_steps = parse_spec({**data, "budget": {"max_steps": 7, "confirm_top": 1}}, "f", "f")
    assert (given_steps.budget.max_steps, given_steps.budget.max_epochs) == (7, None)
    assert given_steps.budget.confirm_top == 1


@pytest.mark.parametrize("text", ["[study", 'study = "x"', "", "\x00"])
def test_a_file_that_is_no_study(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=r"bad\.toml: "):
        load_spec(file)


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    """Some editors begin every file with one."""
    file = tmp_path / "marked.toml"
    file.write_text(GOOD, encoding="utf-8-sig")
    assert load_spec(file).study.name == "marked"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        load_spec(tmp_path / "none.toml")


def test_overrides_are_toml_or_bare_words(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text(GOOD)
    spec = load_spec(file, ("budget.max_steps=5", "study.name=other", "search.lr=[1e-4, 1e-1]"))
    assert (spec.budget.max_steps, spec.study.name, spec.search.lr) == (5, "other", (1e-4, 1e-1))


def test_an_override_of_what_is_no_section_is_a_mistake() -> None:
    with pytest.raises(UsageError, match=r"study = 'tiny': allowed: a section, \[study\]"):
        override({"study": "tiny"}, "study.name=other")


@pytest.mark.parametrize("assignment", ["foo", "a.b.c=1", "lr=3", "arms.lr=1"])
def test_a_bad_override_says_what_is_allowed(assignment: str) -> None:
    with pytest.raises(UsageError, match=r"allowed: section\.key=value"):
        override({}, assignment)


sizes = st.one_of(
    st.integers(1, 512),
    st.lists(st.integers(1, 512), min_size=3, max_size=5, unique=True),
    st.tuples(st.integers(1, 16), st.integers(16, 512)).map(list),
)
decays = st.one_of(
    st.just("auto"), st.floats(0, 1), st.lists(st.floats(0, 1), min_size=2, max_size=2).map(sorted)
)


@given(batch_size=sizes, weight_decay=decays)
def test_a_stored_spec_reads_back_the_same(batch_size: Any, weight_decay: Any) -> None:
    spec = study_spec(search={"batch_size": batch_size, "weight_decay": weight_decay})
    assert StudySpec.model_validate(spec.model_dump(mode="json")) == spec


def test_an_arm_overrides_the_box() -> None:
    spec = study_spec(arms=[{**ADAMW, "lr": [1e-4, 1e-2], "batch_size": 16}, SGD])
    assert spec.box(spec.arms[0]).lr == (1e-4, 1e-2)
    assert spec.box(spec.arms[0]).batch_size == (16,)
    rest = spec.box(spec.arms[1]).model_copy(update={"reference_batch_size": None})
    assert rest == spec.search


@pytest.mark.parametrize(
    ("search", "length", "reference"),
    [
        ({}, "max_steps", 32),
        ({}, "max_epochs", 16),
        ({"lr": [1e-4, 1e-2]}, "max_steps", 16),
        ({"reference_batch_size": 8}, "max_steps", 8),
    ],
    ids=["equal steps", "equal examples", "a given range", "told so"],
)
def test_the_search_begins_at_the_largest_batch_of_equal_steps(
    search: dict[str, Any], length: str, reference: int
) -> None:
    data = study_data(search={"batch_size": [8, 32], **search})
    data["budget"] = {**data["budget"], "max_steps": None, length: 12}
    spec = parse_spec(data, "test.toml", "test")
    assert {spec.box(arm).reference for arm in spec.arms} == {reference}


SECTIONS = {
    "study": StudySection,
    "budget": BudgetSection,
    "search": SearchSection,
    "run": RunSection,
    "arms": ArmSection,
}
REFERENCE = Path(__file__).parents[2] / "docs" / "study-file.md"


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_is_documented(section: str) -> None:
    part = REFERENCE.read_text().split(f"## `[{'[arms]' if section == 'arms' else section}]`")[1]
    documented = re.findall(r"^\| `(\w+)` ", re.split(r"\n## |\n\| preset", part)[0], re.M)
    assert documented == list(SECTIONS[section].model_fields)


def test_the_reference_names_the_presets() -> None:
    rows = re.findall(r"^\| `(\w+)` \|((?: \d+ \|){3})$", REFERENCE.read_text(), re.MULTILINE)
    table = {key: [int(n) for n in numbers.split("|")[:-1]] for key, numbers in rows}
    keys = PRESETS["quick"]
    assert table == {key: [PRESETS[name][key] for name in PRESETS] for key in keys}
