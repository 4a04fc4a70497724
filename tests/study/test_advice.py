"""Recipes are valid study files without mistakes; each known mistake in a study is named."""

import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest

from optimizers.mistakes import MISTAKES
from tests.jobs import STUDIES
from tests.study.specs import ADAMW, SGD, study_data, study_spec
from tuner.advice import SMALL_DATA, warnings_for
from tuner.errors import UsageError
from tuner.recipes import RECIPES, Recipe
from tuner.spec import StudySpec, WarningCode, load_spec, override, parse_spec

PROBLEMS = [
    *("transformer", "vision", "rnn", "rl", "finetune", "large-batch", "sparse", "memory"),
    "unsure",
]
SHOWS = {"transformer": ["attention"], "finetune": ["attention"], "memory": ["attention"],
         "rnn": ["recurrent"], "unsure": ["attention"]}  # fmt: skip
FIXED = {"search": {"lr": 0.1, "weight_decay": 1e-4, "batch_size": 32}}


def study_of(recipe: Recipe) -> StudySpec:
    data = tomllib.loads(f'[study]\ntask = "mytask:build"\n\n{recipe.toml}')
    return parse_spec(data, recipe.problem, recipe.problem)


def codes(spec: StudySpec, **found: Any) -> list[str]:
    return [advice.code for advice in warnings_for(spec, found)]


def test_there_is_a_recipe_for_each_problem() -> None:
    assert list(RECIPES) == PROBLEMS


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_recipe_is_a_valid_study_file(recipe: Recipe) -> None:
    spec = study_of(recipe)
    first = spec.arms[0]
    assert (first.optimizer, first.schedule) == (recipe.optimizer, recipe.schedule)
    assert len(recipe.reasons) >= 3
    lr = spec.box(first).lr
    assert lr == "auto" or lr[0] <= recipe.start["lr"] <= lr[1]


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_recipe_makes_no_known_mistake(recipe: Recipe) -> None:
    shows = SHOWS.get(recipe.problem, [])
    assert codes(study_of(recipe), traits=shows, n_train=999) == []


@pytest.mark.parametrize(
    "path", sorted((STUDIES / "studies").glob("*.toml")), ids=lambda path: path.stem
)
def test_a_study_that_ships_makes_no_known_mistake(path: Path) -> None:
    assert codes(load_spec(path), n_train=1000) == []


def test_an_ordinary_study_makes_no_mistake() -> None:
    assert codes(study_spec(), n_train=100) == []


# (sections of the study, what the check found, code, what the message must contain)
MISTAKEN: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
    ({"arms": [{**ADAMW, "optimizer": "adam"}]}, {"traits": ["attention"]}, "OPT001", "'adam-"),
    (
        {"arms": [{**ADAMW, "schedule": "cosine"}]},
        {"traits": ["attention"]},
        "OPT002",
        "arm 'adamw-cosine'",
    ),
    ({"arms": [SGD]}, {"traits": ["recurrent"]}, "OPT003", "arm 'sgd-cosine'"),
    ({"arms": [SGD]}, {"traits": ["half precision"]}, "OPT003", "arm 'sgd-cosine'"),
    ({"arms": [SGD], **FIXED}, {"n_train": 5000}, "OPT004", "5000 training examples"),
    ({"budget": {"decide_seeds": 1}}, {}, "OPT005", "10 seeds"),
    ({"budget": {"decide_seeds": 0, "confirm_seeds": 1}}, {}, "OPT005", "budget"),
    ({"study": {"metric": "train_loss"}}, {}, "OPT006", "'train_loss'"),
    ({}, {"reseeds": True}, "OPT008", "'tiny:build': the model sets the seed"),
    ({}, {"validates_on_train": True}, "OPT006", "'tiny:build' validates on its training data"),
    ({"arms": [SGD], "search": {"lr": 0.01}}, {}, "OPT007", "batch sizes 8 to 32, lr = 0.01"),
    (
        {
            "arms": [
                {**SGD, "name": "small", "lr": 0.1, "batch_size": 16},
                {**SGD, "name": "large", "lr": 0.1, "batch_size": 512},
            ]
        },
        {},
        "OPT007",
        "arms 'small' and 'large', both with lr = 0.1",
    ),
]


@pytest.mark.parametrize(("sections", "found", "code", "says"), MISTAKEN)
def test_a_mistake_is_named_and_can_be_silenced(
    sections: dict[str, Any], found: dict[str, Any], code: str, says: str
) -> None:
    [advice] = warnings_for(study_spec(**sections), found)
    assert advice.code == code
    assert str(advice).startswith(f"{code}: ")
    assert says in str(advice)
    assert MISTAKES[code].remedy in str(advice)
    assert warnings_for(study_spec(**sections, run={"silence": [code]}), found) == []


RIGHT: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"arms": [SGD], **FIXED}, {"n_train": SMALL_DATA}),
    ({"arms": [SGD], **FIXED}, {}),
    ({"budget": {"decide_seeds": 1, "confirm_top": 1}}, {}),  # confirmation judges as well
    ({"arms": [{"optimizer": "prodigy"}], "search": {"lr": 1.0}}, {}),
    ({"arms": [ADAMW]}, {"traits": ["attention", "half precision"]}),
    ({"arms": [{**ADAMW, "optimizer": "adam"}], "search": {"weight_decay": 0.0}},
     {"traits": ["attention"]}),
]  # fmt: skip


@pytest.mark.parametrize(("sections", "found"), RIGHT)
def test_what_is_right_is_not_named(sections: dict[str, Any], found: dict[str, Any]) -> None:
    assert codes(study_spec(**sections), **found) == []


def test_the_study_file_knows_the_codes() -> None:
    assert get_args(WarningCode) == tuple(MISTAKES)
    with pytest.raises(UsageError, match=r"run.silence\[0\] = 'OPT999': allowed: 'OPT001', "):
        study_spec(run={"silence": ["OPT999"]})
    data = override(study_data(), 'run.silence=["OPT005"]')
    assert parse_spec(data, "test.toml", "test").run.silence == ("OPT005",)
