"""CAV-MAE for fine-tuning: two encoders, an optional fusion block, joint blocks, a head; five forward modes."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from mmbench.backbone.blocks import Block, Norm, initialise
from mmbench.backbone.config import BackboneConfig
from mmbench.backbone.fusion import FORMS, dead_parameter_names
from mmbench.backbone.hooks import PLAIN, Hooks, bind_block
from mmbench.backbone.positions import sincos_positions
from mmbench.errors import ConfigError

MODES = ("multimodal", "audioonly", "videoonly", "missingaudioonly", "missingvideoonly")  # they name what is PRESENT


class PatchEmbed(nn.Module):
    """Non-overlapping patches, one token each, row-major."""

    def __init__(self, channels: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, rows, columns) to (B, N, D)."""
        return cast(Tensor, self.proj(x)).flatten(2).transpose(1, 2)


class Encoder(nn.Module):
    """What fine-tuning and pre-training share, under the names of the official checkpoints."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.embed_dim
        self.patch_embed_a = PatchEmbed(1, dim, config.patch_size)
        self.patch_embed_v = PatchEmbed(3, dim, config.patch_size)
        self.modality_a = nn.Parameter(torch.empty(1, 1, dim))
        self.modality_v = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed_a = nn.Parameter(torch.empty(1, config.audio_tokens, dim))
        self.pos_embed_v = nn.Parameter(torch.empty(1, config.vision_tokens, dim))
        self.blocks_a = nn.ModuleList(Block(dim, config.heads) for _ in range(config.depth))
        self.blocks_v = nn.ModuleList(Block(dim, config.heads) for _ in range(config.depth))
        self.blocks_u = nn.ModuleList(Block(dim, config.heads) for _ in range(config.joint_depth))
        self.norm, self.norm_a, self.norm_v = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)

    def reset_own(self, rng: torch.Generator) -> None:
        nn.init.normal_(self.modality_a, std=0.02, generator=rng)
        nn.init.normal_(self.modality_v, std=0.02, generator=rng)
        self.pos_embed_a.copy_(sincos_positions(self.config.embed_dim, *self.config.audio_grid))
        self.pos_embed_v.copy_(sincos_positions(self.config.embed_dim, *self.config.vision_grid))

    def embed(self, modality: str, x: Tensor) -> Tensor:
        """Audio (B, T, mel) or image (B, 3, S, S) to tokens (B, N, D); audio token = 64 * mel band + time at base size.

        Raises ConfigError for another shape.
        """
        config = self.config
        if modality == "a":
            _check_shape("audio", x, ("batch", config.frames, config.mel_bins))
            patches = self.patch_embed_a(x.unsqueeze(1).transpose(2, 3))  # mel is the height, time the width
            return cast(Tensor, patches + self.pos_embed_a + self.modality_a)
        _check_shape("image", x, ("batch", 3, config.image_size, config.image_size))
        return cast(Tensor, self.patch_embed_v(x) + self.pos_embed_v + self.modality_v)

    def forward_feat(self, audio: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Token features (B, Na, D) and (B, Nv, D) of each modality alone, for retrieval; no fusion, no hooks."""
        a, v = self.embed("a", audio), self.embed("v", image)
        for block_a, block_v in zip(self.blocks_a, self.blocks_v, strict=True):
            a, v = block_a(a), block_v(v)
        for block in self.blocks_u:
            a, v = block(a, "a"), block(v, "v")
        return self.norm_a(a), self.norm_v(v)


