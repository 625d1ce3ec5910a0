"""Plain data, which can be kept without pickle: numbers, text, tensors, and lists, tuples and dicts of these."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmbench.method import Method
from mmbench.ranks import ALONE, Ranks
from mmbench.strategy import Regimen

SCALARS = (type(None), bool, int, float, str)


def is_plain(value: object) -> bool:
    """Whether `pack` takes a value. Parameters are no data: they belong to a network."""
    if isinstance(value, (list, tuple)):
        return type(value) in (list, tuple) and all(map(is_plain, value))
    if isinstance(value, dict):
        return all(map(is_plain, value)) and all(map(is_plain, value.values()))
    return type(value) in SCALARS or (type(value) is Tensor and not value.requires_grad)


@dataclass
class Tensors:
    """By name, on the CPU, each with a storage of its own."""

    named: dict[str, Tensor] = field(default_factory=dict)
    _storages: set[int] = field(default_factory=set)

    def add(self, tensor: Tensor) -> str:
        """Copies only what must be: a state may be as large as the model."""
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in self._storages or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        self._storages.add(tensor.untyped_storage().data_ptr())
        name = f"{len(self.named):06d}"
        self.named[name] = tensor
        return name


def pack(value: Any, tensors: Tensors) -> Any:
    """The value as JSON data; its tensors go into `tensors`.

    Raises TypeError for what is not plain.
    """
    if isinstance(value, Tensor):
        layout = torch.empty_like(value, device="meta").stride()
        return {"tensor": tensors.add(value), "host": value.device.type == "cpu", "stride": layout}
    if isinstance(value, (list, tuple)):
        return {"tuple" if isinstance(value, tuple) else "list": [pack(entry, tensors) for entry in value]}
    if isinstance(value, dict):
        return {"dict": [[pack(key, tensors), pack(entry, tensors)] for key, entry in value.items()]}
    if type(value) in SCALARS:
        return value
    raise TypeError(
        f"{type(value).__name__} is no plain data; keep numbers, text, tensors, and lists and dicts of them"
    )


def unpack(packed: Any, tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    """What `pack` was given; tensors that were not on the CPU come to `device`.

    Strides are as they were: sums over another layout end in other bits.
    """
    if not isinstance(packed, dict):
        return packed
    ((kind, inner),) = [(kind, packed[kind]) for kind in ("tensor", "list", "tuple", "dict") if kind in packed]
    if kind == "tensor":
        kept = tensors[inner]
        made = torch.empty_strided(kept.shape, packed["stride"], dtype=kept.dtype).copy_(kept)
        return made if packed["host"] else made.to(device)
    if kind == "dict":
        return {unpack(key, tensors, device): unpack(entry, tensors, device) for key, entry in inner}
    entries = [unpack(entry, tensors, device) for entry in inner]
    return tuple(entries) if kind == "tuple" else entries


def digest_of(text: str, tensors: Mapping[str, Tensor]) -> bytes:
    """32 bytes that tell packed data from any other."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


class Weights:
    """Everything that a state of a method holds."""

    def __init__(self, method: Method) -> None:
        self._method = method

    def state_dict(self) -> dict[str, Any]:
        return {name: tensor.detach() for name, tensor in self._method.kept().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._method.load(state)


class Attributes:
    """What a method or a strategy remembers from step to step: those of its attributes that are plain data.

    Others are as `__init__`, `build` and `begin` made them.
    """

    def __init__(self, owner: object) -> None:
        self._owner = owner

    def state_dict(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self._owner).items() if is_plain(value)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self._owner).update(state)


class Draws:
    """A stream of random numbers, which may be another one on every rank."""

    def __init__(self, rng: torch.Generator, ranks: Ranks = ALONE) -> None:
        self._rng, self._ranks = rng, ranks

    def state_dict(self) -> dict[str, Any]:
        return {"states": self._ranks.gather(self._rng.get_state())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._rng.set_state(state["states"][self._ranks.rank].clone())


def remembered(regimen: Regimen) -> dict[str, Weights | Attributes]:
    """What a method and its strategies hold at the end of a step, by name."""
    owners = (regimen.method, *regimen.strategies)
    attributes = {f"attributes {index}": Attributes(owner) for index, owner in enumerate(owners)}
    return {"weights": Weights(regimen.method), **attributes}


def remembered_digest(regimen: Regimen) -> bytes:
    """32 bytes that differ where anything of that does."""
    tensors = Tensors()
    held = {name: part.state_dict() for name, part in remembered(regimen).items()}
    return digest_of(json.dumps(pack(held, tensors)), tensors.named)


def resumable(regimen: Regimen, device: torch.device, ranks: Ranks = ALONE) -> dict[str, Weights | Attributes | Draws]:
    """All of a method as it trains that changes from step to step, by name."""
    return {**remembered(regimen), **_global_draws(device, ranks)}


def _global_draws(device: torch.device, ranks: Ranks) -> dict[str, Draws]:
    """The generators that dropout draws from."""
    if device.type != "cuda":
        return {"draws": Draws(torch.default_generator, ranks)}
    index = torch.cuda.current_device() if device.index is None else device.index
    cuda = torch.cuda.default_generators[index]
    return {"draws": Draws(torch.default_generator, ranks), "cuda draws": Draws(cuda, ranks)}
