"""Prompt the Missing: one prompt per modality, before the encoders and in the keys and values of the cross-attention.

Reconstructed from the paper's description (CVPR Workshops 2025), because the published code holds no prompt tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from mmbench.backbone.hooks import Hooks
from mmbench.errors import ConfigError, RefusedError
from mmbench.method import Method, State
from mmbench.registry import method

if TYPE_CHECKING:
    from mmbench.backbone.cavmae import CAVMAEFT

POSITIONS = ("input", "attention", "both")
PROMPT_STD = 0.02


class PromptHooks(Hooks):
    """Puts the prompts where the row wants them; the same prompts serve both levels."""

    def __init__(self, prompts: nn.ParameterDict, position: str) -> None:
        self._prompts = prompts
        self._position = position

    def tokens(self, modality: str, x: Tensor, batch: Any) -> tuple[Tensor, int]:
        if self._position == "attention":
            return x, 0
        prompt = self._prompts[modality]  # (P, D)
        return torch.cat([prompt.expand(x.shape[0], -1, -1), x], dim=1), prompt.shape[0]  # (B, P + N, D)

    def fuse(self, net: CAVMAEFT, audio: Tensor, vision: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        if self._position == "input":
            return net.fusion(audio, vision)
        # Audio queries see [prompt_v ; vision], visual queries [prompt_a ; audio].
        return net.fusion(audio, vision, self._prompts["a"], self._prompts["v"])


class Prompts(Method):
    """`length` prompt tokens per modality; case-wise training gives one set per case."""

    fixed_position: ClassVar[str | None] = None
    frozen: ClassVar[bool] = False

    def build(self, rng: torch.Generator) -> None:
        position = self.fixed_position or self.options["position"]
        if position not in POSITIONS:
            raise ConfigError(f"option position must be one of {', '.join(POSITIONS)}; got '{position}'")
        if position != "input":
            self._check_fusion()
        shape = (self.options["length"], self.net.config.embed_dim)
        prompts = nn.ParameterDict({m: torch.empty(shape).normal_(std=PROMPT_STD, generator=rng) for m in ("a", "v")})
        prompts.requires_grad_(not self.frozen)
        self.extra["prompts"] = prompts
        self.hooks = PromptHooks(prompts, position)

    def _check_fusion(self) -> None:
        """A closed gate passes no gradient to the prompts behind it: they could never learn."""
        if self.net.config.fusion == "none":
            raise RefusedError("attention-level prompts need a fusion block; this backbone has fusion: none")
        gates = [p for n, p in self.net.blocks_fu.named_parameters() if "gate_cross" in n]
        if gates and not gates[0].is_meta and not any(bool(gate.any()) for gate in gates):
            raise RefusedError(
                "the backbone's fusion gates are still closed, so attention-level prompts cannot reach the output; "
                "fine-tune it on clean data first: mmbench backbone build"
            )

    def combine(self, states: Sequence[State]) -> State | None:
        """All cases' prompts side by side along the token axis ("concat"); trained heads are averaged."""
        if self.frozen:
            return None
        combined = {}
        for name in states[0]:
            each = [state[name] for state in states]
            combined[name] = torch.cat(each) if name.startswith("extra.prompts.") else torch.stack(each).mean(dim=0)
        return combined


@method(
    "prompt-the-missing",
    title="Prompt the Missing (both levels)",
    family="prompt",
    reference="Park, Prompt the Missing, CVPR Workshops 2025, pp. 1654-1662 (reconstructed)",
    year=2025,
    memory="M2",
    lr_range=(3e-4, 3e-2),
    identity_at_start=False,
    options={"length": 16, "position": "both"},
)
class PromptTheMissing(Prompts):
    """Input and attention level, or the one that `position` names."""


@method(
    "prompt-input",
    title="Prompt the Missing (input level only)",
    family="prompt",
    reference="Park, Prompt the Missing, CVPR Workshops 2025, pp. 1654-1662 (reconstructed)",
    year=2025,
    memory="M2",
    lr_range=(3e-4, 3e-2),
    identity_at_start=False,
    options={"length": 16},
)
class PromptInput(Prompts):
    """Prompts before the encoders; gradients cross every block."""

    fixed_position = "input"


@method(
    "prompt-attention",
    title="Prompt the Missing (attention level only)",
    family="prompt",
    reference="Park, Prompt the Missing, CVPR Workshops 2025, pp. 1654-1662 (reconstructed)",
    year=2025,
    memory="M1",
    lr_range=(3e-4, 3e-2),
    identity_at_start=False,
    options={"length": 16},
)
class PromptAttention(Prompts):
    """Prompts in the fusion block's keys and values; the encoders keep no graph."""

    fixed_position = "attention"


@method(
    "prompt-zero",
    title="Prompts frozen at their start (control)",
    family="prompt",
    reference="control row of this suite",
    year=2026,
    memory="M0",
    lr_range=(3e-4, 3e-2),
    identity_at_start=False,
    options={"length": 16},
    note="whatever it gains over the source model comes from the head, not from prompts",
)
class PromptZero(Prompts):
    """Both levels, never trained; shows what the head alone contributes."""

    fixed_position = "both"
    frozen = True