class CAVMAEFT(Encoder):
    """CAV-MAE with a classification head and, unless `config.fusion` is "none", one fusion block in `blocks_fu`."""

    def __init__(self, config: BackboneConfig, rng: torch.Generator | None = None) -> None:
        with torch.device("meta"):
            super().__init__(config)
            self.mlp_head = nn.Sequential(nn.LayerNorm(config.embed_dim), nn.Linear(config.embed_dim, config.n_classes))
            if config.fusion != "none":
                self.blocks_fu = nn.ModuleList([FORMS[config.fusion](config.embed_dim, config.heads)])
        initialise(self, rng)

    def forward(
        self,
        audio: Tensor | None,
        image: Tensor | None,
        mode: str = "multimodal",
        hooks: Hooks = PLAIN,
        batch: Any = None,
    ) -> Tensor:
        """Logits (B, C)."""
        return cast(Tensor, self.mlp_head(self.pooled(audio, image, mode, hooks, batch)))

    def pooled(
        self,
        audio: Tensor | None,
        image: Tensor | None,
        mode: str = "multimodal",
        hooks: Hooks = PLAIN,
        batch: Any = None,
    ) -> Tensor:
        """Input of the head (B, D) from audio (B, T, mel) and image (B, 3, S, S).

        An input that the mode ignores may be None.
        Raises ConfigError for an unknown mode, a missing input or a wrong shape.
        """
        if mode not in MODES:
            raise ConfigError(f"no mode '{mode}'; known: {', '.join(MODES)}")
        if mode == "multimodal":
            a, v = self.encode(audio, image, hooks, batch)
            a, v = hooks.fuse(self, a, v, batch)
            return self._joint(torch.cat([a, v], dim=1), "", hooks, batch)
        modality: Norm = "a" if "audio" in mode else "v"
        x = self._encode_one(modality, audio if modality == "a" else image, hooks, batch)
        alone = self._joint(x, modality, hooks, batch)
        if not mode.startswith("missing"):
            return alone
        # A model tuned on both modalities never trained these norms: half the weight goes to the trained ones.
        return (self._joint(x, "", hooks, batch) + alone) / 2

    def encode(
        self, audio: Tensor | None, image: Tensor | None, hooks: Hooks = PLAIN, batch: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Both streams after their encoders in lock step, prefixes dropped: (B, Na, D) and (B, Nv, D).

        A batch that carries these already, because nothing before them trains, is not encoded again.
        """
        if getattr(batch, "encoded", None) is not None:
            return cast("tuple[Tensor, Tensor]", batch.encoded)
        a, prefix_a = self._start("a", audio, hooks, batch)
        v, prefix_v = self._start("v", image, hooks, batch)
        for index in range(self.config.depth):
            call_a = bind_block(hooks, "a", index, cast(Block, self.blocks_a[index]), batch, "")
            call_v = bind_block(hooks, "v", index, cast(Block, self.blocks_v[index]), batch, "")
            a, v = hooks.block("a", index, call_a, a, batch, v), hooks.block("v", index, call_v, v, batch, a)
        return a[:, prefix_a:], v[:, prefix_v:]

    def _encode_one(self, modality: Norm, x: Tensor | None, hooks: Hooks, batch: Any) -> Tensor:
        tokens, prefix = self._start(modality, x, hooks, batch)
        blocks = self.blocks_a if modality == "a" else self.blocks_v
        for index, block in enumerate(blocks):
            call = bind_block(hooks, modality, index, cast(Block, block), batch, "")
            tokens = hooks.block(modality, index, call, tokens, batch, None)
        return tokens[:, prefix:]

    def _start(self, modality: str, x: Tensor | None, hooks: Hooks, batch: Any) -> tuple[Tensor, int]:
        if x is None:
            needed = "audio" if modality == "a" else "image"
            raise ConfigError(f"{needed} is None, but the mode needs it; modes: {', '.join(MODES)}")
        return hooks.tokens(modality, self.embed(modality, x), batch)

    def _joint(self, x: Tensor, norm: Norm, hooks: Hooks, batch: Any) -> Tensor:
        for index, block in enumerate(self.blocks_u):
            call = bind_block(hooks, "u", index, cast(Block, block), batch, norm)
            x = hooks.block("u", index, call, x, batch, None)
        last = {"": self.norm, "a": self.norm_a, "v": self.norm_v}[norm]
        return hooks.pool(last(x), batch)  # (B, D)

    def fusion(
        self, audio: Tensor, vision: Tensor, prompt_a: Tensor | None = None, prompt_v: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The fusion block on (B, Na, D) and (B, Nv, D), or the identity where there is none.

        Raises ConfigError for prompts without a fusion block.
        """
        if self.config.fusion != "none":
            return cast("tuple[Tensor, Tensor]", self.blocks_fu[0](audio, vision, prompt_a, prompt_v))
        if prompt_a is not None or prompt_v is not None:
            raise ConfigError("fusion is 'none', but prompts for it were given; set backbone.fusion to 'gated'")
        return audio, vision

    def recompute_blocks(self, on: bool) -> None:
        """Whether the encoder and joint blocks keep their inside for the backward pass or make it again there."""
        for block in (*self.blocks_a, *self.blocks_v, *self.blocks_u):
            cast(Block, block).recompute = on

    def compile_blocks(self, on: bool) -> None:
        """Whether the encoder and joint blocks run compiled while they are in training mode."""
        for block in (*self.blocks_a, *self.blocks_v, *self.blocks_u):
            cast(Block, block).compiled = on

    def live_parameter_names(self) -> frozenset[str]:
        """Parameters that receive a gradient in multimodal mode; the others are in every checkpoint all the same."""
        dead = {"norm_a.weight", "norm_a.bias", "norm_v.weight", "norm_v.bias"}
        if self.config.fusion != "none":
            dead |= {f"blocks_fu.0.{name}" for name in dead_parameter_names(self.blocks_fu[0])}
        modal = ("norm1_a", "norm2_a", "norm1_v", "norm2_v")
        encoders = ("blocks_a.", "blocks_v.", "blocks_u.")
        return frozenset(
            name
            for name, _ in self.named_parameters()
            if name not in dead and not (name.startswith(encoders) and name.split(".")[2] in modal)
        )


def count_parameters(model: nn.Module, trainable_only: bool = False) -> int:
    """Number of values in the parameters, shared ones once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)


def _check_shape(what: str, x: Tensor, expected: tuple[str | int, ...]) -> None:
    if x.ndim != len(expected) or tuple(x.shape[1:]) != expected[1:]:
        wanted = ", ".join(str(size) for size in expected)
        raise ConfigError(f"{what} must have shape ({wanted}), got {tuple(x.shape)}; change the data or the backbone")
