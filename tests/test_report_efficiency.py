"""Records to tables of cost: the numbers, the ratios, and one table a device."""

from __future__ import annotations

import pytest
from report_records import (
    accuracy,
    cell,
    costs,
    data,
    efficiency,
    environment,
    failed,
    record,
    row,
)

from mmbench.records import PeakMemory, TrialRecord
from mmbench.report.cost_ratios import cost_ratios
from mmbench.report.model import NOT_MEASURED, Cell


def test_costs_and_ratios_equal_hand_computed_values() -> None:
    full = [
        record("full-finetune", s, trial_regime=r, costs=costs(2_000_000, 400, 800, e))
        for s in (0, 1)
        for r, e in (("clean", 10.0), ("mixed", 20.0))
    ]
    small = [
        record("lora-qv", s, trial_regime=r, costs=costs(100_000, 100, 600, 5.0 + s))
        for s in (0, 1)
        for r in ("mixed", "casewise")
    ]
    (table,) = efficiency([*full, *small])
    assert cell(table, "lora-qv", "trainable_parameters", "mixed").mean == pytest.approx(0.1)
    assert cell(table, "lora-qv", "trainable_share", "mixed").mean == pytest.approx(1.0)
    assert cell(table, "lora-qv", "training_state", "mixed").mean == pytest.approx(100)
    assert cell(table, "lora-qv", "peak_memory", "mixed").mean == pytest.approx(600)
    assert cell(table, "lora-qv", "state_ratio", "mixed").mean == pytest.approx(0.25)
    assert cell(table, "lora-qv", "peak_ratio", "mixed").mean == pytest.approx(0.75)
    assert cell(table, "lora-qv", "epoch_ratio", "mixed").mean == pytest.approx(5.5 / 20)
    # Casewise full fine-tuning is not there, so the clean one is the reference.
    assert cell(table, "lora-qv", "epoch_ratio", "casewise").mean == pytest.approx(5.5 / 10)
    assert cell(table, "lora-qv", "samples_per_second", "mixed").mean == pytest.approx((700 / 5 + 700 / 6) / 2)
    assert cell(table, "lora-qv", "epoch_seconds", "mixed").std == pytest.approx(0.7071068)


def test_unmeasured_costs_stay_empty_and_ratios_say_what_is_missing() -> None:
    spent = costs(epoch=None).model_copy(update={"training_state": None, "train_memory": PeakMemory()})
    (table,) = efficiency([record("a", costs=spent)])
    for key in ("epoch_seconds", "training_state", "peak_memory", "samples_per_second", "epoch_ratio"):
        assert cell(table, "a", key) == Cell(), key
    assert any("full-finetune has no finished trial" in note for note in table.notes)


def test_costs_of_two_devices_stand_in_two_tables() -> None:
    gpu = environment(device="Example GPU", device_kind="cuda", threads=8)
    more_threads = environment(threads=4)
    records = [record("full-finetune", s) for s in (0, 1)] + [record("a", 0), record("a", 1, environment=gpu)]
    records += [record("b", s, environment=more_threads) for s in (0, 1)]
    tables = efficiency(records)
    assert [sorted(r.name for r in t.rows) for t in tables] == [["a", "full-finetune"], ["b"], ["a"]]
    assert "1/2 seeds (1 not run on this device)" in row(tables[0], "a").notes
    assert {c.label for c in tables[0].columns if c.key == "peak_memory"} == {"peak RSS"}
    assert {c.label for c in tables[2].columns if c.key == "peak_memory"} == {"peak allocated"}
    assert len({t.slug for t in tables}) == 3
    assert cell(tables[2], "a", "epoch_ratio").mean is None
    assert len(accuracy(records).rows) == 3


def test_rows_that_read_frozen_sets_are_marked_beside_rows_that_corrupt() -> None:
    frozen = data(frozen=True)
    (mixed,) = efficiency([record("a", 0), record("a", 1, data=frozen), record("b"), failed("c", "crashed", "no disk")])
    marked = {r.name for r in mixed.rows if any("hold no corrupting" in note for note in r.notes)}
    assert marked == {"a"}
    (alike,) = efficiency([record("a", data=frozen), record("b", data=frozen), failed("c", "crashed", "no disk")])
    assert not any("hold no corrupting" in note for r in alike.rows for note in r.notes)


def test_an_untrained_row_wins_no_cost_column() -> None:
    records = [record("a"), record("b", costs=costs(2_000_000)), record("source", trial_regime="none", costs=costs(0))]
    (table,) = efficiency(records)
    assert cell(table, "a", "trainable_parameters").best
    assert not cell(table, "source", "trainable_parameters", NOT_MEASURED).best


def test_rows_with_fewer_samples_at_once_say_that_their_memory_is_of_less() -> None:
    quarter = costs().model_copy(update={"micro_batch": 16})
    untrained = costs(0).model_copy(update={"micro_batch": None})
    records = [record("a"), record("b", costs=quarter), record("source", trial_regime="none", costs=untrained)]
    (table,) = efficiency(records)
    told = {r.name: [note for note in r.notes if "at once" in note] for r in table.rows}
    assert [name for name, notes in told.items() if notes] == ["b"]
    assert told["b"][0].startswith("16 samples at once where others take 64")
    (alike,) = efficiency([record("a", costs=quarter), record("b", costs=quarter)])
    assert not any("at once" in note for r in alike.rows for note in r.notes)


def test_evaluations_compare_only_where_both_corrupt_or_neither() -> None:
    on_the_fly, frozen = [record("a")], [record("b", data=data(frozen=True))]

    def compared(*groups: list[TrialRecord]) -> set[str]:
        return {ratio.what for ratio in cost_ratios(*groups)}

    assert compared(on_the_fly, on_the_fly) - compared(on_the_fly, frozen) == {"evaluation seconds per sample"}
    assert compared(frozen, frozen) == compared(on_the_fly, on_the_fly)
