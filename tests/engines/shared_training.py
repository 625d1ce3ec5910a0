"""One of two ranks that train method after method together on the bed: `shared_training.py OUT RANK WORLD`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from beds import CPU, NO_AUDIO, build, card, make, make_job, memory_data
from safetensors.torch import save_file
from torch import Tensor, nn
from torch import distributed as dist

from mmbench import registry
from mmbench.bench import Bench
from mmbench.cases import Case
from mmbench.config import Budget, OptimConfig
from mmbench.data.batch import Batch
from mmbench.errors import RefusedError
from mmbench.evaluate import Predictions, feeds_for, predict_cases
from mmbench.feed import TrialData
from mmbench.meter import Clock
from mmbench.method import Loss, Method
from mmbench.ranks import Ranks
from mmbench.train import fit

DATA = memory_data(train=19, test=10)
"""Batches of 8, 8 and 3: in the last one a rank has more to do than the other."""
ODD = memory_data(train=17, test=10)
"""Batches of 8, 8 and 1: in the last one a rank has nothing to do."""
CASES = (Case("complete"), NO_AUDIO)


@dataclass(frozen=True)
class Course:
    name: str
    method: str
    strategies: tuple[str, ...] = ()
    micro_batch: int = 8
    casewise: bool = False
    views: int | None = None
    data: TrialData = DATA


def courses() -> Iterator[Course]:
    methods, strategies = registry.methods(), registry.strategies()
    for name in methods.names():
        if methods.card(name).trains:
            yield Course(name, name)
    for name in strategies.names():
        if not strategies.card(name).whole_step:
            yield Course(f"with-{name}", "lora-all", (name,))
    yield Course("all-views", "lora-all", tuple(n for n in strategies.names() if not strategies.card(n).whole_step))
    yield Course("accumulated", "lora-all", micro_batch=3)
    yield Course("accumulated-views", "full-finetune", ("mixup", "specaugment"), micro_batch=2)
    yield Course("casewise", "prompt-the-missing", casewise=True)
    yield Course("kept-views", "linear-probe", views=2)
    yield Course("idle", "lora-all", data=ODD)


class Remembering(Method):
    """Takes the mean of the logits it has seen off its predictions, and declares nothing."""

    card = card()

    def loss(self, batch: Batch) -> Loss:
        logits = super().logits(batch)
        self.running.mul_(0.5).add_(0.5 * logits.detach().mean(dim=0))
        return Loss(self.criterion(logits, batch.label), logits)

    def logits(self, batch: Batch) -> Tensor:
        return super().logits(batch) - self.running


class WithAttribute(Remembering):
    def build(self, rng: torch.Generator) -> None:
        self.running = torch.zeros(4)


class WithBuffer(Remembering):
    def build(self, rng: torch.Generator) -> None:
        self.extra["mean"] = nn.BatchNorm1d(4, affine=False)

    @property
    def running(self) -> Tensor:
        return self.extra["mean"].running_mean


REMEMBERING = (WithAttribute, WithBuffer)


def bench_of(ranks: Ranks, views: int | None = None) -> Bench:
    # Plain SGD: Adam blows up the last bits of gradients that are zero but for rounding.
    budget = Budget(batch_size=8, eval_batch=4, views=views, optim=OptimConfig(name="sgd"))
    return Bench(CPU, budget, Clock(CPU), ranks=ranks)


def words(kind: type[Method], ranks: Ranks) -> str:
    """What a training is refused with."""
    try:
        fit(make(kind), DATA, make_job(samples=16), bench_of(ranks))
    except RefusedError as error:
        return str(error)
    return ""


def result(course: Course, ranks: Ranks) -> dict[str, Tensor]:
    """Trained tensors, and the logits and the digest of the test."""
    bench = bench_of(ranks, course.views)
    torch.manual_seed(0)
    # Dropout is another one on every rank.
    dry = {"dropout": 0.0} if "dropout" in registry.methods().card(course.method).options else {}
    method = build(course.method, dry)
    known = registry.strategies()
    job = make_job(
        cases=CASES,
        casewise=course.casewise,
        samples=38 if course.casewise or course.views else len(course.data.splits.train),
        micro_batch=course.micro_batch,
        strategies=tuple(known.load(name)({}) for name in course.strategies),
    )
    fitted = fit(method, course.data, job, bench)
    found = {f"{case}/{name}": tensor for case, state in fitted.states.items() for name, tensor in state.items()}
    for entry in predict_cases(method, fitted, feeds_for(course.data, "test", CASES, 4), ("informed",), bench):
        assert isinstance(entry, Predictions)
        found[f"logits {entry.case}"] = torch.from_numpy(entry.logits)
        found[f"digest {entry.case}"] = torch.tensor(list(bytes.fromhex(entry.digest)))
    return found


def main(out: str, rank: str, world: str) -> None:
    ranks = Ranks(int(rank), int(world))
    if ranks.world > 1:
        dist.init_process_group("gloo", init_method=f"file://{out}/meet", rank=ranks.rank, world_size=ranks.world)
    for course in courses():
        save_file(result(course, ranks), Path(out) / f"{course.name}-{rank}of{world}.safetensors")
    for kind in REMEMBERING:
        (Path(out) / f"{kind.__name__}-{rank}of{world}").write_text(words(kind, ranks))


if __name__ == "__main__":
    main(*sys.argv[1:])
