"""How an online adapter meets the test data: reset for each case, case after case, or all cases mixed in one stream.

The order of the samples is a function of data and seed alone, and the corrupted samples are those of the evaluation,
so every adapter over every method meets the same stream. Each batch is predicted, adapted to, and predicted again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mmbench.backbone.config import BackboneConfig
from mmbench.bench import Bench
from mmbench.cards import Track
from mmbench.cases import Case
from mmbench.data.batch import Batch
from mmbench.errors import DivergedError, DoesNotFitError, RefusedError
from mmbench.evaluate import Missed, Predictions, predict_cases, score_all
from mmbench.feed import EVERY, EvalFeed, TrialData, blank, join
from mmbench.ledger import Ledger
from mmbench.meter import synchronize
from mmbench.method import Method
from mmbench.online import Online
from mmbench.pipeline import SetDigest, Staged
from mmbench.records import Score
from mmbench.rng import StreamKey, permutation, stream
from mmbench.steps import out_of_memory
from mmbench.train import SINGLE, Fitted

HELD_BYTES = 2**30
"""Corrupted test sets up to this size, all cases together, stay in memory; larger ones are made anew per stream."""


@dataclass(frozen=True)
class StreamPredictions(Predictions):
    """Logits of one case, collected along a stream."""

    stream: str
    update: Literal["before", "after"]


@dataclass(frozen=True)
class Usage:
    """What adapting to one stream took."""

    seconds: float
    """Of `adapt` alone, device synchronised."""
    samples: int
    used: int
    """Samples that entered an update."""


@dataclass(frozen=True)
class StreamResult:
    predictions: tuple[StreamPredictions, ...]
    usage: Usage


@dataclass(frozen=True)
class Deck:
    """The test set under every case, with the predictions of the method as it was trained."""

    data: TrialData
    seed: int
    cases: tuple[Case, ...]
    unadapted: tuple[Predictions, ...]
    """One entry a case, in the order of `cases`."""
    held: Mapping[str, Batch] = field(default_factory=dict)
    """Whole corrupted sets by case, in the split's order."""
    missed: tuple[Missed, ...] = ()
    """Cases that do not apply to the data; no stream holds them."""

    @property
    def track(self) -> Track:
        return self.unadapted[0].track

    def order(self, name: str, count: int) -> npt.NDArray[np.int64]:
        """A permutation of `count` places, the same for every adapter and method."""
        return permutation(stream(StreamKey(self.data.name, "test", self.seed), "", "stream", 0, name), count)

    def batches(self, case: Case, order: Sequence[int], size: int) -> Iterator[Batch]:
        """The whole test set under a case in this order, with full knowledge."""
        held = self.held.get(case.name)
        if held is not None:
            for start in range(0, len(order), size):
                yield held.select(order[start : start + size])
            return
        ids = tuple(self.data.splits.test[place] for place in order)
        ordered = replace(self.data, splits=replace(self.data.splits, test=ids))
        yield from EvalFeed(ordered, "test", case, size).batches()

    def mixed(self, size: int) -> Iterator[Batch]:
        """One stream in which the samples of all cases are interleaved."""
        samples = len(self.data.splits.test)
        pairs = [divmod(place, samples) for place in self.order("mixed", samples * len(self.cases)).tolist()]
        queues = [
            self.batches(case, [place for at, place in pairs if at == index], 1)
            for index, case in enumerate(self.cases)
        ]
        for start in range(0, len(pairs), size):
            yield join([next(queues[index]) for index, _ in pairs[start : start + size]])


def open_deck(method: Method, data: TrialData, cases: tuple[Case, ...], seed: int, track: Track, bench: Bench) -> Deck:
    """Corrupt every test set once, and predict it with the method as it is. Raises RefusedError if no case applies."""
    samples = len(data.splits.test) * len(cases)
    holds = samples * sample_bytes(method.net.config) <= HELD_BYTES
    kind = _KeptFeed if holds else EvalFeed
    feeds = [kind(data, "test", case, bench.budget.eval_batch) for case in cases]
    fitted = Fitted({SINGLE: method.state()}, Ledger())
    found = predict_cases(method, fitted, feeds, (track,), bench)
    unadapted = tuple(entry for entry in found if isinstance(entry, Predictions))
    missed = tuple(entry for entry in found if isinstance(entry, Missed))
    if not unadapted:
        raise RefusedError(f"no case of the suite can be streamed, {missed[0].case} is {missed[0].reason}")
    held = {feed.case.name: join(feed.kept) for feed in feeds if isinstance(feed, _KeptFeed) and feed.kept}
    predicted = {entry.case for entry in unadapted}
    return Deck(data, seed, tuple(case for case in cases if case.name in predicted), unadapted, held, missed)


def sample_bytes(config: BackboneConfig) -> int:
    """Of one sample's input tensors."""
    return 4 * (config.frames * config.mel_bins + 3 * config.image_size**2)


