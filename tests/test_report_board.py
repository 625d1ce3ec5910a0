"""Plots and the board's folder."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from matplotlib.text import Text
from PIL import Image
from report_records import BUDGET, costs, failed, field, record, save

from mmbench.errors import UnknownNameError
from mmbench.files import RecordError
from mmbench.report.aggregate import Board, load_board
from mmbench.report.bars import cost_bars
from mmbench.report.board import portable_suite, write_board
from mmbench.report.efficiency import efficiency_tables
from mmbench.report.figures import spans_far, style
from mmbench.report.labels import Point
from mmbench.report.plots import write_plots
from mmbench.report.scatter import COSTS, accuracy_against, labelled


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A board written once from a results folder with one damaged and one foreign record."""
    runs = save(tmp_path_factory.mktemp("runs"), field(2))
    save(runs, [record("odd", trial_budget={**BUDGET, "epochs": 50.0})])
    (runs / "records" / "zz.json").write_text("{", encoding="utf-8")
    (runs / "suite.yaml").write_text("name: quickstart\n", encoding="utf-8")
    out = tmp_path_factory.mktemp("board")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_board(runs, out, command="mmbench run quickstart")
    return out


def test_plots_are_pictures_and_drawings_with_content(published: Path) -> None:
    pngs, svgs = sorted((published / "plots").glob("*.png")), sorted((published / "plots").glob("*.svg"))
    stem = "synthetic-av_cavmae-tiny"
    assert (
        [p.stem for p in pngs]
        == [p.stem for p in svgs]
        == [
            "quickstart_blind_ranks_critical-difference",
            "quickstart_informed_ranks_critical-difference",
            f"{stem}_blind_cases",
            f"{stem}_blind_seeds",
            f"{stem}_efficiency_accuracy-memory",
            f"{stem}_efficiency_accuracy-stored",
            f"{stem}_efficiency_accuracy-time",
            f"{stem}_efficiency_bars",
            f"{stem}_efficiency_memory",
            f"{stem}_informed_cases",
            f"{stem}_informed_seeds",
        ]
    )
    for png in pngs:
        with Image.open(png) as picture:
            assert min(picture.size) > 400
            assert len(picture.convert("RGB").getcolors(1 << 24) or ()) > 20
    for svg in svgs:
        assert any("prompt-the-missing" in (node.text or "") for node in ElementTree.parse(svg).iter())


def test_the_heat_map_shows_statuses(published: Path) -> None:
    texts = ElementTree.parse(published / "plots" / "synthetic-av_cavmae-tiny_informed_cases.svg").iter()
    assert "does not" in [node.text for node in texts]


def test_the_board_can_be_rebuilt_from_itself_byte_by_byte(published: Path) -> None:
    before = {
        p: p.read_bytes() for p in published.rglob("*") if p.is_file() and p.suffix != ".png" and p.name != "README.md"
    }
    write_board(published)
    assert {p: p.read_bytes() for p in before} == before


def test_the_readme_shows_tables_plots_command_and_problems(tmp_path: Path) -> None:
    runs = save(tmp_path / "runs", [record("good"), record("fine"), failed("bad_one", "diverged", "NaN")])
    save(runs, [record("odd", trial_budget={**BUDGET, "epochs": 50.0})])
    (runs / "records" / "zz.json").write_text("{", encoding="utf-8")
    written = write_board(runs, tmp_path / "out", formats=("md",), command="mmbench run quickstart")
    readme = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for word in (
        "blind track",
        "Cost on synthetic-av",
        "mmbench run quickstart",
        r"bad\_one",
        "3 ok, 1 diverged",
        "## Not in the",
    ):
        assert word in readme, word
    assert any("odd" in text and "epochs 50.0" in text for text in written.problems)
    assert any("zz.json" in text for text in written.problems)
    links = re.findall(r"!\[.+\]\(([^()]+)\)", readme)
    assert len(links) == 6 and all((tmp_path / "out" / link).is_file() for link in links)


