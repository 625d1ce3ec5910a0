"""Streams: the same samples in the same order for every adapter, scored before and after each update."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from beds import CPU, NO_AUDIO, NO_VISION, asked, build, make_bench, memory_data
from torch import Tensor, nn

from mmbench import metrics, streams
from mmbench.cards import OnlineCard, Track
from mmbench.cases import Case
from mmbench.data.batch import Batch
from mmbench.errors import DivergedError, DoesNotFitError, OverBudgetError
from mmbench.evaluate import predict_cases
from mmbench.feed import EvalFeed
from mmbench.method import Method
from mmbench.online import Online
from mmbench.streams import Deck, open_deck, run_stream, sample_bytes, stream_scores
from mmbench.train import SINGLE, Fitted, Ledger

CASES = (Case("noisy", audio="seed/audio-alone", vision="seed/vision-alone"), NO_AUDIO, NO_VISION)
NAMES = tuple(case.name for case in CASES)
TEST = 10


@dataclass
class Seen:
    """A batch as the adapter met it."""

    batch: Batch
    steps: int | None


class Shift(Online):
    """Adds one to the bias of class 0 at each update, and keeps what it sees."""

    card = OnlineCard("shift", "S", "none", 2026, "M0", "the head's bias", stream_length=True)
    seen: list[Seen]
    resets: int

    def build(self) -> None:
        self.seen, self.resets = [], 0

    def updated(self) -> dict[str, nn.Parameter]:
        head: Any = self.method.net.mlp_head
        return {"bias": head[1].bias}

    def begin(self) -> None:
        self.resets += 1

    def adapt(self, batch: Batch) -> int:
        self.seen.append(Seen(batch, self.steps))
        with torch.no_grad():
            self.updated()["bias"][0] += 1.0
        return len(batch) // 2


def deck_of(method: Method, seed: int = 0, track: Track = "blind", **budget: Any) -> Deck:
    return open_deck(method, memory_data(test=TEST), CASES, seed, track, make_bench(**budget))


def met(name: str, kind: type[Shift] = Shift, seed: int = 0, method: str = "source", track: Track = "blind") -> Shift:
    adapter = kind(base := build(method), {})
    run_stream(adapter, deck_of(base, seed, track), name, make_bench())
    return adapter


def ids(adapter: Shift) -> list[str]:
    return [id for seen in adapter.seen for id in seen.batch.ids]


def test_every_sample_is_met_once_in_each_case_and_no_batch_spans_two() -> None:
    for name in ("reset/4", "continual/4"):
        adapter = met(name)
        assert [len(seen.batch) for seen in adapter.seen] == [4, 4, 2] * len(CASES)
        order = ids(adapter)[:TEST]
        assert sorted(order) == sorted(memory_data(test=TEST).splits.test) != order
        assert ids(adapter) == order * len(CASES)


def test_a_mixed_stream_interleaves_the_cases() -> None:
    adapter = met("mixed/4", track="informed")
    assert [len(seen.batch) for seen in adapter.seen] == [4] * 7 + [2]
    pairs = [pair for s in adapter.seen for pair in zip(s.batch.case or (), s.batch.ids, strict=True)]
    assert len(set(pairs)) == len(pairs) == TEST * len(CASES)
    assert any(len(set(seen.batch.case or ())) > 1 for seen in adapter.seen)


def test_the_order_belongs_to_the_seed_and_to_nothing_else() -> None:
    for setting in ("reset", "continual", "mixed"):
        first = ids(met(f"{setting}/4"))
        assert ids(met(f"{setting}/7", method="lora-qv")) == first
        assert ids(met(f"{setting}/4", seed=1)) != first


@pytest.mark.parametrize(
    ("name", "steps", "resets"),
    [("reset/4", 3, len(CASES)), ("continual/4", 9, 1), ("mixed/4", 8, 1), ("mixed/1", 30, 1)],
)
def test_a_stream_starts_anew_and_its_length_is_told(name: str, steps: int, resets: int) -> None:
    adapter = met(name)
    assert {seen.steps for seen in adapter.seen} == {steps}
    assert adapter.resets == 1 + resets  # one when it was made
    per_pass = {"reset/4": 3.0}.get(name, float(len(adapter.seen)))
    fresh = Shift(build("source"), {})
    assert float(adapter.updated()["bias"][0].detach() - fresh.updated()["bias"][0].detach()) == pytest.approx(per_pass)


@pytest.mark.parametrize("name", ["reset/4", "continual/4", "mixed/4"])
def test_predictions_stand_in_the_order_of_the_split_before_and_after(name: str) -> None:
    """The k-th batch of a pass is predicted with a bias raised k times, then k + 1 times."""
    base = build("source")
    deck = deck_of(base, track="informed")
    plain = {entry.case: entry.logits.copy() for entry in deck.unadapted}
    adapter = Shift(base, {})
    result = run_stream(adapter, deck, name, make_bench())
    raised = {}
    per_pass = 3 if name == "reset/4" else len(adapter.seen)
    for index, seen in enumerate(adapter.seen):
        raised |= dict.fromkeys(zip(seen.batch.case or (), seen.batch.ids, strict=True), index % per_pass)
    assert [(e.case, e.update) for e in result.predictions] == [(n, u) for n in NAMES for u in ("before", "after")]
    for entry in result.predictions:
        expected = plain[entry.case].copy()
        expected[:, 0] += [raised[entry.case, id] + (entry.update == "after") for id in entry.ids]
        assert entry.stream == name and np.abs(entry.logits - expected).max() < 1e-4


def test_only_what_entered_an_update_is_used() -> None:
    base = build("source")
    usage = run_stream(Shift(base, {}), deck_of(base), "reset/4", make_bench()).usage
    assert (usage.samples, usage.used) == (30, 3 * (2 + 2 + 1))
    assert 0 < usage.seconds < 60


def test_the_reference_is_what_evaluation_predicts() -> None:
    base = build("lora-qv")
    deck = deck_of(base)
    feeds = [EvalFeed(memory_data(test=TEST), "test", case, 4) for case in CASES]
    expected = predict_cases(base, Fitted({SINGLE: base.state()}, Ledger()), feeds, ("blind",), make_bench())
    for one, other in zip(deck.unadapted, expected, strict=True):
        assert (one.case, one.digest) == (other.case, other.digest)  # type: ignore[union-attr]
        assert (one.logits == other.logits).all()  # type: ignore[union-attr]


def test_streams_hold_the_corrupted_samples_of_the_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    base = build("source")
    held = deck_of(base)
    monkeypatch.setattr(streams, "HELD_BYTES", 3 * TEST * sample_bytes(base.net.config) - 1)
    made_anew = deck_of(base)
    assert set(held.held) == set(NAMES) and made_anew.held == {}
    data = memory_data(test=TEST)
    for case in CASES:
        whole = next(iter(EvalFeed(data, "test", case, TEST).batches()))
        order = list(reversed(range(TEST)))
        for deck in (held, made_anew):
            for start, batch in zip(range(0, TEST, 4), deck.batches(case, order, 4), strict=True):
                expected = whole.select(order[start : start + 4])
                assert batch.ids == expected.ids and torch.equal(batch.image, expected.image)
                assert torch.allclose(batch.audio, expected.audio, atol=1e-5)
    one, other = ([b.ids + (b.case or ()) for b in deck.mixed(4)] for deck in (held, made_anew))
    assert one == other


def test_each_case_is_corrupted_once_for_all_streams() -> None:
    base = build("source")
    data = memory_data(test=TEST)
    deck = open_deck(base, data, CASES, 0, "blind", make_bench())
    for name in ("reset/4", "continual/4", "mixed/2"):
        run_stream(Shift(base, {}), deck, name, make_bench())
    assert set(Counter(asked(data)).values()) == {len(CASES)}


@pytest.mark.parametrize(
    ("track", "case", "available"), [("blind", False, False), ("avail", False, True), ("informed", True, True)]
)
@pytest.mark.parametrize("name", ["reset/4", "mixed/4"])
def test_an_adapter_sees_no_label_and_no_more_than_its_track(
    name: str, track: Track, case: bool, available: bool
) -> None:
    for seen in met(name, track=track).seen:
        assert seen.batch.label is None
        assert (seen.batch.case is not None, seen.batch.affected is not None) == (case, case)
        assert (seen.batch.available is not None) == available


def test_scores_are_those_of_each_sample_and_say_where_they_come_from() -> None:
    base = build("source")
    deck = deck_of(base)
    result = run_stream(Shift(base, {}), deck, "reset/4", make_bench())
    scores = stream_scores(result.predictions)
    assert {(s.case, s.stream, s.update) for s in scores} == {
        (n, "reset/4", u) for n in NAMES for u in ("before", "after")
    }
    for entry in result.predictions:
        (accuracy, nll) = (
            next(s for s in scores if (s.case, s.update, s.metric) == (entry.case, entry.update, metric))
            for metric in ("accuracy", "nll")
        )
        assert accuracy.value == metrics.accuracy(entry.logits, entry.labels) and accuracy.n == TEST
        assert nll.value == pytest.approx(metrics.nll(entry.logits, entry.labels))
        assert accuracy.digest == next(e.digest for e in deck.unadapted if e.case == entry.case)


class Blows(Shift):
    """Breaks its model after a while."""

    def adapt(self, batch: Batch) -> int:
        if len(self.seen) == 3:
            self.updated()["bias"].data.fill_(math.nan)
        return super().adapt(batch)


def test_logits_that_are_not_finite_name_adapter_stream_and_case() -> None:
    with pytest.raises(DivergedError, match=r"predictions of shift in stream reset/4 under missing-audio are not fin"):
        met("reset/4", Blows)


class Hungry(Shift):
    error: Exception = torch.OutOfMemoryError("CUDA out of memory")

    def adapt(self, batch: Batch) -> int:
        raise self.error


def test_what_does_not_fit_says_which_batch_and_other_errors_pass() -> None:
    with pytest.raises(DoesNotFitError, match=r"shift does not fit with 4 samples of stream mixed/4; choose a smaller"):
        met("mixed/4", Hungry)
    Hungry.error = RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        met("mixed/4", Hungry)


@dataclass
class Ticks:
    now: float = 0.0
    steps: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def test_a_stream_ends_with_the_wall_clock_of_the_budget() -> None:
    base = build("source")
    deck = deck_of(base)
    bench = make_bench(now=Ticks(), wall_clock_minutes=0.05)
    with pytest.raises(OverBudgetError, match="minutes of wall clock ran out"):
        run_stream(Shift(base, {}), deck, "reset/1", bench)


class Random(Shift):
    """Draws from its generator at each update."""

    draws: list[Tensor]

    def build(self) -> None:
        super().build()
        self.draws = []

    def adapt(self, batch: Batch) -> int:
        self.draws.append(torch.rand(1, generator=self.rng))
        return super().adapt(batch)


def test_every_case_and_every_stream_starts_from_the_same_draws() -> None:
    base = build("source")
    deck, adapter = deck_of(base), Random(base, {}, rng=torch.Generator(CPU).manual_seed(5))
    for name in ("reset/4", "continual/4"):
        run_stream(adapter, replace(deck), name, make_bench())
    draws = torch.cat(adapter.draws)
    assert torch.equal(draws[:3], draws[3:6]) and torch.equal(draws[:3], draws[9:12])
    assert len(set(draws[9:18].tolist())) == 9
