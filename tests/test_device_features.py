"""Features and the corruptions behind them are made on the device asked for, out of bytes made on the CPU."""

from __future__ import annotations

import pytest
import torch
from beds import memory_data

from mmbench import registry
from mmbench.cases import Case, parse_case
from mmbench.corruption import Stage
from mmbench.feed import EvalFeed, TrainFeed
from mmbench.pipeline import LATER, SetDigest

META = torch.device("meta")  # has no values, but mixing it with another device is an error as on a GPU
CARDS = {name: registry.corruptions().card(name) for name in registry.corruptions().names()}
AFTER_THE_BYTES = [name for name, card in CARDS.items() if Stage(card.stage) in LATER]


def case_of(name: str) -> Case:
    card = CARDS[name]
    text = name if 0 in card.severities else f"{name}@3"
    return Case("later", audio=text) if card.modality == "audio" else Case("later", vision=text)


@pytest.mark.parametrize("name", AFTER_THE_BYTES)
def test_corruptions_behind_the_bytes_run_where_the_features_are(name: str) -> None:
    feed = TrainFeed(memory_data(), 0, (case_of(name),))
    ids = feed.data.splits.train[:6]
    here, there = feed.load(0, ids), feed.stage(0, ids).to(META)
    for mine, theirs in ((here.audio, there.audio), (here.image, there.image)):
        assert theirs.device == META
        assert (theirs.shape, theirs.dtype) == (mine.shape, mine.dtype)


@pytest.mark.parametrize("name", ["missing-audio", "missing-vision", "noise-to-both", "complete"])
def test_cases_of_every_stage_arrive_whole(name: str) -> None:
    feed = EvalFeed(memory_data(), "test", parse_case(name), 4)
    for here, staged in zip(feed.batches(), feed.staged(), strict=True):
        there = staged.to(META)
        assert there.ids == here.ids and there.case == here.case
        for field in ("audio", "image", "label", "available", "affected"):
            mine, theirs = getattr(here, field), getattr(there, field)
            assert theirs.device == META, field
            assert (theirs.shape, theirs.dtype) == (mine.shape, mine.dtype), field


def test_a_digest_does_not_know_the_device() -> None:
    feed = EvalFeed(memory_data(), "test", parse_case("noise-to-both"), 4)
    found = []
    for device in ("cpu", META):
        digest = SetDigest()
        for staged in feed.staged(digest):
            staged.to(device)
        found.append(digest.hexdigest())
    assert found[0] == found[1]


def test_several_cases_come_in_the_order_asked_for() -> None:
    feed = TrainFeed(memory_data(), 0, (parse_case("complete"), parse_case("missing-audio")))
    ids = feed.data.splits.train
    batch = feed.stage(0, ids).to("cpu")
    assert batch.ids == ids and len(set(batch.case or ())) == 2
    alone = [feed.load(0, [id]) for id in ids]
    assert torch.equal(batch.audio, torch.cat([one.audio for one in alone]))