def test_published_records_carry_no_traceback(tmp_path: Path) -> None:
    runs = save(tmp_path / "runs", [record("good"), failed("bad", "crashed", "boom")])
    written = write_board(runs, tmp_path / "out", formats=("csv",))
    failure = next(r.failure for r in written.board.records if r.failure is not None)
    assert (failure.message, failure.traceback) == ("boom", None)
    assert next(r.failure for r in load_board(runs).records if r.failure is not None).traceback


def test_an_unknown_format_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    runs = save(tmp_path / "runs", [record("good")])
    with pytest.raises(UnknownNameError):
        write_board(runs, tmp_path / "out", formats=("pdf",))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    runs = save(tmp_path / "runs", [record("good")])
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(RecordError, match=r"cannot write board .*choose another folder"):
        write_board(runs, tmp_path / "file")


def test_a_board_of_failures_alone_still_has_tables(tmp_path: Path) -> None:
    written = write_board(save(tmp_path, [failed("a", "crashed", "boom")]))
    assert not (tmp_path / "plots").exists() or not list((tmp_path / "plots").iterdir())
    assert "crashed" in (tmp_path / "tables" / "synthetic-av_cavmae-tiny_blind.md").read_text(encoding="utf-8")
    assert written.files


def test_labels_do_not_overlap_and_stay_inside() -> None:
    rows = [record(f"method-{i}", costs=costs(state_mib=100 + 2 * i), trial_regime="mixed") for i in range(8)]
    rows += [record("source", trial_regime="none"), record("full-finetune", costs=costs(state_mib=400))]
    (table,) = efficiency_tables(Board(Path("b"), "b", tuple(rows), ()), "synthetic-av", "cavmae-tiny")
    with style():
        drawing = accuracy_against(table, COSTS[0])
        assert drawing is not None
        drawing.figure.draw_without_rendering()
        axes = drawing.figure.axes[0]
        # The text alone: an annotation's own extent would include its leader line.
        boxes = [Text.get_window_extent(text) for text in axes.texts]
    assert len(boxes) == 10
    inside = axes.get_window_extent()
    for i, box in enumerate(boxes):
        assert inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])


def test_bars_use_a_logarithmic_axis_only_where_values_span_far() -> None:
    assert spans_far([1.0, 31.0]) and not spans_far([1.0, 29.0]) and not spans_far([0.0])
    rows = (record("a", costs=costs(1_000, 100)), record("b", costs=costs(1_000_000, 200)))
    (table,) = efficiency_tables(Board(Path("b"), "b", rows, ()), "synthetic-av", "cavmae-tiny")
    with style():
        drawing = cost_bars(table)
    assert drawing is not None
    assert [axes.get_xscale() for axes in drawing.figure.axes] == ["log", "linear", "linear"]


def test_odd_labels_draw_without_a_warning(tmp_path: Path) -> None:
    names = ("_hidden", "$x^2", "a<b>&c", "漢字", "x" * 90)
    records = tuple(record(name, costs=costs(state_mib=100 + i)) for i, name in enumerate(names))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert write_plots(Board(tmp_path, "b", records, ()), tmp_path / "plots")


def test_with_many_points_only_those_no_cheaper_one_beats_are_named() -> None:
    cloud = [Point(float(x), float(x % 7), 0.0, str(x), False) for x in range(1, 40)]
    assert [p.text for p in labelled(cloud)] == ["1", "2", "3", "4", "5", "6"]
    assert labelled(cloud[:20]) == cloud[:20]


def test_a_suite_is_published_without_paths() -> None:
    suite = {
        "name": "mine",
        "datasets": ["synthetic-av", {"name": "folder-pairs", "root": "/disk/clips"}],
        "backbones": ["cavmae-tiny", {"name": "cavmae-base", "init": "/disk/audio_model.pth"}],
        "assets": "/disk/rain",
    }
    published = yaml.safe_load(portable_suite(yaml.safe_dump(suite)))
    assert published["datasets"] == ["synthetic-av", {"name": "folder-pairs", "root": "clips"}]
    assert published["backbones"] == ["cavmae-tiny", {"name": "cavmae-base", "init": "audio_model.pth"}]
    assert published["assets"] == "rain"
