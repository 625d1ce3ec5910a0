"""Makes corrupted test sets once and writes them for other machines, or checks those that are written.

Sets are always made on the CPU. A case is written aside; its manifest comes last, so what has one is whole, and the
same command again goes on with the cases that have none.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmbench.cases import Case, parse_reference
from mmbench.claims import claimed
from mmbench.data.batch import Batch
from mmbench.data.features import IMAGE_MEAN, IMAGE_STD, MEL_BINS, normalise_image
from mmbench.data.store_writer import scratch_folder
from mmbench.environment import package_version
from mmbench.errors import ConfigError, DataError
from mmbench.feed import EvalFeed, TrialData
from mmbench.files import write_atomic
from mmbench.frozen import ARRAYS, ArrayFacts, Arrays, FrozenSets, Manifest, facts_of
from mmbench.pipeline import SetDigest
from mmbench.prepare import frozen_sets

CHUNK = 64  # samples corrupted at once
PACKAGES = ("mmbench", "torch", "torchaudio", "numpy", "scipy")
DTYPES: Mapping[torch.dtype, str] = {
    torch.float32: "<f4",
    torch.uint8: "|u1",
    torch.int64: "<i8",
    torch.bool: "|b1",
}  # little-endian on every machine
FLAGS_BYTES = 2 + 2 + 32  # of a sample: available, affected, content
HEADER_BYTES = 128  # of a .npy file
SHOWN = 3  # differing samples named in an error


def write_sets(data: TrialData, cases: Sequence[Case], out: Path | None, dry_run: bool = False) -> None:
    """Make every set that a folder does not hold, telling size and digest; write them unless it is a dry run.

    Raises DataError naming the folder where it cannot be written, or a set there that is damaged.
    """
    sets = frozen_sets(data, out or Path())
    made = {case: out is not None and sets.path(case).is_file() for case in cases}
    most = sum(_most_bytes(data, case) for case, there in made.items() if not there)
    print(
        f"{data.name}: {len(data.splits.test)} test samples, {len(cases)} cases, {sum(made.values())} of them written"
    )
    print(f"at most {_size(most)} to write{'' if out is None else f' in {out}, {_size(_free_bytes(out))} free'}")
    if out is None or dry_run:
        tally = _Tally()
        for case, there in made.items():
            if not there:
                _make(sets, data, case, None, tally)
        print(f"{_size(tally.new_bytes)} in all; nothing was written")
        return
    try:
        _write(sets, data, made)
    except OSError as error:
        raise DataError(
            f"cannot write frozen sets to {out}: {error.strerror}; free some space or choose another folder; the cases "
            "that are finished stay, and the same command goes on with the others"
        ) from None


def _write(sets: FrozenSets, data: TrialData, made: Mapping[Case, bool]) -> None:
    out = sets.folder
    (out / ARRAYS).mkdir(parents=True, exist_ok=True)
    tally = _Tally({path.stem for path in (out / ARRAYS).glob("*.npy")})
    with claimed(out) as mine:
        if not mine:
            raise ConfigError(f"another process is writing to {out}; wait for it, or choose another folder")
        for case, there in made.items():
            if there:
                print(f"{case.name}: there, digest {sets.open(case).manifest.digest}", flush=True)
                continue
            with scratch_folder(out / "set", clean_first=True) as scratch:
                manifest = _make(sets, data, case, scratch, tally)
                for file in dict(manifest.arrays).values():
                    name = f"{file.sha256}.npy"
                    if (scratch / name).exists():  # labels or masks of one set may be the same bytes
                        (scratch / name).replace(out / ARRAYS / name)
                write_atomic(sets.path(case), (manifest.model_dump_json(indent=1) + "\n").encode())
    print(f"{_size(tally.new_bytes)} written to {out}")


@dataclass
class _Tally:
    """What a folder holds, and what came to it."""

    known: set[str] = field(default_factory=set)
    new_bytes: int = 0

    def add(self, files: Sequence[ArrayFacts]) -> int:
        """Bytes of these files that were not there."""
        fresh = {file.sha256: file.size_bytes for file in files if file.sha256 not in self.known}
        self.known |= set(fresh)
        self.new_bytes += sum(fresh.values())
        return sum(fresh.values())


def _make(sets: FrozenSets, data: TrialData, case: Case, scratch: Path | None, tally: _Tally) -> Manifest:
    """Corrupt a test set, writing its arrays to `scratch` if there is one; tells its size and digest."""
    digest, ids = SetDigest(), data.splits.test
    with ExitStack() as stack:
        sinks: dict[str, _Sink] = {}
        for rows in _pieces(data, case, digest):
            for name, tensor in rows.items():
                if name not in sinks:
                    sinks[name] = stack.enter_context(_Sink(scratch, name, tensor, len(ids)))
                sinks[name].append(tensor)
    arrays = Arrays(**{name: sink.file() for name, sink in sinks.items()})
    files = tuple(dict(arrays).values())
    size, fresh = sum(file.size_bytes for file in files), tally.add(files)
    print(f"{case.name}: {_size(size)}, {_size(fresh)} of it new, digest {digest.hexdigest()}", flush=True)
    if scratch is not None:
        for name, sink in sinks.items():
            (scratch / name).replace(scratch / f"{sink.file().sha256}.npy")
    facts = facts_of(sets.subject, case)
    versions = {name: found for name in PACKAGES if (found := package_version(name))}
    return Manifest(facts=facts, digest=digest.hexdigest(), ids=ids, arrays=arrays, written_by=versions).sealed()


def _pieces(data: TrialData, case: Case, digest: SetDigest) -> Iterator[dict[str, Tensor]]:
    """The rows of each array, batch by batch."""
    eight_bits = _fits_eight_bits(case)
    for batch in EvalFeed(data, "test", case, CHUNK).batches(digest):
        assert batch.label is not None and batch.available is not None and batch.affected is not None
        contents = b"".join(digest.contents(batch.ids))
        yield {
            "audio": batch.audio,
            "image": _eight_bits(batch) if eight_bits else batch.image,
            "label": batch.label,
            "available": batch.available,
            "affected": batch.affected,
            "content": torch.from_numpy(np.frombuffer(contents, np.uint8).reshape(len(batch), -1).copy()),
        }


def _fits_eight_bits(case: Case) -> bool:
    """Whether nothing acts on the picture after it was a picture of eight bits."""
    late = case.vision is not None and parse_reference(case.vision).card.stage == "normalised"
    return not late and (case.missing is None or case.missing.vision_share() == 0)


def _eight_bits(batch: Batch) -> Tensor:
    """(B, 3, H, W) uint8 that normalises to the batch's pictures."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGE_MEAN, IMAGE_STD))
    image = (batch.image * std + mean).mul_(255).round_().to(torch.uint8)
    assert torch.equal(normalise_image(image), batch.image)  # the bits are the point of a frozen set
    return image


