"""What `new method` writes: a method that works as it stands, to be changed into another."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from mmbench import registry
from mmbench.errors import ConfigError
from mmbench.files import write_atomic

TEMPLATE = '''"""{title}: one sentence on the idea."""

from __future__ import annotations

import torch
from torch import nn

from mmbench.backbone.hooks import Hooks
from mmbench.method import Method
from mmbench.registry import method


class {cls}Hooks(Hooks):
    """Scales the pooled vector before the head."""

    def __init__(self, scale: nn.Parameter) -> None:
        self._scale = scale

    def pool(self, x, batch):
        return x.mean(dim=1) * self._scale  # (B, N, D) -> (B, D)


@method(
    "{name}",
    title="{title}",
    family="own",
    reference="where it was published",
    year=2026,
    memory="M1",
    lr_range=(1e-4, 1e-2),
    options={{"start": 1.0}},
)
class {cls}(Method):
    """Decorator facts must be literals: listings read them without importing this file."""

    def build(self, rng: torch.Generator) -> None:
        dim = self.net.config.embed_dim
        scales = nn.ParameterDict({{"pooled": torch.full((dim,), self.options["start"])}})
        self.extra["scales"] = scales  # whatever is in `extra` trains, is saved and is counted
        self.hooks = {cls}Hooks(scales["pooled"])
'''


def write_method(name: str, out: Path) -> Path:
    """Write the skeleton into the folder `out`; raises ConfigError if the name does not do or the file is there."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise ConfigError(f"'{name}' does not do as a name; use lower-case words joined by '-', like lora-qv")
    if name in registry.methods().names() or keyword.iskeyword(name):
        raise ConfigError(f"'{name}' is taken; choose another name")
    path = out / f"{name.replace('-', '_')}.py"
    if path.exists():
        raise ConfigError(f"{path} is there already; choose another name or folder")
    words = name.split("-")
    text = TEMPLATE.format(name=name, title=" ".join(words).capitalize(), cls="".join(w.capitalize() for w in words))
    if not out.is_dir():
        raise ConfigError(f"no folder {out}; make it first")
    write_atomic(path, text.encode())
    return path
