"""Every registered training strategy keeps every rule, and every rule has a strategy that breaks it alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmbench import registry
from mmbench.cli import app
from mmbench.conformance_strategies import CHECKS, StrategyCheck, check_strategy, run_strategy_check
from mmbench.conformance_strategy_bed import StrategySubject
from mmbench.errors import UnknownNameError

HEAD = """
import torch
from dataclasses import replace
from mmbench.method import Loss
from mmbench.registry import strategy
from mmbench.strategy import Strategy


class Sound(Strategy):
    def view(self, method, batch, rng):
        return replace(batch, audio=batch.audio + 0.1 * torch.rand(batch.audio.shape, generator=rng))


@strategy("{name}", title="T", reference="r", year=2026)
class Plugin(Sound):
    kind = 'what is tested'
"""

DEFECTS = {
    "view-is-pure": """
    def view(self, method, batch, rng):
        batch.audio.add_(1.0)
        return batch
""",
    "view-keeps-the-batch": """
    def view(self, method, batch, rng):
        return replace(batch, available=torch.zeros_like(batch.available), affected=torch.ones_like(batch.available))
""",
    "labels-stay-labels": """
    def view(self, method, batch, rng):
        hot = torch.nn.functional.one_hot(batch.label, 4) if batch.label.ndim == 1 else batch.label
        return replace(batch, label=0.7 * hot)
""",
    "micro-batches": """
    def loss(self, method, batch, inner):
        loss = inner(batch)
        return Loss(loss.total * len(batch), loss.logits)
""",
    "gradients-stay-finite": """
    def after_backward(self, method, step, steps):
        if method.recipe.multi_label:
            method.net.norm.weight.grad = None
""",
    "forwards-are-declared": """
    def loss(self, method, batch, inner):
        loss = inner(batch)
        return Loss(loss.total + method.logits(batch).square().mean(), loss.logits)
""",
    "frozen-unchanged": """
    def after_backward(self, method, step, steps):
        method.net.norm_a.weight.data += 0.1
""",
    "training-repeats": """
    done = 0

    def after_backward(self, method, step, steps):
        self.done += 1
        method.net.norm.weight.grad *= torch.arange(32) / self.done - 5
""",
    "combines": """
    def loss(self, method, batch, inner):
        loss = inner(batch)
        if method.recipe.multi_label:
            return loss
        return Loss(loss.total + loss.logits[:, int(batch.label[0])].mean() * 0, loss.logits)
""",
}


@pytest.mark.parametrize("name", registry.strategies().names())
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_strategy_keeps_the_rule(name: str, check: StrategyCheck) -> None:
    finding = run_strategy_check(check, StrategySubject(name))
    assert finding.ok, finding.message


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("modality-dropout", {"p_audio": 0.5, "p_vision": 0.5}),
        ("mixup", {"rate": 1.0, "alpha": 0.4}),
        ("specaugment", {"bands": 128, "time_share": 1.0}),
        ("augmix", {"width": 1, "depth": 2, "alpha": 0.5, "severity": 10.0}),
        ("ogm-ge", {"alpha": 1.0, "noise": False}),
    ],
)
def test_rules_hold_for_other_options_too(name: str, options: dict[str, object]) -> None:
    assert [finding.message for finding in check_strategy(name, options=options) if not finding.ok] == []


def failed(use_plugin: Callable[[str], Path], name: str, body: str) -> list[str]:
    use_plugin(HEAD.format(name=name) + body)
    return [finding.check for finding in check_strategy(name) if not finding.ok]


def test_every_rule_has_a_strategy_that_breaks_it() -> None:
    assert set(DEFECTS) == {check.name for check in CHECKS}


def test_the_unbroken_plugin_keeps_every_rule(use_plugin: Callable[[str], Path]) -> None:
    assert failed(use_plugin, "plugin-sound", "") == []


@pytest.mark.parametrize("check", DEFECTS)
def test_a_broken_strategy_is_caught_by_its_rule_alone(check: str, use_plugin: Callable[[str], Path]) -> None:
    assert failed(use_plugin, f"plugin-{check}", DEFECTS[check]) == [check]


@pytest.mark.parametrize(
    ("defect", "body", "checks"),
    [
        (
            "global-draws",
            "    def view(self, method, batch, rng):\n"
            "        return replace(batch, audio=batch.audio + torch.rand(batch.audio.shape))\n",
            {"view-is-pure", "training-repeats", "micro-batches"},
        ),
        (
            "reordered",
            "    def view(self, method, batch, rng):\n"
            "        return batch.select(torch.randperm(len(batch), generator=rng))\n",
            {"view-keeps-the-batch"},
        ),
        (
            "hook-left-behind",
            "    def loss(self, method, batch, inner):\n"
            "        method.net.norm.register_forward_hook(lambda *a: None)\n"
            "        return inner(batch)\n",
            {"frozen-unchanged"},
        ),
        (
            "own-update",
            "    def after_backward(self, method, step, steps):\n        method.net.norm.weight.data *= 0.9\n",
            {"frozen-unchanged"},
        ),
        (
            "draws-in-the-loss",
            "    def loss(self, method, batch, inner):\n"
            "        return inner(replace(batch, audio=batch.audio + torch.rand(batch.audio.shape)))\n",
            {"micro-batches", "training-repeats"},
        ),
        (
            "draws-lost-in-parts",
            "    def view(self, method, batch, rng):\n"
            "        view = replace(batch)\n"
            "        object.__setattr__(view, 'factor', 2.0)\n"
            "        return view\n\n"
            "    def loss(self, method, batch, inner):\n"
            "        loss = inner(batch)\n"
            "        return Loss(loss.total * getattr(batch, 'factor', 1.0), loss.logits)\n",
            {"micro-batches"},
        ),
        (
            "knowledge-lost",
            "    def view(self, method, batch, rng):\n        return replace(batch, available=None)\n",
            {"view-keeps-the-batch"},
        ),
    ],
)
def test_other_defects_are_caught_too(
    defect: str, body: str, checks: set[str], use_plugin: Callable[[str], Path]
) -> None:
    assert set(failed(use_plugin, f"plugin-{defect}", body)) == checks


def test_the_check_verb_knows_strategies(use_plugin: Callable[[str], Path]) -> None:
    good = CliRunner().invoke(app, ["check", "mixup"])
    assert good.exit_code == 0 and good.output.count("ok ") == len(CHECKS)
    path = use_plugin(HEAD.format(name="plugin-in-place") + DEFECTS["view-is-pure"])
    bad = CliRunner().invoke(app, ["check", "plugin-in-place", "--plugin", str(path)])
    assert bad.exit_code == 1 and "FAIL view-is-pure: `view` changes its batch in place" in bad.output


def test_an_unknown_name_is_an_error_and_not_a_finding() -> None:
    with pytest.raises(UnknownNameError, match="did you mean: mixup"):
        check_strategy("mixupp")
    result = CliRunner().invoke(app, ["check", "specaugmnt"])
    told = "no method, strategy, online adapter or corruption 'specaugmnt'; did you mean: specaugment"
    assert result.exit_code == 2 and told in result.output
