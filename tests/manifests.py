"""CAV-MAE manifests on disk whose pictures tell which frame they are."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image
from torch import Tensor

from mmbench.config import DataConfig

LABELS = 'index,mid,display_name\n0,/m/aaa,"Rain on a roof"\n1,/m/bbb,"Door bell, old"\n2,/m/ccc,Dog\n'


def entry(folder: Path, name: str, labels: str, frames: Iterable[int] = (5,)) -> dict[str, str]:
    """Writes one clip whose frame n is a plain picture of value 10 n + 1."""
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(sum(map(ord, name)))
    soundfile.write(folder / "audio" / f"{name}.wav", rng.uniform(-0.1, 0.1, 8000), 16000)
    for number in frames:
        (folder / "frames" / f"frame_{number}").mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(np.full((24, 32, 3), 10 * number + 1, np.uint8))
        picture.save(folder / "frames" / f"frame_{number}" / f"{name}.jpg")
    return {"video_id": name, "wav": f"audio/{name}.wav", "video_path": "frames", "labels": labels}


def numbers_of(image: Tensor) -> list[int]:
    """Which frame each picture of (B, 3, H, W) uint8 is."""
    return [round((value - 1) / 10) for value in image.float().mean((1, 2, 3)).tolist()]


def config_of(folder: Path, entries: list[Any], **more: Any) -> DataConfig:
    (folder / "clips.json").write_text(json.dumps({"data": entries}))
    (folder / "labels.csv").write_text(LABELS)
    return DataConfig(name="cavmae-manifest", manifest=folder / "clips.json", label_csv=folder / "labels.csv", **more)
