"""The measured half of a profile: seconds, peaks, energy and the largest batch of one method on one device."""

from __future__ import annotations

import ctypes
import gc
import itertools
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from statistics import median, stdev

import torch
from torch import nn

from mmbench.backbone.config import BackboneConfig
from mmbench.bench import Bench
from mmbench.ceilings import copy_bytes_per_second, matmul_flops_per_second
from mmbench.data.batch import Batch
from mmbench.errors import DoesNotFitError
from mmbench.feed import seed_from
from mmbench.ledger import WARMUP_STEPS, Ledger
from mmbench.meter import EnergyMeter, PeakMeter, optimizer_bytes, synchronize
from mmbench.method import Method
from mmbench.profile_rows import Counts, Measured, Plan, Setting
from mmbench.records import PeakMemory
from mmbench.steps import cap_memory, fitting_step, make_optimizer, out_of_memory
from mmbench.strategy import Regimen

LR = 1e-4
TRACED = 3
"""Steps in a trace."""
ENERGY_SECONDS = 1.0
"""At least so long are the steps whose energy is told: the counter of a GPU stands still for a tenth of a second."""
MOST = 2**20
"""Where the search for the largest batch ends."""


def random_batch(config: BackboneConfig, size: int, device: torch.device) -> Batch:
    """Labelled noise of the backbone's input sizes, complete in both modalities."""
    rng = torch.Generator().manual_seed(seed_from("batch"))
    batch = Batch(
        audio=torch.randn(size, config.frames, config.mel_bins, generator=rng),
        image=torch.randn(size, 3, config.image_size, config.image_size, generator=rng),
        label=torch.randint(config.n_classes, (size,), generator=rng),
        ids=tuple(str(i) for i in range(size)),
        case=("complete",) * size,
        available=torch.ones(size, 2, dtype=torch.bool),
        affected=torch.zeros(size, 2, dtype=torch.bool),
    )
    return batch.to(device)


