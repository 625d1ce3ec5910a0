"""Whether records are trials of the suites beside them: every fact of a trial, and its id, are worked out again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmbench.config import Budget, Suite
from mmbench.errors import MMBenchError
from mmbench.layout import SUITE
from mmbench.records import TrialRecord
from mmbench.run import facts
from mmbench.submission_files import Finding, Submission, Submitted
from mmbench.trials import Digests, Row, Trial, content_id, make_trial, rows, trial_content

Key = tuple[str, str, str, str, int]
"""Title, regime, data set, backbone, seed."""
Place = tuple[str, str]
"""Data set and backbone, as records call them."""

NOWHERE: Mapping[str, Path] = {"backbone": Path(), "store": Path()}
FEW = 3
OWN_CHECK = ("id", "suite", "budget", "contents", "cases", "train_cases")
"""Facts that are not compared as they stand: renaming a suite keeps its trials, the others have rules of their own."""


@dataclass(frozen=True)
class Listed:
    """A trial that a suite asks for."""

    file: str
    suite: Suite
    row: Row

    @property
    def key(self) -> Key:
        row = self.row
        return (row.method.title, row.regime or "none", row.dataset.title, row.backbone.title, row.seed)


def suite_findings(found: Submission) -> Iterator[Finding]:
    """Records that are trials of no suite here, or that say otherwise than it; and trials that are not here."""
    if not found.suites:
        if not any(finding.check == "suite" for finding in found.findings):
            yield Finding("serious", "suite", SUITE, "is not there; results are read as trials of a suite")
        return
    listed: dict[Key, list[Listed]] = {}
    for file, suite in found.suites:
        try:
            for row in rows(suite):
                entry = Listed(file, suite, row)
                listed.setdefault(entry.key, []).append(entry)
        except MMBenchError as error:
            yield Finding("serious", "suite", file, f"{error}; give code from outside with --plugin")
            return
    digests = _digests(found.records)
    for item in found.records:
        yield from _record_findings(item, listed, digests)
    yield from _absent(found, listed)


def _digests(records: Sequence[Submitted]) -> dict[Place, Digests]:
    """Data and source model that most records of a place were made with; failed trials may name none."""
    counts: dict[Place, Counter[Digests]] = {}
    for item in records:
        trial, data, backbone = item.record.trial, item.record.data, item.record.backbone
        if data is not None and backbone is not None:
            counts.setdefault((trial.dataset, trial.backbone), Counter())[Digests(data.digest, backbone.digest)] += 1
    return {place: count.most_common(1)[0][0] for place, count in counts.items()}


def _key(record: TrialRecord) -> Key:
    trial = record.trial
    return (trial.title, trial.regime, trial.dataset, trial.backbone, trial.seed)


def _record_findings(
    item: Submitted, listed: Mapping[Key, Sequence[Listed]], digests: Mapping[Place, Digests]
) -> Iterator[Finding]:
    record = item.record
    offers = listed.get(_key(record), ())
    if not offers:
        yield Finding("serious", "suite", item.place, _why_not_listed(record, listed))
        return
    own = digests.get((record.trial.dataset, record.trial.backbone), Digests("", ""))
    if record.data is not None and record.backbone is not None:
        own = Digests(record.data.digest, record.backbone.digest)
    trials = [(entry, _expected(entry, own, record)) for entry in offers]
    told = [(entry, trial, [*_differences(record, trial, _deciding(entry, trial, own))]) for entry, trial in trials]
    entry, trial, differences = min(told, key=lambda found: len(found[2]))
    yield from (Finding("serious", "suite", item.place, f"{text} ({entry.file})") for text in differences)
    if own.data and not differences:
        yield from _id_findings(item, trial, entry, own)


def _expected(entry: Listed, digests: Digests, record: TrialRecord) -> Trial:
    """The trial that the suite asks for, on the record's data; an online one starts from the base it names."""
    trial = make_trial(entry.row, entry.suite, digests, NOWHERE)
    return trial.model_copy(update={"base": record.online.base}) if record.online and trial.base else trial


