"""Plots: colours, what is written, and that the marks stand where the numbers say; with independent references."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from many_records import Many, logits_of, measured, write_many
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from report_records import accuracy, board, cell, costs, efficiency, field, record, row

from mmbench.records import TrainingState
from mmbench.report.aggregate import load_board
from mmbench.report.bars import PARTS, cost_bars, memory_bars
from mmbench.report.comparable import select
from mmbench.report.diagrams import rank_diagram
from mmbench.report.families import LOOKS, OTHER, look_of
from mmbench.report.figures import MOST_ROWS, Plot, new_figure, style
from mmbench.report.heat import case_heat_map
from mmbench.report.labels import Point, place_labels
from mmbench.report.model import Facts, Row
from mmbench.report.outcome_plots import Panel, calibration_error, confusion_shares, reliability_bins
from mmbench.report.outcomes import Sampled
from mmbench.report.plots import write_plots
from mmbench.report.ranking import Ranking
from mmbench.report.scatter import COSTS, accuracy_against, front
from mmbench.report.seeds import seed_spread
from mmbench.report.stats import Friedman
from mmbench.report.training import mean_curve
from mmbench.report.trial_files import Curve
from mmbench.report.trial_files import Point as Epoch
from mmbench.report.trial_plots import write_method_plots, write_trial_plots

PLACE = ("synthetic-av", "cavmae-tiny")
MIB = 2**20
CASES = ("complete", "noise-to-audio")
# Machado, Oliveira and Fernandes, IEEE TVCG 2009, table 1: severity 1.0, on linear RGB.
SIGHTS = {
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritan": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}
_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colour: str, sight: str) -> npt.NDArray[np.float64]:
    """CIE L*a*b* (3,) of an sRGB colour as this sight has it."""
    srgb = np.array(to_rgb(colour))
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(SIGHTS[sight]) @ linear, 0, 1)
    x, y, z = np.cbrt(np.maximum(_XYZ @ seen / np.array([0.9505, 1.0, 1.089]), 0.009))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sight", SIGHTS)
def test_hues_of_families_stay_apart_for_colour_blind_readers(sight: str) -> None:
    hues = sorted({look.colour for look in (*LOOKS.values(), OTHER)})
    near = {pair: np.linalg.norm(lab(pair[0], sight) - lab(pair[1], sight)) for pair in combinations(hues, 2)}
    assert min(near.values()) > 9, min(near, key=near.__getitem__)


def test_no_two_families_share_colour_and_marker() -> None:
    looks = [(look.colour, look.marker) for look in (*LOOKS.values(), OTHER)]
    assert len(looks) == len(set(looks))
    assert look_of(Row("mine", "clean", (), facts=Facts(family="of a plugin"))) == OTHER


def test_a_family_has_one_colour_in_every_plot() -> None:
    records = [record("a", trial_family="lora", costs=costs(100, 50)), record("b", trial_family="prompt")]
    (table,) = efficiency(records)
    with style():
        drawings = case_heat_map(accuracy(records)), cost_bars(table), accuracy_against(table, COSTS[0])
    heat, bars, scatter = (drawing.figure.axes[0] for drawing in drawings if drawing is not None)
    wanted = [LOOKS["lora"].colour, LOOKS["prompt"].colour]
    markers = ["o", "D"]
    assert {(line.get_color(), line.get_marker()) for line in heat.lines if line.get_marker() in markers} == set(
        zip(wanted, markers, strict=True)
    )
    assert {tuple(patch.get_facecolor()[:3]) for patch in bars.patches} == {to_rgb(colour) for colour in wanted}
    assert set(wanted) <= {line.get_color() for line in scatter.lines}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four methods, two seeds, predictions, and events of the training of the first two methods."""
    folder = write_many(tmp_path_factory.mktemp("runs"), Many(rows=4, cases=7, seeds=2, samples=30))
    for entry in load_board(folder).records:
        if entry.trial.title < "method-0002":
            epochs = [
                {"event": "epoch", "job": "final/all", "samples": 100 * (i + 1), "loss": 1.0 - 0.2 * i}
                for i in range(4)
            ]
            lines = "".join(f"{json.dumps(epoch)}\n" for epoch in epochs)
            (folder / "trials" / entry.trial.id / "events.jsonl").write_text(lines, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def written(results: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Plot, ...]:
    return write_plots(load_board(results), tmp_path_factory.mktemp("plots"))


def test_every_kind_is_written_and_told_in_words(written: tuple[Plot, ...]) -> None:
    kinds = {"cases", "seeds", "curves", "ranks", "training", "confusion", "reliability", "bars", "memory"}
    assert {plot.kind for plot in written} >= {*kinds, "accuracy-memory", "accuracy-time", "accuracy-stored"}
    for plot in written:
        assert plot.path.stat().st_size > 5_000 and plot.svg.stat().st_size > 5_000
        assert plot.slug.startswith(f"{plot.group}_") and len(plot.alt) > 60 and plot.title
    assert len({plot.slug for plot in written}) == len(written)


def test_the_same_records_give_the_same_bytes(results: Path, written: tuple[Plot, ...], tmp_path: Path) -> None:
    again = write_plots(load_board(results), tmp_path)
    for old, new in zip(written, again, strict=True):
        assert (old.path.read_bytes(), old.svg.read_bytes()) == (new.path.read_bytes(), new.svg.read_bytes())


def test_without_events_and_predictions_nothing_is_made_up(results: Path, tmp_path: Path) -> None:
    records = load_board(results).records
    assert write_method_plots(board(records), PLACE, "method-0001", tmp_path) == ()
    assert write_trial_plots(board(records), records[0], tmp_path) == ()


def test_one_method_and_one_trial_have_plots_of_their_own(results: Path, tmp_path: Path) -> None:
    found = load_board(results)
    plots = write_method_plots(found, PLACE, "method-0001", tmp_path / "method")
    assert [plot.kind for plot in plots] == ["training", "confusion", "reliability"]
    one = next(r for r in found.records if r.trial.title == "method-0003")
    plots = write_trial_plots(found, one, tmp_path / "trial")
    assert [plot.kind for plot in plots] == ["confusion", "reliability"]
    right = next(s.value for s in one.scores if (s.case, s.metric) == ("complete", "accuracy"))
    assert right is not None and f"({right:.1%} right)" in plots[0].alt
    assert write_method_plots(found, PLACE, "no such row", tmp_path / "none") == ()


def sampled(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int32]) -> Sampled:
    """As outcomes keep it: confidence in steps of 1/255."""
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    top = (shares / shares.sum(axis=1, keepdims=True)).max(axis=1)
    names = tuple(str(i) for i in range(len(labels)))
    return Sampled(names, labels.astype(np.int64), logits.argmax(axis=1).astype(np.int64), np.rint(255 * top) / 255)


