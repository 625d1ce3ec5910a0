"""Every row through peft and loralib against its paper's formula written out here, and the traps behind the rows."""

from __future__ import annotations

import copy
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping

import pytest
import torch
from beds import build, equal, make
from test_methods_counts import declared
from torch import Tensor, nn

from methods.peft_backed import LoraAll, adapted
from mmbench.backbone.cavmae import CAVMAEFT
from mmbench.backbone.config import preset
from mmbench.backbone.fusion import FusionAttention
from mmbench.conformance_bed import SIZES, Bed, train
from mmbench.errors import ConfigError
from mmbench.method import Method

D = SIZES.embed_dim
Parts = Mapping[str, Tensor]
Changed = Callable[[Tensor, Parts], Tensor]
"""From a frozen weight (out, in) and the trained tensors of its layer to the weight that predicts."""


def low_rank(weight: Tensor, t: Parts, scale: float = 16 / 8) -> Tensor:
    return weight + scale * t["lora_B"] @ t["lora_A"]


def queries_and_values(weight: Tensor, t: Parts) -> Tensor:
    a, b, whole = t["lora_A"], t["lora_B"], weight.clone()
    whole[:D] += 16 / 8 * b[:D] @ a[:8]
    whole[2 * D :] += 16 / 8 * b[D:] @ a[8:]
    return whole


def rank_stabilised(weight: Tensor, t: Parts) -> Tensor:
    return low_rank(weight, t, 16 / math.sqrt(8))


def decomposed(weight: Tensor, t: Parts) -> Tensor:
    direction = low_rank(weight, t)
    return t["lora_magnitude_vector"][:, None] * direction / direction.norm(dim=1, keepdim=True)


def singular_values(weight: Tensor, t: Parts) -> Tensor:
    return weight + 16 / 12 * t["lora_B"] @ torch.diag(t["lora_E"][:, 0]) @ t["lora_A"]


def scaled(weight: Tensor, t: Parts) -> Tensor:
    if t["ia3_l"].shape[0] == 1:  # of the MLP's hidden units, the inputs of fc2
        return weight * t["ia3_l"]
    return torch.cat([weight[:D], weight[D:] * t["ia3_l"]])


def random_projections(weight: Tensor, t: Parts) -> Tensor:
    rng = torch.Generator().manual_seed(int(t["seed"]))
    a, b = (
        torch.empty(shape).uniform_(-math.sqrt(6 / shape[1]), math.sqrt(6 / shape[1]), generator=rng)
        for shape in ((256, 4 * D), (4 * D, 256))
    )
    outputs, inputs = weight.shape
    return weight + torch.diag(t["vera_lambda_b"]) @ b[:outputs] @ torch.diag(t["vera_lambda_d"]) @ a[:, :inputs]


def rotated(weight: Tensor, t: Parts) -> Tensor:
    rotations = []
    for values in t["oft_R"]:
        q = torch.zeros(32, 32)
        q[tuple(torch.triu_indices(32, 32, 1))] = values
        q = q - q.T
        rotations.append((torch.eye(32) - q) @ torch.linalg.inv(torch.eye(32) + q))
    whole = torch.block_diag(*rotations)
    assert torch.allclose(whole @ whole.T, torch.eye(len(whole)), atol=1e-5)
    return weight @ whole.T


def kronecker(weight: Tensor, t: Parts) -> Tensor:
    small = t["lokr_w2"] if "lokr_w2" in t else t["lokr_w2_a"] @ t["lokr_w2_b"]
    return weight + 16 / 8 * torch.kron(t["lokr_w1"], small)


def spectrum(weight: Tensor, t: Parts) -> Tensor:
    rng = torch.Generator().manual_seed(int(t["seed"]))
    for shape in ((3 * D, D), (D, D), (4 * D, D), (D, 4 * D)):  # qkv, proj, fc1, fc2: as they are met in a block
        places = torch.randperm(shape[0] * shape[1], generator=rng)[:1000]
        if shape == tuple(weight.shape):
            break
    whole = torch.zeros(weight.numel())
    whole[places] = t["fourierft_spectrum"]
    return weight + torch.fft.ifft2(whole.reshape(weight.shape)).real * 150 * (D / 768) ** 2


FORMULAS: Mapping[str, Changed] = {
    "lora-qv": queries_and_values,
    "lora-qkv": low_rank,
    "lora-all": low_rank,
    "lora-tail": low_rank,
    "rslora": rank_stabilised,
    "dora": decomposed,
    "adalora": singular_values,
    "ia3": scaled,
    "vera": random_projections,
    "oft": rotated,
    "lokr": kronecker,
    "fourierft": spectrum,
}
THROUGH_PEFT = [name for name in FORMULAS if name != "lora-qv"]


