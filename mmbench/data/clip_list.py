"""Lists of clips as data sets publish them, and the video files that they mean.

Four forms are told apart by their columns: VGGSound (Chen et al., ICASSP 2020: id, start, label, split without a
header), AudioSet (Gemmeke et al., ICASSP 2017: its header is a comment), Kinetics (Kay et al., 2017) and any csv whose
header names id, label and perhaps start, end and split. A CAV-MAE json and a folder of videos by class work too.
"""

from __future__ import annotations

import csv
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mmbench.data.manifest_files import Labels, read_entries
from mmbench.data.video import SUFFIXES, VideoError
from mmbench.errors import DataError

COLUMNS = {  # as written -> as understood; of several labels in a cell only where the name says so
    **dict.fromkeys(("id", "video_id", "youtube_id", "ytid"), "id"),
    **dict.fromkeys(("start", "start_seconds", "start_time", "time_start"), "start"),
    **dict.fromkeys(("end", "end_seconds", "end_time", "time_end"), "end"),
    **dict.fromkeys(("labels", "positive_labels"), "labels"),
    "label": "label",
    "split": "split",
}
NO_HEADER = ("id", "start", "label", "split")
LONGEST_NAME = 200  # bytes; a suffix and the name of a half-written file must fit behind it
LATEST_S = 1e6
SPLITS = {"train": "train", "val": "val", "validate": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True, slots=True)
class Clip:
    """One entry of a list."""

    id: str
    """Names the clip's files: film and start where the list tells one."""
    film: str
    """The stem of the video's name, or its path."""
    start_s: float | None
    end_s: float | None
    labels: tuple[str, ...]
    split: str
    """train, val or test; empty where the list tells none."""

    def seconds(self, longest: float) -> float:
        """How much of a film it is."""
        if self.start_s is None or self.end_s is None:
            return longest
        return min(longest, self.end_s - self.start_s)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A clip that gives no files, or (`short`) fewer seconds than wanted, and why."""

    id: str
    kind: str
    """unusable: by its entry; missing: no video; broken: no clip in the video; short: used all the same."""
    reason: str
    video: str = ""


@dataclass(frozen=True)
class ClipList:
    """What was listed, and which entries cannot be used."""

    clips: tuple[Clip, ...]
    problems: tuple[LeftOut, ...]


class _EntryError(Exception):
    """One unusable entry; the message is the reason."""


class Videos:
    """The video files below a folder by the stems of their names."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths = tuple(_walk(root))
        """Relative to the folder."""
        self._by_stem: dict[str, str] = {}
        self.shared: set[str] = set()
        """Stems that several files have."""
        for path in self.paths:
            stem = Path(path).stem
            if self._by_stem.setdefault(stem, path) != path:
                self.shared.add(stem)

    def find(self, clip: Clip) -> tuple[str, float | None] | None:
        """The relative path, and where in that file the clip begins; None where there is none.

        A file that is named by film and start holds the clip alone, and so has no such place, one by the film the
        whole. Raises VideoError for a name that several files share.
        """
        if os.sep in clip.film:  # only a folder's own listing gives paths
            return clip.film, None
        for stem, start_s in _stems(clip):
            if stem in self.shared:
                raise VideoError(f"several videos are called {stem}")
            if stem in self._by_stem:
                return self._by_stem[stem], start_s
        return None


def _walk(root: Path) -> Iterator[str]:
    def stop(error: OSError) -> None:
        raise DataError(f"cannot read the folder {error.filename}: {error.strerror}")

    for folder, below, names in os.walk(root, onerror=stop):
        below.sort()
        for name in sorted(names):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield os.path.relpath(Path(folder, name), root)


def _stems(clip: Clip) -> Iterator[tuple[str, float | None]]:
    if clip.start_s is not None:
        start = f"{clip.film}_{_written(clip.start_s)}"
        yield start, None
        if clip.end_s is not None:
            yield f"{start}_{_written(clip.end_s)}", None
    yield clip.film, clip.start_s


def _written(at_s: float) -> str:
    """A time in a name: seconds in six or seven digits, milliseconds in nine where they are not whole."""
    whole_s, rest_ms = divmod(round(at_s * 1000), 1000)
    return f"{whole_s:06d}{rest_ms:03d}" if rest_ms else f"{whole_s:06d}"


def read_list(path: Path) -> ClipList:
    """A csv or a CAV-MAE json. Raises DataError for a file that is no list; single entries go to its problems."""
    if path.suffix.lower() == ".json":
        return _collect(path, enumerate(read_entries(path)), _clip_of_json)
    return _collect(path, _csv_rows(path), _clip_of_row)


def list_folder(videos: Videos) -> ClipList:
    """Every video of a folder of classes, `<class>/<id>.mp4`, or of such folders by split, `train/<class>/<id>.mp4`.

    Files that share a name get their class before it.
    """
    return _collect(videos.root, ((path, path) for path in videos.paths), partial(_clip_of_path, videos.shared))


