"""Training strategies that change the gradients: balance between the modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmbench.data.augment import multi_hot
from mmbench.data.batch import Batch
from mmbench.errors import ConfigError, RefusedError
from mmbench.method import Loss, Method
from mmbench.registry import strategy
from mmbench.strategy import Inner, Strategy


@strategy(
    "ogm-ge",
    title="OGM-GE",
    reference="Peng et al., Balanced Multimodal Learning via On-the-fly Gradient Modulation, CVPR 2022",
    year=2022,
    whole_step=True,
    options={"alpha": 0.3, "noise": True},
    bibtex="peng2022balanced",
    note="all trainable tensors of the encoders, not the convolutions alone; in every step, not in a window of epochs; "
    "unimodal scores are the head's on each modality's tokens after the joint blocks, which have seen each other",
)
class OGMGE(Strategy):
    """Gradients of the stronger modality's encoder scaled by 1 - tanh(alpha * rho), noise added to both encoders'.

    rho is the ratio of the modalities' summed true-class probabilities over the samples of a step; the noise is
    Gaussian with the standard deviation of each tensor's gradient. Raises RefusedError for a method with nothing to
    scale.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        if not 0 < self.options["alpha"] <= 1:
            raise ConfigError(f"ogm-ge: alpha must be above 0 and at most 1, got {self.options['alpha']:g}")
        self._scores: dict[str, Tensor] = {}  # by sample id, so that a step that is done again counts none twice
        self._noise_seed = 0

    def view(self, method: Method, batch: Batch, rng: torch.Generator) -> Batch:
        self._scores.clear()
        self._noise_seed = int(torch.randint(2**62, (), generator=rng))
        return batch

    def loss(self, method: Method, batch: Batch, inner: Inner) -> Loss:
        encoder_tensors(method)
        seen: list[Tensor] = []

        def keep(module: nn.Module, args: Any, out: Tensor) -> None:
            seen.extend([] if seen else [out.detach()])  # other forwards of the same loss see other samples

        handle = method.net.norm.register_forward_hook(keep)
        try:
            loss = inner(batch)
        finally:
            handle.remove()
        self._scores.update(zip(batch.ids, unimodal_scores(method, batch, seen).unbind(), strict=True))
        return loss

    def after_backward(self, method: Method, step: int, steps: int) -> None:
        audio, vision = torch.stack(list(self._scores.values())).sum(dim=0).clamp(min=1e-8).unbind()
        self._scores.clear()
        alpha, one = self.options["alpha"], torch.ones_like(audio)
        factors = {
            "a": torch.where(audio > vision, 1 - torch.tanh(alpha * audio / vision), one),
            "v": torch.where(vision > audio, 1 - torch.tanh(alpha * vision / audio), one),
        }
        noise = torch.Generator(audio.device).manual_seed(self._noise_seed)
        for parameter, modality in encoder_tensors(method):
            if parameter.grad is None:
                continue
            changed = parameter.grad * factors[modality]
            if self.options["noise"]:
                normal = torch.randn(parameter.shape, generator=noise, device=parameter.device)
                changed += parameter.grad.std(correction=0) * normal
            parameter.grad = changed


def encoder_tensors(method: Method) -> list[tuple[nn.Parameter, str]]:
    """Trainable tensors of one modality's encoder, with its letter. Raises RefusedError if there is none."""
    named = [(parameter, method.stream(name)) for name, parameter in method.trainable().items()]
    found = [(parameter, modality) for parameter, modality in named if modality is not None]
    if not found:
        raise RefusedError(
            f"{method.card.name} trains no tensor of one modality's encoder, so there is no balance between modalities "
            "to restore; combine ogm-ge with a method that reaches into the encoders"
        )
    return found


def unimodal_scores(method: Method, batch: Batch, seen: Sequence[Tensor]) -> Tensor:
    """(B, 2): true-class probability of the head on the mean audio token and on the mean visual token."""
    assert batch.label is not None  # the harness trains on labelled batches only
    config = method.net.config
    tokens = seen[0][: len(batch)] if seen else torch.empty(0, 0, 0)  # (B, N, D)
    if tokens.shape[:2] != (len(batch), config.audio_tokens + config.vision_tokens):
        raise RefusedError(
            f"{method.card.name} does not end in one normed token per patch of both modalities: no scores"
        )
    with torch.no_grad():
        means = (tokens[:, : config.audio_tokens].mean(dim=1), tokens[:, config.audio_tokens :].mean(dim=1))
        logits = [cast(Tensor, method.net.mlp_head(mean)).float() for mean in means]
        one_by_one = method.recipe.multi_label or method.recipe.bce
        p = [each.sigmoid() if one_by_one else each.softmax(dim=1) for each in logits]
    hot = multi_hot(batch.label, config.n_classes)
    return torch.stack([(each * hot).sum(dim=1) / hot.sum(dim=1).clamp(min=1) for each in p], dim=1)
