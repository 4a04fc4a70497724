"""The rules of the house: who imports whom, who owns which library, how large a file may be."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("optimizers", "tuner")
CODE_FOLDERS = (*PACKAGES, "studies", "tests", "benchmarks", "tools")
TEXT_SUFFIXES = {".py", ".pyi", ".md", ".toml", ".lock", ".yml", ".sh", ".sql", ".html", ".mako"}
MAX_LINES = 400

# A module may import from its own row and from rows above it. A package stands for all inside it.
LAYERS = {
    "optimizers": (
        ("optimizers.base", "optimizers.core", "optimizers.meta", "optimizers.parts"),
        ("optimizers.pieces", "optimizers.precision"),
        ("optimizers.rules", "optimizers.signatures"),
        ("optimizers.sharding",),
        (
            "optimizers.clipping",
            "optimizers.schedules",
            "optimizers.groups",
            "optimizers.mistakes",
            "optimizers.monitor",
        ),
        (
            "optimizers.around",
            "optimizers.batch",
            "optimizers.eager",
            "optimizers.stacks",
            "optimizers.engines",
            "optimizers.scheduling",
        ),
        ("optimizers.checkpoint",),
        ("optimizers.kernels",),
        ("optimizers.points", "optimizers.repeat", "optimizers.stepping"),
        ("optimizers.optimizer",),
        ("optimizers.classes", "optimizers.construct"),
        ("optimizers.wrappers",),
        ("optimizers.factory", "optimizers.stubs"),
        ("optimizers",),
    ),
    "tuner": (
        ("tuner.errors", "tuner.paths", "tuner"),
        ("tuner.records", "tuner.spec_values"),
        ("tuner.spec_sections",),
        ("tuner.spec", "tuner.task", "tuner.provenance", "tuner.recipes"),
        ("tuner.space",),
        ("tuner.surrogate", "tuner.observed"),
        ("tuner.search", "tuner.store", "tuner.executors.base", "tuner.compare"),
        ("tuner.stages",),
        (
            *("tuner.advice", "tuner.answer", "tuner.findings", "tuner.forecast"),
            *("tuner.jobs", "tuner.lease", "tuner.snippet", "tuner.standing"),
        ),
        ("tuner.seeding", "tuner.data", "tuner.checkpoint", "tuner.lr_curve", "tuner.snapshot"),
        ("tuner.lr_arguments",),
        ("tuner.lr_axis", "tuner.lr_batches", "tuner.lr_fit", "tuner.lr_ramp", "tuner.lr_response"),
        ("tuner.layers", "tuner.workload"),
        ("tuner.check", "tuner.lr_rigs"),
        ("tuner.lr_search",),
        ("tuner.lr_finder",),
        ("tuner.training",),
        ("tuner.executors",),
        ("tuner.progress", "tuner.range_tests"),
        ("tuner.runner",),
        ("tuner.service",),
        ("tuner.cli",),
        ("tuner.__main__",),
    ),
}
# These name the package's public face and load it lazily, so they may point anywhere inside it.
FACES = {"optimizers", "tuner"}

# Library -> the files and folders of the packages that may import it.
OWNERS = {
    "alembic": ("tuner/store/",),
    "click": ("tuner/cli/",),
    "matplotlib": ("tuner/compare/",),
    "mlflow": ("tuner/store/mlflow.py",),
    "optimizers": (
        "optimizers/",
        "tuner/advice.py",
        "tuner/check.py",
        "tuner/cli/",
        "tuner/layers.py",
        "tuner/lr_finder.py",
        "tuner/lr_rigs.py",
        "tuner/lr_search.py",
        "tuner/range_tests.py",
        "tuner/space.py",
        "tuner/spec.py",
        "tuner/workload.py",
    ),
    "optuna": ("tuner/search.py",),
    "plotext": ("tuner/compare/terminal.py",),
    "psycopg": ("tuner/store/",),
    "pynvml": ("tuner/executors/devices.py",),
    "rich": (
        "tuner/cli/",
        "tuner/progress.py",
        "tuner/compare/tables.py",
        "tuner/compare/terminal.py",
    ),
    "sqlalchemy": ("tuner/store/",),
    "tuner": ("tuner/",),
}
# `tuner --help` and shell completion must answer at once.
HEAVY = ("torch", "optuna", "mlflow", "sqlalchemy", "scipy", "matplotlib", "numpy", "pydantic")

PERSONAL_PATH = re.compile(r"(?<![\w.])/(work|root|home/\w+|Users/\w+|opt/pypi)/")


def python_files(*folders: str) -> list[Path]:
    """All Python files below folders of the project."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    """`tuner/store/__init__.py` -> `tuner.store`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """Names of all modules that a file imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node, path)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if is_module(inner) else base


def absolute(node: ast.ImportFrom, path: Path) -> str:
    """The module that `from ... import` names, also when it is written relative."""
    if not node.level:
        return node.module or ""
    package = path.relative_to(ROOT).parts[: -node.level]
    return ".".join([*package, *filter(None, [node.module])])


def is_module(name: str) -> bool:
    """Whether a dotted name is a module of this project."""
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def layer(module: str) -> int | None:
    """The row of a module: that of the longest matching name in LAYERS, or None."""
    rows = LAYERS[module.split(".")[0]]
    places = {name: row for row, names in enumerate(rows) for name in names}
    while module not in places and "." in module:
        module = module.rpartition(".")[0]
        if module in FACES:
            return None
    return places.get(module)


def relative(path: Path) -> str:
    """A path as the tables here write it."""
    return path.relative_to(ROOT).as_posix()


PACKAGE_FILES = [pytest.param(path, id=relative(path)) for path in python_files(*PACKAGES)]


def test_the_tables_name_each_module_once_and_none_that_is_not_there() -> None:
    named = [name for rows in LAYERS.values() for row in rows for name in row]
    assert len(set(named)) == len(named)
    assert [name for name in named if not is_module(name)] == []
    owners = {owner for group in OWNERS.values() for owner in group}
    assert {owner for owner in owners if not (ROOT / owner).exists()} == set()


@pytest.mark.parametrize("path", PACKAGE_FILES)
def test_imports_point_one_way(path: Path) -> None:
    module = module_name(path)
    own = layer(module)
    assert own is not None, f"{module} has no place in LAYERS"
    targets = {name for name in imports(path) if name.split(".")[0] == module.split(".")[0]}
    above = {name for name in targets if (layer(name) or 0) > own}
    assert module in FACES or not above, f"{module} imports from layers above its own"


@pytest.mark.parametrize("path", PACKAGE_FILES)
def test_a_library_has_one_owner(path: Path) -> None:
    strays = {
        name
        for name in (name.split(".")[0] for name in imports(path))
        if name in OWNERS and not relative(path).startswith(OWNERS[name])
    }
    assert not strays, f"{relative(path)} may not import {strays}; see OWNERS"


@pytest.mark.parametrize("path", python_files("optimizers"), ids=relative)
def test_optimizers_need_torch_only(path: Path) -> None:
    foreign = {name.split(".")[0] for name in imports(path)} - sys.stdlib_module_names
    assert foreign <= {"torch", "optimizers"}


@pytest.mark.parametrize("path", python_files("studies"), ids=relative)
def test_studies_use_the_public_face_only(path: Path) -> None:
    assert {name for name in imports(path) if name.startswith(PACKAGES)} <= FACES


@pytest.mark.parametrize("path", python_files(*CODE_FOLDERS), ids=relative)
def test_a_file_has_one_subject(path: Path) -> None:
    assert len(path.read_text().splitlines()) < MAX_LINES


def test_no_path_of_somebodys_machine() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    texts = (ROOT / name for name in listed if Path(name).suffix in TEXT_SUFFIXES)
    found = [relative(path) for path in texts if PERSONAL_PATH.search(path.read_text())]
    assert found == []


@pytest.mark.parametrize("package", PACKAGES)
def test_the_packages_are_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").exists()


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from tuner.cli.main import main\n"
        "try: main(['--help'])\n"
        f"finally: print(sorted(set(sys.modules) & set({HEAVY!r})), file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (run.returncode, run.stderr.strip()) == (0, "[]")
    assert "Usage: tuner" in run.stdout
