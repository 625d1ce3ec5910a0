"""What `submit check` does: everything that can be verified of a folder of results before it is offered to others."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import track

from mmbench.files import RecordError
from mmbench.records import TrialRecord, find_records, load_record
from mmbench.report.comparable import select
from mmbench.report.model import plain
from mmbench.report.prediction_groups import UnusableError
from mmbench.report.second import second_metric, with_second_scores
from mmbench.submission_checks import malformed, record_findings
from mmbench.submission_files import Finding, Submission, Submitted, read_submission
from mmbench.submission_scores import TOLERANCE, recompute
from mmbench.submission_suite import suite_findings

PLACES = 3
"""How many trials are named beside a finding that many share."""
LONGEST = 400
"""Characters of a finding that are printed; --json has all of them."""
MESSAGES = 10
"""How many findings of one check are printed."""
Split = tuple[str, str, str]
"""Data set, its digest and how it was cut: what decides the test samples."""


@dataclass(frozen=True)
class Outcome:
    """What was checked, and what was found."""

    trials: int
    scores: int
    """Scores that were computed again from predictions."""
    findings: tuple[Finding, ...]

    @property
    def serious(self) -> int:
        return sum(finding.severity == "serious" for finding in self.findings)


def check_submission(folder: Path, against: Path | None = None, watch: bool = False) -> Outcome:
    """Check a results folder, alone and beside a board.

    Nothing is written and no file is opened that is a link or is larger than results are. Raises RecordError if the
    folder or the board cannot be read.
    """
    found = read_submission(folder)
    findings = [*found.findings]
    if not found.records:
        findings.append(Finding("serious", "files", ".", "no finished trial; give a results folder: mmbench run SUITE"))
    sound = [item for item in found.records if malformed(item.record) is None]
    samples: dict[Split, dict[str, list[str]]] = {}
    scores = 0
    for item in track(found.records, "checking", console=Console(stderr=True), transient=True, disable=not watch):
        findings += record_findings(item.record, item.place)
        if item in sound:
            scores += _check_predictions(item, findings, samples)
    findings += suite_findings(Submission(folder, tuple(sound), found.suites, found.findings))
    findings += _different_samples(samples)
    records = [item.record for item in sound]
    findings += [Finding("serious", "together", ".", text) for text in _apart(records)]
    if against is not None:
        findings += _beside(records, against)
    return Outcome(len(found.records), scores, tuple(findings))


def _check_predictions(item: Submitted, findings: list[Finding], samples: dict[Split, dict[str, list[str]]]) -> int:
    """Compute a record's scores again; returns how many."""
    record = item.record
    if record.status != "ok" or record.data is None:
        return 0
    if item.predictions is None:
        message = "no predictions.parquet, so its scores cannot be computed again; give the results folder of the run"
        findings.append(Finding("serious", "predictions", item.place, message))
        return 0
    try:
        again = recompute(record, item.predictions)
        findings += [Finding("serious", "recomputed", item.place, text) for text in again.wrong]
        findings += [Finding("serious", "recomputed", item.place, text) for text in _second(record, item.predictions)]
    except (UnusableError, RecordError) as error:
        findings.append(Finding("serious", "predictions", item.place, str(error).replace(str(item.predictions), "it")))
        return 0
    if again.unseen:
        message = f"its predictions hold its first stream alone; not computed again: {', '.join(again.unseen)}"
        findings.append(Finding("note", "predictions", item.place, message))
    split = (record.trial.dataset, record.data.digest, json.dumps(record.trial.contents.get("split"), sort_keys=True))
    samples.setdefault(split, {}).setdefault(again.samples, []).append(item.place)
    return again.scores


def _second(record: TrialRecord, predictions: Path) -> Iterator[str]:
    """Second scores that a record of a board holds and its predictions do not give."""
    names = {second_metric(metric) for metric in ("accuracy", "map")}
    mine = {(s.case, s.severity, s.track, s.stream, s.update): s.value for s in record.scores if s.metric in names}
    if not mine:
        return
    again = with_second_scores(record, predictions)
    theirs = {(s.case, s.severity, s.track, s.stream, s.update): s.value for s in again.scores if s.metric in names}
    for key, value in mine.items():
        other = theirs.get(key)
        if value != other and (value is None or other is None or abs(value - other) > TOLERANCE):
            yield f"second score of {key[0]} ({key[2]}) is {value} in the record; its predictions give {other}"


