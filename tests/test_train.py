"""Training: the budget is spent exactly, micro-batches change nothing, failures have names."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from beds import (
    COMPLETE,
    NO_AUDIO,
    NO_VISION,
    HeadOnly,
    Rows,
    build,
    card,
    distance,
    equal,
    make,
    make_bench,
    make_job,
    memory_data,
)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmbench.cases import Case
from mmbench.config import OptimConfig
from mmbench.costs import count_step, fit_micro_batch
from mmbench.data.batch import Batch
from mmbench.errors import DivergedError, DoesNotFitError, OverBudgetError
from mmbench.feed import TrainFeed
from mmbench.method import Loss, Method, Phase, State
from mmbench.steps import fitting_step, lr_factor, make_optimizer
from mmbench.strategy import Regimen
from mmbench.train import SINGLE, Fitted, Ledger, fit, shares


@pytest.mark.parametrize("total", [0, 1, 7, 20, 997])
@pytest.mark.parametrize("weights", [[1.0], [0.5, 0.5], [0.1, 0.2, 0.7], [1.0] * 7, [1 / 3] * 3])
def test_shares_sum_exactly_and_are_proportional(total: int, weights: list[float]) -> None:
    parts = shares(total, weights)
    assert sum(parts) == total
    assert all(abs(part - total * w / sum(weights)) <= 1 for part, w in zip(parts, weights, strict=True))


class TwoPhases(HeadOnly):
    def phases(self) -> tuple[Phase, ...]:
        return (Phase("first", 0.3), Phase("second", 0.7))


@pytest.mark.parametrize("kind", [HeadOnly, TwoPhases])
@pytest.mark.parametrize("casewise", [False, True])
@pytest.mark.parametrize("samples", [1, 17, 43])
def test_samples_seen_are_the_budget_over_phases_and_cases(kind: type[HeadOnly], casewise: bool, samples: int) -> None:
    method = make(kind)
    assert isinstance(method, HeadOnly)
    job = make_job(cases=(COMPLETE, NO_AUDIO, NO_VISION), casewise=casewise, samples=samples)
    fitted = fit(method, memory_data(), job, make_bench())
    assert method.samples() == samples
    assert fitted.ledger.samples == samples
    assert set(fitted.states) == ({"complete", "missing-audio", "missing-vision"} if casewise else {SINGLE})


def test_extra_forwards_count_against_the_budget() -> None:
    class Thrice(HeadOnly):
        card = card(needs={"extra_forwards": 2.0})

    method = make(Thrice)
    assert isinstance(method, HeadOnly)
    fitted = fit(method, memory_data(), make_job(samples=30), make_bench())
    assert method.samples() == 10
    assert fitted.ledger.samples == 30


def test_every_epoch_shows_every_sample_once_in_a_new_order() -> None:
    feed = TrainFeed(memory_data(train=20), 0, (COMPLETE,))
    epochs: dict[int, list[str]] = {}
    for epoch, ids in feed.order(50, 8):
        epochs.setdefault(epoch, []).extend(ids)
    assert [len(ids) for ids in epochs.values()] == [20, 20, 10]
    assert Counter(epochs[0]) == Counter(epochs[1])
    assert epochs[0] != epochs[1]
    assert len(set(epochs[2])) == 10


def test_casewise_batches_show_their_case_and_mixed_ones_all() -> None:
    method = make(HeadOnly)
    assert isinstance(method, HeadOnly)
    cases = (COMPLETE, NO_AUDIO)
    fit(method, memory_data(), make_job(cases=cases, casewise=True, samples=16), make_bench())
    assert [set(batch.case or ()) for batch in method.seen] == [{"complete"}, {"missing-audio"}]
    method.seen.clear()
    fit(method, memory_data(), make_job(cases=cases, samples=40), make_bench())
    drawn = Counter(itertools.chain(*(batch.case or () for batch in method.seen)))
    assert set(drawn) == {"complete", "missing-audio"} and min(drawn.values()) > 8
    for batch in method.seen:
        assert batch.available is not None
        assert batch.available[:, 0].tolist() == [name == "complete" for name in batch.case or ()]


def trained(name: str, **changes: object) -> State:
    return fit(build(name), memory_data(), make_job(**changes), make_bench()).states[SINGLE]


@pytest.mark.parametrize("name", ["full-finetune", "lora-qv", "prompt-the-missing"])
def test_the_same_job_twice_gives_the_same_bits(name: str) -> None:
    assert equal(trained(name, cases=(COMPLETE, NO_AUDIO)), trained(name, cases=(COMPLETE, NO_AUDIO)))


def test_another_seed_gives_another_training() -> None:
    assert not equal(trained("linear-probe"), trained("linear-probe", seed=1))


@pytest.mark.parametrize("name", ["full-finetune", "adapter-houlsby", "prompt-the-missing"])
@pytest.mark.parametrize("micro_batch", [1, 3])
def test_micro_batches_end_where_the_whole_batch_does(name: str, micro_batch: int) -> None:
    # Few samples at a small rate: Adam divides by the gradient's size, which blows up rounding where it is near zero.
    one, other = (trained(name, samples=16, lr=1e-4, micro_batch=size) for size in (8, micro_batch))
    assert distance(one, other) < 5e-5


def test_each_case_starts_from_the_start_state_and_not_from_the_case_before() -> None:
    def state(cases: tuple[Case, ...], samples: int) -> Mapping[str, State]:
        job = make_job(cases=cases, casewise=True, samples=samples)
        return fit(build("linear-probe"), memory_data(), job, make_bench()).states

    together = state((COMPLETE, NO_AUDIO), 32)["missing-audio"]
    assert equal(together, state((NO_AUDIO,), 16)["missing-audio"])


class Hungry(HeadOnly):
    """Runs out of memory above `most` samples."""

    most: ClassVar[int] = 2
    error: ClassVar[Exception] = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    def loss(self, batch: Batch) -> Loss:
        if len(batch) > self.most:
            raise self.error
        return super().loss(batch)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: no"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_out_of_memory_halves_the_micro_batch_and_keeps_the_batch(error: Exception) -> None:
    class Short(Hungry):
        pass

    Short.error = error
    method = make(Short)
    assert isinstance(method, HeadOnly)
    fitted = fit(method, memory_data(), make_job(samples=20), make_bench())
    assert fitted.ledger.micro_batch == 2
    assert method.samples() == 20
    assert len(fitted.ledger.times.samples) == 3  # 8 + 8 + 4 as before
    plain = fit(make(HeadOnly), memory_data(), make_job(samples=20, micro_batch=2), make_bench())
    assert equal(fitted.states[SINGLE], plain.states[SINGLE])


def test_what_does_not_fit_alone_is_said_so() -> None:
    class Huge(Hungry):
        most = 0

    with pytest.raises(DoesNotFitError, match="one sample does not fit: CUDA out of memory"):
        fit(make(Huge), memory_data(), make_job(), make_bench())


def test_other_errors_are_not_taken_for_memory() -> None:
    class Wrong(Hungry):
        error = RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        fit(make(Wrong), memory_data(), make_job(), make_bench())


def test_a_diverged_loss_names_the_rate() -> None:
    class Nan(HeadOnly):
        def loss(self, batch: Batch) -> Loss:
            return Loss(super().loss(batch).total * math.nan, batch.audio)

    with pytest.raises(DivergedError, match=r"nan after 8 of 20 samples at lr 0\.01"):
        fit(make(Nan), memory_data(), make_job(), make_bench())


def test_the_wall_clock_ends_a_training() -> None:
    ticks = itertools.count(step=10.0)
    bench = make_bench(now=lambda: next(ticks), wall_clock_minutes=1.0)
    with pytest.raises(OverBudgetError, match="1 minutes"):
        fit(make(HeadOnly), memory_data(), make_job(samples=200), bench)


def test_a_memory_cap_lowers_the_micro_batch_or_says_it_does_not_fit() -> None:
    method, data = build("full-finetune"), memory_data()
    counts = count_step(Regimen(method), data, (COMPLETE,), make_bench())
    gib = [counts.state(batch).total_bytes / 2**30 for batch in (1, 2, 4, 8)]
    assert gib == sorted(gib)
    assert fit_micro_batch(counts, make_bench()) == 8
    assert fit_micro_batch(counts, make_bench(memory_cap_gib=gib[3])) == 8
    assert fit_micro_batch(counts, make_bench(memory_cap_gib=gib[2])) == 4
    assert fit_micro_batch(counts, make_bench(memory_cap_gib=gib[0])) == 1
    with pytest.raises(DoesNotFitError, match="one sample needs"):
        fit_micro_batch(counts, make_bench(memory_cap_gib=gib[0] / 2))


def test_counting_a_step_changes_nothing() -> None:
    method = build("lora-qv")
    before = {name: p.clone() for name, p in method.net.named_parameters()}
    count_step(Regimen(method), memory_data(), (COMPLETE,), make_bench())
    assert equal(before, dict(method.net.named_parameters()))
    assert all(p.grad is None for p in method.net.parameters())


class Reads(TorchDispatchMode):
    """Counts the values that Python reads from tensors, each of which would wait for a GPU."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        self.count += func in (aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["full-finetune", "linear-probe"])
