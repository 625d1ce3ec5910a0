"""Reading a user's recordings and pictures before any trial begins, so that a broken one does not cost a training."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mmbench.assets import PICTURES, SOUNDS, assets, assets_root
from mmbench.audio_mix import read_recording
from mmbench.errors import DataError
from mmbench.picture_file import read_picture


def check_assets() -> None:
    """Read every sound and picture of the assets folder; raises DataError naming the first that cannot be used."""
    root = assets_root()
    if root is not None:
        for asset in assets():
            _check(root / asset.kind / asset.name)


def _check(path: Path) -> None:
    if path.suffix.lower() in SOUNDS:
        read_recording(path)
    elif path.suffix.lower() in PICTURES:
        try:
            read_picture(path, np.asarray)
        except ValueError as error:
            raise DataError(f"cannot read picture {path}: {error}; mend or remove it") from None
