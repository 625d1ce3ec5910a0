"""Rows that train nothing: the frozen source model, and CAV-MAE's own way of dealing with an absent modality."""

from __future__ import annotations

import torch
from torch import Tensor

from mmbench.backbone.cavmae import CAVMAEFT
from mmbench.data.batch import Batch
from mmbench.method import Method
from mmbench.registry import method


@method(
    "source",
    title="Frozen source model",
    family="frozen",
    reference="Gong et al., Contrastive Audio-Visual Masked Autoencoder, ICLR 2023",
    year=2023,
    bibtex="gong2023cavmae",
    memory="M0",
    trains=False,
)
class Source(Method):
    """The clean fine-tuned backbone as it is: what every robustness figure is measured against."""

    def export(self) -> CAVMAEFT | None:
        return self.exported_copy()


@method(
    "missing-mode",
    title="CAV-MAE missing-modality modes",
    family="frozen",
    reference="Gong et al., Contrastive Audio-Visual Masked Autoencoder, ICLR 2023",
    year=2023,
    bibtex="gong2023cavmae",
    memory="M0",
    trains=False,
    identity_at_start=False,
    needs={"case": "avail"},
    note="averages the joint block with shared and with modality norms over the modality that is present",
)
class MissingMode(Method):
    """Drops an absent modality instead of filling it; needs to be told which one is absent."""

    def logits(self, batch: Batch) -> Tensor:
        assert batch.available is not None  # declared: the harness grants availability or refuses the row
        has_audio, has_vision = batch.available[:, 0], batch.available[:, 1]
        out = torch.empty(len(batch), self.net.config.n_classes, device=batch.audio.device)
        for mode, rows in (
            ("multimodal", has_audio & has_vision),
            ("missingaudioonly", has_audio & ~has_vision),  # mode names say what is present
            ("missingvideoonly", has_vision & ~has_audio),
        ):
            if rows.any():
                logits = self.net(batch.audio[rows], batch.image[rows], mode=mode, hooks=self.hooks, batch=batch)
                out[rows] = logits.to(out.dtype)
        return out