def free_memory() -> None:
    """Give back what earlier rows left, so that a peak does not depend on them."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):  # glibc alone
        ctypes.CDLL(None).malloc_trim(0)


def largest(fits: Callable[[int], bool], most: int = MOST) -> int:
    """The largest number up to `most` that fits, by doubling and halving the gap; 0 if not even 1 does."""
    good, bad = 0, 1
    while bad <= most and fits(bad):
        good, bad = bad, 2 * bad
    bad = min(bad, most + 1)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


@dataclass(frozen=True)
class _Steps:
    """Timed steps and what they used."""

    seconds: tuple[float, ...]
    micro_batch: int
    optimizer_bytes: int
    joules_per_step: float | None


@dataclass(frozen=True)
class Measuring:
    """One method on one device under the clock."""

    method: Method
    setting: Setting
    plan: Plan
    bench: Bench

    def measure(self, counts: Counts) -> tuple[int, Measured]:
        """Bytes the optimiser keeps, and everything that is measured; a peak holds nothing of the phase before."""
        config = self.method.net.config
        batch = random_batch(config, self.setting.batch, self.bench.device)
        rate = matmul_flops_per_second(self.bench.device, self.setting.precision)
        copied = copy_bytes_per_second(self.bench.device)
        peaks = PeakMeter(self.bench.device)
        free_memory()
        peaks.reset()
        steps = self._train(batch)
        train_memory = peaks.read()
        seconds, spread = _middle(steps.seconds)
        per_sample, eval_memory = self._predict(batch, peaks)
        single, single_memory = self._predict(batch.select([0]), peaks)
        size = self.setting.batch
        if self.plan.trace is not None:
            self._trace(batch)
        return steps.optimizer_bytes, Measured(
            micro_batch=steps.micro_batch,
            steps=len(steps.seconds),
            train_memory=train_memory,
            eval_memory=eval_memory,
            single_memory=single_memory,
            step_seconds_median=seconds,
            step_seconds_std=spread,
            samples_per_second=size / seconds,
            epoch_samples=self.plan.epoch_samples,
            epoch_seconds=self.plan.epoch_samples * sum(steps.seconds) / len(steps.seconds) / size,
            matmul_flops_per_second=rate,
            copy_bytes_per_second=copied,
            achieved_share=counts.train_flops_per_sample * size / seconds / rate,
            energy_joules_per_step=steps.joules_per_step,
            eval_seconds_per_sample=_middle(per_sample)[0] / size,
            single_seconds_median=_middle(single)[0],
            single_seconds_std=_middle(single)[1],
            largest_batch=self._largest(batch),
        )

    def _train(self, batch: Batch) -> _Steps:
        """Warm-up steps, then timed ones, then those whose energy is told."""
        optimizer = self._start()
        ledger = Ledger(micro_batch=len(batch))
        total = WARMUP_STEPS + self.plan.steps
        places = [(step, total) for step in range(total)]
        seconds = [self._timed(partial(self._step, batch, optimizer, ledger, place)) for place in places]
        joules = self._joules(partial(self._step, batch, optimizer, ledger, places[-1]))
        kept = optimizer_bytes(optimizer)
        self._stop(optimizer)
        return _Steps(tuple(seconds[WARMUP_STEPS:]), ledger.micro_batch, kept, joules)

    def _joules(self, work: Callable[[], object]) -> float | None:
        """Of one call, as the mean of many."""
        meter = EnergyMeter(self.bench.device)
        if meter.read() is None:
            return None
        done, passed_seconds = 0, 0.0
        while passed_seconds < ENERGY_SECONDS:
            passed_seconds += self._timed(work)
            done += 1
        spent = meter.read()
        return None if spent is None else spent / done

    def _start(self) -> torch.optim.Optimizer:
        for part in self._parts():
            part.train()
        return make_optimizer(self.method.groups(LR), self.bench.budget.optim)

    def _step(self, batch: Batch, optimizer: torch.optim.Optimizer, ledger: Ledger, place: tuple[int, int]) -> None:
        with self.bench.compile_watch():
            fitting_step(Regimen(self.method), batch, optimizer, self.bench, ledger, place)

    def _stop(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad(set_to_none=True)
        for part in self._parts():
            part.eval()

    def _parts(self) -> tuple[nn.Module, ...]:
        return self.method.net, self.method.extra

    def _timed(self, work: Callable[[], object]) -> float:
        synchronize(self.bench.device)
        began = time.perf_counter()
        work()
        synchronize(self.bench.device)
        return time.perf_counter() - began

    def _predict(self, batch: Batch, peaks: PeakMeter) -> tuple[tuple[float, ...], PeakMemory]:
        """Seconds of some predictions after a first one, and the peak of all of them."""
        free_memory()
        peaks.reset()
        with self.bench.autocast():
            times = [self._timed(lambda: self.method.predict(batch)) for _ in range(1 + self.plan.steps)]
        return tuple(times[1:]), peaks.read()

    def _trace(self, batch: Batch) -> None:
        """A few steps as torch's profiler sees them, for chrome://tracing or Perfetto."""
        assert self.plan.trace is not None
        self.plan.trace.mkdir(parents=True, exist_ok=True)
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if self.bench.device.type == "cuda":
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        optimizer, ledger = self._start(), Ledger(micro_batch=len(batch))
        self._step(batch, optimizer, ledger, (0, 1 + TRACED))
        with torch.profiler.profile(activities=kinds) as profiler:
            for step in range(TRACED):
                self._step(batch, optimizer, ledger, (1 + step, 1 + TRACED))
        self._stop(optimizer)
        profiler.export_chrome_trace(str(self.plan.trace / f"{self.setting.file_name}.trace.json"))

    def _largest(self, batch: Batch) -> int | None:
        """The largest batch of which steps run while the allocator holds the cap."""
        if self.bench.device.type != "cuda" or self.plan.memory_cap_gib is None:
            return None
        cap_memory(self.bench.device, self.plan.memory_cap_gib)
        try:
            return largest(lambda size: self._runs(batch, size))
        finally:
            cap_memory(self.bench.device, None)

    def _runs(self, batch: Batch, size: int) -> bool:
        free_memory()
        try:
            wide = batch.select(list(itertools.islice(itertools.cycle(range(len(batch))), size)))
            optimizer = self._start()
            ledger = Ledger(micro_batch=size)
            for step in range(2):  # only from the second one on does the optimiser's state lie beside the activations
                self._step(wide, optimizer, ledger, (step, 2))
            self._stop(optimizer)
        except DoesNotFitError:
            return False
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            return False
        return ledger.micro_batch == size  # a smaller one means that it did not fit whole


def _middle(values: tuple[float, ...]) -> tuple[float, float | None]:
    return median(values), stdev(values) if len(values) > 1 else None
