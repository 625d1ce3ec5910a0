"""Each rule has a teeth test: a method that breaks it alone is caught by it, and by no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mmbench.conformance import CHECKS, check_method

HEAD = """
import torch
from torch import nn
from mmbench.method import Method, Loss, Phase
from mmbench.registry import method
from dataclasses import replace


class Sound(Method):
    def build(self, rng):
        self.extra["scale"] = nn.Linear(4, 4)
        with torch.no_grad():
            self.extra["scale"].weight.zero_()
            self.extra["scale"].bias.zero_()

    def logits(self, batch):
        plain = self.net(batch.audio, batch.image, hooks=self.hooks, batch=batch)
        return plain + self.extra["scale"](plain)


@method("{name}", title="T", family="f", reference="r", year=2026, memory="M2"{facts})
class Plugin(Sound):
    kind = 'what is tested'
"""

DEFECTS = {
    "identity-at-start": """
    def build(self, rng):
        super().build(rng)
        self.extra["scale"].bias.data.fill_(0.5)
""",
    "gradients-reach": """
    def build(self, rng):
        super().build(rng)
        self.extra["unused"] = nn.Linear(2, 2)
        with torch.no_grad():
            self.extra["unused"].weight.zero_()
            self.extra["unused"].bias.zero_()
""",
    "frozen-unchanged": """
    def after_backward(self, step, steps):
        with torch.no_grad():
            self.net.norm_a.weight += 0.1
""",
    "state-round-trip": """
    def build(self, rng):
        super().build(rng)
        self.mix = torch.randn(4, 4, generator=rng)

    def logits(self, batch):
        plain = self.net(batch.audio, batch.image, hooks=self.hooks, batch=batch)
        return plain + self.extra["scale"](plain) @ self.mix
""",
    "start-is-restored": """
    def state(self):
        return {name: tensor.detach() for name, tensor in self.kept().items()}
""",
    "export-equals-predict": """
    def export(self):
        return self.exported_copy()
""",
    "alone-equals-batch": """
    def predict(self, batch):
        return super().predict(batch) + (6 - len(batch)) / 100
""",
    "count-is-declared": """
    pass
""",
    "blind-call": """
    def predict(self, batch):
        logits = super().predict(batch)
        return logits + 1 if batch.case and "gale" in batch.case else logits
""",
    "training-knowledge": """
    def loss(self, batch):
        weight = 1.0 + len(batch.case[0]) * 0
        return Loss(weight * super().loss(batch).total, batch.audio)
""",
    "phases-share": """
    def phases(self):
        return (Phase("one", 0.5), Phase("two", 0.6))
""",
    "groups-cover": """
    def groups(self, lr):
        return super().groups(lr)[:1]
""",
    "predict-is-pure": """
    def predict(self, batch):
        return self.logits(batch).detach()
""",
    "micro-batches": """
    def loss(self, batch):
        return Loss(super().loss(batch).total * len(batch), batch.audio)
""",
    "view-is-pure": """
    def view(self, batch, rng):
        return replace(batch, audio=batch.audio + torch.randn(batch.audio.shape))
""",
    "start-is-seeded": """
    def build(self, rng):
        super().build(rng)
        self.extra["scale"].weight.data = torch.randn(4, 4) * 1e-9
""",
    "combined-state": """
    def combine(self, states):
        return {name: torch.stack([s[name] for s in states]) for name in states[0]}
""",
    "resumes": """
    def begin(self, phase):
        self.steps = iter(range(100))  # no data

    def loss(self, batch):
        plain = super().loss(batch)
        return Loss(plain.total * (1 + self.passed()), plain.logits)

    def passed(self):
        import operator
        return operator.length_hint(self.steps) / 100 if hasattr(self, "steps") else 1.0

    def after_step(self, step, steps):
        next(self.steps)
""",
}


def failed(use_plugin: Callable[[str], Path], name: str, body: str) -> list[str]:
    facts = ', parameters="C * C"' if name.endswith("count-is-declared") else ""
    use_plugin(HEAD.format(name=name, facts=facts) + body)
    return [finding.check for finding in check_method(name) if not finding.ok]


def test_every_rule_has_a_method_that_breaks_it() -> None:
    assert set(DEFECTS) == {check.name for check in CHECKS}


def test_the_unbroken_plugin_keeps_every_rule(use_plugin: Callable[[str], Path]) -> None:
    assert failed(use_plugin, "plugin-sound", "") == []


@pytest.mark.parametrize("check", DEFECTS)
def test_a_broken_method_is_caught_by_its_rule_alone(check: str, use_plugin: Callable[[str], Path]) -> None:
    assert failed(use_plugin, f"plugin-{check}", DEFECTS[check]) == [check]
