"""Builds and reads a store of that many generated clips, and tells the memory it took: `many_clips.py CLIPS FOLDER`."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mmbench.data.source import Item, Pair, Skipped
from mmbench.data.store import build_store

SIDE, FRAMES, SAMPLES = 32, 8, 1600


@dataclass(frozen=True)
class Clips:
    """Films of four pictures and a tenth of a second, 16 kB each, whose names are as long as those of real ones."""

    items: tuple[Item, ...]
    name: str = "generated"
    classes: tuple[str, ...] = ("a", "b")
    problems: tuple[Skipped, ...] = ()
    multi_label: bool = False
    static_images: bool = False
    root: None = None

    def read(self, item: Item, image_size: int) -> Pair:
        rng = np.random.default_rng(int(item.id[-6:]))
        wave = rng.uniform(-0.5, 0.5, SAMPLES).astype(np.float32)
        return Pair(wave, rng.integers(0, 255, (4, image_size, image_size, 3), dtype=np.uint8))

    def fingerprint(self) -> str:
        return str(len(self.items))


def memory_bytes(key: str) -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(f"{key}:"))


def main(clips: int, folder: Path) -> None:
    torch.set_num_threads(1)
    began_s = time.monotonic()
    base = memory_bytes("RssAnon")
    items = tuple(Item(f"---g-f_I2yQ_{n:06d}", (n % 2,), f"---g-f_I2yQ_{n:06d}"[:12]) for n in range(clips))
    store = build_store(Clips(items), FRAMES, SIDE, folder)
    # The most that building held; mapped files are no part of it, as nothing is mapped before it ends.
    built = memory_bytes("VmHWM") - memory_bytes("RssFile") - base
    for start in range(0, clips, 64):
        store.batch(store.ids[start : start + 64])
    read = memory_bytes("RssAnon") - base  # pages of mapped files are the system's to take back
    print(
        built, read, round(time.monotonic() - began_s, 1), sum(path.stat().st_size for path in store.folder.iterdir())
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
