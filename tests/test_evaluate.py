"""Evaluation and tuning: tracks, case-wise states, equal inputs for all, and a test split that tuning never opens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from beds import COMPLETE, NO_AUDIO, NO_VISION, HeadOnly, asked, build, card, equal, make, make_bench, make_job
from beds import memory_data as memory
from torch import Tensor

from mmbench.cards import Track
from mmbench.cases import Case
from mmbench.config import BackboneSpec, Budget, DataConfig, MethodSpec
from mmbench.data.batch import Batch
from mmbench.errors import DivergedError, DoesNotFitError
from mmbench.evaluate import Missed, Predictions, feeds_for, headline, predict_cases, score_all, tracks_of
from mmbench.feed import EvalFeed, blank, join
from mmbench.method import Loss, Method, State
from mmbench.pipeline import SetDigest
from mmbench.records import Score
from mmbench.train import SINGLE, Fitted, Ledger
from mmbench.trials import Trial
from mmbench.tune import learning_rates, tune

ALL: tuple[Track, ...] = ("informed", "avail", "blind")


def single(method: Method) -> Fitted:
    return Fitted({SINGLE: method.state()}, Ledger())


def predictions(method: Method, fitted: Fitted, tracks: tuple[Track, ...], **changes: Any) -> list[Predictions]:
    cases: tuple[Case, ...] = changes.pop("cases", (COMPLETE,))
    feeds = feeds_for(memory(), "test", cases, changes.pop("batch", 4))
    found = predict_cases(method, fitted, feeds, tracks, make_bench())
    assert all(isinstance(entry, Predictions) for entry in found)
    return [entry for entry in found if isinstance(entry, Predictions)]


@pytest.mark.parametrize(
    ("need", "casewise", "offered", "expected"),
    [
        ("none", False, ALL, ("blind",)),
        ("none", False, ("informed",), ("blind",)),  # knowledge it does not use changes nothing: one score, one table
        ("avail", False, ALL, ("avail",)),
        ("avail", False, ("blind",), ()),
        ("oracle", False, ALL, ("informed",)),
        ("oracle", False, ("avail", "blind"), ()),
        ("none", True, ALL, ("blind", "informed")),
        ("none", True, ("blind",), ("blind",)),
        ("none", True, ("avail",), ()),
    ],
)
def test_tracks_a_method_enters(
    need: str, casewise: bool, offered: tuple[Track, ...], expected: tuple[Track, ...]
) -> None:
    class Needy(HeadOnly):
        card = card(needs={"case": need})

    assert tracks_of(make(Needy), casewise, offered) == expected


class Spy(HeadOnly):
    """Keeps the batches it is asked to predict."""

    asked: list[Batch]

    def build(self, rng: torch.Generator) -> None:
        super().build(rng)
        self.asked = []

    def predict(self, batch: Batch) -> Tensor:
        self.asked.append(batch)
        return super().predict(batch)


@pytest.mark.parametrize(
    ("track", "case", "available"), [("blind", False, False), ("avail", False, True), ("informed", True, True)]
)
def test_a_track_tells_no_more_than_it_offers_and_never_the_label(track: Track, case: bool, available: bool) -> None:
    method = make(Spy)
    assert isinstance(method, Spy)
    predictions(method, single(method), (track,), cases=(NO_AUDIO,))
    assert len(method.asked) == 3
    for batch in method.asked:
        assert batch.label is None
        assert (batch.case is not None) == case
        assert (batch.available is not None) == available


@pytest.mark.parametrize("name", ["source", "full-finetune", "lora-qv"])
def test_every_method_and_batch_size_is_tested_on_the_same_set(name: str) -> None:
    cases = (COMPLETE, NO_AUDIO, Case("noisy", audio="seed/audio-alone", vision="seed/vision-alone"))
    method = build(name)
    small = predictions(method, single(method), ("blind",), cases=cases, batch=3)
    large = predictions(method, single(method), ("blind",), cases=cases, batch=64)
    source = build("source")
    reference = predictions(source, single(source), ("blind",), cases=cases)
    digests = [entry.digest for entry in reference]
    assert len(set(digests)) == 3
    assert [entry.digest for entry in small] == [entry.digest for entry in large] == digests
    for one, other in zip(small, large, strict=True):
        assert one.ids == other.ids
        assert np.abs(one.logits - other.logits).max() < 1e-5
        assert (one.labels == other.labels).all()


def casewise() -> tuple[Method, dict[str, State]]:
    """A method with a state a case that predicts the case's own class."""
    method = build("linear-probe")
    states = {}
    for index, case in enumerate(("complete", "missing-audio")):
        state = method.state()
        state["mlp_head.1.bias"][index] += 50.0
        states[case] = state
    return method, states