def drawn_sample(seed: int, samples: int = 600) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(10, size=samples).astype(np.int32)
    return logits_of(np.array([0.7]), labels, rng)[0] * rng.uniform(0.2, 1.5, (samples, 1)).astype(np.float32), labels


def test_the_diagram_s_calibration_error_is_that_of_the_record() -> None:
    logits, labels = drawn_sample(3)
    assert calibration_error(sampled(logits, labels)) == pytest.approx(measured(logits, labels)["ece"], abs=0.004)


def test_reliability_bins_hold_what_a_loop_counts() -> None:
    labels = np.zeros(6, np.int64)
    confidence = np.array([17, 34, 33, 255, 250, 255]) / 255  # 17/255 is the edge of the second bin
    found = Sampled(tuple("abcdef"), labels, np.array([0, 1, 0, 0, 0, 1]), confidence)
    bins = reliability_bins([found, found])
    assert bins.share[[1, 2, 14]] == pytest.approx([2 / 6, 1 / 6, 3 / 6]) and bins.share.sum() == pytest.approx(1)
    assert bins.accuracy[[1, 2, 14]] == pytest.approx([1, 0, 2 / 3]) and np.isnan(bins.accuracy[0])


def test_a_confusion_matrix_counts_each_class_over_all_seeds() -> None:
    classes = tuple(f"class {i}" for i in range(10))
    seeds = tuple(sampled(*drawn_sample(seed)) for seed in (0, 1))
    shares = confusion_shares(Panel(Row("a", "clean", ()), "complete", classes, seeds))
    truth = np.concatenate([entry.labels for entry in seeds])
    answer = np.concatenate([entry.predicted for entry in seeds])
    for a, b in ((0, 0), (3, 7), (9, 1)):
        assert shares[a, b] == pytest.approx(((truth == a) & (answer == b)).sum() / (truth == a).sum())


def xs(axes: Axes, width: float | None = None) -> list[list[float]]:
    """Where the lines of some axes lie, of one width if that is given."""
    lines = [line for line in axes.lines if width is None or line.get_linewidth() == width]
    return [[float(x) for x in np.asarray(line.get_xdata())] for line in lines]


def test_memory_bars_are_as_long_as_the_records_say() -> None:
    state = TrainingState(
        parameters_bytes=8 * MIB, gradients_bytes=4 * MIB, optimizer_bytes=2 * MIB, activations_bytes=MIB, batch=4
    )
    records = [record("a", seed, costs=costs().model_copy(update={"training_state": state})) for seed in (0, 1)]
    records += [record("large", costs=costs(state_mib=300)), record("source", trial_regime="none")]
    (table,) = efficiency(records)
    with style():
        drawing = memory_bars(table, select(records, *PLACE))
    assert drawing is not None
    axes = drawing.figure.axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == [
        "large, clean (incomplete)",
        "a, clean",
    ]
    widths = [[patch.get_width() for patch in bars] for bars in axes.containers]
    assert [part[1] for part in widths] == [8, 4, 2, 1] and len(PARTS) == 4
    assert sum(part[0] for part in widths) == pytest.approx(300)


