"""Method cards: one Markdown page of everything that the registries know of the three axes. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmbench.axes import AXES, Part, entry_of, parts, trainable_count
from mmbench.backbone.config import PRESETS
from mmbench.cards import MethodCard, OnlineCard, StrategyCard
from mmbench.errors import ConfigError
from mmbench.files import write_atomic
from mmbench.registry import Entry

HEAD = """# Method cards

Written by `mmbench ls methods --cards methods/CARDS.md` from the decorators and docstrings of this folder; do not edit.
Counts leave the classification head apart. Names in formulas: d width; E blocks of each encoder; U joint blocks;
N = 2E + U; H heads; p patch size; Ta, Tv tokens of audio and vision; F live values of the fusion block, X directions of
its cross-attention; C classes; and the options.
"""
MEMORY = {
    "M0": "no graph in the backbone",
    "M1": "a graph in the last blocks only",
    "M2": "gradients cross the encoders",
    "M3": "as full fine-tuning",
    "M4": "above full fine-tuning",
}


def write_cards(what: str, path: Path) -> None:
    """Write the page; raises ConfigError for lists that have no cards."""
    if what != "methods":
        raise ConfigError(f"--cards writes the cards of methods; use `mmbench ls methods --cards {path}`")
    write_atomic(path, cards_page().encode())


def cards_page() -> str:
    """The page."""
    found = parts()
    sections = [HEAD]
    for axis, words in AXES.items():
        rows = [part for part in found if part.axis == axis]
        if rows:
            sections.append(f"## Axis {axis}: {words}\n")
            sections += ["\n".join(_card(part)) + "\n" for part in rows]
    return "\n".join(sections)


def _card(part: Part) -> Iterator[str]:
    yield f"### {part.name}"
    yield ""
    entry = entry_of(part.name)
    if entry is None:
        yield f"{part.title}. (regime)"
        return
    yield f"{part.title}. ({part.family})"
    if entry.definition:
        yield ""
        yield entry.definition
    yield ""
    yield from (f"- {what}: {value}" for what, value in facts(part, entry).items() if value)


def facts(part: Part, entry: Entry[Any]) -> Mapping[str, str]:
    """The lines of a card by what they say; empty where there is nothing to say."""
    card = entry.card
    found = {"reference": card.reference, "file": f"[{entry.origin.path.name}]({entry.origin.path.name})"}
    if isinstance(card, StrategyCard):
        own = {"extra forwards": f"{card.extra_forwards:g}" if card.extra_forwards else ""}
    elif isinstance(card, OnlineCard):
        own = {"updates": card.updates, "updated": _counts(card), "memory": _memory(card.memory)}
        own["per test sample"] = f"{card.forwards:g} forwards, {card.backwards:g} backwards"
    else:
        own = {"trains": _counts(card), "memory": _memory(card.memory), "track": f"{part.track} or more telling"}
        if card.trains:
            own["learning rates"] = f"{card.lr_range[0]:g} to {card.lr_range[1]:g}"
        own["at start"] = "" if card.identity_at_start else "differs from the frozen backbone"
    options = ", ".join(f"`{key}` = {value}" for key, value in card.options.items())
    return {**found, **own, "needs": ", ".join(part.needs), "options": options, "note": card.note}


def _counts(card: MethodCard | OnlineCard) -> str:
    counts = {size: trainable_count(card, size) for size in PRESETS}
    if not card.parameters:
        return "" if any(count is None for count in counts.values()) else "nothing"
    told = ", ".join(f"{count:,} at {size}" for size, count in counts.items())
    return f"`{card.parameters}`: {told}"


def _memory(grade: str) -> str:
    return f"{grade}, {MEMORY[grade]}" if grade in MEMORY else grade
