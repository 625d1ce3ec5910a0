"""Deep correlated prompting: prompts per case that know of the other modality, of the case alone, and of the input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from methods.prompt_hooks import PROMPT_STD, STREAMS, PrefixHooks
from mmbench.backbone.blocks import initialise
from mmbench.errors import ConfigError
from mmbench.method import Method
from mmbench.registry import method

if TYPE_CHECKING:
    from mmbench.backbone.cavmae import CAVMAEFT

CASES = 4
KINDS = 3


def generator(inputs: int, hidden: int, dim: int) -> nn.Sequential:
    """Normed bottleneck that makes prompt tokens."""
    return nn.Sequential(nn.LayerNorm(inputs), nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, dim))


class CorrelatedPrompts(nn.Module):
    """Learned prompts per case, queries, and the generators; makes the prompts of any block of either stream."""

    def __init__(self, dim: int, hidden: int, count: int, layers: int) -> None:
        super().__init__()
        self.static = nn.ParameterDict({m: torch.empty(CASES, count, dim) for m in STREAMS})
        self.common = nn.Parameter(torch.empty(CASES, count, dim))
        self.query = nn.ParameterDict({m: torch.empty(count, dim) for m in STREAMS})
        self.project = nn.ModuleDict({m: generator(dim, hidden, dim) for m in STREAMS})
        self.dynamic = nn.ModuleDict({m: generator(dim, hidden, dim) for m in STREAMS})
        later = [f"{m}{index}" for index in range(1, layers) for m in STREAMS]
        self.correlate = nn.ModuleDict({name: generator(2 * dim, hidden, dim) for name in later})

    def reset_own(self, rng: torch.Generator) -> None:
        for prompt in (*self.static.values(), self.common, *self.query.values()):
            nn.init.normal_(prompt, std=PROMPT_STD, generator=rng)

    def forward(self, modality: str, index: int, x: Tensor, case: Tensor) -> Tensor:
        """Prompts (B, P, D) of one block, from its input tokens (B, N, D) and each sample's case (B,)."""
        common = self.project[modality](self.common)  # (4, P/3, D)
        return torch.cat([self._static(modality, index)[case], common[case], self._dynamic(modality, x)], dim=1)

    def _static(self, modality: str, index: int) -> Tensor:
        """Prompts (4, P/3, D) of one block, made from both streams' of the block below, down to the learned ones."""
        level: dict[str, Tensor] = dict(self.static.items())
        for above in range(1, index + 1):
            # Each stream sees its own prompts first.
            pairs = {m: torch.cat([level[m], level["v" if m == "a" else "a"]], dim=2) for m in STREAMS}
            wanted = STREAMS if above < index else (modality,)
            level = {m: self.correlate[f"{m}{above}"](pairs[m]) for m in wanted}
        return level[modality]

    def _dynamic(self, modality: str, x: Tensor) -> Tensor:
        """Tokens (B, P/3, D) of what learned queries attend to in the block's input (B, N, D)."""
        scores = self.query[modality] @ x.transpose(1, 2) * x.shape[2] ** -0.5  # (B, P/3, N)
        return cast(Tensor, self.dynamic[modality](scores.softmax(dim=2) @ x))


class CorrelatedHooks(PrefixHooks):
    """Puts them in front of both streams, and zeroes an absent modality before fusion."""

    def __init__(self, prompts: CorrelatedPrompts, length: int, layers: int) -> None:
        super().__init__(layers)
        self._prompts = prompts
        self._length = length

    def prompt(self, modality: str, index: int, x: Tensor, batch: Any) -> Tensor:
        case = batch.affected[:, 0].long() + 2 * batch.affected[:, 1].long()  # (B,)
        return cast(Tensor, self._prompts(modality, index, x[:, self._length :] if index else x, case))

    def fuse(self, net: CAVMAEFT, audio: Tensor, vision: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        here = batch.available[:, :, None, None]  # (B, 2, 1, 1)
        return net.fusion(audio * here[:, 0], vision * here[:, 1])


@method(
    "dcp",
    title="Deep correlated prompting",
    family="prompt",
    reference="Hu et al., Deep Correlated Prompting for Visual Recognition with Missing Modalities, NeurIPS 2024",
    year=2024,
    memory="M2",
    lr_range=(3e-4, 3e-2),
    identity_at_start=False,
    needs={"case": "oracle", "train_case": True},
    options={"length": 36, "layers": 6, "reduction": 8},
    parameters="14 * (length // 3) * d + 4 * (3 * d + (2 * d + 1) * (d // reduction))"
    " + 2 * (min(layers, E) - 1) * (5 * d + (3 * d + 1) * (d // reduction)) + 2 * d",
    bibtex="hu2024dcp",
    note="reconstructed from the paper's description; the generators' sizes are ours",
)
class DeepCorrelated(Method):
    """Prompts replaced at each of the first `layers` encoder blocks; the norm before the pooling trains as well.

    A third each: static ones per case and modality, from the second block on made by norm and bottleneck from both
    modalities' static ones of the block below; common ones per case, projected into both modalities; dynamic ones that
    learned queries and a bottleneck make of each block's input. An absent modality's tokens are zeroed before fusion.
    """

    def build(self, rng: torch.Generator) -> None:
        config, length, reduction = self.net.config, self.options["length"], self.options["reduction"]
        if length % KINDS:
            raise ConfigError(f"option length of dcp must be a multiple of 3, a third of each kind; got {length}")
        if reduction > config.embed_dim:
            raise ConfigError(f"option reduction of dcp is {reduction}, more than the width {config.embed_dim}")
        layers = min(self.options["layers"], config.depth)
        with torch.device("meta"):  # the layers' own start would come from the global generator
            prompts = CorrelatedPrompts(config.embed_dim, config.embed_dim // reduction, length // KINDS, layers)
        initialise(prompts, rng)
        self.extra["prompts"] = prompts
        self.net.norm.requires_grad_(True)
        self.hooks = CorrelatedHooks(prompts, length, layers)
