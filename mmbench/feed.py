"""Batches for training and evaluation: store -> case -> what the track allows. Every draw is keyed by content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from mmbench.cards import Track
from mmbench.cases import Case, unmet
from mmbench.data.batch import Batch
from mmbench.data.splits import Splits
from mmbench.data.store import Store
from mmbench.frozen import FrozenSets
from mmbench.pipeline import MissingPlan, SetDigest, Staged, missing_plan, stage_case
from mmbench.rng import TRAINING, StreamKey, integers, permutation, stream

EVERY = slice(None)


@dataclass(frozen=True)
class TrialData:
    """A data set as a trial uses it: the store and the ids of each split."""

    name: str
    store: Store
    splits: Splits
    multi_label: bool
    still_pictures: bool = False
    """Whether the pictures are stills, so that cases which need moving pictures do not apply."""
    frozen: FrozenSets | None = None
    """Where corrupted test sets are read from instead of being made; see mmbench.frozen."""
    pictures: int = 1
    """Of each sample; of several, training shows one at random and a test the middle one."""

    def unmet(self, case: Case) -> str | None:
        """Why a case means nothing on this data; None where it applies."""
        return unmet(case, self.still_pictures, self.pictures)


@dataclass(frozen=True)
class Pending:
    """A training batch of one or several cases, whose features are made by `to` on the device of the model."""

    parts: tuple[Staged, ...]
    places: tuple[int, ...]
    """Where in the batch the samples of the parts belong."""

    def to(self, device: str | torch.device) -> Batch:
        return join([part.to(device) for part in self.parts]).select(np.argsort(self.places).tolist())


@dataclass(frozen=True)
class TrainFeed:
    """Corrupted training batches. The draws depend on data, seed and epoch, never on the method."""

    data: TrialData
    seed: int
    cases: tuple[Case, ...]
    """Each sample draws one of them in each epoch."""
    views: int | None = None
    """How many corrupted views of a sample there are, used in turn; None: as many as epochs."""
    _plans: dict[tuple[str, int], MissingPlan] = field(default_factory=dict, compare=False, repr=False)

    def order(self, samples: int, batch_size: int) -> Iterator[tuple[int, tuple[str, ...]]]:
        """(epoch, ids) of each optimiser step, `samples` ids in all; every epoch is a fresh permutation."""
        ids = self.data.splits.train
        left, epoch = samples, 0
        while left > 0:
            shuffled = [ids[i] for i in permutation(self._stream(epoch, "order", ""), len(ids))][:left]
            for start in range(0, len(shuffled), batch_size):
                yield epoch, tuple(shuffled[start : start + batch_size])
            left -= len(shuffled)
            epoch += 1

    def load(self, epoch: int, ids: Sequence[str]) -> Batch:
        """The samples under their cases, in the given order, with nothing blanked."""
        return self.stage(epoch, ids).to("cpu")

    def stage(self, epoch: int, ids: Sequence[str]) -> Pending:
        """The same before its features are made, for a device."""
        view = self.view_of(epoch)
        key = self._key(view)
        chosen = [self._case_of(id, view) for id in ids]
        parts, places = [], []
        for case in self.cases:
            mine = [i for i, c in enumerate(chosen) if c is case]
            if mine:
                raw = self.data.store.batch([ids[i] for i in mine])
                parts.append(stage_case(raw, case, key, self._plan(case, view)))
                places += mine
        return Pending(tuple(parts), tuple(places))

    def view_of(self, epoch: int) -> int:
        """The view of every sample that an epoch shows."""
        return epoch if self.views is None else epoch % self.views

    def _case_of(self, id: str, view: int) -> Case:
        if len(self.cases) == 1:
            return self.cases[0]
        return self.cases[int(integers(self._stream(view, "case", id), 1, len(self.cases))[0])]

    def _plan(self, case: Case, view: int) -> MissingPlan | None:
        if case.missing is None:
            return None
        where = (case.name, view)
        if where not in self._plans:
            self._plans[where] = missing_plan(case, self.data.splits.train, self._key(view))
        return self._plans[where]

    def _key(self, view: int) -> StreamKey:
        return StreamKey(self.data.name, "train", self.seed, TRAINING, view)

    def _stream(self, view: int, name: str, id: str) -> np.random.Philox:
        return stream(self._key(view), id, "feed", 0, name)


@dataclass(frozen=True)
class EvalFeed:
    """One split under one case: the same tensors for every method, seed, batch size and order."""

    data: TrialData
    split: str
    case: Case
    batch_size: int

    def ids(self) -> tuple[str, ...]:
        ids: tuple[str, ...] = getattr(self.data.splits, self.split)
        return ids

    def batches(self, digest: SetDigest | None = None) -> Iterator[Batch]:
        """Batches with full knowledge; `blank` takes away what a track forbids."""
        for staged in self.staged(digest):
            yield staged.to("cpu")

    def staged(self, digest: SetDigest | None = None, turns: slice = EVERY) -> Iterator[Batch | Staged]:
        """The same before their features are made, for a device; a frozen set has made them. `turns` picks batches."""
        ids, key = self.ids(), StreamKey(self.data.name, self.split, 0)
        parts = [ids[start : start + self.batch_size] for start in range(0, len(ids), self.batch_size)][turns]
        if self.data.frozen is not None and self.split == "test":
            frozen = self.data.frozen.open(self.case)
            for part in parts:
                yield from frozen.batches(part, self.batch_size, digest)
            return
        plan = missing_plan(self.case, ids, key) if self.case.missing else None
        for part in parts:
            yield stage_case(self.data.store.batch(part), self.case, key, plan, digest)


def blank(batch: Batch, track: Track) -> Batch:
    """The batch as a method on this track may see it; labels are never shown at test time."""
    return replace(
        batch,
        label=None,
        case=batch.case if track == "informed" else None,
        available=batch.available if track in ("informed", "avail") else None,
        affected=batch.affected if track == "informed" else None,
    )


def join(parts: Sequence[Batch]) -> Batch:
    """Several batches as one, in order."""
    if len(parts) == 1:
        return parts[0]

    def stack(tensors: list[Tensor | None]) -> Tensor | None:
        present = [t for t in tensors if t is not None]
        return torch.cat(present) if len(present) == len(tensors) else None

    cases = [p.case for p in parts]
    return Batch(
        audio=torch.cat([p.audio for p in parts]),
        image=torch.cat([p.image for p in parts]),
        label=stack([p.label for p in parts]),
        ids=tuple(id for p in parts for id in p.ids),
        case=tuple(c for case in cases for c in case or ()) if all(cases) else None,
        available=stack([p.available for p in parts]),
        affected=stack([p.affected for p in parts]),
    )


@lru_cache(maxsize=1024)
def seed_from(*parts: str | int) -> int:
    """A 63-bit seed from words and numbers, for torch generators."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
