"""What a trial cost: counts of one step before training, measurements from it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmbench.backbone.cavmae import count_parameters
from mmbench.bench import Bench
from mmbench.cases import Case
from mmbench.data.batch import Batch
from mmbench.errors import DoesNotFitError
from mmbench.feed import TrainFeed, TrialData
from mmbench.meter import Probe, flop_counter, probe_step
from mmbench.method import Method
from mmbench.records import Costs, PeakMemory, TrainingState
from mmbench.steps import moments, out_of_memory
from mmbench.strategy import Regimen
from mmbench.train import Fitted

PROBE_BATCH = 4
"""Samples of the counting pass; activations grow linearly with them, apart from a constant that is measured too."""
PROBE_SEED = 0


@dataclass(frozen=True)
class StepCounts:
    """Device-independent counts of a method, from passes with one and with PROBE_BATCH samples."""

    probe: Probe
    activations_per_sample: float
    activations_constant: float
    """Bytes that do not grow with the batch."""
    eval_flops_per_sample: float

    def state(self, batch: int) -> TrainingState:
        """The training state at `batch` samples at once."""
        activations = round(self.activations_constant + batch * self.activations_per_sample)
        return self.probe.state.model_copy(update={"activations_bytes": activations, "batch": batch})


@dataclass(frozen=True)
class CostInputs:
    """What the phases of a trial measured."""

    fitted: Fitted
    counts: StepCounts | None
    train_memory: PeakMemory
    eval_memory: PeakMemory
    energy_joules: float | None
    predicted: int
    """Samples predicted in the final evaluation, over cases and tracks."""


def count_step(regimen: Regimen, data: TrialData, cases: tuple[Case, ...], bench: Bench) -> StepCounts:
    """Count one training step without changing the method: under the first case, with what others reach beside it."""
    counts = _count_case(regimen, _first(data, cases[0], PROBE_BATCH, bench), bench)
    named = regimen.method.trainable()
    for case in cases[1:]:
        if named.keys() <= counts.probe.trained:
            break
        other = _probe(regimen, _first(data, case, 1, bench), bench)
        counts = replace(counts, probe=counts.probe.reaching(other.trained, named))
    return counts


def _first(data: TrialData, case: Case, samples: int, bench: Bench) -> Batch:
    """Training samples under one case."""
    return TrainFeed(data, PROBE_SEED, (case,)).load(0, data.splits.train[:samples]).to(bench.device)


def _count_case(regimen: Regimen, batch: Batch, bench: Bench) -> StepCounts:
    """On all samples of the batch, or on two where they do not fit."""
    try:
        return count_batch(regimen, batch, bench)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
    return count_batch(regimen, batch.select([0, 1]), bench)


def count_batch(regimen: Regimen, batch: Batch, bench: Bench) -> StepCounts:
    """The same on a given batch of at least two samples."""
    method = regimen.method
    one, many = _probe(regimen, batch.select([0]), bench), _probe(regimen, batch, bench)
    slope = (many.state.activations_bytes - one.state.activations_bytes) / (len(batch) - 1)
    with torch.no_grad(), bench.autocast(), flop_counter() as flops:
        method.predict(batch)
    return StepCounts(many, slope, one.state.activations_bytes - slope, flops.get_total_flops() / len(batch))


def _probe(regimen: Regimen, batch: Batch, bench: Bench) -> Probe:
    method = regimen.method

    def loss() -> Tensor:
        with bench.autocast():
            return regimen.loss(batch).total

    return probe_step(loss, method.trainable(), [*method.net.parameters(), *method.extra.parameters()], len(batch))


def fit_micro_batch(counts: StepCounts, bench: Bench) -> int:
    """Samples at once so that the counted training state stays within the memory cap.

    On a GPU the allocator enforces the cap as well; elsewhere this count is the enforcement.
    Raises DoesNotFitError if one sample alone exceeds it.
    """
    micro_batch = bench.budget.micro_batch or bench.budget.batch_size // bench.ranks.world
    cap_gib = bench.budget.memory_cap_gib
    if cap_gib is None:
        return micro_batch
    # The count holds Adam's two moments, whatever the optimiser.
    spared_bytes = (2 - moments(bench.budget.optim)) * counts.probe.state.gradients_bytes
    while counts.state(micro_batch).total_bytes - spared_bytes > cap_gib * 2**30:
        if micro_batch == 1:
            need_gib = (counts.state(1).total_bytes - spared_bytes) / 2**30
            raise DoesNotFitError(f"one sample needs {need_gib:.2g} GiB of training state, the cap is {cap_gib:g} GiB")
        micro_batch = max(1, micro_batch // 2)
    return micro_batch


def collect_costs(method: Method, data: TrialData, inputs: CostInputs, bench: Bench) -> Costs:
    """Everything a record says about cost."""
    trained = method.trainable()
    reached = {n: p for n, p in trained.items() if inputs.counts is not None and n in inputs.counts.probe.trained}
    ledger = inputs.fitted.ledger
    trains = inputs.counts is not None
    return Costs(
        trainable_parameters=sum(p.numel() for p in reached.values()),
        head_parameters=sum(p.numel() for n, p in reached.items() if n.startswith("mlp_head.")),
        total_parameters=count_parameters(method.net) + sum(p.numel() for p in method.extra.parameters()),
        stored_bytes=sum(t.nbytes for state in inputs.fitted.kept().values() for t in state.values()),
        seconds=bench.clock.summary(),
        epoch_seconds=ledger.times.epoch_seconds(len(data.splits.train)),
        step_seconds_median=ledger.times.median(),
        step_seconds_std=ledger.times.std(),
        steps=len(ledger.times.seconds),
        samples_seen=ledger.samples,
        micro_batch=ledger.micro_batch or None,
        train_memory=inputs.train_memory if trains else PeakMemory(),
        eval_memory=inputs.eval_memory,
        training_state=_state(inputs),
        train_flops_per_sample=inputs.counts.probe.flops_per_sample if inputs.counts else None,
        eval_flops_per_sample=inputs.counts.eval_flops_per_sample if inputs.counts else None,
        eval_seconds_per_sample=bench.clock.seconds("evaluate") / inputs.predicted if inputs.predicted else None,
        energy_joules=inputs.energy_joules,
    )


def _state(inputs: CostInputs) -> TrainingState | None:
    """The counted state at the micro-batch that was used, with the optimiser's own size."""
    if inputs.counts is None:
        return None
    state = inputs.counts.state(inputs.fitted.ledger.micro_batch)
    return state.model_copy(update={"optimizer_bytes": inputs.fitted.ledger.optimizer_bytes})
