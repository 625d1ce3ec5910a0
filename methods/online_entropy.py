"""Online adapters that lower the entropy of predictions through the LayerNorms: Tent and its filtered successors."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mmbench.data.batch import Batch
from mmbench.errors import ConfigError
from mmbench.online_parts import Goal, NormOnline, entropy, shuffle_pieces, with_patches
from mmbench.registry import online

NORMS = {
    "memory": "M2",
    "updates": "scale and shift of all live LayerNorms but the head's",
    "parameters": "4 * d * N + 2 * d + min(F, 8 * d)",
}
FISHER_BATCH = 64
EMA = 0.9


@online(
    "tent",
    title="Tent",
    reference="Wang et al., Tent: Fully Test-Time Adaptation by Entropy Minimization, ICLR 2021",
    year=2021,
    options={"lr": 1e-3},
    bibtex="wang2021tent",
    **NORMS,
)
class Tent(NormOnline):
    """Minimises the mean entropy of the batch; every sample counts."""

    def objective(self, batch: Batch) -> Goal:
        return Goal(entropy(self.method.logits(batch)).mean(), len(batch))


@online(
    "eata",
    title="EATA",
    reference="Niu et al., Efficient Test-Time Model Adaptation without Forgetting, ICML 2022",
    year=2022,
    source_samples=2000,
    options={"lr": 1e-4, "margin": 0.4, "redundancy": 0.05, "fisher": 2000.0},
    check_options={"margin": 9.0, "redundancy": 9.0},
    bibtex="niu2022eata",
    note="thresholds of the 1000-class setting; fisher: 0.0 makes it ETA, without any source sample",
    **NORMS,
)
class EATA(NormOnline):
    """Weighted entropy of samples that are reliable and not redundant, held near the source by a Fisher penalty.

    Reliable: entropy H < margin ln C, weighted by exp(margin ln C - H). Not redundant: cosine to the moving average
    of accepted probabilities below `redundancy`. Fisher information: squared gradients of the cross-entropy with the
    model's own labels, in batches of 64 source samples as in the published code, not sample by sample as in the paper.
    Adam instead of SGD.
    """

    def build(self) -> None:
        super().build()
        self._importance = self._fisher() if self.options["fisher"] else {}

    def begin(self) -> None:
        super().begin()
        self._accepted: Tensor | None = None  # (C,) moving average of probabilities

    def objective(self, batch: Batch) -> Goal:
        logits = self.method.logits(batch)
        uncertainty = entropy(logits)  # (B,)
        limit = self.options["margin"] * math.log(self.n_classes)
        keep = self._fresh(logits.detach().softmax(dim=1), uncertainty.detach() < limit)
        weights = (limit - uncertainty.detach()).exp()
        loss = (weights * uncertainty)[keep].mean() + self._penalty()
        return Goal(loss, int(keep.sum()))

    def _fresh(self, p: Tensor, keep: Tensor) -> Tensor:
        """Leaves out of `keep` (B,) what resembles the accepted probabilities so far, then takes the rest into them."""
        if self._accepted is not None:
            keep = keep & (F.cosine_similarity(p, self._accepted[None], dim=1).abs() < self.options["redundancy"])
        if keep.any():
            mean = p[keep].mean(dim=0)
            self._accepted = mean if self._accepted is None else EMA * self._accepted + (1 - EMA) * mean
        return keep

    def _penalty(self) -> Tensor | float:
        moved = ((p - self._start[n]).square() * self._importance[n] for n, p in self._selected.items())
        return self.options["fisher"] * torch.stack([m.sum() for m in moved]).sum() if self._importance else 0.0

    def _fisher(self) -> dict[str, Tensor]:
        if self.source is None or not len(self.source):
            raise ConfigError("eata needs source samples for its Fisher penalty; set its option fisher to 0.0 for none")
        tensors = list(self._selected.values())
        sums = [torch.zeros_like(p) for p in tensors]
        starts = range(0, len(self.source), FISHER_BATCH)
        for start in starts:
            part = self.source.select(range(start, min(start + FISHER_BATCH, len(self.source))))
            logits = self.method.logits(part)
            loss = F.cross_entropy(logits, logits.argmax(dim=1))
            gradients = torch.autograd.grad(loss, tensors, allow_unused=True, materialize_grads=True)
            sums = [total + gradient.square() for total, gradient in zip(sums, gradients, strict=True)]
        return {name: total / len(starts) for name, total in zip(self._selected, sums, strict=True)}


@online(
    "sar",
    title="SAR",
    reference="Niu et al., Towards Stable Test-Time Adaptation in Dynamic Wild World, ICLR 2023",
    year=2023,
    memory="M2",
    updates="scale and shift of the LayerNorms below the top blocks",
    parameters="8 * d * max(E - top_blocks, 0)",
    forwards=2.0,
    backwards=2.0,
    options={"lr": 1e-4, "margin": 0.4, "radius": 0.05, "recovery": 0.2, "top_blocks": 1},
    check_options={"margin": 9.0, "recovery": 0.0},
    bibtex="niu2023sar",
    note="spares the last encoder block of each stream, fusion, joint blocks and the final norm, by their names here; "
    "recovery was set for 1000 classes: with few, the average may start below it, and each such step starts over",
)
class SAR(NormOnline):
    """Entropy of reliable samples, minimised where the loss is flat; starts over when predictions collapse.

    Reliable: H < margin ln C, before and after the step of length `radius` up the gradient; the update takes the
    gradient from there. When the moving average of the loss falls below `recovery` all tensors and averages start
    over. Adam instead of SGD with momentum. The paper spares the top 3 of 12 blocks; here that is the last encoder
    block of each stream (option `top_blocks`) and all above it. A batch that keeps no sample makes no step.
    """

    def spares(self, module: str) -> bool:
        stack, _, rest = module.partition(".")
        below = stack in ("blocks_a", "blocks_v")
        return not below or int(rest.split(".")[0]) >= self.method.net.config.depth - self.options["top_blocks"]

    def begin(self) -> None:
        super().begin()
        self.average: float | None = None

    def adapt(self, batch: Batch) -> int:
        limit = self.options["margin"] * math.log(self.n_classes)
        with torch.enable_grad():
            first = entropy(self.method.logits(batch))
            keep = first < limit
            if not keep.any():
                return 0
            self.backward(first[keep].mean())
            here = self._climb()
            second = entropy(self.method.logits(batch))
            keep = keep & (second < limit)
            loss = second[keep].mean()
            self.clear()
            if keep.any():
                self.backward(loss)
        with torch.no_grad():
            for parameter, value in zip(self._selected.values(), here, strict=True):
                parameter.copy_(value)
        if keep.any():
            self.step()
            self._recover(float(loss.detach()))
        return int(keep.sum())

    @torch.no_grad()
    def _climb(self) -> list[Tensor]:
        """Goes to the worst point within `radius`; returns the values left behind."""
        moving = [p for p in self._selected.values() if p.grad is not None]
        here = [p.detach().clone() for p in self._selected.values()]
        length = torch.stack([p.grad.norm() for p in moving if p.grad is not None]).norm()
        for parameter in moving:
            assert parameter.grad is not None
            parameter.add_(parameter.grad * (self.options["radius"] / (length + 1e-12)))
        return here

    def _recover(self, loss: float) -> None:
        self.average = loss if self.average is None else EMA * self.average + (1 - EMA) * loss
        if self.average < self.options["recovery"]:
            self.reset()


@online(
    "deyo",
    title="DeYO",
    reference="Lee et al., Entropy is not Enough for Test-Time Adaptation, ICLR 2024",
    year=2024,
    forwards=2.0,
    options={"lr": 1e-4, "margin": 0.5, "weight_margin": 0.4, "drop": 0.2, "pieces": 4},
    check_options={"margin": 9.0, "drop": -9.0},
    bibtex="lee2024deyo",
    **NORMS,
)
class DeYO(NormOnline):
    """Weighted entropy of samples that are confident because of shapes: shuffled pieces must cost confidence.

    Kept: H < margin ln C, and the probability of the predicted class falls by more than `drop` when the pieces of the
    picture and of the spectrogram (a grid of pieces x pieces each) change places. Weight: exp(weight_margin ln C - H)
    + exp(fall). The paper shuffles pictures only; here both inputs are shuffled at once.
    """

    def objective(self, batch: Batch) -> Goal:
        logits = self.method.logits(batch)
        uncertainty = entropy(logits)  # (B,)
        scale = math.log(self.n_classes)
        rows = (uncertainty.detach() < self.options["margin"] * scale).nonzero()[:, 0]
        if not len(rows):
            return Goal(uncertainty.mean(), 0)
        fall = self._fall(batch.select(rows.tolist()), logits.detach()[rows])
        keep = fall > self.options["drop"]
        kept = uncertainty[rows][keep]
        weights = (self.options["weight_margin"] * scale - kept.detach()).exp() + fall[keep].exp()
        return Goal((weights * kept).mean(), int(keep.sum()))

    @torch.no_grad()
    def _fall(self, batch: Batch, logits: Tensor) -> Tensor:
        """By how much the probability of the predicted class (B,) falls in shuffled inputs."""
        shuffled = with_patches(batch, lambda x: shuffle_pieces(x, self.options["pieces"], self.rng))
        label = logits.argmax(dim=1, keepdim=True)
        after = self.method.logits(shuffled).softmax(dim=1)
        return (logits.softmax(dim=1) - after).gather(1, label)[:, 0]
