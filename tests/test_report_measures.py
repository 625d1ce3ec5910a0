"""Calibration, worth of knowledge, trade-offs: hand-computed figures, and nothing where there is nothing to say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from report_records import CASES, board, cell, costs, failed, field, of, record, row, scores

from mmbench.records import Score, TrialRecord
from mmbench.report.calibration import calibration_tables
from mmbench.report.efficiency import efficiency_tables
from mmbench.report.knowledge import knowledge_tables
from mmbench.report.measures import on_front
from mmbench.report.model import NOT_MEASURED, Table
from mmbench.report.tables import all_tables, group_tables
from mmbench.report.tradeoff import trade_off_tables

PLACE = ("synthetic-av", "cavmae-tiny")


def calibrated(title: str, ece: tuple[float, ...], nll: tuple[float, ...], **changes: object) -> TrialRecord:
    found = (
        *scores(dict.fromkeys(CASES, 0.5)),
        *scores(dict(zip(CASES, ece, strict=True)), metric="ece"),
        *scores(dict(zip(CASES, nll, strict=True)), metric="nll"),
    )
    return record(title, scores=found, **changes)


def test_calibration_equals_hand_computed_values_and_the_lowest_error_stands_first() -> None:
    worse = calibrated("worse", (0.05, 0.2, 0.1, 0.3), (0.4, 1.0, 1.1, 1.5))
    better = calibrated("better", (0.02, 0.1, 0.1, 0.1), (0.3, 0.8, 0.8, 0.8))
    lost = failed("lost", "diverged", "NaN")
    (table,) = calibration_tables(board((worse, better, lost)), *PLACE)
    assert [r.name for r in table.rows] == ["better", "worse", "lost"]
    expected = {"ece_clean": 5, "ece_corrupted": 20, "ece_worst": 30, "nll_clean": 0.4, "nll_corrupted": 1.2}
    for key, value in expected.items():
        assert cell(table, "worse", key).mean == pytest.approx(value), key
    assert {c.word for c in row(table, "lost").cells} == {"diverged"}
    assert cell(table, "better", "ece_corrupted").best


def test_boards_without_calibration_have_no_such_table() -> None:
    assert calibration_tables(board(field()), *PLACE) == ()
    assert not [table for table in group_tables(board(field()), *PLACE) if "calibration" in table.slug]


def streamed(values: Mapping[str, float], metric: str, stream: str, update: str) -> tuple[Score, ...]:
    changed = {"stream": stream, "update": update}
    return tuple(replace(score, **changed) for score in scores(values, metric=metric))


def test_online_calibration_sets_the_adapter_beside_the_state_it_began_with() -> None:
    found = (
        *streamed(dict.fromkeys(CASES, 0.1), "ece", "", "none"),
        *streamed(dict.fromkeys(CASES, 0.3), "ece", "reset/64", "before"),
        *streamed(dict.fromkeys(CASES, 0.9), "ece", "reset/64", "after"),
        *streamed(dict.fromkeys(CASES, 0.5), "accuracy", "reset/64", "before"),
    )
    (table,) = calibration_tables(board([record("lora+tent", scores=found, trial_online="tent")]), *PLACE)
    assert [column.key for column in table.columns] == ["ece_unadapted", "ece"]  # nothing fills the others
    assert [c.mean for c in table.rows[0].cells] == [pytest.approx(10), pytest.approx(30)]


def test_the_gap_is_taken_seed_by_seed_and_only_where_both_tracks_were_scored() -> None:
    told = [
        record("ptm", seed, scores=scores(of(90, 70, 70, 50 + seed), "informed") + scores(of(90, 60, 60, 40), "blind"))
        for seed in (0, 1)
    ]
    blind_only = record("lora", values=of(90, 60, 60, 60))
    (table,) = knowledge_tables(board([*told, blind_only]), *PLACE)
    assert [r.name for r in table.rows] == ["ptm"]
    assert cell(table, "ptm", "gap").mean == pytest.approx((30 / 4 + 31 / 4) / 2)
    assert cell(table, "ptm", "gap").std == pytest.approx(0.25 / 2**0.5)
    assert cell(table, "ptm", "gap_worst").mean == pytest.approx(10.5)
    assert knowledge_tables(board([blind_only]), *PLACE) == ()


def priced(title: str, percent: float, state_mib: int, epoch: float, trainable: int, **changes: object) -> TrialRecord:
    spent = costs(trainable, state_mib, epoch=epoch)
    return record(title, values=of(*(percent,) * 4), costs=spent, **changes)


def trade_off(*records: TrialRecord) -> Table:
    (table,) = trade_off_tables(efficiency_tables(board(records), *PLACE))
    return table


def field_of_four() -> tuple[TrialRecord, ...]:
    return (
        record("source", values=of(50, 50, 50, 50), costs=costs(0, 0, epoch=None), trial_regime="none"),
        priced("full-finetune", 80, 400, 10, 10_000_000),
        priced("lora", 75, 200, 8, 100_000),
        priced("prompt", 60, 100, 9, 10_000),
        priced("dear", 60, 300, 9, 50_000_000),
    )


def test_the_front_names_the_costs_at_which_no_row_is_better() -> None:
    table = trade_off(*field_of_four())
    words = {r.name: cell(table, r.name, "front", r.regime).word for r in table.rows}
    assert words == {
        "full-finetune": "memory time stored",
        "lora": "memory time stored",
        "prompt": "memory stored",
        "dear": NOT_MEASURED,
        "source": NOT_MEASURED,
    }


def test_hypervolume_is_the_share_of_a_box_that_no_new_method_moves() -> None:
    # Box: 0..400 MiB, 50..100 %. Staircase: 10 points high from 100, 25 from 200; full fine-tuning stands on the edge.
    share = 100 * (100 * 10 + 200 * 25) / (400 * 50)
    for more in ((), (priced("worse", 55, 390, 9.9, 9_000_000),)):
        (note,) = [n for n in trade_off(*field_of_four(), *more).notes if n.startswith("Hypervolume")]
        assert f"memory {share:.1f} %" in note
    (note,) = [n for n in trade_off(*field_of_four()[1:]).notes if "ypervolume" in n]
    assert note == "No hypervolume: source has no finished trial here."


def test_ppt_is_that_of_v_petl_bench() -> None:
    table = trade_off(*field_of_four())
    assert cell(table, "full-finetune", "ppt").mean == pytest.approx(80 * math.exp(-math.log10(2)))
    assert cell(table, "source", "ppt", NOT_MEASURED).mean == pytest.approx(50)


def test_incomplete_rows_do_not_compete() -> None:
    half = priced("half", 99, 1, 0.1, 1)
    seeds = [
        r.model_copy(update={"trial": r.trial.model_copy(update={"seed": 1, "id": f"{i:016x}"})})
        for i, r in enumerate(field_of_four())
    ]
    table = trade_off(*field_of_four(), *seeds, half)
    assert cell(table, "half", "front").word == NOT_MEASURED
    assert "memory" in cell(table, "prompt", "front").word


def test_fronts_agree_with_a_brute_force_over_random_points() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        points = [(float(c), float(s)) for c, s in rng.integers(0, 6, size=(12, 2))]
        beaten = {
            i for (i, (c, s)), (d, t) in product(enumerate(points), points) if (d < c and t >= s) or (d <= c and t > s)
        }
        assert on_front(points) == [i not in beaten for i in range(len(points))]


def test_every_table_of_records_says_where_it_comes_from() -> None:
    named = [failed("lost", "refused", "needs the case", seed) for seed in (0, 1, 2)]
    for table in all_tables(board([*field(), *named])):
        if table.slug.startswith("reported"):
            assert table.provenance is None
            continue
        assert table.provenance is not None
        text = " ".join(table.notes)
        for fact in ("Suite quickstart", "seeds 0, 1, 2", "5 epochs, batch 64", "Example CPU", "2026-03-01"):
            assert fact in text, (table.slug, fact)
        for fact in ("commit 0123456789ab", "torch 2.11.0", "± is the standard deviation"):
            assert fact in text, (table.slug, fact)
