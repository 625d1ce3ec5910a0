"""What `profile` does: the costs of one method at one batch size, measured on made-up samples, without training it."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from mmbench import registry
from mmbench.backbone.cavmae import CAVMAEFT, count_parameters
from mmbench.backbone.config import BackboneConfig, preset
from mmbench.bench import Bench, pick_device
from mmbench.config import Budget
from mmbench.costs import count_batch
from mmbench.data.batch import Batch
from mmbench.environment import device_name
from mmbench.errors import ConfigError
from mmbench.feed import seed_from
from mmbench.meter import WARMUP_STEPS, Clock, PeakMeter, StepTimes, optimizer_bytes
from mmbench.method import Method, Recipe
from mmbench.records import PeakMemory
from mmbench.source import open_gates
from mmbench.strategy import Regimen
from mmbench.train import Ledger, fitting_step, make_optimizer

COUNTED = 2
"""Samples of the counting pass."""
CLASSES = 10


@dataclass(frozen=True)
class ProfileRequest:
    method: str
    backbone: str = "cavmae-tiny"
    batch: int = 8
    steps: int = 5
    precision: str = "fp32"


@dataclass(frozen=True)
class Profile:
    """Costs of one method; None means not measured."""

    method: str
    backbone: str
    device: str
    precision: str
    batch: int
    micro_batch: int
    trainable_parameters: int
    head_parameters: int
    total_parameters: int
    parameters_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    train_memory: PeakMemory
    eval_memory: PeakMemory
    step_seconds_median: float | None
    step_seconds_std: float | None
    train_flops_per_sample: float
    eval_flops_per_sample: float
    predict_seconds_per_sample: float


def profile_method(request: ProfileRequest, device: torch.device) -> Profile:
    """Time a few steps after a warm-up and count one; the model is random, which costs as much as a trained one.

    Raises ConfigError for a method that does not train or an unknown precision.
    """
    if request.precision not in ("fp32", "bf16"):
        raise ConfigError(f"no precision '{request.precision}'; use fp32 or bf16")
    card = registry.methods().card(request.method)
    if not card.trains:
        raise ConfigError(f"{request.method} does not train: there is no step to profile")
    budget = Budget.model_validate({"batch_size": request.batch, "precision": request.precision})
    bench = Bench(device, budget, Clock(device))
    method = _method(request, device)
    batch = random_batch(method.net.config, request.batch, device)
    counts = count_batch(Regimen(method), batch.select(range(COUNTED)), bench)
    peaks = PeakMeter(device)
    peaks.reset()
    ledger, kept = _time_steps(method, batch, request.steps, bench)
    train_memory = peaks.read()
    state = counts.state(ledger.micro_batch)
    peaks.reset()
    seconds = _time_prediction(method, batch, bench)
    return Profile(
        method=request.method,
        backbone=request.backbone,
        device=device_name(device),
        precision=request.precision,
        batch=request.batch,
        micro_batch=ledger.micro_batch,
        trainable_parameters=sum(p.numel() for n, p in method.trainable().items() if n in counts.probe.trained),
        head_parameters=sum(p.numel() for n, p in method.trainable().items() if n.startswith("mlp_head.")),
        total_parameters=count_parameters(method.net) + sum(p.numel() for p in method.extra.parameters()),
        parameters_bytes=state.parameters_bytes,
        gradients_bytes=state.gradients_bytes,
        optimizer_bytes=kept,
        activations_bytes=state.activations_bytes,
        train_memory=train_memory,
        eval_memory=peaks.read(),
        step_seconds_median=ledger.times.median(),
        step_seconds_std=ledger.times.std(),
        train_flops_per_sample=counts.probe.flops_per_sample,
        eval_flops_per_sample=counts.eval_flops_per_sample,
        predict_seconds_per_sample=seconds,
    )


def _method(request: ProfileRequest, device: torch.device) -> Method:
    net = CAVMAEFT(preset(request.backbone, n_classes=CLASSES), torch.Generator().manual_seed(seed_from("profile")))
    open_gates(net)  # a closed gate would cut off what lies behind it
    build = registry.methods().load(request.method)
    method: Method = build(net.to(device), Recipe(), {}, torch.Generator().manual_seed(seed_from("build")))
    method.begin(method.phases()[-1])  # where phases differ, the last one trains the most
    return method


def random_batch(config: BackboneConfig, size: int, device: torch.device) -> Batch:
    """Labelled noise of the backbone's input sizes, complete in both modalities."""
    rng = torch.Generator().manual_seed(seed_from("batch"))
    batch = Batch(
        audio=torch.randn(size, config.frames, config.mel_bins, generator=rng),
        image=torch.randn(size, 3, config.image_size, config.image_size, generator=rng),
        label=torch.randint(config.n_classes, (size,), generator=rng),
        ids=tuple(str(i) for i in range(size)),
        case=("complete",) * size,
        available=torch.ones(size, 2, dtype=torch.bool),
        affected=torch.zeros(size, 2, dtype=torch.bool),
    )
    return batch.to(device)


