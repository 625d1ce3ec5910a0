"""Absence: exact counts, nested in the rate, never both; fills have the values they name."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmbench.cases import Case, Missing, parse_case
from mmbench.corruption import load_corruption
from mmbench.pipeline import missing_plan
from mmbench.rng import StreamKey

KEY = StreamKey("synthetic-av", "test", 0)
IDS = tuple(f"clip-{i}" for i in range(101))


def mixed(rate: float, share: float = 0.5) -> Case:
    return Case("mixed", missing=Missing("mixed", rate, share))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 101), st.integers(0, 100), st.integers(0, 100), st.integers(0, 3))
def test_counts_are_exact(samples: int, percent: int, share_percent: int, seed: int) -> None:
    case = mixed(percent / 100, share_percent / 100)
    plan = missing_plan(case, IDS[:samples], StreamKey("d", "test", seed))
    absent = samples * percent // 100
    vision = absent * (100 - share_percent) // 100
    assert (len(plan.audio), len(plan.vision)) == (absent - vision, vision)
    assert not plan.audio & plan.vision
    assert plan.audio | plan.vision <= set(IDS[:samples])


def test_nested_in_the_rate() -> None:
    plans = [missing_plan(mixed(rate), IDS, KEY) for rate in (0, 0.1, 0.3, 0.5, 0.7, 0.9, 1)]
    for lower, higher in pairwise(plans):
        assert lower.audio <= higher.audio and lower.vision <= higher.vision
    assert len(plans[-1].audio | plans[-1].vision) == len(IDS)


def test_plan_ignores_the_order_and_obeys_the_key() -> None:
    plan = missing_plan(mixed(0.5), IDS, KEY)
    assert missing_plan(mixed(0.5), IDS[::-1], KEY) == plan
    assert missing_plan(mixed(0.5), IDS, StreamKey("synthetic-av", "test", 1)) != plan
    assert missing_plan(mixed(0.5), IDS, StreamKey("synthetic-av", "val", 0)) != plan


@pytest.mark.parametrize(("name", "column"), [("missing-audio", 0), ("missing-vision", 1)])
def test_one_modality(name: str, column: int) -> None:
    available = missing_plan(parse_case(name), IDS, KEY).available(IDS)
    assert available.shape == (101, 2)
    assert not available[:, column].any() and available[:, 1 - column].all()


def test_rate_is_read_as_written() -> None:
    assert Missing("audio", 0.29).counts(100) == (29, 0)
    assert Missing("mixed", 0.7).vision_share() == Fraction(1, 2)


def test_complete_cases_miss_nothing() -> None:
    assert missing_plan(parse_case("complete"), IDS, KEY).available(IDS).all()


@pytest.mark.parametrize(("name", "value"), [("silence", -2.4218), ("mean", 0.0), ("raw-zero", 1.1329)])
def test_audio_fills(name: str, value: float) -> None:
    corruption = load_corruption(f"missing/audio-{name}")
    out = corruption.apply(torch.randn(2, 16, 128), corruption.draws(KEY, ("a", "b"), torch.tensor([3, 16])))
    torch.testing.assert_close(out, torch.full_like(out, value), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "rgb"),
    [
        ("black", (-2.1179, -2.0357, -1.8044)),
        ("mean", (0.0, 0.0, 0.0)),
        ("white", (2.2489, 2.4286, 2.64)),
    ],
)
def test_vision_fills(name: str, rgb: tuple[float, float, float]) -> None:
    corruption = load_corruption(f"missing/vision-{name}")
    out = corruption.apply(torch.randn(2, 3, 8, 8), corruption.draws(KEY, ("a", "b"), torch.tensor([8, 8])))
    torch.testing.assert_close(out, torch.tensor(rgb).view(1, 3, 1, 1).expand_as(out), atol=1e-4, rtol=0)
