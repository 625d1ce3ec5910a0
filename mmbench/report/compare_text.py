"""A comparison for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from mmbench.report.compare import Comparison, Difference, Middle
from mmbench.report.cost_ratios import CostRatio
from mmbench.report.model import NOT_MEASURED, plain
from mmbench.report.standing import PAIRED
from mmbench.report.stats import ALPHA

_HOLDS = {
    "seeds and samples": "seeds and samples",
    "samples": "samples alone, as each has one seed",
    "seeds": "seeds alone",
    "": "nothing",
}


def as_json(found: Sequence[Comparison]) -> str:
    """Every number of the comparisons; `winner` is null where neither row is significantly better."""
    return json.dumps(
        [{"schema": 1, **asdict(c), "winner": c.winner, "difference": c.overall.value} for c in found], allow_nan=False
    )


def for_terminal(found: Comparison) -> Group:
    """The answer first, then the cases, the costs and what was used."""
    first, second = plain(found.first), plain(found.second)
    place = f"{plain(found.dataset)}, {plain(found.backbone)}, {found.track} track"
    parts: list[RenderableType] = [
        Text(f"{first} against {second}", style="bold"),
        Text(place, style="dim"),
        Text(f"\n{_verdict(found)}\n"),
        _cases(found),
        Text(f"\n{_where(found)}"),
        Text(f"Interquartile mean over cases and seeds: A {_middle(found.iqm[0])}, B {_middle(found.iqm[1])}."),
    ]
    if found.costs:
        parts.append(Text(f"Cost of the first as a multiple of the second: {_costs(found.costs)}."))
    samples = f", {found.samples} samples" if found.samples else ""
    paired = PAIRED if found.samples else "seeds of two rows count as independent"
    used = f"Used: seeds {', '.join(map(str, found.seeds)) or 'none in common'}{samples}."
    reading = (
        f"A: {first}. B: {second}. Points are of {'accuracy' if found.metric == 'accuracy' else 'mAP'} in percent. "
        f"Intervals (95 %) hold the variance of {_HOLDS[found.holds]}; that over seeds is moderated by all rows of "
        f"the table. Differences: {paired}. p of the cases: after Holm."
    )
    parts.append(Text("\n" + "\n".join((used, reading, *map(plain, found.notes))), style="dim"))
    return Group(*parts)


def _verdict(found: Comparison) -> str:
    overall = found.overall
    by = f"{abs(100 * overall.value):.1f} points on the mean over cases"
    if overall.p is None or overall.low is None or overall.high is None:
        ahead = found.first if overall.value > 0 else found.second
        why = "one seed without samples has no variance" if found.seeds else "they have no seed in common"
        return f"Cannot be told: {plain(ahead)} is ahead by {by}, but {why}."
    sure = f"95 % CI of A - B {100 * overall.low:+.1f} to {100 * overall.high:+.1f}, {p_words(overall.p)}"
    ahead_words = "" if found.ahead is None else f"; A is ahead in {found.ahead:.0%} of bootstrap draws"
    if found.winner is None:
        return f"Not told apart: A - B is {100 * overall.value:+.1f} points ({sure}{ahead_words})."
    return f"{plain(found.winner)} is better by {by} ({sure}{ahead_words})."


def p_words(p: float) -> str:
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.4f}"


def _cases(found: Comparison) -> RichTable:
    grid = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    grid.add_column("case", overflow="fold")
    for title in ("A %", "B %", "A - B", "95 % CI", "p"):
        grid.add_column(title, justify="right", no_wrap=True)
    for entry in (*found.cases, found.overall):
        sure = entry.adjusted is not None and entry.adjusted < ALPHA
        style = ("bold" if entry is found.overall else "") + (" green" if sure else "")
        grid.add_row(*_cells(entry), style=style.strip() or None)
    return grid


def _cells(entry: Difference) -> tuple[str, ...]:
    values = f"{100 * entry.first:.1f}", f"{100 * entry.second:.1f}", f"{100 * entry.value:+.1f}"
    if entry.low is None or entry.high is None or entry.adjusted is None:
        return (plain(entry.case), *values, NOT_MEASURED, NOT_MEASURED)
    p = "<0.0001" if entry.adjusted < 0.0001 else f"{entry.adjusted:.4f}"
    return (plain(entry.case), *values, f"{100 * entry.low:+.1f} to {100 * entry.high:+.1f}", p)


def _where(found: Comparison) -> str:
    sure = [entry for entry in found.cases if entry.adjusted is not None and entry.adjusted < ALPHA]
    sides = (("A", [e for e in sure if e.value > 0]), ("B", [e for e in sure if e.value < 0]))
    told = [f"{side} is better on {', '.join(plain(e.case) for e in entries)}" for side, entries in sides if entries]
    return f"Significant after Holm: {'; '.join(told) or 'no single case'}."


def _middle(found: Middle) -> str:
    if found.low is None or found.high is None:
        return f"{100 * found.value:.1f}"
    return f"{100 * found.value:.1f} ({100 * found.low:.1f} to {100 * found.high:.1f} over seeds)"


def _costs(costs: Sequence[CostRatio]) -> str:
    return ", ".join(f"{c.what} {'from zero' if c.ratio is None else f'x{c.ratio:.3g}'}" for c in costs)
