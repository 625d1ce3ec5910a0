"""Samples side by side on several threads: the same numbers as one after the other, and no trace left behind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmbench.corruption import load_corruption
from mmbench.parallel import side_by_side
from mmbench.rng import StreamKey

SHAPES = {"audio": (6, 128, 128), "vision": (6, 3, 64, 64)}
NAMES = [
    *("seed/audio-both", "seed/audio-both-as-shipped", "seed/vision-alone", "seed/vision-both"),
    *("imagenet_c/gaussian_noise@3", "imagenet_c/glass_blur@3", "imagenet_c/elastic_transform@2"),
]


pytestmark = pytest.mark.usefixtures("two_threads")


def corrupted(name: str, threads: int) -> Tensor:
    corruption = load_corruption(name)
    x = torch.randn(SHAPES[corruption.card.modality], generator=torch.Generator().manual_seed(0))
    if not name.startswith("seed/"):
        x = (64 * x + 128).clamp(0, 255).to(torch.uint8)
    draws = corruption.draws(StreamKey("any", "test", 0), tuple("abcdef"), torch.full((6,), 60))
    torch.set_num_threads(threads)
    return corruption.apply(x, draws)


@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_threads_changes_nothing(name: str) -> None:
    assert torch.equal(corrupted(name, 1), corrupted(name, 2))


def test_every_item_is_worked_on_by_a_thread_of_its_own() -> None:
    seen: list[tuple[int, int]] = []
    side_by_side(lambda item: seen.append((item, torch.get_num_threads())), range(20))
    assert sorted(seen) == [(item, 1) for item in range(20)]
    assert torch.get_num_threads() == 2


def test_an_error_is_passed_on_and_the_threads_restored() -> None:
    def work(item: int) -> None:
        if item == 3:
            raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 3"):
        side_by_side(work, range(8))
    inside: list[int] = []
    side_by_side(lambda _: inside.append(torch.get_num_threads()), range(2))
    assert torch.get_num_threads() == 2 and set(inside) == {1}
