"""What `backbone pretrain` and `backbone finetune` do; under `torchrun`, with one process a GPU."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mmbench import metrics, registry
from mmbench.backbone.cavmae import CAVMAEFT
from mmbench.backbone.checkpoint import (
    DESCRIPTION,
    PRETRAINED_DESCRIPTION,
    load_official,
    read_description,
    read_state,
    save_backbone,
    weights_file,
)
from mmbench.backbone.config import preset
from mmbench.backbone.pretrain import CAVMAE
from mmbench.backbone_training.course import Course, Epoch
from mmbench.backbone_training.joined import joined
from mmbench.backbone_training.objectives import LOSS, Finetuning, Objective, Pretraining
from mmbench.backbone_training.recipes import FINETUNE, PRETRAIN, Kind, recipe_of
from mmbench.backbone_training.views import ViewFeed
from mmbench.bench import pick_device
from mmbench.cases import Case
from mmbench.claims import claimed
from mmbench.config import BackboneSpec
from mmbench.environment import git_state, package_version
from mmbench.errors import CheckpointError, ConfigError
from mmbench.feed import EvalFeed, TrialData, seed_from
from mmbench.files import make_folder
from mmbench.prepare import model_config, prepare_data
from mmbench.ranks import Ranks
from mmbench.runner import make_listener, read_data
from mmbench.source import open_gates
from mmbench.sweep import reading

TINY = "cavmae-tiny"


@dataclass(frozen=True)
class TrainRequest:
    """A command line, read."""

    what: Path
    """A suite, a folder of pairs, or a registered data set that needs no files."""
    out: Path
    init: Path | None = None
    recipe: str | None = None
    changes: tuple[str, ...] = ()
    """Of the recipe, as key=value."""
    backbone: str | None = None
    """A preset; the suite's unless given."""
    device: str | None = None
    overrides: tuple[str, ...] = ()
    quiet: bool = False

    def chosen(self, known: Mapping[str, Kind], usual: str, spec: BackboneSpec) -> Kind:
        """The recipe, changes in place; the usual one fits no tiny model."""
        return recipe_of(known, self.recipe or ("tiny" if spec.name == TINY else usual), self.changes)


def pretrain_command(request: TrainRequest) -> None:
    """Pre-train a backbone on the training split of a data set; prints its folder."""
    spec, data = _subject(request)
    recipe = request.chosen(PRETRAIN, "audioset-scale++", spec)
    net = CAVMAE(preset(spec.name), torch.Generator().manual_seed(seed_from("pretrain", recipe.seed)))
    if request.init is not None:
        _continue(net, weights_file(request.init))
    _train(request, Pretraining(net, recipe), data)


def finetune_command(request: TrainRequest) -> None:
    """Fine-tune a pre-trained backbone, or a fresh one, on the training split of a data set; prints its folder."""
    spec, data = _subject(request)
    recipe = request.chosen(FINETUNE, "vggsound", spec)
    config = model_config(spec, len(data.store.classes))
    net = CAVMAEFT(config, torch.Generator().manual_seed(seed_from("finetune", recipe.seed)))
    if request.init is not None:
        load_official(net, weights_file(request.init), new_head=True)
    else:
        open_gates(net)
    _train(request, Finetuning(net, recipe, data.multi_label), data)


def _subject(request: TrainRequest) -> tuple[BackboneSpec, TrialData]:
    suite = read_data(request.what, request.overrides)
    for what, held in (("data sets", suite.datasets), ("backbones", suite.backbones)):
        if len(held) > 1:
            raise ConfigError(
                f"suite {suite.name} has {len(held)} {what}; choose one: --set '{what.replace(' ', '')}=[...]'"
            )
    # A suite's backbone may be the one that is to be built here.
    spec = suite.backbones[0].model_copy(update={"path": None, "init": None})
    if request.backbone is not None:
        spec = spec.model_copy(update={"name": request.backbone})
    preset(spec.name)
    with make_listener(request.quiet, False) as listen:
        return spec, prepare_data(suite.datasets[0], spec, reading(listen, suite.datasets[0].title))


def _continue(net: CAVMAE, path: Path) -> None:
    try:
        net.load_state_dict(read_state(path))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path} is no pre-trained model of the size {net.config.name}: {reason}") from None


