"""Writes the README's tree: a line for each file, which is the first line of its docstring.

python tools/tree.py      (`make docs`; a test fails when the README is behind)
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
HEADING = "## The tree\n\n"
TEXT_COLUMN = 26

# What has no docstring of its own.
LINES = {
    "studies": "ready studies on real data, and the tasks that they name",
    "benchmarks": "side-by-side measurements; each prints a table and a ratio",
    "docs": "optimizers.md (generated), tutorial.md, operations.md (a team's server), decisions/",
    "tests": "mirrors the packages; see CONTRIBUTING.md",
    "tools": "what makes the environment and this tree",
}
# One line is enough: their files are of one kind, or told about elsewhere.
FOLDED = ("optimizers/rules", "tuner/store/migrations", "benchmarks", "docs", "tests")
SHOWN = ("optimizers", "tuner", "studies", "benchmarks", "docs", "tests", "tools")


def render() -> str:
    """The tree as an indented block."""
    return "".join(f"    {line}\n" for name in SHOWN for line in _lines(ROOT / name, 0))


def updated(text: str) -> str:
    """The README with a fresh tree, which is its last section."""
    return text.partition(HEADING)[0] + HEADING + render()


def _lines(path: Path, depth: int) -> Iterator[str]:
    name = path.relative_to(ROOT).as_posix()
    folder = path.is_dir()
    label = "  " * depth + path.name + "/" * folder
    yield f"{label:{TEXT_COLUMN}}{LINES.get(name) or _summary(path)}".rstrip()
    if folder and name not in FOLDED:
        for child in sorted(path.iterdir(), key=lambda child: (child.is_dir(), child.name)):
            if _is_shown(child):
                yield from _lines(child, depth + 1)


def _is_shown(path: Path) -> bool:
    if path.is_dir():
        return any(path.glob("*.py"))
    return path.suffix in (".py", ".toml") and path.name != "__init__.py"


def _summary(path: Path) -> str:
    """The first line of a module's docstring, or of a TOML file's comment."""
    if path.suffix == ".toml":
        return path.read_text().splitlines()[0].lstrip("# ")
    source = path / "__init__.py" if path.is_dir() else path
    docstring = ast.get_docstring(ast.parse(source.read_text())) if source.exists() else None
    return (docstring or "").partition("\n")[0]


if __name__ == "__main__":
    README.write_text(updated(README.read_text()))