class _Sink:
    """A .npy file that is hashed while it grows, and written if there is a folder for it."""

    def __init__(self, folder: Path | None, name: str, rows: Tensor, count: int) -> None:
        self._dtype = DTYPES[rows.dtype]
        self._hash, self._bytes = hashlib.sha256(), 0
        self._file = None if folder is None else (folder / name).open("wb")
        header = io.BytesIO()
        shape: Any = {"descr": self._dtype, "fortran_order": False, "shape": (count, *rows.shape[1:])}
        np.lib.format.write_array_header_1_0(header, shape)
        self._put(header.getvalue())

    def __enter__(self) -> _Sink:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if self._file is not None:
            with self._file as file:
                if kind is None:
                    file.flush()
                    os.fsync(file.fileno())

    def append(self, rows: Tensor) -> None:
        self._put(np.ascontiguousarray(rows.numpy(), dtype=self._dtype).tobytes())

    def file(self) -> ArrayFacts:
        return ArrayFacts(sha256=self._hash.hexdigest(), size_bytes=self._bytes)

    def _put(self, content: bytes) -> None:
        self._hash.update(content)
        self._bytes += len(content)
        if self._file is not None:
            self._file.write(content)


def check_sets(data: TrialData, cases: Sequence[Case], folder: Path) -> None:
    """Read every byte of the sets, and corrupt again to compare; raises DataError naming a set that differs."""
    sets = frozen_sets(data, folder)
    for case in cases:
        frozen, path = sets.open(case), sets.path(case)
        here, there, largest = SetDigest(), SetDigest(), 0.0
        ids = data.splits.test
        kept = frozen.batches(ids, CHUNK, there)
        for made, written in zip(EvalFeed(data, "test", case, CHUNK).batches(here), kept, strict=True):
            pairs = ((made.audio, written.audio), (made.image, written.image))
            largest = max(largest, *(float((one - other).abs().max()) for one, other in pairs))
        differing = [id for id, a, b in zip(ids, here.contents(ids), there.contents(ids), strict=True) if a != b]
        if differing:
            raise DataError(
                f"{path}: corrupting gives other contents for {len(differing)} of {len(ids)} samples, such as "
                f"{', '.join(differing[:SHOWN])}; compare the versions in it with yours: {_versions(frozen.manifest)}"
            )
        bits = "bit for bit" if largest == 0 else f"features within {largest:.1e}"
        print(f"{case.name}: checksums agree, the same when corrupted here ({bits}), digest {frozen.manifest.digest}")


def _versions(manifest: Manifest) -> str:
    return ", ".join(f"{name} {version}" for name, version in manifest.written_by.items())


def _most_bytes(data: TrialData, case: Case) -> int:
    store = data.store
    pixel = 1 if _fits_eight_bits(case) else 4
    label = 4 * len(store.classes) if store.multi_label else 8
    sample = 4 * store.frames * MEL_BINS + pixel * 3 * store.image_size**2 + label + FLAGS_BYTES
    return len(data.splits.test) * sample + len(Arrays.model_fields) * HEADER_BYTES


def _free_bytes(folder: Path) -> int:
    place = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    return shutil.disk_usage(place).free


def _size(count: float) -> str:
    """Bytes in the largest unit that keeps a digit before the point."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.4g} GB"
