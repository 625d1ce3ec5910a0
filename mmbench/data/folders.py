"""Folders of pairs: <sound dir>/<class>/<stem>.wav beside <vision dir>/<class>/<stem>.jpg."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmbench.data.features import load_audio, load_image
from mmbench.data.source import Item, Pair, Skipped, file_parts, fingerprint_of, recording_pattern, relative_name
from mmbench.errors import ConfigError, DataError
from mmbench.registry import dataset

if TYPE_CHECKING:
    from mmbench.config import DataConfig

SOUND_DIR = "Dataset_v3_sound"  # the published layout
VISION_DIR = "Dataset_v3_vision"
SOUND_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".mp3", ".aif", ".aiff"})
VISION_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
URBANSOUND8K = (  # in the order of the class numbers in its file names
    "air_conditioner", "car_horn", "children_playing", "dog_bark", "drilling",
    "engine_idling", "gun_shot", "jackhammer", "siren", "street_music",
)  # fmt: skip
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
URBANSOUND8K_STEM = re.compile(r"^(\d+)-(\d)-\d+-\d+$")  # recording - class - occurrence - slice

Grouper = Callable[[str], str | None]  # file stem -> recording, None where the name tells none
LabelCheck = Callable[[str, str], str | None]  # (class folder, file stem) -> complaint


@dataclass(frozen=True)
class FolderSource:
    """Listed pairs; a sample's id is <class>/<stem>."""

    name: str
    root: Path
    classes: tuple[str, ...]
    items: tuple[Item, ...]
    problems: tuple[Skipped, ...]
    multi_label: bool = False
    static_images: bool = True

    def read(self, item: Item, image_size: int) -> Pair:
        assert item.audio is not None and item.image is not None  # the listing pairs both
        return Pair(load_audio(item.audio), load_image(item.image, image_size))

    def fingerprint(self) -> str:
        problems = (f"{entry.path}: {entry.reason}" for entry in self.problems)
        return fingerprint_of((self.name, *self.classes, *file_parts(self.items, self.root), *problems))


@dataclass(frozen=True)
class Layout:
    """What a data set's names mean."""

    group: Grouper
    complain: LabelCheck


@dataset("folder-pairs", title="Folders of sound and picture pairs", note="any two folders with one subfolder a class")
def folder_pairs(config: DataConfig) -> FolderSource:
    return _listed(config, Layout(_grouper(config, None), _no_complaint))


@dataset(
    "urbansound8k-av",
    title="UrbanSound8K-AV",
    licence="CC BY-NC 3.0 (sounds)",
    note="folder pairs as published; slices of one recording form a group; fetch the files yourself",
)
def urbansound8k_av(config: DataConfig) -> FolderSource:
    return _listed(config, Layout(_grouper(config, URBANSOUND8K_STEM), _urbansound_complaint))


@dataset(
    "cifar10-av",
    title="CIFAR10-AV",
    note="folder pairs as published; recordings are not told by its names, so give group_pattern where yours do",
)
def cifar10_av(config: DataConfig) -> FolderSource:
    return _listed(config, Layout(_grouper(config, None), _no_complaint))


def _grouper(config: DataConfig, default: re.Pattern[str] | None) -> Grouper:
    pattern = default if config.group_pattern is None else recording_pattern(config.group_pattern)

    def group(stem: str) -> str | None:
        found = pattern.search(stem) if pattern else None
        return found.group(1) if found else None

    return group


def _no_complaint(_class: str, _stem: str) -> str | None:
    return None


def _urbansound_complaint(folder: str, stem: str) -> str | None:
    """The published names hold the class number, so a file in the wrong folder gives itself away."""
    found = URBANSOUND8K_STEM.match(stem)
    if found is None or folder not in URBANSOUND8K or URBANSOUND8K[int(found.group(2))] == folder:
        return None
    return f"its name says class {URBANSOUND8K[int(found.group(2))]}, its folder {folder}"


