"""Boards of many cases, cases that do not apply, and second scores without the scenes that are classes."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_records import board, cell, data, record, save, scores

from mmbench.cards import NOT_APPLICABLE
from mmbench.evaluate import Predictions
from mmbench.outputs import save_predictions
from mmbench.records import TrialRecord, save_record
from mmbench.report.aggregate import accuracy_table, load_board
from mmbench.report.board import write_board
from mmbench.report.figures import style
from mmbench.report.heat import case_heat_map
from mmbench.report.model import Cell, Column, Row, Table
from mmbench.report.robustness import robustness_tables
from mmbench.report.second import is_scene, scene_classes
from mmbench.report.tables import group_tables, render

FOG = tuple(f"imagenet_c/fog@{s}" for s in range(1, 6))
SNOW = ("imagenet_c/snow@1",)
RAIN = tuple(f"read/rain@{s}" for s in range(1, 6))
LATE = ("sensor/late@1", "sensor/late@2")
NAMES = ("complete", *FOG, *SNOW, *RAIN, *LATE)  # 14 cases
IDLE = f"{NOT_APPLICABLE}still pictures"
PLACE = ("synthetic-av", "cavmae-tiny")


def written(name: str) -> dict[str, Any]:
    heard = name.startswith(("read", "sensor"))
    return {"name": name} if name == "complete" else {"name": name, "audio" if heard else "vision": name}


def wide(title: str, names: tuple[str, ...] = NAMES, lost: str = "", **changes: Any) -> TrialRecord:
    """0.9 on clean samples, fog .80 .78 .76 .74 .72, snow .4, rain .70 .68 .66 .64 .62; desync does not apply."""
    values = dict(zip(FOG, (0.80, 0.78, 0.76, 0.74, 0.72), strict=True)) | {"complete": 0.9, SNOW[0]: 0.4}
    values |= dict(zip(RAIN, (0.70, 0.68, 0.66, 0.64, 0.62), strict=True))
    found = []
    for score in scores({name: None if name == lost else values.get(name) for name in names}):
        idle = {"reason": IDLE, "digest": None} if score.case in LATE else {}
        found.append(replace(score, **idle))
    contents = {"cases": [written(name) for name in names]}
    return record(title, trial_cases=names, trial_contents=contents, scores=tuple(found), **changes)


def keys(table: Table) -> list[str]:
    return [column.key for column in table.columns]


def test_many_cases_show_one_column_a_family_and_the_same_mean() -> None:
    shown = accuracy_table(board([wide("a")]), *PLACE, "blind", "family")
    assert keys(shown) == ["complete", "imagenet_c", "read", "mean", "worst"]
    assert cell(shown, "a", "imagenet_c").mean == pytest.approx(100 * (0.76 + 0.4) / 2)  # fog over its severities first
    assert cell(shown, "a", "read").mean == pytest.approx(66)
    full = accuracy_table(board([wide("a")]), *PLACE, "blind")
    assert keys(full) == [*NAMES, "mean", "worst"]
    expected = 100 * (0.9 + 5 * 0.76 + 0.4 + 5 * 0.66) / 12
    assert cell(shown, "a", "mean").mean == cell(full, "a", "mean").mean == pytest.approx(expected)
    assert any("14 cases, one column a family" in note and LATE[0] in note for note in shown.notes)


def test_by_corruption_only_severities_are_averaged() -> None:
    table = accuracy_table(board([wide("a")]), *PLACE, "blind", "corruption")
    assert keys(table) == ["complete", "imagenet_c/fog", "imagenet_c/snow", "read/rain", "mean", "worst"]
    assert cell(table, "a", "imagenet_c/fog").mean == pytest.approx(76)


def test_twelve_cases_keep_a_column_each() -> None:
    table = accuracy_table(board([wide("a", NAMES[:12])]), *PLACE, "blind", "family")
    assert keys(table) == [*NAMES[:12], "mean", "worst"]


def test_a_lost_score_is_a_dash_in_its_family_and_says_how_many() -> None:
    table = accuracy_table(board([wide("a", lost=FOG[1])]), *PLACE, "blind", "family")
    found = cell(table, "a", "imagenet_c")
    assert found.mean is None and found.notes == ("imagenet_c: 1 of 6 scores absent, no positive sample",)
    assert cell(table, "a", "read").mean == pytest.approx(66)


def test_pages_show_families_and_csv_every_case(tmp_path: Path) -> None:
    write_board(save(tmp_path, [wide("a"), wide("b")]), formats=("md", "csv", "txt", "tex"))
    stem = tmp_path / "tables" / "synthetic-av_cavmae-tiny_blind"
    assert "imagenet" in stem.with_suffix(".md").read_text() and FOG[0] not in stem.with_suffix(".md").read_text()
    assert "read/rain" not in stem.with_suffix(".tex").read_text()
    lines = csv.DictReader(io.StringIO(stem.with_suffix(".csv").read_text()))
    assert [line["measure"] for line in lines if line["method"] == "a"] == [*NAMES, "mean", "worst"]
    assert max(map(len, stem.with_suffix(".txt").read_text().splitlines())) <= 80


def test_robustness_leaves_out_what_does_not_apply() -> None:
    source = wide("source", trial_regime="none")
    with_idle = robustness_tables(board([source, wide("a")]), *PLACE)[0]
    without = robustness_tables(
        board([wide("source", NAMES[:12], trial_regime="none"), wide("a", NAMES[:12])]), *PLACE
    )[0]
    assert keys(with_idle) == keys(without) and "kept/sensor" not in keys(with_idle)
    assert with_idle.rows == without.rows
    # (fog .76, snow .4, rain .66) / 3, and each error over the same one of the source
    assert cell(with_idle, "a", "corrupted").mean == pytest.approx(100 * (0.76 + 0.4 + 0.66) / 3)
    assert cell(with_idle, "a", "mce").mean == pytest.approx(100)
    assert cell(with_idle, "a", "relative_mce").mean == pytest.approx(100)
    assert any("Not applicable" in note and LATE[1] in note for note in with_idle.notes)
    lost = robustness_tables(board([wide("a", lost=FOG[1])]), *PLACE)[0]
    assert cell(lost, "a", "corrupted").mean is None


def test_the_heat_map_is_bounded_and_says_what_it_shows() -> None:
    columns = tuple(Column(f"c{i}", f"family/corruption_{i}", "%", 1, "higher") for i in range(40))
    rows = tuple(Row(f"m{i}", "clean", tuple(Cell(50.0, n=1) for _ in columns)) for i in range(200))
    with style():
        drawing = case_heat_map(Table("Accuracy", "t", columns, rows))
        assert drawing is not None
    figure = drawing.figure
    assert figure.get_figheight() < 26 and figure.get_figwidth() < 26
    assert "the first 34 and the last 6 of 200 rows" in figure.axes[0].get_title()
    assert all(text.get_rotation() == 90 for text in figure.axes[0].get_xticklabels())


def test_a_class_is_a_scene_by_the_end_of_a_part_of_its_name() -> None:
    rain = ("rain", "raining", "rain on surface")
    assert all(is_scene(label, rain) for label in ("Rain", "heavy_rain", "raining", "storm (rain)", "Rain on surface"))
    assert not any(is_scene(label, rain) for label in ("train", "rain stick", "brain", "drizzle", ""))
    wind = ("wind", "wind noise", "wind rustling leaves")
    assert is_scene("Wind noise (microphone)", wind) and not is_scene("Wind instrument, woodwind instrument", wind)
    assert not is_scene("anything", ())


def test_scenes_of_data_sets_in_use_are_found() -> None:
    urban = ("air_conditioner", "children_playing", "dog_bark", "siren", "street_music")

    def found(sound: str) -> tuple[str, ...]:
        return scene_classes({"name": "x", "audio": f"{sound}@3", "vision": "imagenet_c/fog@3"}, urban)

    assert found("avc/smoke-sound") == ("siren",)
    assert found("avc/concert-sound") == ("street_music",)
    assert found("avc/crowd-sound") == found("read/crowd_snr") == ("children_playing",)
    assert found("read/rain") == found("read/gaussian_noise") == found("unknown/one") == ()


def trial_with_predictions(folder: Path, right: tuple[bool, ...], multi_label: bool = False) -> None:
    """Classes rain, dog, cat with two samples each under rain and on clean sound, in a results folder."""
    labels = np.array([0, 0, 1, 1, 2, 2])
    guess = np.where(right, labels, (labels + 1) % 3)
    truth = np.eye(3, dtype=np.float32)[labels] if multi_label else labels
    names = ("complete", "read/rain@3")
    found = [
        Predictions(name, 0 if name == "complete" else 3, "blind", tuple("abcdef"), np.eye(3)[guess], truth, "0" * 64)
        for name in names
    ]
    metric = "map" if multi_label else "accuracy"
    first = scores(dict.fromkeys(names, float(np.mean(right))), metric=metric)
    made = record(
        "a",
        trial_cases=names,
        trial_contents={"cases": [written(name) for name in names]},
        scores=tuple(replace(s, n=6, severity=3 if s.case.startswith("read") else 0) for s in first),
        data=data(classes=("heavy_rain", "dog", "cat"), multi_label=multi_label),
    )
    trial = folder / "trials" / "one"
    trial.mkdir(parents=True)
    save_predictions(found, trial)
    save_record(made, trial)


def test_the_second_score_leaves_out_the_class_of_the_scene(tmp_path: Path) -> None:
    trial_with_predictions(tmp_path, (False, False, True, True, True, False))
    table = accuracy_table(load_board(tmp_path), *PLACE, "blind")
    assert keys(table) == ["complete", "read/rain@3", "read/rain@3, without scenes", "mean", "worst"]
    assert cell(table, "a", "read/rain@3").mean == pytest.approx(50)
    assert cell(table, "a", "read/rain@3, without scenes").mean == pytest.approx(75)
    assert cell(table, "a", "mean").mean == pytest.approx(50)  # of first scores
    assert any("read/rain: 4 of 6 samples, without heavy_rain" in note for note in table.notes)
    assert "read/rain@3, without scenes" in render(group_tables(load_board(tmp_path), *PLACE)[0], "md")


def test_a_published_board_keeps_it_without_the_predictions(tmp_path: Path) -> None:
    trial_with_predictions(tmp_path / "runs", (False, False, True, True, True, False))
    write_board(tmp_path / "runs", tmp_path / "out", formats=("csv",))
    assert not list((tmp_path / "out").rglob("*.parquet"))
    table = accuracy_table(load_board(tmp_path / "out"), *PLACE, "blind")
    assert cell(table, "a", "read/rain@3, without scenes").mean == pytest.approx(75)


def test_an_equal_second_score_is_not_shown(tmp_path: Path) -> None:
    trial_with_predictions(tmp_path, (True, False, True, False, True, False))
    assert keys(accuracy_table(load_board(tmp_path), *PLACE, "blind")) == ["complete", "read/rain@3", "mean", "worst"]


def test_of_several_labels_the_scene_leaves_samples_and_the_mean_over_classes(tmp_path: Path) -> None:
    trial_with_predictions(tmp_path, (False, False, True, True, True, True), multi_label=True)
    (second,) = [s for s in load_board(tmp_path).records[0].scores if s.metric == "map-without-scenes"]
    assert (second.value, second.n) == (1.0, 4)


def test_damaged_predictions_cost_the_second_score_alone(tmp_path: Path) -> None:
    trial_with_predictions(tmp_path, (False, False, True, True, True, False))
    (tmp_path / "trials" / "one" / "predictions.parquet").write_bytes(b"no parquet")
    found = load_board(tmp_path)
    assert len(found.records) == 1 and "second scores are left out" in found.problems[0]
