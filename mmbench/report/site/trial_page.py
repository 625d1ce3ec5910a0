"""What the page of one trial says: scores in a grid, costs with units, where it ran, what it got wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmbench.cards import NOT_APPLICABLE
from mmbench.files import RecordError
from mmbench.records import Costs, Score, TrialRecord
from mmbench.report.model import NOT_MEASURED, plain
from mmbench.report.notes import budget_words, device_words
from mmbench.report.site.drawing import Drawing, draw
from mmbench.report.site.model import Fact
from mmbench.report.site.render import megabytes, number
from mmbench.report.trial_files import Curve, Mistake, read_curves, read_mistakes

PERCENT = ("accuracy", "map", "ece")
"""Metrics that are shares; also where they begin with one of these."""


@dataclass(frozen=True)
class ScoreRow:
    case: str
    severity: int
    cells: tuple[str, ...]


@dataclass(frozen=True)
class ScoreGrid:
    """All scores of a trial, a row a case."""

    heads: tuple[str, ...]
    rows: tuple[ScoreRow, ...]


@dataclass(frozen=True)
class TrialView:
    record: TrialRecord
    scores: ScoreGrid
    costs: tuple[Fact, ...]
    setting: tuple[Fact, ...]
    environment: tuple[Fact, ...]
    spec: str
    curves: tuple[Curve, ...]
    drawing: Drawing | None
    mistakes: tuple[Mistake, ...]
    problem: str = ""
    """Why the predictions could not be read."""


def view_of(record: TrialRecord, folder: Path | None) -> TrialView:
    """Everything the page says; `folder` is the trial's own, None where only its record was published."""
    curves = read_curves(folder) if folder is not None else ()
    mistakes: tuple[Mistake, ...] = ()
    problem = ""
    try:
        mistakes = read_mistakes(record, folder) if folder is not None else ()
    except RecordError as error:
        problem = str(error)
    return TrialView(
        record=record,
        scores=score_grid(record.scores),
        costs=tuple(_costs(record.costs)) if record.costs is not None else (),
        setting=tuple(_setting(record)),
        environment=tuple(_environment(record)),
        spec=_spec(record),
        curves=curves,
        drawing=draw(curves),
        mistakes=mistakes,
        problem=problem,
    )


def score_grid(scores: tuple[Score, ...]) -> ScoreGrid:
    """Cases down, tracks, streams and metrics across, in the order in which the record has them."""
    cells: dict[tuple[str, int], dict[str, str]] = {}
    for score in scores:
        cells.setdefault((score.case, score.severity), {})[_head(score)] = _score_words(score)
    heads = tuple(dict.fromkeys(_head(score) for score in scores))
    rows = (
        ScoreRow(case, severity, tuple(found.get(head, NOT_MEASURED) for head in heads))
        for (case, severity), found in cells.items()
    )
    return ScoreGrid(heads, tuple(rows))


def _head(score: Score) -> str:
    stream = f", {score.stream} {score.update}" if score.stream else ""
    unit = " (%)" if score.metric.startswith(PERCENT) else ""
    return f"{score.metric}, {score.track}{stream}{unit}"


def _score_words(score: Score) -> str:
    if score.value is None:
        reason = plain(score.reason or "")
        return "n/a" if reason.startswith(NOT_APPLICABLE) else reason or NOT_MEASURED
    return f"{100 * score.value:.1f}" if score.metric.startswith(PERCENT) else f"{score.value:.3f}"


def _setting(record: TrialRecord) -> Iterator[Fact]:
    trial = record.trial
    yield Fact("suite", trial.suite)
    yield Fact("method", " + ".join(filter(None, (trial.method, *trial.strategies, trial.online))))
    yield Fact("options", _pairs(trial.options) or "the defaults")
    yield Fact("regime", "none: nothing trains" if trial.regime == "none" else trial.regime)
    yield Fact("budget", budget_words(trial.budget))
    if record.lr is not None:
        yield Fact("learning rate", number(record.lr))
    if record.data is not None:
        data = record.data
        sizes = f"{data.train}/{data.val}/{data.test} train/val/test"
        yield Fact("data", f"{data.name}, {len(data.classes)} classes, {sizes}, split {data.split}")
    if record.backbone is not None:
        backbone = record.backbone
        yield Fact("backbone", f"{backbone.name}, {number(backbone.parameters)} parameters, fusion {backbone.fusion}")
    if record.online is not None:
        passes = f"{record.online.forwards_per_sample:g} + {record.online.backwards_per_sample:g}"
        yield Fact("adapts", f"{number(record.online.updated_parameters)} values at test time")
        yield Fact("forward + backward per test sample", passes)
    for deviation in trial.deviations:
        yield Fact("deviates", deviation)


def _pairs(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in options.items())


def _costs(costs: Costs) -> Iterator[Fact]:
    share = 100 * costs.trainable_parameters / costs.total_parameters if costs.total_parameters else None
    yield Fact("trainable parameters", f"{number(costs.trainable_parameters)} ({number(share)} % of all)")
    yield Fact("of them in the head", number(costs.head_parameters))
    yield Fact("stored beside the backbone", megabytes(costs.stored_bytes))
    if costs.training_state is not None:
        state = costs.training_state
        yield Fact("training state", f"{megabytes(state.total_bytes)} at {state.batch} samples at once")
        for name in ("parameters", "gradients", "optimizer", "activations"):
            yield Fact(f"of it {name}", megabytes(getattr(state, f"{name}_bytes")))
    yield Fact("peak while training, allocated", megabytes(costs.train_memory.allocated_bytes))
    yield Fact("peak while training, process", megabytes(costs.train_memory.rss_bytes))
    yield Fact("one epoch", _seconds(costs.epoch_seconds))
    yield Fact("steps", f"{number(costs.steps)}, {number(costs.samples_seen)} samples seen")
    for name in ("setup", "data", "train", "tune", "evaluate", "wall"):
        yield Fact(f"seconds, {name}", _seconds(getattr(costs.seconds, name)))
    yield Fact("training, per sample", _gigaflops(costs.train_flops_per_sample))
    yield Fact("prediction, per sample", _gigaflops(costs.eval_flops_per_sample))
    yield Fact("energy", NOT_MEASURED if costs.energy_joules is None else f"{number(costs.energy_joules)} J")


def _seconds(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{number(value)} s"


def _gigaflops(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{number(value / 1e9)} GFLOP"


def _environment(record: TrialRecord) -> Iterator[Fact]:
    where = record.environment
    yield Fact("date", where.date)
    yield Fact("device", device_words(record))
    yield Fact("platform", f"{where.platform}, Python {where.python}")
    yield Fact("packages", ", ".join(f"{name} {version}" for name, version in where.packages.items()))
    dirty = " with uncommitted changes" if where.dirty else ""
    yield Fact("code", f"commit {where.commit}{dirty}" if where.commit else "an unknown commit")
    yield Fact("deterministic kernels", "yes" if where.deterministic else "no")
    for name, digest in where.plugins.items():
        yield Fact("plugin", f"{name}, SHA-256 {digest}")


def _spec(record: TrialRecord) -> str:
    """What was asked for, whole, a key a line: the part of the record that its id stands for."""
    facts = record.trial.model_dump(mode="json")
    return "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in facts.items())
