"""One trial from its spec to its record: data, backbone, method, tuning, training, evaluation, costs."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mmbench import registry
from mmbench.assets import use_assets
from mmbench.backbone.cavmae import CAVMAEFT, count_parameters
from mmbench.backbone.checkpoint import BackboneMeta, load_backbone
from mmbench.bench import Bench, EventLog
from mmbench.claims import claimed
from mmbench.costs import CostInputs, StepCounts, collect_costs, count_step, fit_micro_batch
from mmbench.desk import Desk
from mmbench.endings import classify, is_outside
from mmbench.environment import environment
from mmbench.errors import RefusedError
from mmbench.evaluate import Predictions, feeds_for, predict_cases, score_all
from mmbench.feed import TrialData, seed_from
from mmbench.files import remove_remains
from mmbench.launch import RankDiedError, run_ranks
from mmbench.layout import EVENTS, PREDICTIONS, STATES, STDERR
from mmbench.ledger import Ledger
from mmbench.logs import bounded_stderr
from mmbench.meter import Clock, EnergyMeter, PeakMeter
from mmbench.method import Method, Recipe
from mmbench.outputs import check_own, save_predictions, save_states
from mmbench.prepare import data_facts, reopen_data, with_frozen
from mmbench.ranks import ALONE, Ranks
from mmbench.records import (
    MARKER,
    RECORD,
    BackboneFacts,
    Failure,
    Status,
    TrialFacts,
    TrialRecord,
    TuningTrial,
    is_done,
    save_record,
)
from mmbench.resume import PROGRESS, Interrupted, Keeper, discard, keys_of
from mmbench.run_online import adapt_trial, check_base, check_trained
from mmbench.steps import cap_memory
from mmbench.strategy import Regimen
from mmbench.train import SINGLE, Fitted, Job, fit
from mmbench.trials import Trial, read_trial
from mmbench.tune import tune

Echo = Callable[[dict[str, Any]], None]
"""Receives each row of the event log."""


def run_trial(folder: Path, device: torch.device, echo: Echo | None = None) -> Status | None:
    """Run the trial of a folder and leave its record; None if it is done or another process has it.

    Every failure becomes a record with a status; only an interruption leaves none, an online trial whose base has not
    run, which raises ConfigError, and what `is_outside` tells: a full disk, a store or a frozen test set that changed.
    """
    trial = _open(folder)
    with claimed(folder) as mine, sigterm_raises(Interrupted), bounded_stderr(folder / STDERR):
        if not mine or is_done(folder):
            return None
        remove_remains(folder, (RECORD, MARKER, PREDICTIONS, STATES, PROGRESS))
        for name in (PREDICTIONS, STATES):  # of a run that was put aside; this one may end without any
            (folder / name).unlink(missing_ok=True)
        check_base(trial, folder)
        record = _run(trial, folder, device, echo) if trial.devices == 1 else _run_shared(trial, folder, device)
        check_own(folder)
        save_record(record, folder)
        discard(folder)
        return record.status


def run_rank(folder: Path, device: torch.device, ranks: Ranks) -> TrialRecord:
    """One rank of a trial on several devices. The first one writes all but the record, which is returned."""
    return _run(_open(folder), folder, device, None, ranks)


def _open(folder: Path) -> Trial:
    trial = read_trial(folder)
    registry.use_plugins(trial.plugins)
    use_assets(trial.assets)
    return trial


def _run_shared(trial: Trial, folder: Path, device: torch.device) -> TrialRecord:
    try:
        return run_ranks(folder, device, trial.devices)
    except RankDiedError as error:
        failure, where = Failure(kind="RankDied", message=str(error)), environment(device, trial.devices)
        return TrialRecord(status="crashed", failure=failure, trial=facts(trial), environment=where)


@contextlib.contextmanager
def sigterm_raises(error: type[BaseException]) -> Iterator[None]:
    """Turn SIGTERM into an exception while inside, so that claims are given back and workers stopped on the way out."""

    def stop(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # another would break off the leaving
        raise error

    if threading.current_thread() is not threading.main_thread():
        yield  # signals belong to the main thread; a caller with threads of its own handles them itself
        return
    old = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


def _run(trial: Trial, folder: Path, device: torch.device, echo: Echo | None, ranks: Ranks = ALONE) -> TrialRecord:
    known: dict[str, Any] = {"trial": facts(trial), "environment": environment(device, ranks.world)}
    events = EventLog(folder / EVENTS, echo)
    log: Callable[..., None] = events if ranks.first else lambda **row: None
    clock = Clock(device)
    keys = keys_of(trial.model_dump_json(), known["environment"])
    keeper = Keeper(folder / PROGRESS, keys, device, log, {"clock": clock}, ranks=ranks)
    unusable = keeper.open()
    if ranks.first:
        events.keep(keeper.events_bytes)
    log(event="started")
    if unusable:
        log(event="restarted", message=unusable)
    bench = Bench(device, trial.budget, clock, log, keeper, ranks)
    try:
        check_trained(trial, folder)
        desk = _set_up(trial, bench)
        known |= {"data": data_facts(trial.dataset, desk.data), "backbone": _backbone_facts(desk)}
        known |= adapt_trial(desk, folder) if trial.method.online else _work(desk, folder)
        return TrialRecord(status="ok", **known)
    except Exception as error:
        if is_outside(error) or ranks.lost(error):
            raise
        status, failure = classify(error)
        log(event="failed", status=status, message=failure.message)
        return TrialRecord(status=status, failure=failure, **known)


def facts(trial: Trial) -> TrialFacts:
    card = registry.methods().card(trial.method.name)
    deviations = [f"{key} = {value}" for key, value in trial.method.options.items()]
    for part in (*trial.method.strategies, *filter(None, (trial.method.online,))):
        deviations += [f"{part.name}: {key} = {value}" for key, value in part.options.items()]
    if trial.regime == "casewise" and trial.method.blind != "auto":
        deviations.append(f"blind = {trial.method.blind}")
    return TrialFacts(
        id=trial.id,
        suite=trial.suite,
        method=trial.method.name,
        title=trial.method.title,
        family=card.family,
        regime=trial.regime or "none",
        strategies=tuple(part.name for part in trial.method.strategies),
        online=trial.method.online.name if trial.method.online else None,
        dataset=trial.dataset.title,
        backbone=trial.backbone.title,
        seed=trial.seed,
        options=dict(trial.method.options),
        budget=trial.budget.model_dump(mode="json"),
        cases=tuple(case.name for case in trial.parsed_cases()),
        train_cases=tuple(case.name for case in trial.parsed_train_cases()),
        contents=trial.contents(),
        deviations=tuple(deviations),
    )


def make_method(trial: Trial, folder: Path, multi_label: bool, device: torch.device) -> tuple[Method, BackboneMeta]:
    """A fresh method on its own copy of the source model, as every training starts from."""
    net, meta = load_backbone(folder)
    net.recompute_blocks(trial.budget.checkpointing)
    net.compile_blocks(trial.budget.compile)
    optim = trial.budget.optim
    recipe = Recipe(
        train_head=trial.budget.train_head,
        multi_label=multi_label,
        label_smoothing=optim.label_smoothing,
        bce=optim.loss == "bce",
        head_lr_multiplier=optim.head_lr_multiplier,
    )
    rng = torch.Generator().manual_seed(seed_from("build", trial.seed))
    method: Method = registry.methods().load(trial.method.name)(net.to(device), recipe, trial.method.options, rng)
    return method, meta


def _set_up(trial: Trial, bench: Bench) -> Desk:
    torch.manual_seed(seed_from("torch", trial.seed))  # dropout inside library layers draws from the global generator
    cap_memory(bench.device, trial.budget.memory_cap_gib)
    data = with_frozen(reopen_data(trial.dataset, trial.store_folder), trial.frozen, trial.parsed_cases())
    method, meta = make_method(trial, trial.backbone_folder, data.multi_label, bench.device)
    if not bench.ranks.first:
        torch.manual_seed(seed_from("torch", trial.seed, bench.ranks.rank))  # each drops out other units
    bench.keeper.meters["peaks"] = peaks = PeakMeter(bench.device, bench.ranks)
    return Desk(trial, data, meta, method, bench, peaks)


def _backbone_facts(desk: Desk) -> BackboneFacts:
    return BackboneFacts(
        name=desk.trial.backbone.name,
        digest=desk.meta.sha256,
        parameters=_parameters(desk.meta),
        fusion=desk.meta.config.fusion,
    )


def _parameters(meta: BackboneMeta) -> int:
    with torch.device("meta"):
        return count_parameters(CAVMAEFT(meta.config))


def _work(desk: Desk, folder: Path) -> dict[str, Any]:
    trial, bench = desk.trial, desk.bench
    tracks = desk.tracks()
    _refuse_unserved(desk)
    fitted, tuning, counts, energy, lr = _train(desk)
    train_memory = desk.peaks.read()
    desk.peaks.reset()
    with bench.clock.phase("evaluate"):
        feeds = feeds_for(desk.data, "test", trial.parsed_cases(), trial.budget.eval_batch)
        found = predict_cases(desk.method, fitted, feeds, tracks, bench)
        scores = score_all(found, desk.data.multi_label)
    eval_memory = desk.peaks.read()
    with bench.clock.phase("log"):
        if bench.ranks.first:
            check_own(folder)
            save_predictions(found, folder)
            save_states(fitted, folder)
    desk.method.load(next(iter(fitted.states.values())))  # what predicted last may be a combination of states
    predicted = sum(len(entry.ids) for entry in found if isinstance(entry, Predictions))
    inputs = CostInputs(fitted, counts, train_memory, eval_memory, energy, predicted)
    return {"lr": lr, "tuning": tuning, "scores": scores, "costs": collect_costs(desk.method, desk.data, inputs, bench)}


def _refuse_unserved(desk: Desk) -> None:
    """Settings that contradict the data or each other."""
    if desk.data.multi_label and desk.trial.budget.optim.loss == "cross-entropy":
        raise RefusedError("budget.optim.loss: cross-entropy cannot serve data with several labels; use auto or bce")
    fusion, batch = desk.meta.config.fusion, desk.trial.budget
    trains = desk.method.card.trains  # else the row has one id, and one result, for all that is asked below
    if trains and fusion == "as-published" and (batch.micro_batch not in (None, batch.batch_size) or batch.devices > 1):
        why = "attends over the batch, so micro-batches and several devices would change the result"
        raise RefusedError(f"fusion: as-published {why}; leave budget.micro_batch and budget.devices out")


def _train(desk: Desk) -> tuple[Fitted, tuple[TuningTrial, ...], StepCounts | None, float | None, float | None]:
    """Tune and train; a method that does not train keeps its start state."""
    trial, bench = desk.trial, desk.bench
    desk.peaks.reset()
    if not desk.method.card.trains:
        return Fitted({SINGLE: desk.method.state()}, Ledger()), (), None, None, None
    if not desk.method.trainable():
        raise RefusedError(f"{trial.method.name} trains the head only, which budget.train_head: false keeps frozen")
    strategies = desk.strategies()
    counts = count_step(Regimen(desk.method, strategies), desk.data, desk.train_cases(), bench)
    micro_batch = fit_micro_batch(counts, bench)
    samples = _samples(trial, desk.data)
    job = Job(desk.train_cases(), desk.casewise, 0.0, samples, trial.seed, micro_batch, strategies=strategies)
    if desk.casewise:
        job = replace(job, blind=trial.method.blind, source=_router_source(trial, bench))
    lr, tuning = tune(desk.method, desk.data, job, trial, bench)
    desk.peaks.reset()
    bench.keeper.meters["energy"] = energy = EnergyMeter(bench.device, bench.ranks)
    fitted = fit(desk.method, desk.data, replace(job, lr=lr), bench)
    return fitted, tuning, counts, energy.read(), lr


def _router_source(trial: Trial, bench: Bench) -> CAVMAEFT | None:
    """The plain source model that a router looks through, a copy of its own."""
    return load_backbone(trial.backbone_folder)[0].to(bench.device) if trial.method.blind == "router" else None


def _samples(trial: Trial, data: TrialData) -> int:
    return trial.budget.samples or round(trial.budget.epochs * len(data.splits.train))
