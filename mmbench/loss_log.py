"""The losses of a training as its events tell them."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmbench.bench import Bench
from mmbench.errors import DivergedError

CHECK_EVERY = 10
"""Steps between looks at the loss on a GPU; a look waits for the device."""


class LossLog:
    """Watches the loss and logs one event an epoch."""

    def __init__(self, bench: Bench, job: str, lr: float, phase: str, samples: int) -> None:
        self._bench, self._job, self._lr, self._phase, self._samples = bench, job, lr, phase, samples
        self._losses: list[tuple[Tensor, int]] = []
        self._epoch = self._done = self._steps = 0

    def add(self, epoch: int, loss: Tensor, samples: int, last: bool) -> None:
        if epoch != self._epoch:
            self._flush()
        self._epoch = epoch
        self._losses.append((loss, samples))
        self._done += samples
        self._steps += 1
        if last or self._bench.device.type == "cpu" or self._steps % CHECK_EVERY == 0:
            self._check(loss)
        if last:
            self._flush()

    def state_dict(self) -> dict[str, Any]:
        losses = torch.stack([loss for loss, _ in self._losses]) if self._losses else None
        counts = {"_epoch": self._epoch, "_done": self._done, "_steps": self._steps}
        return {"losses": losses, "samples": [samples for _, samples in self._losses], "counts": counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        losses = () if state["losses"] is None else state["losses"].unbind()
        self._losses = list(zip(losses, state["samples"], strict=True))
        vars(self).update(state["counts"])

    def _check(self, loss: Tensor) -> None:
        value = float(loss)
        if not math.isfinite(value):
            where = f"after {self._done} of {self._samples} samples at lr {self._lr:g}"
            raise DivergedError(f"the loss became {value} {where}; lower the range of learning rates")

    def _flush(self) -> None:
        with self._bench.clock.phase("log"):
            losses = torch.stack([loss for loss, _ in self._losses]).tolist()  # read at once: a read waits for a GPU
            weights = [samples for _, samples in self._losses]
            mean = sum(map(operator.mul, losses, weights)) / sum(weights)
            self._bench.log(
                event="epoch",
                job=self._job,
                phase=self._phase,
                epoch=self._epoch,
                samples=self._done,
                of=self._samples,
                loss=mean if math.isfinite(mean) else None,
                lr=self._lr,
            )
        self._losses = []
