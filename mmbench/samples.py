"""What `show DATASET --out DIR` writes: samples to look at and to listen to."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from mmbench import registry
from mmbench.config import DataConfig
from mmbench.data.features import SAMPLE_RATE
from mmbench.data.source import Item, Source
from mmbench.errors import ConfigError

ROWS = 6
IMAGE_SIZE = 64


def write_dataset_samples(name: str, folder: Path) -> None:
    """Samples of a registered data set that needs no files; raises UnknownNameError or that data set's own error."""
    if name not in registry.datasets().names():
        raise ConfigError(f"'{name}' is not a data set: only those have samples to write; see mmbench ls datasets")
    write_samples(registry.datasets().load(name)(DataConfig(name=name)), folder)


def write_samples(source: Source, folder: Path, rows: int = ROWS, image_size: int = IMAGE_SIZE) -> None:
    """`rows` samples a class as .wav, and all pictures on one sheet `pictures.png`, a column per class."""
    columns: defaultdict[int, list[Item]] = defaultdict(list)
    for item in source.items:
        if len(columns[item.labels[0]]) < rows:
            columns[item.labels[0]].append(item)
    folder.mkdir(parents=True, exist_ok=True)
    sheet = np.zeros((rows * image_size, len(source.classes) * image_size, 3), dtype=np.uint8)
    for column, items in columns.items():
        for row, item in enumerate(items):
            pair = source.read(item, image_size)
            top, left = row * image_size, column * image_size
            sheet[top : top + image_size, left : left + image_size] = pair.image
            soundfile.write(folder / f"{item.id.replace('/', '-')}.wav", pair.wave, SAMPLE_RATE)
    Image.fromarray(sheet).save(folder / "pictures.png")
