"""What the documentation says is true: its code runs, its tree and tables are complete."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from optimizers.optimizer import make_class
from tests.optimizers.helpers import drive, problem
from tests.optimizers.table import Row
from tests.reference import relative_error, run
from tools import tree
from tuner.cli import main

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
)


def blocks(page: str, *languages: str) -> list[tuple[str, str]]:
    """(language, text) of the fenced blocks in some languages, in order."""
    text = (ROOT / page).read_text()
    found = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S)
    return [(language, body) for language, body in found if language in languages]


def module(path: Path, source: str) -> ModuleType:
    """A module made from source text."""
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", (ROOT / page).read_text())
    missing = [target for target in targets if not (ROOT / page).parent.joinpath(target).exists()]
    assert missing == []


def test_the_readmes_tree_is_up_to_date() -> None:
    readme = (ROOT / "README.md").read_text()
    assert readme == tree.updated(readme), "run `make docs`"


def test_every_line_of_the_tree_says_something() -> None:
    assert [line for line in tree.render().splitlines() if len(line.split()) < 2] == []


def test_the_readmes_task_and_study_are_those_that_init_writes(tmp_path: Path) -> None:
    shell("tuner init mytask", tmp_path)
    assert blocks("README.md", "python")[0][1] == (tmp_path / "mytask.py").read_text()
    assert blocks("README.md", "toml")[0][1] == (tmp_path / "mytask.toml").read_text()


def test_the_readmes_optimizer_runs() -> None:
    namespace: dict[str, object] = {}
    exec(blocks("README.md", "python")[1][1], namespace)
    assert isinstance(namespace["optimizer"], torch.optim.Optimizer)


@pytest.mark.parametrize("page", ["README.md", "tuner --help"])
def test_exit_codes_and_variables_are_told(page: str) -> None:
    text = main.EPILOG if page == "tuner --help" else (ROOT / page).read_text()
    codes = set(re.findall(r"^\|? *(\d+) [ |]", text, re.M))
    assert codes == {"0", "1", "2", "3", "4", "130"}


def test_the_readme_lists_every_environment_variable() -> None:
    variables = {option.envvar for option in main.cli.params if getattr(option, "envvar", None)}
    listed = set(re.findall(r"`(TUNER_\w+)`", (ROOT / "README.md").read_text()))
    assert listed == variables


def test_the_guides_new_optimizer_works(tmp_path: Path) -> None:
    rule_source, formula_source, row_source = (
        body for _, body in blocks("CONTRIBUTING.md", "python")
    )
    [rule] = module(tmp_path / "signum.py", rule_source).RULES
    formula = module(tmp_path / "signum_reference.py", formula_source)
    row: Row = eval(row_source, {"Row": Row, "signum": formula})
    for settings in row.settings:
        start, grads = problem((5, 3), steps=20)
        param = start.clone().requires_grad_()
        optimizer = make_class(rule)([param], **settings)
        path = drive(optimizer, param, grads)
        expected = run(row.reference, start.numpy(), [g.numpy() for g in grads], **settings)
        assert relative_error(path[-1].numpy(), expected[-1]) < row.reference_error


def shell(command: str, folder: Path) -> str:
    """Run a shell command with this environment's programs; what it printed on stdout."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path: Path) -> None:
    for number, (language, body) in enumerate(blocks("docs/tutorial.md", "bash", "python")):
        script = tmp_path / f"block{number}.py"
        if language == "python":
            script.write_text(body)
        shell(body if language == "bash" else f"python {script.name}", tmp_path)
    assert (tmp_path / "lr.png").stat().st_size > 10_000
