"""What is built holds everything, and works away from the checkout."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("mmbench", "methods", "corruptions")
LS = ("-m", "mmbench", "ls")
NEEDED_BY_A_CHECKOUT = ("README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "tox.ini", "constraints.txt", ".ci/run")


def project(key: str) -> str:
    found = re.search(rf'^{key} = "([^"]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    assert found is not None
    return found.group(1)


def canonical(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name is not None, requirement
    return re.sub(r"[-_.]+", "-", name.group()).lower()


def package_files(folder: Path) -> set[str]:
    """Every file of the packages below a folder, compiled ones left out."""
    paths = (path for package in PACKAGES for path in (folder / package).rglob("*"))
    return {str(p.relative_to(folder)) for p in paths if p.is_file() and "__pycache__" not in p.parts}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution."""
    out = tmp_path_factory.mktemp("sdist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(out)], cwd=ROOT, check=True)
    (archive,) = out.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        files.extractall(out, filter="data")
    return out / f"mmbench-{project('version')}"


@pytest.fixture(scope="module")
def installed(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the wheel that the source distribution builds; a pure wheel is installed by unpacking it."""
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)], cwd=sdist, check=True)
    (archive,) = out.glob("*.whl")
    assert archive.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(archive) as files:
        files.extractall(out / "site")
    yield out / "site"


def distribution(site: Path) -> Distribution:
    (metadata,) = site.glob("mmbench-*.dist-info")
    return PathDistribution(metadata)


def run(site: Path, cwd: Path, *arguments: str) -> str:
    env = os.environ | {"PYTHONPATH": str(site), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_source_distribution_is_a_whole_checkout(sdist: Path) -> None:
    assert package_files(sdist) == package_files(ROOT)
    assert [name for name in NEEDED_BY_A_CHECKOUT if not (sdist / name).is_file()] == []
    assert {p.name for p in (ROOT / "tests").glob("*.py")} == {p.name for p in (sdist / "tests").glob("*.py")}


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_packages_and_no_other(installed: Path) -> None:
    assert package_files(installed) == package_files(ROOT)
    assert {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")} == set(PACKAGES)


@pytest.mark.slow
def test_the_wheel_works_away_from_the_checkout(installed: Path, tmp_path: Path) -> None:
    where = run(installed, tmp_path, "-c", "import mmbench.registry as r; print(r.__file__)")
    assert Path(where.strip()).is_relative_to(installed)
    listed = [entry["name"] for entry in json.loads(run(installed, tmp_path, *LS, "methods", "--json"))]
    assert {"full-finetune", "lora-qv", "adapter-houlsby", "prompt-the-missing"} <= set(listed)
    assert len(listed) == len(set(listed))
    assert run(installed, tmp_path, "-m", "mmbench", "validate", "quickstart").startswith("quickstart: valid")
    published = "from mmbench.report.published import published; print(len(published()))"
    assert int(run(installed, tmp_path, "-c", published)) > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["methods", "corruptions", "datasets"])
def test_no_entry_is_listed_twice_or_broken(installed: Path, tmp_path: Path, kind: str) -> None:
    text = run(installed, tmp_path, *LS, kind)
    assert "broken" not in text
    names = [line.split()[0] for line in text.splitlines()[1:] if line[:1].strip()]
    assert names
    assert len(names) == len(set(names))


@pytest.mark.slow
def test_declared_entry_points_name_modules_that_are_there(installed: Path) -> None:
    points = [point for point in distribution(installed).entry_points if point.group.startswith("mmbench.")]
    assert {point.group for point in points} >= {"mmbench.methods", "mmbench.corruptions"}
    paths = [Path(*point.module.split(".")).with_suffix(".py") for point in points]
    assert [path for path in paths if not (installed / path).is_file()] == []


@pytest.mark.slow
def test_metadata_names_the_licence_and_the_lowest_python(installed: Path) -> None:
    metadata = distribution(installed).metadata
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.10"


def test_every_direct_dependency_is_pinned_and_no_index_is_named() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {canonical(line) for line in lines}
    assert all(re.match(r"[a-z0-9-]+==[^ ]+( ; .*)?$", line) for line in lines), "only exact pins belong here"
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lists = re.findall(r"^(?:dependencies|test|lint) = \[(.*?)\]$", text, re.M | re.S)
    wanted = {canonical(name) for block in lists for name in re.findall(r'"([^"]+)"', block)}
    assert len(lists) == 3
    assert wanted - pinned == set()


def test_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    heading = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert heading is not None
    assert citation["version"] == heading.group(1) == project("version")
    assert citation["license"] == project("license")


@pytest.mark.parametrize("script", [".ci/run", "scripts/gpu_checks.sh", "scripts/reproduce_paper.sh"])
def test_scripts_are_executable_and_parse(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)


@pytest.mark.parametrize("script", ["gpu_checks.sh", "reproduce_paper.sh"])
def test_scripts_tell_what_they_do(script: str, tmp_path: Path) -> None:
    command = ["bash", str(ROOT / "scripts" / script), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: ")


def test_the_gpu_script_names_the_way_out_where_there_is_no_gpu(tmp_path: Path) -> None:
    env = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    command = ["bash", str(ROOT / "scripts" / "gpu_checks.sh"), str(tmp_path / "out")]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert (done.returncode, "PYTHON=" in done.stderr) == (2, True)
    assert not (tmp_path / "out").exists()
