"""What a person types is checked once, before anything is built; what decides a split is part of a trial's id."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mmbench import doctor, registry
from mmbench.config import Suite
from mmbench.errors import ConfigError, UnknownNameError
from mmbench.listing import describe
from mmbench.runner import read_suite
from mmbench.scaffold import write_method
from mmbench.suite_file import parse_suite
from mmbench.trials import Digests, make_trial, rows

FOLDERS = {"store": Path("store"), "backbone": Path("backbone")}


def suite(group_pattern: str | None = None, **changes: object) -> Suite:
    dataset = {"name": "folder-pairs", "root": "clips", "group_pattern": group_pattern}
    return parse_suite({"name": "s", "methods": ["linear-probe+clean"], "seeds": [0], "datasets": [dataset], **changes})


def trial_name(of: Suite) -> str:
    (row,) = rows(of)
    return make_trial(row, of, Digests("data", "backbone"), FOLDERS).id


def test_other_groups_cut_other_splits_and_make_other_trials() -> None:
    names = {trial_name(suite(pattern)) for pattern in (None, "^([a-z]+)", "^([0-9]+)")}
    assert len(names) == 3


def test_an_unknown_backbone_is_named_before_anything_is_built() -> None:
    with pytest.raises(UnknownNameError, match="no backbone 'cavmae-tny'; did you mean: cavmae-tiny"):
        rows(suite(backbones=["cavmae-tny"]))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"seeds": [-1]}, r"suite : seeds\.0: [^;]*\(got -1\)$"),
        ({"budget": {"epochs": float("inf")}}, r"budget\.epochs: .*finite"),
        ({"budget": {"epoch": 1}}, r"budget\.epoch: .*did you mean: epochs\?$"),
        ({"tracks": []}, "tracks: List should have at least 1 item"),
        ({"methods": [{"nam": "x"}]}, r"did you mean: name\?$"),
    ],
)
def test_a_wrong_value_is_told_once_with_the_way_out(changes: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        suite(**changes)  # type: ignore[arg-type]


def test_a_plugin_that_registers_nothing_is_an_error(use_plugin: Callable[[str], Path]) -> None:
    use_plugin("import torch\n")
    with pytest.raises(ConfigError, match=r"plugin\.py registers nothing"):
        registry.check_plugins()


@pytest.mark.parametrize("name", ["lora-qv", "class"])
def test_a_skeleton_never_takes_a_name_that_is_in_use(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' is taken"):
        write_method(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_kind_is_no_suite(tmp_path: Path) -> None:
    path = tmp_path / "suite.txt"
    path.write_text("name: s\n")
    with pytest.raises(ConfigError, match=r"suite\.txt is no suite: a suite's file ends in \.yaml"):
        read_suite(path)


def test_a_set_of_cases_and_what_fills_a_gap_can_be_shown() -> None:
    assert describe("paper")["cases"] == ("complete", "noise-to-audio", "noise-to-vision", "noise-to-both")
    assert describe("missing-audio")["what"] != describe("missing-audio-mean")["what"]


def test_a_cache_that_is_a_file_is_diagnosed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("")
    monkeypatch.setenv("MMBENCH_CACHE", str(tmp_path / "cache"))
    assert not next(finding for finding in doctor.report() if finding.what == "cache").ok
