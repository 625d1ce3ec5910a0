"""The source model of a suite: a CAV-MAE fine-tuned once on clean data, then frozen and shared by every method."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import torch

from mmbench.backbone.cavmae import CAVMAEFT
from mmbench.backbone.checkpoint import DESCRIPTION, load_meta, load_official, save_backbone, weights_file
from mmbench.bench import Bench
from mmbench.cards import MethodCard
from mmbench.cases import Case
from mmbench.claims import claimed
from mmbench.config import BackboneSpec, Budget, DataConfig, OptimConfig
from mmbench.feed import TrialData, seed_from
from mmbench.files import cache_folder
from mmbench.meter import Clock
from mmbench.method import Method, Recipe
from mmbench.prepare import Place, model_config
from mmbench.train import SINGLE, Job, fit

RECIPE = 1
"""Raised whenever the same spec would train another source model."""
SEED = 0
WAIT_SECONDS = 0.2
OPEN_GATE = 1.0
"""tanh of it is 0.76."""


class CleanTraining(Method):
    """Everything that is alive trains; the usual fine-tuning."""

    card = MethodCard("clean-training", "Clean fine-tuning", "full", "design", 2026, "M3")

    def build(self, rng: torch.Generator) -> None:
        alive = self.net.live_parameter_names()
        for name, parameter in self.net.named_parameters():
            parameter.requires_grad_(name in alive)


def source_folder(spec: BackboneSpec, dataset: DataConfig, data: TrialData) -> Path:
    """Where the source model of this spec on this data is cached."""
    init = weights_file(spec.init) if spec.init else None
    content = {
        "recipe": RECIPE,
        "config": model_config(spec, len(data.store.classes)).to_dict(),
        "epochs": spec.epochs,
        "lr": spec.lr,
        "batch": spec.batch_size,
        "init": hashlib.sha256(init.read_bytes()).hexdigest() if init else None,
        "data": data.store.digest,
        "split": dataset.split_facts(),
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / "backbones" / f"{spec.name}-{dataset.name}-{digest}"


def prepare_backbone(
    spec: BackboneSpec, dataset: DataConfig, data: TrialData, device: torch.device, log: Bench | None = None
) -> Place:
    """The folder of the source model: the given one, the cached one, or a new one built now.

    Raises ConfigError or CheckpointError where a given folder or checkpoint does not fit.
    """
    folder = spec.path
    if folder is None:
        folder = source_folder(spec, dataset, data)
        _build_once(spec, data, folder, device, log)
    else:
        model_config(spec, len(data.store.classes))
    return Place(folder, load_meta(folder))


def _build_once(spec: BackboneSpec, data: TrialData, folder: Path, device: torch.device, log: Bench | None) -> None:
    """Build unless it is there; of several processes one builds and the others wait for it."""
    folder.mkdir(parents=True, exist_ok=True)
    while not (folder / DESCRIPTION).is_file():
        with claimed(folder) as mine:
            if mine and not (folder / DESCRIPTION).is_file():
                build_source(spec, data, folder, device, log)
        time.sleep(WAIT_SECONDS)


def build_source(
    spec: BackboneSpec, data: TrialData, folder: Path, device: torch.device, log: Bench | None = None
) -> None:
    """Fine-tune a fresh model, or an official checkpoint, on the clean training split and save it."""
    config = model_config(spec, len(data.store.classes))
    net = CAVMAEFT(config, torch.Generator().manual_seed(seed_from("source", SEED)))
    if spec.init:
        load_official(net, weights_file(spec.init), new_head=True)  # the fine-tuning below trains the head
    else:
        open_gates(net)
    bench = Bench(device, source_budget(spec), Clock(device), log.log if log else (lambda **row: None))
    recipe = Recipe(train_head=True, multi_label=data.multi_label)
    method = CleanTraining(net.to(device), recipe, {}, torch.Generator().manual_seed(seed_from("build", SEED)))
    samples = round(spec.epochs * len(data.splits.train))
    job = Job((Case("complete"),), False, spec.lr, samples, SEED, spec.batch_size, "source")
    fitted = fit(method, data, job, bench)
    method.load(fitted.states[SINGLE])
    facts = {
        "trained_on": data.name,
        "data_digest": data.store.digest,
        "epochs": f"{spec.epochs:g}",
        "lr": f"{spec.lr:g}",
    }
    save_backbone(net.cpu(), folder, facts)


def open_gates(net: CAVMAEFT) -> None:
    """Start a model without a past with its fusion at work: closed gates exist to keep a checkpoint's logits."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.startswith("blocks_fu.0.gate_"):
                parameter.fill_(OPEN_GATE)


def source_budget(spec: BackboneSpec) -> Budget:
    """The clean fine-tuning's own budget: Adam without decay, warm-up and half a cosine."""
    optim = OptimConfig(name="adam", betas=(0.95, 0.999), weight_decay=5e-7, warmup_share=0.1)
    return Budget(epochs=spec.epochs, batch_size=spec.batch_size, tuning_trials=1, optim=optim)