def trained_parts(method: Method) -> dict[str, dict[str, Tensor]]:
    """What was trained beside the head, by layer and by the kind of tensor."""
    state = method.state()
    shared = {"seed": state["extra.seed.value"]} if "extra.seed.value" in state else {}
    layers: dict[str, dict[str, Tensor]] = defaultdict(lambda: dict(shared))
    for name, tensor in state.items():
        if found := re.match(r"(.+?)\.(lora_\w+|ia3_l|vera_lambda_\w|oft_R|lokr_\w+|fourierft_spectrum)", name):
            layers[found[1].replace(".base_layer", "")][found[2]] = tensor
    return layers


def reference(method: Method, changed: Changed) -> CAVMAEFT:
    """The plain source model with the weights that the formula gives, and the trained head."""
    net = Bed().net().eval()
    with torch.no_grad():
        for place, parts in trained_parts(method).items():
            layer = net.get_submodule(place)
            weight = layer.in_proj_weight if isinstance(layer, FusionAttention) else layer.weight
            weight.copy_(changed(weight, parts))
            if "ia3_l" in parts and place.endswith("qkv"):
                layer.bias.copy_(scaled(layer.bias[:, None], parts)[:, 0])
    net.mlp_head.load_state_dict(method.net.mlp_head.state_dict())
    return net


@pytest.mark.parametrize("name", FORMULAS)
def test_trained_rows_predict_what_the_formula_of_their_paper_gives(name: str) -> None:
    method, batch = build(name), Bed().batch(9)
    start = method.predict(batch)
    head = copy.deepcopy(method.net.mlp_head.state_dict())
    train(method, Bed(), steps=6)
    expected = reference(method, FORMULAS[name])
    with torch.no_grad():
        assert float((expected(batch.audio, batch.image) - method.predict(batch)).abs().max()) < 1e-5
        method.net.mlp_head.load_state_dict(head)
        assert float((method.predict(batch) - start).abs().max()) > 1e-3  # the adapter itself has moved


@pytest.mark.parametrize(
    ("name", "published"),
    [
        *[("lora-all", 2_260_992), ("rslora", 2_260_992), ("oft", 1_916_544), ("lokr", 164_864), ("fourierft", 92_000)],
        *[("lora-tail", 368_640), ("dora", 2_419_968), ("adalora", 3_392_592), ("ia3", 105_984), ("vera", 182_528)],
    ],
)
def test_the_stated_counts_on_the_published_model(name: str, published: int) -> None:
    assert declared(name, preset("cavmae-base")) == published


@pytest.mark.parametrize("name", THROUGH_PEFT)
def test_only_the_meant_layers_are_wrapped(name: str) -> None:
    """Not timm's identity modules q_norm, k_norm and norm."""
    method = build(name)
    kinds = [type(layer.get_base_layer()) for _, layer in adapted(method.net)]
    fusion, linears = kinds.count(FusionAttention), kinds.count(nn.Linear)
    assert fusion + linears == len(kinds)
    in_a_block = {"lora-qkv": 1, "ia3": 2}.get(name, 4)
    assert (fusion, linears) == ((4, 4 + 4 + 4) if name == "lora-tail" else (0, 5 * in_a_block))


@pytest.mark.parametrize("name", THROUGH_PEFT)
def test_a_state_holds_what_trains_and_at_most_a_seed_beside_it(name: str) -> None:
    method = build(name)
    beside = {key: tensor.numel() for key, tensor in method.state().items() if key not in method.trainable()}
    assert beside == ({"extra.seed.value": 1} if name in ("vera", "fourierft") else {})


@pytest.mark.parametrize("name", ["vera", "fourierft"])
def test_random_parts_differ_by_seed_and_come_back_with_a_state(name: str) -> None:
    one, other, batch = build(name, seed=1), build(name, seed=2), Bed().batch()
    train(one, Bed())
    assert not torch.equal(build(name, seed=1).state()["extra.seed.value"], other.state()["extra.seed.value"])
    expected = one.predict(batch)
    own = {key: tensor for key, tensor in one.state().items() if not key.startswith("extra.")}
    other.load({**other.state(), **own})
    assert not torch.allclose(other.predict(batch), expected, atol=1e-3)  # the trained part alone is not enough
    other.load(one.state())
    assert torch.equal(other.predict(batch), expected)


