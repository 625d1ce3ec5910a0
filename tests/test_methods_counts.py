"""Parameters of every method against its closed form, on the published size (no memory is taken) and on a small one."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch

from mmbench import registry
from mmbench.backbone.cavmae import CAVMAEFT
from mmbench.backbone.config import BackboneConfig, Fusion, preset
from mmbench.bench import Bench
from mmbench.config import Budget
from mmbench.conformance_bed import SIZES, Bed
from mmbench.costs import count_batch
from mmbench.errors import RefusedError
from mmbench.formula import evaluate, numbers
from mmbench.meter import Clock
from mmbench.method import Method, Recipe
from mmbench.strategy import Regimen

CLASSES = 10


def on_meta(name: str, config: BackboneConfig, **options: object) -> Method:
    with torch.device("meta"):
        net = CAVMAEFT(config)
    kind: type[Method] = registry.methods().load(name)
    return kind(net, Recipe(), options, torch.Generator().manual_seed(0))


def count(method: Method) -> int:
    """Trainable values without the head."""
    return sum(p.numel() for name, p in method.trainable().items() if not name.startswith("mlp_head."))


def live(c: BackboneConfig) -> int:
    """Everything that takes part in the multimodal pass, head apart."""
    d = c.embed_dim
    block = (3 * d * d + 3 * d) + (d * d + d) + (8 * d * d + 5 * d) + 4 * d  # qkv, proj, MLP, two live norms
    patches = (c.patch_size**2 + 1) * d + (3 * c.patch_size**2 + 1) * d
    places = (c.audio_tokens + c.vision_tokens + 2) * d
    fusion = 4 * (4 * d * d + 4 * d) + 2 * (8 * d * d + 5 * d) + 8 * d + 6 if c.fusion == "gated" else 0
    return (2 * c.depth + c.joint_depth) * block + patches + places + 2 * d + fusion


BUILT_IN = [name for name in registry.methods().names() if registry.methods().entry(name).origin.label == "mmbench"]


SMALL = preset("cavmae-tiny")


def declared(name: str, config: BackboneConfig) -> int:
    """What the card's closed form gives with default options."""
    card = registry.methods().card(name)
    assert card.parameters or not card.trains, f"{name} states no closed form; add `parameters` to its facts"
    return evaluate(card.parameters or "0", {**config.symbols(), **numbers(card.options)})


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize(
    "config", [preset("cavmae-base", n_classes=CLASSES), SMALL, SIZES], ids=["base", "tiny", "bed"]
)
def test_trainable_parameters_are_the_closed_form(name: str, config: BackboneConfig) -> None:
    assert count(on_meta(name, config)) == declared(name, config)


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("fusion", [fusion for fusion in get_args(Fusion) if fusion != SMALL.fusion])
def test_the_closed_form_holds_with_every_fusion(name: str, fusion: Fusion) -> None:
    config = replace(SMALL, fusion=fusion)
    try:
        method = on_meta(name, config)
    except RefusedError:
        return  # the method says that it needs another fusion
    assert count(method) == declared(name, config)


@pytest.mark.parametrize("config", [preset("cavmae-base"), SMALL, SIZES, replace(SMALL, fusion="none")])
def test_full_fine_tuning_trains_all_that_is_alive(config: BackboneConfig) -> None:
    assert count(on_meta("full-finetune", config)) == live(config)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("lora-qv", 565_248),
        ("lora-qkv", 565_248),
        ("adapter-houlsby", 4_560_256),
        ("adapter-pfeiffer", 2_280_128),
        ("prompt-the-missing", 24_576),
    ],
)
def test_counts_on_the_published_model_are_the_published_ones(name: str, published: int) -> None:
    assert count(on_meta(name, preset("cavmae-base"))) == published


def test_without_fusion_full_fine_tuning_frees_the_published_model_but_its_unused_norms() -> None:
    method = on_meta("full-finetune", preset("cavmae-base", fusion="none"))
    whole = sum(p.numel() for n, p in method.net.named_parameters() if not n.startswith("mlp_head."))
    unused = 4 * 2 * 768 * 23 + 2 * 2 * 768  # modality norms of 23 blocks, and the two of the whole model
    assert whole == 164_500_224
    assert count(method) == whole - unused


@pytest.mark.parametrize("name", [n for n in BUILT_IN if registry.methods().card(n).trains])
@pytest.mark.parametrize("classes", [4, 10, 309])
def test_the_head_is_counted_apart_and_trains_with_every_method(name: str, classes: int) -> None:
    method = on_meta(name, preset("cavmae-base", n_classes=classes))
    head = sum(p.numel() for n, p in method.trainable().items() if n.startswith("mlp_head."))
    assert head == 1_536 + 769 * classes


@pytest.mark.parametrize(("rank", "expected"), [(1, 70_656), (4, 282_624), (16, 1_130_496)])
@pytest.mark.parametrize("name", ["lora-qv", "lora-qkv"])
def test_lora_grows_with_its_rank(name: str, rank: int, expected: int) -> None:
    assert count(on_meta(name, preset("cavmae-base"), rank=rank)) == expected


def test_training_state_is_counted_without_any_memory() -> None:
    """Full fine-tuning of the published model: four bytes a value for weights and gradients, eight for Adam."""
    config = preset("cavmae-tiny")
    bench = Bench(torch.device("cpu"), Budget(), Clock(torch.device("cpu")))
    states = {}
    for name in ("full-finetune", "linear-probe", "prompt-attention"):
        method = on_meta(name, config)
        batch = Bed(config).batch(samples=4).to("meta")
        states[name] = count_batch(Regimen(method), batch, bench).state(4)
        reached = sum(p.numel() for p in method.trainable().values())
        assert states[name].gradients_bytes == 4 * reached
        assert states[name].optimizer_bytes == 8 * reached
        added = sum(p.numel() for p in method.extra.parameters())
        assert states[name].parameters_bytes == 4 * (sum(p.numel() for p in method.net.parameters()) + added)
    by_activations = sorted(states, key=lambda name: states[name].activations_bytes)
    assert by_activations == ["linear-probe", "prompt-attention", "full-finetune"]


@pytest.mark.parametrize("name", ["full-finetune", "adapter-houlsby", "lora-qkv", "prompt-the-missing"])
def test_counts_do_not_depend_on_the_device(name: str) -> None:
    def counted(device: str) -> dict[str, int]:
        net = Bed().net() if device == "cpu" else None
        kind: type[Method] = registry.methods().load(name)
        method = kind(net, Recipe(), {}, torch.Generator()) if net else on_meta(name, SIZES)
        bench = Bench(torch.device("cpu"), Budget(), Clock(torch.device("cpu")))
        return count_batch(Regimen(method), Bed().batch(samples=4).to(device), bench).state(4).model_dump()

    cpu, meta = counted("cpu"), counted("meta")
    # Each device's attention kernel keeps its own few statistics; all else is the same.
    assert cpu.pop("activations_bytes") == pytest.approx(meta.pop("activations_bytes"), rel=0.1)
    assert cpu == meta


def test_frozen_prompts_train_nothing_but_the_head() -> None:
    names = set(on_meta("prompt-zero", preset("cavmae-tiny")).trainable())
    assert names and all(name.startswith("mlp_head.") for name in names)
