"""A second score where the scene of a corruption is also a class: without the samples of that class.

Rain added to a recording of rain changes nothing that its label does not say. The score is computed from the
predictions that a trial leaves beside its record, so that no trial has to run again, and kept in published records.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mmbench import metrics
from mmbench.files import RecordError
from mmbench.records import Score, TrialRecord
from mmbench.registry import corruptions
from mmbench.report.blocks import Block, Values
from mmbench.report.comparable import Selection
from mmbench.report.conditions import conditions_of, corruptions_of
from mmbench.report.prediction_groups import Group, Key, UnusableError, read_groups, score_key

VISIBLE = 0.0005  # half of the last decimal that tables of percent show
_LABEL_PARTS = re.compile(r"[,;/()]")


def second_metric(metric: str) -> str:
    """Name of the second score of a metric in records."""
    return f"{metric}-without-scenes"


def is_scene(label: str, words: Collection[str]) -> bool:
    """Whether a class is the scene of these words: its name, or a part of it, is one of them or ends with one.

    Parts stand between commas, slashes or brackets; case, underscores and hyphens do not count. `heavy_rain` and
    `storm (rain)` are `rain`, but neither `train` nor `rain stick` is: what a name means stands at its end.
    """
    parts = (" ".join(re.findall(r"[^\W_]+", part.lower())) for part in _LABEL_PARTS.split(label))
    return any(f" {part}".endswith(f" {word}") for part in parts for word in words)


def scene_classes(case: Mapping[str, Any], classes: Collection[str]) -> tuple[str, ...]:
    """Classes of a data set that are scenes of a case as a record writes it out: `{name, audio, vision, missing}`."""
    known = corruptions()
    names = [str(case[key]).partition("@")[0] for key in ("audio", "vision") if case.get(key)]
    words = [word for name in names if name in known.names() for word in known.card(name).scenes]
    return tuple(label for label in classes if is_scene(label, words))


def with_second_scores(record: TrialRecord, predictions: Path) -> TrialRecord:
    """The record with the second score of every case that has one; unchanged without such a case or predictions.

    Raises RecordError if the predictions cannot be read. Of an online trial they hold the unadapted scores and the
    first stream alone; a second score of that counts other samples, but the adapter met them all.
    """
    if record.data is None or not predictions.is_file():
        return record
    entries = record.trial.contents.get("cases", ())
    found = {entry["name"]: scene_classes(entry, record.data.classes) for entry in entries}
    scenes = {name: labels for name, labels in found.items() if labels}
    if not scenes:
        return record
    metric = "map" if record.data.multi_label else "accuracy"
    kept = tuple(score for score in record.scores if score.metric != second_metric(metric))
    return record.model_copy(update={"scores": (*kept, *_second_scores(record, predictions, scenes, metric))})


def _second_scores(
    record: TrialRecord, predictions: Path, scenes: Mapping[str, tuple[str, ...]], metric: str
) -> Iterator[Score]:
    assert record.data is not None
    wanted = {score_key(s) for s in record.scores if s.metric == metric and s.case in scenes and s.value is not None}
    found: dict[Key, tuple[float | None, int]] = {}
    try:
        for group in read_groups(predictions, record):
            if group.key in wanted:
                inside = [i for i, label in enumerate(record.data.classes) if label in scenes[group.key.case]]
                found[group.key] = _value(group, inside, record.data.multi_label)
    except UnusableError as error:
        raise RecordError(f"cannot read {predictions}: {error}; its second scores are left out") from None
    for score in record.scores:
        if score.metric == metric and score_key(score) in found:  # others are streams whose predictions are not kept
            value, count = found[score_key(score)]
            reason = f"without {', '.join(scenes[score.case])}"
            yield replace(score, metric=second_metric(metric), value=value, n=count, reason=reason, digest=None)


def with_second(blocks: Sequence[Block], scored: Sequence[tuple[Values, Values]]) -> tuple[Block, ...]:
    """Beside each column its second score, where it changes a row as shown.

    `scored` holds the first scores of every trial, and the same with second scores in their places.
    """
    placed: list[Block] = []
    for block in blocks:
        pairs = [(block.mean(first), block.mean(second)) for first, second in scored]
        differs = any(a is not None and b is not None and abs(a - b) >= VISIBLE for a, b in pairs)
        placed += [block, replace(block, second=True)] if differs else [block]
    return tuple(placed)


def _value(group: Group, scenes: list[int], multi_label: bool) -> tuple[float | None, int]:
    """Score and number of the samples whose class is no scene; of several labels none may be one."""
    logits, labels = group.logits, group.labels  # (N, C); (N, 1) or (N, C)
    hit = labels[:, scenes].any(axis=1) if multi_label else np.isin(labels[:, 0], scenes)  # (N,)
    logits, labels = logits[~hit], labels[~hit]
    if not len(logits):
        return None, 0
    if not multi_label:
        return metrics.accuracy(logits, labels[:, 0]), len(logits)
    per_class = metrics.average_precision(logits, labels)  # (C,)
    return float(np.mean(np.delete(per_class, scenes))), len(logits)


def second_notes(selection: Selection) -> tuple[str, ...]:
    """Which samples each second score leaves out; empty without one."""
    groups = corruptions_of(conditions_of(selection))
    label_of = {case: group.label for group in groups for case in group.cases}
    sizes = {s.case: s.n for r in selection.records for s in r.scores if s.metric == selection.metric}
    told: dict[str, list[str]] = {}
    for score in (s for record in selection.records for s in record.scores):
        if score.metric == second_metric(selection.metric):
            left = f"{score.n} of {sizes.get(score.case, score.n)} samples, {score.reason}"
            told.setdefault(left, []).append(label_of.get(score.case, score.case))
    parts = (f"{', '.join(dict.fromkeys(labels))}: {left}" for left, labels in told.items())
    listed = "; ".join(parts)
    return (f"Without scenes: samples whose class is a scene of the corruption are left out. {listed}.",) * bool(listed)