def _listed(config: DataConfig, layout: Layout) -> FolderSource:
    root, sound_dir, vision_dir = _folders(config)
    classes = config.classes or tuple(sorted({*_subfolders(sound_dir), *_subfolders(vision_dir)}))
    if not classes:
        raise DataError(f"{sound_dir} holds no class folders; expected <class>/<name>.wav below it")
    items: list[Item] = []
    problems: list[Skipped] = []
    for label, name in enumerate(classes):
        if config.classes and name not in _subfolders(sound_dir):
            raise DataError(f"no class folder '{name}' in {sound_dir}; it has: {', '.join(_subfolders(sound_dir))}")
        sounds, twice_a = _files(sound_dir / name, SOUND_SUFFIXES)
        pictures, twice_v = _files(vision_dir / name, VISION_SUFFIXES)
        problems += _problems(name, (*twice_a, *twice_v), root, "another file has the same name but for its suffix")
        for stem in sorted({*sounds, *pictures}):
            pair = (sounds.get(stem), pictures.get(stem))
            complaint = _pair_complaint(pair) or layout.complain(name, stem)
            if complaint:
                present = next(path for path in pair if path is not None)
                problems += _problems(name, (present,), root, complaint)
            else:
                group = layout.group(stem)
                items.append(Item(f"{name}/{stem}", (label,), group if group is not None else f"{name}/{stem}", *pair))
    _check_classes(classes, items, problems, sound_dir)
    return FolderSource(config.name, root, classes, tuple(items), tuple(problems))


def _folders(config: DataConfig) -> tuple[Path, Path, Path]:
    """(root, sounds, pictures), all present."""
    if config.root is None:
        raise ConfigError(f"data set '{config.name}' needs 'root', the folder that holds its sound and vision folders")
    for key in ("manifest", "label_csv", "samples"):
        if getattr(config, key) is not None:
            raise ConfigError(f"data set '{config.name}' lists folders and takes no '{key}'")
    if config.frames > 1:
        raise ConfigError(f"data set '{config.name}' holds still pictures; frames: {config.frames} needs a manifest")
    if config.multi_label:
        raise ConfigError(f"data set '{config.name}' has one class a file; multi_label needs a manifest")
    sound_dir = config.root / (config.audio_dir or SOUND_DIR)
    vision_dir = config.root / (config.vision_dir or VISION_DIR)
    for key, folder in (("audio_dir", sound_dir), ("vision_dir", vision_dir)):
        if not folder.is_dir():
            raise DataError(f"no folder {folder}; name the folder below 'root' with '{key}'")
    return config.root, sound_dir, vision_dir


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _files(folder: Path, suffixes: frozenset[str]) -> tuple[Mapping[str, Path], Sequence[Path]]:
    """Files by stem, and those whose stem was taken already; no folder counts as an empty one."""
    if not folder.is_dir():
        return {}, []
    by_stem: defaultdict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            by_stem[path.stem].append(path)
    extra = [path for paths in by_stem.values() for path in paths[1:]]
    return {stem: paths[0] for stem, paths in by_stem.items()}, extra


def _pair_complaint(pair: tuple[Path | None, Path | None]) -> str | None:
    sound, picture = pair
    if sound is None:
        return "a picture without its sound"
    if picture is None:
        return "a sound without its picture"
    try:
        sound.stem.encode()
    except UnicodeEncodeError:
        return "its name is not valid UTF-8"
    return None


def _problems(class_name: str, paths: Sequence[Path], root: Path, reason: str) -> list[Skipped]:
    return [Skipped(f"{class_name}/{path.stem}", relative_name(path, root), reason) for path in paths]


def _check_classes(classes: Sequence[str], items: Sequence[Item], problems: Sequence[Skipped], folder: Path) -> None:
    held = {item.labels[0] for item in items}
    empty = [name for label, name in enumerate(classes) if label not in held]
    if empty:
        seen = f" ({problems[0].path}: {problems[0].reason})" if problems else ""
        raise DataError(
            f"no pair in class {', '.join(empty)} of {folder}{seen}; sounds may end in "
            f"{' '.join(sorted(SOUND_SUFFIXES))}, or leave the class out with 'classes'"
        )
