"""The one training loop. It knows no method: what is special happens in the hooks of mmbench.method."""

from __future__ import annotations

import contextlib
import math
import operator
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from mmbench.ahead import ahead
from mmbench.backbone.cavmae import CAVMAEFT
from mmbench.bench import Bench
from mmbench.cases import Case
from mmbench.config import Blind, OptimConfig
from mmbench.data.batch import Batch
from mmbench.errors import ConfigError, DivergedError, DoesNotFitError, RefusedError
from mmbench.feed import Pending, TrainFeed, TrialData, seed_from
from mmbench.meter import StepTimes, optimizer_bytes
from mmbench.method import Method, Phase, State
from mmbench.prefix import PrefixFeed, batches_of
from mmbench.router import KEY, Router, router_samples, train_router
from mmbench.strategy import Regimen, Strategy

CHECK_EVERY = 10
"""Steps between looks at the loss on a GPU; a look waits for the device."""
LOAD_AHEAD = 2
"""Batches made ready while a GPU works on one."""
SINGLE = ""
"""Key of the state of a method that was not trained case by case."""


@dataclass(frozen=True)
class Job:
    """One training of one method."""

    cases: tuple[Case, ...]
    casewise: bool
    lr: float
    samples: int
    """Samples forwarded in all phases and cases together, extra forwards included."""
    seed: int
    micro_batch: int
    """Samples in memory at once; halved when the device is out of memory."""
    name: str = "final"
    strategies: tuple[Strategy, ...] = ()
    blind: Blind = "auto"
    source: CAVMAEFT | None = None
    """The plain source model, for `blind: router` alone."""


@dataclass
class Ledger:
    """What a training used, counted while it runs."""

    times: StepTimes = field(default_factory=StepTimes)
    samples: int = 0
    optimizer_bytes: int = 0
    micro_batch: int = 0
    """Samples in memory at once, in the end; 0 for a method that does not train."""


@dataclass(frozen=True)
class Fitted:
    """A trained method: one state, or one per case."""

    states: Mapping[str, State]
    ledger: Ledger
    blind: Blind = "auto"
    router: Router | None = None

    def kept(self) -> dict[str, State]:
        """All that a user must keep, by case; a router's tensors under a key of their own."""
        return {**self.states, **({KEY: self.router.tensors} if self.router else {})}


def fit(method: Method, data: TrialData, job: Job, bench: Bench) -> Fitted:
    """Train `method` from its start state within the job's samples.

    Raises DivergedError, DoesNotFitError, OverBudgetError, or RefusedError where states cannot be put together.
    """
    regimen = Regimen(method, job.strategies)
    start = method.state() if job.casewise else None  # a copy that other jobs need not hold
    ledger = Ledger(micro_batch=job.micro_batch)
    if job.blind == "concat" and start is not None and method.combine((start, start)) is None:
        raise RefusedError(f"{method.card.name} does not put case-wise states together; use blind: average or router")
    router = _trained_router(data, job, bench, ledger) if start is not None and job.source is not None else None
    seen = int((job.samples - ledger.samples) / (1 + regimen.extra_forwards))
    groups = [(case.name, (case,)) for case in job.cases] if job.casewise else [(SINGLE, job.cases)]
    states = {}
    for (name, cases), samples in zip(groups, shares(seen, [1.0] * len(groups)), strict=True):
        if start is not None:
            method.load(start)
        feed = TrainFeed(data, job.seed, cases, bench.budget.views)
        counts = shares(samples, [p.share for p in method.phases()])
        with batches_of(regimen, feed, bench, ledger.times) as batches:
            for phase, count in zip(method.phases(), counts, strict=True):
                named = replace(job, name=f"{job.name}/{name or 'all'}")
                _run_phase(regimen, batches, phase, count, named, bench, ledger)
        method.finish()
        states[name] = method.state()
    return Fitted(states, ledger, job.blind, router)


def _trained_router(data: TrialData, job: Job, bench: Bench, ledger: Ledger) -> Router:
    assert job.source is not None  # asked for by the caller
    ledger.samples += router_samples(job.samples)
    return train_router(job.source, TrainFeed(data, job.seed, job.cases), ledger.samples, job.seed, bench)


