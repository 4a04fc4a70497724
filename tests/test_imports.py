"""What a command or process must not import, because a person waits while it does."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.jobs import STUDIES, job
from tests.study.specs import study_spec
from tuner.service import new_study
from tuner.store.sql import open_store

COMPILERS = {"torch._dynamo", "torch._inductor"}
# What only reports, the search and the dashboard need.
RARE = COMPILERS | {"matplotlib", "mlflow", "optuna", "pandas", "scipy.stats", "sklearn", "sympy"}

# Run by one process in this order, so each has also loaded what those before it have.
COMMANDS = {
    "--help": RARE | {"numpy", "pydantic", "scipy", "sqlalchemy", "torch"},
    "study list": RARE | {"alembic", "optimizers", "scipy", "torch"},
    "study export small": RARE | {"alembic", "optimizers", "scipy", "torch"},
    "trial list small": RARE | {"alembic", "optimizers", "scipy", "torch"},
    "study show small": RARE | {"alembic"},
    "optimizers list": RARE | {"alembic"},
}
RUN_COMMANDS = """
from tuner.cli.main import run
for line in sys.argv[1:]:
    assert run(line.split()) == 0
    tell(line)
import tuner.service
tell("service")
"""
# The worker's module, then what `main` imports, then a training.
RUN_JOB = """
import tuner.executors.worker
tell("watchdog")
from tuner.records import Job
from tuner.training import run
assert run(Job.model_validate_json(sys.argv[1]), lambda *_: True).state == "completed"
tell("job")
"""


def loaded(code: str, *arguments: str, cwd: Path) -> dict[str, set[str]]:
    """The modules of a new process at each of its calls of `tell`."""
    tell = (
        "import json, sys\ntell = lambda key: print('\\ntold', json.dumps([key, *sys.modules]))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", tell + code, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(STUDIES)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    told = [json.loads(line[5:]) for line in run.stdout.splitlines() if line.startswith("told ")]
    return {key: set(modules) for key, *modules in told}


def test_commands_import_what_they_need(tmp_path: Path) -> None:
    (tmp_path / ".tuner").mkdir()
    store = open_store(f"sqlite:///{tmp_path}/.tuner/tuner.db")
    store.create_study(new_study(study_spec(), {}))
    store.close()
    told = loaded(RUN_COMMANDS, *COMMANDS, cwd=tmp_path)
    needless = {line: told[line] & unwanted for line, unwanted in COMMANDS.items()}
    assert needless == {line: set() for line in COMMANDS}
    assert told["service"] & (RARE | {"alembic"}) == set()


def test_a_worker_imports_what_it_needs(tmp_path: Path) -> None:
    told = loaded(RUN_JOB, job().model_dump_json(), cwd=tmp_path)
    assert told["watchdog"] & (RARE | {"numpy", "scipy", "sqlalchemy", "torch"}) == set()
    assert told["job"] & (RARE | {"rich", "sqlalchemy"}) == set()
