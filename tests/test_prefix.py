"""A fixed number of views, and what frozen encoders made of them: fewer encodings, the same training."""

from __future__ import annotations

import errno
import os
import time
from typing import Any

import pytest
import torch
from beds import COMPLETE, asked, build, distance, make_bench, make_job, memory_data

from mmbench import prefix, registry
from mmbench.backbone.cavmae import CAVMAEFT
from mmbench.backbone.hooks import PLAIN
from mmbench.cases import parse_case
from mmbench.data.batch import Batch
from mmbench.errors import MMBenchError
from mmbench.feed import TrainFeed
from mmbench.strategy import Regimen
from mmbench.train import SINGLE, Fitted, fit

NOISY = parse_case("noise-to-both")
TAIL = {"linear-probe", "partial-1", "partial-fusion", "lora-tail", "prompt-attention"}
TRAIN, EPOCHS = 20, 4


def trained(name: str, views: int | None = 2, log: Any = None) -> Fitted:
    job = make_job(cases=(COMPLETE, NOISY), samples=TRAIN * EPOCHS)
    return fit(build(name), memory_data(TRAIN), job, make_bench(views=views, log=log))


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Samples of every pass through the encoders in training."""
    counts: list[int] = []
    encode = CAVMAEFT.encode

    def counting(net: CAVMAEFT, audio: Any, image: Any, hooks: Any = PLAIN, batch: Batch | None = None) -> Any:
        if batch is not None and batch.encoded is None:
            counts.append(len(audio))
        return encode(net, audio, image, hooks, batch)

    monkeypatch.setattr(CAVMAEFT, "encode", counting)
    return counts


@pytest.mark.parametrize("views", [1, 3])
def test_epochs_go_round_the_views_in_turn(views: int) -> None:
    data = memory_data(TRAIN)
    feed, ids = TrainFeed(data, 0, (COMPLETE, NOISY), views), data.splits.train
    first = [feed.load(epoch, ids) for epoch in range(2 * views)]
    for epoch in range(views):
        assert torch.equal(first[epoch].audio, first[epoch + views].audio)
        assert first[epoch].case == first[epoch + views].case
    assert len({batch.audio.sum().item() for batch in first}) == views
    orders = [ids for _, ids in feed.order(2 * views * TRAIN, TRAIN)]
    assert len(set(orders)) == 2 * views  # the order stays fresh


def test_without_a_number_every_epoch_has_a_view_of_its_own() -> None:
    data = memory_data(TRAIN)
    feed = TrainFeed(data, 0, (NOISY,))
    assert len({feed.load(epoch, data.splits.train).audio.sum().item() for epoch in range(3)}) == 3


def test_methods_behind_the_encoders_are_known_by_their_gradients() -> None:
    names = [name for name in registry.methods().names() if registry.methods().card(name).trains]
    assert {name for name in names if prefix.trains_behind_encoders(Regimen(build(name)))} == TAIL


@pytest.mark.parametrize("name", sorted(TAIL))
def test_each_view_is_encoded_once_and_trains_the_same(
    name: str, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = trained(name)
    assert sum(encoded) == 2 * TRAIN
    encoded.clear()
    monkeypatch.setattr("mmbench.prefix.trains_behind_encoders", lambda regimen: False)
    plain = trained(name)
    assert sum(encoded) == EPOCHS * TRAIN
    assert distance(kept.states[SINGLE], plain.states[SINGLE]) < 1e-4
    assert kept.ledger.samples == plain.ledger.samples


def test_a_method_that_reaches_into_the_encoders_reads_the_same_views(encoded: list[int]) -> None:
    fitted = trained("lora-qv")
    assert sum(encoded) == EPOCHS * TRAIN == fitted.ledger.samples


def test_building_counts_as_training_time() -> None:
    job, bench = make_job(cases=(NOISY,), samples=TRAIN * EPOCHS), make_bench(views=2)
    times = fit(build("linear-probe"), memory_data(TRAIN), job, bench).ledger.times
    steps = sum(times.seconds)
    assert times.build_seconds > 0
    assert bench.clock.seconds("train") > steps
    epoch_seconds = times.epoch_seconds(TRAIN)
    assert epoch_seconds is not None
    assert epoch_seconds > times.build_seconds / EPOCHS


def test_reading_and_corrupting_are_no_part_of_the_building(monkeypatch: pytest.MonkeyPatch) -> None:
    stage, pause_seconds = TrainFeed.stage, 0.2

    def slow(feed: TrainFeed, epoch: int, ids: Any) -> Any:
        time.sleep(pause_seconds)
        return stage(feed, epoch, ids)

    monkeypatch.setattr(TrainFeed, "stage", slow)
    job, bench = make_job(cases=(NOISY,), samples=TRAIN), make_bench(views=1, batch_size=TRAIN)
    times = fit(build("linear-probe"), memory_data(TRAIN), job, bench).ledger.times
    assert bench.clock.seconds("data") > pause_seconds > times.build_seconds > 0


def test_stored_samples_are_read_once_per_view() -> None:
    data, job = memory_data(TRAIN), make_job(cases=(NOISY,), samples=TRAIN * EPOCHS)
    fit(build("linear-probe"), data, job, make_bench(views=1))
    assert len(asked(data)) == TRAIN


def test_a_full_disk_is_named_and_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(MMBenchError, match=r"No space left on device.*budget\.views"):
        trained("linear-probe")


def test_nothing_is_left_on_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    trained("linear-probe")
    assert list(tmp_path.iterdir()) == []
