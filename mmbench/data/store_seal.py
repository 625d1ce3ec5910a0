"""Whether a store's arrays are those that were written, told without reading them: by their sizes and times of change.

A trial must not train on bytes that changed, nor read hundreds of gigabytes to see that none did. So the store carries
a seal, renewed whenever every byte has been compared; where it does not fit, somebody touched the files.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

from mmbench.files import RecordError, write_atomic

SEAL = "seal.json"


def write_seal(folder: Path, names: Sequence[str], checksum: str) -> None:
    """Remember these files as they are now, for the index of this checksum; without effect in a read-only store."""
    with contextlib.suppress(RecordError):
        write_atomic(folder / SEAL, json.dumps(_content(folder, names, checksum)).encode("ascii"))


def seal_fits(folder: Path, names: Sequence[str], checksum: str) -> bool:
    """Whether the files have the sizes and times of change that they were sealed with."""
    try:
        return bool(json.loads((folder / SEAL).read_bytes()) == _content(folder, names, checksum))
    except (OSError, ValueError, RecursionError):
        return False


def _content(folder: Path, names: Sequence[str], checksum: str) -> dict[str, object]:
    stats = {name: (folder / name).stat() for name in names}
    return {"index": checksum, "files": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}}
