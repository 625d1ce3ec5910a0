"""How fast samples come from the store, beside reading the same samples from their files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from pytest_benchmark.fixture import BenchmarkFixture

from mmbench.config import DataConfig
from mmbench.data.features import fbank
from mmbench.data.folders import FolderSource, folder_pairs
from mmbench.data.store import build_store

SAMPLES, FRAMES, SIZE = 64, 128, 64


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FolderSource:
    """1.3 s of 44.1 kHz sound and a 320x240 JPEG per sample."""
    root = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    for kind in ("sound", "vision"):
        (root / f"Dataset_v3_{kind}" / "only").mkdir(parents=True)
    for number in range(SAMPLES):
        wave = rng.uniform(-0.5, 0.5, int(1.3 * 44100))
        soundfile.write(root / "Dataset_v3_sound" / "only" / f"{number:03d}.wav", wave, 44100)
        picture = rng.integers(0, 256, (240, 320, 3)).astype(np.uint8)
        Image.fromarray(picture).save(root / "Dataset_v3_vision" / "only" / f"{number:03d}.jpg")
    return folder_pairs(DataConfig(name="folder-pairs", root=root))


def test_read_from_store(benchmark: BenchmarkFixture, source: FolderSource, tmp_path: Path) -> None:
    store = build_store(source, FRAMES, SIZE, tmp_path)
    batch = benchmark(store.batch, store.ids)
    assert len(batch) == SAMPLES


def test_read_from_files(benchmark: BenchmarkFixture, source: FolderSource) -> None:
    def read() -> int:
        for item in source.items:
            wave = torch.from_numpy(source.read(item, SIZE).wave)
            fbank(wave[None], torch.tensor([len(wave)]), FRAMES)
        return len(source.items)

    assert benchmark(read) == SAMPLES


def test_build_store(benchmark: BenchmarkFixture, source: FolderSource, tmp_path: Path) -> None:
    folders = iter(range(10**6))
    store = benchmark(lambda: build_store(source, FRAMES, SIZE, tmp_path / str(next(folders))))
    assert len(store) == SAMPLES
