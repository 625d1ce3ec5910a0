"""Every registered online adapter keeps every rule, and each rule catches an adapter that breaks it alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from test_online_adapters import OPEN
from typer.testing import CliRunner

from mmbench import registry
from mmbench.cli import app
from mmbench.conformance_online import RULES, check_online, check_rule, default_bases
from mmbench.errors import UnknownNameError

BASES = ("source", "lora-qv", "prompt-the-missing")


@pytest.mark.parametrize("name", registry.onlines().names())
@pytest.mark.parametrize("rule", RULES)
def test_adapter_keeps_the_rule(name: str, rule: str) -> None:
    finding = check_rule(rule, name, BASES)
    assert finding.ok, finding.message


@pytest.mark.parametrize("name", [name for name, options in OPEN.items() if options])
def test_an_adapter_whose_filters_let_no_sample_through_is_a_finding(name: str) -> None:
    findings = {finding.check: finding for finding in check_online(name, ("source",), {"margin": 0.0})}
    assert [check for check, finding in findings.items() if not finding.ok] == ["samples-enter"]
    assert findings["samples-enter"].message.startswith("over source: no sample enters an update")


HEAD = """
import torch
from torch import nn
from mmbench.errors import RefusedError
from mmbench.online import Online
from mmbench.registry import online


class Sound(Online):
    # Entropy of one pass, one step on the head's bias.
    def updated(self):
        return {{"bias": self.method.net.mlp_head[1].bias}}

    def begin(self):
        self.optimizer = torch.optim.Adam(list(self.updated().values()), lr=0.01)

    def objective(self, batch):
        p = self.method.logits(batch).softmax(dim=1)
        noise = torch.rand(len(batch), generator=self.rng)
        return -((p * p.log()).sum(dim=1) * noise).mean()

    def adapt(self, batch):
        self.objective(batch).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return len(batch)


@online("{name}", title="T", reference="r", year=2026, memory="M0", updates="the head's bias", parameters="{formula}")
class Plugin(Sound):
    kind = "what is tested"
"""

DEFECTS = {
    "reset-restores": """
    def begin(self):
        if not hasattr(self, "optimizer"):
            super().begin()
""",
    "no-gradient-left": """
    def reset(self, steps=None):
        super().reset(steps)
        self.updated()["bias"].grad = torch.zeros_like(self.updated()["bias"])
""",
    "predict-is-pure": """
    seen = 0

    def predict(self, batch):
        self.seen += 1
        return super().predict(batch)

    def begin(self):
        super().begin()
        self.seen = 0

    def objective(self, batch):
        return super().objective(batch) * (1 if self.seen else -1)
""",
    "starts-unadapted": """
    def predict(self, batch):
        return super().predict(batch) + 0.01
""",
    "samples-enter": """
    def adapt(self, batch):
        super().adapt(batch)
        return 0
""",
    "changes-are-declared": """
    def adapt(self, batch):
        with torch.no_grad():
            self.method.net.norm_a.bias += 0.1
        return super().adapt(batch)

    def reset(self, steps=None):
        if not hasattr(self, "kept"):
            self.kept = self.method.net.norm_a.bias.clone()
        with torch.no_grad():
            self.method.net.norm_a.bias.copy_(self.kept)
        super().reset(steps)
""",
    "updates-reach": """
    def updated(self):
        return {**super().updated(), "unused": self.method.net.norm_a.bias}
""",
    "knowledge": """
    def adapt(self, batch):
        batch.case
        return super().adapt(batch)
""",
    "batch-unchanged": """
    def adapt(self, batch):
        used = super().adapt(batch)
        batch.audio.mul_(1.0 + 1e-7)
        return used
""",
    "single-sample": """
    def adapt(self, batch):
        return super().adapt(batch) * (2 if len(batch) == 1 else 1)
""",
    "finite": """
    def adapt(self, batch):
        return super().adapt(batch) + (7 if len(batch) > 2 else 0)
""",
    "count-is-declared": "    pass",
    "forwards-are-declared": """
    def adapt(self, batch):
        self.method.predict(batch)
        return super().adapt(batch)
""",
    "draws-are-seeded": """
    def build(self):
        self.scale = torch.rand(6)

    def objective(self, batch):
        p = self.method.logits(batch).softmax(dim=1)
        return -((p * p.log()).sum(dim=1) * self.scale[: len(batch)]).mean()
""",
}
FORMULAS = {"count-is-declared": "C + 1", "updates-reach": "C + d"}


def failed(use_plugin: Callable[[str], Path], rule: str, body: str) -> list[str]:
    name = f"online-{rule}"
    use_plugin(HEAD.format(name=name, formula=FORMULAS.get(rule, "C")) + body)
    return [finding.check for finding in check_online(name, ("source",)) if not finding.ok]


def test_every_rule_has_an_adapter_that_breaks_it() -> None:
    assert set(DEFECTS) == set(RULES)


def test_the_unbroken_adapter_keeps_every_rule(use_plugin: Callable[[str], Path]) -> None:
    assert failed(use_plugin, "sound", "") == []


@pytest.mark.parametrize("rule", DEFECTS)
def test_a_broken_adapter_is_caught_by_its_rule_alone(rule: str, use_plugin: Callable[[str], Path]) -> None:
    assert failed(use_plugin, rule, DEFECTS[rule]) == [rule]


REFUSING = """
    def build(self):
        if {refuses}:
            raise RefusedError("nothing to update")
"""


@pytest.mark.parametrize(("refuses", "ok"), [("not self.method.card.trains", True), ("True", False)])
def test_a_method_that_an_adapter_refuses_is_left_out(
    refuses: str, ok: bool, use_plugin: Callable[[str], Path]
) -> None:
    use_plugin(HEAD.format(name="picky", formula="C") + REFUSING.format(refuses=refuses))
    finding = check_rule("finite", "picky", ("source", "linear-probe"))
    assert finding.ok == ok and (ok or "refuses every method: nothing to update" in finding.message)


def test_an_adapter_is_checked_over_a_frozen_a_lora_and_a_prompt_method_unless_told() -> None:
    families = [registry.methods().card(name).family for name in default_bases()]
    assert families == ["frozen", "lora", "prompt"]


def test_a_defect_over_one_method_alone_names_it(use_plugin: Callable[[str], Path]) -> None:
    body = """
    def predict(self, batch):
        return super().predict(batch) + (1 if self.method.card.trains else 0)
"""
    use_plugin(HEAD.format(name="biased", formula="C") + body)
    finding = check_rule("starts-unadapted", "biased", ("source", "linear-probe"))
    assert not finding.ok and finding.message.startswith("over linear-probe: before the first update")


def test_an_unknown_adapter_is_an_error_and_not_a_finding() -> None:
    with pytest.raises(UnknownNameError, match="no online 'nothing-like-it'"):
        check_online("nothing-like-it")


def test_the_check_verb_takes_adapters(use_plugin: Callable[[str], Path]) -> None:
    plugin = use_plugin(HEAD.format(name="checked", formula="C + 1"))
    result = CliRunner().invoke(app, ["check", "checked", "--plugin", str(plugin)])
    assert result.exit_code == 1
    assert "FAIL count-is-declared: over source: 4 values are updated" in result.output
    assert result.output.count("ok  ") == len(RULES) - 1
