"""Cutting a data set into train, val and test, so that no recording lies on two sides unless one asks for that."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmbench.data.source import SPLITS, Item
from mmbench.errors import DataError

if TYPE_CHECKING:
    from mmbench.config import SplitConfig

PUBLISHED_TEST = 0.3  # the share of the published cut, whatever the settings say
PARTS = 3  # train, val and test each need a share of every class


@dataclass(frozen=True)
class Splits:
    """Ids of the three parts, sorted, and whether files of one recording stand on two sides."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    kind: str
    leaks: bool
    note: str


@dataclass(frozen=True)
class _Unit:
    """What is never torn apart: a recording, or a single sample where recordings may straddle."""

    name: str
    ids: tuple[str, ...]
    counts: Mapping[int, int]  # class -> samples


def split(items: Sequence[Item], config: SplitConfig, classes: Sequence[str] = ()) -> Splits:
    """The same cut for the same names and seed, in whatever order the items come; `classes` only name errors.

    Raises DataError naming a class that has too few samples, or too few recordings, for three parts. Where samples
    have several labels, rare classes cannot all be served and are not an error.
    """
    parts = _listed(items, config) if config.kind == "listed" else _drawn(items, config, classes)
    ids = {part: tuple(sorted(id for unit in held for id in unit.ids)) for part, held in parts.items()}
    straddling, groups = _straddling(items, ids)
    note = _note(straddling, groups, len(items))
    return Splits(ids["train"], ids["val"], ids["test"], config.kind, straddling > 0, note)


def _drawn(items: Sequence[Item], config: SplitConfig, classes: Sequence[str]) -> Mapping[str, Sequence[_Unit]]:
    units = _units(items, grouped=config.kind == "grouped")
    single_label = all(len(item.labels) == 1 for item in items)
    if single_label:
        _check_enough(units, classes, config.kind)
    share = PUBLISHED_TEST if config.kind == "published" else config.test
    rest, test = _cut(units, share, PARTS - 1, f"test-{config.seed}")
    train, val = _cut(rest, config.val, PARTS - 2, f"val-{config.seed}")
    parts = {"train": train, "val": val, "test": test}
    if single_label:
        _check_coverage(parts, units, classes)
    return parts


def _listed(items: Sequence[Item], config: SplitConfig) -> Mapping[str, Sequence[_Unit]]:
    """What the data set tells; where it tells no val, that is cut from train along recordings."""
    parts = {part: _units([item for item in items if item.split == part], grouped=True) for part in SPLITS}
    if not parts["val"]:
        parts["train"], parts["val"] = _cut(parts["train"], config.val, PARTS - 2, f"val-{config.seed}")
    if empty := [part for part, held in parts.items() if not held]:
        raise DataError(
            f"split.kind: listed finds no sample for {', '.join(empty)}; only a manifest whose entries have a 'split' "
            "(train, test, perhaps val) tells one, else choose grouped"
        )
    return parts


def _units(items: Sequence[Item], grouped: bool) -> list[_Unit]:
    members: defaultdict[str, list[Item]] = defaultdict(list)
    for item in sorted(items, key=lambda item: item.id):
        members[item.group if grouped else item.id].append(item)
    return [
        _Unit(name, tuple(item.id for item in held), Counter(label for item in held for label in item.labels))
        for name, held in members.items()
    ]


def _cut(units: Sequence[_Unit], share: float, keep: int, seed: str) -> tuple[list[_Unit], list[_Unit]]:
    """(rest, taken): units in an order drawn from the seed are taken while that brings every class nearer its share.

    At least one unit of each class is taken where it has more than `keep`, and `keep` of each are left.
    """
    pool = _Pool(units, share, keep)
    order = sorted(units, key=lambda unit: hashlib.blake2b(f"{seed}\x1f{unit.name}".encode(), digest_size=16).digest())
    for unit in order:
        if pool.gain(unit) > 0 and pool.can_spare(unit):
            pool.take(unit)
    # A class whose recordings were all too large to fit its share still needs one.
    for label in sorted(pool.left):
        if pool.units_taken[label] == 0:
            fitting = [unit for unit in order if label in unit.counts and pool.can_spare(unit)]
            if fitting:
                pool.take(max(fitting, key=pool.gain))
    rest = [unit for unit in units if unit.name not in pool.taken]
    return rest, [unit for unit in units if unit.name in pool.taken]


class _Pool:
    """What has been taken so far, class by class."""

    def __init__(self, units: Sequence[_Unit], share: float, keep: int) -> None:
        self.keep = keep
        self.taken: set[str] = set()
        self.left = Counter(label for unit in units for label in unit.counts)  # units that hold the class
        self.units_taken: Counter[int] = Counter()
        total: Counter[int] = Counter()
        for unit in units:
            total.update(unit.counts)
        self.deficit = {label: share * count for label, count in total.items()}  # samples still wanted

    def gain(self, unit: _Unit) -> float:
        """By how much the squared distance to the wanted counts would fall."""
        return sum(self.deficit[c] ** 2 - (self.deficit[c] - n) ** 2 for c, n in unit.counts.items())

    def can_spare(self, unit: _Unit) -> bool:
        return all(self.left[label] > self.keep for label in unit.counts)

    def take(self, unit: _Unit) -> None:
        self.taken.add(unit.name)
        for label, count in unit.counts.items():
            self.deficit[label] -= count
            self.left[label] -= 1
            self.units_taken[label] += 1


def _check_enough(units: Sequence[_Unit], classes: Sequence[str], kind: str) -> None:
    held = Counter(label for unit in units for label in unit.counts)
    few = [f"'{_name(label, classes)}' has {count}" for label, count in sorted(held.items()) if count < PARTS]
    if few:
        what, way_out = "samples", "add samples or leave the class out of 'classes'"
        if kind == "grouped":
            what, way_out = "recordings (groups)", "or set split.kind: random, which lets recordings straddle"
        raise DataError(f"train, val and test need {PARTS} {what} of each class, but {', '.join(few)}; {way_out}")


def _check_coverage(parts: Mapping[str, Sequence[_Unit]], units: Sequence[_Unit], classes: Sequence[str]) -> None:
    every = {label for unit in units for label in unit.counts}
    for part, held in parts.items():
        missing = sorted(every - {label for unit in held for label in unit.counts})
        if missing:
            names = ", ".join(f"'{_name(label, classes)}'" for label in missing)
            raise DataError(f"no cut along recordings gives {part} a sample of {names}; try another split.seed")


def _name(label: int, classes: Sequence[str]) -> str:
    return classes[label] if label < len(classes) else f"class {label}"


def _straddling(items: Sequence[Item], ids: Mapping[str, Sequence[str]]) -> tuple[int, int]:
    """Groups with samples in more than one part, and groups in all."""
    part_of = {id: part for part, held in ids.items() for id in held}
    parts: defaultdict[str, set[str]] = defaultdict(set)
    for item in items:
        parts[item.group].add(part_of[item.id])
    return sum(len(held) > 1 for held in parts.values()), len(parts)


def _note(straddling: int, groups: int, samples: int) -> str:
    if groups == samples:
        return "no two files are known to share a recording: each is its own group"
    if straddling:
        return f"leaks: {straddling} of {groups} recordings stand in more than one of train, val and test"
    return f"{groups} recordings, none in more than one of train, val and test"
