"""Methods that free a selection of the backbone's own tensors and add none."""

from __future__ import annotations

import torch

from mmbench.backbone.cavmae import CAVMAEFT
from mmbench.method import Method
from mmbench.registry import method


class Selection(Method):
    """Frees the tensors that `selects` picks among those that receive a gradient."""

    def selects(self, name: str) -> bool:
        """Whether the tensor of this name trains."""
        return False

    def build(self, rng: torch.Generator) -> None:
        alive = self.net.live_parameter_names()
        for name, parameter in self.net.named_parameters():
            parameter.requires_grad_(name in alive and self.selects(name))

    def export(self) -> CAVMAEFT | None:
        return self.exported_copy()


@method(
    "full-finetune",
    title="Full fine-tuning",
    family="full",
    reference="Gong et al., Contrastive Audio-Visual Masked Autoencoder, ICLR 2023",
    year=2023,
    memory="M3",
    lr_range=(1e-5, 1e-3),
)
class FullFinetune(Selection):
    """Every tensor that takes part in the multimodal pass trains; the head follows the suite's setting."""

    def selects(self, name: str) -> bool:
        return not name.startswith("mlp_head.")


@method(
    "linear-probe",
    title="Linear probe",
    family="probe",
    reference="Alain & Bengio, Understanding intermediate layers using linear classifier probes, 2016",
    year=2016,
    memory="M0",
    lr_range=(1e-3, 1e-1),
    note="trains the head even in suites that freeze it for the other methods",
)
class LinearProbe(Selection):
    """The classification head alone: LayerNorm and Linear on the pooled tokens."""

    def selects(self, name: str) -> bool:
        return name.startswith("mlp_head.")