def _train(request: TrainRequest, objective: Objective, data: TrialData) -> None:
    with joined(pick_device(request.device)) as (ranks, device), _alone(request.out, ranks):
        average_from = objective.recipe.average_from if isinstance(objective, Finetuning) else None
        tell = _teller(objective.recipe.epochs, request.quiet)
        course = Course(objective, ViewFeed(data, objective.recipe, ranks), request.out, device, average_from, tell)
        if not _finished(course):
            course.run()
            if ranks.first:
                facts = _facts(request, course, data)
                save_backbone(objective.net.cpu(), request.out, facts)
        if ranks.first:
            course.finish()
            print(request.out)


@contextlib.contextmanager
def _alone(folder: Path, ranks: Ranks) -> Iterator[None]:
    """One training in a folder at a time; the first process claims it for all."""
    make_folder(folder)
    with claimed(folder) if ranks.first else contextlib.nullcontext(True) as mine:
        if not mine:
            raise ConfigError(f"another process trains in {folder}; wait for it, or choose another --out")
        yield


def _teller(epochs: int, quiet: bool) -> Callable[[Epoch], None]:
    def tell(row: Epoch) -> None:
        losses = "  ".join(f"{name} {value:.3f}" for name, value in row.losses.items())
        print(f"epoch {row.epoch}/{epochs}  {losses}  {row.epoch_seconds:.0f} s", flush=True)

    return (lambda row: None) if quiet else tell


def _run_digest(course: Course) -> str:
    return hashlib.sha256(json.dumps(course.keys, sort_keys=True).encode()).hexdigest()


def _finished(course: Course) -> bool:
    """Whether the folder holds the result already; raises CheckpointError if it holds another."""
    mine = PRETRAINED_DESCRIPTION if isinstance(course.objective, Pretraining) else DESCRIPTION
    for name in (DESCRIPTION, PRETRAINED_DESCRIPTION):
        path = course.folder / name
        if path.is_file():
            if name == mine and read_description(path).meta.get("run") == _run_digest(course):
                return True
            raise CheckpointError(f"{course.folder} holds another backbone; choose another --out, or delete it")
    return False


def _facts(request: TrainRequest, course: Course, data: TrialData) -> dict[str, str]:
    """What the card of the result tells."""
    objective, history = course.objective, course.history
    commit, dirty = git_state(registry.ROOT)
    init = None if request.init is None else weights_file(request.init)
    facts = {
        "objective": _words(objective),
        "trained_on": data.name,
        "data_digest": data.store.digest,
        "samples": str(len(data.splits.train)),
        "recipe": ", ".join(f"{key}={value}" for key, value in objective.recipe.model_dump().items()),
        "epochs": str(len(history)),
        "losses": " ".join(f"{row.losses[LOSS]:.4f}" for row in history),
        "train_seconds": f"{sum(row.epoch_seconds for row in history):.1f}",
        "seed": str(objective.recipe.seed),
        "processes": str(course.feed.ranks.world),
        "init": "random" if init is None else f"{init.name} {hashlib.sha256(init.read_bytes()).hexdigest()[:16]}",
        "commit": "unknown" if commit is None else commit + (" and changes" if dirty else ""),
        "torch": str(package_version("torch")),
        "run": _run_digest(course),
    }
    if isinstance(objective, Finetuning):
        metric = "map" if data.multi_label else "accuracy"
        facts |= {f"{split}_{metric}": f"{clean_score(objective.net, data, split):.4f}" for split in ("val", "test")}
    return facts


def _words(objective: Objective) -> str:
    if isinstance(objective, Pretraining):
        recipe = objective.recipe
        return f"pre-training: {recipe.mae_weight:g} x reconstruction + {recipe.contrast_weight:g} x contrast"
    return f"fine-tuning: {'binary ' if objective.multi_label else ''}cross-entropy"


@torch.no_grad()
def clean_score(net: CAVMAEFT, data: TrialData, split: str, batch_size: int = 64) -> float:
    """Accuracy, or mAP on data with several labels, of a split without any corruption."""
    device = next(net.parameters()).device
    logits, labels = [], []
    for staged in EvalFeed(data, split, Case("complete"), batch_size).staged():
        batch = staged.to(device)
        assert batch.label is not None  # stored sets are labelled
        logits.append(net(batch.audio, batch.image).float().cpu())
        labels.append(batch.label.cpu())
    found = torch.cat(logits).numpy(), torch.cat(labels).numpy()
    return float(np.mean(metrics.average_precision(*found))) if data.multi_label else metrics.accuracy(*found)
