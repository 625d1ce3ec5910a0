"""The registry: names without imports, plugins from outside, and clear words where two things collide."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mmbench import registry
from mmbench.cases import parse_case
from mmbench.conformance import check_method
from mmbench.corruption import load_corruption
from mmbench.errors import ConfigError, UnknownNameError
from mmbench.registry import ROOT

METHOD = """
from mmbench.method import Method
from mmbench.registry import method

@method("{name}", title="Outside", family="outside", reference="nobody", year=2026, memory="M0", options={{"k": 3}})
class Outside(Method):
    def build(self, rng):
        pass
"""
CORRUPTION = """
from mmbench.registry import corruption

@corruption("outside/dim", family="outside", modality="vision", stage="image", reference="nobody", severities=(1, 2))
def dim(image, draws, severity):
    return image // (severity + 1)
"""
HEAVY = ("torch", "timm", "peft", "pandas", "matplotlib", "scipy")


def python(code: str, folder: Path, **environment: str) -> str:
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **environment},
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_everything_is_listed_without_importing_torch(tmp_path: Path) -> None:
    listed = python(
        "import sys\nfrom mmbench import registry\n"
        "print(registry.methods().names(), registry.corruptions().names(), registry.datasets().names())\n"
        f"print([name for name in {HEAVY} if name in sys.modules])",
        tmp_path,
    )
    assert "lora-qv" in listed and "seed/audio-alone" in listed and "synthetic-av" in listed
    assert listed.splitlines()[-1] == "[]"


def test_help_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom mmbench.cli import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    assert python(code, tmp_path).splitlines()[-1] == "[]"


def test_a_plugin_file_brings_a_method_and_a_corruption(use_plugin: Callable[[str], Path]) -> None:
    path = use_plugin(METHOD.format(name="outside") + CORRUPTION)
    assert registry.methods().card("outside").title == "Outside"
    assert registry.methods().entry("outside").origin.label == str(path)
    assert [finding.message for finding in check_method("outside") if not finding.ok] == []
    case = parse_case({"name": "dim", "vision": "outside/dim@2"})
    assert case.severity() == 2
    assert load_corruption("outside/dim@2").card.family == "outside"


@pytest.mark.slow
def test_a_plugin_runs_end_to_end_from_anywhere(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "mine.py").write_text(METHOD.format(name="outside") + CORRUPTION)
    (tmp_path / "suite.yaml").write_text(
        "name: s\nmethods: [outside]\nregimes: [clean]\nseeds: [0]\n"
        "cases: [complete, {name: dim, vision: outside/dim@2}]\n"
        "datasets: [{name: synthetic-av, samples: 60}]\nbackbones: [{name: cavmae-tiny, epochs: 1}]\n"
        "budget: {samples: 20, tuning_trials: 1}\n"
    )
    command = [sys.executable, str(ROOT / "mmbench" / "__main__.py"), "run", "suite.yaml", "--plugin", "mine.py"]
    found = subprocess.run([*command, "--device", "cpu"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    from mmbench.records import load_record

    (path,) = tmp_path.glob("runs/s/trials/*/trial.json")
    record = load_record(path)
    assert record.status == "ok"
    assert {score.case for score in record.scores} == {"complete", "dim"}
    assert set(record.environment.plugins) == {"mine.py"}


def distribution(folder: Path, entry: str, module: str | None) -> None:
    """The least an installed package needs to be found."""
    info = folder / "outside_kit-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-kit\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[mmbench.methods]\n{entry}\n")
    if module is not None:
        (folder / "outside_kit.py").write_text(module)


SHOW = (
    "from mmbench import registry\nr = registry.methods()\n"
    "print('outside' in r.names(), len(r.names()) > 5, [(b.label, b.reason) for b in r.broken])\n"
    "if 'outside' in r.names():\n    print(r.entry('outside').origin.label, r.load('outside').card.name)"
)


@pytest.mark.slow
def test_an_installed_package_is_found_by_its_entry_point(tmp_path: Path) -> None:
    distribution(tmp_path / "site", "outside = outside_kit", METHOD.format(name="outside"))
    assert python(SHOW, tmp_path, PYTHONPATH=str(tmp_path / "site")).splitlines() == [
        "True True []",
        "outside-kit 1.0 outside",
    ]


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (None, "no module 'outside_kit'"),
        ("def broken(:\n", "invalid syntax"),
        (METHOD.format(name="lora-qv"), "method 'lora-qv' is defined twice"),
        ("from mmbench.registry import method\n@method('x', title='X')\nclass X: ...\n", "missing"),
    ],
)
def test_a_broken_entry_point_is_listed_and_not_fatal(tmp_path: Path, module: str | None, reason: str) -> None:
    distribution(tmp_path / "site", "outside = outside_kit", module)
    found = python(SHOW, tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert found.startswith("False True [('outside-kit 1.0: outside'")
    assert reason in found


def test_another_methods_folder_where_one_stands_does_no_harm_or_says_so(tmp_path: Path) -> None:
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "__init__.py").touch()
    (tmp_path / "methods" / "frozen.py").write_text("raise SystemExit('the wrong folder was imported')\n")
    (tmp_path / "methods" / "select.py").touch()
    script = [sys.executable, str(ROOT / "mmbench" / "__main__.py"), "ls", "methods"]
    assert "lora-qv" in subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    shadowed = (
        "import sys\nsys.path.insert(0, '')\nfrom mmbench import registry\nfrom mmbench.errors import ConfigError\n"
        "try:\n    registry.methods().load('linear-probe')\nexcept ConfigError as error:\n    print(error)"
    )
    assert "another folder of that name shadows it" in python(shadowed, tmp_path)


def test_two_definitions_of_one_name_are_named_with_their_files(use_plugin: Callable[[str], Path]) -> None:
    path = use_plugin(METHOD.format(name="lora-qv"))
    with pytest.raises(ConfigError, match=r"method 'lora-qv' is defined twice: in .*lora_qv\.py and in ") as caught:
        registry.methods()
    assert str(path) in str(caught.value)


def test_an_unknown_name_is_offered_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="no method 'lorra-qv'; did you mean: lora-qv"):
        registry.methods().card("lorra-qv")
    with pytest.raises(UnknownNameError, match="no method 'zzzz'; known: "):
        registry.methods().card("zzzz")


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("def broken(:\n", r"cannot read .*plugin\.py: invalid syntax"),
        (METHOD.format(name="x").replace("year=2026", "year=1 + YEAR"), r"plugin\.py:5: decorator takes one name and"),
        (METHOD.format(name="x").replace("year=2026, ", ""), r"plugin\.py: method 'x': .*'year'"),
        (METHOD.format(name="x").replace("year=", "yaer="), r"plugin\.py: method 'x': .*'yaer'"),
        (METHOD.format(name="x").replace("year=2026", "year=2026, needs={'cases': 'oracle'}"), r"'cases'"),
    ],
)
def test_a_broken_plugin_is_named(use_plugin: Callable[[str], Path], source: str, match: str) -> None:
    use_plugin(source)
    with pytest.raises(ConfigError, match=match):
        registry.methods()


def test_a_plugin_that_is_no_python_file_or_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConfigError, match=r"notes\.txt is not a \.py file"):
        registry.use_plugins((tmp_path / "notes.txt",))
    with pytest.raises(ConfigError, match=r"cannot read plugin .*none\.py: No such file"):
        registry.use_plugins((tmp_path / "none.py",))


def test_a_plugin_that_fails_on_import_can_be_mended_and_loaded(use_plugin: Callable[[str], Path]) -> None:
    use_plugin(METHOD.format(name="mended") + "raise RuntimeError('half way')\n")
    with pytest.raises(RuntimeError, match="half way"):
        registry.methods().load("mended")
    use_plugin(METHOD.format(name="mended"))
    assert registry.methods().load("mended").card.name == "mended"


def test_every_card_is_complete() -> None:
    for name in registry.methods().names():
        card = registry.methods().card(name)
        assert card.title and card.family and card.reference and card.memory in ("M0", "M1", "M2", "M3", "M4")
        low, high = card.lr_range
        assert high == pytest.approx(100 * low)  # two decades for every method: equal tuning
        assert registry.methods().load(name).card == card
