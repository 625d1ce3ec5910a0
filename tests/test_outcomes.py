"""Outcomes: from a trial's predictions, from a board's one file, and what happens to damaged or foreign ones."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from outcome_records import CASES, IDS, LABELS, answers, predictions, put, results, trial_of
from report_records import accuracy, cell, data, environment, record, scores

from mmbench.report.aggregate import accuracy_table, load_board
from mmbench.report.board import write_board
from mmbench.report.outcomes import MULTI_LABEL, NO_PREDICTIONS, load_outcomes, write_outcomes


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmbench.report.board.write_plots", lambda *_: ())


def test_predictions_become_classes_and_confidences_in_the_order_of_the_samples(tmp_path: Path) -> None:
    right = answers(0.5, 1)
    entry = trial_of("a", right)
    put(tmp_path, entry, predictions(right))
    found = load_outcomes(tmp_path, [entry]).of(entry, "noise-to-audio", 0, "blind")
    assert found is not None
    assert found.samples == IDS and found.labels.tolist() == LABELS
    assert found.predicted.tolist() == [
        label if answer else (label + 1) % 10 for label, answer in zip(LABELS, right[1], strict=True)
    ]
    assert found.correct.tolist() == [bool(answer) for answer in right[1]]
    assert found.confidence == pytest.approx(np.exp(2) / (np.exp(2) + 9), abs=0.5 / 255 + 1e-9)


def test_what_is_not_kept_is_none_with_a_reason(tmp_path: Path) -> None:
    entry = trial_of("a", answers(0.5, 1))
    put(tmp_path, entry, predictions(answers(0.5, 1)))
    found = load_outcomes(tmp_path, [entry])
    assert found.of(entry, "complete", 3, "blind") is None and found.of(entry, "complete", 0, "informed") is None
    assert found.why_not(entry) is None
    assert found.why_not(record("other")) == NO_PREDICTIONS
    assert found.why_not(record("labels", data=data(multi_label=True))) == MULTI_LABEL


def test_a_board_keeps_the_outcomes_in_one_file_and_hands_them_on(tmp_path: Path) -> None:
    made = results(tmp_path / "runs")
    first = write_board(tmp_path / "runs", tmp_path / "first", formats=("csv",))
    write_board(tmp_path / "first", tmp_path / "second", formats=("csv",))
    one, two = (tmp_path / name / "outcomes.parquet" for name in ("first", "second"))
    assert one in first.files and one.read_bytes() == two.read_bytes()
    runs, published = (load_outcomes(folder, made) for folder in (tmp_path / "runs", tmp_path / "second"))
    for entry in made:
        for case in CASES:
            left, right = runs.of(entry, case, 0, "blind"), published.of(entry, case, 0, "blind")
            assert left is not None and right is not None
            assert left.samples == right.samples and left.predicted.tolist() == right.predicted.tolist()
            assert left.confidence.tolist() == right.confidence.tolist()
    assert published.problems == ()
    tables = [sorted((tmp_path / name / "tables").glob("*.csv")) for name in ("first", "second")]
    assert [t.read_bytes() for t in tables[0]] == [t.read_bytes() for t in tables[1]]


def test_results_added_to_a_board_leave_the_outcomes_of_its_other_trials(tmp_path: Path) -> None:
    made = results(tmp_path / "runs")
    write_board(tmp_path / "runs", tmp_path / "whole", formats=("csv",))
    for part, kept in (("one", ("good",)), ("two", ("fair", "poor"))):
        for entry in made:
            if entry.trial.title in kept:
                shutil.copytree(*(tmp_path / name / "trials" / entry.trial.id for name in ("runs", part)))
        assert write_board(tmp_path / part, tmp_path / "board", formats=("csv",)).problems == ()
    board, whole = ((tmp_path / name / "outcomes.parquet").read_bytes() for name in ("board", "whole"))
    assert board == whole
    (tmp_path / "one" / "trials" / made[0].trial.id / "predictions.parquet").unlink()
    write_board(tmp_path / "one", tmp_path / "board", formats=("csv",))
    assert (tmp_path / "board" / "outcomes.parquet").read_bytes() == whole


def test_an_older_record_does_not_replace_the_newer_one_of_a_board(tmp_path: Path) -> None:
    right = answers(0.5, 1), answers(0.9, 2)
    days = (environment(date=f"2026-03-0{day}T10:00:00+00:00") for day in (1, 2))
    old, new = (trial_of("a", rows, environment=day) for rows, day in zip(right, days, strict=True))
    assert old.trial.id == new.trial.id
    for name, entry, rows in (("old", old, right[0]), ("new", new, right[1])):
        put(tmp_path / name, entry, predictions(rows))
    write_board(tmp_path / "new", tmp_path / "board", formats=("csv",))
    kept = (tmp_path / "board" / "outcomes.parquet").read_bytes()
    written = write_board(tmp_path / "old", tmp_path / "board", formats=("csv",))
    assert written.board.records == (new,) and (tmp_path / "board" / "outcomes.parquet").read_bytes() == kept
    assert [text for text in written.problems if "newer record" in text and "a (" in text]
    write_board(tmp_path / "old", tmp_path / "other", formats=("csv",))
    assert write_board(tmp_path / "new", tmp_path / "other", formats=("csv",)).board.records == (new,)
    assert (tmp_path / "other" / "outcomes.parquet").read_bytes() == kept


def test_many_classes_survive_the_compact_file(tmp_path: Path) -> None:
    entry = record("a", data=data(classes=tuple(map(str, range(300)))), scores=scores({"complete": 1.0}))
    table = pa.table(
        {
            **{
                n: pa.array([v] * 2, pa.string()) for n, v in (("case", "complete"), ("track", "blind"), ("stream", ""))
            },
            "sample": pa.array(["x", "y"], pa.string()),
            "update": pa.array(["none"] * 2, pa.string()),
            "severity": pa.array([0, 0], pa.int8()),
            "label": pa.array([[299], [3]], pa.list_(pa.int32())),
            "logits": pa.array([[float(c == k) for c in range(300)] for k in (299, 3)], pa.list_(pa.float32())),
        }
    )
    put(tmp_path, entry, table)
    found = load_outcomes(tmp_path, [entry]).all_of(entry)
    assert write_outcomes({entry.trial.id: found}, tmp_path / "outcomes.parquet")
    (tmp_path / "trials" / entry.trial.id / "predictions.parquet").unlink()
    sampled = load_outcomes(tmp_path, [entry]).of(entry, "complete", 0, "blind")
    assert sampled is not None and sampled.predicted.tolist() == [299, 3]


def broken(table: pa.Table, how: str) -> pa.Table:
    changed: dict[str, Any] = {
        "type": table["label"].cast(pa.list_(pa.int64())),
        "nan": pa.array([[float("nan")] * 10] * table.num_rows, pa.list_(pa.float32())),
        "ragged": pa.array([[1.0] * (2 + (i == 5)) for i in range(table.num_rows)], pa.list_(pa.float32())),
        "twice": pa.array(["same"] * table.num_rows, pa.string()),
    }
    if how == "column":
        return table.drop_columns(["logits"])
    if how == "places":
        return pa.concat_tables([table, table])
    name = {"type": "label", "nan": "logits", "ragged": "logits", "twice": "sample"}[how]
    return table.set_column(table.column_names.index(name), name, changed[how])


@pytest.mark.parametrize("how", ["type", "nan", "ragged", "twice", "column", "places"])
def test_a_file_of_another_content_is_a_problem_and_no_crash(tmp_path: Path, how: str) -> None:
    right = answers(0.5, 1)
    entry = trial_of("a", right)
    put(tmp_path, entry, broken(predictions(right), how))
    found = load_board(tmp_path)
    assert found.outcomes.of(entry, "complete", 0, "blind") is None
    (problem,) = found.outcomes.problems
    assert "predictions.parquet" in problem and str(tmp_path) not in problem
    assert cell(accuracy_table(found, *found.groups[0], "blind"), "a", "mean").mean is not None


@pytest.mark.parametrize("name", ["predictions.parquet", "outcomes.parquet"])
@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet at all", None])
def test_a_damaged_file_is_a_problem_and_no_crash(tmp_path: Path, name: str, content: bytes | None) -> None:
    (entry, *_) = results(tmp_path / "runs")
    write_board(tmp_path / "runs", tmp_path / "board", formats=("csv",))
    folder = tmp_path / ("runs" if name == "predictions.parquet" else "board")
    path = next(folder.glob(f"trials/{entry.trial.id}/{name}"), folder / name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content is None else content)
    written = write_board(folder, formats=("csv",))
    assert any(name in problem for problem in written.problems)


def test_predictions_that_contradict_the_record_are_not_used(tmp_path: Path) -> None:
    entry = trial_of("a", answers(0.9, 1))
    put(tmp_path, entry, predictions(answers(0.5, 2)))
    found = load_outcomes(tmp_path, [entry])
    assert found.of(entry, "complete", 0, "blind") is None
    assert "in the record" in found.problems[0] and "are not used" in found.problems[0]


def test_a_trials_name_is_no_path(tmp_path: Path) -> None:
    right = answers(0.5, 1)
    entry = trial_of("a", right)
    put(tmp_path / "elsewhere", entry, predictions(right))
    hostile = entry.model_copy(
        update={"trial": entry.trial.model_copy(update={"id": f"../elsewhere/trials/{entry.trial.id}"})}
    )
    (tmp_path / "board").mkdir()
    assert load_outcomes(tmp_path / "board", [hostile]).why_not(hostile) == NO_PREDICTIONS


def test_tables_say_what_their_intervals_hold_and_rank_what_differs(tmp_path: Path) -> None:
    made = results(tmp_path)
    table = accuracy_table(load_board(tmp_path), "synthetic-av", "cavmae-tiny", "blind")
    assert [cell(table, name, "rank").mean for name in ("good", "fair", "poor")] == [1, 1, 2]
    assert [cell(table, name, "mean").best for name in ("good", "fair", "poor")] == [True, True, False]
    low, mean, high = (cell(table, "fair", key).mean for key in ("ci_low", "mean", "ci_high"))
    assert low is not None and mean is not None and high is not None and low < mean < high
    assert any("variance of seeds and samples." in note for note in table.notes)
    alone = accuracy(made)
    assert any("variance of seeds alone." in note for note in alone.notes)
    single = accuracy([entry for entry in made if entry.trial.seed == 0])
    assert [c.key for c in single.columns][-1] == "worst" and not any(note.startswith("CI") for note in single.notes)