def _time_steps(method: Method, batch: Batch, steps: int, bench: Bench) -> tuple[Ledger, int]:
    """Steps with their times, and the bytes the optimiser keeps."""
    optimizer = make_optimizer(method.groups(1e-4), bench.budget.optim)
    ledger = Ledger(times=StepTimes(), micro_batch=len(batch))
    total = steps + WARMUP_STEPS
    for step in range(total):
        with bench.clock.phase("train"):
            began = time.perf_counter()
            fitting_step(Regimen(method), batch, optimizer, bench, ledger, (step, total))
            _wait(bench)
            ledger.times.add(time.perf_counter() - began, len(batch))
    return ledger, optimizer_bytes(optimizer)


def _time_prediction(method: Method, batch: Batch, bench: Bench) -> float:
    with bench.autocast():
        method.predict(batch)
        _wait(bench)
        began = time.perf_counter()
        method.predict(batch)
        _wait(bench)
    return (time.perf_counter() - began) / len(batch)


def _wait(bench: Bench) -> None:
    if bench.device.type == "cuda":
        torch.cuda.synchronize(bench.device)


def print_profile(request: ProfileRequest, device_wanted: str | None, as_json: bool) -> None:
    profile = profile_method(request, pick_device(device_wanted))
    if as_json:
        print(json.dumps(asdict(profile), default=lambda memory: memory.model_dump(), allow_nan=False))
        return
    table = Table(
        title=f"{profile.method} on {profile.backbone}, batch {profile.batch}, {profile.precision}",
        title_justify="left",
    )
    table.add_column("cost")
    table.add_column("value", justify="right")
    for what, value in profile_rows(profile):
        table.add_row(what, value)
    Console().print(table)


def profile_rows(profile: Profile) -> list[tuple[str, str]]:
    """What a person reads of a profile."""

    def mib(value: int | None) -> str:
        return "not measured" if value is None else f"{value / 2**20:,.1f} MiB"

    def seconds(value: float | None) -> str:
        return "not measured" if value is None else f"{value * 1e3:,.1f} ms"

    share = profile.trainable_parameters / profile.total_parameters
    peak = profile.train_memory.allocated_bytes
    rows: list[tuple[str, Any]] = [
        ("device", profile.device),
        ("trainable parameters", f"{profile.trainable_parameters:,} ({share:.2%})"),
        ("  of these in the head", f"{profile.head_parameters:,}"),
        ("training state: parameters", mib(profile.parameters_bytes)),
        ("training state: gradients", mib(profile.gradients_bytes)),
        ("training state: optimiser", mib(profile.optimizer_bytes)),
        (f"training state: activations at {profile.micro_batch}", mib(profile.activations_bytes)),
        ("peak device memory, training", mib(peak)),
        ("peak resident memory, training", mib(profile.train_memory.rss_bytes)),
        ("step (median)", seconds(profile.step_seconds_median)),
        ("step (spread)", seconds(profile.step_seconds_std)),
        ("training GFLOP per sample", f"{profile.train_flops_per_sample / 1e9:.2f}"),
        ("prediction per sample", seconds(profile.predict_seconds_per_sample)),
    ]
    return rows
