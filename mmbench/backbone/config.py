"""Sizes of a backbone; imports no torch, so that listing names stays cheap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Literal, cast, get_args

from mmbench.errors import ConfigError, UnknownNameError

Fusion = Literal["none", "one-way", "gated", "as-published"]

_MULTIPLES = (  # (field, what must divide it)
    ("embed_dim", "heads"),
    ("decoder_dim", "decoder_heads"),
    ("frames", "patch_size"),
    ("mel_bins", "patch_size"),
    ("image_size", "patch_size"),
)

# Far above any model of this kind, and small enough that a description cannot ask for more than a machine has.
LARGEST_SIZE = 16_384
LARGEST = dict.fromkeys(("depth", "joint_depth", "decoder_depth"), 128) | {"n_classes": 2**20}


@dataclass(frozen=True)
class BackboneConfig:
    """Sizes of one CAV-MAE; the defaults are the published base model with a gated fusion block.

    Raises ConfigError for sizes that cannot be built.
    """

    name: str = "cavmae-base"
    embed_dim: int = 768
    heads: int = 12
    depth: int = 11  # blocks of each modality
    joint_depth: int = 1  # blocks that see both modalities
    frames: int = 1024  # 10 ms each
    mel_bins: int = 128
    image_size: int = 224
    patch_size: int = 16
    n_classes: int = 10
    fusion: Fusion = "gated"
    decoder_dim: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (type(value) is not int or value < 1):
                raise ConfigError(f"backbone.{field.name} must be a positive integer, got {value!r:.80}")
            most = LARGEST.get(field.name, LARGEST_SIZE)
            if field.type == "int" and value > most:
                raise ConfigError(f"backbone.{field.name} must be at most {most}, got {value}")
        if self.fusion not in get_args(Fusion):
            raise UnknownNameError("fusion", str(self.fusion), get_args(Fusion))
        for whole, part in _MULTIPLES:
            if getattr(self, whole) % getattr(self, part):
                values = f"{getattr(self, whole)} and {getattr(self, part)}"
                raise ConfigError(f"backbone.{whole} must be a multiple of {part}, got {values}")
        if self.audio_tokens + self.vision_tokens > LARGEST_SIZE:
            tokens = self.audio_tokens + self.vision_tokens
            raise ConfigError(f"backbone.patch_size gives {tokens} tokens, at most {LARGEST_SIZE} can be built")
        for width in ("embed_dim", "decoder_dim"):
            if getattr(self, width) % 4:  # sine and cosine of two axes
                raise ConfigError(f"backbone.{width} must be a multiple of 4, got {getattr(self, width)}")

    @property
    def audio_grid(self) -> tuple[int, int]:
        """Rows (mel bands, low first) and columns (time) of the audio tokens."""
        return self.mel_bins // self.patch_size, self.frames // self.patch_size

    @property
    def vision_grid(self) -> tuple[int, int]:
        """Rows and columns of the image tokens."""
        side = self.image_size // self.patch_size
        return side, side

    @property
    def audio_tokens(self) -> int:
        """Number of audio tokens, prefixes not counted."""
        return self.audio_grid[0] * self.audio_grid[1]

    @property
    def vision_tokens(self) -> int:
        """Number of image tokens, prefixes not counted."""
        return self.vision_grid[0] * self.vision_grid[1]

    def symbols(self) -> dict[str, int]:
        """The sizes by the names that formulas of parameter counts use; see mmbench.formula."""
        d = self.embed_dim
        attention, mlps_and_norms = 4 * d * d + 4 * d, 2 * (8 * d * d + 5 * d) + 8 * d
        directions = {"none": 0, "one-way": 1}.get(self.fusion, 2)
        gates = {"none": 0, "as-published": 0}.get(self.fusion, 4 + directions)
        return {
            "d": d,
            "E": self.depth,
            "U": self.joint_depth,
            "N": 2 * self.depth + self.joint_depth,
            "H": self.heads,
            "p": self.patch_size,
            "Ta": self.audio_tokens,
            "Tv": self.vision_tokens,
            "F": (2 + directions) * attention + mlps_and_norms + gates if directions else 0,
            "X": directions,
            "C": self.n_classes,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BackboneConfig:
        """Inverse of to_dict; raises UnknownNameError for a key that is no field."""
        check_fields(values)
        return cls(**cast("dict[str, Any]", dict(values)))


def check_fields(values: Mapping[str, Any]) -> None:
    """Raise UnknownNameError at the first key that is no field of BackboneConfig."""
    known = [field.name for field in fields(BackboneConfig)]
    for key in values:
        if key not in known:
            raise UnknownNameError("backbone setting", key, known)


PRESETS: Mapping[str, BackboneConfig] = MappingProxyType(
    {
        "cavmae-base": BackboneConfig(),
        "cavmae-tiny": BackboneConfig(
            name="cavmae-tiny",
            embed_dim=64,
            heads=4,
            depth=3,
            frames=128,
            image_size=64,
            decoder_dim=32,
            decoder_depth=2,
            decoder_heads=4,
        ),
    }
)


def preset(name: str, **changes: Any) -> BackboneConfig:
    """The named sizes with some fields changed; raises UnknownNameError for an unknown name or field."""
    if name not in PRESETS:
        raise UnknownNameError("backbone", name, PRESETS)
    check_fields(changes)
    return replace(PRESETS[name], **changes)