def test_informed_uses_the_state_of_the_case_and_blind_all_of_them() -> None:
    method, states = casewise()
    found = predictions(method, Fitted(states, Ledger()), ("blind", "informed"), cases=(COMPLETE, NO_AUDIO))
    by = {(entry.case, entry.track): entry.logits for entry in found}
    assert (by["complete", "informed"].argmax(axis=1) == 0).all()
    assert (by["missing-audio", "informed"].argmax(axis=1) == 1).all()
    each = []
    for state in states.values():
        method.load(state)
        feed = EvalFeed(memory(), "test", COMPLETE, 10)
        each.append(method.predict(blank(next(feed.batches()), "blind")).softmax(dim=1))
    mean = torch.stack(each).mean(dim=0).log().numpy()
    assert np.abs(by["complete", "blind"] - mean).max() < 1e-4


def test_blind_states_of_prompts_are_put_side_by_side() -> None:
    method = build("prompt-the-missing")
    states = {"complete": method.state(), "missing-audio": build("prompt-the-missing", seed=1).state()}
    found = predictions(method, Fitted(states, Ledger()), ("blind",))
    combined = method.combine(tuple(states.values()))
    assert combined is not None
    assert combined["extra.prompts.a"].shape[0] == 2 * states["complete"]["extra.prompts.a"].shape[0]
    method.load(combined)
    batch = next(EvalFeed(memory(), "test", COMPLETE, 10).batches())
    assert np.abs(found[0].logits - method.predict(blank(batch, "blind")).numpy()).max() < 1e-5


def test_multi_label_states_average_their_probabilities() -> None:
    method, states = casewise()
    object.__setattr__(method.recipe, "multi_label", True)
    data = memory(multi_label=True)
    feeds = feeds_for(data, "test", (COMPLETE,), 10)
    (found,) = predict_cases(method, Fitted(states, Ledger()), feeds, ("blind",), make_bench())
    assert isinstance(found, Predictions)
    batch = blank(next(EvalFeed(data, "test", COMPLETE, 10).batches()), "blind")
    each = []
    for state in states.values():
        method.load(state)
        each.append(method.predict(batch).sigmoid())
    assert np.abs(1 / (1 + np.exp(-found.logits)) - torch.stack(each).mean(dim=0).numpy()).max() < 1e-5
    scores = score_all([found], multi_label=True)
    assert {score.metric for score in scores} == {"map", "nll"}


def test_a_case_without_a_state_is_missing_with_a_reason_and_leaves_no_headline() -> None:
    method, states = casewise()
    feeds = feeds_for(memory(), "test", (COMPLETE, NO_VISION), 4)
    found = predict_cases(method, Fitted(states, Ledger()), feeds, ("blind", "informed"), make_bench())
    missed = [entry for entry in found if isinstance(entry, Missed)]
    assert [(entry.case, entry.track) for entry in missed] == [("missing-vision", "informed")]
    scores = score_all(found, multi_label=False)
    (gap,) = [score for score in scores if score.value is None]
    assert gap.reason == "no state was trained for the case 'missing-vision'" and gap.n == 10
    assert headline(scores, "informed") is None
    assert headline(scores, "blind") is not None


def test_scores_are_right_on_a_hand_made_case() -> None:
    logits = np.array([[4.0, 0, 0, 0], [0, 4.0, 0, 0], [4.0, 0, 0, 0], [0, 0, 0, 4.0]], dtype=np.float32)
    entry = Predictions("complete", 0, "blind", ("a", "b", "c", "d"), logits, np.array([0, 1, 2, 3]), "d" * 64)
    scores = {score.metric: score for score in score_all([entry], multi_label=False)}
    assert scores["accuracy"].value == pytest.approx(0.75)
    right, wrong = (math.log(math.exp(4) + 3) - 4, math.log(math.exp(4) + 3))
    assert scores["nll"].value == pytest.approx((3 * right + wrong) / 4, rel=1e-5)
    assert scores["accuracy"].digest == "d" * 64


def test_the_headline_is_the_mean_over_cases_of_one_track() -> None:
    def score(case: str, track: Track, value: float) -> Score:
        return Score(case=case, track=track, metric="accuracy", value=value, n=10)

    scores = [score("one", "blind", 0.5), score("two", "blind", 1.0), score("one", "informed", 0.9)]
    assert headline(scores, "blind") == pytest.approx(0.75)
    assert headline(scores, "avail") is None


def test_a_prediction_that_does_not_fit_names_the_setting() -> None:
    class Huge(HeadOnly):
        def predict(self, batch: Batch) -> Tensor:
            raise torch.OutOfMemoryError("out of memory")

    method = make(Huge)
    with pytest.raises(DoesNotFitError, match=r"prediction of 4 samples does not fit; lower budget\.eval_batch"):
        predictions(method, single(method), ("blind",))


