"""What a study learned from its failures is still known after a stop."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.store.samples import make_trial
from tests.study.specs import QUICK, states, study_spec
from tuner import service
from tuner.errors import TaskError
from tuner.service import Environment
from tuner.standing import known_limits


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.slow
def test_a_memory_limit_outlives_a_stop(env: Environment) -> None:
    """More than six examples at once do not fit; that is found out once, by one trial."""

    def met_it() -> bool:
        known = [s.name for s in env.store.list_studies()]
        return any(t.micro_batch and t.state == "completed" for t in rows()) if known else False

    def rows() -> list:
        return env.store.trials("small")

    spec = study_spec(**QUICK, study={"task": "faulty:memory_for_six"})
    assert service.start(spec, replace(env, should_stop=met_it)).study.state == "stopped"
    before = {t.number for t in rows()}
    assert service.resume("small", env).study.state == "completed"
    later = [t for t in rows() if t.number not in before and t.stage != "lr-range"]
    assert later
    assert {(t.micro_batch, t.attempts) for t in later} == {(4, 1)}


def test_a_memory_limit_never_grows_and_is_an_arms_own() -> None:
    found = [("a", 8), ("b", 32), ("a", 4), ("a", 16), ("c", None)]
    trials = [make_trial(n, arm=arm, micro_batch=size) for n, (arm, size) in enumerate(found)]
    assert known_limits(trials) == {"a": 4, "b": 32}


@pytest.mark.usefixtures("in_this_process")
def test_identical_failures_are_counted_across_a_stop(env: Environment) -> None:
    def failed() -> int:
        known = [s.name for s in env.store.list_studies()]
        return sum(t.state == "failed" for t in env.store.trials("small")) if known else 0

    spec = study_spec(**QUICK, study={"task": "faulty:loss_raises"})
    result = service.start(spec, replace(env, should_stop=lambda: failed() >= 1))
    assert result.study.state == "stopped"
    before = failed()
    assert 1 <= before < 3
    with pytest.raises(TaskError, match=r"3 trials failed with: .*KeyError"):
        service.resume("small", env)
    assert failed() == 3


@pytest.mark.slow
def test_data_that_changed_since_are_told(env: Environment, tmp_path: Path) -> None:
    task = tmp_path / "growing.py"
    text = "import tiny\n\ndef build():\n    return tiny.build(train=tiny.points(SIZE))\n"
    task.write_text(text.replace("SIZE", "200"))
    told: list[str] = []
    env = replace(env, search_path=(str(tmp_path), *env.search_path), warn=told.append)

    def until(completed: int) -> Environment:
        return replace(env, should_stop=lambda: states(env)["completed"] >= completed)

    spec = study_spec(**QUICK, study={"task": "growing:build"})
    assert service.start(spec, until(2)).study.state == "stopped"
    assert service.resume("small", until(states(env)["completed"] + 2)).study.state == "stopped"
    assert told == []
    task.write_text(text.replace("SIZE", "201"))
    assert service.resume("small", env).study.state == "completed"
    assert [text.partition(" not ")[0] for text in told] == ["the train data are"]
