"""BibTeX of what a comparison uses: entries of methods/references.bib, or made from a card. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, get_args

from mmbench.axes import entry_of, part_names
from mmbench.config import Regime
from mmbench.errors import ConfigError, UnknownNameError
from mmbench.registry import ROOT, Entry

REFERENCES = ROOT / "methods" / "references.bib"


def citations(names: Sequence[str]) -> tuple[str, ...]:
    """The entries of methods, strategies, online adapters and combinations like `lora-qv+mixup+read`, once each.

    Regimes have no paper. Raises UnknownNameError.
    """
    parts = [part for name in names for part in name.split("+") if part not in get_args(Regime)]
    return tuple(dict.fromkeys(citation(_known(part)) for part in parts))


def _known(name: str) -> Entry[Any]:
    entry = entry_of(name)
    if entry is None:
        raise UnknownNameError("method, strategy or online adapter", name, [*part_names(), *get_args(Regime)])
    return entry


def citation(entry: Entry[Any]) -> str:
    """The entry that the card's key names; an @misc made from the card where there is none."""
    card = entry.card
    known = read_bibtex(REFERENCES.read_text(encoding="utf-8"))
    if card.bibtex in known:
        return known[card.bibtex]
    fields = {"title": card.title, "note": card.reference, "year": str(card.year)}
    lines = ",\n".join(f"  {key} = {{{value}}}" for key, value in fields.items())
    return f"@misc{{{card.name},\n{lines}\n}}"


def read_bibtex(text: str) -> dict[str, str]:
    """Entries as they are written, by key. Raises ConfigError for braces that do not match and keys that come twice."""
    found: dict[str, str] = {}
    for start in re.finditer(r"^@\w+\{([^,\s]+),", text, re.M):
        key = start.group(1)
        if key in found:
            raise ConfigError(f"BibTeX key '{key}' comes twice; keep one of the entries")
        found[key] = text[start.start() : _end(text, start.start(), key)]
    return found


def _end(text: str, start: int, key: str) -> int:
    depth = 0
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0 and text[place] == "}":
            return place + 1
        if place > start and text[place] == "@" and text[place - 1] == "\n":
            break
    raise ConfigError(f"BibTeX entry '{key}' does not close its braces")
