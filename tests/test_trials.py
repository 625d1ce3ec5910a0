"""A trial's spec: it survives the disk, its cases come back whole, its folder's name is safe."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from mmbench import registry, run, sweep
from mmbench.assets import assets_digest, assets_root, use_assets
from mmbench.cases import case_data, named_cases, parse_case
from mmbench.errors import ConfigError, DataError
from mmbench.method_options import resolve_options
from mmbench.suite_file import parse_suite
from mmbench.trials import Digests, Trial, make_trial, read_trial, rows

FOLDERS = {"backbone": Path("/models/b"), "store": Path("/stores/s")}
SUITE: dict[str, Any] = {"name": "s", "methods": ["lora-qv"], "regimes": ["casewise"], "seeds": [3]}


def trial(**changes: Any) -> Trial:
    suite = parse_suite({**SUITE, **changes})
    return make_trial(rows(suite)[0], suite, Digests("data", "backbone"), FOLDERS)


def test_a_spec_read_back_is_the_trial(tmp_path: Path) -> None:
    written = trial(budget={"epochs": 2.5, "memory_cap_gib": 0.25})
    (tmp_path / "spec.json").write_text(written.model_dump_json())
    assert read_trial(tmp_path) == written


@pytest.mark.parametrize("name", sorted(named_cases()))
def test_every_case_survives_as_plain_data(name: str) -> None:
    case = named_cases()[name]
    assert parse_case(case_data(case)) == case


def test_sets_are_expanded_and_training_cases_default_to_the_test_cases() -> None:
    made = trial(cases=["missing"])
    assert [case.name for case in made.parsed_cases()] == ["missing-audio", "missing-vision"]
    assert made.parsed_train_cases() == made.parsed_cases()
    apart = trial(cases=["missing"], train_cases=["complete"])
    assert [case.name for case in apart.parsed_train_cases()] == ["complete"]


def test_the_id_is_a_safe_and_readable_folder_name() -> None:
    made = trial()
    assert re.fullmatch(r"lora-qv-casewise-s3-[0-9a-f]{12}", made.id)
    assert trial(methods=["source"]).id.startswith("source-frozen-s3-")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"train_cases": ["missing"]}, {}, False),
        ({"regimes": ["clean"], "train_cases": ["missing"]}, {"regimes": ["clean"]}, True),  # it never sees them
        ({"tracks": ["blind", "informed"]}, {"tracks": ["informed", "blind"]}, True),
        ({"tracks": ["blind"]}, {}, False),
        ({"budget": {"optim": {"weight_decay": 0.5}}}, {}, False),
        ({"title": "other", "note": "other"}, {}, True),
        ({"methods": [{"name": "lora-qv", "label": "mine"}]}, {}, True),
        ({"datasets": [{"name": "synthetic-av", "label": "mine"}]}, {}, True),
        ({"datasets": [{"name": "synthetic-av", "split": {"seed": 4}}]}, {}, False),
    ],
)
def test_the_id_follows_what_is_run(one: dict[str, Any], other: dict[str, Any], same: bool) -> None:
    assert (trial(**one).id == trial(**other).id) == same


def test_a_spec_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    text = trial().model_dump_json().replace('"seed":3', '"seed":3,"sed":4', 1)
    (tmp_path / "spec.json").write_text(text)
    with pytest.raises(ConfigError, match=r"spec\.json is not a trial: sed: Extra inputs"):
        read_trial(tmp_path)


FLAT = """
from mmbench.registry import corruption

@corruption("own/flat", family="own", modality="audio", stage="fbank", reference="here")
def flat(x, draws, severity):
    return x * 0.5
