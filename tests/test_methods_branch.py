"""Residual modules: where each stands, what it does to tokens, and what the whole family costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from beds import build
from test_methods_counts import count, on_meta
from torch import Tensor, nn
from torch.nn import functional as F

from mmbench import registry
from mmbench.backbone.blocks import BlockCall
from mmbench.backbone.cavmae import MODES
from mmbench.backbone.config import preset
from mmbench.conformance_bed import SIZES, Bed
from mmbench.data.batch import Batch
from mmbench.errors import ConfigError
from mmbench.formula import evaluate, numbers
from mmbench.method import Method

PUBLISHED = {
    "adapter-houlsby": 4_560_256,
    "adapter-pfeiffer": 2_280_128,
    "adaptformer": 2_280_128,
    "compacter": 109_296 + 64 + 78_336,  # adapters, shared factor, live LayerNorms
    "convpass": 627_808,
    "repadapter": 459_632,
    "ssf": 390_144,
    "ssf-per-case": 4 * 390_144,
    "fact": 2 * 768 * 16 + 12 * 23 * 16**2,
    "lavish": 44 * 78_530,
    "shaspec-lite": 33 * 99_136 + 1_538,
}
DIM = SIZES.embed_dim
Step = Callable[[Any, BlockCall, Tensor], Tensor]


def shaken(name: str, options: dict[str, object] | None = None) -> Method:
    """A method none of whose added tensors has a special value."""
    method = build(name, options)
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in method.extra.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=0.1)
    return method


def tokens(count: int, samples: int = 2, seed: int = 3) -> Tensor:
    return torch.randn(samples, count, DIM, generator=torch.Generator().manual_seed(seed))


def through_block(method: Method, x: Tensor, modality: str = "a", other: Tensor | None = None) -> Tensor:
    """Tokens after the method's first block of this modality."""
    block = BlockCall(getattr(method.net, f"blocks_{modality}")[0])
    with torch.no_grad():
        return method.hooks.block(modality, 0, block, x, Bed().batch(), other)


def gap(one: Tensor, two: Tensor) -> float:
    return float((one - two).detach().abs().max())


def moved(one: Tensor, two: Tensor) -> list[int]:
    """Tokens of the first sample in which two results differ."""
    return (one[0] - two[0]).abs().amax(dim=-1).gt(1e-7).nonzero().flatten().tolist()


def complete(batch: Batch) -> Batch:
    return replace(batch, available=torch.ones_like(batch.available), affected=torch.zeros_like(batch.affected))


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_on_the_published_model_are_the_published_ones(name: str) -> None:
    assert count(on_meta(name, preset("cavmae-base"))) == PUBLISHED[name]


@pytest.mark.parametrize("fusion", ["none", "gated", "as-published"])
@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in PUBLISHED]
    + [
        ("adaptformer", {"rank": 5}),
        ("compacter", {"products": 2, "reduction": 8}),
        ("convpass", {"rank": 3}),
        ("repadapter", {"rank": 6, "groups": 2}),
        ("fact", {"rank": 3}),
        ("lavish", {"latents": 5, "reduction": 4, "groups": 4}),
        ("shaspec-lite", {"rank": 7}),
    ],
)
def test_the_closed_form_holds_for_other_options_and_backbones(name: str, options: dict[str, Any], fusion: Any) -> None:
    config = preset("cavmae-tiny", fusion=fusion)
    method = on_meta(name, config, **options)
    assert count(method) == evaluate(method.card.parameters, {**config.symbols(), **numbers(method.options)})


def after(position: str) -> Step:
    def step(modules: Any, block: BlockCall, x: Tensor) -> Tensor:
        added, branch = modules[f"{position}_a0"], block.attend(x) if position == "attention" else block.feed(x)
        return x + branch + F.linear(F.gelu(added.down(branch)), added.up.weight, added.up.bias)

    return step


def beside_the_mlp(modules: Any, block: BlockCall, x: Tensor) -> Tensor:
    added = modules["mlp_a0"]
    return (
        x
        + block.feed(x)
        + 0.1 * (F.relu(x @ added.down.weight.T + added.down.bias) @ added.up.weight.T + added.up.bias)
    )


