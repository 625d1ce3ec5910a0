"""What is trained, and on which loss: CAV-MAE's pre-training and its fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmbench.backbone.cavmae import CAVMAEFT
from mmbench.backbone.pretrain import CAVMAE, MaskNoise, draw_noise
from mmbench.backbone_training.recipes import FinetuneRecipe, PretrainRecipe
from mmbench.backbone_training.views import View
from mmbench.feed import seed_from

LOSS = "loss"
HEAD = "mlp_head."


class Pretraining:
    """Reconstruction of hidden patches and contrast between the modalities of a batch, that of one process alone.

    As in CAV-MAE (ICLR 2023, section 2), where each GPU contrasts its own share of the batch.
    """

    def __init__(self, net: CAVMAE, recipe: PretrainRecipe) -> None:
        self.net, self.recipe = net, recipe

    def groups(self) -> list[tuple[float, list[nn.Parameter]]]:
        """Trainable parameters, and the factor on their learning rate."""
        return [(1.0, [p for p in self.net.parameters() if p.requires_grad])]

    def losses(self, net: nn.Module, view: View) -> Mapping[str, Tensor]:
        """Scalars of a batch, LOSS first; `net` is the network, or what averages its gradients."""
        noise = self.noise(view)
        found = net(view.audio, view.image, noise, self.recipe.settings())
        parts = {
            LOSS: found.total,
            "audio": found.mae_audio,
            "vision": found.mae_vision,
            "contrast": found.contrast,
            "match": found.contrast_accuracy,
        }
        return {name: value for name, value in parts.items() if value is not None}

    def noise(self, view: View) -> MaskNoise:
        """Of each sample by its place in the epoch."""
        each = []
        for place in view.places:
            rng = torch.Generator().manual_seed(seed_from("mask", self.recipe.seed, view.epoch, place))
            each.append(draw_noise(self.net.config, self.recipe.settings(), 1, rng))
        parts = ([noise.audio for noise in each], [noise.vision for noise in each])
        return MaskNoise(*(torch.cat(part).to(view.audio.device) for part in parts))


class Finetuning:
    """Classification of both modalities together; the head trains at a rate of its own."""

    def __init__(self, net: CAVMAEFT, recipe: FinetuneRecipe, multi_label: bool) -> None:
        self.net, self.recipe, self.multi_label = net, recipe, multi_label
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(name.startswith(HEAD) or not recipe.freeze_base)

    def groups(self) -> list[tuple[float, list[nn.Parameter]]]:
        """Trainable parameters, and the factor on their learning rate."""
        named = [(name.startswith(HEAD), p) for name, p in self.net.named_parameters() if p.requires_grad]
        head, base = [p for is_head, p in named if is_head], [p for is_head, p in named if not is_head]
        return [(self.recipe.head_lr, head), *([(1.0, base)] if base else [])]

    def losses(self, net: nn.Module, view: View) -> Mapping[str, Tensor]:
        """LOSS alone; `net` is the network, or what averages its gradients."""
        logits = net(view.audio, view.image)  # (B, C)
        if self.multi_label:
            return {LOSS: F.binary_cross_entropy_with_logits(logits, view.target)}
        return {LOSS: F.cross_entropy(logits, view.target)}


Objective = Pretraining | Finetuning