def _different_samples(samples: dict[Split, dict[str, list[str]]]) -> Iterator[Finding]:
    """Trials that were scored on other samples, or other labels, than most trials on the same test split."""
    for (dataset, _, _), places in samples.items():
        usual = max(places, key=lambda digest: len(places[digest]))
        for digest, odd in places.items():
            if digest != usual:
                message = f"its test samples or labels of {dataset} differ from those of {len(places[usual])} trials"
                yield from (Finding("serious", "samples", place, message) for place in odd)


def _apart(records: Sequence[TrialRecord]) -> list[str]:
    """Why some records would be left out of the tables of the others."""
    places = sorted({(record.trial.dataset, record.trial.backbone) for record in records})
    chosen = (select(records, *place, online) for place in places for online in (False, True))
    return [problem for selection in chosen for problem in selection.problems]


def _beside(records: Sequence[TrialRecord], board: Path) -> Iterator[Finding]:
    """What keeps the records out of a board's tables; and trials that the board has with other scores."""
    known = {record.trial.id: record for record in map(load_record, find_records(board))}
    if not known:
        raise RecordError(f"no record in {board}; give a board or a results folder to --against")
    mine = {record.trial.id: record for record in records}
    for id in sorted(known.keys() & mine.keys()):
        changed = min(set(_values(mine[id])) ^ set(_values(known[id])), key=str, default=None)
        if changed is not None:
            message = f"the board has this trial with other scores, as {changed[4]} of {changed[0]}"
            yield Finding("note", "board", id, message)
    others = [record for id, record in known.items() if id not in mine]
    told = {*_apart(others), *_apart(records)}
    yield from (Finding("serious", "board", ".", text) for text in _apart([*others, *records]) if text not in told)


def _values(record: TrialRecord) -> Iterator[tuple[str, int, str, str, str, float | None]]:
    for score in record.scores:
        if "-" not in score.metric:  # second scores are made from predictions, which a board has not
            value = None if score.value is None else round(score.value, 6)
            yield (score.case, score.severity, f"{score.track} {score.stream}", score.update, score.metric, value)


def submit_check_command(folder: Path, against: Path | None, as_json: bool) -> bool:
    """Check and print; True if nothing serious was found."""
    console = Console(stderr=True)
    outcome = check_submission(folder, against, watch=console.is_terminal and not as_json)
    if as_json:
        for finding in outcome.findings:
            print(json.dumps(asdict(finding)))
        print(json.dumps({"trials": outcome.trials, "scores": outcome.scores, "serious": outcome.serious}))
    else:
        _print(outcome)
    return not outcome.serious


def _print(outcome: Outcome) -> None:
    """Serious findings first; what many trials share stands once, and of one check no more than a screen."""
    console = Console(highlight=False)
    shared: dict[tuple[str, str], dict[str, list[str]]] = {}
    for finding in sorted(outcome.findings, key=lambda f: f.severity, reverse=True):
        shared.setdefault((finding.severity, finding.check), {}).setdefault(finding.message, []).append(finding.place)
    for (severity, check), told in shared.items():
        style = "bold red" if severity == "serious" else "yellow"
        for message, places in [*told.items()][:MESSAGES]:
            text = plain(message)
            shown = f"{text[:LONGEST]} ..." if len(text) > LONGEST else text
            console.print(f"[{style}]{severity}[/] {check}: {escape(shown)}", soft_wrap=True)
            console.print(f"  {escape(_named(places))}", style="dim", soft_wrap=True)
        if len(told) > MESSAGES:
            console.print(f"  and {len(told) - MESSAGES} more on {check}; --json prints all")
    notes = len(outcome.findings) - outcome.serious
    console.print(f"{outcome.trials} trials, {outcome.scores} scores computed again")
    ready = "not ready" if outcome.serious else "ready to submit"
    console.print(f"serious findings: {outcome.serious}, notes: {notes}; {ready}")


def _named(places: Iterable[str]) -> str:
    """Where a finding was made, in few words."""
    counts = Counter(plain(place) for place in places)
    first = ", ".join(list(counts)[:PLACES])
    return f"{first} and {len(counts) - PLACES} more" if len(counts) > PLACES else first
