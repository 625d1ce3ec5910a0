"""The scores of one trial by case, on a track or on one below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from mmbench.cards import NOT_APPLICABLE, Track
from mmbench.records import Score, TrialRecord
from mmbench.report.blocks import Block, mean_of
from mmbench.report.comparable import FALLBACKS, Same, Selection
from mmbench.report.second import second_metric


class CaseValue(NamedTuple):
    """A trial's score on one case; `reason` says why there is none."""

    value: float | None
    reason: str | None = None

    @property
    def applies(self) -> bool:
        """False where no method can have a value, so that the case is left out of every row's mean."""
        return self.reason is None or not self.reason.startswith(NOT_APPLICABLE)


def case_values(record: TrialRecord, track: Track, metric: str) -> tuple[Mapping[str, CaseValue], Track] | None:
    """Scores by case on a track, or on the most telling track below it; None if the method has none there.

    Several severities of a case are averaged.
    """
    return _case_values(Same(record), track, metric)


# Every table of a board asks again, and a record may hold hundreds of scores.
@lru_cache(maxsize=1 << 14)
def _case_values(same: Same[TrialRecord], track: Track, metric: str) -> tuple[Mapping[str, CaseValue], Track] | None:
    placed = _by_place(same)
    offered = next((offered for offered in FALLBACKS[track] if (offered, metric) in placed), None)
    if offered is None:
        return None
    return {case: _value(found) for case, found in placed[offered, metric].items()}, offered


@lru_cache(maxsize=1 << 12)
def _by_place(same: Same[TrialRecord]) -> Mapping[tuple[Track, str], Mapping[str, Sequence[Score]]]:
    """The scores of a record by (track, metric), then by case."""
    placed: dict[tuple[Track, str], dict[str, list[Score]]] = {}
    for score in same.thing.scores:
        placed.setdefault((score.track, score.metric), {}).setdefault(score.case, []).append(score)
    return placed


def _value(found: Sequence[Score]) -> CaseValue:
    numbers = [score.value for score in found if score.value is not None]
    if len(numbers) == len(found):
        return CaseValue(mean_of(numbers))
    return CaseValue(None, next(score.reason or "no reason recorded" for score in found if score.value is None))


def mean_score(record: TrialRecord, track: Track, metric: str) -> float | None:
    """Mean over all cases that apply to the data; None unless each has a value."""
    found = case_values(record, track, metric) if record.status == "ok" else None
    return None if found is None else over_cases([found[0].get(case, CaseValue(None)) for case in record.trial.cases])


def over_cases(values: Sequence[CaseValue], worst: bool = False) -> float | None:
    """Mean, or the worst, over the cases that apply; None unless each has a value."""
    numbers = [value.value for value in values if value.applies]
    known = [number for number in numbers if number is not None]
    if not known or len(known) < len(numbers):
        return None
    return min(known) if worst else mean_of(known)


def floats(values: Mapping[str, CaseValue]) -> dict[str, float | None]:
    """Without the reasons."""
    return {case: value.value for case, value in values.items()}


def block_mean(values: Mapping[str, CaseValue], block: Block) -> float | None:
    """The score of a column; the cases outside of it, of which there may be hundreds, are not looked at."""
    return block.mean({case: values[case].value for case in block.cases})


@dataclass(frozen=True)
class Scored:
    """Scores of a trial by case, and the same with every second score in place of its first."""

    values: Mapping[str, CaseValue]
    second: Mapping[str, CaseValue]
    track: Track

    def of(self, block: Block) -> Mapping[str, CaseValue]:
        return self.second if block.second else self.values


def scored_on(record: TrialRecord, selection: Selection, track: Track) -> Scored | None:
    """Every case of the selection, on the track or on one below it; None if the trial has no score there."""
    return _scored_on(Same(record), Same(selection), track)


@lru_cache(maxsize=1 << 13)
def _scored_on(same: Same[TrialRecord], within: Same[Selection], track: Track) -> Scored | None:
    record, selection = same.thing, within.thing
    found = case_values(record, track, selection.metric)
    if found is None:
        return None
    values = {case: found[0].get(case, CaseValue(None, "not run")) for case in selection.cases}
    second = case_values(record, found[1], second_metric(selection.metric))
    return Scored(values, {**values, **(second[0] if second else {})}, found[1])