def test_a_step_of_the_loop_reads_no_value(name: str) -> None:
    method, bench = build(name), make_bench()
    optimizer = make_optimizer(method.groups(1e-3), bench.budget.optim)
    batch = TrainFeed(memory_data(), 0, (COMPLETE,)).load(0, [f"train/{i}" for i in range(8)])
    for place in ((0, 2), (1, 2)):
        with Reads() as reads:
            loss = fitting_step(Regimen(method), batch, optimizer, bench, Ledger(micro_batch=3), place)
        assert reads.count == 0
    with Reads() as reads:
        assert float(loss) == loss.item()
    assert reads.count == 2


def test_one_event_an_epoch_says_how_far_it_is() -> None:
    log = Rows()
    fit(make(HeadOnly), memory_data(train=20), make_job(samples=50), make_bench(log=log))
    epochs = [row for row in log.rows if row["event"] == "epoch"]
    assert [(row["epoch"], row["samples"], row["of"]) for row in epochs] == [(0, 20, 50), (1, 40, 50), (2, 50, 50)]
    assert all(math.isfinite(row["loss"]) for row in epochs)


def test_the_method_is_left_in_evaluation_mode() -> None:
    method: Method = make(HeadOnly)
    fitted: Fitted = fit(method, memory_data(), make_job(), make_bench())
    assert not method.net.training
    assert equal(method.state(), fitted.states[SINGLE])


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_the_rate_warms_up_and_ends_as_its_schedule_says(schedule: str) -> None:
    config = OptimConfig.model_validate({"schedule": schedule, "warmup_share": 0.1})
    factors = [lr_factor(step, 100, config) for step in range(100)]
    assert 0 < factors[0] < factors[5] < factors[9] < 1
    assert factors[10] == 1.0
    assert factors[-1] == 1.0 if schedule == "constant" else factors[-1] < 0.01
    assert all(0 <= later <= earlier for earlier, later in itertools.pairwise(factors[10:]))
    assert lr_factor(0, 1, config) == 1.0


@pytest.mark.parametrize(
    ("name", "kind"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)]
)
def test_the_suite_names_the_optimiser(name: str, kind: type[torch.optim.Optimizer]) -> None:
    config = OptimConfig.model_validate({"name": name, "weight_decay": 0.25})
    optimizer = make_optimizer([{"params": [nn.Parameter(torch.ones(1))], "lr": 0.5}], config)
    assert type(optimizer) is kind
    assert optimizer.param_groups[0]["lr"] == 0.5 and optimizer.param_groups[0]["weight_decay"] == 0.25


def test_gradients_are_clipped_to_the_suites_norm() -> None:
    def step(clip_norm: float | None) -> float:
        optim = OptimConfig.model_validate({"name": "sgd", "clip_norm": clip_norm, "weight_decay": 0.0})
        method = make(HeadOnly)
        before = method.state()
        fit(method, memory_data(), make_job(samples=8, lr=1.0), make_bench(optim=optim))
        after = method.state()
        return math.sqrt(sum(float(((after[n] - before[n]) ** 2).sum()) for n in before))

    assert step(1e-3) == pytest.approx(1e-3, rel=1e-3)
    assert step(None) > 1e-2
