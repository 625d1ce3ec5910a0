"""Writing a store: files are read by several threads, turned to features and appended in order."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmbench.data.features import fbank
from mmbench.data.shard_writer import ShardWriter
from mmbench.data.shards import KINDS, shard_names
from mmbench.data.source import BrokenFileError, Item, Pair, Skipped, Source, relative_name
from mmbench.errors import DataError

CHUNK = 64  # samples read ahead and turned to features at once
Progress = Callable[[int, int], None]  # samples done, samples in all


@dataclass(frozen=True)
class BuildOrder:
    """What to write."""

    source: Source
    frames: int
    image_size: int
    on_error: str
    progress: Progress | None = None


@dataclass(frozen=True)
class Contents:
    """What was written, sample by sample."""

    ids: tuple[str, ...]
    labels: tuple[tuple[int, ...], ...]
    groups: tuple[str, ...]
    wave_lengths: tuple[int, ...]
    frame_counts: tuple[int, ...]
    silent: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    digest: str
    sha256: tuple[str, ...]  # of the files, in their order
    splits: tuple[str, ...] = ()  # empty where the data set tells none

    @property
    def files(self) -> tuple[str, ...]:
        """Shard by shard; every sample lies in one."""
        return tuple(name for number in range(len(self.sha256) // len(KINDS)) for name in shard_names(number))


@dataclass(frozen=True)
class _Sample:
    item: Item
    wave: NDArray[np.int16]  # (S,)
    image: NDArray[np.uint8]  # (3, H, W), or (F, 3, H, W) of a film

    @property
    def content(self) -> bytes:
        return hashlib.sha256(self.wave.tobytes() + self.image.tobytes()).digest()


@dataclass
class _Ledger:
    """What has been written so far, and the digest over it."""

    samples: list[tuple[Item, int, int]] = field(default_factory=list)  # item, wave length, frames
    silent: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    seen: dict[bytes, Item] = field(default_factory=dict)
    digest: Any = field(default_factory=hashlib.sha256)

    def contradiction(self, sample: _Sample) -> Item | None:
        """An earlier sample with the very same sound and picture but other labels."""
        first = self.seen.setdefault(sample.content, sample.item)
        return first if first.labels != sample.item.labels else None

    def add(self, sample: _Sample, frames: int) -> None:
        item = sample.item
        self.samples.append((item, len(sample.wave), frames))
        if not sample.wave.any():
            self.silent.append(item.id)
        self.digest.update(f"{item.id}\x1f{item.labels}\x1f{len(sample.wave)}\x1f".encode())
        self.digest.update(sample.content)
        if item.split is not None:
            self.digest.update(f"split {item.split}\x1f".encode())

    def close(self, source: Source, sha256: tuple[str, ...]) -> Contents:
        for part in (*source.classes, str(source.multi_label), *(f"skipped {entry.id}" for entry in self.skipped)):
            self.digest.update(part.encode("utf-8", "surrogateescape") + b"\x1f")
        return Contents(
            ids=tuple(item.id for item, _, _ in self.samples),
            labels=tuple(item.labels for item, _, _ in self.samples),
            groups=tuple(item.group for item, _, _ in self.samples),
            wave_lengths=tuple(length for _, length, _ in self.samples),
            frame_counts=tuple(frames for _, _, frames in self.samples),
            silent=tuple(self.silent),
            skipped=tuple(self.skipped),
            digest=str(self.digest.hexdigest()),
            sha256=sha256,
            splits=tuple(item.split for item, _, _ in self.samples if item.split is not None),
        )


def write_contents(order: BuildOrder, folder: Path) -> Contents:
    """Reads every sample of the source and writes the shards; an unusable sample raises or is listed.

    Memory follows the chunk, not the data set: 0.45 GB for clips of 10 s with ten pictures of 224x224, measured on 512,
    and less than 1 kB of names and labels a clip: 0.18 GB measured on 200,000 generated ones (tests/many_clips.py).
    """
    source = order.source
    ledger = _Ledger(skipped=list(source.problems))
    done = 0
    with ShardWriter(folder) as shards:
        for chunk in _read_in_order(order):
            kept = [sample for sample in chunk if isinstance(sample, _Sample) and _fits(sample, order, ledger)]
            ledger.skipped += [sample for sample in chunk if isinstance(sample, Skipped)]
            mel, counts = _features(kept, order.frames)
            for row, sample in enumerate(kept):
                shards.append(sample.wave, mel[row, : counts[row]], sample.image)
                ledger.add(sample, counts[row])
            done += len(chunk)
            if order.progress is not None:
                order.progress(done, len(source.items))
    if not ledger.samples:
        raise DataError(f"data set '{source.name}' holds no usable sample ({len(ledger.skipped)} left out)")
    return ledger.close(source, tuple(shards.sha256))


def _read_in_order(order: BuildOrder) -> Iterator[list[_Sample | Skipped]]:
    """Chunks in the order of the listing; the next one is being read while this one is worked on."""
    items = order.source.items
    chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1), thread_name_prefix="mmbench-read") as pool:
        try:
            ahead = [pool.submit(_read_one, order, item) for item in chunks[0]] if chunks else []
            for following in [*chunks[1:], ()]:
                now, ahead = ahead, [pool.submit(_read_one, order, item) for item in following]
                yield [future.result() for future in now]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _read_one(order: BuildOrder, item: Item) -> _Sample | Skipped:
    try:
        pair: Pair = order.source.read(item, order.image_size)
    except BrokenFileError as error:
        if order.on_error == "raise":
            raise
        return Skipped(item.id, relative_name(error.path, order.source.root), error.reason)
    wave = np.clip(np.rint(pair.wave * 32768.0), -32768, 32767).astype(np.int16)
    return _Sample(item, wave, np.ascontiguousarray(np.moveaxis(pair.image, -1, -3)))


def _fits(sample: _Sample, order: BuildOrder, ledger: _Ledger) -> bool:
    """False, and noted, for a sample that contradicts an earlier one."""
    first = ledger.contradiction(sample)
    if first is None:
        return True
    reason = f"same sound and picture as {first.id}, but another label"
    path = sample.item.audio or Path(sample.item.id)
    if order.on_error == "raise":
        raise BrokenFileError(path, reason)
    ledger.skipped.append(Skipped(sample.item.id, relative_name(path, order.source.root), reason))
    return False


def _features(samples: Sequence[_Sample], frames: int) -> tuple[NDArray[np.float32], list[int]]:
    """Log-mel (B, T, 128) of the very int16 samples that are stored, and the valid frames of each."""
    lengths = torch.tensor([len(sample.wave) for sample in samples], dtype=torch.int64)
    wave = np.zeros((len(samples), int(lengths.max()) if len(samples) else 0), dtype=np.float32)  # (B, S)
    for row, sample in enumerate(samples):
        wave[row, : len(sample.wave)] = sample.wave
    mel, valid = fbank(torch.from_numpy(wave).div_(32768.0), lengths, frames)
    return mel.numpy(), valid.tolist()


@contextlib.contextmanager
def scratch_folder(folder: Path, clean_first: bool) -> Iterator[Path]:
    """A fresh folder beside the final one, gone when the block ends; remains of killed builders are removed first."""
    prefix = f".{folder.name}.part-"
    if clean_first:
        for remains in folder.parent.glob(f"{prefix}*"):
            shutil.rmtree(remains, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def replace_folder(scratch: Path, folder: Path) -> None:
    """Gives the finished folder its name; where another builder was first, theirs stays."""
    scratch.chmod(0o755)  # temporary folders are private, a cache may be shared
    try:
        scratch.replace(folder)
    except OSError:
        if not (folder / "index.json").is_file():
            raise


def write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
