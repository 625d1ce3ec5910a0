"""Both LoRA rows against a reference written out here, and the traps of the libraries behind them."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from beds import COMPLETE, build, equal, make_bench, make_job, memory_data
from torch import Tensor, nn
from torch.nn import functional as F

from mmbench.conformance_bed import Bed, mode, train
from mmbench.method import Method
from mmbench.train import SINGLE, fit

BLOCKS = ("blocks_a", "blocks_v", "blocks_u")
NAMES = ("lora-qv", "lora-qkv")
FACTOR = 16.0 / 8


class SplitLoRA(nn.Module):
    """W x + b, plus (alpha / r) B_q A_q x on the queries and (alpha / r) B_v A_v x on the values."""

    def __init__(self, linear: nn.Linear, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.linear = linear
        rank, dim = a.shape[0] // 2, linear.in_features
        self.a_q, self.a_v = nn.Parameter(a[:rank].clone()), nn.Parameter(a[rank:].clone())
        self.b_q, self.b_v = nn.Parameter(b[:dim].clone()), nn.Parameter(b[dim:].clone())

    def forward(self, x: Tensor) -> Tensor:
        q = FACTOR * F.linear(F.linear(x, self.a_q), self.b_q)  # (B, N, D)
        v = FACTOR * F.linear(F.linear(x, self.a_v), self.b_v)
        plain: Tensor = self.linear(x)
        return plain + torch.cat([q, torch.zeros_like(q), v], dim=-1)


class JointLoRA(nn.Module):
    """W x + b + (alpha / r) B A x, one A for q, k and v."""

    def __init__(self, linear: nn.Linear, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.linear = linear
        self.a, self.b = nn.Parameter(a.clone()), nn.Parameter(b.clone())

    def forward(self, x: Tensor) -> Tensor:
        plain: Tensor = self.linear(x)
        return plain + FACTOR * F.linear(F.linear(x, self.a), self.b)


def reference(method: Method, name: str) -> nn.Module:
    """The bed's source model with the written-out LoRA, starting where `method` is."""
    net = Bed().net().requires_grad_(False)
    for group in BLOCKS:
        for index, block in enumerate(getattr(net, group)):
            layer = getattr(method.net, group)[index].attn.qkv
            if name == "lora-qv":
                block.attn.qkv = SplitLoRA(block.attn.qkv, layer.lora_A.detach(), layer.lora_B.detach())
            else:
                a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
                block.attn.qkv = JointLoRA(block.attn.qkv, a, b)
    net.mlp_head.requires_grad_(True)
    return net


@pytest.mark.parametrize("name", NAMES)
def test_training_equals_the_reference(name: str) -> None:
    method, bed = build(name), Bed()
    net = reference(method, name)
    # Plain descent, so that one optimiser over differently cut tensors takes the same steps.
    mine = torch.optim.SGD(method.trainable().values(), lr=0.05)
    theirs = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.05)
    for step in range(4):
        batch = bed.batch(step)
        for optimizer, logits in ((mine, method.logits(batch)), (theirs, net(batch.audio, batch.image))):
            optimizer.zero_grad()
            method.criterion(logits, batch.label).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    batch = bed.batch(9)
    with torch.no_grad():
        moved = float((method.predict(batch) - build(name).predict(batch)).abs().max())
        assert float((method.predict(batch) - net(batch.audio, batch.image)).abs().max()) < 1e-4
    assert moved > 1e-2


def test_lora_qv_leaves_the_keys_alone_and_lora_qkv_does_not() -> None:
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
    for name, touched in (("lora-qv", False), ("lora-qkv", True)):
        method = build(name)
        before = method.net.blocks_a[0].attn.qkv(x).detach()  # type: ignore[operator, union-attr]
        train(method, Bed())
        after = method.net.blocks_a[0].attn.qkv(x).detach()  # type: ignore[operator, union-attr]
        q, k, v = (float(part.abs().max()) for part in (after - before).chunk(3, dim=-1))
        assert q > 1e-4 and v > 1e-4
        assert (k > 1e-4) == touched


@pytest.mark.parametrize("name", NAMES)
def test_the_merged_export_predicts_the_same_and_holds_plain_linears(name: str) -> None:
    method, bed = build(name), Bed()
    train(method, bed)
    net = method.export()
    assert net is not None
    assert all(type(block.attn.qkv) is nn.Linear for group in BLOCKS for block in getattr(net, group))
    batch = bed.batch(3)
    with torch.no_grad():
        assert float((net(batch.audio, batch.image) - method.predict(batch)).abs().max()) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_switching_modes_leaves_the_frozen_weights_bit_identical(name: str) -> None:
    method = build(name)
    train(method, Bed())
    frozen = {n: p for n, p in method.net.named_parameters() if not p.requires_grad}
    before = copy.deepcopy(frozen)
    expected = method.predict(Bed().batch())
    for training in (True, False) * 5:
        mode(method, training)
        with torch.autocast("cpu", torch.bfloat16):
            method.predict(Bed().batch())
    assert equal(frozen, before)
    assert torch.equal(method.predict(Bed().batch()), expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_state_taken_after_predicting_reloads_right(name: str) -> None:
    method = build(name)
    fit(method, memory_data(), make_job(cases=(COMPLETE,)), make_bench())
    expected = method.predict(Bed().batch())
    other = build(name, seed=5)
    other.predict(Bed().batch())
    other.load(method.state())
    assert torch.equal(other.predict(Bed().batch()), expected)


@pytest.mark.parametrize("name", NAMES)
def test_only_low_rank_factors_and_the_head_are_saved(name: str) -> None:
    states = fit(build(name), memory_data(), make_job(), make_bench()).states[SINGLE]
    assert all("lora_" in key or key.startswith("mlp_head.") for key in states)
    assert sum("lora_" in key for key in states) == 2 * 5  # A and B of five blocks


@pytest.mark.parametrize("name", NAMES)
def test_a_starts_kaiming_uniform_and_b_at_zero(name: str) -> None:
    state = build(name).state()
    for key, tensor in state.items():
        if "lora_B" in key:
            assert not tensor.any()
        if "lora_A" in key:
            bound = 1 / math.sqrt(32)  # Kaiming with a = sqrt(5): 1 / sqrt(fan in)
            assert 0.8 * bound < float(tensor.abs().max()) <= bound
