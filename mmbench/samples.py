"""What `show NAME --out DIR` writes: samples to look at and to listen to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from mmbench import registry
from mmbench.config import DataConfig
from mmbench.contact_sheet import Look, severities_of, write_sheets
from mmbench.data.features import SAMPLE_RATE
from mmbench.data.source import Item, Source
from mmbench.errors import ConfigError
from mmbench.files import make_folder

ROWS = 6
IMAGE_SIZE = 64


def write_entry_samples(name: str, folder: Path, dataset: str, severities: str | None, overview: bool) -> Iterator[str]:
    """Samples of a data set that needs no files, or sheets of corruptions; yields what was written, line by line.

    Raises ConfigError for what has neither, or the data set's own error.
    """
    if name in registry.datasets().names():
        write_samples(registry.datasets().load(name)(DataConfig(name=name)), folder)
    elif "/" in name:
        look = Look(dataset, severities_of(severities) if severities else None, overview)
        yield from write_sheets(name, folder, look)
    else:
        raise ConfigError(f"'{name}' is neither a data set nor a corruption: only those have samples to write")


def write_samples(source: Source, folder: Path, rows: int = ROWS, image_size: int = IMAGE_SIZE) -> None:
    """`rows` samples a class as .wav, and all pictures on one sheet `pictures.png`, a column per class."""
    columns: defaultdict[int, list[Item]] = defaultdict(list)
    for item in source.items:
        if len(columns[item.labels[0]]) < rows:
            columns[item.labels[0]].append(item)
    make_folder(folder)
    sheet = np.zeros((rows * image_size, len(source.classes) * image_size, 3), dtype=np.uint8)
    for column, items in columns.items():
        for row, item in enumerate(items):
            pair = source.read(item, image_size)
            top, left = row * image_size, column * image_size
            film = pair.image.reshape(-1, image_size, image_size, 3)  # one picture, or all of a film
            sheet[top : top + image_size, left : left + image_size] = film[len(film) // 2]
            soundfile.write(folder / f"{item.id.replace('/', '-')}.wav", pair.wave, SAMPLE_RATE)
    Image.fromarray(sheet).save(folder / "pictures.png")
