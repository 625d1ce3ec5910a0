"""Frozen test sets: what corrupting gave once, read back bit for bit in place of corrupting again.

A folder holds a manifest a set, `<data>-<case>-<key>.json`, and `arrays/<SHA-256>.npy`, which sets share: the sound
that a corruption of the picture leaves alone is kept once. A set is used only for the very data, split, case and
corruptions that it was made from.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from torch import Tensor

from mmbench.assets import assets_digest
from mmbench.cases import Case
from mmbench.config import Config
from mmbench.data.batch import Batch
from mmbench.data.features import FEATURE_VERSION, MEL_BINS, normalise_image
from mmbench.data.shard_writer import file_sha256
from mmbench.data.source import fingerprint_of
from mmbench.data.store import Store
from mmbench.errors import FrozenSetError
from mmbench.pipeline import MODALITIES, SetDigest
from mmbench.registry import corruptions, file_digest
from mmbench.rng import EVALUATION

ARRAYS = "arrays"
LAYOUT = 1
"""Raised whenever the files of a set change their meaning."""

Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class Subject:
    """What sets are made of, beside their cases; every difference makes a set foreign."""

    layout: int
    protocol: int
    draws: str
    features: int
    dataset: str
    data: str
    """Digest of the store."""
    test_samples: str
    """Digest of the ids of the test split, in any order."""
    frames: int
    image_size: int
    assets: str


class ArrayFacts(Config):
    """One array; its file is named after the SHA-256 of its bytes."""

    sha256: Hex
    size_bytes: int = Field(ge=0)


class Arrays(Config):
    """The arrays of a set, in the order of its ids."""

    audio: ArrayFacts  # (N, T, 128) float32, as the backbone sees it
    image: ArrayFacts  # (N, 3, H, W) uint8, or float32 as the backbone sees it where eight bits cannot hold it
    label: ArrayFacts  # (N,) int64 or (N, C) float32
    available: ArrayFacts  # (N, 2) bool [audio, vision]
    affected: ArrayFacts  # (N, 2) bool [audio, vision]
    content: ArrayFacts  # (N, 32) uint8: what each sample adds to the set's digest


class Manifest(Config):
    """Everything about a set but its arrays."""

    facts: dict[str, Any]
    """The subject, the case, and how its corruptions were defined."""
    digest: Hex
    """SHA-256 of the set, as in the records of trials that corrupt on the fly."""
    ids: tuple[str, ...] = Field(min_length=1)
    arrays: Arrays
    written_by: dict[str, str]
    """Versions of the packages that made it; told, not compared."""
    checksum: str = ""

    def sealed(self) -> Manifest:
        """With the checksum over everything else."""
        rest = self.model_dump(mode="json", exclude={"checksum"})
        text = json.dumps(rest, sort_keys=True, allow_nan=False)
        return self.model_copy(update={"checksum": hashlib.sha256(text.encode()).hexdigest()})


def subject_of(name: str, store: Store, test_ids: Sequence[str], protocol: int) -> Subject:
    """The subject of the test split of a store, under the name that keys its draws."""
    return Subject(
        layout=LAYOUT,
        protocol=protocol,
        draws=EVALUATION,
        features=FEATURE_VERSION,
        dataset=name,
        data=store.digest,
        test_samples=fingerprint_of(sorted(test_ids)),
        frames=store.frames,
        image_size=store.image_size,
        assets=assets_digest(),
    )


def facts_of(subject: Subject, case: Case) -> dict[str, Any]:
    """What a set must have been made from to stand for this case, as JSON gives it back."""
    return {**asdict(subject), "case": asdict(case), "corruptions": _definitions(case)}


def _definitions(case: Case) -> dict[str, str]:
    """How each corruption of a case is defined: its variant, and the content of a file from outside the package."""
    names = {text.partition("@")[0] for text in (case.audio, case.vision) if text}
    names |= {case.missing.fill(modality) for modality in MODALITIES} if case.missing else set()
    known = corruptions()
    found = {}
    for name in sorted(names):
        entry = known.entry(name)
        foreign = "" if entry.origin.label == "mmbench" else file_digest(entry.origin.path)
        found[name] = f"{entry.card.variant} {foreign}".strip()
    return found


@dataclass(frozen=True)
class FrozenSets:
    """The sets of a folder, as far as they fit a subject."""

    folder: Path
    subject: Subject
    _checked: set[Case] = field(default_factory=set, compare=False, repr=False)

    def path(self, case: Case) -> Path:
        """The manifest of a case; its name tells sets of other subjects apart."""
        facts = json.dumps(facts_of(self.subject, case), sort_keys=True)
        return self.folder / f"{self._stem(case)}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}.json"

    def open(self, case: Case) -> FrozenSet:
        """The set of a case, every byte of it read and compared the first time.

        Raises FrozenSetError, naming the file, for one that is absent, damaged, incomplete or made from something else.
        """
        path = self.path(case)
        if not path.is_file():
            raise FrozenSetError(self._absent(case))
        manifest = read_manifest(path)
        difference = _difference(manifest.facts, facts_of(self.subject, case))
        if difference:
            raise FrozenSetError(f"{path} was made for another {difference}; {_way_out(path)}")
        if case not in self._checked:
            _check_files(path, manifest)
            self._checked.add(case)
        return FrozenSet(path, manifest, case, self.subject)

    def _stem(self, case: Case) -> str:
        words = (re.sub(r"[^A-Za-z0-9._@]+", "-", name)[:60] for name in (self.subject.dataset, case.name))
        return "-".join(words)

    def _absent(self, case: Case) -> str:
        """What is there instead: nothing, or a set of the same name that was made from something else."""
        write = "write it with mmbench data corrupt, or leave 'frozen' out to corrupt on the fly"
        if not self.folder.is_dir():
            return f"no folder of frozen sets {self.folder}; {write}"
        for path in sorted(self.folder.glob(f"{self._stem(case)}-*.json")):
            difference = _difference(read_manifest(path).facts, facts_of(self.subject, case))
            if difference:
                return f"{path} was made for another {difference}; {write}"
        return f"{self.folder} holds no frozen set of {self.subject.dataset} under '{case.name}'; {write}"


class FrozenSet:
    """One test set under one case; its arrays are mapped, not read, until a batch is taken."""

    def __init__(self, path: Path, manifest: Manifest, case: Case, subject: Subject) -> None:
        self.manifest, self._case, self._path = manifest, case, path
        self._arrays = {name: _map(place, path) for name, place in _places(path, manifest).items()}
        self._check_shapes(subject)
        self._rows = {id: row for row, id in enumerate(manifest.ids)}
        digest = SetDigest()
        for id, content in zip(manifest.ids, self._arrays["content"], strict=True):
            digest.adopt(id, content.tobytes())
        if digest.hexdigest() != manifest.digest:
            raise FrozenSetError(f"{path} gives another digest than its samples; {_way_out(path)}")

    def batches(self, ids: Sequence[str], size: int, digest: SetDigest | None = None) -> Iterator[Batch]:
        """These samples in this order, as corrupting gives them; the digest, if given, takes them in."""
        for start in range(0, len(ids), size):
            yield self._batch(tuple(ids[start : start + size]), digest)

    def _batch(self, ids: tuple[str, ...], digest: SetDigest | None) -> Batch:
        rows = np.array([self._rows[id] for id in ids], dtype=np.int64)
        if digest is not None:
            for id, content in zip(ids, self._arrays["content"][rows], strict=True):
                digest.adopt(id, content.tobytes())
        image = self._take("image", rows)
        return Batch(
            audio=self._take("audio", rows),
            image=normalise_image(image) if image.dtype == torch.uint8 else image,
            label=self._take("label", rows),
            ids=ids,
            case=(self._case.name,) * len(ids),
            available=self._take("available", rows),
            affected=self._take("affected", rows),
        )

    def _take(self, name: str, rows: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(np.asarray(self._arrays[name][rows]))

    def _check_shapes(self, subject: Subject) -> None:
        samples, side = len(self.manifest.ids), subject.image_size
        wanted = {
            "audio": (samples, subject.frames, MEL_BINS),
            "image": (samples, 3, side, side),
            "available": (samples, 2),
            "affected": (samples, 2),
            "content": (samples, 32),
        }
        for name, shape in wanted.items():
            if self._arrays[name].shape != shape:
                found = self._arrays[name].shape
                raise FrozenSetError(
                    f"{self._path}: its {name} has the shape {found}, not {shape}; {_way_out(self._path)}"
                )


def read_manifest(path: Path) -> Manifest:
    """Raises FrozenSetError naming the file if it is not what was written."""
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise FrozenSetError(f"cannot read {path}: {error.strerror}; {_way_out(path)}") from None
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "file"
        raise FrozenSetError(
            f"{path} is no frozen set ({where}: {error.errors()[0]['msg']}); {_way_out(path)}"
        ) from None
    try:
        whole = manifest.sealed().checksum == manifest.checksum
    except (ValueError, RecursionError):  # numbers that JSON cannot hold, or endless nesting
        whole = False
    if not whole:
        raise FrozenSetError(f"{path} has changed since it was written; {_way_out(path)}")
    return manifest


def _places(path: Path, manifest: Manifest) -> dict[str, Path]:
    """Where the arrays of a manifest lie."""
    return {name: path.parent / ARRAYS / f"{file.sha256}.npy" for name, file in dict(manifest.arrays).items()}


def _check_files(path: Path, manifest: Manifest) -> None:
    """Reads every byte of a set."""
    sizes = {name: file.size_bytes for name, file in dict(manifest.arrays).items()}
    for name, place in _places(path, manifest).items():
        try:
            size = place.stat().st_size
            whole = size == sizes[name] and file_sha256(place) == place.stem
        except OSError as error:
            raise FrozenSetError(_unreadable(place, path, error)) from None
        if not whole:
            cut = f"has {size} of {sizes[name]} bytes" if size != sizes[name] else "has changed since it was written"
            raise FrozenSetError(f"{place}, the {name} of {path}, {cut}; {_way_out(path)}")


def _map(place: Path, path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(place, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise FrozenSetError(_unreadable(place, path, error)) from None
    return array


def _unreadable(place: Path, path: Path, error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) else error
    return f"cannot read {place}, which {path} needs: {reason}; {_way_out(path)}"


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The first thing in which a set differs from what is wanted, with both values; empty if there is none."""
    for key, value in wanted.items():
        if found.get(key) != value:
            return f"{key.replace('_', ' ')} ({found.get(key)!s:.60} there, {value!s:.60} here)"
    return ""


def _way_out(path: Path) -> str:
    return f"copy it again, or delete {path.name} and write it anew with mmbench data corrupt"
