"""What a row can be made of: methods, regimes and training strategies, online adapters. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mmbench import registry
from mmbench.backbone.config import preset
from mmbench.cards import TRACK_OFFERS, MethodCard, OnlineCard
from mmbench.errors import ConfigError
from mmbench.formula import evaluate, numbers

AXES: Mapping[int, str] = {
    1: "what is adapted",
    2: "what training sees",
    3: "what happens at test time",
}
YEAR = r"\b(?:19|20)\d\d\b"


@dataclass(frozen=True)
class Part:
    """A row of the table; what does not apply is empty or None."""

    name: str
    axis: int
    family: str
    title: str
    trainable: int | None = None
    """Values that train, or that an online adapter updates, at one backbone with default options; the head apart."""
    memory: str = ""
    needs: tuple[str, ...] = ()
    track: str = ""
    """The least telling track it may enter."""
    paper: str = ""
    year: int | None = None


REGIMES = (
    Part("clean", 2, "regime", "Complete samples only"),
    Part("mixed", 2, "regime", "Every sample under a case drawn anew in each epoch"),
    Part("casewise", 2, "regime", "One adapted state per case", needs=("train case",)),
    Part("missing-rate", 2, "regime", "A fixed share of the samples lacks audio or vision"),
)


def parts(backbone: str = "cavmae-base") -> tuple[Part, ...]:
    """Every part, families together. Raises UnknownNameError for an unknown backbone."""
    found = [*_methods(backbone), *REGIMES, *_strategies(), *_onlines(backbone)]
    families = list(dict.fromkeys((part.axis, part.family) for part in found))
    return tuple(sorted(found, key=lambda part: (part.axis, families.index((part.axis, part.family)))))


def _methods(backbone: str) -> Iterator[Part]:
    known = registry.methods()
    for card in map(known.card, known.names()):
        track = next(track for track in TRACK_OFFERS if card.needs.allowed_on(track))
        paper = short_reference(card.reference)
        trainable = trainable_count(card, backbone)
        yield Part(card.name, 1, card.family, card.title, trainable, card.memory, _needs(card), track, paper, card.year)


def _strategies() -> Iterator[Part]:
    known = registry.strategies()
    for card in map(known.card, known.names()):
        needs = (*(("whole step",) if card.whole_step else ()), *_forwards(card.extra_forwards))
        yield Part(
            card.name, 2, "strategy", card.title, needs=needs, paper=short_reference(card.reference), year=card.year
        )


def _onlines(backbone: str) -> Iterator[Part]:
    known = registry.onlines()
    for card in map(known.card, known.names()):
        needs = (
            *((f"{card.source_samples} source samples",) if card.source_samples else ()),
            *(("stream length",) if card.stream_length else ()),
            *(("attention maps",) if card.attn_maps else ()),
            *_forwards(card.forwards - 1),
        )
        count = trainable_count(card, backbone)
        paper = short_reference(card.reference)
        yield Part(card.name, 3, "online", card.title, count, card.memory, needs, "", paper, card.year)


def _needs(card: MethodCard) -> tuple[str, ...]:
    words = {"none": (), "avail": ("availability",), "oracle": ("case",)}[card.needs.case]
    training = ("train case",) if card.needs.train_case else ()
    batch = ("whole batch",) if card.needs.batch_dependent else ()
    return (*words, *training, *batch, *_forwards(card.needs.extra_forwards))


def _forwards(extra: float) -> tuple[str, ...]:
    return (f"+{extra:g} forwards",) if extra > 0 else ()


def trainable_count(
    card: MethodCard | OnlineCard, backbone: str, options: Mapping[str, Any] | None = None
) -> int | None:
    """What the card's closed form gives at the sizes of a preset; None where it states none.

    Raises ConfigError naming the card of a formula that cannot be evaluated.
    """
    if isinstance(card, MethodCard) and not card.trains:
        return 0
    if not card.parameters:
        return None
    try:
        return evaluate(card.parameters, {**preset(backbone).symbols(), **numbers({**card.options, **(options or {})})})
    except ConfigError as error:
        raise ConfigError(f"{card.name}: {error}") from None


def short_reference(reference: str) -> str:
    """Authors, venue and year of a reference like `Hu et al., LoRA: Low-Rank Adaptation, ICLR 2022`."""
    authors, *rest = reference.split(", ")
    dated = [re.split(r"\s*[;(]", piece)[0] for piece in rest if re.search(YEAR, piece)]
    return f"{authors}, {dated[-1]}" if dated else reference


def entry_of(name: str) -> registry.Entry[Any] | None:
    """The registered method, strategy or online adapter of this name, if there is one."""
    known: tuple[registry.Registry[Any], ...] = (registry.methods(), registry.strategies(), registry.onlines())
    return next((found.entry(name) for found in known if name in found.names()), None)


def part_names() -> tuple[str, ...]:
    return (*registry.methods().names(), *registry.strategies().names(), *registry.onlines().names())
