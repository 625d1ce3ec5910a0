"""One of two ranks that train method after method together on the bed: `shared_training.py OUT RANK WORLD`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from beds import CPU, NO_AUDIO, build, make_job, memory_data
from safetensors.torch import save_file
from torch import Tensor
from torch import distributed as dist

from mmbench import registry
from mmbench.bench import Bench
from mmbench.cases import Case
from mmbench.config import Budget, OptimConfig
from mmbench.evaluate import Predictions, feeds_for, predict_cases
from mmbench.meter import Clock
from mmbench.ranks import Ranks
from mmbench.train import fit

DATA = memory_data(train=17, test=10)
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


def result(course: Course, ranks: Ranks) -> dict[str, Tensor]:
    """Trained tensors, and the logits and the digest of the test."""
    # Plain SGD: Adam blows up the last bits of gradients that are zero but for rounding.
    budget = Budget(batch_size=8, eval_batch=4, views=course.views, optim=OptimConfig(name="sgd"))
    bench = Bench(CPU, budget, Clock(CPU), ranks=ranks)
    torch.manual_seed(0)
    # Dropout is another one on every rank.
    dry = {"dropout": 0.0} if "dropout" in registry.methods().card(course.method).options else {}
    method = build(course.method, dry)
    known = registry.strategies()
    job = make_job(
        cases=CASES,
        casewise=course.casewise,
        samples=34 if course.casewise or course.views else 17,
        micro_batch=course.micro_batch,
        strategies=tuple(known.load(name)({}) for name in course.strategies),
    )
    fitted = fit(method, DATA, job, bench)
    found = {f"{case}/{name}": tensor for case, state in fitted.states.items() for name, tensor in state.items()}
    for entry in predict_cases(method, fitted, feeds_for(DATA, "test", CASES, 4), ("informed",), bench):
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


if __name__ == "__main__":
    main(*sys.argv[1:])
