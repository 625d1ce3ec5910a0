"""Methods that free a selection of the backbone's own tensors and add none."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmbench.backbone.cavmae import CAVMAEFT
from mmbench.errors import ConfigError
from mmbench.method import Method, Phase
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


WHOLE = {
    "family": "full",
    "memory": "M3",
    "lr_range": (1e-5, 1e-3),
    "parameters": "(12*d*d + 13*d)*N + (4*p**2 + Ta + Tv + 6)*d + F",
}


@method(
    "full-finetune",
    **WHOLE,
    title="Full fine-tuning",
    reference="Gong et al., Contrastive Audio-Visual Masked Autoencoder, ICLR 2023",
    year=2023,
    bibtex="gong2023cavmae",
)
class FullFinetune(Selection):
    """Every tensor that takes part in the multimodal pass trains; the head follows the suite's setting."""

    def selects(self, name: str) -> bool:
        return not name.startswith("mlp_head.")


@method(
    "wise-ft",
    **WHOLE,
    title="WiSE-FT",
    reference="Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022",
    year=2022,
    bibtex="wortsman2022wiseft",
    options={"alpha": 0.5},
    note="alpha is fixed at the paper's default; the source model, head included, stands for the zero-shot model",
)
class WiSEFT(FullFinetune):
    """Full fine-tuning, then (1 - alpha) * start + alpha * tuned for every tensor that trained."""

    def begin(self, phase: Phase) -> None:
        # On the CPU: a second model on the device would count as memory of the training.
        trained = {name: p.detach() for name, p in self.trainable().items()}
        self._start = {name: (p if p.is_meta else p.cpu()).clone() for name, p in trained.items()}

    def finish(self) -> None:
        with torch.no_grad():
            for name, parameter in self.trainable().items():
                start = self._start[name].to(parameter.device)
                parameter.copy_(torch.lerp(start, parameter, self.options["alpha"]))
        self._start = dict[str, Tensor]()


@method(
    "lp-ft",
    **WHOLE,
    title="LP-FT (linear probe, then full)",
    reference="Kumar et al., Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution, "
    "ICLR 2022",
    year=2022,
    bibtex="kumar2022lpft",
    options={"probe_share": 0.5, "probe_lr_multiplier": 100.0},
    note="the probe learns at a hundred times the rate of the rest, as their ranges lie; trains the head even in "
    "suites that freeze it for the other methods",
)
class LPFT(Selection):
    """The head alone, then everything that takes part in the multimodal pass."""

    _probing = False

    def selects(self, name: str) -> bool:
        return True

    def phases(self) -> tuple[Phase, ...]:
        share = self.options["probe_share"]
        if not 0 < share < 1:
            raise ConfigError(f"option probe_share of lp-ft lies between 0 and 1; got {share:g}")
        return (Phase("probe", share), Phase("full", 1.0 - share))

    def begin(self, phase: Phase) -> None:
        self._probing = phase.name == "probe"
        for name, parameter in self.trainable().items():
            parameter.requires_grad_(name.startswith("mlp_head.") or not self._probing)

    def trainable(self) -> dict[str, nn.Parameter]:
        alive = self.net.live_parameter_names()  # those of both phases, whichever is running
        return {name: p for name, p in self.net.named_parameters() if name in alive}

    def groups(self, lr: float) -> list[dict[str, Any]]:
        groups = super().groups(lr * self.options["probe_lr_multiplier"] if self._probing else lr)
        free = [{**group, "params": [p for p in group["params"] if p.requires_grad]} for group in groups]
        return [group for group in free if group["params"]]


@method(
    "linear-probe",
    title="Linear probe",
    family="probe",
    reference="Alain & Bengio, Understanding intermediate layers using linear classifier probes, 2016",
    year=2016,
    bibtex="alain2016probes",
    memory="M0",
    lr_range=(1e-3, 1e-1),
    parameters="0",
    note="trains the head even in suites that freeze it for the other methods",
)
class LinearProbe(Selection):
    """The classification head alone: LayerNorm and Linear on the pooled tokens."""

    def selects(self, name: str) -> bool:
        return name.startswith("mlp_head.")


@method(
    "bitfit",
    title="BitFit",
    family="selection",
    reference="Ben Zaken et al., BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked "
    "Language-models, ACL 2022",
    year=2022,
    bibtex="benzaken2022bitfit",
    memory="M2",
    lr_range=(1e-4, 1e-2),
    parameters="(11*N + 3 + 22*min(X, 1) + 4*X)*d",
)
class BitFit(Selection):
    """Every bias: of linear layers, of both patch embeddings, of LayerNorms and of the fusion block."""

    def selects(self, name: str) -> bool:
        return name.endswith("bias") and not name.startswith("mlp_head.")


@method(
    "layernorm-tuning",
    title="LayerNorm tuning",
    family="selection",
    reference="Zhao et al., Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning, ICLR 2024",
    year=2024,
    bibtex="zhao2024layernorm",
    memory="M2",
    lr_range=(1e-4, 1e-2),
    parameters="(4*N + 2 + 8*min(X, 1))*d",
    note="the norms alone; the paper tunes those of a language model together with what connects vision to it",
)
class LayerNormTuning(Selection):
    """Scale and shift of every LayerNorm, the last one and those of the fusion block included."""

    def selects(self, name: str) -> bool:
        # By kind, not by name: timm's attention also holds identity modules called q_norm, k_norm and norm.
        layer = self.net.get_submodule(name.rpartition(".")[0])
        return isinstance(layer, nn.LayerNorm) and not name.startswith("mlp_head.")


TAIL = {
    "family": "selection",
    "memory": "M1",
    "reference": "Yosinski et al., How transferable are features in deep neural networks?, NeurIPS 2014",
    "year": 2014,
    "bibtex": "yosinski2014transferable",
    "lr_range": (3e-5, 3e-3),
}


@method("partial-1", **TAIL, title="Joint block only", parameters="(12*d*d + 13*d)*U + 2*d")
class Partial(Selection):
    """The joint block and the last norm; no gradient enters the encoders."""

    prefixes: ClassVar[tuple[str, ...]] = ("blocks_u.", "norm.")

    def selects(self, name: str) -> bool:
        return name.startswith(self.prefixes)


@method(
    "partial-fusion",
    **TAIL,
    title="Joint and fusion block only",
    parameters="(12*d*d + 13*d)*U + 2*d + F",
    note="the same as partial-1 on a backbone without fusion",
)
class PartialFusion(Partial):
    """The fusion block as well."""

    prefixes = (*Partial.prefixes, "blocks_fu.")
