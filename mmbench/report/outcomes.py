"""What each trial predicted for each sample: the predicted class and how sure it was, without the logits.

Intervals, paired comparisons, confusion matrices and reliability diagrams need no more. A results folder holds
predictions beside each record; a published board holds one small file with the outcomes of all its trials.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mmbench.files import RecordError
from mmbench.layout import PREDICTIONS
from mmbench.records import TrialRecord
from mmbench.report.outcome_files import Coded, SampleLists, read_compact, read_predictions, write_compact
from mmbench.report.prediction_groups import Key, score_key

OUTCOMES = "outcomes.parquet"
_STEPS = 255  # of the confidence, one byte a sample
_ROUNDING = 1e-6

MULTI_LABEL = "several labels a sample: there is no one predicted class"
NO_PREDICTIONS = "no per-sample predictions are kept"


@dataclass(frozen=True, eq=False)
class Sampled:
    """A trial's predictions on one case, sample by sample; trials scored on the same samples share `samples`."""

    samples: tuple[str, ...]
    labels: npt.NDArray[np.int64]  # (S,)
    predicted: npt.NDArray[np.int64]  # (S,)
    confidence: npt.NDArray[np.float64]
    """(S,) probability of the predicted class, in steps of 1/255."""

    @cached_property
    def correct(self) -> npt.NDArray[np.bool_]:
        """(S,) whether the predicted class is the label."""
        return np.equal(self.predicted, self.labels)


class Outcomes:
    """The outcomes of a folder's trials; a file is read when one of its trials is asked for."""

    def __init__(self, predictions: Mapping[str, Path] | None = None, compact: Path | None = None) -> None:
        self._predictions = dict(predictions or {})
        self._compact = compact
        self._lists = SampleLists()
        self._known: dict[str, Mapping[Key, Coded]] = {}
        self._published: Mapping[str, Mapping[Key, Coded]] | None = None
        self._problems: dict[str, None] = {}

    @property
    def problems(self) -> tuple[str, ...]:
        """What could not be used of the files read so far."""
        return tuple(self._problems)

    def of(
        self, record: TrialRecord, case: str, severity: int, track: str, stream: str = "", update: str = "none"
    ) -> Sampled | None:
        """One case of a trial; None where nothing is kept (`why_not` tells the reason)."""
        coded = self.all_of(record).get(Key(case, severity, track, stream, update))
        if coded is None:
            return None
        predicted, confidence = coded.predicted.astype(np.int64), coded.confidence / _STEPS
        return Sampled(coded.list.samples, coded.list.labels, predicted, confidence)

    def all_of(self, record: TrialRecord) -> Mapping[Key, Coded]:
        """Everything kept of a trial; empty if nothing is, or if it contradicts the record's own scores."""
        known = self._known.get(record.trial.id)
        if known is None:
            known = self._known[record.trial.id] = self._checked(record)
        return known

    def why_not(self, record: TrialRecord) -> str | None:
        """Why a trial has no outcomes; None if it has some."""
        if record.data is not None and record.data.multi_label:
            return MULTI_LABEL
        return None if self.all_of(record) else NO_PREDICTIONS

    def _checked(self, record: TrialRecord) -> Mapping[Key, Coded]:
        if record.data is None or record.data.multi_label or record.status != "ok":
            return {}
        found = self._read(record)
        # Outcomes of another run of the same trial, or a record edited by hand, must not lend each other weight.
        for score in record.scores:
            coded = found.get(score_key(score))
            if coded is None or score.metric != "accuracy" or score.value is None:
                continue
            share = float(np.equal(coded.predicted, coded.list.labels).mean())
            if abs(share - score.value) > _ROUNDING:
                name = f"{record.trial.title}, seed {record.trial.seed}, trial {record.trial.id}"
                told = f"{score.value:.4f} in the record, {share:.4f} by its predictions"
                self._problems[f"{name}: accuracy of {score.case} is {told}; these predictions are not used"] = None
                return {}
        return found

    def _read(self, record: TrialRecord) -> Mapping[Key, Coded]:
        path = self._predictions.get(record.trial.id)
        try:
            if path is not None:
                return read_predictions(path, record, self._lists)
            if self._published is None:
                self._published = {}
                if self._compact is not None:
                    self._published = read_compact(self._compact, self._lists)
        except RecordError as error:
            self._problems[str(error)] = None
        return (self._published or {}).get(record.trial.id, {})


def load_outcomes(folder: Path, records: Iterable[TrialRecord]) -> Outcomes:
    """The outcomes of these records in a results folder or a board; no file is read before it is needed.

    A trial's folder is found by listing, never by a name that a record holds.
    """
    wanted = {record.trial.id for record in records}
    beside = {path.parent.name: path for path in sorted(folder.glob(f"trials/*/{PREDICTIONS}"))}
    compact = folder / OUTCOMES
    return Outcomes({k: v for k, v in beside.items() if k in wanted}, compact if compact.is_file() else None)


def write_outcomes(found: Mapping[str, Mapping[Key, Coded]], path: Path) -> bool:
    """The outcomes of trials by id in one file; False, and no file, if there are none. Equal input, equal bytes."""
    kept = {trial_id: found[trial_id] for trial_id in sorted(found) if found[trial_id]}
    if kept:
        write_compact(kept, path)
    return bool(kept)