def test_every_seed_is_a_dot_at_its_mean_and_its_worst_case() -> None:
    records = [record("a", seed, {"complete": 0.9, "noise-to-audio": 0.5 + 0.1 * seed}) for seed in range(3)]
    records = [r.model_copy(update={"trial": r.trial.model_copy(update={"cases": CASES})}) for r in records]
    with style():
        drawing = seed_spread(accuracy(records), select(records, *PLACE), "blind")
        assert seed_spread(accuracy(records[:1]), select(records[:1], *PLACE), "blind") is None
    assert drawing is not None
    for axes, wanted in zip(drawing.figure.axes, ([70, 75, 80], [50, 60, 70]), strict=True):
        (dots,) = [x for x in xs(axes) if len(x) == 3]
        assert sorted(dots) == pytest.approx(wanted)
    (bar,) = drawing.figure.axes[0].patches
    low, high = (cell(accuracy(records), "a", key).mean for key in ("ci_low", "ci_high"))
    assert (bar.get_x(), bar.get_x() + bar.get_width()) == pytest.approx((low, high))  # type: ignore[attr-defined]


def ranked(count: int, reach: float) -> Ranking:
    ranks = tuple(1.0 + i for i in range(count))
    groups = tuple(tuple(range(i, i + int(reach) + 1)) for i in range(count - int(reach)))
    names = tuple((f"m{i}", "mixed") for i in range(count))
    return Ranking(names, ranks, reach, groups, 30, Friedman(1.0, 2.0, 0.05), ())


def test_bars_join_the_rows_of_a_group_and_the_ruler_is_the_critical_difference() -> None:
    with style():
        drawing = rank_diagram(ranked(4, 1.0), "blind", {"m0": "lora"})
    axes = drawing.figure.axes[0]
    assert [[round(x) for x in ends] for ends in xs(axes, 4)] == [[1, 2], [2, 3], [3, 4]]
    assert np.ptp(xs(axes, 1.5)[0]) == pytest.approx(1.0)
    assert "2 rows from the top are not told apart" in drawing.alt


def test_of_many_rows_intervals_overlap_exactly_where_ranks_lie_within_the_critical_difference() -> None:
    with style():
        drawing = rank_diagram(ranked(30, 3.5), "blind", {})
    lines = [x for x in xs(drawing.figure.axes[0]) if len(x) == 2]
    assert len(lines) == 30
    for i, j in combinations(range(30), 2):
        assert (lines[i][1] >= lines[j][0]) == (j - i <= 3.5)


def test_a_mean_curve_goes_by_the_share_of_the_training() -> None:
    short = Curve("a", (Epoch(50, 4.0), Epoch(100, 2.0)))
    long = Curve("b", (Epoch(100, 3.0), Epoch(150, 9.0), Epoch(200, 1.0)))
    assert list(mean_curve([short, long])) == [(50.0, 3.5), (100.0, 1.5)]


def test_the_front_holds_what_no_other_point_beats() -> None:
    rng = np.random.default_rng(0)
    cloud = [Point(float(x), float(y), 0.0, str(i), False) for i, (x, y) in enumerate(rng.random((60, 2)))]
    wanted = {p.text for p in cloud if not any(o.x <= p.x and o.y > p.y for o in cloud)}
    assert {p.text for p in front(cloud)} == wanted and len(wanted) > 2


def test_names_keep_off_the_staircase() -> None:
    stairs = [Point(1.0, 1.0, 0.0, "first", False), Point(9.0, 2.0, 0.0, "second", False)]
    with style():
        figure = new_figure(6, 4)
        axes = figure.subplots()
        axes.set_xlim(0, 10)
        axes.set_ylim(0, 3)
        place_labels(axes, stairs, stairs, stairs, [])
    level = axes.transData.transform((1.0, 1.0))[1]
    box = axes.texts[-1].get_window_extent()
    assert axes.texts[-1].get_text() == "first"
    assert not box.y0 < level < box.y1 or box.x1 < axes.transData.transform((1.0, 1.0))[0]


def test_of_many_rows_the_first_and_the_last_are_shown() -> None:
    records = [record(f"m{i:02d}", values={"complete": 0.9 - 0.005 * i}, trial_cases=("complete",)) for i in range(60)]
    with style():
        drawing = case_heat_map(accuracy(records))
    assert drawing is not None
    names = [text.get_text() for text in drawing.figure.axes[0].get_yticklabels()]
    assert len(names) == MOST_ROWS and names[0] == "m00, clean" and names[-1] == "m59, clean"
    assert "of 60 rows" in drawing.figure.axes[0].get_title()


def test_the_heat_map_s_words_name_both_ends() -> None:
    records = [entry for entry in field(1) if entry.status == "ok"]
    with style():
        drawing = case_heat_map(accuracy(records, "informed"))
    assert drawing is not None
    best = row(accuracy(records, "informed"), "full-finetune", "mixed").cells[-2].mean
    assert best is not None and f"highest mean: full-finetune, mixed, {best:.1f} %" in drawing.alt
    assert board(records).groups == (PLACE,)
