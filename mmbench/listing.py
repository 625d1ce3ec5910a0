"""What `ls` and `show` tell: registries, cases, suites and results, without importing torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mmbench import registry
from mmbench.axes import REGIMES, entry_of, part_names, parts, trainable_count
from mmbench.backbone.config import PRESETS
from mmbench.cards import STAGES, CorruptionCard, OnlineCard, StageName, StrategyCard
from mmbench.cases import HALVES, Case, family_members, named_cases, named_sets, pairs, parse_case
from mmbench.citing import citation
from mmbench.errors import ConfigError, MMBenchError, UnknownNameError
from mmbench.parts_table import print_parts
from mmbench.records import find_records, load_record
from mmbench.suites.shipped import shipped_suites


@dataclass(frozen=True)
class Listing:
    """Rows of plain facts; the first column is the name."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def corruptions() -> Listing:
    found = registry.corruptions()
    cards = [found.card(name) for name in found.names()]
    rows = [(c.name, c.modality, c.stage, _severities(c.severities), c.variant) for c in cards]
    return Listing(("name", "modality", "stage", "severities", "variant"), tuple(rows))


def _severities(known: tuple[int, ...]) -> str:
    return "-" if known == (0,) else f"{min(known)}-{max(known)}"


def cases() -> Listing:
    rows = [(case.name, case_words(case)) for case in named_cases().values()]
    rows += [(f"{name} (set)", ", ".join(members)) for name, members in named_sets().items()]
    return Listing(("name", "what"), tuple(rows))


def case_words(case: Case) -> str:
    """A case in words."""
    parts = [f"{modality}: {what}" for modality, what in (("audio", case.audio), ("vision", case.vision)) if what]
    if case.missing:
        gone = case.missing.which if case.missing.which != "mixed" else "audio or vision"
        fills = {"audio": case.missing.audio_fill, "vision": case.missing.vision_fill}
        stand_in = fills.get(case.missing.which) or " or ".join(fills.values())
        parts.append(f"{gone} missing for {case.missing.rate:.0%} of the samples, {stand_in} in its place")
    return "; ".join(parts) or "clean audio and vision"


def datasets() -> Listing:
    found = registry.datasets()
    return Listing(("name", "title"), tuple((name, found.card(name).title) for name in found.names()))


def backbones() -> Listing:
    rows = [
        (c.name, str(c.embed_dim), f"{c.depth}+{c.joint_depth}", f"{c.frames}x{c.mel_bins}", f"{c.image_size}px")
        for c in PRESETS.values()
    ]
    return Listing(("name", "width", "blocks", "fbank", "image"), tuple(rows))


def suites() -> Listing:
    boards = sorted(Path("leaderboards").glob("*/*.yaml"))
    rows = [(path.stem, "shipped with the package") for path in shipped_suites()]
    return Listing(("name", "where"), tuple(rows + [(str(path), "board") for path in boards]))


def runs() -> Listing:
    rows = []
    for path in sorted({p.parents[2] for p in Path("runs").glob("*/trials/*/trial.json")}):
        statuses = [_status(record) for record in find_records(path)]
        started = sum(1 for _ in path.glob("trials/*/spec.json"))
        counts = ", ".join(f"{statuses.count(s)} {s}" for s in dict.fromkeys(statuses))
        rows.append((str(path), f"{len(statuses)} of {started} done: {counts}"))
    return Listing(("folder", "trials"), tuple(rows))


def _status(path: Path) -> str:
    try:
        return load_record(path).status
    except MMBenchError:
        return "unreadable"


METHODS = "methods"
LISTS: Mapping[str, Callable[[], Listing]] = {
    "corruptions": corruptions,
    "cases": cases,
    "datasets": datasets,
    "backbones": backbones,
    "suites": suites,
    "runs": runs,
}


def print_list(what: str, as_json: bool, backbone: str | None = None) -> None:
    """Print `methods` or one of LISTS; counts are those at the sizes of `backbone`. Raises UnknownNameError."""
    if what not in (METHODS, *LISTS):
        raise UnknownNameError("list", what, (METHODS, *LISTS))
    if backbone is not None and what != METHODS:
        raise ConfigError(f"--backbone says at which sizes methods are counted; ls {what} has no such counts")
    if what == METHODS:
        print_parts(parts(backbone or "cavmae-base"), as_json)
    else:
        _print_listing(LISTS[what](), as_json)
    for broken in () if as_json else _broken(what):
        Console(stderr=True).print(f"broken: {broken.label}: {broken.reason}", markup=False, soft_wrap=True)


