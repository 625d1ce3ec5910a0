"""Trials on several devices: who computes what, what cannot be shared, and what a record says of it. Ranks are threads;
tests/engines/test_ddp.py has real ones."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from beds import CPU, NO_AUDIO, NO_VISION, HeadOnly, make, make_bench, memory_data
from report_records import environment, failed, record
from torch import Tensor
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from mmbench import rank_process
from mmbench.bench import Bench
from mmbench.config import Budget
from mmbench.errors import ConfigError, DivergedError, RefusedError, StoreError
from mmbench.evaluate import Missed, Predictions, feeds_for, predict_cases
from mmbench.executors.base import Share
from mmbench.executors.local import local_slots
from mmbench.launch import RankDiedError, _settle, run_ranks
from mmbench.ledger import Ledger
from mmbench.meter import PeakMeter
from mmbench.plain import Draws
from mmbench.ranks import ALONE, Ranks
from mmbench.report.comparable import select
from mmbench.report.notes import budget_words, device_words
from mmbench.resume import Interrupted
from mmbench.run import _refuse_unserved
from mmbench.suite_file import parse_suite
from mmbench.train import SINGLE, Fitted
from mmbench.trials import Digests, make_trial, rows

T = TypeVar("T")
PLAIN: dict[str, Any] = {"name": "s", "methods": ["lora-qv"], "seeds": [0], "regimes": ["clean"]}


@dataclass
class Meeting:
    """Where threads exchange tensors."""

    world: int
    brought: dict[int, Tensor] = field(default_factory=dict)
    barrier: threading.Barrier = field(init=False)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.world, timeout=30)


@dataclass(frozen=True)
class Thread(Ranks):
    meeting: Meeting = field(default_factory=lambda: Meeting(1))

    def gather(self, tensor: Tensor) -> Tensor:
        self.meeting.brought[self.rank] = tensor
        self.meeting.barrier.wait()
        found = torch.stack([self.meeting.brought[rank] for rank in range(self.world)])
        self.meeting.barrier.wait()
        return found

    def total(self, tensor: Tensor) -> Tensor:
        return self.gather(tensor).sum(dim=0).to(tensor.dtype)


def together(world: int, work: Callable[[Ranks], T]) -> list[T]:
    """What each rank's work gives."""
    meeting = Meeting(world)
    with ThreadPoolExecutor(world) as pool:
        futures = [pool.submit(work, Thread(rank, world, meeting)) for rank in range(world)]
        return [future.result() for future in futures]


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 7, 8, 64])
def test_every_sample_belongs_to_one_rank(world: int, count: int) -> None:
    parts = [Ranks(rank, world).rows(count) for rank in range(world)]
    assert [row for part in parts for row in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    turns = sorted(batch for rank in range(world) for batch in range(count)[Ranks(rank, world).turns])
    assert turns == list(range(count))


def predictions(
    ranks: Ranks, test: int, multi_label: bool, kind: type[HeadOnly] = HeadOnly
) -> list[Predictions | Missed]:
    data = memory_data(test=test, multi_label=multi_label)
    plain = make_bench()
    bench = Bench(CPU, plain.budget, plain.clock, ranks=ranks)
    method = make(kind)
    feeds = feeds_for(data, "test", (NO_AUDIO, NO_VISION), 4)
    return predict_cases(method, Fitted({SINGLE: method.state()}, Ledger()), feeds, ("blind",), bench)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize(("world", "test"), [(2, 10), (3, 10), (4, 3)])
def test_predictions_of_all_ranks_are_those_of_one(world: int, test: int, multi_label: bool) -> None:
    alone = predictions(ALONE, test, multi_label)
    for found in together(world, lambda ranks: predictions(ranks, test, multi_label)):
        for one, other in zip(alone, found, strict=True):
            assert isinstance(one, Predictions) and isinstance(other, Predictions)
            assert (one.case, one.ids, one.digest) == (other.case, other.ids, other.digest)
            assert np.array_equal(one.logits, other.logits) and np.array_equal(one.labels, other.labels)


class Broken(HeadOnly):
    """Has no finite answer for one sample."""

    def predict(self, batch: Any) -> Tensor:
        bad = torch.tensor([id.endswith("/9") for id in batch.ids])
        return super().predict(batch).masked_fill(bad[:, None], torch.nan)


def test_a_prediction_that_is_not_finite_stops_every_rank() -> None:
    def work(ranks: Ranks) -> str:
        with pytest.raises(DivergedError, match="missing-audio are not finite"):
            predictions(ranks, 10, False, Broken)
        return "stopped"

    assert together(2, work) == ["stopped", "stopped"]


def test_peaks_are_those_of_the_largest_rank_and_draws_each_ones_own() -> None:
    def peak(ranks: Ranks) -> int | None:
        meter = PeakMeter(CPU, ranks)
        meter.reset()
        return meter.read().rss_bytes

    assert len(set(together(2, peak))) == 1

    def redrawn(ranks: Ranks) -> tuple[float, float]:
        rng = torch.Generator().manual_seed(ranks.rank)
        state = Draws(rng, ranks).state_dict()
        before = float(torch.rand((), generator=rng))
        Draws(rng, ranks).load_state_dict(state)
        return before, float(torch.rand((), generator=rng))

    (one, one_again), (two, two_again) = together(2, redrawn)
    assert one == one_again != two == two_again


def test_a_flag_of_one_rank_is_seen_by_all() -> None:
    assert together(3, lambda ranks: ranks.any(ranks.rank == 1, False)) == [(True, False)] * 3
    assert ALONE.any(True, False) == (True, False)


def test_a_batch_must_divide() -> None:
    with pytest.raises(ConfigError, match=r"budget: .*devices: 3 cannot share a batch_size of 64 evenly"):
        parse_suite({**PLAIN, "budget": {"devices": 3}})
    with pytest.raises(ConfigError, match=r"budget\.devices"):
        parse_suite({**PLAIN, "budget": {"devices": 0}})


@pytest.mark.parametrize(
    ("method", "devices", "refused"),
    [("full-finetune+ogm-ge", 2, True), ("full-finetune+ogm-ge", 1, False), ("full-finetune+mixup", 2, False)],
)
def test_what_looks_at_a_whole_step_is_refused_by_name(method: str, devices: int, refused: bool) -> None:
    suite = parse_suite({**PLAIN, "methods": [method], "budget": {"devices": devices}})
    if not refused:
        assert len(rows(suite)) == 1
        return
    with pytest.raises(ConfigError, match=r"full-finetune\+ogm-ge: ogm-ge looks at all samples of a step"):
        rows(suite)


def trial_with(**budget: Any) -> Any:
    suite = parse_suite({**PLAIN, "methods": ["lora-qv", "lora-qv+tent"], "budget": budget})
    folders = {"store": Path("store"), "backbone": Path("backbone")}
    return [make_trial(row, suite, Digests("data", "backbone"), folders) for row in rows(suite)]


def test_one_device_is_told_nowhere_and_several_make_another_trial() -> None:
    (plain, online), (one, _), (two, two_online) = trial_with(), trial_with(devices=1), trial_with(devices=2)
    assert plain.id == one.id != two.id
    assert "devices" not in plain.model_dump_json() and "devices" not in Budget().model_dump()
    assert two.budget.model_dump()["devices"] == 2 == Budget.model_validate(two.budget.model_dump()).devices
    assert (plain.devices, online.devices, two.devices, two_online.devices) == (1, 1, 2, 1)


@pytest.mark.parametrize(
    ("device", "workers", "gpus", "cores", "devices", "expected"),
    [
        ("cpu", None, (), 8, 2, [(None, 2)] * 2),
        ("cpu", None, (), 2, 4, [(None, 1)]),
        ("cpu", 3, (), 12, 2, [(None, 2)] * 3),
        ("cuda", None, ("0", "1", "2", "3"), 16, 2, [("0,1", 4), ("2,3", 4)]),
        ("cuda", None, ("4", "6", "7"), 16, 2, [("4,6", 8)]),
        ("cuda", 2, ("0", "1", "2"), 12, 2, [("0,1", 3), ("2,0", 3)]),
    ],
)
def test_a_slot_holds_all_devices_of_a_trial(
    device: str, workers: int | None, gpus: tuple[str, ...], cores: int, devices: int, expected: list[Any]
) -> None:
    slots = local_slots(device, workers, gpus, cores, devices)
    assert [(slot.gpu, slot.threads) for slot in slots] == expected


def test_too_few_gpus_are_told_at_the_door() -> None:
    with pytest.raises(ConfigError, match="asks for 2 GPUs a trial, and there are 1"):
        local_slots("cuda", None, ("0",), 8, 2)
    with pytest.raises(ConfigError, match="use --device cpu"):
        run_ranks(Path("nowhere"), torch.device("cpu", 0), 2)


def test_a_cluster_is_asked_for_all_devices_of_a_trial() -> None:
    assert (Share("cuda", 4, 2).gpus, Share("cuda", 4, 2).cores) == (2, 8)
    assert (Share("cpu", 4, 2).gpus, Share("cpu", 4).cores) == (0, 4)


def died(*codes: int, late: int = 0) -> dict[int, ProcessFailure]:
    """Ranks that ended with these exit codes; the last one `late` seconds after the others, or before them."""
    found = {rank: ProcessFailure(rank, 1, code, "<N/A>") for rank, code in enumerate(codes)}
    for rank, failure in found.items():
        failure.timestamp = 1000 + (late if rank == len(codes) - 1 else 0)
    return found


@pytest.mark.parametrize(
    ("codes", "late", "message"),
    [
        ((69, -9), 0, "rank 1 of 2 was killed by signal 9 (out of host memory, unless someone ended it)"),
        ((-11, -15), 0, "rank 0 of 2 was killed by signal 11"),
        ((1, 69), 0, "rank 0 of 2 ended with exit code 1 and without a record"),
        ((1, -9), 30, "rank 0 of 2 ended with exit code 1 and without a record"),
        ((-11, -9), -1, "rank 1 of 2 was killed by signal 9 (out of host memory, unless someone ended it)"),
        ((1, 3), -1, "rank 1 of 2 ended with exit code 3 and without a record"),
        ((69, 69), 0, "the 2 ranks lost each other"),
    ],
)
def test_the_rank_that_died_first_is_named(codes: tuple[int, int], late: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(RankDiedError) as caught:
        _settle(died(*codes, late=late), tmp_path, 2)
    assert str(caught.value) == message


def test_ranks_that_were_asked_to_stop_leave_no_record(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        _settle(died(69, 130), tmp_path, 2)
    (tmp_path / "1.txt").write_text("no space left")
    with pytest.raises(StoreError, match="rank 1 of 2: no space left"):
        _settle(died(69, 74), tmp_path, 2)


@pytest.mark.parametrize(
    ("status", "message"),
    [("crashed", "rank 1 of 2: it broke"), ("does-not-fit", "rank 1 of 2: it broke"), ("refused", "it broke")],
)
def test_the_record_of_a_rank_that_failed_is_the_trials(status: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "1.json").write_text(failed("LoRA", status, "it broke").model_dump_json())
    found = _settle(died(69, 1), tmp_path, 2)
    assert found.failure is not None
    assert (found.status, found.failure.message) == (status, "rank 1 of 2: it broke")
    (tmp_path / "0.json").write_text(failed("LoRA", status, "it broke").model_dump_json())
    os.utime(tmp_path / "0.json", (2e9, 2e9))  # later
    found = _settle(died(1, 1), tmp_path, 2)
    assert found.failure is not None and found.failure.message == message


@pytest.mark.parametrize(("rank", "status", "left"), [(1, "refused", True), (1, "crashed", True), (1, "ok", False)])
def test_a_rank_that_fails_leaves_its_words(
    rank: int, status: Any, left: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = record("LoRA") if status == "ok" else failed("LoRA", status, "it broke")
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("_watch", "_join"):
        monkeypatch.setattr(rank_process, name, lambda *_: None)
    monkeypatch.setattr(rank_process, "run_rank", lambda *_: ended)
    assert rank_process.main("nowhere", "cpu", str(tmp_path), "1") == (status == "crashed")
    assert (tmp_path / f"{rank}.json").exists() == left


def test_only_what_gloo_says_itself_means_that_another_rank_has_gone() -> None:
    two = Ranks(0, 2)
    assert two.lost(RuntimeError("[../third_party/gloo/transport/tcp/pair.cc:534] Connection closed by peer"))
    assert not two.lost(ConfigError("no folder /data/gloomy-films"))
    assert not ALONE.lost(RuntimeError("gloo"))


@pytest.mark.parametrize(("trains", "devices", "refused"), [(True, 2, True), (True, 1, False), (False, 2, False)])
def test_a_row_that_does_not_train_serves_any_number_of_devices(trains: bool, devices: int, refused: bool) -> None:
    desk: Any = SimpleNamespace(
        data=SimpleNamespace(multi_label=False),
        trial=SimpleNamespace(budget=Budget(devices=devices)),
        meta=SimpleNamespace(config=SimpleNamespace(fusion="as-published")),
        method=SimpleNamespace(card=SimpleNamespace(trains=trains)),
    )
    with pytest.raises(RefusedError) if refused else contextlib.nullcontext():
        _refuse_unserved(desk)


def test_rows_of_other_numbers_of_devices_are_kept_apart() -> None:
    one, two = record("A"), record("B")
    budget = {**two.trial.budget, "devices": 2}
    two = two.model_copy(
        update={
            "trial": two.trial.model_copy(update={"budget": budget}),
            "environment": environment(devices=2, date="2020-01-01T00:00:00+00:00"),
        }
    )
    kept = select([one, two], one.trial.dataset, one.trial.backbone)
    assert [r.trial.title for r in kept.records] == ["A"]
    assert any("devices 2 instead of None" in problem for problem in kept.problems)
    assert "2 devices a trial, each " in device_words(two) and "devices" not in device_words(one)
    assert "2 devices a trial" in budget_words(budget)
