"""What a trial's page tells of the files beside its record, whole or damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_records import data, record

from mmbench.files import RecordError
from mmbench.records import TrialRecord
from mmbench.report.prediction_groups import COLUMNS
from mmbench.report.site.drawing import draw
from mmbench.report.site.trial_page import view_of
from mmbench.report.trial_files import Curve, Point, read_curves, read_mistakes

CLASSES = ("siren", "rain", "gong")
Rows = list[tuple[str, str, int, list[float]]]
"""Sample, case, label and logits."""


def predictions(folder: Path, rows: Rows, **columns: list[object]) -> Path:
    """Write predictions of the blind track; keywords replace columns."""
    samples, cases, labels, logits = (list(column) for column in zip(*rows, strict=True))
    table: dict[str, list[object]] = {
        "sample": samples,
        "case": cases,
        "severity": [0] * len(rows),
        "track": ["blind"] * len(rows),
        "stream": [""] * len(rows),
        "update": ["none"] * len(rows),
        "label": [[label] for label in labels],
        "logits": logits,
        **columns,
    }
    arrays = {name: pa.array(cells, None if name in columns else COLUMNS[name]) for name, cells in table.items()}
    pq.write_table(pa.table(arrays), folder / "predictions.parquet")
    return folder


def trial(**changes: object) -> TrialRecord:
    return record("lora-qv", data=data(classes=CLASSES), **changes)


def test_the_surest_wrong_answers_come_first_and_a_sample_once(tmp_path: Path) -> None:
    rows: Rows = [
        ("a", "complete", 0, [5.0, 0.0, 0.0]),  # right
        ("b", "complete", 2, [0.0, 9.0, 0.0]),  # wrong: 0.9998
        ("a", "noise", 0, [0.0, 2.0, 0.0]),  # wrong: 1 / (1 + 2 exp(-2)) = 0.787
        ("b", "noise", 2, [0.0, 0.0, 1.0]),
        ("a", "missing", 0, [0.0, 0.0, 1.0]),  # wrong, less sure
    ]
    found = read_mistakes(trial(), predictions(tmp_path, rows))
    assert [(m.sample, m.case, m.label, m.predicted, m.wrong, m.seen) for m in found] == [
        ("b", "complete", "gong", "rain", 1, 2),
        ("a", "noise", "siren", "rain", 2, 3),
    ]
    assert [m.confidence for m in found] == pytest.approx([0.99975, 0.78699], abs=1e-4)
    assert len(read_mistakes(trial(), tmp_path, most=1)) == 1


def test_mistakes_are_those_of_the_most_telling_track_before_any_update(tmp_path: Path) -> None:
    rows: Rows = [("a", "c", 0, [0.0, 5.0, 0.0]), ("a", "c", 0, [0.0, 0.0, 5.0]), ("b", "c", 0, [0.0, 3.0, 0.0])]
    folder = predictions(tmp_path, rows, track=["blind", "informed", "avail"])
    assert [m.predicted for m in read_mistakes(trial(), folder)] == ["gong"]
    online = {"stream": ["", "reset/64", "reset/64"], "update": ["none", "after", "before"]}
    adapted = trial().model_copy(update={"online": object()})
    assert [m.sample for m in read_mistakes(adapted, predictions(tmp_path, rows, **online))] == ["b"]  # type: ignore[arg-type]


def test_right_answers_several_labels_and_no_file_are_no_mistakes(tmp_path: Path) -> None:
    assert read_mistakes(trial(), tmp_path) == ()
    predictions(tmp_path, [("a", "c", 0, [5.0, 0.0, 0.0])])
    assert read_mistakes(trial(), tmp_path) == ()
    predictions(tmp_path, [("a", "c", 0, [0.0, 5.0, 0.0])])
    assert read_mistakes(record("a", data=data(classes=CLASSES, multi_label=True)), tmp_path) == ()
    assert len(read_mistakes(trial(), tmp_path)) == 1


@pytest.mark.parametrize(
    "columns",
    [
        {"logits": [[1.0, 2.0], [1.0, 2.0, 3.0, 4.0]]},
        {"logits": ["x", "y"]},
        {"label": [[0], [7]]},
        {"label": [[0], [-1]]},
        {"label": [[], [0, 1]]},
        {"track": [1, 2]},
    ],
)
def test_predictions_that_do_not_fit_are_told_and_left_out(tmp_path: Path, columns: dict[str, list[object]]) -> None:
    rows: Rows = [("a", "c", 0, [0.0, 5.0, 0.0]), ("b", "c", 0, [0.0, 5.0, 0.0])]
    with pytest.raises(RecordError, match=r"cannot read predictions\.parquet: .*left out"):
        read_mistakes(trial(), predictions(tmp_path, rows, **columns))
    view = view_of(trial(), tmp_path)
    assert view.mistakes == () and "left out" in view.problem and view.scores.rows


def test_a_file_that_is_no_parquet_is_told(tmp_path: Path) -> None:
    (tmp_path / "predictions.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(RecordError, match="cannot read"):
        read_mistakes(trial(), tmp_path)


def test_losses_are_those_of_the_final_training(tmp_path: Path) -> None:
    epoch = {"event": "epoch", "phase": "train"}
    lines = [
        json.dumps({**epoch, "job": "tune-0/all", "samples": 10, "loss": 9.0}),
        json.dumps({**epoch, "job": "final/all", "samples": 10, "loss": 2.0}),
        "{not json",
        "[" * 100_000,
        json.dumps([1, 2]),
        json.dumps({"event": "tuned", "lr": 1.0}),
        '{"event": "epoch", "job": "final/all", "samples": 15, "loss": NaN}',
        json.dumps({**epoch, "job": "final/all", "samples": "many", "loss": 2.0}),
        json.dumps({**epoch, "job": "final/all", "samples": 0, "loss": 2.0}),
        json.dumps({**epoch, "job": "final/all", "samples": 20, "loss": 1}),
    ]
    (tmp_path / "events.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert read_curves(tmp_path) == (Curve("all", (Point(10, 2.0), Point(20, 1.0))),)
    assert read_curves(tmp_path / "nowhere") == ()


def test_the_drawing_spans_its_area_and_says_so() -> None:
    drawn = draw([Curve("all", (Point(50, 3.0), Point(100, 1.0)))])
    assert drawn is not None
    assert drawn.lines[0].points == "280.0,0.0 560.0,180.0"
    assert drawn.words == "Mean loss of an epoch: all from 3 to 1."
    flat = draw([Curve("all", (Point(50, 2.0), Point(100, 2.0)))])
    assert flat is not None and flat.lines[0].points == "280.0,90.0 560.0,90.0"
    assert draw([Curve("all", (Point(50, 3.0),))]) is None
