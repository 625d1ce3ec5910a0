"""Blind use of case-wise states: a detector trained within the budget picks one, or they are averaged or combined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from beds import COMPLETE, NO_AUDIO, NO_VISION, HeadOnly, asked, build, equal, make, make_bench, make_job, memory_data
from torch import Tensor

from mmbench.cases import Case
from mmbench.config import MethodSpec
from mmbench.conformance_bed import Bed, watch
from mmbench.errors import ConfigError, RefusedError
from mmbench.evaluate import Predictions, feeds_for, predict_cases
from mmbench.feed import EvalFeed, TrainFeed, join
from mmbench.method import Method
from mmbench.outputs import load_states, save_states
from mmbench.router import KEY, Router, router_samples, train_router
from mmbench.suite_file import parse_suite
from mmbench.train import Fitted, fit
from mmbench.trials import rows

CASES = (COMPLETE, NO_AUDIO, NO_VISION)
SUITE = {"name": "s", "regimes": ["casewise"], "cases": ["complete", "missing-audio"], "seeds": [0]}


def trained(samples: int = 60, seed: int = 0) -> Router:
    feed = TrainFeed(memory_data(train=40), seed, CASES)
    return train_router(Bed().net(), feed, samples, seed, make_bench())


def fitted(method: Method, **changes: Any) -> Fitted:
    job = make_job(cases=CASES, casewise=True, samples=90, blind="router", source=Bed().net(), **changes)
    return fit(method, memory_data(train=40), job, make_bench())


def blind_logits(method: Method, found: Fitted, cases: tuple[Case, ...] = CASES, batch: int = 4) -> list[Tensor]:
    entries = predict_cases(method, found, feeds_for(memory_data(), "test", cases, batch), ("blind",), make_bench())
    return [torch.from_numpy(entry.logits) for entry in entries if isinstance(entry, Predictions)]


def test_every_sample_is_answered_by_the_state_that_was_picked_for_it() -> None:
    method = build("linear-probe")
    found = fitted(method)
    assert found.router is not None
    logits = blind_logits(method, found, (NO_AUDIO,))[0]
    batch = join(list(EvalFeed(memory_data(), "test", NO_AUDIO, 100).batches()))
    picks = found.router.pick(batch).tolist()
    assert len(batch) == len(picks) == 10
    for row, pick in enumerate(picks):
        method.load(found.states[found.router.cases[pick]])
        assert torch.allclose(method.predict(batch.select([row]))[0], logits[row], atol=1e-5)


def test_one_batch_may_hold_samples_of_several_cases() -> None:
    method = build("linear-probe")
    found = fitted(method)
    router = Router(Bed().net(), tuple(sorted(found.states)), trained(120).tensors)
    mixed = Bed().batch(samples=9)
    assert len(set(router.pick(mixed).tolist())) > 1  # else the test would show nothing
    from mmbench.evaluate import _Switcher

    states = _Switcher(method, Fitted(found.states, found.ledger, "router", router))
    whole = states.predict(mixed, COMPLETE, "blind")
    alone = torch.cat([states.predict(mixed.select([i]), COMPLETE, "blind") for i in range(9)])
    assert torch.allclose(whole, alone, atol=1e-5)


@pytest.mark.parametrize("samples", [11, 60, 90, 101])
def test_states_and_router_together_spend_the_budget(samples: int) -> None:
    method, data = make(HeadOnly), memory_data(train=40)
    assert isinstance(method, HeadOnly)
    job = make_job(cases=CASES, casewise=True, samples=samples, blind="router", source=Bed().net())
    found = fit(method, data, job, make_bench())
    assert found.ledger.samples == samples == method.samples() + router_samples(samples)
    assert len(asked(data)) == samples  # every sample is loaded once, the router's too


def test_the_router_learns_cases_that_differ() -> None:
    router = trained(120)
    for index, case in enumerate(router.cases):
        (feed,) = feeds_for(memory_data(test=30), "test", [c for c in CASES if c.name == case], 30)
        (batch,) = feed.batches()
        assert (router.pick(batch) == index).float().mean() > 0.8


def test_the_same_seed_gives_the_same_router_and_another_seed_another() -> None:
    assert equal(trained().tensors, trained().tensors)
    assert not equal(trained().tensors, trained(seed=1).tensors)


def test_picking_is_pure_alone_as_in_a_batch_and_told_nothing() -> None:
    router, batch = trained(120), Bed().batch()
    before = {name: tensor.clone() for name, tensor in router.source.state_dict().items()}
    reads: list[str] = []
    picks = router.pick(watch(batch, frozenset({"case", "available", "affected", "label"}), reads))
    assert not reads
    assert torch.equal(picks, torch.cat([router.pick(batch.select([i])) for i in range(len(batch))]))
    assert equal(before, dict(router.source.state_dict()))
    assert not any(p.requires_grad for p in router.source.parameters())


def test_a_router_is_saved_with_the_states_and_answers_the_same_when_read_back(tmp_path: Path) -> None:
    method = build("linear-probe")
    found = fitted(method)
    assert found.router is not None
    expected = blind_logits(method, found)
    save_states(found, tmp_path)
    states = load_states(tmp_path)
    tensors = states.pop(KEY)
    again = Fitted(states, found.ledger, "router", Router(Bed().net(), tuple(sorted(states)), tensors))
    for one, other in zip(expected, blind_logits(build("linear-probe", seed=3), again), strict=True):
        assert torch.equal(one, other)
    assert set(found.kept()) == {*found.states, KEY}


def test_average_and_concat_can_be_chosen() -> None:
    method = build("prompt-the-missing")
    states = {"complete": method.state(), "missing-audio": build("prompt-the-missing", seed=1).state()}
    ledger = fitted(build("linear-probe")).ledger
    usual, concat, average = (
        blind_logits(method, Fitted(states, ledger, blind), (COMPLETE,))[0] for blind in ("auto", "concat", "average")
    )
    assert torch.equal(usual, concat)
    assert not torch.allclose(usual, average, atol=1e-3)
    each = []
    for state in states.values():
        method.load(state)
        batch = join(list(EvalFeed(memory_data(), "test", COMPLETE, 100).batches()))
        each.append(method.predict(batch).softmax(dim=1))
    assert np.allclose(average.exp(), torch.stack(each).mean(dim=0), atol=1e-5)


def test_concat_is_refused_before_training_where_a_method_does_not_offer_it() -> None:
    data = memory_data()
    with pytest.raises(RefusedError, match="does not put case-wise states together; use blind: average or router"):
        fit(build("linear-probe"), data, make_job(cases=CASES, casewise=True, blind="concat"), make_bench())
    assert asked(data) == []


@pytest.mark.parametrize(
    ("method", "regimes", "match"),
    [
        ({"blind": "router"}, ["mixed"], "add the regime casewise"),
        ({"blind": "magic"}, ["casewise"], "blind"),
        ({"blind": "router", "name": "source"}, ["casewise"], "add the regime casewise"),
    ],
)
def test_a_blind_strategy_without_case_wise_states_is_a_mistake(
    method: dict[str, Any], regimes: list[str], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        rows(parse_suite({**SUITE, "methods": [{"name": "lora-qv", **method}], "regimes": regimes}))


def test_a_blind_strategy_makes_another_trial_where_it_acts_and_is_told_in_the_record() -> None:
    from mmbench.run import facts
    from mmbench.trials import Digests, make_trial

    def made(regime: str, **spec: Any) -> Any:
        suite = parse_suite({**SUITE, "methods": [{"name": "lora-qv", **spec}], "regimes": ["casewise", "mixed"]})
        (row,) = [row for row in rows(suite) if row.regime == regime]
        return make_trial(row, suite, Digests("d", "b"), {"backbone": Path("b"), "store": Path("s")})

    assert made("casewise").id == made("casewise", blind="auto").id != made("casewise", blind="router").id
    assert made("mixed").id == made("mixed", blind="router").id
    assert facts(made("casewise", blind="router")).deviations == ("blind = router",)
    assert facts(made("mixed", blind="router")).deviations == ()
    assert MethodSpec(name="lora-qv").blind == "auto"
