"""`merge`: several folders become one as if one machine had run them, nothing is mixed and nothing lost unsaid."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from report_records import accuracy, cell, save
from results_bed import BOARD, CASES, edit, small_suite, trial_folder, write_results, write_suite
from typer.testing import CliRunner

from mmbench.claims import claimed
from mmbench.cli import app
from mmbench.errors import ConfigError
from mmbench.files import RecordError
from mmbench.layout import SPEC
from mmbench.merge import merge
from mmbench.records import MARKER, RECORD, TrialRecord, find_records, is_done, load_record, save_record
from mmbench.report.aggregate import load_board
from mmbench.suite_file import load_suite
from mmbench.sweep import SweepOptions, run_suite
from mmbench.trials import read_trial

OLD = Path(__file__).parent / "data" / "record_schema1.json"


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two folders that shared out the seeds of a suite; the row that does not train stands in both."""
    first, second = (tmp_path_factory.mktemp(name) for name in ("first", "second"))
    write_results(first, small_suite((0,)))
    write_results(second, small_suite((0, 1)))
    shutil.rmtree(trial_folder(second, seed=0))
    return first, second


@pytest.fixture
def copies(machines: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    return tuple(Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in machines)  # type: ignore[return-value]


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def test_what_two_machines_shared_out_becomes_one_folder(machines: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = merge(machines, out)
    assert (len(done.copied), done.same, done.left, done.problems) == (3, 1, (), ())
    assert load_suite(out / "suite.yaml").seeds == (0, 1)
    for source in machines:
        for place in source.glob("trials/*"):
            assert is_done(out / "trials" / place.name)
            for path in (path for path in place.iterdir() if path.name != SPEC):
                assert (out / "trials" / place.name / path.name).read_bytes() == path.read_bytes()
    assert {path.name for path in out.iterdir()} == {"suite.yaml", "trials"}


def test_merging_again_changes_nothing(machines: tuple[Path, Path], tmp_path: Path) -> None:
    merge(machines, tmp_path / "out")
    before = files(tmp_path / "out")
    done = merge([*machines, tmp_path / "out"], tmp_path / "out")
    assert (done.copied, done.left, done.problems) == ((), (), ())
    assert files(tmp_path / "out") == before


def test_an_interrupted_merge_goes_on(machines: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    merge(machines, out)
    whole = {name: content for name, (content, _) in files(out).items()}
    half = trial_folder(out, seed=1)
    (half / MARKER).unlink()
    (half / "predictions.parquet").write_bytes(b"half")
    shutil.rmtree(trial_folder(out, seed=0))
    assert len(merge(machines, out).copied) == 2
    assert {name: content for name, (content, _) in files(out).items()} == whole


def dated(date: str, status: str = "ok") -> Any:
    def change(record: TrialRecord) -> TrialRecord:
        environment = record.environment.model_copy(update={"date": date})
        return record.model_copy(update={"environment": environment, "status": status})

    return change


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_different_records_the_newer_stays_whole(copies: tuple[Path, Path], tmp_path: Path, order: int) -> None:
    older, newer = (trial_folder(folder, "source") for folder in copies)
    edit(older, dated("2026-01-01T00:00:00+00:00"))
    newest = edit(newer, dated("2026-02-01T00:00:00+00:00"))
    (newer / "predictions.parquet").write_bytes(b"newer")
    done = merge(copies[::order], tmp_path / "out")
    place = trial_folder(tmp_path / "out", "source")
    assert load_record(place / RECORD) == newest
    assert (place / "predictions.parquet").read_bytes() == b"newer"
    (told,) = done.left
    assert "2026-01-01" in told and "gave way to ok of 2026-02-01" in told and str(copies[0]) in told


def test_a_newer_record_replaces_an_older_one_and_says_so(copies: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    place = trial_folder(copies[0], "source")
    edit(place, dated("2026-01-01T00:00:00+00:00"))
    merge(copies[:1], out)
    newest = edit(place, dated("2026-02-01T00:00:00+00:00"))
    (place / "predictions.parquet").unlink()
    done = merge(copies[:1], out)
    assert done.copied == (place.name,) and "gave way to ok of 2026-02-01" in done.replaced[0]
    assert load_record(out / "trials" / place.name / RECORD) == newest
    assert not (out / "trials" / place.name / "predictions.parquet").exists()  # it was the older trial's
    edit(place, dated("2025-01-01T00:00:00+00:00"))
    done = merge(copies[:1], out)
    assert (done.copied, done.replaced, len(done.left)) == ((), (), 1)
    assert load_record(out / "trials" / place.name / RECORD) == newest


def test_a_crash_gives_way_to_any_result(copies: tuple[Path, Path], tmp_path: Path) -> None:
    edit(trial_folder(copies[0], "source"), dated("2027-01-01T00:00:00+00:00", "crashed"))
    merge(copies, tmp_path / "out")
    assert load_record(trial_folder(tmp_path / "out", "source") / RECORD).status == "ok"


@pytest.mark.parametrize("change", [{"cases": CASES[:2]}, {"name": "another"}, {"tracks": ("blind",)}])
def test_different_suites_are_refused(copies: tuple[Path, Path], tmp_path: Path, change: dict[str, object]) -> None:
    write_suite(copies[1], small_suite().model_copy(update=change))
    with pytest.raises(ConfigError, match=f"differ in {next(iter(change))}; results of different suites do not mix"):
        merge(copies, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_where_the_data_lay_is_no_difference(copies: tuple[Path, Path], tmp_path: Path) -> None:
    suite = small_suite()
    for folder, root in zip(copies, ("/data/clips", "/elsewhere/clips"), strict=True):
        data = suite.datasets[0].model_copy(update={"root": Path(root)})
        write_suite(folder, suite.model_copy(update={"datasets": (data,)}))
    merge(copies, tmp_path / "out")
    assert load_suite(tmp_path / "out" / "suite.yaml").datasets[0].root == Path("/data/clips")


def test_a_board_and_its_results_are_the_same(copies: tuple[Path, Path], tmp_path: Path) -> None:
    board = save(tmp_path / "board", [load_record(path) for path in find_records(copies[0])])
    done = merge([board, copies[0]], tmp_path / "out")
    assert (len(done.copied), done.same, done.left) == (2, 2, ())
    assert (trial_folder(tmp_path / "out") / "predictions.parquet").is_file()


def test_an_old_record_is_lifted_and_keeps_its_row(tmp_path: Path) -> None:
    place = tmp_path / "old" / "records"
    place.mkdir(parents=True)
    shutil.copy(OLD, place / "lora-qv-mixed-s0-0123456789ab.json")
    write_suite(tmp_path / "old", small_suite())
    merge([tmp_path / "old"], tmp_path / "out")
    (path,) = find_records(tmp_path / "out")
    assert path.read_text().startswith('{\n "schema_version": 2') and is_done(path.parent)
    for record in (load_record(OLD), load_record(path)):
        table = accuracy([record])
        found = [cell(table, "lora-qv", key, "mixed").mean for key in ("complete", "noise-to-audio", "mean", "worst")]
        assert found == pytest.approx([90.0, 70.0, 80.0, 70.0])


def test_damaged_and_foreign_records_are_left_out_and_named(copies: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = copies
    (trial_folder(first) / RECORD).write_text("{}")
    trial_folder(second, seed=1).rename(second / "trials" / "elsewhere")
    target = tmp_path / "secret"
    target.write_text("secret")
    (trial_folder(first, "source") / "state.safetensors").symlink_to(target)
    done = merge(copies, tmp_path / "out")
    assert len(done.problems) == 3
    assert {path.parent.name.split("-")[0] for path in find_records(tmp_path / "out")} == {"source"}
    assert not any(path.name == "state.safetensors" for path in (tmp_path / "out").rglob("*"))


def test_an_id_that_is_a_path_writes_nowhere(tmp_path: Path) -> None:
    record = load_record(OLD)
    escaped = record.model_copy(update={"trial": record.trial.model_copy(update={"id": "../../escaped"})})
    write_suite(tmp_path / "in", small_suite())
    (tmp_path / "in" / "trials" / "x").mkdir(parents=True)
    save_record(escaped, tmp_path / "in" / "trials" / "x")
    with pytest.raises(RecordError, match="no finished trial"):
        merge([tmp_path / "in"], tmp_path / "a" / "b" / "out")
    assert not list(tmp_path.rglob("escaped*"))


def test_a_trial_that_a_process_is_at_is_left_alone(machines: tuple[Path, Path], tmp_path: Path) -> None:
    place = tmp_path / "out" / "trials" / trial_folder(machines[0]).name
    place.mkdir(parents=True)
    with claimed(place) as mine:
        assert mine
        done = merge(machines, tmp_path / "out")
    assert len(done.problems) == 1 and not (place / RECORD).exists()
    assert merge(machines, tmp_path / "out").copied == (place.name,)


def test_folders_without_a_suite_or_without_trials_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none of the folders has a suite\.yaml"):
        merge([tmp_path], tmp_path / "out")
    write_suite(tmp_path / "in", small_suite())
    with pytest.raises(RecordError, match="no finished trial in"):
        merge([tmp_path / "in"], tmp_path / "out")


def test_the_verb_tells_what_it_did(copies: tuple[Path, Path], tmp_path: Path) -> None:
    edit(trial_folder(copies[0], "source"), dated("2026-01-01T00:00:00+00:00"))
    out = str(tmp_path / "out")
    found = CliRunner().invoke(app, ["merge", *map(str, copies), "--out", out])
    assert found.exit_code == 0
    assert "note: source-frozen-s0-" in found.stderr and "gave way to" in found.stderr
    assert "3 trials copied, 0 the same, 1 left out for newer ones" in found.stderr
    table = accuracy(load_board(Path(out)).records)
    assert {row.name for row in table.rows if not row.reported} == {"source", "lora-qv"}


def test_a_merged_folder_is_done(machines: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep on it starts nothing: every trial of the joined suite is there under the id that planning gives it."""
    merge(machines, tmp_path / "out")
    assert not [*tmp_path.glob("out/trials/*/spec.json")]  # it names the plugins that a trial runs with
    suite = load_suite(tmp_path / "out" / "suite.yaml")
    planned = {trial_folder(tmp_path / "out", n, s).name for n, s in (("source", 0), ("lora-qv", 0), ("lora-qv", 1))}
    monkeypatch.setattr("mmbench.sweep.plan", _plan_of(machines))
    result = run_suite(suite, tmp_path / "out", SweepOptions(torch.device("cpu")))
    assert (dict(result.statuses), result.left) == ({"ok": 3}, 0)
    assert {path.name for path in (tmp_path / "out" / "trials").iterdir()} == planned
    specs = {folder.name: read_trial(folder) for folder in (tmp_path / "out" / "trials").iterdir()}
    assert specs == {folder.name: spec for spec, folder in _plan_of(machines)(suite, tmp_path, None, None)}


def _plan_of(machines: tuple[Path, Path]) -> Any:
    specs = {
        path.parent.name: read_trial(path.parent) for folder in machines for path in folder.glob("trials/*/spec.json")
    }
    return lambda suite, out, device, listen: [(spec, out / "trials" / id) for id, spec in specs.items()]


def test_the_published_board_merges_with_nothing_lost(tmp_path: Path) -> None:
    done = merge([BOARD], tmp_path / "out")
    assert len(done.copied) == len(list(find_records(BOARD))) and not done.problems
