"""A data set before reading: what its samples are called, what they are and where they lie."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mmbench.errors import ConfigError, DataError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Item:
    """One sample by name. Items of one group share a recording, a speaker or a session."""

    id: str
    labels: tuple[int, ...]
    group: str
    audio: Path | None = None
    image: Path | None = None
    film: Collection[Path] = ()
    """The pictures in order, in place of `image`, where a sample has several."""
    split: str | None = None
    """train, val or test where the data set itself tells and that was asked for."""


@dataclass(frozen=True)
class Pair:
    """One sample as read: float32 mono 16 kHz in [-1, 1], and (H, W, 3) uint8 RGB at the wanted size.

    Of a film the picture is (F, H, W, 3), with the same F for every sample of the data set.
    """

    wave: NDArray[np.float32]
    image: NDArray[np.uint8]


@dataclass(frozen=True)
class Skipped:
    """A sample that cannot be used, where it lies (relative to the data set) and why."""

    id: str
    path: str
    reason: str


class BrokenFileError(DataError):
    """A file that cannot be used, with the reason apart from the sentence."""

    def __init__(self, path: Path, reason: str) -> None:
        way_out = "mend or remove it, or set on_error: skip to leave such files out"
        super().__init__(f"cannot use {path}: {reason}; {way_out}")
        self.path = path
        self.reason = reason


class Source(Protocol):
    """A data set that is listed but not yet read."""

    @property
    def name(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def items(self) -> tuple[Item, ...]: ...
    @property
    def problems(self) -> tuple[Skipped, ...]:
        """What the listing alone shows to be unusable: unpaired, unlabelled, named twice."""

    @property
    def multi_label(self) -> bool: ...
    @property
    def static_images(self) -> bool:
        """True where the picture is a still, False where it is one frame of a film."""

    @property
    def root(self) -> Path | None:
        """The folder that paths are told relative to; None for generated data."""

    def read(self, item: Item, image_size: int) -> Pair:
        """Raises BrokenFileError naming the file and the reason."""

    def fingerprint(self) -> str:
        """A key that changes when the listing, a file's size or its time of change does."""


def recording_pattern(text: str) -> re.Pattern[str]:
    """A `group_pattern` compiled; raises ConfigError for one that finds no recording in a name."""
    try:
        pattern = re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(f"group_pattern '{text:.200}' is not a regular expression: {error}") from None
    if pattern.groups < 1:
        raise ConfigError(f"group_pattern '{text:.200}' has no group; put the recording's part in (...)")
    return pattern


def relative_name(path: Path, root: Path | None) -> str:
    """The path as told to others: below the data set's folder, without the machine's own part."""
    if root is None:
        return path.name
    return Path(os.path.relpath(path, root)).as_posix()


def fingerprint_of(parts: Iterable[str]) -> str:
    """SHA-256 over the parts, each closed by a byte that no part holds."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode("utf-8", "surrogateescape") + b"\x1f")
    return digest.hexdigest()


def file_parts(items: Sequence[Item], root: Path | None) -> Iterator[str]:
    """Names, labels, sizes and times of change of all files of a listing."""
    for item in items:
        yield from (item.id, ",".join(map(str, item.labels)), item.group)
        if item.split is not None:
            yield item.split
        for path in (item.audio, item.image, *item.film):
            if path is not None:
                yield from (relative_name(path, root), *_size_and_time(path))


def _size_and_time(path: Path) -> tuple[str, str]:
    try:
        stat = path.stat()
    except OSError:
        return "absent", "absent"
    return str(stat.st_size), str(stat.st_mtime_ns)