def _why_not_listed(record: TrialRecord, listed: Mapping[Key, Sequence[Listed]]) -> str:
    """The first fact that no trial of the suites shares, or that they never combine."""
    names = ("method", "regime", "data set", "backbone", "seed")
    for place, name in enumerate(names):
        known = dict.fromkeys(str(key[place]) for key in listed)
        mine = str(_key(record)[place])
        if mine not in known:
            return f"the suite has no {name} {mine[:80]}; it has {', '.join([*known][:8])}"
    return f"the suite does not combine {', '.join(str(part)[:80] for part in _key(record))}"


def _deciding(entry: Listed, trial: Trial, digests: Digests) -> list[str]:
    """Keys of the budget that matter to the trial; a row that does not train spends little of it."""
    return [*(Budget.model_fields if entry.row.card.trains else trial_content(trial, entry.row, digests)["budget"])]


def _differences(record: TrialRecord, trial: Trial, deciding: Sequence[str]) -> Iterator[str]:
    """Where a record says otherwise than the suite; of the budget, in the keys that decide."""
    mine, theirs = (found.model_dump(mode="json") for found in (record.trial, facts(trial)))
    for name in theirs:
        if name not in OWN_CHECK and mine[name] != theirs[name]:
            yield f"its {name} {_short(mine[name])} is not the suite's {_short(theirs[name])}"
    for key in deciding:  # one that is off says as little as one that an older record lacks
        here, there = (side["budget"].get(key) or None for side in (mine, theirs))
        if here != there:
            yield f"its budget has {key} {_short(here)}, the suite {_short(there)}"
    if mine["cases"] != theirs["cases"]:
        yield f"its cases {_short(mine['cases'])} are not the suite's {_short(theirs['cases'])}"
    yield from _content_differences(record, mine["contents"], json.loads(json.dumps(theirs["contents"])))


def _content_differences(record: TrialRecord, mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    """What names stand for; records of the first versions write little of it out."""
    for name, content in theirs.items():
        unused = name == "train_cases" and record.trial.regime in ("clean", "none")  # whatever a suite lists
        if name in mine and not unused and _plain(name, mine[name]) != _plain(name, content):
            yield f"its {name} are written out otherwise than the suite has them"
    scored = {score.stream for score in record.scores if score.stream}
    if record.status == "ok" and scored != set(theirs.get("streams") or ()):
        yield f"it was scored on the streams {', '.join(sorted(scored)) or 'none'}, not on the suite's"


def _plain(name: str, content: Any) -> Any:
    return sorted(map(str, content)) if name == "tracks" and isinstance(content, list) else content


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _id_findings(item: Submitted, trial: Trial, entry: Listed, digests: Digests) -> Iterator[Finding]:
    """An id is the digest of its trial's content, so an edited record does not fit its own name."""
    content = trial_content(trial, entry.row, digests)
    mine = item.record.trial.budget
    older = {**content, "budget": _within(content["budget"], mine)}
    if item.record.trial.id in (content_id(trial, content), content_id(trial, older)):
        return
    if set(mine) != set(Budget.model_validate(mine).model_dump()):
        yield Finding("note", "id", item.place, "made by another version of mmbench, so its id cannot be checked")
    elif trial.assets is not None:
        yield Finding("note", "id", item.place, "made with recordings that are not here, so its id cannot be checked")
    else:
        other = "its content gives another one: it was edited, or made with assets or code that the suite does not name"
        yield Finding("serious", "id", item.place, other)


def _within(now: Mapping[str, Any], then: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a budget that a record's own has: later versions know more, and leaving them off changes nothing."""
    return {
        key: _within(value, then[key]) if isinstance(value, Mapping) and isinstance(then[key], Mapping) else value
        for key, value in now.items()
        if key in then
    }


def _absent(found: Submission, listed: Mapping[Key, Sequence[Listed]]) -> Iterator[Finding]:
    """Trials of a suite that have no record: a board shows them as seeds not run."""
    present = {_key(item.record) for item in found.records}
    for file, _ in found.suites:
        wanted = [key for key, entries in listed.items() if any(entry.file == file for entry in entries)]
        absent = [key for key in wanted if key not in present]
        if absent:
            names = ", ".join(f"{title}+{regime} seed {seed}" for title, regime, _, _, seed in absent[:FEW])
            more = f" and {len(absent) - FEW} more" if len(absent) > FEW else ""
            message = f"{len(absent)} of its {len(wanted)} trials are not here: {names}{more}"
            yield Finding("note", "suite", file, message)
