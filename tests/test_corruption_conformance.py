"""Every registered corruption keeps the contract; a new one is tested by being registered."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mmbench import registry
from mmbench.conformance_corruptions import check_corruption
from mmbench.conformance_verb import check_entry
from mmbench.corruption import Corruption, Stage, load_corruption
from mmbench.errors import ConfigError
from mmbench.registry import corruptions
from mmbench.rng import StreamKey

KEY = StreamKey("synthetic-av", "test", 0)
HEAD = """
import torch
from mmbench.registry import corruption

@corruption("mine/one", family="mine", modality="audio", stage="normalised", reference="test")
def one(x, draws, severity):
"""
BROKEN = {
    "x[:, :-1]": ("contract", r"mine/one.*\(8, 127, 128\).*keep shape"),
    "x.double()": ("contract", "mine/one.*float64.*type"),
    "None": ("contract", "mine/one.*NoneType"),
    "x.mul_(0.5)": ("contract", "mine/one.*edits its input"),
    "x.numpy().__imul__(2) is None or x + 1": ("contract", "mine/one.*edits its input"),
    "x / 0 - x / 0": ("contract", "mine/one.*not finite"),
    "x": ("contract", "the input itself"),
    "{1: x + 1}[severity]": ("contract", "at severity 2: raised KeyError: 2"),
    "x / x.std((1, 2), keepdim=True)": ("extreme-inputs", "mine/one.*not finite"),
    "x + torch.randn_like(x)": ("global-generators", "torch"),
    "x + torch.rand(1, generator=torch.Generator().manual_seed(torch.seed()))": ("repeats", "two calls"),
    "x - x.mean(0)": ("alone-equals-batch", "neighbours"),
    "x.clone()": ("acts", "nothing is corrupted"),
}


@pytest.mark.parametrize("name", corruptions().names())
def test_rules(name: str) -> None:
    assert [f"{finding.check}: {finding.message}" for finding in check_corruption(name) if not finding.ok] == []


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "mine.py"
    monkeypatch.setattr(registry, "_plugins", [])
    yield path
    registry.corruptions.cache_clear()


@pytest.mark.parametrize("body", BROKEN)
def test_a_broken_plugin_is_told_what_is_wrong(plugin: Path, body: str) -> None:
    plugin.write_text(f"{HEAD}    return {body}\n")
    registry.use_plugins((plugin,))
    rule, message = BROKEN[body]
    failed = {finding.check: finding.message for finding in check_entry("mine/one") if not finding.ok}
    assert re.search(message, failed[rule]), failed


def test_a_plugin_that_may_begin_idle_passes(plugin: Path) -> None:
    plugin.write_text(f"{HEAD}    return x + 0.1 * (severity - 1)\n")
    registry.use_plugins((plugin,))
    assert all(finding.ok for finding in check_entry("mine/one"))


def test_a_plugin_is_watched_as_it_runs(plugin: Path) -> None:
    plugin.write_text(f"{HEAD}    return x.mul_(0.25)\n")
    registry.use_plugins((plugin,))
    one = load_corruption("mine/one@3")
    with pytest.raises(ConfigError, match="edits its input"):
        one.apply(torch.ones(1, 4, 128), one.draws(KEY, ("a",), torch.tensor([4])))
    assert not load_corruption("missing/audio-mean").watched


@pytest.mark.parametrize("name", corruptions().names())
def test_card(name: str) -> None:
    card = corruptions().card(name)
    assert name.startswith(f"{card.family}/")
    assert card.severities in ((0,), (1, 2, 3, 4, 5))
    assert card.reference and Stage(card.stage)


@pytest.mark.parametrize("name", corruptions().names())
def test_severity_out_of_range(name: str) -> None:
    for wrong in ("@6", "@x", "@-1"):
        with pytest.raises(ConfigError, match=name):
            load_corruption(name + wrong)


def test_a_function_that_changes_the_type_is_caught() -> None:
    real = load_corruption("missing/audio-mean")
    broken = Corruption(real.card, 0, lambda x, draws, severity: x.double())
    with pytest.raises(ConfigError, match=r"missing/audio-mean.*float64.*keep shape, type"):
        broken.apply(torch.zeros(1, 4, 128), broken.draws(KEY, ("a",), torch.tensor([4])))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_function_that_gives_no_numbers_is_caught(value: float) -> None:
    real = load_corruption("read/gaussian_noise@1")
    broken = Corruption(real.card, 1, lambda x, draws, severity: x.index_fill(1, torch.tensor([3]), value))
    with pytest.raises(ConfigError, match=r"read/gaussian_noise.*2 of 2 samples.*not finite.*such as 'a'"):
        broken.apply(torch.zeros(2, 400), broken.draws(KEY, ("a", "b"), torch.tensor([400, 400])))
