"""Curves over severity and missing rate: what a board draws, and that the lines are the table's numbers."""

from __future__ import annotations

from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from report_records import accuracy, record

from mmbench.records import TrialRecord
from mmbench.report.comparable import select
from mmbench.report.conditions import conditions_of
from mmbench.report.curves import MOST_LINES, curves, line_styles, sheets
from mmbench.report.figures import style

SWEEPS = tuple(f"imagenet_c/{name}@{severity}" for name in ("fog", "frost", "snow") for severity in (1, 3, 5))
CONTENTS: tuple[dict[str, Any], ...] = (
    {"name": "complete"},
    *({"name": name, "vision": name} for name in SWEEPS),
    {"name": "noise", "audio": "seed/audio-alone"},
    *({"name": f"missing-{rate}", "missing": {"which": "mixed", "rate": rate}} for rate in (0.5, 1.0)),
)
NAMES = tuple(entry["name"] for entry in CONTENTS)


def swept(title: str, start: float, seed: int = 0, **changes: Any) -> TrialRecord:
    values = {name: start - 0.02 * i for i, name in enumerate(NAMES)}
    return record(title, seed, values, trial_cases=NAMES, trial_contents={"cases": list(CONTENTS)}, **changes)


def drawn(records: list[TrialRecord], index: int = 0) -> Figure:
    selection = select(records, "synthetic-av", "cavmae-tiny")
    conditions = conditions_of(selection)
    with style():
        drawing = curves(accuracy(records), conditions, sheets(conditions)[index])
        assert drawing is not None
        drawing.figure.draw_without_rendering()
    return drawing.figure


def line(axes: Axes, name: str) -> tuple[list[float], list[float]]:
    (found,) = [entry for entry in axes.lines if entry.get_label() == name]
    return [float(x) for x in found.get_xdata()], [float(y) for y in found.get_ydata()]


def test_one_panel_a_corruption_with_the_clean_score_at_zero() -> None:
    figure = drawn([swept("a", 0.9), swept("b", 0.8)])
    titles = [axes.get_title() for axes in figure.axes if axes.lines]
    assert titles == ["imagenet_c/fog", "imagenet_c/frost", "imagenet_c/snow"]
    x, y = line(figure.axes[1], "a, clean")
    assert x == [0, 1, 3, 5]
    assert y == pytest.approx([90, 82, 80, 78])


def test_rates_are_shown_in_percent() -> None:
    x, y = line(drawn([swept("a", 0.9)], index=1).axes[0], "a, clean")
    assert x == [0, 50, 100]
    assert y == pytest.approx([90, 68, 66])


def test_the_band_is_one_standard_deviation_over_seeds() -> None:
    axes = drawn([swept("a", 0.90), swept("a", 0.94, seed=1), swept("b", 0.5)]).axes[0]
    (band,) = axes.collections  # a row with one seed has none
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.max() == pytest.approx(92 + 2 * 2**0.5)
    assert "one standard deviation over seeds" in str(axes.figure.get_suptitle())


def test_a_board_of_one_seed_names_no_band() -> None:
    assert "band" not in drawn([swept("a", 0.9)]).get_suptitle()


def test_a_scale_with_one_level_has_no_curve() -> None:
    selection = select([swept("a", 0.9)], "synthetic-av", "cavmae-tiny")
    assert [(s.name, s.scale) for s in sheets(conditions_of(selection))] == [
        ("imagenet_c", "severity"),
        ("missing", "rate"),
    ]


def family(title: str, name: str, start: float, **changes: Any) -> TrialRecord:
    return swept(title, start, trial_family=name, **changes)


def test_every_family_shows_its_best_row_before_any_shows_its_second() -> None:
    records = [family(f"lora-{i}", "lora", 0.9 - 0.01 * i) for i in range(8)]
    records += [family(f"adapter-{i}", "adapter", 0.7 - 0.01 * i) for i in range(2)]
    records += [family("last", "frozen", 0.5, trial_regime="none")]
    chosen = line_styles(accuracy(records).rows)
    assert {name for name, _ in chosen} == {"lora-0", "lora-1", "lora-2", "adapter-0", "adapter-1", "last"}
    axes = drawn(records).axes[0]
    assert len(axes.lines) == 11
    assert sum(entry.get_label() == "other rows" for entry in axes.lines) == 5


def test_lines_of_a_family_share_its_colour_and_differ_otherwise() -> None:
    records = [family(f"lora-{i}", "lora", 0.9 - 0.01 * i) for i in range(3)] + [family("ssf", "scaling", 0.6)]
    lines = {str(entry.get_label()): entry for entry in drawn(records).axes[0].lines}
    lora = [lines[f"lora-{i}, clean"] for i in range(3)]
    assert len({entry.get_color() for entry in lora}) == 1
    assert len({(entry.get_linestyle(), entry.get_markerfacecolor()) for entry in lora}) == 3
    assert lines["ssf, clean"].get_color() not in {entry.get_color() for entry in lora}


def test_many_families_leave_the_last_ranks_grey() -> None:
    records = [family(f"m{i:02d}", f"family-{i}", 0.9 - 0.01 * i) for i in range(12)]
    assert sorted(name for name, _ in line_styles(accuracy(records).rows)) == [f"m{i:02d}" for i in range(MOST_LINES)]


def test_a_row_looks_the_same_whatever_its_rank() -> None:
    records = [swept("a", 0.9), swept("b", 0.8)]
    assert line_styles(accuracy(records).rows) == line_styles(tuple(reversed(accuracy(records).rows)))