@pytest.mark.parametrize("name", ["lora-all", "adalora", "lokr", "fourierft", "vera"])
def test_start_values_continue_the_given_generator_and_leave_the_global_one_alone(name: str) -> None:
    kind, rng = type(build(name)), torch.Generator().manual_seed(3)
    before = torch.get_rng_state()
    one, two = (kind(Bed().net(), make(LoraAll).recipe, {}, rng).state() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert not equal(one, two)
    assert equal(one, build(name, seed=3).state())


def test_queries_keep_their_scale_with_ia3() -> None:
    method, x = build("ia3"), torch.randn(2, 5, D, generator=torch.Generator().manual_seed(1))
    train(method, Bed(), steps=6)
    tuned = method.net.blocks_a[0].attn.qkv(x).detach()  # type: ignore[operator, union-attr]
    plain = Bed().net().blocks_a[0].attn.qkv(x).detach()  # type: ignore[operator, union-attr]
    q, k, v = (float(part.abs().max()) for part in (tuned - plain).chunk(3, dim=-1))
    assert q == 0.0 and k > 1e-4 and v > 1e-4


def rank_history(steps: int) -> list[list[int]]:
    """Ranks that AdaLoRA has left in each layer, after every step."""
    method, history = build("adalora"), []
    allot = method.after_step

    def noted(step: int, steps: int) -> None:
        allot(step, steps)
        history.append([int(tensor.count_nonzero()) for name, tensor in method.state().items() if "lora_E" in name])

    method.after_step = noted  # type: ignore[method-assign]
    train(method, Bed(), steps)
    return history


def test_adalora_prunes_to_its_budget_and_the_layers_compete_for_it() -> None:
    history = rank_history(steps=20)
    totals, layers = [sum(counts) for counts in history], 4 * 5
    assert totals[:2] == [12 * layers] * 2  # a tenth of the steps is warm-up
    assert 8 * layers < totals[5] < 12 * layers
    assert totals[9:] == [8 * layers] * 11
    assert all(counts == history[9] for counts in history[9:])  # the second half trains what is left
    assert len(set(history[-1])) > 1


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 200])
def test_adalora_ends_on_its_target_however_short_the_training(steps: int) -> None:
    assert sum(rank_history(steps)[-1]) == 8 * 4 * 5


def test_adalora_forgets_the_importance_of_an_earlier_training() -> None:
    method = build("adalora")
    start = method.state()
    train(method, Bed(), steps=6)
    first = method.state()
    method.load(start)
    train(method, Bed(), steps=6)
    assert equal(method.state(), first)


def test_adalora_adds_the_orthogonality_that_peft_leaves_out_for_plain_logits() -> None:
    method, batch = build("adalora"), Bed().batch()
    rows = [m for parts in trained_parts(method).values() for m in (parts["lora_A"], parts["lora_B"].T)]
    gaps = [(m @ m.T - torch.eye(12)).norm() for m in rows]
    loss = method.loss(batch)
    added = float((loss.total - method.criterion(loss.logits, batch.label)).detach())
    assert added == pytest.approx(0.5 * float(torch.stack(gaps).mean()), rel=1e-4)


def test_fourierft_starts_near_the_source_at_every_width() -> None:
    def spread(config_name: str | None) -> float:
        bed = Bed(preset(config_name)) if config_name else Bed()
        net = type(build("fourierft"))(bed.net(), make(LoraAll).recipe, {}, torch.Generator().manual_seed(0)).export()
        assert net is not None
        place = "blocks_a.0.attn.qkv.weight"
        return float((net.get_parameter(place) - bed.net().get_parameter(place)).detach().std())

    # At width 768 a weight changes by 150 * sqrt(1000 / 2) / (3 * 768^2) in the root mean square.
    assert spread(None) == pytest.approx(1.9e-3, rel=0.1)
    assert spread("cavmae-tiny") == pytest.approx(1.9e-3, rel=0.1)


def test_pissa_has_no_row_because_its_start_is_not_reproducible_from_a_state() -> None:
    """It splits the weight by a randomised decomposition; a reload splits anew, and the frozen rest no longer fits."""

    class PiSSA(LoraAll):
        variant = {"init_lora_weights": "pissa_niter_1"}  # noqa: RUF012

    for kind, reloads in ((PiSSA, False), (LoraAll, True)):
        method, batch = make(kind), Bed().batch()
        train(method, Bed())
        other = kind(Bed().net(), method.recipe, {}, torch.Generator().manual_seed(7))
        other.load(method.state())
        assert (float((other.predict(batch) - method.predict(batch)).abs().max()) < 1e-6) == reloads


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("oft", {"block": 24}, "option block of oft must divide the width, 32; got 24"),
        ("adalora", {"target_rank": 13}, "option target_rank of adalora must be at most rank, 12; got 13"),
        ("fourierft", {"frequencies": 1025}, "option frequencies of fourierft must be at most 1024"),
    ],
)
def test_options_that_do_not_fit_are_told(name: str, options: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        build(name, options)