"""


def test_editing_a_corruption_from_outside_makes_another_trial(use_plugin: Callable[[str], Path]) -> None:
    path = use_plugin(FLAT)
    case = {"name": "own", "audio": "own/flat@2"}
    before = trial(cases=[case]).id
    assert trial(cases=[case]).id == before
    path.write_text(FLAT.replace("0.5", "0.25"), encoding="utf-8")
    assert trial(cases=[case]).id != before


def test_the_data_set_s_name_keys_the_draws_and_so_the_id() -> None:
    other = {"name": "folder-pairs", "root": "x"}
    assert trial(datasets=[other]).id != trial(datasets=[{**other, "name": "cifar10-av"}]).id


@pytest.fixture
def recordings(tmp_path: Path) -> Iterator[Path]:
    """A folder of assets, not in use; none is in use afterwards."""
    (tmp_path / "own" / "rain").mkdir(parents=True)
    soundfile.write(tmp_path / "own" / "rain" / "a.wav", np.sin(np.arange(4000)), 16_000)
    yield tmp_path / "own"
    use_assets(None)


def test_assets_enter_the_id_by_content_and_not_by_place(recordings: Path) -> None:
    suite = parse_suite({**SUITE, "assets": "own"}, recordings.parent / "suite.yaml")
    digests = [Digests("data", "backbone", content) for content in ("", "one", "two")]
    made = [make_trial(rows(suite)[0], suite, digest, FOLDERS) for digest in digests]
    assert made[0].assets == recordings
    assert made[0].id == trial().id and len({each.id for each in made}) == 3


def test_a_suite_s_assets_are_in_use_where_it_is_planned_and_where_it_runs(
    recordings: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found: list[Path | None] = []

    def prepared(*_: object) -> tuple[Digests, dict[str, Path]]:
        found.append(assets_root())
        return Digests("data", "backbone", assets_digest()), FOLDERS

    def ran(*_: object) -> None:
        found.append(assets_root())
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "_prepare", prepared)
    monkeypatch.setattr(run, "_run", ran)
    suite = parse_suite({**SUITE, "assets": str(recordings)})
    ((made, _),) = sweep.plan(suite, tmp_path, torch.device("cpu"), lambda event: None)
    (tmp_path / "spec.json").write_text(made.model_dump_json())
    use_assets(None)
    with pytest.raises(KeyboardInterrupt):
        run.run_trial(tmp_path, torch.device("cpu"))
    assert found == [recordings, recordings]


@pytest.mark.parametrize("place", ["rain/b.wav", "frost/b.png"])
def test_a_broken_asset_is_named_before_anything_is_prepared(
    place: str, recordings: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sweep, "_prepare", lambda *_: pytest.fail("data are read and a backbone is trained"))
    (recordings / place).parent.mkdir(exist_ok=True)
    (recordings / place).write_bytes(b"neither")
    suite = parse_suite({**SUITE, "assets": str(recordings)})
    with pytest.raises(DataError, match=rf"{place}: .*; mend or remove it"):
        sweep.plan(suite, tmp_path, torch.device("cpu"), lambda event: None)


def test_two_rows_that_are_one_trial_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sweep, "_prepare", lambda *_: (Digests("data", "backbone"), FOLDERS))
    twins = [{"name": "lora-qv"}, {"name": "lora-qv", "label": "the same"}]
    suite = parse_suite({**SUITE, "methods": twins})
    with pytest.raises(ConfigError, match="two rows of suite s are the same trial lora-qv-casewise-s3"):
        sweep.plan(suite, tmp_path, torch.device("cpu"), lambda event: None)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (["lora-qv+mixup+mixup"], "names mixup twice"),
        (["lora-qv+tent+read"], "names two online adapters"),
        (["lora-qv+clean+mixed"], "names two regimes"),
        (["lora-qv+mixd"], "no regime, strategy or online adapter 'mixd'; did you mean: mixed"),
        (["tent"], r"'tent' is an online adapter; combine it with a method: lora-qv\+mixed\+tent"),
        (["mixup"], "'mixup' is a training strategy"),
        (["source+mixed+read"], "source does not train, so it has no regime"),
        (["source+mixup"], "a training strategy has nothing to act on"),
    ],
)
def test_combinations_that_cannot_be_meant_are_refused(methods: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rows(parse_suite({"name": "s", "methods": methods}))


def test_a_combined_name_may_stand_in_a_mapping() -> None:
    entry = {"name": "lora-qv+mixed+mixup+read", "options": {"rank": 4}, "label": "mine"}
    (spec,) = parse_suite({"name": "s", "methods": [entry]}).methods
    assert (spec.name, spec.regimes, spec.options, spec.label) == ("lora-qv", ("mixed",), {"rank": 4}, "mine")
    assert [part.name for part in spec.strategies] == ["mixup"]
    assert spec.online is not None and spec.online.name == "read"


def test_a_base_with_its_default_written_out_is_the_same_trial() -> None:
    entry = {"name": "lora-qv", "regimes": ["mixed"], "options": {"rank": 8}, "online": "tent"}
    grid = rows(parse_suite({"name": "s", "methods": ["lora-qv+mixed", entry], "seeds": [0]}))
    assert [row.method.title for row in grid] == ["lora-qv", "lora-qv+tent"]


def test_whole_numbers_serve_as_options_that_are_not_counts() -> None:
    card = registry.onlines().card("eata")
    assert resolve_options(card, {"fisher": 0})["fisher"] == 0.0
    assert isinstance(resolve_options(card, {"lr": 1})["lr"], float)
