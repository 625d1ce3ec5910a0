"""Reading official checkpoints, and our own: nothing is loaded that does not fit or that was altered."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmbench.backbone.cavmae import CAVMAEFT
from mmbench.backbone.checkpoint_door import check_archive
from mmbench.backbone.config import BackboneConfig
from mmbench.backbone.pretrain import CAVMAE
from mmbench.errors import CheckpointError, ConfigError
from mmbench.strict_json import read_json

WEIGHTS, DESCRIPTION = "backbone.safetensors", "backbone.json"
PRETRAINED, PRETRAINED_DESCRIPTION = "pretrained.safetensors", "pretrained.json"
HEAD, HEAD_CLASSES, FUSION = "mlp_head.", "mlp_head.1.weight", "blocks_fu."
# What the published prompt code leaves in its files and never uses in a complete forward pass.
UNUSED = ("blocks_fu_pl.", "mlp_head_prompt.", "additional_token")
DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64, torch.bool})
SHOWN = 30  # keys listed of each kind


@dataclass(frozen=True)
class LoadReport:
    """What a checkpoint left as it was in the model (missing) and what of it was not used (unexpected)."""

    kind: Literal["pretrained", "finetuned"]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


@dataclass(frozen=True)
class BackboneMeta:
    """Description of a saved backbone."""

    config: BackboneConfig
    meta: Mapping[str, str]
    sha256: str  # backbone_digest of the tensors


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file or of a PyTorch file, on the CPU, without the `module.` of DataParallel.

    Raises CheckpointError for a missing or broken file and for content that is no flat dict of finite tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint file '{path}'; check the path")
    try:
        if path.suffix == ".safetensors":
            loaded: object = load_file(path, device="cpu")
        else:
            check_archive(path)
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # broken files raise whatever their first bad byte leads to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if reason.startswith("Weights only"):  # torch's words recommend to load the file whatever it holds
            reason = "it is no PyTorch file, or holds code beside its tensors, which is never run"
        raise CheckpointError(f"cannot read checkpoint '{path}': {reason}; fetch or save the file again") from error
    return _checked_state(loaded, path)


def _checked_state(loaded: object, path: Path) -> dict[str, Tensor]:
    if not isinstance(loaded, dict) or not loaded:
        raise CheckpointError(f"checkpoint '{path}' holds no dict of tensors but {_kind(loaded)}")
    state: dict[str, Tensor] = {}
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            name = f"{key[:200]!r}" if isinstance(key, str) else _kind(key)
            raise CheckpointError(f"checkpoint '{path}': entry {name} is {_kind(value)}, not a named tensor")
        value = _whole(value, f"checkpoint '{path}': tensor '{key[:200]}'")
        name = key.removeprefix("module.")
        if name in state:
            raise CheckpointError(f"checkpoint '{path}': '{name}' occurs twice, with and without 'module.'")
        state[name] = value
    return state


def _whole(value: Tensor, name: str) -> Tensor:
    """The tensor, owning its memory; raises CheckpointError for one that cannot be weights."""
    if value.layout != torch.strided or value.device.type != "cpu" or value.dtype not in DTYPES:
        raise CheckpointError(f"{name} is {value.layout} {value.dtype} on {value.device}; save it as plain numbers")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise CheckpointError(f"{name} has the shape {tuple(value.shape)}, for which the file holds too few numbers")
    # As the single-precision numbers they are to become: larger ones turn infinite there.
    if value.is_floating_point() and not bool(torch.isfinite(value.float()).all()):
        raise CheckpointError(f"{name} holds NaN or infinite values")
    return value.detach().clone(memory_format=torch.contiguous_format)


def _kind(value: object) -> str:
    return "an empty dict" if value == {} else f"a {type(value).__name__}"


def load_official(model: CAVMAEFT, path: str | Path, new_head: bool = False) -> LoadReport:
    """Load a published checkpoint; only the documented keys may be missing or left over.

    `new_head` keeps the model's own head in place of a fine-tuned one. Raises CheckpointError.
    """
    state = read_state(path)
    kind: Literal["pretrained", "finetuned"] = "finetuned" if HEAD_CLASSES in state else "pretrained"
    if new_head:
        state = {key: value for key, value in state.items() if not key.startswith(HEAD)}
    report = _report(model, state, kind, path)
    model.load_state_dict(state, strict=False)
    return report


def _report(
    model: CAVMAEFT, state: Mapping[str, Tensor], kind: Literal["pretrained", "finetuned"], path: str | Path
) -> LoadReport:
    own = model.state_dict()
    missing, unexpected = own.keys() - state.keys(), state.keys() - own.keys()
    wrong_shapes = {key for key in own.keys() & state.keys() if own[key].shape != state[key].shape}
    if HEAD_CLASSES in wrong_shapes and wrong_shapes <= {HEAD_CLASSES, "mlp_head.1.bias"}:
        theirs, ours = state[HEAD_CLASSES].shape[0], own[HEAD_CLASSES].shape[0]
        raise CheckpointError(
            f"checkpoint '{path}' was fine-tuned on {theirs} classes, the backbone has {ours}; set n_classes to "
            f"{theirs}, or name it as `init:` of a suite's backbone, which starts a new head"
        )
    head, fusion = _group(own, HEAD), _group(own, FUSION)
    allowed = _whole_groups(missing, head, fusion)
    decoder = _decoder_names(model.config) if kind == "pretrained" else frozenset()
    stray = {key for key in unexpected - decoder if not key.startswith(UNUSED)}
    problems = [
        _listing("missing", {key: tuple(own[key].shape) for key in missing - allowed}),
        _listing("absent from a pre-training file", dict.fromkeys(decoder - unexpected, ())),
        _listing("unexpected", {key: tuple(state[key].shape) for key in stray}),
        _listing("of another shape", {key: (*state[key].shape, "not", *own[key].shape) for key in wrong_shapes}),
    ]
    if any(problems):
        hint = " (the file has a fusion block: try fusion 'as-published')" if _group(state, FUSION) & stray else ""
        raise CheckpointError(
            f"checkpoint '{path}' does not fit backbone '{model.config.name}'{hint}:\n"
            + "\n".join(filter(None, problems))
        )
    return LoadReport(kind, tuple(sorted(missing)), tuple(sorted(unexpected)))


def _group(state: Mapping[str, Tensor], prefix: str) -> frozenset[str]:
    return frozenset(key for key in state if key.startswith(prefix))


def _whole_groups(missing: set[str], *groups: frozenset[str]) -> frozenset[str]:
    """The groups that are missing as a whole; half a group is never right."""
    return frozenset().union(*(group for group in groups if group <= missing))


def _decoder_names(config: BackboneConfig) -> frozenset[str]:
    with torch.device("meta"):
        pretraining, tuning = CAVMAE(config), CAVMAEFT(config)
    return frozenset(pretraining.state_dict()) - frozenset(tuning.state_dict())


def _listing(what: str, keys: Mapping[str, tuple[int | str, ...]]) -> str:
    if not keys:
        return ""
    lines = [f"    {key} {' '.join(str(size) for size in keys[key])}".rstrip() for key in sorted(keys)[:SHOWN]]
    if len(keys) > SHOWN:
        lines.append(f"    and {len(keys) - SHOWN} more")
    return f"  {what} ({len(keys)}):\n" + "\n".join(lines)


def backbone_digest(model: torch.nn.Module) -> str:
    """SHA-256 over the sorted names, types, shapes and bytes of all tensors."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_backbone(model: CAVMAEFT | CAVMAE, folder: str | Path, meta: Mapping[str, str]) -> BackboneMeta:
    """Write tensors and description into the folder, each aside and renamed, the description last.

    A pre-trained model, which has a decoder in place of a head, goes under names of its own.
    """
    folder, pretrained = Path(folder), isinstance(model, CAVMAE)
    weights, description = (PRETRAINED, PRETRAINED_DESCRIPTION) if pretrained else (WEIGHTS, DESCRIPTION)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    described = BackboneMeta(model.config, dict(meta), backbone_digest(model))
    values = {"schema": 1, "config": model.config.to_dict(), "meta": dict(meta), "sha256": described.sha256}
    text = json.dumps(values, indent=2, allow_nan=False) + "\n"
    _write_aside(folder / weights, lambda path: save_file(state, path))
    _write_aside(folder / description, lambda path: path.write_text(text, encoding="utf-8"))
    return described