@dataclass(frozen=True)
class _KeptFeed(EvalFeed):
    """Keeps the batches it gave out, on the CPU."""

    kept: list[Batch] = field(default_factory=list)

    def staged(self, digest: SetDigest | None = None, turns: slice = EVERY) -> Iterator[Batch | Staged]:
        for staged in super().staged(digest, turns):
            batch = staged.to("cpu")
            self.kept.append(batch)
            yield batch


@dataclass(frozen=True)
class _Pass:
    """What lies between two resets."""

    steps: int
    batches: Iterator[Batch]


def _passes(deck: Deck, name: str) -> Iterator[_Pass]:
    """The passes of a stream `setting/batch`; under `reset` and `continual` no batch spans two cases."""
    setting, _, number = name.partition("/")
    size, samples, cases = int(number), len(deck.data.splits.test), len(deck.cases)
    if setting == "mixed":
        yield _Pass(math.ceil(samples * cases / size), deck.mixed(size))
        return
    order: list[int] = deck.order("order", samples).tolist()
    each = [deck.batches(case, order, size) for case in deck.cases]
    steps = math.ceil(samples / size)
    if setting == "continual":
        yield _Pass(steps * cases, chain.from_iterable(each))
        return
    yield from (_Pass(steps, batches) for batches in each)


def run_stream(adapter: Online, deck: Deck, name: str, bench: Bench) -> StreamResult:
    """Adapt along one stream from the trained state on; the adapter is left as the stream ended.

    Raises DivergedError, DoesNotFitError or OverBudgetError.
    """
    tally = _Tally(deck, name)
    for one in _passes(deck, name):
        adapter.reset(one.steps)
        for batch in one.batches:
            bench.check_deadline()
            tally.add(batch, _meet(adapter, batch, name, deck.track, bench))
    return tally.result()


@dataclass(frozen=True)
class _Meeting:
    """An adapter and one batch."""

    before: Tensor  # (B, C) float32 on the CPU
    after: Tensor  # (B, C)
    used: int
    seconds: float


def _meet(adapter: Online, batch: Batch, name: str, track: Track, bench: Bench) -> _Meeting:
    shown = blank(batch.to(bench.device), track)
    try:
        with bench.autocast():
            before = adapter.predict(shown).float().cpu()
            _check_finite(before, adapter, batch, name)
            began = time.perf_counter()
            used = adapter.adapt(shown)
            synchronize(bench.device)
            seconds = time.perf_counter() - began
            after = adapter.predict(shown).float().cpu()
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise DoesNotFitError(
            f"{adapter.card.name} does not fit with {len(batch)} samples of stream {name}; choose a smaller batch"
        ) from None
    _check_finite(after, adapter, batch, name)
    return _Meeting(before, after, used, seconds)


def _check_finite(logits: Tensor, adapter: Online, batch: Batch, name: str) -> None:
    broken = (~logits.isfinite().all(dim=1)).nonzero()[:, 0].tolist()
    if broken:
        assert batch.case is not None  # the harness keeps full knowledge
        cases = ", ".join(sorted({batch.case[row] for row in broken}))
        raise DivergedError(f"predictions of {adapter.card.name} in stream {name} under {cases} are not finite")


class _Tally:
    """Puts what was predicted along a stream back in the split's order, case by case."""

    def __init__(self, deck: Deck, name: str) -> None:
        self._deck, self._name = deck, name
        shape = deck.unadapted[0].logits.shape  # (N, C)
        self._before = {case.name: np.full(shape, np.nan, np.float32) for case in deck.cases}
        self._after = {case.name: np.full(shape, np.nan, np.float32) for case in deck.cases}
        self._places = {id: place for place, id in enumerate(deck.data.splits.test)}
        self._seconds, self._samples, self._used = 0.0, 0, 0

    def add(self, batch: Batch, meeting: _Meeting) -> None:
        assert batch.case is not None
        for row, (case, id) in enumerate(zip(batch.case, batch.ids, strict=True)):
            self._before[case][self._places[id]] = meeting.before[row].numpy()
            self._after[case][self._places[id]] = meeting.after[row].numpy()
        self._seconds += meeting.seconds
        self._samples += len(batch)
        self._used += meeting.used

    def result(self) -> StreamResult:
        found = [
            self._entry(entry, logits[entry.case], update)
            for entry in self._deck.unadapted
            for update, logits in (("before", self._before), ("after", self._after))
        ]
        return StreamResult(tuple(found), Usage(self._seconds, self._samples, self._used))

    def _entry(self, e: Predictions, logits: npt.NDArray[np.float32], update: str) -> StreamPredictions:
        when: Literal["before", "after"] = "before" if update == "before" else "after"
        return StreamPredictions(e.case, e.severity, e.track, e.ids, logits, e.labels, e.digest, self._name, when)


def stream_scores(found: Sequence[StreamPredictions]) -> tuple[Score, ...]:
    """Accuracy, NLL and calibration error of each case before and after the updates."""
    return tuple(
        replace(score, stream=entry.stream, update=entry.update)
        for entry in found
        for score in score_all((entry,), multi_label=False)
    )
