"""Loading a task: what is found, and one clear line for everything that can be wrong."""

import sys
from pathlib import Path

import pytest

from tests.jobs import TASKS
from tuner.errors import TaskError, UsageError
from tuner.task import Task, load_task, user_code

PATH = (str(TASKS),)

USAGE_ERRORS = [
    ("tiny", 'task = "tiny": expected "package.module:function"'),
    (":build", 'task = ":build": expected "package.module:function"'),
    ("tiny:", 'task = "tiny:": expected "package.module:function"'),
    ("tiny:build()", 'task = "tiny:build()": expected "package.module:function"'),
    ("tinny:build", "no module 'tinny' in the current directory or PYTHONPATH; did you mean tiny?"),
    ("os.nothing_here:build", "no module 'os.nothing_here'"),
    ("tiny:biuld", "tiny has no 'biuld'; did you mean build?"),
    ("tiny:Batch", 'task = "tiny:Batch": returned a list, expected a Task'),
    ("faulty:not_a_task", "returned a dict, expected a Task"),
    ("tiny:__name__", "__name__ is a str, no function"),
]


@pytest.mark.parametrize(("spec", "message"), USAGE_ERRORS)
def test_a_bad_specification_is_one_line(spec: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_task(spec, PATH)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_task_is_found_in_the_search_path() -> None:
    task = load_task("tiny:build", PATH)
    assert isinstance(task, Task)
    assert len(task.train) == 203


def test_the_users_traceback_starts_in_the_users_file() -> None:
    with pytest.raises(TaskError) as caught:
        load_task("faulty:build_raises", PATH)
    error = caught.value
    assert str(error) == (
        "faulty:build_raises raised FileNotFoundError: no such data: /data/train.npy"
    )
    frames = [line for line in error.traceback.splitlines() if line.startswith("  File")]
    assert len(frames) == 1
    assert "faulty.py" in frames[0]
    assert error.traceback.rstrip().endswith("FileNotFoundError: no such data: /data/train.npy")


def test_a_missing_import_inside_the_task_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "needs_more.py").write_text("import a_package_that_is_not_there\n")
    with pytest.raises(TaskError, match="a_package_that_is_not_there") as caught:
        load_task("needs_more:build", (str(tmp_path),))
    assert "needs_more.py" in caught.value.traceback
    assert "importlib" not in caught.value.traceback


def test_a_syntax_error_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "typo_here.py").write_text("x = 1\ndef build(:\n")
    with pytest.raises(TaskError, match="SyntaxError") as caught:
        load_task("typo_here:build", (str(tmp_path),))
    assert 'typo_here.py", line 2' in caught.value.traceback


def test_tasks_in_packages_are_found(tmp_path: Path) -> None:
    package = tmp_path / "some_team" / "vision"
    package.mkdir(parents=True)
    (package / "small.py").write_text("from tiny import build\n")
    assert isinstance(load_task("some_team.vision.small:build", (*PATH, str(tmp_path))), Task)
    with pytest.raises(UsageError, match=r"did you mean some_team\.vision\.small"):
        load_task("some_team.vision.smal:build", (*PATH, str(tmp_path)))


def test_the_search_path_goes_before_what_is_installed(tmp_path: Path) -> None:
    load_task("tiny:build", (str(tmp_path), *PATH))
    load_task("tiny:build", (str(tmp_path), *PATH))
    assert sys.path.count(str(tmp_path)) == 1
    sys.path.remove(str(tmp_path))


BAD_FIELDS = [
    ("iterable_data", "train must be a map-style data set with __len__ and __getitem__"),
    ("iterable_data_with_a_length", "train must be a map-style data set .* not Endless"),
]


@pytest.mark.parametrize(("builder", "message"), BAD_FIELDS)
def test_fields_that_cannot_work_are_refused(builder: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        load_task(f"faulty:{builder}", PATH)


def test_a_shared_model_is_refused() -> None:
    import tiny

    with pytest.raises(TypeError, match="returns a fresh model"):
        tiny.build(model=tiny.network())
    with pytest.raises(TypeError, match="val is empty"):
        tiny.build(val=[])


def test_memory_errors_pass_through() -> None:
    with pytest.raises(MemoryError), user_code("a step raised"):
        raise MemoryError


def test_a_long_message_stays_one_short_line() -> None:
    with pytest.raises(TaskError) as caught, user_code("a step raised"):
        raise ValueError("many\nlines\n" * 100)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)