def _write_aside(path: Path, write: Callable[[Path], object]) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def load_backbone(folder: str | Path) -> tuple[CAVMAEFT, BackboneMeta]:
    """A saved backbone, its digest verified; raises CheckpointError for anything that is not as it was saved."""
    folder = Path(folder)
    described = load_meta(folder)
    with torch.device("meta"):
        model = CAVMAEFT(described.config)
    _fill_verified(model, folder / WEIGHTS, described)
    return model, described


def load_pretrained(folder: str | Path) -> tuple[CAVMAE, BackboneMeta]:
    """A saved pre-trained model, decoder included; as `load_backbone`."""
    folder = Path(folder)
    described = read_description(folder / PRETRAINED_DESCRIPTION)
    with torch.device("meta"):
        model = CAVMAE(described.config)
    _fill_verified(model, folder / PRETRAINED, described)
    return model, described


def _fill_verified(model: CAVMAEFT | CAVMAE, path: Path, described: BackboneMeta) -> None:
    folder = path.parent
    try:
        model.load_state_dict(read_state(path), assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"backbone '{folder}' does not match its description: {reason}; build it again"
        ) from error
    found = backbone_digest(model)
    if found != described.sha256:
        raise CheckpointError(
            f"backbone '{folder}' has digest {found[:12]}, its description says {described.sha256[:12]}; build it again"
        )


def weights_file(path: Path) -> Path:
    """The checkpoint to start from: a file, or that of a folder which `mmbench backbone` wrote.

    Raises CheckpointError if there is none.
    """
    found = [file for file in (path, path / PRETRAINED, path / WEIGHTS) if file.is_file()]
    if not found:
        raise CheckpointError(f"no checkpoint file '{path}', and no folder that holds {PRETRAINED} or {WEIGHTS}")
    return found[0]


def load_meta(folder: str | Path) -> BackboneMeta:
    """The description of a saved backbone, tensors unread; raises CheckpointError where it is missing or broken."""
    path = Path(folder) / DESCRIPTION
    if not path.is_file() and (path.parent / PRETRAINED).is_file():
        raise CheckpointError(
            f"'{folder}' holds a pre-trained model, which has no head; name it as 'init', or fine-tune it: "
            "mmbench backbone finetune"
        )
    return read_description(path)


def read_description(path: Path) -> BackboneMeta:
    """A description by its file; as `load_meta`, which knows where it lies."""
    if not path.is_file():
        raise CheckpointError(f"no backbone in '{path.parent}': {path.name} is missing; build or import one there")
    try:
        values: dict[str, Any] = read_json(path.read_text(encoding="utf-8"))
        config = BackboneConfig.from_dict(values["config"])
        return BackboneMeta(config, {str(k): str(v) for k, v in values["meta"].items()}, str(values["sha256"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        reason = f"{type(error).__name__} {error}"
        raise CheckpointError(f"backbone description '{path}' is broken: {reason}; build it again") from error
