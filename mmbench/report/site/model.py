"""What the pages show beside the records: cards of parts and corruptions, samples, and the names of all files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from mmbench.report.aggregate import slug


@dataclass(frozen=True)
class Fact:
    """A line of a card."""

    what: str
    value: str


@dataclass(frozen=True)
class Card:
    """Where a name comes from: a method, a training strategy, an online adapter or a corruption."""

    name: str
    title: str
    facts: tuple[Fact, ...]
    definition: str = ""
    bibtex: str = ""


@dataclass(frozen=True)
class Sound:
    """A short .wav file below the site."""

    title: str
    path: str


@dataclass(frozen=True)
class Sample:
    """What a corruption looks and sounds like."""

    picture: str
    """Path of a JPEG below the site."""
    alt: str
    width: int
    height: int
    sounds: tuple[Sound, ...] = ()
    severities: tuple[Fact, ...] = ()
    """The parameters behind each severity."""


@dataclass(frozen=True)
class Extras:
    """What the registries and the data say of a board's names; empty where they know nothing of it."""

    parts: Mapping[str, tuple[Card, ...]] = field(default_factory=dict)
    """Title of a row -> cards of what it is made of."""
    corruptions: Mapping[str, tuple[Card, ...]] = field(default_factory=dict)
    """Label of a corruption -> cards of its halves."""
    samples: Mapping[str, Sample] = field(default_factory=dict)
    """Label of a corruption -> its sample."""


Label = TypeVar("Label", str, tuple[str, str])


def file_names(labels: Iterable[Label], folder: str) -> dict[Label, str]:
    """Label -> path of its page below the site: safe for every label, and no two labels share one."""
    names: dict[Label, str] = {}
    taken: set[str] = set()
    for label in dict.fromkeys(labels):
        stem = slug(label) if isinstance(label, str) else slug(*label)
        name, number = stem, 2
        while name in taken:  # a checksum can be forged
            name, number = f"{stem}-{number}", number + 1
        taken.add(name)
        names[label] = f"{folder}/{name}.html"
    return names
