"""Frozen test sets: the very batches that corrupting gives, under the same digest, and nothing damaged or foreign."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from beds import HeadOnly, make, make_bench
from typer.testing import CliRunner

from mmbench import freeze, run, sweep
from mmbench.cases import Case, Missing, parse_case
from mmbench.cli import app
from mmbench.conformance_bed import SIZES
from mmbench.data.embedded import SyntheticSource
from mmbench.data.splits import Splits
from mmbench.data.store import build_store
from mmbench.errors import DataError
from mmbench.evaluate import Predictions, feeds_for, predict_cases
from mmbench.feed import EvalFeed, TrialData
from mmbench.freeze import check_sets, write_sets
from mmbench.pipeline import SetDigest
from mmbench.prepare import frozen_sets, reopen_data, with_frozen
from mmbench.records import RECORD
from mmbench.report.board import portable_suite
from mmbench.suite_file import parse_suite
from mmbench.train import SINGLE, Fitted, Ledger
from mmbench.trials import Digests, Trial, make_trial, rows

COMPLETE = Case("complete")
NOISY = Case("noisy", audio="seed/audio-alone", vision="seed/vision-alone")
FOG = parse_case("imagenet_c/fog@3")
HALF = Case("half", missing=Missing("mixed", rate=0.5, vision_fill="mean"))
CASES = (COMPLETE, NOISY, FOG, HALF)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrialData:
    store = build_store(SyntheticSource(30, 0), SIZES.frames, SIZES.image_size, tmp_path_factory.mktemp("stores"))
    splits = Splits(store.ids[:10], store.ids[10:20], store.ids[20:], "random", False, "")
    return TrialData("synthetic-av", store, splits, False, True)


@pytest.fixture(scope="module")
def written(data: TrialData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frozen")
    write_sets(data, CASES, folder)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(written, tmp_path / "copy"))


def frozen(data: TrialData, folder: Path) -> TrialData:
    return with_frozen(data, folder, CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("size", [3, 64])
def test_batches_and_digest_are_those_of_corrupting(case: Case, size: int, data: TrialData, written: Path) -> None:
    one, other = SetDigest(), SetDigest()
    made = EvalFeed(data, "test", case, size).batches(one)
    read = EvalFeed(frozen(data, written), "test", case, size).batches(other)
    for ours, theirs in zip(made, read, strict=True):
        assert (ours.ids, ours.case) == (theirs.ids, theirs.case)
        for name in ("audio", "image", "label", "available", "affected"):
            left, right = getattr(ours, name), getattr(theirs, name)
            assert left.dtype == right.dtype and torch.equal(left, right), name
    assert one.hexdigest() == other.hexdigest()


def test_predictions_are_equal_and_nothing_is_corrupted(
    data: TrialData, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make(HeadOnly)

    def predictions(of: TrialData) -> list[tuple[str, str, list[float]]]:
        fitted = Fitted({SINGLE: method.state()}, Ledger())
        found = predict_cases(method, fitted, feeds_for(of, "test", CASES, 4), ("blind",), make_bench())
        assert all(isinstance(entry, Predictions) for entry in found)
        return [(e.case, e.digest, e.logits.flatten().tolist()) for e in found if isinstance(e, Predictions)]

    made = predictions(data)
    monkeypatch.setattr("mmbench.feed.stage_case", None)
    assert predictions(frozen(data, written)) == made


def test_any_order_of_the_samples_can_be_read(data: TrialData, written: Path) -> None:
    ids = tuple(reversed(data.splits.test))
    turned = replace(data, splits=replace(data.splits, test=ids))
    (made,) = EvalFeed(turned, "test", HALF, 64).batches()
    (read,) = EvalFeed(frozen(turned, written), "test", HALF, 64).batches()
    assert read.ids == ids and torch.equal(made.audio, read.audio) and torch.equal(made.image, read.image)


def test_other_splits_are_still_corrupted_on_the_fly(data: TrialData, written: Path) -> None:
    (batch,) = EvalFeed(frozen(data, written), "val", FOG, 64).batches()
    assert batch.ids == data.splits.val


def test_what_sets_have_in_common_is_kept_once_and_pictures_in_eight_bits(data: TrialData, written: Path) -> None:
    sets = frozen_sets(data, written)
    complete, fog, half = (sets.open(case).manifest.arrays for case in (COMPLETE, FOG, HALF))
    assert complete.audio == fog.audio and complete.image != fog.image
    pixels = len(data.splits.test) * 3 * SIZES.image_size**2
    assert pixels < fog.image.size_bytes < pixels + 1000 < 4 * pixels < half.image.size_bytes


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "match"), [(cut, "has [0-9]+ of [0-9]+ bytes"), (flip, "has changed"), (Path.unlink, "No such file")]
)
@pytest.mark.parametrize("name", ["audio", "image", "label", "content"])
def test_a_damaged_or_absent_array_is_named(
    name: str, harm: Callable[[Path], None], match: str, data: TrialData, folder: Path
) -> None:
    sets = frozen_sets(data, folder)
    path = folder / "arrays" / f"{getattr(sets.open(NOISY).manifest.arrays, name).sha256}.npy"
    harm(path)
    with pytest.raises(DataError, match=f"{path.name}.*{match}.*mmbench data corrupt"):
        frozen(data, folder)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ('"digest": "', '"digest": "x', "is no frozen set"),
        ('"layout": 1', '"layout": 2', "has changed since it was written"),
        ("}\n", "", "is no frozen set"),
    ],
)
def test_a_damaged_manifest_is_named(old: str, new: str, match: str, data: TrialData, folder: Path) -> None:
    path = frozen_sets(data, folder).path(FOG)
    path.write_text(path.read_text()[::-1].replace(old[::-1], new[::-1], 1)[::-1])
    with pytest.raises(DataError, match=f"{path.name} {match}.*write it anew"):
        frozen(data, folder)


def test_a_set_of_another_case_under_this_name_is_refused(data: TrialData, folder: Path) -> None:
    sets = frozen_sets(data, folder)
    shutil.copy(sets.path(FOG), sets.path(COMPLETE))
    with pytest.raises(DataError, match=r"was made for another case \(.*fog.* there, .*complete.* here\)"):
        sets.open(COMPLETE)


def foreign(data: TrialData, what: str) -> tuple[TrialData, Case]:
    """Data or a case that differ from what was frozen in one thing."""
    if what == "case":
        return data, Case("noisy", audio="seed/audio-alone")
    fewer = replace(data.splits, test=data.splits.test[:-1])
    return (replace(data, splits=fewer) if what == "test samples" else data), NOISY


@pytest.mark.parametrize("what", ["case", "test samples", "protocol", "draws", "data", "assets", "corruptions"])
def test_a_foreign_set_is_refused_with_what_differs(
    what: str, data: TrialData, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, case = foreign(data, what)
    if what in ("protocol", "draws", "assets"):
        target = {"protocol": "prepare.PROTOCOL", "draws": "frozen.EVALUATION", "assets": "frozen.assets_digest"}[what]
        monkeypatch.setattr(f"mmbench.{target}", (lambda: "other") if what == "assets" else 99)
    if what == "data":
        monkeypatch.setattr(type(data.store), "digest", "other")
    if what == "corruptions":
        monkeypatch.setattr("mmbench.frozen._definitions", lambda case: {"seed/audio-alone": "other"})
    with pytest.raises(DataError, match=rf"noisy-\w+\.json was made for another {what} \(.* there, .* here\)"):
        with_frozen(other, folder, (case,))


def test_a_case_or_folder_that_is_not_there_is_named(data: TrialData, written: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no frozen set of synthetic-av under 'imagenet_c/fog@1'; write it with"):
        with_frozen(data, written, (parse_case("imagenet_c/fog@1"),))
    with pytest.raises(DataError, match=r"no folder of frozen sets .*nowhere; write it with mmbench data corrupt"):
        with_frozen(data, tmp_path / "nowhere", CASES)


class FullDisk:
    """Writing fails from the n-th picture array on."""

    def __init__(self, real: Callable[..., Any], error: BaseException) -> None:
        self._real, self._error, self._pictures = real, error, 0

    def __call__(self, folder: Path, name: str, *rest: Any) -> Any:
        self._pictures += name == "image"
        if self._pictures == 2:
            raise self._error
        return self._real(folder, name, *rest)


@pytest.mark.parametrize(
    ("error", "told"),
    [(OSError(errno.ENOSPC, "No space left on device"), "No space left .*free some space"), (KeyboardInterrupt(), "")],
)
def test_what_ends_the_writing_early_leaves_whole_sets_only_and_the_next_call_goes_on(
    error: BaseException, told: str, data: TrialData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(freeze, "_Sink", FullDisk(freeze._Sink, error))
        with pytest.raises((DataError, KeyboardInterrupt), match=told or None):
            write_sets(data, CASES, out)
    sets = frozen_sets(data, out)
    assert sorted(path.name for path in out.iterdir()) == sorted(["arrays", sets.path(COMPLETE).name])
    kept = sets.path(COMPLETE).stat().st_mtime_ns
    write_sets(data, CASES, out)
    check_sets(data, CASES, out)
    assert sets.path(COMPLETE).stat().st_mtime_ns == kept


def test_writing_anew_heals_an_array(data: TrialData, folder: Path) -> None:
    sets = frozen_sets(data, folder)
    flip(folder / "arrays" / f"{sets.open(FOG).manifest.arrays.image.sha256}.npy")
    with pytest.raises(DataError, match=r"fog.*has changed"):
        write_sets(data, CASES, folder)
    sets.path(FOG).unlink()
    write_sets(data, CASES, folder)
    check_sets(data, CASES, folder)


def test_checking_corrupts_again(data: TrialData, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(self: Any, x: torch.Tensor, draws: Any) -> torch.Tensor:
        return 1 - x if x.dtype == torch.uint8 else -x

    monkeypatch.setattr("mmbench.corruption.Corruption.apply", other)
    with pytest.raises(DataError, match=r"fog.*corrupting gives other contents for 10 of 10 samples, such as .*torch"):
        check_sets(data, (FOG,), folder)


def trial_of(data: TrialData, folder: Path | None) -> Trial:
    named = {"name": "s", "methods": ["source"], "cases": ["complete"], "frozen": str(folder) if folder else None}
    suite = parse_suite(named)
    (row,) = rows(suite)
    return make_trial(row, suite, Digests("d", "b"), {"store": data.store.folder, "backbone": Path("b")})


def test_a_suite_names_the_folder_and_the_trial_stays_the_same(data: TrialData, written: Path, tmp_path: Path) -> None:
    assert (
        parse_suite({"name": "s", "methods": ["source"], "frozen": "f"}, tmp_path / "s.yaml").frozen == tmp_path / "f"
    )
    assert trial_of(data, written).id == trial_of(data, None).id
    assert "frozen: sets\n" in portable_suite("name: s\nfrozen: /somewhere/sets\n")


def test_a_sweep_refuses_before_any_trial_and_a_trial_reads_the_sets(
    data: TrialData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {"store": data.store.folder, "backbone": tmp_path}
    monkeypatch.setattr(sweep, "_prepare", lambda row, device, listen: (Digests("d", "b"), folders))
    suite = parse_suite({"name": "s", "methods": ["source"], "cases": ["complete"], "frozen": str(tmp_path)})
    with pytest.raises(DataError, match="holds no frozen set of synthetic-av under 'complete'"):
        sweep.plan(suite, tmp_path, torch.device("cpu"), lambda event: None)
    monkeypatch.setattr(run, "make_method", lambda trial, folder, multi_label, device: (None, None))
    assert run._set_up(trial_of(data, None), make_bench()).data.frozen is None


def test_a_trial_alone_names_a_damaged_set_and_leaves_no_record(data: TrialData, tmp_path: Path) -> None:
    trial = trial_of(data, tmp_path / "sets")
    own = reopen_data(trial.dataset, trial.store_folder)
    write_sets(own, (COMPLETE,), tmp_path / "sets")
    damaged = f"{frozen_sets(own, tmp_path / 'sets').open(COMPLETE).manifest.arrays.audio.sha256}.npy"
    flip(tmp_path / "sets" / "arrays" / damaged)
    (tmp_path / "spec.json").write_text(trial.model_dump_json())
    ended = CliRunner().invoke(app, ["trial", str(tmp_path), "--device", "cpu"])
    assert ended.exit_code not in (0, 1) and not (tmp_path / RECORD).exists()
    assert all(part in ended.output for part in ("error: ", damaged, "has changed", "write it anew"))


def test_the_command_tells_sizes_and_digests_before_it_writes(cache: Path, tmp_path: Path) -> None:
    command = ["data", "corrupt", "synthetic-av", "--set", "datasets.0.samples=40", "--cases", "complete"]
    out = tmp_path / "out"
    tried = CliRunner().invoke(app, [*command, "--out", str(out), "--dry-run"])
    assert tried.exit_code == 0 and "nothing was written" in tried.output and not out.exists()
    most, whole = (
        re.search(pattern, tried.output) for pattern in (r"at most (.*) to write", r"complete: (.*), .* new")
    )
    assert most and whole and most[1] == whole[1], "nothing is shared by a set that is alone"
    made = CliRunner().invoke(app, [*command, "--out", str(out)])
    (manifest,) = out.glob("*.json")
    digest = json.loads(manifest.read_text())["digest"]
    assert f"digest {digest}" in tried.output and f"digest {digest}" in made.output
    checked = CliRunner().invoke(app, [*command, "--check", str(out)])
    assert checked.exit_code == 0 and f"bit for bit), digest {digest}" in checked.output
    assert f"complete: there, digest {digest}" in CliRunner().invoke(app, [*command, "--out", str(out)]).output
    wrong = CliRunner().invoke(app, command)
    assert wrong.exit_code == 2 and "choose one: --out DIR" in wrong.output
