"""Records to tables: the numbers, what stays visible, and what never stands in one table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_records import (
    BUDGET,
    CASES,
    accuracy,
    board,
    cell,
    data,
    efficiency,
    environment,
    failed,
    field,
    of,
    record,
    row,
    save,
    scores,
)

from mmbench.files import RecordError
from mmbench.records import Status, save_record
from mmbench.report.aggregate import accuracy_table, load_board
from mmbench.report.comparable import select
from mmbench.report.efficiency import efficiency_tables
from mmbench.report.model import NO_CASE, ONLY_AVAILABILITY
from mmbench.report.published import reported_tables


def test_mean_std_and_worst_case_equal_hand_computed_values() -> None:
    table = accuracy([record("a", 0, of(90, 70, 60, 40)), record("a", 1, of(94, 70, 64, 44))])
    assert [c.key for c in table.columns] == [*CASES, "mean", "worst", "ci_low", "ci_high"]
    complete, mean, worst = (cell(table, "a", key) for key in ("complete", "mean", "worst"))
    assert complete.mean == pytest.approx(92)
    assert complete.std == pytest.approx(2.8284271)  # sqrt(((90-92)^2 + (94-92)^2) / 1)
    assert mean.mean == pytest.approx(66.5)  # (65 + 68) / 2
    assert mean.std == pytest.approx(2.1213203)
    assert worst.mean == pytest.approx(42)
    assert mean.n == 2


def test_one_seed_has_no_spread() -> None:
    assert cell(accuracy([record("a")]), "a", "mean").std is None


def test_rows_are_ranked_by_the_mean_and_equal_looking_values_share_the_mark() -> None:
    table = accuracy([record("low", values=of(99, 10, 10, 10)), record("high", values=of(99, 80, 80, 80))])
    assert [r.name for r in table.rows] == ["high", "low"]
    assert cell(table, "high", "mean").best and not cell(table, "low", "mean").best
    assert cell(table, "high", "complete").best and cell(table, "low", "complete").best


@pytest.mark.parametrize("status", ["refused", "does-not-fit", "diverged", "over-budget", "crashed"])
def test_a_failed_row_shows_its_status_in_every_cell_and_its_message_below(status: Status) -> None:
    records = [record("good"), failed("bad", status, "loss became NaN at step 12")]
    word = status.replace("does-not-fit", "does not fit").replace("over-budget", "over budget")
    for table in (accuracy(records), *efficiency(records)):
        bad = row(table, "bad")
        assert {c.word for c in bad.cells} == {word} and all(c.mean is None for c in bad.cells)
        assert any("loss became NaN at step 12" in text for text in table.marks())
        assert table.rows[-1] is bad


def test_partial_seeds_are_said_and_do_not_win() -> None:
    records = [record("a", s, of(90, 90, 90, 90)) for s in (0, 1)] + [failed("a", "diverged", "NaN", 2)]
    records += [record("b", s) for s in (0, 1, 2)] + [record("c", 0, of(95, 95, 95, 95))]
    table = accuracy(records)
    assert "2/3 seeds (1 diverged)" in row(table, "a").notes
    assert "1/3 seeds (2 not run)" in row(table, "c").notes
    assert [r.name for r in table.rows] == ["b", "c", "a"]
    assert not any(c.best for name in "ac" for c in row(table, name).cells)


def test_a_row_that_does_not_train_is_complete_with_one_seed_and_competes() -> None:
    records = [record("a", s, of(80, 80, 80, 80)) for s in (0, 1, 2)]
    records += [record("source", 0, of(90, 90, 90, 90), trial_regime="none", trial_budget={"epochs": 9.0})]
    table = accuracy(records)
    source, adapted = table.rows
    assert (source.name, adapted.name) == ("source", "a")
    assert source.complete and source.cells[0].best
    assert not any("seeds" in note for note in source.notes)


def test_a_missing_value_shows_why_and_takes_the_mean_away() -> None:
    values = of(90, 70, 60, 40) | {"noise-to-both": None}
    table = accuracy([record("a", values=values)])
    both = cell(table, "a", "noise-to-both")
    assert (both.mean, both.word) == (None, "n/a")
    assert "no positive sample" in both.notes[0]
    assert cell(table, "a", "mean").mean is None and cell(table, "a", "worst").mean is None
    assert cell(table, "a", "complete").mean == pytest.approx(90)


def test_severities_of_a_case_are_averaged() -> None:
    levels = scores(of(90, 70, 60, 40))[:3] + tuple(
        replace(s, severity=level, value=level / 10) for level in (1, 2, 3) for s in scores({"noise-to-both": 0.0})
    )
    assert cell(accuracy([record("a", scores=levels)]), "a", "noise-to-both").mean == pytest.approx(20)


def test_informed_table_holds_blind_methods_with_a_dagger() -> None:
    told = scores(of(80, 80, 80, 80), "informed") + scores(of(60, 60, 60, 60), "blind")
    records = [record("told", scores=told), record("untold", values=of(70, 70, 70, 70))]
    informed, blind = accuracy(records, "informed"), accuracy(records, "blind")
    assert cell(informed, "told", "mean").mean == pytest.approx(80)
    assert cell(informed, "untold", "mean").mean == pytest.approx(70)
    assert row(informed, "untold").notes == (NO_CASE,) and row(informed, "told").notes == ()
    assert informed.marks()[NO_CASE] == "†"
    assert [r.name for r in blind.rows] == ["untold", "told"]


def test_a_method_told_only_what_is_absent_is_marked_on_the_informed_track() -> None:
    records = [
        record("aware", scores=scores(of(75, 75, 75, 75), "avail")),
        record("told", scores=scores(of(9, 9, 9, 9), "informed")),
    ]
    table = accuracy(records, "informed")
    assert cell(table, "aware", "mean").mean == pytest.approx(75)
    assert row(table, "aware").notes == (ONLY_AVAILABILITY,)
    assert [r.name for r in accuracy(records, "avail").rows] == ["aware"]
    assert select(records, "synthetic-av", "cavmae-tiny").tracks == ("informed", "avail")


def test_a_method_that_must_be_told_is_not_on_the_blind_track() -> None:
    records = [record("told", scores=scores(of(80, 80, 80, 80), "informed")), record("untold")]
    table = accuracy(records)
    assert [r.name for r in table.rows] == ["untold"]
    assert any(note.startswith("Not on this track") and "told" in note for note in table.notes)


def test_multi_label_data_is_ranked_by_map() -> None:
    both = scores(of(80, 80, 80, 80), metric="map") + scores(of(10, 10, 10, 10), metric="accuracy")
    table = accuracy([record("a", scores=both, data=data(multi_label=True))])
    assert cell(table, "a", "mean").mean == pytest.approx(80)
    assert table.title.startswith("Mean average precision")


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"trial_budget": {**BUDGET, "epochs": 50.0}}, "epochs 50.0 instead of 5.0"),
        ({"trial_cases": CASES[:3]}, "cases"),
        ({"trial_regime": "mixed", "trial_train_cases": CASES[:1]}, "training cases"),
        ({"data": data(digest="e" * 64)}, "data digest"),
        ({"scores": scores(dict.fromkeys(CASES, 0.99), salt="other")}, "evaluation set of complete"),
    ],
)
def test_what_disagrees_with_the_majority_is_left_out_and_named(changed: dict[str, Any], word: str) -> None:
    others = [record(name, trial_regime="mixed") for name in ("a", "b")]
    records = [*others, record("odd", **changed)]
    table = accuracy(records)
    assert [r.name for r in table.rows] == ["a", "b"]
    assert any("odd" in note and word in note for note in table.notes)
    assert [r.name for t in efficiency(records) for r in t.rows] == ["a", "b"]


def test_a_budget_key_that_is_off_is_one_that_an_older_record_lacks() -> None:
    records = [record("old"), record("new", trial_budget={**BUDGET, "views": None, "checkpointing": False})]
    assert select(records, "synthetic-av", "cavmae-tiny").problems == ()
    differs = [record("old"), record("new", trial_budget={**BUDGET, "checkpointing": True})]
    assert len(select(differs, "synthetic-av", "cavmae-tiny").problems) == 1


def test_a_tie_goes_to_the_newest_records() -> None:
    newer = environment(date="2026-05-01T00:00:00+00:00")
    records = [record("old"), record("new", environment=newer, trial_budget={**BUDGET, "epochs": 9.0})]
    assert [r.name for r in accuracy(records).rows] == ["new"]


def test_evaluation_sets_may_differ_between_seeds() -> None:
    records = [record(name, s, scores=scores(of(9, 9, 9, 9), salt=str(s))) for name in "ab" for s in (0, 1)]
    table = accuracy(records)
    assert len(table.rows) == 2
    assert any("Each seed draws its own" in note for note in table.notes)


def test_one_row_never_mixes_options_or_counts_a_seed_twice() -> None:
    newer = environment(date="2026-05-01T00:00:00+00:00")
    records = [record("a", 0, of(10, 10, 10, 10)), record("a", 1), record("a", 2)]
    records += [record("a", 0, of(90, 90, 90, 90), environment=newer, trial_options={"rank": 64})]
    selection = select(records, "synthetic-av", "cavmae-tiny")
    assert [r.trial.options for r in selection.records] == [{}, {}, {}]
    assert any("rank" in text for text in selection.problems)
    again = record("a", 0, of(20, 20, 20, 20), environment=newer, trial_suite="second")
    selection = select([records[0], again], "synthetic-av", "cavmae-tiny")
    assert selection.records == (again,)
    assert any("newer record" in text for text in selection.problems)


def test_data_sets_and_backbones_have_their_own_tables() -> None:
    records = [record("a"), record("b", trial_dataset="cifar10-av"), record("c", trial_backbone="cavmae-base")]
    groups = board(records).groups
    assert len(groups) == 3
    assert [
        [r.name for r in accuracy_table(board(records), d, b, "blind").rows if not r.reported] for d, b in groups
    ] == [
        ["b"],
        ["c"],
        ["a"],
    ]


def test_notes_say_how_the_table_was_made() -> None:
    dirty = environment(dirty=True, date="2026-03-04T00:00:00+00:00")
    facts = data(leaks=True, note="files of one recording on both sides", skipped=("x.wav: empty", "y.jpg: truncated"))
    records = [
        record("a", 0, data=facts, trial_deviations=("batch 32",)),
        record("a", 1, data=facts, environment=dirty, trial_deviations=("batch 32",)),
    ]
    table = accuracy(records)
    text = " ".join(table.notes)
    for word in (
        "Suite quickstart",
        "seeds 0, 1",
        "5 epochs, batch 64, 3 tuning trials, fp32, head trained",
        "Example CPU",
        "2 threads",
        "0123456789ab",
        "uncommitted changes",
        "2026-03-01 to 2026-03-04",
        "leaks",
        "one recording",
        "left out as unreadable: 2",
        "x.wav: empty",
    ):
        assert word in text, word
    assert "batch 32" in row(table, "a").notes


def test_reported_rows_stand_apart_and_are_never_ranked() -> None:
    named = data(name="urbansound8k-av")
    records = [record("a", trial_dataset="us8k", data=named), record("b", trial_dataset="us8k", data=named)]
    table = accuracy_table(board(records), "us8k", "cavmae-tiny", "informed")
    quoted = [r for r in table.rows if r.reported]
    assert [r.name for r in quoted] == ["full-finetune", "lora", "adapter", "prompt-the-missing"]
    assert [r.reported for r in table.rows] == [False, False, True, True, True, True]
    assert quoted[3].cells[1].mean == pytest.approx(94)
    assert quoted[3].cells[4].mean == pytest.approx(87)
    assert not any(c.best for r in quoted for c in r.cells)
    assert cell(table, "a", "mean").best, "a reported 99 % must not take the mark from a measured 50 %"
    blind = accuracy_table(board(records), "us8k", "cavmae-tiny", "blind")
    assert [r.regime for r in blind.rows if r.reported] == ["none", "concat", "concat"]
    (cost,) = efficiency_tables(board(records), "us8k", "cavmae-tiny")
    peak = [r.cells[[c.key for c in cost.columns].index("peak_memory")].mean for r in cost.rows if r.reported]
    assert peak[3] == pytest.approx(17.85 * 1024)


def test_every_published_figure_is_shown() -> None:
    shown = sum(c.mean is not None for t in reported_tables() for r in t.rows for c in r.cells)
    assert shown == 52
    assert not any(r.reported for r in accuracy([record("a")]).rows)


def test_a_damaged_record_is_a_problem_and_the_rest_is_read(tmp_path: Path) -> None:
    save(tmp_path, field(1))
    (tmp_path / "records" / "zz.json").write_text('{"schema_version": 1, "status"', encoding="utf-8")
    (tmp_path / "records" / "zy.json").write_text('{"schema_version": 99}', encoding="utf-8")
    found = load_board(tmp_path)
    assert len(found.records) == 11
    assert [("zy.json" in p, "99" in p) for p in found.problems] == [(True, True), (False, False)]
    assert str(tmp_path) not in " ".join(found.problems)


def test_a_results_folder_is_read_and_a_trial_found_twice_counts_once(tmp_path: Path) -> None:
    entry = record("a")
    (tmp_path / "trials" / "one").mkdir(parents=True)
    (tmp_path / "trials" / "unfinished").mkdir()
    save_record(entry, tmp_path / "trials" / "one")
    (tmp_path / "trials" / "unfinished" / "trial.json").write_text("{", encoding="utf-8")
    save(tmp_path, [entry, record("b")])
    found = load_board(tmp_path)
    assert sorted(r.trial.title for r in found.records) == ["a", "b"] and found.problems == ()


def test_a_folder_without_records_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"no record in .*mmbench run"):
        load_board(tmp_path)
