"""A user's own recordings and photographs, which take the place of what is generated: `<folder>/<kind>/*`.

The package ships none. The folder is the suite's `assets` or else the environment's MMBENCH_ASSETS.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mmbench.errors import DataError

VARIABLE = "MMBENCH_ASSETS"
SOUNDS = (".wav",)
PICTURES = (".jpg", ".jpeg", ".png", ".webp")
_folders: list[Path] = []  # what the suite named, at most one


@dataclass(frozen=True)
class Asset:
    """One file of the assets folder: its kind, its name and what is in it."""

    kind: str
    name: str
    sha256: str


def use_assets(folder: Path | None) -> None:
    """Take assets from a folder for the rest of the process; None returns to MMBENCH_ASSETS. Called at the door."""
    _folders[:] = [] if folder is None else [folder]


def assets_root() -> Path | None:
    """The assets folder, or None; raises DataError if one is named that does not exist or holds no kind."""
    named = _folders[0] if _folders else os.environ.get(VARIABLE)
    if not named:
        return None
    root = Path(named)
    if not root.is_dir():
        raise DataError(f"assets folder {root} does not exist; create it, or unset 'assets' and {VARIABLE}")
    if not any(path.is_dir() for path in root.iterdir()):
        raise DataError(
            f"assets folder {root} holds no folder of a kind, such as rain/ or frost/; put files into folders named "
            f"after what they replace, or unset 'assets' and {VARIABLE}"
        )
    return root


def asset_folder(kind: str) -> Path | None:
    """The folder of one kind of asset, such as `rain` or `frost`; None where nothing is to be replaced.

    Raises DataError where a folder differs from it in capitals or a plural alone: it would be passed over unnoticed.
    """
    root = assets_root()
    if root is None or (root / kind).is_dir():
        return None if root is None else root / kind
    for path in root.iterdir():
        if path.is_dir() and path.name.lower().rstrip("s") == kind.rstrip("s"):
            raise DataError(
                f"assets folder {root} holds {path.name}/, but the kind is called {kind}; rename the folder"
            )
    return None


def asset_files(kind: str, suffixes: Sequence[str]) -> tuple[Path, ...]:
    """Files of a kind by name; none if there is no such folder. One kind may hold sounds and photographs.

    Raises DataError for a folder that holds nothing usable: what is generated would take its place unnoticed.
    """
    folder = asset_folder(kind)
    if folder is None:
        return ()
    files = _visible(folder)
    beside = SOUNDS if set(SOUNDS).isdisjoint(suffixes) else PICTURES
    if not any(path.suffix.lower() in (*suffixes, *beside) for path in files):
        raise DataError(
            f"assets folder {folder} holds no file that is read; put files ({', '.join(suffixes)}) there or remove it"
        )
    return tuple(path for path in files if path.suffix.lower() in suffixes)


def assets() -> tuple[Asset, ...]:
    """Everything in the assets folder, by kind and name."""
    root = assets_root()
    if root is None:
        return ()
    kinds = sorted((path for path in root.iterdir() if path.is_dir()), key=lambda path: path.name)
    return tuple(Asset(kind.name, path.name, _sha256_of(path)) for kind in kinds for path in _visible(kind))


def assets_digest() -> str:
    """SHA-256 of kinds, names and contents, the same wherever the folder lies; empty without assets."""
    found = assets()
    if not found:
        return ""
    lines = (f"{asset.kind}/{asset.name}\0{asset.sha256}\n" for asset in found)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _visible(folder: Path) -> list[Path]:
    # By name, because the order of a listing differs between machines and a file is chosen by its place in it.
    found = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return sorted(found, key=lambda path: path.name)


def _sha256_of(path: Path) -> str:
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _sha256(path: Path, size_bytes: int, modified_ns: int) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"cannot read asset {path}: {error.strerror}; mend or remove it") from None
