"""The page of optimizers is what the rows say now, whole, and shows the classic facts."""

import re

import pytest

import optimizers
from optimizers import schedules
from optimizers.mistakes import MISTAKES
from optimizers.wrappers import WRAPPERS
from tools import optimizers_page
from tuner.recipes import RECIPES

TEXT = optimizers_page.PAGE.read_text()


def section(name: str) -> str:
    """What stands under a heading, up to the next one."""
    return re.split(r"^##+ ", TEXT.partition(f"\n### {name}\n")[2], maxsplit=1, flags=re.M)[0]


def row(start: str) -> list[str]:
    [line] = [line for line in TEXT.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in line.strip("|").split(" | ")][1:]


def test_the_page_is_up_to_date() -> None:
    assert optimizers_page.render() == TEXT, "run `make docs`"


@pytest.mark.parametrize("name", optimizers.names())
def test_every_rule_is_there_with_all_of_its_arguments(name: str) -> None:
    rule, text = optimizers.get_rule(name), section(name)
    for key in (*rule.hypers, *rule.options):
        assert f"\n| `{key}` |" in text
    assert rule.paper in text
    assert rule.equations.strip() in text


@pytest.mark.parametrize("name", schedules.names())
def test_every_schedule_is_there_with_all_of_its_numbers(name: str) -> None:
    for key in schedules.SCHEDULES[name].numbers():
        assert f"\n| `{key}` |" in section(name)


def test_wrappers_recipes_and_warnings_are_there() -> None:
    assert all(section(name) for name in WRAPPERS)
    assert all(row(f"`{problem}`") for problem in RECIPES)
    assert all(row(code) for code in MISTAKES)


def test_the_links_within_the_page_lead_to_headings() -> None:
    headings = re.findall(r"^##+ (.*)$", TEXT, re.M)
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= set(headings)
    assert len(headings) == len(set(headings))


def test_the_classic_facts() -> None:
    assert row("adagrad") == ["0.0200", "0.0063", "0.0020", "0.0006", "0.0002"]
    assert row("rmsprop, alpha=0.9") == ["0.0632", "0.0248", "0.0200", "0.0200", "0.0200"]
    assert row("0") == ["1", "1", "1", "1", "2", "0.002"]  # arrays: SGD, momentum, ..., Adafactor
    decays = [line.split(" | ")[-2:] for line in TEXT.splitlines() if "| sgd | " in line]
    assert decays
    assert all(l2 == decoupled.rstrip(" |") for l2, decoupled in decays)
    decays = [line.split(" | ")[-2:] for line in TEXT.splitlines() if "| adam | " in line]
    assert all(l2 != decoupled.rstrip(" |") for l2, decoupled in decays)
    assert "passes per step: 2." in section("sam")


def test_the_code_runs(capsys: pytest.CaptureFixture[str]) -> None:
    [code] = re.findall(r"^```python\n(.*?)^```$", TEXT, re.M | re.S)
    exec(code, {})
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["0", "2"]
