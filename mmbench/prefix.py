"""Outputs of frozen encoders on disk: a method that trains behind them encodes each view of a sample once.

Only with `budget.views`, which fixes the number of corrupted views for every method of a suite alike. Each training
builds its own copy, so the time of building is part of that training's cost.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmbench.bench import Bench
from mmbench.data.batch import Batch
from mmbench.errors import MMBenchError
from mmbench.feed import TrainFeed, TrialData, join
from mmbench.ledger import StepTimes
from mmbench.method import Method
from mmbench.strategy import Regimen


def trains_behind_encoders(regimen: Regimen) -> bool:
    """Whether nothing of a training reaches into the encoders or looks at their inputs."""
    method = regimen.method
    plain = all(
        getattr(type(method), name) is getattr(Method, name) for name in ("view", "loss", "logits", "after_backward")
    )
    return plain and not regimen.strategies and method.hooks.spares_encoders() and not _gradient_reaches(method)


def _gradient_reaches(method: Method) -> bool:
    """Asked of autograd: the tensors that train may sit in modules of any name."""
    config, device = method.net.config, next(method.net.parameters()).device
    audio = torch.zeros(1, config.frames, config.mel_bins, device=device)
    image = torch.zeros(1, 3, config.image_size, config.image_size, device=device)
    with torch.enable_grad():
        return any(tokens.requires_grad for tokens in method.net.encode(audio, image, method.hooks))


@dataclass
class View:
    """One view of every training sample, encoded: a file per modality, and what else a batch holds."""

    rest: Batch  # (N, 0) audio and image
    rows: dict[str, int]
    tokens: tuple[np.memmap, np.memmap]  # (N, Na, D) and (N, Nv, D) float32

    def batch(self, ids: Sequence[str]) -> Batch:
        rows = [self.rows[id] for id in ids]
        audio, vision = (torch.from_numpy(np.asarray(kept[rows])) for kept in self.tokens)
        return replace(self.rest.select(rows), encoded=(audio, vision))


@dataclass
class PrefixFeed:
    """Training batches with `encoded` in place of audio and image, (B, 0) both."""

    feed: TrainFeed
    method: Method
    bench: Bench
    folder: Path
    times: StepTimes
    _views: dict[int, View] = field(default_factory=dict)

    @property
    def _cases(self) -> str:
        return "+".join(case.name for case in self.feed.cases)

    @property
    def data(self) -> TrialData:
        return self.feed.data

    def order(self, samples: int, batch_size: int) -> Iterator[tuple[int, tuple[str, ...]]]:
        """As of the feed it stands for."""
        return self.feed.order(samples, batch_size)

    def stage(self, epoch: int, ids: Sequence[str]) -> Batch:
        """The samples of an epoch's view, in order; the first call for a view encodes all of it."""
        view = self.feed.view_of(epoch)
        if view not in self._views:
            with self.bench.clock.phase("train"):
                self._views[view], seconds = self._build(epoch)
                self.times.add_build(f"{self._cases}/{view}", seconds)
        return self._views[view].batch(ids)

    def _build(self, epoch: int) -> tuple[View, float]:
        """The view, and what it took beside reading and corrupting, which no method's steps count."""
        ids, size = self.feed.data.splits.train, self.bench.budget.micro_batch or self.bench.budget.batch_size
        rest, files, seconds = [], None, 0.0
        for start in range(0, len(ids), size):
            self.bench.check_deadline()
            with self.bench.clock.phase("data"):
                batch = self.feed.stage(epoch, ids[start : start + size]).to(self.bench.device)
            began = time.perf_counter()
            encoded = self._encode(batch)
            if files is None:
                files = tuple(self._file(f"{self.feed.view_of(epoch)}-{i}", len(ids), t) for i, t in enumerate(encoded))
            for file, tokens in zip(files, encoded, strict=True):
                file[start : start + len(batch)] = tokens.float().cpu().numpy()
            rest.append(replace(batch, audio=batch.audio[:, :0, 0], image=batch.image[:, 0, 0, :0]).to("cpu"))
            seconds += time.perf_counter() - began
        assert files is not None  # a training split is never empty
        return View(join(rest), {id: row for row, id in enumerate(ids)}, (files[0], files[1])), seconds

    def _encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), self.bench.autocast():
            return self.method.net.encode(batch.audio, batch.image, self.method.hooks, batch)

    def _file(self, name: str, samples: int, tokens: Tensor) -> np.memmap:
        """Room for all samples, claimed now: a full disk is an error here and not a signal at some later write."""
        path, shape = self.folder / f"view-{name}.f32", (samples, *tokens.shape[1:])
        size_bytes = 4 * int(np.prod(shape))
        with path.open("wb") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, size_bytes)
            except OSError as error:
                raise MMBenchError(
                    f"no room for {size_bytes / 2**30:.2g} GiB of encoded views in {self.folder}: {error.strerror}; "
                    "free some, point TMPDIR elsewhere, or leave budget.views out"
                ) from None
        return np.memmap(path, dtype=np.float32, mode="r+", shape=shape)


@contextlib.contextmanager
def batches_of(regimen: Regimen, feed: TrainFeed, bench: Bench, times: StepTimes) -> Iterator[TrainFeed | PrefixFeed]:
    """The feed itself, or one that remembers what frozen encoders made of it, where that changes nothing but time."""
    if feed.views is None or not trains_behind_encoders(regimen):
        yield feed
        return
    with tempfile.TemporaryDirectory(prefix="mmbench-views-") as folder:
        yield PrefixFeed(feed, regimen.method, bench, Path(folder), times)
