"""What the documents show is run here, so that it stays true."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from mmbench.cli import app
from mmbench.suite_file import load_suite
from mmbench.trials import rows, suite_cases

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAPER = (ROOT / "leaderboards" / "prompt-the-missing" / "README.md").read_text(encoding="utf-8")
SUITES = sorted(path for path in (ROOT / "leaderboards").glob("*/*.yaml"))
INTERNAL = {"trial"}  # started by `run`, not by people


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language in the README."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


def command_lines() -> list[str]:
    """Every line in the documents that starts mmbench, comments and what other programs do cut away."""
    shown = "\n".join(re.findall(r"^```sh\n(.*?)^```$", README + PAPER, re.M | re.S))
    inline = "\n".join(re.findall(r"`(mmbench [^`]*)`", README + PAPER))
    found = re.findall(r"(?:^|&& |/bin/)(mmbench [^#&|\n]*)", f"{shown}\n{inline}", re.M)
    return sorted({line.strip() for line in found})


def verbs() -> list[str]:
    """Every command, as `run` or `data prepare`."""
    names = []
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        below = getattr(command, "commands", None)
        names += [f"{name} {sub}" for sub in below] if below else [name]
    return names


def verb_of(line: str) -> str:
    words = shlex.split(line)[1:]
    two = " ".join(words[:2])
    return two if two in verbs() else words[0]


def heading_anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("number", range(len(blocks("yaml"))))
def test_suites_in_the_readme_are_valid(number: int, tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(blocks("yaml")[number], encoding="utf-8")
    suite = load_suite(path)
    assert rows(suite)
    assert suite_cases(suite)


@pytest.mark.parametrize("path", SUITES, ids=lambda path: str(path.relative_to(ROOT)))
def test_suites_of_the_boards_are_valid(path: Path) -> None:
    suite = load_suite(path)
    assert rows(suite)
    assert suite_cases(suite)


def test_the_readme_method_keeps_to_every_rule(use_plugin: Callable[[str], Path]) -> None:
    from mmbench.conformance import check_method

    (source,) = blocks("python")
    use_plugin(source)
    assert [finding for finding in check_method("norm-tuning") if not finding.ok] == []


def test_commands_in_the_documents_exist_with_their_options() -> None:
    lines = command_lines()
    assert len(lines) > 15
    for line in lines:
        verb = verb_of(line)
        assert verb in verbs(), f"`{line}` names no verb"
        usage = CliRunner().invoke(app, [*verb.split(), "--help"], env={"COLUMNS": "200"}).output
        for option in re.findall(r"--[a-z-]+", line):
            assert option in usage, f"`{line}`: {verb} has no {option}"


def test_every_verb_and_variable_stands_in_the_readme() -> None:
    named = {verb_of(line) for line in command_lines()}
    assert set(verbs()) - INTERNAL - named == set()
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "mmbench").rglob("*.py"))
    assert set(re.findall(r"\bMMBENCH_[A-Z_]+\b", code)) - set(re.findall(r"\bMMBENCH_[A-Z_]+\b", README)) == set()


def test_links_inside_the_repository_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", README)
    assert targets
    files = [target for target in targets if not target.startswith(("#", "http"))]
    assert [target for target in files if not (ROOT / target).exists()] == []
    anchors = {target[1:] for target in targets if target.startswith("#")}
    assert anchors - heading_anchors(README) == set()


def test_ci_runs_the_test_command_of_the_readme() -> None:
    found = re.search(r"^<!-- test command -->\n```sh\n(.+)\n```$", README, re.M)
    assert found is not None
    shown = subprocess.run(["bash", str(ROOT / ".ci" / "run"), "--show"], capture_output=True, text=True, check=True)
    assert shown.stdout == f"+ {found.group(1)}\n"


def test_the_table_of_the_readme_is_the_boards() -> None:
    script, board = ROOT / "scripts" / "readme_table.py", ROOT / "leaderboards" / "methods-tiny"
    printed = subprocess.run([sys.executable, str(script), str(board)], capture_output=True, text=True, check=True)
    shown = re.search(r"<!-- board table -->\n(.*)\n<!-- end of board table -->", README, re.S)
    assert shown is not None
    assert shown.group(1) == printed.stdout.strip()


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 300  # as every file
