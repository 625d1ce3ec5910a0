"""How method families look: one colour each in every plot, and a marker and hatch that say the same without it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from matplotlib.lines import Line2D
from matplotlib.transforms import offset_copy

from mmbench.report.figures import label
from mmbench.report.model import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Look:
    """Colour, and two cues beside it."""

    colour: str
    marker: str
    hatch: str


# Okabe-Ito hues (Okabe and Ito, Color Universal Design, 2008) with a brown and a wine that stay apart from them for
# protan, deutan and tritan sight. Rare families of reparameterised weights share a hue and differ by marker.
LOOKS = {
    "full": Look("#000000", "*", "xx"),
    "probe": Look("#8C6D31", "P", "++"),
    "lora": Look("#0072B2", "o", ""),
    "low-rank": Look("#56B4E9", "v", "||"),
    "orthogonal": Look("#56B4E9", "<", "||"),
    "spectral": Look("#56B4E9", ">", "||"),
    "adapter": Look("#D55E00", "s", "//"),
    "prompt": Look("#009E73", "D", "\\\\"),
    "scaling": Look("#E69F00", "^", "--"),
    "selection": Look("#CC79A7", "p", ".."),
    "side": Look("#882255", "h", "oo"),
    "frozen": Look("#777777", "X", ""),
}
OTHER = Look("#AAAAAA", "d", "")
"""Families of plugins."""

Fill = Literal["full", "left", "right", "bottom", "top", "none"]
REGIME_FILLS: dict[str, Fill] = {"mixed": "full", "clean": "none", "casewise": "left", "missing-rate": "bottom"}
"""How much of a marker is filled: what training saw."""


def look_of(row: Row) -> Look:
    return LOOKS.get(row.facts.family, OTHER)


def marker_style(row: Row) -> dict[str, Any]:
    """Keywords of a marker without a line: the family's colour and shape, filled as the regime says."""
    look = look_of(row)
    return {
        "color": look.colour,
        "marker": look.marker,
        "fillstyle": REGIME_FILLS.get(row.regime, "full"),
        "markerfacecoloralt": "white",
        "linestyle": "none",
    }


def mark_rows(axes: Axes, rows: Iterable[Row], offset: float = 0.0) -> None:
    """A family marker left of each row of an axis whose rows stand at 0, 1, ... plus `offset`."""
    place = offset_copy(axes.get_yaxis_transform(), axes.get_figure(root=True), x=-6.5, units="points")
    axes.tick_params(axis="y", pad=12, length=0)
    for y, row in enumerate(rows):
        style = {**marker_style(row), "markersize": 6.0, "clip_on": False, "zorder": 5}
        axes.plot([0], [y + offset], transform=place, **style)


def family_legend(figure: Figure, rows: Iterable[Row], across: int = 6) -> None:
    """Below the figure: the families of its rows, and the regimes where there are several."""
    shown = tuple(rows)
    names = sorted({row.facts.family for row in shown} - {""})
    handles = [_handle(name, LOOKS.get(name, OTHER), "full") for name in names]
    regimes = [regime for regime in REGIME_FILLS if any(row.regime == regime for row in shown)]
    if len(regimes) > 1:
        plain_look = Look("#333333", "o", "")
        handles += [_handle(regime, plain_look, REGIME_FILLS[regime]) for regime in regimes]
    if handles:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=min(across, len(handles)), frameon=False, fontsize=8.5
        )


def _handle(text: str, look: Look, fill: Fill) -> Line2D:
    return Line2D(
        [],
        [],
        color=look.colour,
        marker=look.marker,
        fillstyle=fill,
        markerfacecoloralt="white",
        linestyle="none",
        markersize=7,
        label=label(text, 24),
    )
