"""What a single record must say of itself to be believed: complete scores, costs that add up, a known environment."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime

from pydantic import ValidationError

from mmbench import registry
from mmbench.backbone.config import preset
from mmbench.cards import NOT_APPLICABLE, MethodCard
from mmbench.cases import parse_case, unmet
from mmbench.config import Budget
from mmbench.errors import MMBenchError
from mmbench.formula import evaluate, numbers
from mmbench.method_options import resolve_options
from mmbench.records import Costs, Score, TrialRecord
from mmbench.report.prediction_groups import Key, key_words, score_key
from mmbench.submission_files import Finding, Severity
from mmbench.suite_file import explain

Told = tuple[Severity, str]
Check = Callable[[TrialRecord], Iterator[Told]]

FLOAT_BYTES = 4
CLOCK_SLACK = 0.01
"""Share of the wall clock by which the phases may miss it; they partition it, so only rounding is left."""
LEAST_STEP_SHARE = 0.5
"""Least epoch time as a share of median step time x steps: the mean of steps lies above half of their median."""
PACKAGES = ("mmbench", "torch", "torchvision", "timm", "numpy")
DIGEST = re.compile(r"[0-9a-f]{64}")
SHARES = ("accuracy", "map", "ece")


def record_findings(record: TrialRecord, place: str) -> Iterator[Finding]:
    """Everything that is wrong or worth knowing about one record."""
    reason = malformed(record)
    if reason is not None:
        yield Finding("serious", "schema", place, reason)
        return
    for name, check in CHECKS.items():
        yield from (Finding(severity, name, place, message) for severity, message in check(record))


def malformed(record: TrialRecord) -> str | None:
    """What of the parts that a record holds as plain data is not what every reader takes it for."""
    try:
        budget = Budget.model_validate(record.trial.budget).model_dump(mode="json")
        cases, streams = ([*record.trial.contents.get(key, ())] for key in ("cases", "streams"))
        names = [parse_case(case).name for case in cases]
    except ValidationError as error:
        return f"its budget is none: {explain(error)[:300]}"
    except (TypeError, AttributeError, MMBenchError) as error:
        return f"its contents cannot be read: {str(error)[:300]}"
    if any(isinstance(value, str) != isinstance(budget.get(key), str) for key, value in record.trial.budget.items()):
        return "its budget holds text for numbers"
    if names and names != list(record.trial.cases):
        return "its cases are not those that it writes out"
    return None if all(isinstance(name, str) for name in streams) else "its streams are not names"


def trains(record: TrialRecord) -> bool:
    """Whether the trial itself trained something; an online trial adapts what another one trained."""
    return record.trial.regime != "none" and record.trial.online is None


def samples_wanted(record: TrialRecord) -> int | None:
    """Training samples that the budget gives; None where the record does not tell."""
    samples, epochs = record.trial.budget.get("samples"), record.trial.budget.get("epochs")
    if isinstance(samples, int):
        return samples
    return round(epochs * record.data.train) if record.data is not None and isinstance(epochs, (int, float)) else None


def _status(record: TrialRecord) -> Iterator[Told]:
    parts = {"data": record.data, "backbone": record.backbone, "costs": record.costs, "scores": record.scores or None}
    if record.status == "ok":
        absent = [name for name, part in parts.items() if part is None]
        if absent:
            yield "serious", f"it ended ok but has no {', '.join(absent)}"
        return
    told = record.failure.message if record.failure else "no reason given"
    if record.status == "crashed":
        yield "serious", f"crashed, which is no result: {told[:200]}; run it again with --retry crashed"
    else:
        yield "note", f"ended as {record.status}: {told[:200]}"
    if record.scores:
        yield "serious", f"it ended as {record.status} but has scores"


def _environment(record: TrialRecord) -> Iterator[Told]:
    found = record.environment
    if found.commit is None or found.dirty is None:
        yield "serious", "the commit is not known; run from a git checkout of mmbench"
    elif not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", found.commit):
        yield "serious", f"{found.commit[:80]} is no commit"
    if found.dirty:
        yield "serious", "the checkout had changes that are in no commit; commit them and run again"
    absent = [name for name in PACKAGES if not found.packages.get(name)]
    if absent:
        yield "serious", f"the versions of {', '.join(absent)} are not known"
    try:
        if datetime.fromisoformat(found.date).tzinfo is None:
            yield "serious", f"its date {found.date[:40]} has no time zone"
    except ValueError:
        yield "serious", f"its date {found.date[:40]} is not one"
    if found.plugins:
        yield "note", f"needs code from outside the repository: {', '.join(found.plugins)}"


def _scores(record: TrialRecord) -> Iterator[Told]:
    """Each score once, in range, on the whole test split, and each case on every track that was scored."""
    if record.status != "ok" or record.data is None:
        return
    twice = [key for key, count in Counter((*score_key(s), s.metric) for s in record.scores).items() if count > 1]
    if twice:
        yield "serious", f"{len(twice)} scores stand twice, as {twice[0][-1]} of {key_words(Key(*twice[0][:5]))}"
    for score in record.scores:
        yield from (
            ("serious", f"{score.metric} of {key_words(score_key(score))} {what}") for what in _odd(score, record)
        )
    main = "map" if record.data.multi_label else "accuracy"
    scored = {(s.track, s.stream, s.update): set[str]() for s in record.scores if s.metric == main}
    for score in record.scores:
        if score.metric == main:
            scored[score.track, score.stream, score.update].add(score.case)
    for (track, stream, _), cases in scored.items():
        absent = [case for case in record.trial.cases if case not in cases]
        if absent:
            yield "serious", f"no {main} on the {track} track {stream} for {len(absent)} cases: {', '.join(absent[:3])}"


def _odd(score: Score, record: TrialRecord) -> Iterator[str]:
    assert record.data is not None  # checked by the caller
    if score.case not in record.trial.cases:
        yield "is of a case that the trial did not run"
    if score.value is None:
        yield from _odd_reason(score, record)
        return
    most = 1.0 if score.metric.split("-")[0] in SHARES else math.inf
    if not (0.0 <= score.value <= most and math.isfinite(score.value)):
        yield f"cannot be {score.value}"
    if "-" in score.metric:  # on a part of the samples, by name
        return
    if score.n != record.data.test:
        yield f"stands on {score.n} samples; the test split has {record.data.test}"
    if not DIGEST.fullmatch(score.digest or ""):
        yield "has no digest of its evaluation set"


def _odd_reason(score: Score, record: TrialRecord) -> Iterator[str]:
    """A case counts for nobody once one record says that it does not apply, so that has to be true."""
    if not score.reason:
        yield "is absent without a reason"
    if not (score.reason or "").startswith(NOT_APPLICABLE):
        return
    written = [c for c in record.trial.contents.get("cases", ()) if isinstance(c, dict) and c.get("name") == score.case]
    try:
        applies = unmet(parse_case(written[0] if written else score.case), still_pictures=True) is None
    except MMBenchError:
        yield "is called not applicable, but its record does not say what the case is"
        return
    if applies:
        yield "is called not applicable; this case applies to any data"


def _budget(record: TrialRecord) -> Iterator[Told]:
    """Samples, tuning and learning rate as the budget has them."""
    wanted, costs = samples_wanted(record), record.costs
    if costs is None or wanted is None or record.status != "ok":
        return
    if not trains(record):
        if costs.samples_seen or costs.steps:
            yield "serious", f"does not train but saw {costs.samples_seen} samples in {costs.steps} steps"
        return
    batch = int(record.trial.budget.get("batch_size") or 1)
    # Extra forward passes and the parts of a budget are whole samples, so a few of a batch may be left over.
    if not wanted - batch <= costs.samples_seen <= wanted:
        yield "serious", f"saw {costs.samples_seen} training samples; its budget gives {wanted}"
    yield from _tuning(record, wanted)


def _tuning(record: TrialRecord, wanted: int) -> Iterator[Told]:
    count, share = record.trial.budget.get("tuning_trials", 1), record.trial.budget.get("tuning_share", 1.0)
    if len(record.tuning) != (count if count > 1 else 0):
        yield "serious", f"tried {len(record.tuning)} learning rates; its budget gives {count}"
    odd = [entry.samples for entry in record.tuning if entry.samples != max(1, round(wanted * share))]
    if odd:
        yield "serious", f"a tuning trial took {odd[0]} samples; its budget gives {max(1, round(wanted * share))}"
    scored = [entry for entry in record.tuning if entry.score is not None]
    best = max(scored, key=lambda entry: (entry.score, -entry.lr)).lr if scored else record.lr
    if record.lr is None or not math.isclose(record.lr, best or 0.0):
        yield "serious", f"trained with learning rate {record.lr}; the best of its tuning trials is {best}"


def _time(record: TrialRecord) -> Iterator[Told]:
    costs = record.costs
    if costs is None:
        return
    seconds = costs.seconds
    parts = {name: value for name, value in seconds.model_dump().items() if name != "wall"}
    if min(seconds.wall, *parts.values()) < 0 or not math.isfinite(seconds.wall):
        yield "serious", "a phase took less than no time"
    total = sum(parts.values())
    if abs(total - seconds.wall) > CLOCK_SLACK * seconds.wall + 0.01:
        yield "serious", f"its phases sum to {total:.2f} s, its wall clock is {seconds.wall:.2f} s"
    if seconds.evaluate <= 0 and record.status == "ok":
        yield "serious", "evaluation took no time"
    if not trains(record) or record.data is None:
        return
    if not costs.steps or costs.step_seconds_median is None or costs.epoch_seconds is None or seconds.train <= 0:
        yield "serious", "it trained, but steps or their time are not there"
        return
    trained = costs.epoch_seconds * costs.samples_seen / max(record.data.train, 1)
    least = LEAST_STEP_SHARE * costs.step_seconds_median * costs.steps
    if trained < least or costs.epoch_seconds <= 0:
        yield "serious", f"epochs of {costs.epoch_seconds:.3g} s are too short for {costs.steps} steps of its median"
    if costs.step_seconds_median * costs.steps / 2 > seconds.wall:
        yield "serious", f"half of {costs.steps} steps of its median take longer than its wall clock"


def _sizes(record: TrialRecord) -> Iterator[Told]:
    costs, backbone = record.costs, record.backbone
    if costs is None or backbone is None:
        return
    if costs.total_parameters < backbone.parameters or backbone.parameters <= 0:
        yield "serious", f"{costs.total_parameters} parameters in all, {backbone.parameters} of them the backbone's"
    if not 0 <= costs.head_parameters <= costs.trainable_parameters <= costs.total_parameters:
        yield "serious", f"{costs.trainable_parameters} of {costs.total_parameters} parameters train"
    weights = FLOAT_BYTES * backbone.parameters
    for phase, peak in (("training", costs.train_memory), ("evaluation", costs.eval_memory)):
        known = {name: value for name, value in peak.model_dump().items() if value is not None}
        small = [name for name, value in known.items() if value < weights]
        if small:
            yield "serious", f"{small[0]} of {phase} is {known[small[0]]}, less than the weights' {weights} bytes"
        if known.get("reserved_bytes", math.inf) < known.get("allocated_bytes", 0):
            yield "serious", f"{phase} reserved less than it allocated"
    if trains(record):
        yield from _trained_sizes(record, costs)
    elif costs.trainable_parameters:
        yield "serious", f"does not train but has {costs.trainable_parameters} trainable parameters"


def _trained_sizes(record: TrialRecord, costs: Costs) -> Iterator[Told]:
    trained = FLOAT_BYTES * costs.trainable_parameters
    if not costs.trainable_parameters:
        yield "serious", "it trained, but no parameter is trainable"
    if costs.stored_bytes < trained:
        yield "serious", f"stores {costs.stored_bytes} bytes for {costs.trainable_parameters} trained parameters"
    state = costs.training_state
    if state is None:
        yield "serious", "the training state was not counted"
    elif state.gradients_bytes < trained or state.parameters_bytes < FLOAT_BYTES * costs.total_parameters:
        yield "serious", "its training state is smaller than its parameters and gradients"
    declared = closed_form(record)
    found = costs.trainable_parameters - costs.head_parameters
    if declared is not None and declared != found:
        yield "serious", f"{found} parameters train beside the head; {record.trial.method} has {declared}"


def closed_form(record: TrialRecord) -> int | None:
    """What the method's card says trains beside the head at the record's sizes; None where it does not say."""
    known, backbone, data = registry.methods(), record.backbone, record.data
    if record.trial.method not in known.names() or backbone is None or data is None:
        return None
    card: MethodCard = known.card(record.trial.method)
    try:
        sizes = preset(backbone.name, fusion=backbone.fusion, n_classes=len(data.classes))
        names: Mapping[str, float] = {**sizes.symbols(), **numbers(resolve_options(card, record.trial.options))}
        return evaluate(card.parameters, names) if card.parameters else None
    except MMBenchError:  # sizes or options that this version does not know; the suite check names them
        return None


CHECKS: Mapping[str, Check] = {
    "status": _status,
    "environment": _environment,
    "scores": _scores,
    "budget": _budget,
    "time": _time,
    "sizes": _sizes,
}