def test_joined_batches_are_the_samples_in_order() -> None:
    (whole,) = list(EvalFeed(memory(), "test", NO_AUDIO, 10).batches())
    parts = list(EvalFeed(memory(), "test", NO_AUDIO, 4).batches())
    joined = join(parts)
    assert joined.ids == whole.ids and joined.case == whole.case
    assert torch.equal(joined.audio, whole.audio)
    assert joined.label is not None and whole.label is not None and torch.equal(joined.label, whole.label)


def test_the_digest_of_a_set_depends_on_its_contents() -> None:
    def digest(case: Case, split: str) -> str:
        found = SetDigest()
        list(EvalFeed(memory(), split, case, 4).batches(found))
        return found.hexdigest()

    assert len({digest(COMPLETE, "test"), digest(COMPLETE, "val"), digest(NO_AUDIO, "test")}) == 3
    assert digest(NO_AUDIO, "test") == digest(NO_AUDIO, "test")


# Tuning -------------------------------------------------------------------------------------------------------------


def make_trial(**budget: Any) -> Trial:
    return Trial(
        id="t",
        suite="s",
        method=MethodSpec(name="linear-probe"),
        regime="mixed",
        dataset=DataConfig(name="synthetic-av"),
        backbone=BackboneSpec(),
        backbone_folder=HERE,
        store_folder=HERE,
        seed=0,
        cases=("complete",),
        train_cases=("complete",),
        tracks=ALL,
        budget=Budget(batch_size=8, eval_batch=4, **budget),
    )


HERE = Path()


@pytest.mark.parametrize("trials", [1, 2, 3, 6])
def test_rates_lie_inside_the_range_in_order_and_a_single_one_in_its_middle(trials: int) -> None:
    rates = learning_rates((1e-4, 1e-2), trials)
    assert len(rates) == trials
    assert rates == sorted(rates)
    assert rates[0] > 1e-4 and rates[-1] < 1e-2
    assert math.prod(rates) ** (1 / trials) == pytest.approx(1e-3, rel=0.5)
    assert learning_rates((1e-4, 1e-2), 1) == [pytest.approx(1e-3)]
    doubled = learning_rates((2e-4, 2e-2), trials)  # the same places in every method's range
    assert [b / a for a, b in zip(rates, doubled, strict=True)] == pytest.approx([2.0] * trials)


@pytest.mark.parametrize("trials", [2, 4])
def test_the_tuning_table_has_a_row_a_trial_and_leaves_the_test_split_alone(trials: int) -> None:
    method, data = make(HeadOnly), memory()
    assert isinstance(method, HeadOnly)
    start = method.state()
    trial = make_trial(tuning_trials=trials, tuning_share=0.5)
    lr, table = tune(method, data, make_job(samples=20), trial, make_bench())
    assert [entry.samples for entry in table] == [10] * trials
    assert method.samples() == 10 * trials
    assert lr in [entry.lr for entry in table]
    best = max(entry.score for entry in table if entry.score is not None)
    assert lr == min(entry.lr for entry in table if entry.score == best)  # of equals the smaller one
    assert equal(method.state(), start)
    assert {id.partition("/")[0] for id in asked(data)} == {"train", "val"}


class Fragile(HeadOnly):
    """Diverges at rates above `limit`."""

    limit: ClassVar[float] = 1e-2
    rate: float

    def groups(self, lr: float) -> list[dict[str, Any]]:
        self.rate = lr
        return super().groups(lr)

    def loss(self, batch: Batch) -> Loss:
        return Loss(super().loss(batch).total * (math.inf if self.rate > self.limit else 1.0), batch.audio)


def test_a_rate_that_diverges_has_no_score_and_is_not_chosen() -> None:
    trial = make_trial(tuning_trials=3)
    lr, table = tune(make(Fragile), memory(), make_job(), trial, make_bench())
    assert [entry.score is None for entry in table] == [entry.lr > 1e-2 for entry in table]
    assert any(entry.score is None for entry in table) and lr <= 1e-2


def test_if_every_rate_diverges_that_is_said() -> None:
    class Hopeless(Fragile):
        limit = 0.0

    with pytest.raises(DivergedError, match=r"every learning rate of .* diverged"):
        tune(make(Hopeless), memory(), make_job(), make_trial(tuning_trials=2), make_bench())


def test_tuning_time_is_charged_to_tuning() -> None:
    bench = make_bench()
    tune(make(HeadOnly), memory(), make_job(), make_trial(tuning_trials=2), bench)
    seconds: Mapping[str, float | None] = bench.clock.summary().model_dump()
    assert seconds["tune"] and seconds["train"] == seconds["evaluate"] == seconds["data"] == 0.0
