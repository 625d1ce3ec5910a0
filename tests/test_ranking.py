"""Mean ranks over data sets and cases."""

from __future__ import annotations

from typing import Any

import pytest
from report_records import BUDGET, CASES, board, data, failed, of, record

from mmbench.records import TrialFacts, TrialRecord
from mmbench.report.board import all_problems
from mmbench.report.ranking import ranking, ranking_table
from mmbench.report.stats import critical_difference
from mmbench.report.tables import ranking_problems, ranking_tables
from mmbench.report.text import as_text


def trial_with(entry: TrialRecord, **changes: Any) -> TrialFacts:
    return entry.trial.model_copy(update=changes)


def rows(order: str, dataset: str = "synthetic-av") -> list:  # type: ignore[type-arg]
    """One row a letter, the first best in every case."""
    return [
        record(name, seed, of(*(90 - 5 * i + seed,) * 4), trial_dataset=dataset)
        for i, name in enumerate(order)
        for seed in range(2)
    ]


def test_ranks_are_means_over_the_cases_of_every_data_set() -> None:
    found = ranking(board(rows("abcde") + rows("abdce", "cifar10-av")), "blind")
    assert found is not None
    assert [name for name, _ in found.names] == ["a", "b", "c", "d", "e"]
    assert found.mean_ranks == (1.0, 2.0, 3.5, 3.5, 5.0)
    assert found.blocks == 2 * len(CASES)
    assert found.critical_difference == critical_difference(5, 8)  # 2.16
    assert found.groups == ((0, 1), (1, 2, 3), (2, 3, 4))
    assert found.test.p < 0.001
    # Row d has 75 and 76 in four cases of one data set and 80 and 81 in the other: the middle half is 76 and 80.
    assert found.iqms[3] == pytest.approx(0.78) and found.iqms[0] == pytest.approx(0.905)


def test_a_row_with_a_gap_is_left_out_and_named() -> None:
    records = [*rows("abcd"), *rows("abc", "cifar10-av"), failed("e", "crashed", "boom")]
    found = ranking(board(records), "blind")
    assert found is not None and len(found.names) == 3 and found.left_out == ("d clean", "e clean")
    table = ranking_table(board(records), "blind")
    assert table is not None and any("left out: d clean, e clean" in note for note in table.notes)


def test_rows_that_cannot_be_ranked_are_told() -> None:
    few = board([*rows("ab"), *rows("abc", "cifar10-av")])
    assert ranking(few, "blind") is None and ranking_tables(few) == ()
    told = "no mean ranks, blind track: fewer than 3 of its 3 rows have every seed and case on every data set"
    assert told in all_problems(few)
    assert ranking_problems(board(rows("ab"))) == () == ranking_problems(board(rows("abc")))


def test_a_table_over_data_sets_says_how_each_was_made() -> None:
    other = [r.model_copy(update={"data": data(name="CIFAR")}) for r in rows("bac", "cifar10-av")]
    long = [r.model_copy(update={"trial": trial_with(r, budget={**BUDGET, "epochs": 50.0})}) for r in other]
    online = record("a+tent", 9, trial_online="tent", trial_suite="another")
    table = ranking_table(board([*rows("abc"), *long, online]), "blind")
    assert table is not None and table.provenance is not None
    assert any(n.startswith("cifar10-av, cavmae-tiny: Budget of every method: 50 epochs") for n in table.notes)
    assert any(n.startswith("synthetic-av, cavmae-tiny: Budget of every method: 5 epochs") for n in table.notes)
    assert any(n.startswith("cifar10-av, cavmae-tiny: Data: CIFAR") for n in table.notes)
    assert sum("mean ± standard deviation" in n for n in table.notes) == 1  # one sentence for what both share
    assert "another" not in " ".join(table.notes)
    made = table.provenance
    assert (made.seeds, made.dataset, made.backbone) == ((0, 1), "cifar10-av, synthetic-av", "cavmae-tiny")
    assert made.budget.startswith("50 epochs") and "; 5 epochs" in made.budget


def test_one_name_for_two_sets_of_options_is_left_out_and_named() -> None:
    other = [r.model_copy(update={"trial": trial_with(r, options={"rank": 64})}) for r in rows("d", "cifar10-av")]
    found = ranking_table(board([*rows("abcd"), *rows("abc", "cifar10-av"), *other]), "blind")
    assert found is not None and [row.name for row in found.rows] == ["a", "b", "c"]
    assert any(n.endswith("under one name on another data set, left out: d clean.") for n in found.notes)
    assert not any(n.startswith("Without a score") for n in found.notes)


def test_a_data_set_without_a_whole_row_is_named() -> None:
    gaps = [record(name, i, trial_dataset="cifar10-av") for i, name in enumerate("abc")]
    table = ranking_table(board([*rows("abc"), *gaps]), "blind")
    assert table is not None and "4 blocks" in table.notes[0]
    assert "No row has every score there, left out: cifar10-av, cavmae-tiny." in table.notes
    assert not any(n.startswith("Without a score") for n in table.notes)


def test_two_rows_or_one_block_have_no_ranking() -> None:
    assert ranking(board(rows("ab")), "blind") is None and ranking_table(board(rows("ab")), "blind") is None
    one = [record(name, values={"complete": 0.5}, trial_cases=("complete",)) for name in "abc"]
    assert ranking(board(one), "blind") is None


def test_the_table_tells_the_groups_by_letters_within_a_terminal() -> None:
    table = ranking_table(board(rows("abcde")), "blind")
    assert table is not None
    text = as_text(table)
    assert max(map(len, text.splitlines())) <= 80
    letters = [row.cells[1].word for row in table.rows]
    reach = critical_difference(5, 4)  # 3.05: ranks 1..4 and 2..5 are within it
    assert 3 < reach < 4 and letters == ["a", "ab", "ab", "ab", "b"]
    assert f"{reach:.2f}" in text
