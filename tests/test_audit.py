"""The audit of a step counts what makes it wait for a GPU, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mmbench.audit import Waits
from mmbench.backbone.config import preset
from mmbench.profile_measure import random_batch

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
MASK, PLACES = X[:, 0] > 0, torch.tensor([0, 3])
WAITING: dict[str, Callable[[], object]] = {
    "a value": lambda: X.sum().item(),
    "a branch": lambda: bool(MASK.any()),
    "picking by a mask": lambda: X[MASK],
    "setting by a mask": lambda: X.clone().index_put_((MASK,), X[:1].expand(int(MASK.numpy().sum()), 4)),
    "masked_select": lambda: X.masked_select(MASK[:, None]),
    "unique": lambda: X.unique(),
    "unique rows": lambda: X.unique(dim=0),
    "bincount": lambda: PLACES.bincount(),
    "allclose": lambda: torch.allclose(X, X),
    "repeats of unknown sum": lambda: X[:2].repeat_interleave(PLACES, dim=0),
}
FREE: dict[str, Callable[[], object]] = {
    "picking by places": lambda: X[PLACES],
    "filling a mask": lambda: X.clone().masked_fill_(MASK[:, None], 0.0),
    "one value for a mask": lambda: X.clone().__setitem__(MASK, 0.0),
    "repeats of known sum": lambda: X[:2].repeat_interleave(PLACES, dim=0, output_size=3),
    "a copy in another precision": lambda: X.to(torch.bfloat16),
}


@pytest.mark.parametrize("work", WAITING.values(), ids=WAITING)
def test_what_depends_on_a_value_is_a_wait(work: Callable[[], object]) -> None:
    with Waits() as waits:
        work()
    assert waits.count == 1


@pytest.mark.parametrize("work", FREE.values(), ids=FREE)
def test_what_a_gpu_can_queue_is_none(work: Callable[[], object]) -> None:
    with Waits() as waits:
        work()
    assert waits.count == 0


def test_parts_of_a_batch_are_taken_without_a_wait() -> None:
    batch = random_batch(preset("cavmae-tiny"), 4, torch.device("meta"))
    with Waits() as waits:
        assert len(batch.select(range(2))) == 2
    assert waits.count == 0
