"""What the registries know of the names on a board, for its site. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mmbench import registry
from mmbench.axes import entry_of, parts
from mmbench.cards import STAGES, CorruptionCard
from mmbench.cards_page import facts
from mmbench.cases import Case, parse_case
from mmbench.citing import citation
from mmbench.errors import MMBenchError
from mmbench.records import TrialRecord
from mmbench.report.aggregate import Board
from mmbench.report.conditions import Group
from mmbench.report.site.content import Content
from mmbench.report.site.model import Card, Fact


def part_cards(content: Content) -> dict[str, tuple[Card, ...]]:
    """Title of a row -> cards of the methods, training strategies and online adapters in its trials."""
    cards = {name: card for name in _part_names(content.board) if (card := _part_card(name)) is not None}
    return {
        title: tuple(cards[name] for name in dict.fromkeys(n for r in records for n in _names(r)) if name in cards)
        for title, records in content.methods.items()
    }


def _part_names(board: Board) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for record in board.records for name in _names(record)))


def _names(record: TrialRecord) -> Iterator[str]:
    yield record.trial.method
    yield from record.trial.strategies
    if record.trial.online is not None:
        yield record.trial.online


def _part_card(name: str) -> Card | None:
    entry = entry_of(name)
    part = next((part for part in parts() if part.name == name), None)
    if entry is None or part is None:
        return None
    known = {"family": part.family, **facts(part, entry), "file": ""}
    return Card(
        name=name,
        title=part.title,
        facts=tuple(Fact(what, value) for what, value in known.items() if value),
        definition=entry.definition,
        bibtex=citation(entry),
    )


def cases_of(board: Board) -> dict[str, Case]:
    """Every case of the records that means something here; what no registry knows is left out."""
    written: dict[str, object] = {}
    for record in board.records:
        entries = record.trial.contents.get("cases")
        for entry in entries if isinstance(entries, (list, tuple)) else ():
            if isinstance(entry, Mapping) and isinstance(entry.get("name"), str):
                written.setdefault(entry["name"], entry)
        for name in record.trial.cases:
            written.setdefault(name, name)
    return {name: case for name, entry in written.items() if (case := _case(entry)) is not None}


def _case(entry: object) -> Case | None:
    """Records are not ours to trust: whatever is no case is none."""
    try:
        return parse_case(entry)  # type: ignore[arg-type]
    except (MMBenchError, TypeError, ValueError):
        return None


def corruption_names(case: Case) -> tuple[str, ...]:
    """Registered names of what a case consists of, fills included."""
    names = [text.partition("@")[0] for text in (case.audio, case.vision) if text]
    if case.missing is not None:
        which = case.missing.which
        names += [case.missing.fill(modality) for modality in ("audio", "vision") if which in (modality, "mixed")]
    return tuple(names)


def corruption_cards(subject: Group, cases: Mapping[str, Case]) -> tuple[Card, ...]:
    """Cards of everything that the cases of a corruption consist of."""
    names = dict.fromkeys(n for case in subject.cases if case in cases for n in corruption_names(cases[case]))
    return tuple(_corruption_card(name) for name in names)


def _corruption_card(name: str) -> Card:
    entry = registry.corruptions().entry(name)
    return Card(
        name=name,
        title=name,
        facts=tuple(Fact(what, value) for what, value in _corruption_facts(entry.card) if value),
        definition=entry.definition,
    )


def _corruption_facts(card: CorruptionCard) -> Iterator[tuple[str, str]]:
    yield "family", card.family
    yield "acts on", card.modality
    yield "stage", f"{card.stage}: {STAGES[card.stage]}"
    yield "severities", "none" if card.severities == (0,) else ", ".join(map(str, card.severities))
    yield "variant", card.variant
    yield "random", "no: the same for every sample" if card.deterministic else ""
    yield "requires", card.requires
    yield "classes that are its scene", ", ".join(card.scenes)
    yield "reference", card.reference
    yield "note", card.note
