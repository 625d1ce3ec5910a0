"""The store: a data set read once, checksummed and memory-mapped, so that epochs touch no source file."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mmbench.data.batch import Film, RawBatch
from mmbench.data.features import FEATURE_VERSION, MEL_BINS
from mmbench.data.shard_writer import file_sha256
from mmbench.data.shards import KINDS, Shards
from mmbench.data.source import Item, Skipped, Source, fingerprint_of
from mmbench.data.store_index import INDEX, INDEX_BYTES, SCHEMA, StoreIndex, index_from
from mmbench.data.store_seal import seal_fits, write_seal
from mmbench.data.store_writer import (
    BuildOrder,
    Progress,
    replace_folder,
    scratch_folder,
    write_contents,
    write_durably,
)
from mmbench.errors import DataError, StoreError
from mmbench.files import read_plain
from mmbench.strict_json import read_json

try:
    import fcntl
except ImportError:  # no advisory locks on this system; the renaming alone keeps builders apart
    fcntl = None  # type: ignore[assignment]

SHOWN = 5  # unusable samples told one by one in an error


class Store:
    """Read access by sample id; cheap to open, and a pickled copy opens the same folder again."""

    def __init__(self, folder: Path, index: StoreIndex) -> None:
        self.folder = folder
        self.index = index
        held = index.contents
        kinds = (held.files[kind :: len(KINDS)] for kind in range(len(KINDS)))
        self._wave, self._fbank, self._image = (Shards([folder / name for name in names]) for names in kinds)
        self._wave_starts = np.concatenate([[0], np.cumsum(held.wave_lengths, dtype=np.int64)])
        self._frame_starts = np.concatenate([[0], np.cumsum(held.frame_counts, dtype=np.int64)])
        self._check_sizes()

    def _check_sizes(self) -> None:
        held, firsts = self.index.contents, self._image.starts
        parts = (held.ids, held.labels, held.groups, held.wave_lengths, held.frame_counts, held.splits or held.ids)
        counts = {len(part) for part in parts}
        rows = (self._wave.shape[1:], self._fbank.shape[1:], len(self._image.shape) in (4, 5))
        if (counts, rows) != ({int(firsts[-1])}, ((), (MEL_BINS,), True)) or not (
            np.array_equal(self._wave.starts, self._wave_starts[firsts])
            and np.array_equal(self._fbank.starts, self._frame_starts[firsts])
        ):
            raise ValueError("its arrays do not have the sizes that its index tells")

    def __reduce__(self) -> tuple[Callable[[Path], Store], tuple[Path]]:
        return open_store, (self.folder,)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def name(self) -> str:
        return self.index.name

    @property
    def ids(self) -> tuple[str, ...]:
        return self.index.contents.ids

    @property
    def labels(self) -> tuple[tuple[int, ...], ...]:
        return self.index.contents.labels

    @property
    def groups(self) -> tuple[str, ...]:
        return self.index.contents.groups

    @property
    def classes(self) -> tuple[str, ...]:
        return self.index.classes

    @property
    def multi_label(self) -> bool:
        return self.index.multi_label

    @property
    def frames(self) -> int:
        return self.index.frames

    @property
    def image_size(self) -> int:
        return self.index.image_size

    @property
    def pictures(self) -> int:
        """Pictures a sample."""
        return 1 if len(self._image.shape) == 4 else self._image.shape[1]

    @property
    def digest(self) -> str:
        """SHA-256 over names, labels, sounds, pictures and what was left out; the same on every machine."""
        return self.index.contents.digest

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        return self.index.contents.skipped

    @property
    def silent(self) -> tuple[str, ...]:
        """Samples whose sound is all zeros: valid, but worth a look."""
        return self.index.contents.silent

    @cached_property
    def items(self) -> tuple[Item, ...]:
        """What the split needs to know of each sample that was kept."""
        splits = self.index.contents.splits or (None,) * len(self)
        parts = zip(self.ids, self.labels, self.groups, splits, strict=True)
        return tuple(Item(id, labels, group, split=split) for id, labels, group, split in parts)

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {id: row for row, id in enumerate(self.ids)}

    def batch(self, ids: Sequence[str]) -> RawBatch:
        """These samples in this order, copied out of the map. Raises DataError for an unknown id."""
        try:
            rows = np.array([self._rows[id] for id in ids], dtype=np.int64)
        except KeyError as error:
            raise DataError(f"the store of '{self.name}' holds no sample {error} among its {len(self)}") from error
        lengths = self._wave_starts[rows + 1] - self._wave_starts[rows]
        counts = self._frame_starts[rows + 1] - self._frame_starts[rows]
        wave = np.zeros((len(rows), int(lengths.max(initial=0))), dtype=np.int16)  # (B, S)
        fbank = np.zeros((len(rows), self.frames, MEL_BINS), dtype=np.float32)  # (B, T, 128)
        for place, row in enumerate(rows.tolist()):
            wave[place, : lengths[place]] = self._wave.stretch(*self._wave_starts[row : row + 2].tolist())
            fbank[place, : counts[place]] = self._fbank.stretch(*self._frame_starts[row : row + 2].tolist())
        film = Film(self._image, torch.from_numpy(rows)) if self.pictures > 1 else None
        return RawBatch(
            wave=torch.from_numpy(wave).float().div_(32768.0),
            wave_lengths=torch.from_numpy(lengths),
            image=torch.from_numpy(self._image.take(rows)) if film is None else film.at(film.middle),
            fbank=torch.from_numpy(fbank),
            frames=torch.from_numpy(counts),
            label=self._label(rows),
            ids=tuple(ids),
            film=film,
        )

    def _label(self, rows: NDArray[np.int64]) -> torch.Tensor:
        labels = [self.labels[row] for row in rows.tolist()]
        if not self.multi_label:
            return torch.tensor([first for first, *_ in labels], dtype=torch.int64)
        hot = torch.zeros(len(labels), len(self.classes))  # (B, C)
        for place, positives in enumerate(labels):
            hot[place, list(positives)] = 1.0
        return hot

    def verify(self) -> None:
        """Reads every byte again; raises StoreError naming the file that is not what was written."""
        held = self.index.contents
        for name, wanted in zip(held.files, held.sha256, strict=True):
            if file_sha256(self.folder / name) != wanted:
                raise StoreError(f"{self.folder / name} has changed since it was written; delete its folder to rebuild")
        write_seal(self.folder, held.files, self.index.checksum())


def build_store(
    source: Source,
    frames: int,
    image_size: int,
    cache_dir: Path,
    on_error: str = "raise",
    progress: Progress | None = None,
) -> Store:
    """Reads a source once; a second call with the same source and settings opens what the first one left.

    `on_error`: 'raise' stops at the first unusable sample, 'skip' leaves such samples out and lists them.
    """
    settings = (str(SCHEMA), str(FEATURE_VERSION), str(frames), str(image_size))
    folder = cache_dir / f"{source.name}-{fingerprint_of((source.fingerprint(), *settings))[:16]}"
    refuse = partial(_refuse, source.name, on_error)
    refuse(source.problems)
    order = BuildOrder(source, frames, image_size, on_error, progress)
    try:
        with _alone(folder) as alone:
            if not (folder / INDEX).is_file():
                _build(order, folder, clean_first=alone)
    except OSError as error:
        way_out = "free space or name another folder in MMBENCH_CACHE"
        raise DataError(f"cannot write the store {folder}: {error.strerror or error}; {way_out}") from error
    store = open_store(folder)
    refuse(store.skipped)
    return store


def open_store(folder: Path) -> Store:
    """Opens a finished store, every byte compared if its files were touched since that was last done.

    Raises StoreError for one that is damaged or of another version.
    """
    try:
        fields = read_json(read_plain(folder / INDEX, INDEX_BYTES).decode("ascii"))
        checksum = fields.pop("checksum")
        if fields["schema"] != SCHEMA:
            raise ValueError(f"schema {fields['schema']}, this version reads {SCHEMA}")
        index = index_from(fields)
        if index.checksum() != checksum:
            raise ValueError("its index has changed since it was written")
        store = Store(folder, index)
        if not seal_fits(folder, index.contents.files, checksum):
            store.verify()
        return store
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise StoreError(f"{folder} is not a whole store ({error}); delete it to rebuild") from error


def _build(order: BuildOrder, folder: Path, clean_first: bool) -> None:
    """Writes aside and renames; whatever ends this early leaves no half store under the final name."""
    source = order.source
    with scratch_folder(folder, clean_first) as scratch:
        index = StoreIndex(
            schema=SCHEMA,
            name=source.name,
            classes=source.classes,
            multi_label=source.multi_label,
            static_images=source.static_images,
            frames=order.frames,
            image_size=order.image_size,
            contents=write_contents(order, scratch),
        )
        text = json.dumps({**index.fields(), "checksum": index.checksum()}, allow_nan=False)
        write_durably(scratch / INDEX, text.encode("ascii"))
        write_seal(scratch, index.contents.files, index.checksum())
        replace_folder(scratch, folder)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Holds other builders of the same store back; yields False where the system cannot promise it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield False
        return
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the system lets go of it even when this process is killed
            locked = True
        except OSError:  # some network file systems
            locked = False
        yield locked


def _refuse(name: str, on_error: str, skipped: Sequence[Skipped]) -> None:
    if on_error == "raise" and skipped:
        shown = "; ".join(f"{entry.path}: {entry.reason}" for entry in skipped[:SHOWN])
        more = f"; and {len(skipped) - SHOWN} more" if len(skipped) > SHOWN else ""
        raise DataError(
            f"{len(skipped)} samples of '{name}' cannot be used: {shown}{more}. "
            "Mend or remove them, or set on_error: skip to leave them out"
        )
