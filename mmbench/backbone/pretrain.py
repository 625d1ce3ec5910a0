"""CAV-MAE for pre-training: masked reconstruction of both modalities plus a contrastive loss between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmbench.backbone.blocks import Block, initialise
from mmbench.backbone.cavmae import Encoder
from mmbench.backbone.config import BackboneConfig
from mmbench.backbone.positions import sincos_positions
from mmbench.errors import ConfigError, UnknownNameError

AudioMask = Literal["unstructured", "time", "freq", "tf"]
TEMPERATURE = 0.05
TF_SHARE = 0.7  # "tf" removes this share of the columns and of the rows that "time" and "freq" would


@dataclass(frozen=True)
class PretrainSettings:
    """What is hidden and how the losses are weighted; the defaults are those of the published runs."""

    audio_mask_ratio: float = 0.75
    vision_mask_ratio: float = 0.75
    audio_mask: AudioMask = "unstructured"
    norm_pix: bool = True  # standardise each target patch
    mae_weight: float = 1.0  # 0 skips the part
    contrast_weight: float = 0.01  # 0 skips the part
    bidirectional: bool = False

    def __post_init__(self) -> None:
        if self.audio_mask not in get_args(AudioMask):
            raise UnknownNameError("audio mask", str(self.audio_mask), get_args(AudioMask))
        for name in ("audio_mask_ratio", "vision_mask_ratio"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"pretrain.{name} must be in [0, 1), got {getattr(self, name)}")


@dataclass(frozen=True)
class MaskNoise:
    """One value a token; the tokens with the smallest values stay visible."""

    audio: Tensor  # (B, Na)
    vision: Tensor  # (B, Nv)


@dataclass(frozen=True)
class Masked:
    """Visible tokens in the order of their noise, and the way back."""

    visible: Tensor  # (B, keep, D)
    mask: Tensor  # (B, N): 1 = removed
    restore: Tensor  # (B, N): position of each token in the shuffled order


@dataclass(frozen=True)
class Encoded:
    """Normed outputs of the three passes through the joint blocks, on visible tokens."""

    joint: Tensor  # (B, keep_a + keep_v, D)
    audio: Tensor  # (B, keep_a, D)
    vision: Tensor  # (B, keep_v, D)
    audio_mask: Masked
    vision_mask: Masked


@dataclass(frozen=True)
class PretrainLosses:
    """Scalars of one step; a part with weight 0 is not computed and None."""

    total: Tensor
    mae: Tensor | None  # weighted
    mae_audio: Tensor | None
    mae_vision: Tensor | None
    contrast: Tensor | None  # weighted
    contrast_accuracy: Tensor | None
    audio_mask: Tensor  # (B, Na): 1 = removed
    vision_mask: Tensor  # (B, Nv)


class CAVMAE(Encoder):
    """Encoder as in fine-tuning, plus a decoder; position embeddings are fixed."""

    def __init__(self, config: BackboneConfig, rng: torch.Generator | None = None) -> None:
        width = config.decoder_dim
        with torch.device("meta"):
            super().__init__(config)
            self.decoder_embed = nn.Linear(config.embed_dim, width)
            self.mask_token = nn.Parameter(torch.empty(1, 1, width))
            self.decoder_modality_a = nn.Parameter(torch.empty(1, 1, width))
            self.decoder_modality_v = nn.Parameter(torch.empty(1, 1, width))
            self.decoder_pos_embed_a = nn.Parameter(torch.empty(1, config.audio_tokens, width))
            self.decoder_pos_embed_v = nn.Parameter(torch.empty(1, config.vision_tokens, width))
            self.decoder_blocks = nn.ModuleList(Block(width, config.decoder_heads) for _ in range(config.decoder_depth))
            self.decoder_norm = nn.LayerNorm(width)
            self.decoder_pred_a = nn.Linear(width, config.patch_size**2)
            self.decoder_pred_v = nn.Linear(width, 3 * config.patch_size**2)
        for fixed in (self.pos_embed_a, self.pos_embed_v, self.decoder_pos_embed_a, self.decoder_pos_embed_v):
            fixed.requires_grad_(False)
        initialise(self, rng)

    def reset_own(self, rng: torch.Generator) -> None:
        super().reset_own(rng)
        for token in (self.mask_token, self.decoder_modality_a, self.decoder_modality_v):
            nn.init.normal_(token, std=0.02, generator=rng)
        self.decoder_pos_embed_a.copy_(sincos_positions(self.config.decoder_dim, *self.config.audio_grid))
        self.decoder_pos_embed_v.copy_(sincos_positions(self.config.decoder_dim, *self.config.vision_grid))

    def encode(self, audio: Tensor, image: Tensor, noise: MaskNoise, settings: PretrainSettings) -> Encoded:
        """Mask both modalities, encode what is left: audio (B, T, mel), image (B, 3, S, S)."""
        masked_a = hide(self.embed("a", audio), noise.audio, settings.audio_mask_ratio)
        masked_v = hide(self.embed("v", image), noise.vision, settings.vision_mask_ratio)
        a, v = masked_a.visible, masked_v.visible
        for block_a, block_v in zip(self.blocks_a, self.blocks_v, strict=True):
            a, v = block_a(a), block_v(v)
        x = torch.cat([a, v], dim=1)
        for block in self.blocks_u:
            x = block(x)
        # As published, each joint block gets the encoder's output and the last result is kept, so only the last
        # block counts here; forward_feat chains them.
        last = self.blocks_u[-1]
        return Encoded(self.norm(x), self.norm_a(last(a, "a")), self.norm_v(last(v, "v")), masked_a, masked_v)

    def decode(self, encoded: Encoded) -> tuple[Tensor, Tensor]:
        """Predicted patches (B, Na, p * p) and (B, Nv, 3 * p * p) of all tokens."""
        keep = encoded.audio.shape[1]
        x = self.decoder_embed(encoded.joint)
        a = self._unshuffle(x[:, :keep], encoded.audio_mask.restore) + self.decoder_pos_embed_a
        v = self._unshuffle(x[:, keep:], encoded.vision_mask.restore) + self.decoder_pos_embed_v
        x = torch.cat([a + self.decoder_modality_a, v + self.decoder_modality_v], dim=1)  # (B, Na + Nv, E)
        for block in self.decoder_blocks:
            x = block(x)
        x = self.decoder_norm(x)
        return self.decoder_pred_a(x[:, : a.shape[1]]), self.decoder_pred_v(x[:, a.shape[1] :])

    def _unshuffle(self, visible: Tensor, restore: Tensor) -> Tensor:
        batch, keep, dim = visible.shape
        hidden = self.mask_token.expand(batch, restore.shape[1] - keep, dim)
        full = torch.cat([visible, hidden], dim=1)  # (B, N, E), shuffled
        return full.gather(1, restore.unsqueeze(-1).expand(-1, -1, dim))

    def forward(self, audio: Tensor, image: Tensor, noise: MaskNoise, settings: PretrainSettings) -> PretrainLosses:
        """Losses of one batch: audio (B, T, mel), image (B, 3, S, S)."""
        encoded = self.encode(audio, image, noise, settings)
        total = encoded.joint.new_zeros(())
        mae = mae_audio = mae_vision = contrast = accuracy = None
        if settings.mae_weight:
            mae_audio, mae_vision = self._reconstruction(audio, image, encoded, settings.norm_pix)
            mae = settings.mae_weight * (mae_audio + mae_vision)
            total = total + mae
        if settings.contrast_weight:
            pooled_a, pooled_v = encoded.audio.mean(dim=1), encoded.vision.mean(dim=1)  # (B, D)
            loss, accuracy = contrastive_loss(pooled_a, pooled_v, settings.bidirectional)
            contrast = settings.contrast_weight * loss
            total = total + contrast
        masks = encoded.audio_mask.mask, encoded.vision_mask.mask
        return PretrainLosses(total, mae, mae_audio, mae_vision, contrast, accuracy, *masks)

    def _reconstruction(self, audio: Tensor, image: Tensor, encoded: Encoded, norm_pix: bool) -> tuple[Tensor, Tensor]:
        pred_a, pred_v = self.decode(encoded)
        target_a, target_v = audio_patches(audio, self.config.patch_size), patches(image, self.config.patch_size)
        return (
            mae_loss(pred_a, target_a, encoded.audio_mask.mask, norm_pix),
            mae_loss(pred_v, target_v, encoded.vision_mask.mask, norm_pix),
        )


def draw_noise(config: BackboneConfig, settings: PretrainSettings, batch: int, rng: torch.Generator) -> MaskNoise:
    """Uniform noise; structured audio masks set whole columns (time) or rows (mel) to 1.1, so these go first."""
    rows, columns = config.audio_grid
    audio = torch.rand(batch, rows, columns, generator=rng)
    share = settings.audio_mask_ratio * (TF_SHARE if settings.audio_mask == "tf" else 1)
    for sample in audio:  # (rows, columns), a view
        if settings.audio_mask in ("time", "tf"):
            sample[:, torch.randperm(columns, generator=rng)[: int(columns * share)]] = 1.1
        if settings.audio_mask in ("freq", "tf"):
            sample[torch.randperm(rows, generator=rng)[: int(rows * share)]] = 1.1
    return MaskNoise(audio.flatten(1), torch.rand(batch, config.vision_tokens, generator=rng))


def hide(x: Tensor, noise: Tensor, ratio: float) -> Masked:
    """Keep int(N * (1 - ratio)) of the tokens (B, N, D), those with the smallest noise (B, N), in that order."""
    tokens, dim = x.shape[1:]
    keep = int(tokens * (1 - ratio))
    order = noise.argsort(dim=1, stable=True)  # (B, N)
    restore = order.argsort(dim=1)
    visible = x.gather(1, order[:, :keep].unsqueeze(-1).expand(-1, -1, dim))  # (B, keep, D)
    return Masked(visible, (restore >= keep).to(x.dtype), restore)


def patches(x: Tensor, size: int) -> Tensor:
    """(B, C, rows, columns) to (B, N, size * size * C): tokens row-major, in each (row, column, channel)."""
    batch, channels, rows, columns = x.shape
    grid = x.reshape(batch, channels, rows // size, size, columns // size, size)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, size * size * channels)


def audio_patches(audio: Tensor, size: int) -> Tensor:
    """(B, T, mel) to (B, N, size * size): mel bands are the rows, time the columns."""
    return patches(audio.transpose(1, 2).unsqueeze(1), size)


def mae_loss(pred: Tensor, target: Tensor, mask: Tensor, norm_pix: bool) -> Tensor:
    """Mean squared error of patches (B, N, P) over the removed ones, mask (B, N) = 1; NaN where none is removed."""
    if norm_pix:
        spread = (target.var(dim=-1, keepdim=True) + 1e-6).sqrt()
        target = (target - target.mean(dim=-1, keepdim=True)) / spread
    error = (pred - target).square().mean(dim=-1)  # (B, N)
    return (error * mask).sum() / mask.sum()


def contrastive_loss(audio: Tensor, vision: Tensor, bidirectional: bool = False) -> tuple[Tensor, Tensor]:
    """Loss and accuracy of finding, among the audio (B, D) of the batch, the one of each image (B, D).

    `bidirectional` averages with the other direction.
    """
    full = torch.promote_types(audio.dtype, torch.float32)
    with torch.autocast(audio.device.type, enabled=False):  # in bf16 the temperature would magnify the rounding
        a, v = F.normalize(audio.to(full), dim=-1), F.normalize(vision.to(full), dim=-1)
        similarity = a @ v.T / TEMPERATURE  # (audio, vision)
    target = torch.arange(similarity.shape[0], device=similarity.device)
    directions = [similarity.T, similarity] if bidirectional else [similarity.T]
    losses = [F.cross_entropy(logits, target) for logits in directions]
    hits = [(logits.argmax(dim=1) == target).to(similarity.dtype).mean() for logits in directions]
    return torch.stack(losses).mean(), torch.stack(hits).mean()
