"""CAV-MAE manifests: a json of clips, a csv of labels, and per clip frames that were extracted before, usually ten."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmbench.data.features import load_audio, load_image
from mmbench.data.manifest_files import read_entries, read_labels
from mmbench.data.source import SPLITS, Item, Pair, Skipped, file_parts, fingerprint_of, recording_pattern
from mmbench.errors import ConfigError, DataError
from mmbench.registry import dataset

if TYPE_CHECKING:
    from mmbench.config import DataConfig

FRAME = 5  # the middle one of ten; earlier ones stand in for it where it is missing
KEYS = ("video_id", "wav", "video_path", "labels")
LONGEST_TEXT = 10_000  # of one entry's key
CLIP_OF_FILM = re.compile(r"^(.+)_\d+$")  # <film>_<start>: clips of one film form a group


@dataclass(frozen=True)
class ManifestSource:
    """Listed clips; a sample's id is its video_id."""

    name: str
    root: Path
    classes: tuple[str, ...]
    items: tuple[Item, ...]
    problems: tuple[Skipped, ...]
    multi_label: bool
    static_images: bool = False

    def read(self, item: Item, image_size: int) -> Pair:
        assert item.audio is not None  # the listing finds it, and one picture or all of a film
        if item.image is not None:
            return Pair(load_audio(item.audio), load_image(item.image, image_size))
        return Pair(load_audio(item.audio), np.stack([load_image(path, image_size) for path in item.film]))

    def fingerprint(self) -> str:
        problems = (f"{entry.id}: {entry.reason}" for entry in self.problems)
        head = (self.name, str(self.multi_label), *self.classes)
        return fingerprint_of(chain(head, file_parts(self.items, self.root), problems))


@dataclass(frozen=True)
class _Listing:
    """What every entry is read against."""

    folder: Path
    labels: Mapping[str, int]  # mid -> class
    multi_label: bool
    group_pattern: re.Pattern[str]
    frames: int
    splits: bool
    """Whether entries tell their split."""


class _EntryError(Exception):
    """One broken entry; the message is the reason."""


@dataset("cavmae-manifest", title="CAV-MAE json and label csv", note="single- or multi-label, frames extracted before")
def cavmae_manifest(config: DataConfig) -> ManifestSource:
    for key in ("manifest", "label_csv"):
        if getattr(config, key) is None:
            raise ConfigError(f"data set '{config.name}' needs '{key}'")
    for key in ("root", "classes", "samples", "audio_dir", "vision_dir"):
        if getattr(config, key) is not None:
            raise ConfigError(f"data set '{config.name}' reads a manifest and takes no '{key}'")
    assert config.manifest is not None and config.label_csv is not None
    labels = read_labels(config.label_csv)
    pattern = CLIP_OF_FILM if config.group_pattern is None else recording_pattern(config.group_pattern)
    listing = _Listing(
        config.manifest.parent,
        labels.numbers(),
        config.multi_label,
        pattern,
        config.frames,
        config.split.kind == "listed",
    )
    items: dict[str, Item] = {}
    problems: list[Skipped] = []
    for number, entry in enumerate(read_entries(config.manifest)):
        try:
            item = _item(entry, listing)
            if item.id in items:
                raise _EntryError("video_id given twice")
            items[item.id] = item
        except _EntryError as error:
            place = f"{config.manifest.name} entry {number}"
            name = entry.get("video_id") if isinstance(entry, dict) else None
            problems.append(Skipped(str(name or place), f"{place} ({name})" if name else place, str(error)))
    if not items:
        shown = f"; first: {problems[0].path}: {problems[0].reason}" if problems else ""
        raise DataError(f"{config.manifest} lists no usable clip{shown}")
    return ManifestSource(
        config.name, listing.folder, labels.classes, tuple(items.values()), tuple(problems), config.multi_label
    )


def _item(entry: Any, listing: _Listing) -> Item:
    if not isinstance(entry, dict):
        raise _EntryError(f"not an object but {type(entry).__name__}")
    for key in KEYS:
        if not isinstance(entry.get(key), str) or not entry[key]:
            raise _EntryError(f"'{key}' is {'not a string' if key in entry else 'missing'}")
        if len(entry[key]) > LONGEST_TEXT:
            raise _EntryError(f"'{key}' has {len(entry[key])} characters")
    name = entry["video_id"]
    if Path(name).name != name or "\x00" in name:
        raise _EntryError("video_id is not a plain file name")
    sound = listing.folder / entry["wav"]
    if not _is_file(sound):
        raise _EntryError(f"no sound {entry['wav']:.300}")
    pictures = _folder(listing.folder, entry["video_path"])
    found = listing.group_pattern.search(name)
    group = found.group(1) if found else None
    return Item(
        id=name,
        labels=_labels(entry["labels"], listing),
        group=group if group is not None else name,
        audio=sound,
        image=_frame(pictures, name) if listing.frames == 1 else None,
        film=_film(pictures, name, listing.frames) if listing.frames > 1 else (),
        split=_split(entry.get("split")) if listing.splits else None,
    )


def _split(text: object) -> str:
    if not isinstance(text, str) or text not in SPLITS:
        raise _EntryError(f"its 'split' is {text!r:.80}, but split.kind: listed needs {', '.join(SPLITS)}")
    return text


@lru_cache(maxsize=64)
def _folder(root: Path, name: str) -> Path:
    """One object for all clips of a folder."""
    return root / name


def _labels(text: str, listing: _Listing) -> tuple[int, ...]:
    mids = [mid.strip() for mid in text.split(",")]
    if unknown := [mid for mid in mids if mid not in listing.labels]:
        raise _EntryError(f"label {', '.join(map(repr, unknown))} is not in the label csv")
    labels = tuple(sorted({listing.labels[mid] for mid in mids}))
    if len(labels) > 1 and not listing.multi_label:
        raise _EntryError(f"{len(labels)} labels in a single-label set; set multi_label: true")
    return labels


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than names can be
        return False


def _frame(folder: Path, name: str) -> Path:
    """The middle frame, or the nearest one before it."""
    for number in range(FRAME, -1, -1):
        path = _frame_path(folder, name, number)
        if _is_file(path):
            return path
    raise _EntryError(f"no picture frame_{FRAME}/{name}.jpg, nor an earlier frame, in {folder.name}")


@dataclass(frozen=True, slots=True)
class _Film(Collection[Path]):
    """The frames of a clip in order; ten paths each would be most of a listing's memory."""

    folder: Path
    name: str
    frames: int

    def __len__(self) -> int:
        return self.frames

    def __iter__(self) -> Iterator[Path]:
        return (_frame_path(self.folder, self.name, number) for number in range(self.frames))

    def __contains__(self, path: object) -> bool:
        return path in tuple(self)


def _film(folder: Path, name: str, frames: int) -> _Film:
    """All frames in order. One too many is an error as well: the first ones alone would be the clip's beginning."""
    film = _Film(folder, name, frames)
    for number, path in enumerate(film):
        if not _is_file(path):
            raise _EntryError(f"no picture frame_{number}/{name}.jpg in {folder.name}, but frames: {frames}")
    if _is_file(_frame_path(folder, name, frames)):
        raise _EntryError(f"a picture frame_{frames}/{name}.jpg in {folder.name}, but frames: {frames}")
    return film


def _frame_path(folder: Path, name: str, number: int) -> Path:
    return folder / f"frame_{number}" / f"{name}.jpg"
