"""Prompt the Missing: one prompt per modality, before the encoders and in the keys and values of the cross-attention.

Reconstructed from the paper's description (CVPR Workshops 2025), because the published code holds no prompt tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from methods.prompt_hooks import PROMPT_STD, LayerPrompts, layer_prompts
from mmbench.errors import ConfigError, RefusedError
from mmbench.method import Method, State
from mmbench.registry import method

if TYPE_CHECKING:
    from mmbench.backbone.cavmae import CAVMAEFT

POSITIONS = ("input", "attention", "both")
SHARED = {
    "family": "prompt",
    "reference": "Park, Prompt the Missing, CVPR Workshops 2025, pp. 1654-1662 (reconstructed)",
    "year": 2025,
    "lr_range": (3e-4, 3e-2),
    "identity_at_start": False,
    "bibtex": "park2025ptm",
}


class PromptHooks(LayerPrompts):
    """Puts the prompts where the row wants them; those of the first block serve both levels."""

    def __init__(self, prompts: nn.ParameterDict, layers: int, position: str) -> None:
        super().__init__(prompts, layers)
        self._position = position

    def tokens(self, modality: str, x: Tensor, batch: Any) -> tuple[Tensor, int]:
        return (x, 0) if self._position == "attention" else super().tokens(modality, x, batch)

    def spares_encoders(self) -> bool:
        return self._position == "attention"

    def fuse(self, net: CAVMAEFT, audio: Tensor, vision: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        if self._position == "input":
            return net.fusion(audio, vision)
        # Audio queries see [prompt_v ; vision], visual queries, where there are any, [prompt_a ; audio].
        prompt_a = None if net.config.fusion == "one-way" else self._prompts["a"]
        return net.fusion(audio, vision, prompt_a, self._prompts["v"])


class Prompts(Method):
    """`length` prompt tokens per modality; case-wise training gives one set per case.

    With `layers` above 1 that many encoder blocks get prompts of their own, which replace those of the block below.
    """

    fixed_position: ClassVar[str | None] = None
    frozen: ClassVar[bool] = False

    def build(self, rng: torch.Generator) -> None:
        position = self.fixed_position or self.options["position"]
        if position not in POSITIONS:
            raise ConfigError(f"option position must be one of {', '.join(POSITIONS)}; got '{position}'")
        if position != "input":
            self._check_fusion()
        layers = self._layers(position)
        shape = (self.options["length"], self.net.config.embed_dim)
        prompts = layer_prompts(shape, layers, lambda empty: empty.normal_(std=PROMPT_STD, generator=rng))
        if position == "attention" and self.net.config.fusion == "one-way":
            del prompts["a"]  # nothing would attend to it
        prompts.requires_grad_(not self.frozen)
        self.extra["prompts"] = prompts
        self.hooks = PromptHooks(prompts, layers, position)

    def stream(self, name: str) -> str | None:
        """Prompts of the attention level act between the streams, not in an encoder."""
        inside = (self.fixed_position or self.options["position"]) != "attention"
        return super().stream(name) if inside else None

    def _layers(self, position: str) -> int:
        """Encoder blocks with prompts of their own."""
        layers: int = self.options.get("layers", 1)
        if layers > self.net.config.depth:
            raise ConfigError(f"option layers is {layers}, but each encoder has {self.net.config.depth} blocks")
        if layers > 1 and position == "attention":
            raise ConfigError(f"option layers is {layers}, but position 'attention' has no prompts in the encoders")
        return layers

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
    memory="M2",
    parameters="2 * layers * length * d",
    options={"length": 16, "position": "both", "layers": 1},
    note="count of levels both and input; at the attention level alone X * length * d",
    **SHARED,
)
class PromptTheMissing(Prompts):
    """Input and attention level, or the one that `position` names.

    Fresh prompts at more than the first block (`layers`) are an ablation of this suite, not of the paper.
    """


@method(
    "prompt-input",
    title="Prompt the Missing (input level only)",
    memory="M2",
    parameters="2 * layers * length * d",
    options={"length": 16, "layers": 1},
    **SHARED,
)
class PromptInput(Prompts):
    """Prompts before the encoders; gradients cross every block."""

    fixed_position = "input"


@method(
    "prompt-attention",
    title="Prompt the Missing (attention level only)",
    memory="M1",
    parameters="X * length * d",
    options={"length": 16},
    **SHARED,
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
    parameters="0",
    options={"length": 16},
    bibtex="park2025ptm",
    note="whatever it gains over the source model comes from the head, not from prompts",
)
class PromptZero(Prompts):
    """Both levels, never trained; shows what the head alone contributes."""

    fixed_position = "both"
    frozen = True