def shares(total: int, weights: Sequence[float]) -> list[int]:
    """`total` split in proportion to the weights, into whole numbers with exactly that sum.

    Raises ConfigError for a negative weight, which would let the other parts exceed the total.
    """
    if min(weights) < 0:
        raise ConfigError(f"shares of a budget cannot be negative; got {', '.join(f'{w:g}' for w in weights)}")
    ends = [round(total * sum(weights[: i + 1]) / sum(weights)) for i in range(len(weights))]
    return [end - begin for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


def _run_phase(
    regimen: Regimen, feed: TrainFeed | PrefixFeed, phase: Phase, samples: int, job: Job, bench: Bench, ledger: Ledger
) -> None:
    method = regimen.method
    method.begin(phase)
    optimizer = make_optimizer(method.groups(job.lr), bench.budget.optim)
    steps = _count_steps(samples, len(feed.data.splits.train), bench.budget.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, steps, bench.budget.optim))
    rng = torch.Generator().manual_seed(seed_from("view", job.seed, job.name, phase.name))
    progress = _Progress(bench, job, phase, samples)
    _train_mode(method, True)
    for step, (epoch, loaded) in enumerate(_loaded(feed, samples, bench)):
        bench.check_deadline()
        with bench.clock.phase("data"):
            batch = regimen.view(loaded.to(bench.device), rng)
        with bench.clock.phase("train"), bench.compile_watch() as watch:
            began = time.perf_counter()
            loss = fitting_step(regimen, batch, optimizer, bench, ledger, (step, steps))
            schedule.step()
            if bench.device.type == "cuda":
                torch.cuda.synchronize(bench.device)
            ledger.times.add(time.perf_counter() - began, len(batch), watch.seen)
        ledger.samples += round(len(batch) * (1 + regimen.extra_forwards))
        ledger.optimizer_bytes = max(ledger.optimizer_bytes, optimizer_bytes(optimizer))
        progress.add(epoch, loss, len(batch), last=step == steps - 1)
    optimizer.zero_grad(set_to_none=True)  # evaluation must not pay for the last gradients
    _train_mode(method, False)


def _loaded(feed: TrainFeed | PrefixFeed, samples: int, bench: Bench) -> Iterator[tuple[int, Batch | Pending]]:
    """(epoch, batch) of each step. A GPU computes while the next ones are loaded; on a CPU that would slow the step."""
    places = list(feed.order(samples, bench.budget.batch_size))
    depth = LOAD_AHEAD if bench.device.type == "cuda" and isinstance(feed, TrainFeed) else 0
    stage: Callable[[int, Sequence[str]], Batch | Pending] = feed.stage
    batches = ahead((partial(stage, epoch, ids) for epoch, ids in places), depth)
    with contextlib.closing(batches):
        for epoch, _ in places:
            with bench.clock.phase("data"):
                batch = next(batches)
            yield epoch, batch


def _train_mode(method: Method, on: bool) -> None:
    method.net.train(on)
    method.extra.train(on)


def _count_steps(samples: int, train_size: int, batch_size: int) -> int:
    epochs, rest = divmod(samples, train_size)
    return epochs * math.ceil(train_size / batch_size) + math.ceil(rest / batch_size)


def fitting_step(
    regimen: Regimen,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    bench: Bench,
    ledger: Ledger,
    place: tuple[int, int],
) -> Tensor:
    """One optimiser step; halves the micro-batch when the device is out of memory, never the effective batch."""
    while True:
        try:
            return _step(regimen, batch, optimizer, bench, ledger.micro_batch, place)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            if ledger.micro_batch <= 1:
                raise DoesNotFitError(f"one sample does not fit: {str(error).splitlines()[0][:200]}") from None
        optimizer.zero_grad(set_to_none=True)
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
        ledger.micro_batch = max(1, ledger.micro_batch // 2)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on the GPU or on the host."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)


def _step(
    regimen: Regimen,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    bench: Bench,
    micro_batch: int,
    place: tuple[int, int],
) -> Tensor:
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=bench.device)
    for start in range(0, len(batch), micro_batch):
        part = batch if micro_batch >= len(batch) else batch.select(range(start, min(start + micro_batch, len(batch))))
        with bench.autocast():
            loss = regimen.loss(part).total * (len(part) / len(batch))
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    regimen.after_backward(*place)
    if bench.budget.optim.clip_norm is not None:
        nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], bench.budget.optim.clip_norm)
    optimizer.step()
    regimen.method.after_step(*place)
    return total


class _Progress:
    """Watches the loss and logs one event an epoch."""

    def __init__(self, bench: Bench, job: Job, phase: Phase, samples: int) -> None:
        self._bench, self._job, self._phase, self._samples = bench, job, phase, samples
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

    def _check(self, loss: Tensor) -> None:
        value = float(loss)
        if not math.isfinite(value):
            where = f"after {self._done} of {self._samples} samples at lr {self._job.lr:g}"
            raise DivergedError(f"the loss became {value} {where}; lower the range of learning rates")

    def _flush(self) -> None:
        with self._bench.clock.phase("log"):
            losses = torch.stack([loss for loss, _ in self._losses]).tolist()  # read at once: a read waits for a GPU
            weights = [samples for _, samples in self._losses]
            mean = sum(map(operator.mul, losses, weights)) / sum(weights)
            self._bench.log(
                event="epoch",
                job=self._job.name,
                phase=self._phase.name,
                epoch=self._epoch,
                samples=self._done,
                of=self._samples,
                loss=mean if math.isfinite(mean) else None,
                lr=self._job.lr,
            )
        self._losses = []


def make_optimizer(groups: list[dict[str, object]], config: OptimConfig) -> torch.optim.Optimizer:
    """The suite's optimiser over a method's groups; biases and norms decay like the rest, for every method alike."""
    if config.name == "sgd":
        return torch.optim.SGD(groups, momentum=config.betas[0], weight_decay=config.weight_decay, fused=True)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(groups, betas=config.betas, weight_decay=config.weight_decay, fused=True)


def lr_factor(step: int, steps: int, config: OptimConfig) -> float:
    """Linear warm-up over the first share of the steps, then constant or half a cosine down to zero."""
    warmup = round(config.warmup_share * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
