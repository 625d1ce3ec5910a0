"""Weight-space methods through the peft library that are not low-rank sums: scales, rotations, frozen randomness."""

from __future__ import annotations

from typing import Any

import torch
from peft import FourierFTConfig, IA3Config, LoKrConfig, OFTConfig, VeraConfig, VeraModel
from torch import Tensor, nn
from torch.nn.utils import parametrize

from methods.peft_backed import ADAPTER, LINEARS, PeftBacked, Redrawn
from mmbench.errors import ConfigError
from mmbench.registry import method


class PlainQueries(nn.Module):
    """Scales (3d, 1) of a fused qkv from those of keys and values (2d, 1); queries keep theirs, which is 1."""

    def forward(self, scales: Tensor) -> Tensor:
        return torch.cat([torch.ones_like(scales[: len(scales) // 2]), scales])

    def right_inverse(self, whole: Tensor) -> Tensor:
        return whole[len(whole) // 3 :]


@method(
    "ia3",
    title="(IA)3",
    family="scaling",
    reference="Liu et al., Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning, "
    "NeurIPS 2022",
    year=2022,
    bibtex="liu2022ia3",
    memory="M3",
    lr_range=(3e-4, 3e-2),
    parameters="6*d*N",
    note="keys and values are scaled with their biases; peft alone would scale the queries of a fused qkv as well",
)
class IA3(PeftBacked):
    """Learned scales of keys, of values and of the MLP's hidden units, all 1 at start."""

    def config(self) -> Any:
        hidden = r"blocks_[avu]\.\d+\.mlp\.fc2"
        return IA3Config(target_modules=rf"blocks_[avu]\.\d+\.attn\.qkv|{hidden}", feedforward_modules=hidden)

    def inject(self) -> None:
        super().inject()
        for layer in self.layers():
            if not layer.is_feedforward:
                parametrize.register_parametrization(layer.ia3_l, ADAPTER, PlainQueries())


@method(
    "vera",
    title="VeRA",
    family="lora",
    reference="Kopiczko et al., VeRA: Vector-based Random Matrix Adaptation, ICLR 2024",
    year=2024,
    bibtex="kopiczko2024vera",
    memory="M3",
    lr_range=(1e-3, 1e-1),
    options={"rank": 256, "start": 0.1},
    parameters="(4*rank + 9*d)*N",
    note="a state holds the seed of the shared projections instead of their 6 MiB at base size",
)
class Vera(Redrawn):
    """diag(b) B diag(d) A on all four linears: A and B are random, frozen and shared, cut to each layer's size."""

    def config(self) -> Any:
        return VeraConfig(r=self.options["rank"], d_initial=self.options["start"], target_modules=LINEARS)

    def inject(self) -> None:
        VeraModel(self.net, self.config(), ADAPTER)  # inject_adapter_in_model refuses what layers share

    def redraw(self, rng: torch.Generator) -> None:
        layer = next(self.layers())
        for shared in (layer.vera_A[ADAPTER], layer.vera_B[ADAPTER]):
            shared.copy_(nn.init.kaiming_uniform_(torch.empty(shared.shape), generator=rng))


@method(
    "oft",
    title="OFT",
    family="orthogonal",
    reference="Qiu et al., Controlling Text-to-Image Diffusion by Orthogonal Finetuning, NeurIPS 2023",
    year=2023,
    bibtex="qiu2023oft",
    memory="M3",
    lr_range=(1e-4, 1e-2),
    options={"block": 32},
    parameters="7*d*(block - 1)//2*N",
    note="the exact Cayley transform, where peft's default is a truncated series; rotates the inputs of each layer",
)
class OFT(PeftBacked):
    """W R^T on all four linears: R is block-diagonal and orthogonal, (I - Q)(I + Q)^-1 of a skew-symmetric Q."""

    def config(self) -> Any:
        width, block = self.net.config.embed_dim, self.options["block"]
        if width % block:
            raise ConfigError(f"option block of oft must divide the width, {width}; got {block}")
        return OFTConfig(r=0, oft_block_size=block, use_cayley_neumann=False, target_modules=LINEARS)


@method(
    "lokr",
    title="LoKr",
    family="low-rank",
    reference="Yeh et al., Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation, "
    "ICLR 2024",
    year=2024,
    bibtex="yeh2024lycoris",
    memory="M3",
    lr_range=(1e-4, 1e-2),
    options={"rank": 8, "alpha": 16.0, "factor": 16},
    parameters="N*("
    "min(factor, d//factor)*(min(factor, d//factor) + min(factor, 3*d//factor) + 2*min(factor, 4*d//factor))"
    " + min(2*rank*max(factor, d//factor), max(factor, d//factor)**2)"
    " + min(rank*(max(factor, 3*d//factor) + max(factor, d//factor)), max(factor, 3*d//factor)*max(factor, d//factor))"
    " + 2*min(rank*(max(factor, 4*d//factor) + max(factor, d//factor)), "
    "max(factor, 4*d//factor)*max(factor, d//factor)))",
    note="blocks that are small against the rank train whole instead of as B A",
)
class LoKr(PeftBacked):
    """s * C (x) (B A) on all four linears; C, which starts at zero, is `factor` rows and columns where those divide."""

    def config(self) -> Any:
        return LoKrConfig(
            r=self.options["rank"],
            alpha=self.options["alpha"],
            decompose_factor=self.options["factor"],
            target_modules=LINEARS,
        )


@method(
    "fourierft",
    title="FourierFT",
    family="spectral",
    reference="Gao et al., Parameter-Efficient Fine-Tuning with Discrete Fourier Transform, ICML 2024",
    year=2024,
    bibtex="gao2024fourierft",
    memory="M3",
    identity_at_start=False,
    lr_range=(1e-3, 1e-1),
    options={"frequencies": 1000, "scale": 150.0},
    parameters="4*frequencies*N",
    note="`scale` holds at width 768 and shrinks with the square of the width, so that every width starts as near to "
    "the source; a state holds the seed of the frequencies",
)
class FourierFT(Redrawn):
    """A spectrum with a few trained entries, at places that all layers of a shape share, is each change of weights."""

    def config(self) -> Any:
        width, count = self.net.config.embed_dim, self.options["frequencies"]
        if count > width**2:
            raise ConfigError(f"option frequencies of fourierft must be at most {width**2}, width squared; got {count}")
        # An inverse transform divides by the number of entries: unscaled, a narrow backbone would start in ruins.
        scale = self.options["scale"] * (width / 768) ** 2
        return FourierFTConfig(n_frequency=count, scaling=scale, target_modules=LINEARS)

    def redraw(self, rng: torch.Generator) -> None:
        places: dict[tuple[int, int], Tensor] = {}  # by shape
        for layer in self.layers():
            shape = (layer.out_features, layer.in_features)
            if shape not in places:
                flat = torch.randperm(shape[0] * shape[1], generator=rng)[: self.options["frequencies"]]
                places[shape] = torch.stack([flat // shape[1], flat % shape[1]])  # (2, frequencies)
            # peft leaves them on the CPU, where a GPU would fetch them in every step.
            layer.indices[ADAPTER] = places[shape].to(layer.fourierft_spectrum[ADAPTER].device)
