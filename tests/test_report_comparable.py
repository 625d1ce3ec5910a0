"""What never stands in one table, or counts twice in one row."""

from __future__ import annotations

from typing import Any

from report_records import accuracy, board, cell, failed, field, of, record, row

from mmbench.records import TrialRecord
from mmbench.report.comparable import select
from mmbench.report.model import NOT_MEASURED
from mmbench.report.ranking import ranking


def at_rate(title: str, seed: int, rate: float) -> TrialRecord:
    case = {"name": f"missing-rate-{rate}", "missing": {"which": "mixed", "rate": rate}}
    return record(title, seed, trial_regime="missing-rate", trial_contents={"train_cases": [case]})


def of_split(title: str, val: float, **changes: Any) -> TrialRecord:
    return record(title, trial_contents={"split": {"kind": "grouped", "seed": 0, "val": val}}, **changes)


def test_rows_trained_at_another_missing_rate_are_left_out_and_named() -> None:
    records = [*(at_rate(title, s, 0.3) for title in "ab" for s in range(2)), at_rate("odd", 0, 0.9)]
    table = accuracy([*records, record("clean", trial_contents={"train_cases": ["whatever"]})])
    assert [r.name for r in table.rows] == ["a", "b", "clean"]
    assert any("odd (missing-rate" in note and "missing rate in training" in note for note in table.notes)


def test_mixed_training_does_not_decide_which_missing_rate_stands() -> None:
    mixed = [record(title, trial_regime="mixed") for title in "abc"]
    assert {r.name for r in accuracy([*mixed, at_rate("rate", 0, 0.3)]).rows} == {"a", "b", "c", "rate"}


def test_rows_of_another_split_are_left_out_and_named() -> None:
    old = record("old")  # tells no split
    table = accuracy([of_split("a", 0.1), of_split("b", 0.1), of_split("odd", 0.6), old])
    assert [r.name for r in table.rows] == ["a", "b", "old"]
    assert any("odd" in note and "val 0.6 instead of 0.1" in note for note in table.notes)


def test_a_row_that_uses_no_training_sample_may_come_from_another_split() -> None:
    records = [of_split("a", 0.1), of_split("b", 0.1), of_split("source", 0.6, trial_regime="none")]
    assert {r.name for r in accuracy(records).rows} == {"a", "b", "source"}
    adapted = [
        of_split(t, v, trial_online="eata", trial_regime="none") for t, v in (("a", 0.1), ("b", 0.1), ("c", 0.6))
    ]
    kept = select(adapted, "synthetic-av", "cavmae-tiny", online=True).records
    assert [r.trial.title for r in kept] == ["a", "b"]


def test_a_frozen_row_that_two_machines_ran_is_one_complete_row() -> None:
    trained = [record(m, s, of(60 + s, 50, 40 - i, 30)) for i, m in enumerate("abc") for s in range(5)]
    sources = [record("source", s, of(40 + s, 41, 42, 43), trial_regime="none") for s in (7, 3)]
    table = accuracy([*trained, *sources])
    source = row(table, "source", NOT_MEASURED)
    assert source.complete and source.notes == ()
    assert cell(table, "source", "mean", NOT_MEASURED).std is None
    assert cell(table, "source", "complete", NOT_MEASURED).mean == 43.0
    assert cell(table, "source", "rank", NOT_MEASURED).mean is not None
    assert all(r.complete for r in table.rows), "the seed of a frozen row is none that the others lack"
    assert any("source (seed 7" in note and "nothing in this row is random" in note for note in table.notes)
    found = ranking(board([*trained, *sources]), "blind")
    assert found is not None and ("source", NOT_MEASURED) in found.names


def test_a_frozen_row_is_the_trial_that_finished() -> None:
    lost = failed("source", "crashed", "boom", 0, trial_regime="none")
    table = accuracy([*field(1)[1:], lost, record("source", 3, of(9, 9, 9, 9), trial_regime="none")])
    assert cell(table, "source", "mean", NOT_MEASURED).mean == 9.0