def _print_listing(listing: Listing, as_json: bool) -> None:
    if as_json:
        print(json.dumps([dict(zip(listing.columns, row, strict=True)) for row in listing.rows]))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in listing.columns:
        table.add_column(column, overflow="fold")
    for row in listing.rows:
        table.add_row(*row)
    Console().print(table, markup=False)


def _broken(what: str) -> Sequence[registry.Broken]:
    sources: dict[str, tuple[registry.Registry[Any], ...]] = {
        METHODS: (registry.methods(), registry.strategies(), registry.onlines()),
        "corruptions": (registry.corruptions(),),
        "datasets": (registry.datasets(),),
    }
    return [broken for found in sources.get(what, ()) for broken in found.broken]


def print_entry(name: str, as_json: bool) -> None:
    """Describe whatever has this name; raises UnknownNameError offering near names of every kind."""
    facts = describe(name)
    if as_json:
        print(json.dumps(facts, default=list))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for key, value in facts.items():
        if value not in ("", None, (), {}):
            table.add_row(key, _words(value))
    Console().print(table, markup=False)


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(
            f"{key} = {inner:,}" if type(inner) is int else f"{key} = {inner}" for key, inner in value.items()
        )
    return ", ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def describe(name: str) -> dict[str, Any]:
    """Facts of an entry as plain data, its kind first."""
    entry = entry_of(name)
    if entry is not None:
        return _describe_part(entry)
    kinds: dict[str, registry.Registry[Any]] = {
        "corruption": registry.corruptions(),
        "data set": registry.datasets(),
    }
    for kind, found in kinds.items():
        if name in found.names():
            card = found.card(name)
            stage = {"stage": _stage_words(card.stage)} if isinstance(card, CorruptionCard) else {}
            return {"kind": kind, **asdict(card), **stage, "from": found.entry(name).origin.label}
    if name.endswith("/*"):
        return {"kind": "family of corruptions", "name": name, "members": family_members(name.removesuffix("*"))}
    if name in pairs():
        return {"kind": "pair of corruptions", "name": name, **_describe_halves(name)}
    if name in named_cases() or ("/" in name and "@" in name):
        return {"kind": "case", "name": name, "what": case_words(parse_case(name))}
    if name in named_sets():
        return {"kind": "set of cases", "name": name, "cases": named_sets()[name]}
    if name in PRESETS:
        return {"kind": "backbone", **PRESETS[name].to_dict()}
    paths = {path.stem: path for path in shipped_suites()}
    if name in paths:
        return {"kind": "suite", "name": name, "content": "\n" + paths[name].read_text(encoding="utf-8")}
    regimes = {part.name: part.title for part in REGIMES}
    if name in regimes:
        return {"kind": "regime", "name": name, "what": regimes[name]}
    everything = [*part_names(), *regimes, *(n for found in kinds.values() for n in found.names())]
    raise UnknownNameError("entry", name, [*everything, *pairs(), *named_cases(), *named_sets(), *PRESETS, *paths])


def _describe_halves(pair: str) -> dict[str, str]:
    """What the halves of a pair are, where they act and what was repaired."""
    facts: dict[str, str] = {}
    for part, end in HALVES.items():
        card = registry.corruptions().card(pair + end)
        facts |= {part: card.name, f"{part} stage": _stage_words(card.stage), f"{part} reference": card.reference}
        facts |= {f"{part} note": card.note} if card.note else {}
    return facts


def _stage_words(stage: StageName) -> str:
    """Its place among the stages, and what a corruption acts on there."""
    order = tuple(STAGES)
    return f"{stage}, {order.index(stage) + 1} of {len(order)} ({' > '.join(order)}): {STAGES[stage]}"


def _describe_part(entry: registry.Entry[Any]) -> dict[str, Any]:
    """A method, training strategy or online adapter with its definition, counts and citation."""
    card = entry.card
    kind = {OnlineCard: "online adapter", StrategyCard: "training strategy"}.get(type(card), "method")
    counts = {} if isinstance(card, StrategyCard) else {size: trainable_count(card, size) for size in PRESETS}
    return {
        "kind": kind,
        **asdict(card),
        "trainable": {size: count for size, count in counts.items() if count is not None},
        "definition": entry.definition,
        "from": entry.origin.label,
        "citation": citation(entry),
    }
