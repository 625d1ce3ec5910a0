"""Cuts: complete, disjoint, repeatable, and true to the recordings."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmbench.config import SplitConfig
from mmbench.data.source import Item
from mmbench.data.splits import Splits, split
from mmbench.errors import DataError


def items_of(groups: list[list[int]]) -> list[Item]:
    """One item per label; a list is a group."""
    return [
        Item(f"{label}/g{group}-{place}", (label,), f"g{group}")
        for group, labels in enumerate(groups)
        for place, label in enumerate(labels)
    ]


def parts(cut: Splits) -> tuple[set[str], set[str], set[str]]:
    return set(cut.train), set(cut.val), set(cut.test)


single_class_groups = st.lists(st.lists(st.integers(0, 0), min_size=1, max_size=6), min_size=3, max_size=8)
every_class_groups = st.lists(st.permutations([0, 1, 2]), min_size=3, max_size=12)


@settings(max_examples=60, deadline=None)
@given(
    groups=st.one_of(single_class_groups, every_class_groups),
    kind=st.sampled_from(["grouped", "random", "published"]),
    seed=st.integers(0, 5),
    test=st.floats(0.1, 0.6),
)
def test_parts_are_whole_disjoint_and_repeatable(groups: list[list[int]], kind: str, seed: int, test: float) -> None:
    items = items_of(groups)
    config = SplitConfig(kind=kind, seed=seed, test=test)
    cut = split(items, config)
    train, val, test_ids = parts(cut)
    assert train and val and test_ids
    assert len(train) + len(val) + len(test_ids) == len(items) and train | val | test_ids == {item.id for item in items}
    shuffled = items.copy()
    random.Random(seed).shuffle(shuffled)
    assert split(shuffled, config) == cut
    sides = {item.id: side for item in items for side, held in enumerate(parts(cut)) if item.id in held}
    groups_seen = {item.group for item in items}
    straddle = any(len({sides[item.id] for item in items if item.group == group}) > 1 for group in groups_seen)
    assert cut.leaks == straddle
    assert not (kind == "grouped" and cut.leaks)
    for label in {item.labels[0] for item in items}:
        assert all(any(id.startswith(f"{label}/") for id in part) for part in (train, val, test_ids))


def test_published_is_seventy_thirty_per_class_and_says_that_it_leaks() -> None:
    items = items_of([[label] * 10 for label in range(3) for _ in range(10)])
    cut = split(items, SplitConfig(kind="published", test=0.5))
    for label in range(3):
        assert sum(id.startswith(f"{label}/") for id in cut.test) == 30
        assert sum(id.startswith(f"{label}/") for id in cut.val) == 10
    assert cut.leaks and "leaks: 30 of 30" in cut.note
    assert set(split(items, SplitConfig(kind="published", seed=1)).test) != set(cut.test)


def test_grouped_stays_near_the_shares_when_recordings_differ_in_size() -> None:
    rng = random.Random(0)
    groups = [[rng.randrange(5)] * rng.randint(1, 15) for _ in range(300)]
    items = items_of(groups)
    cut = split(items, SplitConfig(kind="grouped"))
    for label in range(5):
        total = sum(item.labels[0] == label for item in items)
        share = sum(id.startswith(f"{label}/") for id in cut.test) / total
        assert 0.27 < share < 0.33
    assert not cut.leaks


def test_six_speakers_are_cut_three_ways() -> None:
    cut = split(items_of([[label for label in range(10) for _ in range(5)] for _ in range(6)]), SplitConfig())
    assert [len(part) for part in parts(cut)] == [150, 50, 100]


def test_few_samples_or_recordings_are_named() -> None:
    with pytest.raises(DataError, match=r"recordings .*'dog' has 2.*split\.kind: random"):
        split(items_of([[0], [0], [0], [1, 1, 1, 1], [1, 1]]), SplitConfig(), ("cat", "dog"))
    with pytest.raises(DataError, match=r"samples.*'cat' has 2"):
        split(items_of([[0, 0], [1, 1, 1, 1], [1, 1]]), SplitConfig(kind="random"), ("cat", "dog"))


def test_files_without_known_recordings_are_told() -> None:
    cut = split(items_of([[0]] * 20), SplitConfig())
    assert not cut.leaks and "own group" in cut.note


def test_rare_labels_of_multi_label_data_are_no_error() -> None:
    items = [Item(f"i{n}", (0, 1) if n else (0, 2), f"g{n}") for n in range(20)]
    cut = split(items, SplitConfig())
    assert sum(map(len, parts(cut))) == 20