def plain_attention(modules: Any, block: BlockCall, x: Tensor) -> Tensor:
    return x + block.attend(x)


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("adapter-houlsby", (after("attention"), after("mlp"))),
        ("adapter-pfeiffer", (plain_attention, after("mlp"))),
        ("adaptformer", (plain_attention, beside_the_mlp)),
    ],
)
def test_bottlenecks_stand_where_their_papers_put_them(name: str, steps: tuple[Step, ...]) -> None:
    method = shaken(name)
    x = start = tokens(SIZES.audio_tokens)
    with torch.no_grad():
        for step in steps:
            x = step(method.extra, BlockCall(method.net.blocks_a[0]), x)  # type: ignore[arg-type]
    assert gap(through_block(method, start), x) < 1e-5
    assert gap(BlockCall(method.net.blocks_a[0]).run(start), x) > 1e-2  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["adaptformer", "convpass"])
def test_dropout_acts_in_training_only(name: str) -> None:
    method, x = shaken(name, {"dropout": 0.5}), tokens(SIZES.audio_tokens)
    assert torch.equal(through_block(method, x), through_block(method, x))
    method.extra.train()
    assert not torch.equal(through_block(method, x), through_block(method, x))


def test_compacter_weights_are_sums_of_kronecker_products_with_one_shared_factor() -> None:
    method = shaken("compacter", {"reduction": 4})  # 8 wide
    layer, factors = method.extra["mlp_v1"].down, method.extra["rule"].factors
    whole = sum(
        torch.kron(factors[i], torch.outer(layer.rows[i], layer.columns[i])) for i in range(4)
    )  # (8, 32): four blocks of two by eight
    x = tokens(3)
    assert whole.shape == (8, DIM)
    assert gap(layer(x, factors), x @ whole.T + layer.bias) < 1e-5
    assert sum("factors" in name for name in method.state()) == 1


def test_the_shared_factor_of_compacter_serves_every_adapter() -> None:
    method, x = shaken("compacter"), tokens(SIZES.audio_tokens)
    before = {modality: through_block(method, x, modality) for modality in "avu"}
    with torch.no_grad():
        method.extra["rule"].factors.mul_(2.0)
    assert all(gap(through_block(method, x, modality), before[modality]) > 1e-3 for modality in "avu")


def test_compacter_frees_the_layer_norms_that_the_multimodal_pass_uses() -> None:
    method = build("compacter")
    freed = {name for name in method.trainable() if not name.startswith(("extra.", "mlp_head."))}
    norms = {
        f"{name}.{tensor}"
        for name, module in method.net.named_modules()
        if isinstance(module, nn.LayerNorm) and not name.startswith("mlp_head.")
        for tensor in ("weight", "bias")
    }
    assert freed == norms & method.net.live_parameter_names()


@pytest.mark.parametrize(("modality", "grid"), [("a", SIZES.audio_grid), ("v", SIZES.vision_grid)])
def test_convpass_mixes_neighbouring_patches_only(modality: str, grid: tuple[int, int]) -> None:
    adapter = shaken("convpass").extra[f"mlp_{modality}0"]
    rows, columns = grid
    for row, column in ((0, 0), (rows // 2, columns - 1), (rows - 1, 0)):
        x = tokens(rows * columns)
        touched = x.clone()
        touched[:, row * columns + column] += 1.0
        near = [
            r * columns + c
            for r in range(rows)
            for c in range(columns)
            if abs(r - row) <= 1 and abs(c - column) <= 1
        ]  # fmt: skip
        assert moved(adapter(touched), adapter(x)) == near


def test_convpass_splits_the_joint_block_by_modality() -> None:
    adapter, audio = shaken("convpass").extra["attention_u0"], SIZES.audio_tokens
    both = tokens(audio + SIZES.vision_tokens)
    out = adapter(both)
    assert gap(out[:, :audio], adapter(both[:, :audio])) < 1e-6
    assert gap(out[:, audio:], adapter(both[:, audio:])) < 1e-6


@pytest.mark.parametrize("name", [n for n in PUBLISHED if not n.startswith("ssf")])
@pytest.mark.parametrize("mode", MODES)
def test_single_modality_modes_run_and_start_as_the_backbone(name: str, mode: str) -> None:
    method, batch = build(name), complete(Bed().batch())
    with torch.no_grad():
        mine = method.net(batch.audio, batch.image, mode, method.hooks, batch)
        assert gap(mine, Bed().net()(batch.audio, batch.image, mode)) < 1e-6


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("compacter", {"products": 3}, "option products of compacter must divide the width, 32; got 3"),
        ("repadapter", {"groups": 3}, "option groups of repadapter must divide the width, 32; got 3"),
        ("repadapter", {"rank": 5}, "must divide the rank, 5; got 2"),
        ("lavish", {"reduction": 64}, "must divide the bottleneck, 0; got 2"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(name, options)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_tuning_range_spans_two_decades(name: str) -> None:
    low, high = registry.methods().card(name).lr_range
    assert high / low == pytest.approx(100)
