"""CONTRIBUTING.md and the forms name commands, files and actions that are there, and the workflow may do little."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from mmbench.cli import app

ROOT = Path(__file__).resolve().parents[1]
GITHUB = ROOT / ".github"
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
LINES = sorted(set(re.findall(r"^(mmbench [^#&|\n]*)", TEXT, re.M)))
FORMS = sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yml"))


def command(words: list[str]) -> tuple[Any, list[str]]:
    """The command that a line starts, and what it is given."""
    found: Any = get_command(app)
    while words and words[0] in getattr(found, "commands", {}):
        found, words = found.commands[words[0]], words[1:]
    return found, words


@pytest.mark.parametrize("line", LINES)
def test_commands_and_their_options_exist(line: str) -> None:
    found, words = command(shlex.split(line)[1:])
    assert not hasattr(found, "commands"), f"{line} names no verb"
    known = {option for parameter in found.params for option in parameter.opts}
    assert {word for word in words if word.startswith("-")} <= known


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)]+)\)", TEXT))))
def test_linked_files_exist(target: str) -> None:
    assert (ROOT / target).exists()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(?:pytest|python) ([\w/]+\.py)", TEXT))))
def test_named_scripts_and_tests_exist(path: str) -> None:
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_forms_are_whole(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert form["name"] and form["description"]
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids)
    assert all(field["attributes"]["label"] for field in form["body"])


def workflow() -> dict[Any, Any]:
    content = yaml.safe_load((GITHUB / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def test_the_workflow_reads_and_nothing_more() -> None:
    text = (GITHUB / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert workflow()["permissions"] == {"contents": "read"}
    assert "secrets." not in text and "pull_request_target" not in text
    steps = [step for job in workflow()["jobs"].values() for step in job["steps"]]
    used = {step["uses"] for step in steps if "uses" in step}
    assert all(re.fullmatch(r"actions/(checkout|setup-python)@v\d+", name) for name in used)
    checkouts = [step for step in steps if step.get("uses", "").startswith("actions/checkout")]
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_the_workflow_runs_the_tests_and_rebuilds_the_boards() -> None:
    runs = [step["run"] for job in workflow()["jobs"].values() for step in job["steps"] if "run" in step]
    assert ".ci/run" in runs and "python scripts/rebuild_boards.py" in runs
    assert (ROOT / ".ci" / "run").is_file() and (ROOT / "scripts" / "rebuild_boards.py").is_file()
