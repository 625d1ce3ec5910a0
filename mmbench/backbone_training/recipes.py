"""How CAV-MAE is pre-trained and fine-tuned: the published recipes, and small ones for the tiny backbone.

Figures: Gong et al., Contrastive Audio-Visual Masked Autoencoder, ICLR 2023, and the scripts published with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from types import MappingProxyType
from typing import Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from mmbench.backbone.pretrain import AudioMask, PretrainSettings
from mmbench.config import Config, OptimConfig, Seed
from mmbench.errors import ConfigError, UnknownNameError, near_words
from mmbench.strict_yaml import read_yaml
from mmbench.suite_file import explain

OPTIM = OptimConfig(name="adam", betas=(0.95, 0.999), weight_decay=5e-7, schedule="constant", warmup_share=0)
"""Of both recipes; the decay is added to the gradient (L2), and no step is warmed up."""
DECAY = 0.5


class Recipe(Config):
    """What pre-training and fine-tuning have in common."""

    epochs: int = Field(gt=0)
    batch_size: int = Field(gt=1)
    """Samples of one optimiser step, of all processes together. An incomplete last batch of an epoch is left out."""
    lr: float = Field(gt=0)
    decay_start: int = Field(default=10, gt=0)
    """Epochs at the full learning rate; it is halved then, and again after every `decay_step` epochs."""
    decay_step: int = Field(default=5, gt=0)
    balanced: bool = False
    """Draw samples with replacement, those of rare classes more often, in place of every sample once an epoch."""
    mixup: float = Field(default=0.0, ge=0, le=1)
    """Share of the samples that are mixed with another one."""
    smoothing: float = Field(default=0.0, ge=0, lt=1)
    spec_augment: bool = False
    """Blank a band and a span of the spectrogram."""
    noise: bool = True
    """Noise on the spectrogram, and a roll along time."""
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: Seed = 0

    def lr_in(self, epoch: int) -> float:
        """Learning rate in an epoch, counted from 0."""
        halvings = 0 if epoch < self.decay_start else 1 + (epoch - self.decay_start) // self.decay_step
        return self.lr * DECAY**halvings


class PretrainRecipe(Recipe):
    """Masked reconstruction of both modalities and contrast between them, without labels."""

    audio_mask_ratio: float = PretrainSettings.audio_mask_ratio
    vision_mask_ratio: float = PretrainSettings.vision_mask_ratio
    audio_mask: AudioMask = PretrainSettings.audio_mask
    norm_pix: bool = PretrainSettings.norm_pix
    mae_weight: float = Field(default=PretrainSettings.mae_weight, ge=0)
    contrast_weight: float = Field(default=PretrainSettings.contrast_weight, ge=0)
    bidirectional: bool = PretrainSettings.bidirectional

    @model_validator(mode="after")
    def _trains_something(self) -> PretrainRecipe:
        if not self.mae_weight and not self.contrast_weight:
            raise ValueError("mae_weight and contrast_weight are both 0; nothing would train")
        if self.mae_weight and not min(self.audio_mask_ratio, self.vision_mask_ratio) > 0:
            raise ValueError("a mask ratio of 0 leaves nothing to reconstruct; set it above 0 or mae_weight to 0")
        self.settings()
        return self

    def settings(self) -> PretrainSettings:
        """What the model needs of it."""
        return PretrainSettings(**{field.name: getattr(self, field.name) for field in fields(PretrainSettings)})


class FinetuneRecipe(Recipe):
    """Classification; cross-entropy for single labels, binary cross-entropy for several."""

    head_lr: float = Field(default=10.0, gt=0)
    """Factor on the learning rate of the head."""
    average_from: int = Field(default=1, gt=0)
    """The result is the mean of the weights after this epoch, counted from 1, and all later ones."""
    freeze_base: bool = False
    """Train the head alone (linear probe)."""

    @model_validator(mode="after")
    def _averages_something(self) -> FinetuneRecipe:
        if self.average_from > self.epochs:
            raise ValueError(f"average_from is {self.average_from}, but there are {self.epochs} epochs; lower it")
        return self


PRETRAIN: Mapping[str, PretrainRecipe] = MappingProxyType(
    {
        "audioset-base": PretrainRecipe(lr=5e-5, batch_size=48, epochs=25),
        "audioset-scale+": PretrainRecipe(lr=1e-4, batch_size=120, epochs=25),
        "audioset-scale++": PretrainRecipe(lr=2e-4, batch_size=256, epochs=25),
        "vggsound": PretrainRecipe(lr=1e-4, batch_size=120, epochs=25),
        "vggsound-from-audioset": PretrainRecipe(lr=5e-5, batch_size=120, epochs=10),
        "tiny": PretrainRecipe(lr=2e-3, batch_size=32, epochs=40, decay_start=20, decay_step=8),
    }
)
_MIXED = FinetuneRecipe(lr=1e-4, batch_size=48, epochs=10, mixup=0.5, smoothing=0.1, spec_augment=True, decay_step=1)
FINETUNE: Mapping[str, FinetuneRecipe] = MappingProxyType(
    {
        "vggsound": _MIXED.model_copy(update={"decay_start": 2, "average_from": 3, "balanced": True}),
        "audioset-2m": _MIXED.model_copy(update={"lr": 1e-5, "head_lr": 50.0, "decay_start": 2, "balanced": True}),
        "audioset-20k": _MIXED.model_copy(
            update={"lr": 5e-5, "head_lr": 100.0, "batch_size": 36, "epochs": 15, "decay_start": 5, "average_from": 3}
        ),
        "tiny": FinetuneRecipe(
            lr=2e-3, batch_size=32, epochs=12, head_lr=1.0, noise=False, decay_start=6, decay_step=1, average_from=7
        ),
    }
)
Kind = TypeVar("Kind", PretrainRecipe, FinetuneRecipe)


def recipe_of(known: Mapping[str, Kind], name: str, changes: Sequence[str] = ()) -> Kind:
    """A recipe by its name, with `key=value` changes put in place.

    Raises UnknownNameError for the name, ConfigError naming a key or value that cannot be.
    """
    if name not in known:
        raise UnknownNameError("recipe", name, known)
    content = known[name].model_dump()
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or key not in content:
            raise ConfigError(f"'{change}' changes no key of the recipe: key=value, where {near_words(key, content)}")
        try:
            content[key] = read_yaml(value)
        except ValueError as error:
            raise ConfigError(f"recipe {name}, {change}: the value is not valid YAML: {error}") from None
    try:
        return type(known[name]).model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"recipe {name}: {explain(error)}") from None
