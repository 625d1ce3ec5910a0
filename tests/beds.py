"""A data set in memory and everything else a training needs, small enough for many runs a second."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor

from mmbench import registry
from mmbench.bench import Bench
from mmbench.cards import MethodCard, Needs
from mmbench.cases import Case, parse_case
from mmbench.config import Budget, OptimConfig
from mmbench.conformance_bed import SIZES, Bed
from mmbench.data.batch import Batch, RawBatch
from mmbench.data.splits import Splits
from mmbench.data.store import Store
from mmbench.feed import TrialData, seed_from
from mmbench.meter import Clock
from mmbench.method import Loss, Method, Recipe
from mmbench.train import Job

CPU = torch.device("cpu")
COMPLETE = Case("complete")
NO_AUDIO, NO_VISION = parse_case("missing-audio"), parse_case("missing-vision")


@dataclass
class MemoryStore:
    """Samples made from their ids; remembers which were asked for."""

    multi_label: bool = False
    asked: list[str] = field(default_factory=list)
    digest: str = "memory"
    classes: tuple[str, ...] = ("one", "two", "three", "four")
    skipped: tuple[object, ...] = ()

    def batch(self, ids: Sequence[str]) -> RawBatch:
        self.asked += ids
        samples = [self._sample(id) for id in ids]
        labels = torch.tensor([int(id.rpartition("/")[2]) % SIZES.n_classes for id in ids])
        hot = torch.nn.functional.one_hot(labels, SIZES.n_classes).float()
        return RawBatch(
            wave=torch.stack([wave for wave, _, _ in samples]),
            wave_lengths=torch.full((len(ids),), 800),
            image=torch.stack([image for _, image, _ in samples]),
            fbank=torch.stack([mel for _, _, mel in samples]),
            frames=torch.full((len(ids),), SIZES.frames),
            label=hot if self.multi_label else labels,
            ids=tuple(ids),
        )

    def _sample(self, id: str) -> tuple[Tensor, Tensor, Tensor]:
        rng = torch.Generator().manual_seed(seed_from("memory", id))
        wave = torch.randint(-9000, 9000, (800,), generator=rng) / 32768
        image = torch.randint(0, 256, (3, SIZES.image_size, SIZES.image_size), generator=rng, dtype=torch.uint8)
        return wave, image, torch.randn(SIZES.frames, SIZES.mel_bins, generator=rng)


def memory_data(train: int = 20, val: int = 8, test: int = 10, multi_label: bool = False) -> TrialData:
    def ids(part: str, count: int) -> tuple[str, ...]:
        return tuple(f"{part}/{i}" for i in range(count))

    splits = Splits(ids("train", train), ids("val", val), ids("test", test), "random", False, "")
    return TrialData("memory", cast(Store, MemoryStore(multi_label)), splits, multi_label)


def asked(data: TrialData) -> list[str]:
    return cast(MemoryStore, data.store).asked


@dataclass
class Rows:
    """Events, kept."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, **row: Any) -> None:
        self.rows.append(row)


def make_bench(now: Callable[[], float] | None = None, log: Rows | None = None, **budget: Any) -> Bench:
    clock = Clock(CPU, now) if now else Clock(CPU)
    settings = {"batch_size": 8, "eval_batch": 4, "optim": OptimConfig(), **budget}
    return Bench(CPU, Budget(**settings), clock, log or Rows())


def make_job(**changes: Any) -> Job:
    plain = Job(cases=(COMPLETE,), casewise=False, lr=1e-2, samples=20, seed=0, micro_batch=8)
    return replace(plain, **changes)


def build(name: str, options: Mapping[str, Any] | None = None, seed: int = 0, recipe: Recipe | None = None) -> Method:
    """A registered method on the conformance bed's source model."""
    kind: type[Method] = registry.methods().load(name)
    return kind(Bed().net(), recipe or Recipe(), options or {}, torch.Generator().manual_seed(seed))


def make(kind: type[Method], recipe: Recipe | None = None) -> Method:
    """An unregistered method on the same model."""
    return kind(Bed().net(), recipe or Recipe(), {}, torch.Generator().manual_seed(0))


def card(**changes: Any) -> MethodCard:
    needs = Needs(**changes.pop("needs", {}))
    return MethodCard(
        "bed-method", "Bed method", "test", "none", 2026, "M0", needs=needs, lr_range=(1e-3, 1e-1), **changes
    )


class HeadOnly(Method):
    """Trains the head, and counts the samples of its losses."""

    card = card()
    seen: list[Batch]

    def build(self, rng: torch.Generator) -> None:
        self.seen = []

    def loss(self, batch: Batch) -> Loss:
        self.seen.append(batch)
        return super().loss(batch)

    def samples(self) -> int:
        return sum(len(batch) for batch in self.seen)


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)
