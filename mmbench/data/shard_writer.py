"""Writing the shards of a store: arrays that grow sample by sample, in files of bounded size."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmbench.data.features import MEL_BINS
from mmbench.data.shards import KINDS, shard_names
from mmbench.errors import DataError

SHARD_BYTES = 4 * 2**30  # of one file; a sample with ten pictures takes 1.5 MB, so that 2,800 fill a shard
HEADER_BYTES = 128  # room for the array header, which is known only at the end


class ArrayFile:
    """A .npy file that grows by whole rows and gets its header when it is closed; a row of another shape is refused."""

    def __init__(self, path: Path, dtype: str, row_shape: tuple[int, ...]) -> None:
        self.path = path
        self._dtype = np.dtype(dtype)
        self._row_shape = row_shape
        self._rows = 0
        self._file = path.open("wb")
        self._file.write(bytes(HEADER_BYTES))

    def __enter__(self) -> ArrayFile:
        return self

    def bytes_with(self, rows: NDArray[Any]) -> int:
        """The size that the file would have with these rows."""
        return self._file.tell() + rows.size * self._dtype.itemsize

    def append(self, rows: NDArray[Any]) -> None:
        if rows.shape[1:] != self._row_shape:
            shapes = f"{rows.shape[1:]}, the first one {self._row_shape}"
            raise DataError(f"a sample for {self.path.name} has the shape {shapes}; all must agree")
        self._file.write(np.ascontiguousarray(rows, dtype=self._dtype).tobytes())
        self._rows += len(rows)

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        with self._file as file:
            if kind is None:
                file.seek(0)
                file.write(self._header())
                file.flush()
                os.fsync(file.fileno())

    def _header(self) -> bytes:
        text = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._rows, *self._row_shape)}
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(buffer, text)
        assert buffer.tell() == HEADER_BYTES  # numpy pads every header of ours to this size
        return buffer.getvalue()


class ShardWriter:
    """Samples go into shards whose files stay within SHARD_BYTES, unless one sample alone exceeds that."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._image_shape: tuple[int, ...] | None = None  # that of the first sample
        self._files: tuple[ArrayFile, ...] = ()
        self._closing = contextlib.ExitStack()
        self.sha256: list[str] = []
        """Of the files that are finished, shard by shard."""

    def __enter__(self) -> ShardWriter:
        return self

    def append(self, wave: NDArray[np.int16], mel: NDArray[np.float32], image: NDArray[np.uint8]) -> None:
        """One sample: (S,), (T, 128), and (3, H, W), or (F, 3, H, W) of a film."""
        parts: tuple[NDArray[Any], ...] = (wave, mel, image[None])
        if self._image_shape is None:
            self._image_shape = image.shape
        fits = (file.bytes_with(part) <= SHARD_BYTES for file, part in zip(self._files, parts, strict=True))
        if not self._files or not all(fits):
            self._finish()
            self._begin(self._image_shape)
        for file, part in zip(self._files, parts, strict=True):
            file.append(part)

    def _begin(self, image_shape: tuple[int, ...]) -> None:
        names = shard_names(len(self.sha256) // len(KINDS))
        rows: list[tuple[str, tuple[int, ...]]] = [("<i2", ()), ("<f4", (MEL_BINS,)), ("|u1", image_shape)]
        self._files = tuple(
            self._closing.enter_context(ArrayFile(self._folder / name, *row))
            for name, row in zip(names, rows, strict=True)
        )

    def _finish(self) -> None:
        self._closing.close()
        self.sha256 += [file_sha256(file.path) for file in self._files]  # now: the system still holds their bytes
        self._files = ()

    def __exit__(self, *details: Any) -> None:
        if details[0] is None:
            self._finish()
        self._closing.__exit__(*details)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(file)


def _sha256(file: io.BufferedReader) -> str:
    """The same for Python 3.10."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
