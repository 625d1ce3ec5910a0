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
from mmbench.report.curves import COLOURS, curves, looks, sheets
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
        figure = curves(accuracy(records), conditions, sheets(conditions)[index])
        assert figure is not None
        figure.draw_without_rendering()
    return figure


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


def test_a_scale_with_one_level_has_no_curve() -> None:
    selection = select([swept("a", 0.9)], "synthetic-av", "cavmae-tiny")
    assert [(s.name, s.scale) for s in sheets(conditions_of(selection))] == [
        ("imagenet_c", "severity"),
        ("missing", "rate"),
    ]


def test_rows_beyond_the_colours_are_grey_but_the_frozen_one_is_not() -> None:
    records = [swept(f"m{i:02d}", 0.9 - 0.01 * i) for i in range(12)] + [swept("last", 0.7, trial_regime="none")]
    chosen = looks(accuracy(records).rows)
    assert len(chosen) == len(COLOURS) == len({look.colour for look in chosen.values()})
    assert "last" in {name for name, _ in chosen} and "m11" not in {name for name, _ in chosen}
    axes = drawn(records).axes[0]
    assert len(axes.lines) == 13
    assert sum(entry.get_label() == "other rows" for entry in axes.lines) == 5


def test_a_row_looks_the_same_whatever_its_rank() -> None:
    records = [swept("a", 0.9), swept("b", 0.8)]
    assert looks(accuracy(records).rows) == looks(tuple(reversed(accuracy(records).rows)))
