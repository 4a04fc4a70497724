"""Where to start, and what is known to go wrong, on the command line."""

import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Tuner
from tests.jobs import TASKS
from tuner.recipes import RECIPES

# Two arms that one seed decides between, with one learning rate for two batch sizes.
MISTAKEN = """
[study]
task = "tiny:build"
[budget]
max_steps = 2
evaluations = 1
default_seeds = 0
trials_per_arm = 1
confirm_top = 2
confirm_seeds = 1
decide_seeds = 1
lr_range_steps = 20
[search]
lr = 0.01
batch_size = [8, 16]
weight_decay = 0.0
[run]
silence = ["OPT007"]
[[arms]]
optimizer = "adamw"
"""


@pytest.mark.parametrize("problem", RECIPES)
def test_advise_prints_the_recipe_and_its_reasons(tuner: Tuner, problem: str) -> None:
    recipe = RECIPES[problem]
    facts = tuner("optimizers", "advise", "--problem", problem, "--json").json
    assert (facts["optimizer"], facts["toml"]) == (recipe.optimizer, recipe.toml)
    text = tuner("optimizers", "advise", "--problem", problem).out
    assert all(reason in text for reason in recipe.reasons)
    assert text.endswith(recipe.toml)


def test_advise_without_a_problem_and_with_an_unknown_one(tuner: Tuner) -> None:
    assert tuner("optimizers", "advise", "--json").json["problem"] == "unsure"
    unknown = tuner("optimizers", "advise", "--problem", "visoin")
    assert unknown.code == 2
    assert "vision" in unknown.err


@pytest.mark.slow
def test_a_study_warns_before_it_starts(tuner: Tuner, tmp_path: Path) -> None:
    shutil.copy(TASKS / "tiny.py", tmp_path)
    (tmp_path / "small.toml").write_text(MISTAKEN)
    plan = tuner("study", "start", "small.toml", "--dry-run", "--json")
    [warning] = plan.json["warnings"]
    assert warning.startswith("OPT005: budget: one seed decides")
    told = f"tuner: warning: {warning}\n"
    assert told in plan.err
    started = tuner("--mlflow-uri", "none", "study", "start", "small.toml", "--json")
    assert started.code == 0, started.err
    assert started.err.startswith(told)
