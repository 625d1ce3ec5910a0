"""Records to tables of robustness: hand-computed figures, and dashes where something is absent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from report_records import board, cell, record, row

from mmbench.records import TrialRecord
from mmbench.report.conditions import corruptions_of, read_condition
from mmbench.report.model import NOT_MEASURED, Table
from mmbench.report.robustness import robustness_tables
from mmbench.report.tables import group_tables

# Two families: fog at two severities and noise at one, rain as a sound; and a missing-rate sweep.
CONTENTS: tuple[dict[str, Any], ...] = (
    {"name": "complete"},
    {"name": "imagenet_c/fog@1", "vision": "imagenet_c/fog@1"},
    {"name": "imagenet_c/fog@5", "vision": "imagenet_c/fog@5"},
    {"name": "imagenet_c/shot_noise@3", "vision": "imagenet_c/shot_noise@3"},
    {"name": "downpour", "audio": "read/rain@2"},
    {"name": "half", "missing": {"which": "mixed", "rate": 0.5}},
    {"name": "all", "missing": {"which": "mixed", "rate": 1.0}},
)
NAMES = tuple(entry["name"] for entry in CONTENTS)
SOURCE = (0.8, 0.6, 0.2, 0.4, 0.5, 0.5, 0.3)
LORA = (0.9, 0.8, 0.6, 0.5, 0.6, 0.7, 0.5)


def made(
    title: str, values: tuple[float | None, ...], seed: int = 0, names: tuple[str, ...] = NAMES, **changes: Any
) -> TrialRecord:
    contents = {"cases": [entry for entry in CONTENTS if entry["name"] in names]}
    scored: Mapping[str, float | None] = dict(zip(names, values, strict=True))
    return record(title, seed, scored, trial_cases=names, trial_contents=contents, **changes)


def source(values: tuple[float | None, ...] = SOURCE, **changes: Any) -> TrialRecord:
    return made("source", values, trial_regime="none", **changes)


def table_of(*records: TrialRecord) -> Table:
    (table,) = robustness_tables(board(records), "synthetic-av", "cavmae-tiny")
    return table


def test_figures_equal_hand_computed_values() -> None:
    table = table_of(source(), made("lora", LORA))
    corrupted = (0.7 + 0.5 + 0.6 + 0.6) / 4  # fog is averaged over its severities, missing over its rates
    expected = {
        "clean": 0.9,
        "corrupted": corrupted,
        "worst": 0.5,
        "kept/imagenet_c": (0.7 + 0.5) / 2 / 0.9,
        "kept/read": 0.6 / 0.9,
        "kept/missing": 0.6 / 0.9,
        "mce": (0.3 / 0.6 + 0.5 / 0.6 + 0.4 / 0.5 + 0.4 / 0.6) / 4,
        "relative_mce": (0.2 / 0.4 + 0.4 / 0.4 + 0.3 / 0.3 + 0.3 / 0.4) / 4,
        "area/missing/mixed": (0.5 * (0.9 + 0.7) / 2 + 0.5 * (0.7 + 0.5) / 2) / 1.0,
    }
    assert [column.key for column in table.columns] == list(expected)
    for key, value in expected.items():
        assert cell(table, "lora", key).mean == pytest.approx(100 * value), key
        assert cell(table, "lora", key).n == 1
    assert cell(table, "source", "mce", NOT_MEASURED).mean == pytest.approx(100)
    assert cell(table, "source", "relative_mce", NOT_MEASURED).mean == pytest.approx(100)


def test_the_spread_is_over_seeds_and_the_source_counts_once() -> None:
    better = tuple(value + 0.02 for value in LORA)
    table = table_of(source(), made("lora", LORA), made("lora", better, seed=1))
    assert cell(table, "lora", "worst").mean == pytest.approx(51)
    assert cell(table, "lora", "worst").std == pytest.approx(2 / 2**0.5)
    assert row(table, "source", NOT_MEASURED).complete


def test_effective_robustness_is_what_lies_above_the_line_of_clean_training() -> None:
    # Three models whose corrupted logit is half their clean logit set the line; every corruption has the same score.
    def both(clean: float) -> tuple[float, ...]:
        return (clean, *(1 / (1 + ((1 - clean) / clean) ** 0.5),) * 6)

    clean_only = [made("lora", both(0.7)), made("adapter", both(0.9))]
    better = made("lora", (0.8, *(0.75,) * 6), trial_regime="mixed")
    far = made("prompt", (0.95, *(0.5,) * 6), trial_regime="mixed")
    helped = made("lora+mixup", (0.85, *(0.1,) * 6), trial_strategies=("mixup",))  # a strategy sets no line
    table = table_of(source(both(0.8)), *clean_only, better, far, helped)
    assert cell(table, "lora", "effective").mean == pytest.approx(0, abs=1e-9)
    assert cell(table, "lora", "effective", "mixed").mean == pytest.approx(100 * (0.75 - 2 / 3))
    assert cell(table, "prompt", "effective", "mixed").mean == pytest.approx(100 * (0.5 - 19**0.5 / (1 + 19**0.5)))
    assert [n for n in table.notes if "beyond them lie: prompt mixed." in n and "70.0 to 90.0 %" in n]


def test_two_clean_scores_set_no_line() -> None:
    assert "effective" not in [column.key for column in table_of(source(), made("lora", LORA)).columns]


def test_without_the_source_there_is_no_mce() -> None:
    # A row that trains is not the frozen source, whatever it is called.
    for records in ([made("lora", LORA)], [made("lora", LORA), made("source", SOURCE)]):
        table = table_of(*records)
        assert cell(table, "lora", "mce").mean is None and cell(table, "lora", "relative_mce").mean is None
        assert cell(table, "lora", "kept/read").mean is not None
        assert any("No mCE" in note for note in table.notes)


def test_without_a_clean_case_there_is_nothing_relative_to_it() -> None:
    names = NAMES[1:]
    table = table_of(source(SOURCE[1:], names=names), made("lora", LORA[1:], names=names))
    for key in ("clean", "kept/imagenet_c", "relative_mce"):
        assert cell(table, "lora", key).mean is None, key
    assert cell(table, "lora", "mce").mean is not None
    assert cell(table, "lora", "area/missing/mixed").mean == pytest.approx(60)


def test_where_the_source_loses_nothing_relative_mce_is_not_defined() -> None:
    table = table_of(source((0.8, 0.6, 0.2, 0.4, 0.8, 0.5, 0.3)), made("lora", LORA))
    assert cell(table, "lora", "relative_mce").mean is None
    assert cell(table, "lora", "mce").mean is not None


def test_a_case_without_a_value_leaves_dashes_where_it_counts_and_nowhere_else() -> None:
    table = table_of(source(), made("lora", (0.9, 0.8, None, 0.5, 0.6, 0.7, 0.5)))
    for key in ("corrupted", "worst", "kept/imagenet_c", "mce"):
        assert cell(table, "lora", key).mean is None, key
    assert cell(table, "lora", "kept/read").mean == pytest.approx(100 * 0.6 / 0.9)


def test_a_board_of_clean_samples_alone_has_no_such_table() -> None:
    clean = record("lora", 0, {"complete": 0.9}, trial_cases=("complete",))
    assert robustness_tables(board([clean]), "synthetic-av", "cavmae-tiny") == ()
    slugs = [table.slug for table in group_tables(board([made("lora", LORA)]), "synthetic-av", "cavmae-tiny")]
    assert slugs[:2] == ["synthetic-av_cavmae-tiny_blind", "synthetic-av_cavmae-tiny_blind_robustness"]


def test_conditions_are_read_from_contents() -> None:
    def read(**entry: Any) -> tuple[str, str, str, float]:
        found = read_condition({"name": "x", **entry})
        return found.corruption, found.family, found.scale, found.level

    assert read(audio="read/rain@3") == ("read/rain", "read", "severity", 3)
    both = {"audio": "avc/rain-sound@2", "vision": "avc/rain-picture@2"}
    assert read(**both) == ("avc/rain-sound + avc/rain-picture", "avc", "severity", 2)
    mixed = {"audio": "read/rain@2", "vision": "imagenet_c/fog@4"}
    assert read(**mixed) == ("read/rain@2 + imagenet_c/fog@4", "read+imagenet_c", "", 0)
    assert read(audio="seed/audio-alone") == ("seed/audio-alone", "seed", "", 0)
    assert read(missing={"which": "audio"}) == ("missing/audio", "missing", "rate", 1)
    filled = {"which": "vision", "rate": 0.3, "audio_fill": "mean", "vision_fill": "mean"}
    assert read(missing=filled) == ("missing/vision (vision mean)", "missing", "rate", 0.3)
    assert read(missing={"which": "mixed", "rate": 0.0}) == ("", "", "", 0)
    assert read(audio="read/rain@2", missing={"which": "vision", "rate": 0.5})[:2] == (
        "read/rain + missing/vision 0.5",
        "read+missing",
    )


def test_corruptions_carry_the_name_of_their_cases_unless_two_share_it() -> None:
    entries = [
        {"name": "storm@1", "audio": "read/wind@1"},
        {"name": "storm@4", "audio": "read/wind@4"},
        {"name": "noise-to-both", "audio": "seed/audio-both", "vision": "seed/vision-both"},
    ]
    groups = corruptions_of([read_condition(entry) for entry in entries])
    assert [(g.label, g.cases) for g in groups] == [
        ("storm", ("storm@1", "storm@4")),
        ("noise-to-both", ("noise-to-both",)),
    ]
    clash = [{"name": "x@1", "audio": "read/wind@1"}, {"name": "x@2", "audio": "read/rain@2"}]
    assert [g.label for g in corruptions_of([read_condition(e) for e in clash])] == ["read/wind", "read/rain"]
