"""AdaLoRA: low-rank changes in the form of a singular value decomposition, whose ranks compete for one budget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from peft import AdaLoraConfig
from torch import Tensor

from methods.peft_backed import ADAPTER, LINEARS, PeftBacked
from mmbench.data.batch import Batch
from mmbench.errors import ConfigError
from mmbench.method import Loss, Phase
from mmbench.registry import method

SMOOTHING = 0.85
"""Of both moving averages of the importance, beta 1 and beta 2 of the paper."""


Moments = tuple[Tensor, Tensor]
"""Of a tensor's sensitivity |w * grad|: its smoothed mean, and how much it varies."""


def start(weight: Tensor) -> Moments:
    return torch.zeros_like(weight), torch.zeros_like(weight)


def seen(before: Moments, weight: Tensor) -> Moments:
    """The moments after one more step."""
    assert weight.grad is not None  # every factor takes part in the orthogonality term, if in nothing else
    now = (weight.detach() * weight.grad).abs()
    mean = SMOOTHING * before[0] + (1 - SMOOTHING) * now
    return mean, SMOOTHING * before[1] + (1 - SMOOTHING) * (now - mean).abs()


def importance(moments: Moments) -> Tensor:
    """Of the tensor's shape."""
    return moments[0] * moments[1]


@method(
    "adalora",
    title="AdaLoRA",
    family="lora",
    reference="Zhang et al., Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning, ICLR 2023",
    year=2023,
    bibtex="zhang2023adalora",
    memory="M3",
    lr_range=(1e-4, 1e-2),
    options={
        "rank": 12,
        "target_rank": 8,
        "alpha": 16.0,
        "orthogonality": 0.5,
        "warm_share": 0.1,
        "final_share": 0.5,
    },
    parameters="(16*d + 4)*rank*N",
    note="ranks are allotted anew at every step between warm-up and final stretch; counts what trains, of which "
    "target_rank / rank is left in the end; the orthogonality term averages norms, as in peft, where the paper sums "
    "their squares",
)
class AdaLora(PeftBacked):
    """W + s * P diag(E) Q on all four linears; the least important entries of E are set to zero.

    s = alpha / rank, the initial one. The schedule is given in shares of a training, not in steps.
    """

    def config(self) -> Any:
        rank, target = self.options["rank"], self.options["target_rank"]
        if target > rank:
            raise ConfigError(f"option target_rank of adalora must be at most rank, {rank}; got {target}")
        # The schedule is ours: peft wants the number of steps at once.
        return AdaLoraConfig(
            init_r=rank, target_r=target, lora_alpha=self.options["alpha"], total_step=1, target_modules=LINEARS
        )

    def inject(self) -> None:
        super().inject()
        for layer in self.layers():
            layer.ranknum.requires_grad_(False)  # the rank, a constant; on other devices than the CPU peft frees it

    def begin(self, phase: Phase) -> None:
        self._seen = [tuple(start(factor.detach()) for factor in factors) for factors in self._factors()]
        self._alive: list[Tensor] = []  # (rank,) bool for every layer, once there is a budget
        self._settled = False  # whether that budget is the target

    def loss(self, batch: Batch) -> Loss:
        loss = super().loss(batch)
        return replace(loss, total=loss.total + self.options["orthogonality"] * self._orthogonality())

    def _orthogonality(self) -> Tensor:
        """Mean over all P and Q of the distance from orthonormal columns and rows."""
        grams = [gram for q, _, p in self._factors() for gram in (q @ q.T, p.T @ p)]
        gaps = torch.stack(grams) - torch.eye(self.options["rank"], device=grams[0].device)  # (2 * layers, rank, rank)
        mean: Tensor = torch.linalg.matrix_norm(gaps).mean()
        return mean

    def after_step(self, step: int, steps: int) -> None:
        warm, final = (self.options[name] * steps for name in ("warm_share", "final_share"))
        left = min(1.0, max(0.0, (steps - final - step - 1) / max(1.0, steps - final - warm)))  # of the allocation
        if not self._settled:
            self._see()
            self._alive = self._allot(left**3)
            self._settled = left == 0
        with torch.no_grad():
            for (_, e, _), alive in zip(self._factors(), self._alive, strict=True):
                e.mul_(alive[:, None])

    def _see(self) -> None:
        pairs = zip(self._factors(), self._seen, strict=True)
        self._seen = [tuple(map(seen, before, factors)) for factors, before in pairs]

    def _allot(self, excess: float) -> list[Tensor]:
        """Which entries of each E stay when `excess` of the ranks above the target do; all layers compete."""
        each = (map(importance, moments) for moments in self._seen)
        scores = [e[:, 0] + q.mean(1) + p.mean(0) for q, e, p in each]  # (rank,) each
        least, most = (len(scores) * self.options[name] for name in ("target_rank", "rank"))
        kept = torch.cat(scores).topk(round(least + (most - least) * excess)).indices
        alive = torch.zeros(most, dtype=torch.bool, device=kept.device)
        alive[kept] = True
        return list(alive.reshape(len(scores), -1))

    def _factors(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Q (rank, inputs), E (rank, 1) and P (outputs, rank) of every layer."""
        for layer in self.layers():
            yield layer.lora_A[ADAPTER], layer.lora_E[ADAPTER], layer.lora_B[ADAPTER]
