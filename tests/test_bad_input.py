"""What a user can get wrong: one line that says what, and no traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mmbench.bench import pick_device
from mmbench.cli import app
from mmbench.errors import ConfigError, UnknownNameError

SUITE = "name: s\nmethods: [source]\ndatasets: [{name: synthetic-av, samples: 60}]\n"


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "suite.yaml"
    path.write_text(SUITE)
    return path


def run(*arguments: str) -> tuple[int, str]:
    found = CliRunner().invoke(app, list(arguments))
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return found.exit_code, found.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "none.yaml"), "cannot read suite none.yaml: No such file or directory"),
        (("run", "quickstar"), "did you mean: quickstart"),
        (("run", "suite.yaml", "--set", "budget.epoch=1"), "budget.epoch: Extra inputs"),
        (("run", "suite.yaml", "--set", "methods=[lorra-qv]"), "did you mean: lora-qv"),
        (("run", "suite.yaml", "--retry", "crashd"), "no status 'crashd'"),
        (("run", "suite.yaml", "--plugin", "none.py"), "none.py: No such file"),
        (("run", "suite.yaml", "--device", "tpu"), "device 'tpu'"),
        (("validate", "suite.yaml", "--set", "seeds=[]"), "seeds"),
        (("ls", "metods"), "metods"),
        (("show", "lorra-qv"), "lora-qv"),
        (("trial", "nowhere"), "cannot read nowhere/spec.json"),
        (("new", "method", "9 lives"), "9 lives"),
        (("backbone", "info", "nowhere"), "nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(suite: Path, arguments: tuple[str, ...], message: str) -> None:
    code, output = run(*arguments)
    assert code == 2, output
    assert message in " ".join(output.split())
    assert "Traceback" not in output
    assert len([line for line in output.splitlines() if line.startswith("error:")]) == 1


@pytest.mark.parametrize(
    "arguments",
    [("run",), ("nonsense",), ("run", "suite.yaml", "--workers", "0"), ("run", "suite.yaml", "--limit", "many")],
)
def test_a_wrong_command_line_is_exit_code_2(suite: Path, arguments: tuple[str, ...]) -> None:
    code, output = run(*arguments)
    assert code == 2
    assert "Traceback" not in output


def test_results_into_a_file_are_refused(suite: Path, cache: Path) -> None:
    code, output = run("run", "suite.yaml", "--out", "suite.yaml", "--device", "cpu")
    assert code == 2
    assert "cannot write results to suite.yaml" in output and "--out" in output


def test_a_dry_run_touches_nothing(suite: Path) -> None:
    code, output = run("run", "suite.yaml", "--dry-run")
    assert code == 0 and "1 trials" in output
    assert [path.name for path in suite.parent.iterdir()] == ["suite.yaml"]


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "mps", "meta", ""])
def test_a_device_that_cannot_be_used_is_refused(name: str) -> None:
    if name == "":
        assert pick_device(name).type in ("cpu", "cuda")
        return
    with pytest.raises(ConfigError, match="use cpu, cuda or cuda:N"):
        pick_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_said_so() -> None:
    with pytest.raises(ConfigError, match="torch sees no CUDA device"):
        pick_device("cuda")


def test_a_closed_pipe_ends_quietly(tmp_path: Path) -> None:
    code = f"{sys.executable} -m mmbench ls methods | head -n 1"
    found = subprocess.run(code, shell=True, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert "Traceback" not in found.stderr and "BrokenPipe" not in found.stderr


def test_the_nearest_names_are_offered_and_all_of_them_where_none_is_near() -> None:
    assert str(UnknownNameError("thing", "aple", ["apple", "zebra"])) == "no thing 'aple'; did you mean: apple?"
    assert str(UnknownNameError("thing", "xyz", ["pear", "apple"])) == "no thing 'xyz'; known: apple, pear"
    assert str(UnknownNameError("thing", "xyz", [])) == "no thing 'xyz'; known: none"