def _collect(path: Path, entries: Iterable[tuple[object, Any]], clip_of: Callable[[Any], Clip]) -> ClipList:
    clips: dict[str, Clip] = {}
    problems: list[LeftOut] = []
    for place, entry in entries:
        try:
            clip = clip_of(entry)
            if clip.id in clips:
                raise _EntryError(f"{clip.id} is given twice")
            clips[clip.id] = clip
        except _EntryError as error:
            problems.append(LeftOut(f"{path.name} entry {place}", "unusable", str(error)))
    if not clips:
        first = f"; first: {problems[0].id}: {problems[0].reason}" if problems else ""
        raise DataError(f"{path} lists no usable clip{first}")
    return ClipList(tuple(clips.values()), tuple(problems))


def _csv_rows(path: Path) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Rows by line number; a header may be a comment, and other comments are passed over."""
    columns: Sequence[str] = NO_HEADER
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, skipinitialspace=True)
            for cells in reader:
                words = [COLUMNS.get(cell.strip("# ").lower(), "") for cell in cells]
                if "id" in words and {"label", "labels"} & set(words):
                    columns = words
                elif cells and not cells[0].startswith("#"):
                    wrong = {} if len(cells) == len(columns) else {"wrong": f"{len(cells)} cells, not {len(columns)}"}
                    yield reader.line_num, {**dict(zip(columns, cells, strict=False)), **wrong}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read the list {path}: {error}") from None


def _clip_of_row(row: Mapping[str, str]) -> Clip:
    if "wrong" in row:
        raise _EntryError(f"{row['wrong']}; quote a label that holds a comma")
    film, start_s, end_s = _name(row["id"].strip()), _seconds(row, "start"), _seconds(row, "end")
    if start_s is not None and end_s is not None and end_s <= start_s:
        raise _EntryError(f"end {end_s:g} is not after start {start_s:g}")
    labels = row["labels"].split(",") if "labels" in row else [row["label"]]
    id = film if start_s is None else f"{film}_{_written(start_s)}"
    return Clip(id, film, start_s, end_s, _labels(labels), _split(row.get("split", "")))


def _clip_of_path(shared: Set[str], path: str) -> Clip:
    *folders, name = Path(path).parts
    split = SPLITS[folders.pop(0)] if len(folders) == 2 and folders[0] in SPLITS else ""
    if len(folders) != 1:
        raise _EntryError(f"{path} does not lie in a folder of its class")
    stem = Path(name).stem
    id = f"{folders[0]}-{stem}" if stem in shared else stem
    return Clip(_name(id), path, None, None, _labels(folders), split)


def _clip_of_json(entry: Any) -> Clip:
    name, labels = (entry.get(key) if isinstance(entry, dict) else None for key in ("video_id", "labels"))
    if not isinstance(name, str) or not isinstance(labels, str):
        raise _EntryError("video_id and labels must be texts")
    film = _name(name)
    return Clip(film, film, None, None, _labels(labels.split(",")), _split(entry.get("split")))


def _name(text: str) -> str:
    """A name that can be that of a file here, and leads nowhere else."""
    plain = text.isprintable() and "/" not in text and "\\" not in text and not text.startswith(".")
    if not text or not plain or len(text.encode()) > LONGEST_NAME:
        raise _EntryError(f"{text[:80]!r} is not a plain file name")
    return text


def _labels(texts: Sequence[str]) -> tuple[str, ...]:
    labels = tuple(dict.fromkeys(text.strip() for text in texts))
    if not all(labels) or not all(label.isprintable() for label in labels):
        raise _EntryError("a label is empty or not printable")
    return labels


def _split(told: object) -> str:
    text = told.strip() if isinstance(told, str) else told
    if text not in (None, "", *SPLITS):
        raise _EntryError(f"split {told!r:.40} is none of {', '.join(SPLITS)}")
    return SPLITS.get(str(text), "")


def _seconds(row: Mapping[str, str], key: str) -> float | None:
    if not row.get(key, "").strip():
        return None
    try:
        value = float(row[key])
    except ValueError:
        value = math.nan
    if not 0 <= value <= LATEST_S:
        raise _EntryError(f"{key} {row[key][:40]!r} is no second of a film")
    return value


def with_labels(listed: ClipList, labels: Labels) -> ClipList:
    """Labels as mids, told by mid or by a name of one class; a clip of another goes to the problems."""
    uses = Counter(labels.names)
    mids = {name: mid for name, mid in zip(labels.names, labels.mids, strict=True) if uses[name] == 1}
    mids |= {mid: mid for mid in labels.mids}
    clips: list[Clip] = []
    problems = list(listed.problems)
    for clip in listed.clips:
        if unknown := [label for label in clip.labels if label not in mids]:
            reason = f"label {', '.join(unknown)} names no single class of the label csv"
            problems.append(LeftOut(clip.id, "unusable", reason))
        else:
            found = tuple(mids[label] for label in clip.labels)
            clips.append(Clip(clip.id, clip.film, clip.start_s, clip.end_s, found, clip.split))
    return ClipList(tuple(clips), tuple(problems))
