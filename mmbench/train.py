"""The one training loop. It knows no method: what is special happens in the hooks of mmbench.method."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from mmbench.ahead import ahead
from mmbench.backbone.cavmae import CAVMAEFT
from mmbench.bench import Bench
from mmbench.cases import Case
from mmbench.config import Blind
from mmbench.data.batch import Batch
from mmbench.ddp import Portion, Split
from mmbench.errors import ConfigError, RefusedError
from mmbench.feed import Pending, TrainFeed, TrialData, seed_from
from mmbench.ledger import Ledger
from mmbench.loss_log import LossLog
from mmbench.meter import optimizer_bytes
from mmbench.method import Method, Phase, State
from mmbench.plain import Draws, resumable
from mmbench.prefix import PrefixFeed, batches_of
from mmbench.resume import Part, Place
from mmbench.router import KEY, Router, router_samples, train_router
from mmbench.steps import fitting_step, lr_factor, make_optimizer
from mmbench.strategy import Regimen, Strategy

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
    """Train `method` from its start state within the job's samples, or go on where an earlier run of it stood.

    Raises DivergedError, DoesNotFitError, OverBudgetError, or RefusedError where states cannot be put together.
    """
    start = method.state() if job.casewise else None  # a copy that other jobs need not hold
    if job.blind == "concat" and start is not None and method.combine((start, start)) is None:
        raise RefusedError(f"{method.card.name} does not put case-wise states together; use blind: average or router")
    course = Course(Regimen(method, job.strategies), job, bench, Ledger(micro_batch=job.micro_batch))
    course.begin(data)
    groups = [(case.name, (case,)) for case in job.cases] if job.casewise else [(SINGLE, job.cases)]
    for (name, cases), samples in zip(groups, shares(course.seen(), [1.0] * len(groups)), strict=True):
        if name in course.states:
            continue
        if start is not None:
            method.load(start)
        feed = TrainFeed(data, job.seed, cases, bench.budget.views)
        with batches_of(course.regimen, feed, bench, course.ledger.times) as batches:
            course.train(name, batches, samples)
        method.finish()
        course.states[name] = method.state()
    return Fitted(course.states, course.ledger, job.blind, course.router)


@dataclass
class Course:
    """A training under way."""

    regimen: Regimen
    job: Job
    bench: Bench
    ledger: Ledger
    states: dict[str, State] = field(default_factory=dict)
    """Finished ones, by case."""
    router: Router | None = None
    past: Place | None = None
    """Where an earlier run of the same training stood, until this one is there."""

    def begin(self, data: TrialData) -> None:
        """Take up what an earlier run had finished, or train the router, if there is to be one."""
        self.past = self.bench.keeper.take_up(self.job.name)
        job, tensors = self.job, self.past.router if self.past else None
        if self.past is not None:
            self.states.update(self.past.states)
        if not job.casewise or job.source is None:
            return
        self.ledger.samples = router_samples(job.samples)
        feed = TrainFeed(data, job.seed, job.cases)
        self.router = train_router(job.source, feed, self.ledger.samples, job.seed, self.bench, tensors)

    def seen(self) -> int:
        """Samples that the optimiser will see, once each."""
        return int((self.job.samples - self.ledger.samples) / (1 + self.regimen.extra_forwards))

    def train(self, case: str, feed: TrainFeed | PrefixFeed, samples: int) -> None:
        """All phases of one state."""
        phases = self.regimen.method.phases()
        for index, (phase, count) in enumerate(zip(phases, shares(samples, [p.share for p in phases]), strict=True)):
            self.regimen.method.begin(phase)
            if self.past is None or self.past.phase == index:
                self._phase(Leg(case, index, phase, count), feed)

    def _phase(self, leg: Leg, feed: TrainFeed | PrefixFeed) -> None:
        method, bench, job, ledger = self.regimen.method, self.bench, self.job, self.ledger
        name, batch_size = f"{job.name}/{leg.case or 'all'}", bench.budget.batch_size
        optimizer = make_optimizer(method.groups(job.lr), bench.budget.optim)
        steps = _count_steps(leg.samples, len(feed.data.splits.train), batch_size)
        schedule = LambdaLR(optimizer, lambda step: lr_factor(step, steps, bench.budget.optim))
        rng = torch.Generator().manual_seed(seed_from("view", job.seed, name, leg.phase.name))
        losses = LossLog(bench, name, job.lr, leg.phase.name, leg.samples)
        parts: dict[str, Part] = {
            "optimizer": optimizer,
            "schedule": schedule,
            "rng": Draws(rng),
            "losses": losses,
            "ledger": ledger,
        }
        parts |= resumable(self.regimen, bench.device, bench.ranks)
        done = bench.keeper.resume(parts) if self.past else 0
        self.past = None
        order = list(feed.order(leg.samples, batch_size))[done:]
        split = Split(self.regimen, bench.ranks)
        _train_mode(method, True)
        with bench.keeper.steps():
            for step, (epoch, loaded) in enumerate(_loaded(feed, split.loads(order), bench), done):
                bench.check_deadline()
                with bench.clock.phase("data"):
                    part = split.part(loaded.to(bench.device), len(order[step - done][1]), rng)
                loss = self._step(part, optimizer, schedule, (step, steps))
                losses.add(epoch, loss, part.of, last=step == steps - 1)
                with bench.clock.phase("log"):
                    bench.keeper.offer(partial(self._place, leg, step + 1), parts)
        optimizer.zero_grad(set_to_none=True)  # evaluation must not pay for the last gradients
        _train_mode(method, False)
        split.check_same()

    def _step(
        self, part: Portion, optimizer: torch.optim.Optimizer, schedule: LRScheduler, place: tuple[int, int]
    ) -> Tensor:
        bench, ledger = self.bench, self.ledger
        with bench.clock.phase("train"), bench.compile_watch() as watch:
            began = time.perf_counter()
            loss = fitting_step(part.regimen, part.batch, optimizer, bench, ledger, place)
            schedule.step()
            if bench.device.type == "cuda":
                torch.cuda.synchronize(bench.device)
            ledger.times.add(time.perf_counter() - began, part.of, watch.seen)
        ledger.samples += round(part.of * (1 + self.regimen.extra_forwards))
        ledger.optimizer_bytes = max(ledger.optimizer_bytes, optimizer_bytes(optimizer))
        return loss

    def _place(self, leg: Leg, steps: int) -> Place:
        return Place(
            self.job.name, leg.case, leg.index, steps, self.states, self.router.tensors if self.router else None
        )


@dataclass(frozen=True)
class Leg:
    """A phase of one state."""

    case: str
    index: int
    phase: Phase
    samples: int


def shares(total: int, weights: Sequence[float]) -> list[int]:
    """`total` split in proportion to the weights, into whole numbers with exactly that sum.

    Raises ConfigError for a negative weight, which would let the other parts exceed the total.
    """
    if min(weights) < 0:
        raise ConfigError(f"shares of a budget cannot be negative; got {', '.join(f'{w:g}' for w in weights)}")
    ends = [round(total * sum(weights[: i + 1]) / sum(weights)) for i in range(len(weights))]
    return [end - begin for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


def _loaded(
    feed: TrainFeed | PrefixFeed, places: Sequence[tuple[int, tuple[str, ...]]], bench: Bench
) -> Iterator[tuple[int, Batch | Pending]]:
    """(epoch, batch) of each step. A GPU computes while the next ones are loaded; on a CPU that would slow the step."""
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
