"""Arrays in files of bounded size that are read as one: a data set may be larger than one file should be.

200,000 clips of 10 s with ten pictures take 470 GB: 64 of sound, 102 of its features, 301 of pictures; that is 70
shards of 4 GiB and less. Each file that is open takes a descriptor of the process, 210 here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmbench.files import why_not_plain

KINDS = ("wave", "fbank", "image")


def shard_names(number: int) -> tuple[str, ...]:
    """The files of one shard, a file a kind; those of the first have no number, as most stores have no other."""
    return tuple(f"{kind}.npy" if number == 0 else f"{kind}-{number:04d}.npy" for kind in KINDS)


def _mapped(path: Path) -> NDArray[Any]:
    reason = why_not_plain(path, links=True)
    if reason is not None:
        raise ValueError(f"{path.name}: {reason}")
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


class Shards:
    """Mapped arrays that follow one another along their first axis; nothing is read before it is asked for."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._arrays = [_mapped(path) for path in paths]
        if len({array.shape[1:] for array in self._arrays}) != 1:
            raise ValueError("its shards differ in shape")
        self.starts = np.cumsum([0, *(len(array) for array in self._arrays)], dtype=np.int64)
        """(K + 1,): the first row of each shard, and the end."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (int(self.starts[-1]), *self._arrays[0].shape[1:])

    def stretch(self, start: int, end: int) -> NDArray[Any]:
        """Rows that lie in one shard."""
        shard = int(self._shard_of(np.array(start)))
        first = int(self.starts[shard])
        part: NDArray[Any] = self._arrays[shard][start - first : end - first]
        return part

    def take(self, rows: NDArray[np.int64], number: NDArray[np.int64] | None = None) -> NDArray[Any]:
        """Rows in this order, copied; with `number`, of each row the entry with that number."""
        shards = self._shard_of(rows)  # (B,)
        shape = self.shape[1:] if number is None else self.shape[2:]
        taken = np.empty((len(rows), *shape), dtype=self._arrays[0].dtype)
        for shard in np.unique(shards).tolist():
            here = shards == shard
            places = rows[here] - self.starts[shard]
            taken[here] = self._arrays[shard][places if number is None else (places, number[here])]
        return taken

    def _shard_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self.starts[1:-1], rows, side="right")
