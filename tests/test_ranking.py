"""Mean ranks over data sets and cases."""

from __future__ import annotations

import pytest
from report_records import CASES, board, failed, of, record

from mmbench.report.ranking import ranking, ranking_table
from mmbench.report.stats import critical_difference
from mmbench.report.text import as_text


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
    assert found is not None and len(found.names) == 3 and found.left_out == ("d clean",)
    table = ranking_table(board(records), "blind")
    assert table is not None and any("left out: d clean" in note for note in table.notes)


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
