"""What never stands in one table, or counts twice in one row."""

from __future__ import annotations

from typing import Any

from report_records import accuracy, board, cell, efficiency, environment, failed, field, of, record, row, scores

from mmbench.records import TrialRecord
from mmbench.report.comparable import select
from mmbench.report.knowledge import knowledge_tables
from mmbench.report.model import NOT_MEASURED
from mmbench.report.outcome_plots import chosen_rows
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


def with_gap(seeds: int = 3) -> list[TrialRecord]:
    """Row a is whole; row b lacks the score of a case in its later seeds, and looks best in the first."""
    gap = {**of(50, 60, 60, 60), "noise-to-both": None}
    whole = [record("a", s, of(60, 60, 60, 60)) for s in range(seeds)]
    return [*whole, *(record("b", s, of(99, 99, 99, 99) if s == 0 else gap) for s in range(seeds))]


def test_a_mean_of_some_seeds_neither_wins_nor_stands_first_in_any_table() -> None:
    tables = (accuracy(with_gap()), *efficiency(with_gap()))
    assert len(tables) == 2
    for table in tables:
        assert [r.name for r in table.rows] == ["a", "b"], table.title
        assert [r.complete for r in table.rows] == [True, False]
        assert "1/3 seeds have every score" in row(table, "b").notes
        assert not any(c.best for c in row(table, "b").cells)


def test_a_gap_of_some_seeds_is_no_finding_on_what_knowledge_is_worth() -> None:
    def told(title: str, seed: int, gain: float, lost: bool) -> TrialRecord:
        values = of(50, 50, 50, 50)
        more = {case: None if lost else (value or 0) + gain for case, value in values.items()}
        return record(title, seed, scores=scores(values, "blind") + scores(more, "informed"))

    records = [told("a", s, 0.1, False) for s in range(3)] + [told("b", s, 0.3, s > 0) for s in range(3)]
    (table,) = knowledge_tables(board(records), "synthetic-av", "cavmae-tiny")
    assert [(r.name, r.complete) for r in table.rows] == [("a", True), ("b", False)]


def test_costs_of_one_machine_stand_in_one_table_however_it_was_started() -> None:
    records = [record("a", environment=environment(workers=None)), record("b", environment=environment(workers=1))]
    (table,) = efficiency([*records, record("c")])
    assert {r.name for r in table.rows} == {"a", "b", "c"}
    other = record("d", environment=environment(workers=2))
    assert len({t.slug for t in efficiency([*records, other])}) == 2


def test_the_worst_row_that_is_drawn_is_the_worst_of_the_whole_ones() -> None:
    records = [record(m, s, of(b, b, b, b)) for m, b in (("a", 80), ("b", 70), ("c", 20)) for s in range(3)]
    table = accuracy([*records, *(record("partial", s, of(90, 90, 90, 90)) for s in (0, 1))])
    assert [r.name for r in table.rows][-1] == "partial"
    assert [r.name for r in chosen_rows(table)] == ["a", "c"]
