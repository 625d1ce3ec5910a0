"""A small corruption detector: it finds the case of a sample, so that case-wise states can answer without being told.

An MLP reads the frozen source model's pooled vector; its classes are the training cases.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mmbench.backbone.cavmae import CAVMAEFT
from mmbench.bench import Bench
from mmbench.data.batch import Batch
from mmbench.feed import TrainFeed, seed_from
from mmbench.method import State

SHARE = 0.1
"""Of the samples of a training with a router; the states share the rest."""
KEY = "(router)"
"""Under which a router's tensors lie beside those of the cases."""
HIDDEN = 64
PASSES = 200
"""Steps of the MLP, each over all vectors: the backbone, which is what costs, sees every sample once."""
LR, WEIGHT_DECAY = 1e-2, 1e-2


@dataclass(frozen=True)
class Router:
    """A trained detector on its source model, which is the plain backbone in evaluation mode."""

    source: CAVMAEFT
    cases: tuple[str, ...]
    """In the order of the classes: sorted, so that a file of states tells them."""
    tensors: State

    def pick(self, batch: Batch) -> Tensor:
        """Position in `cases` for every sample: (B,) int64."""
        found: Tensor = _scores(self.tensors, _vectors(self.source, batch)).argmax(dim=1)
        return found


def router_samples(samples: int) -> int:
    """What a router takes of a budget."""
    return max(1, round(SHARE * samples))


def train_router(
    source: CAVMAEFT, feed: TrainFeed, samples: int, seed: int, bench: Bench, tensors: State | None = None
) -> Router:
    """Fit a detector of the feed's cases on `samples` corrupted training samples, forwarded once each.

    With `tensors`, those of an earlier run, nothing is trained.
    """
    cases = tuple(sorted(case.name for case in feed.cases))
    source = source.eval().requires_grad_(False)
    if tensors is not None:
        return Router(source, cases, tensors)
    vectors, classes = _look(source, feed, samples, cases, bench)
    with bench.clock.phase("train"):
        rng = torch.Generator().manual_seed(seed_from("router", seed))
        tensors = _fit(vectors, classes, _start(source.config.embed_dim, len(cases), rng))
        hits = float((_scores(tensors, vectors).argmax(dim=1) == classes).float().mean())
    bench.log(event="router", samples=samples, training_accuracy=hits)
    return Router(source, cases, tensors)


def _look(
    source: CAVMAEFT, feed: TrainFeed, samples: int, cases: tuple[str, ...], bench: Bench
) -> tuple[Tensor, Tensor]:
    """Vectors (N, D) and the positions of their cases (N,)."""
    vectors, classes = [], []
    for epoch, ids in feed.order(samples, bench.budget.eval_batch):
        bench.check_deadline()
        with bench.clock.phase("data"):
            batch = feed.load(epoch, ids).to(bench.device)
        assert batch.case is not None  # training batches come with full knowledge
        with bench.clock.phase("train"), bench.autocast():
            vectors.append(_vectors(source, batch))
        classes += [cases.index(case) for case in batch.case]
    return torch.cat(vectors), torch.tensor(classes, device=bench.device)


def _vectors(source: CAVMAEFT, batch: Batch) -> Tensor:
    with torch.no_grad():
        return source.pooled(batch.audio, batch.image).float()  # (B, D)


def _start(dim: int, classes: int, rng: torch.Generator) -> State:
    return {
        "hidden.weight": torch.empty(HIDDEN, dim).normal_(std=dim**-0.5, generator=rng),
        "hidden.bias": torch.zeros(HIDDEN),
        "out.weight": torch.zeros(classes, HIDDEN),
        "out.bias": torch.zeros(classes),
    }


def _fit(vectors: Tensor, classes: Tensor, start: State) -> State:
    """The detector after all its passes, with the scale of its inputs."""
    scale = {"mean": vectors.mean(dim=0), "std": vectors.std(dim=0, correction=0).clamp_min(1e-6)}
    weights = {name: tensor.to(vectors.device).requires_grad_() for name, tensor in start.items()}
    optimizer = torch.optim.AdamW(weights.values(), lr=LR, weight_decay=WEIGHT_DECAY)
    for _ in range(PASSES):
        optimizer.zero_grad()
        F.cross_entropy(_scores({**weights, **scale}, vectors), classes).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return {name: tensor.detach().cpu() for name, tensor in {**weights, **scale}.items()}


def _scores(tensors: State, vectors: Tensor) -> Tensor:
    """(B, D) to (B, cases)."""
    tensors = {name: tensor.to(vectors.device) for name, tensor in tensors.items()}
    scaled = (vectors - tensors["mean"]) / tensors["std"]
    hidden = F.gelu(F.linear(scaled, tensors["hidden.weight"], tensors["hidden.bias"]))
    return F.linear(hidden, tensors["out.weight"], tensors["out.bias"])
