"""The guide for new methods: every example in it runs and keeps the rules, and one of each family is there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from mmbench import registry
from mmbench.cli import app
from mmbench.conformance import check_method

GUIDE = (registry.ROOT / "methods" / "README.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", GUIDE, re.M | re.S))
EXAMPLES = {
    title: code for title, body in SECTIONS.items() for code in re.findall(r"^```python\n(.*?)^```$", body, re.M | re.S)
}
NEW_ROW = "A new row in an existing family"


def check(kind: str, name: str) -> tuple[Any, ...]:
    if kind == "method":
        return check_method(name)
    if kind == "strategy":
        from mmbench.conformance_strategies import check_strategy

        return check_strategy(name)
    from mmbench.conformance_online import check_online

    return check_online(name)


@pytest.mark.parametrize("title", EXAMPLES)
def test_the_example_keeps_every_rule(title: str, use_plugin: Callable[[str], Path]) -> None:
    use_plugin(EXAMPLES[title])
    ((kind, name),) = re.findall(r'^@(method|strategy|online)\(\s*"([a-z-]+)"', EXAMPLES[title], re.M)
    findings = check(kind, name)
    assert len(findings) > 3
    assert [finding for finding in findings if not finding.ok] == []


@pytest.mark.parametrize("title", [title for title in EXAMPLES if "@strategy" not in EXAMPLES[title]])
def test_the_example_states_its_closed_form(title: str) -> None:
    assert 'parameters="' in EXAMPLES[title]  # conformance compares it with the count


def test_there_is_one_example_of_every_family() -> None:
    families = ("Selection", "Weight space", "Residual branch", "Prompt", "Side", "Training strategy", "Online adapter")
    for family in families:
        assert sum(title.startswith(family) for title in EXAMPLES) == 1, family


def test_a_new_row_takes_under_ten_lines() -> None:
    lines = [line for line in EXAMPLES[NEW_ROW].splitlines() if line.strip()]
    assert len(lines) < 10


def test_the_guide_names_verbs_that_exist_and_files_that_are_there() -> None:
    verbs = set(get_command(app).commands)  # type: ignore[attr-defined]
    assert set(re.findall(r"`mmbench ([a-z]+)", GUIDE)) - verbs == set()
    prose = re.sub(r"^```.*?^```$", "", GUIDE, flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)]+)\)", prose):
        assert (registry.ROOT / "methods" / target).exists(), target


def test_every_ablation_is_described() -> None:
    folder = Path(__file__).parents[1] / "leaderboards" / "ablations"  # not part of the installed package
    page = (folder / "README.md").read_text(encoding="utf-8")
    suites = {path.name for path in folder.glob("*.yaml")}
    assert set(re.findall(r"\]\(([a-z-]+\.yaml)\)", page)) == suites
