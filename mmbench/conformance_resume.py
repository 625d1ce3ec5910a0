"""A training that is interrupted between two steps ends as one that is not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch

from mmbench.config import OptimConfig
from mmbench.conformance_bed import STEPS, Subject, mode
from mmbench.conformance_checks import same, words
from mmbench.method import Method, State
from mmbench.plain import Draws, Tensors, pack, resumable, unpack
from mmbench.steps import make_optimizer
from mmbench.strategy import Regimen


@dataclass
class Course:
    """A phase of a training on the bed, step by step."""

    subject: Subject
    method: Method
    phase: int

    def __post_init__(self) -> None:
        for phase in self.method.phases()[: self.phase + 1]:
            self.method.begin(phase)
        low, high = self.method.card.lr_range
        self.optimizer = make_optimizer(self.method.groups((low * high) ** 0.5), OptimConfig())
        self.rng = torch.Generator().manual_seed(0)
        mode(self.method, True)

    def step(self, step: int) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        batch = self.method.view(self.subject.bed.batch(step), self.rng)
        self.method.loss(batch).total.backward()  # type: ignore[no-untyped-call]
        self.method.after_backward(step, STEPS)
        self.optimizer.step()
        self.method.after_step(step, STEPS)

    def parts(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer,
            "rng": Draws(self.rng),
            **resumable(Regimen(self.method), torch.device("cpu")),
        }


def resumes(subject: Subject) -> str | None:
    """Checked before the last step of every phase, by way of what a file can hold."""
    if not subject.make().card.trains:
        return None
    for phase in range(len(subject.make().phases())):
        whole = Course(subject, subject.make(), phase)
        for step in range(STEPS - 1):
            whole.step(step)
        kept = _written(whole)
        expected, state = _ended(whole), _ended(_resumed(subject, phase, kept))
        if not same(expected, state):
            odd = {name for name in expected if not torch.equal(expected[name], state[name])}
            return (
                f"a training that was interrupted ends with another {words(odd)}: keep what lasts from step to step "
                "in attributes of the method that are numbers, text, tensors, or lists and dicts of these"
            )
    return None


def _written(course: Course) -> tuple[str, Tensors]:
    tensors = Tensors()
    text = json.dumps(pack({name: part.state_dict() for name, part in course.parts().items()}, tensors))
    tensors.named.update({name: tensor.clone() for name, tensor in tensors.named.items()})
    return text, tensors


def _ended(course: Course) -> State:
    course.step(STEPS - 1)
    course.method.finish()
    return course.method.state()


def _resumed(subject: Subject, phase: int, written: tuple[str, Tensors]) -> Course:
    text, tensors = written
    course = Course(subject, subject.make(), phase)
    torch.rand(1)  # the global generator is never where it was before
    states = unpack(json.loads(text), tensors.named, torch.device("cpu"))
    for name, part in course.parts().items():
        part.load_state_dict(states[name])
    return course
