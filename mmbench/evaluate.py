"""From a trained method to scores: every case, every track it may enter, the same corrupted samples for all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mmbench import metrics
from mmbench.bench import Bench
from mmbench.cards import Track
from mmbench.cases import Case
from mmbench.data.batch import Batch
from mmbench.errors import DivergedError, DoesNotFitError
from mmbench.feed import EvalFeed, TrialData, blank
from mmbench.method import Method, State
from mmbench.pipeline import SetDigest
from mmbench.ranks import Ranks
from mmbench.records import Score
from mmbench.router import Router
from mmbench.steps import out_of_memory
from mmbench.train import SINGLE, Fitted


@dataclass(frozen=True)
class Predictions:
    """Logits of one split under one case on one track."""

    case: str
    severity: int
    track: Track
    ids: tuple[str, ...]
    logits: npt.NDArray[np.float32]  # (N, C)
    labels: npt.NDArray[Any]  # (N,) int64 or (N, C) float32
    digest: str


@dataclass(frozen=True)
class Missed:
    """A case and track for which there can be no prediction, and why."""

    case: str
    severity: int
    track: Track
    samples: int
    reason: str


def tracks_of(method: Method, casewise: bool, offered: Sequence[Track]) -> tuple[Track, ...]:
    """Tracks on which the method gives different answers, least knowledge first.

    Case-wise states answer with and without the case. Any other method is scored once, on the track that tells the
    least of those it may enter: what it is not told cannot change its prediction there.
    """
    order: tuple[Track, ...] = ("blind", "avail", "informed")
    allowed = [track for track in order if method.card.needs.allowed_on(track)]
    if casewise:
        return tuple(track for track in ("blind", "informed") if track in allowed and track in offered)
    enterable = any(track in offered for track in allowed)
    return (allowed[0],) if enterable else ()


def predict_cases(
    method: Method, fitted: Fitted, feeds: Sequence[EvalFeed], tracks: Sequence[Track], bench: Bench
) -> list[Predictions | Missed]:
    """Predictions for every case (one feed each) on every track; a case that does not apply to the data has none."""
    states = _Switcher(method, fitted)
    method.net.eval()
    method.extra.eval()
    found: list[Predictions | Missed] = []
    for feed in feeds:
        bench.check_deadline()
        reason = feed.data.unmet(feed.case)
        if reason is not None:
            found += [_missed(feed, track, reason) for track in tracks]
            continue
        known = [track for track in tracks if states.knows(feed.case, track)]
        reason = f"no state was trained for the case '{feed.case.name}'"
        found += [_missed(feed, track, reason) for track in tracks if track not in known]
        found += _predict_case(states, feed, known, bench)
    return found


def _missed(feed: EvalFeed, track: Track, reason: str) -> Missed:
    return Missed(feed.case.name, feed.case.severity() or 0, track, len(feed.ids()), reason)


def _predict_case(states: _Switcher, feed: EvalFeed, tracks: Sequence[Track], bench: Bench) -> list[Predictions]:
    """Each rank predicts some of the batches, whole ones, and in the end has the predictions of all."""
    ids, digest, ranks = feed.ids(), SetDigest(), bench.ranks
    place = {id: row for row, id in enumerate(ids)}
    rows: list[int] = []
    none = states.no_logits()
    # A rank without a batch has none of the right shape: multi-hot float32 labels, or int64 ones.
    labels = [none if feed.data.multi_label else torch.zeros(0, dtype=torch.int64)]
    logits = {track: [none] for track in tracks}
    for staged in feed.staged(digest, ranks.turns):
        batch = staged.to(bench.device)
        assert batch.label is not None  # stored sets are labelled
        rows += [place[id] for id in batch.ids]
        labels.append(batch.label.cpu())
        for track in tracks:
            logits[track].append(_predict(states, blank(batch, track), feed.case, track, bench))
    truth, whole = _joined(labels, rows, ids, ranks).numpy(), _whole_digest(digest, rows, ids, ranks)
    severity = feed.case.severity() or 0
    found = []
    for track in tracks:
        joined = _joined(logits[track], rows, ids, ranks)
        if not torch.isfinite(joined).all():
            raise DivergedError(f"predictions under {feed.case.name} are not finite; lower the range of learning rates")
        found.append(Predictions(feed.case.name, severity, track, ids, joined.numpy(), truth, whole))
    return found


def _joined(mine: Sequence[Tensor], rows: Sequence[int], ids: Sequence[str], ranks: Ranks) -> Tensor:
    """(n, ...) that this rank found for the samples in these rows, and what the others did, as (N, ...)."""
    found = torch.cat(list(mine))
    whole = found.new_zeros(len(ids), *found.shape[1:])
    whole[list(rows)] = found
    return ranks.total(whole)  # rows of other ranks are zeros


def _whole_digest(digest: SetDigest, rows: Sequence[int], ids: Sequence[str], ranks: Ranks) -> str:
    """Of the samples of all ranks."""
    if ranks.world == 1:
        return digest.hexdigest()
    contents = digest.contents([ids[row] for row in rows])  # 32 bytes each
    mine = torch.from_numpy(np.frombuffer(b"".join(contents), np.uint8).reshape(-1, 32).copy())
    whole = SetDigest()
    for id, content in zip(ids, _joined([mine], rows, ids, ranks).numpy(), strict=True):
        whole.adopt(id, content.tobytes())
    return whole.hexdigest()


def _predict(states: _Switcher, batch: Batch, case: Case, track: Track, bench: Bench) -> Tensor:
    try:
        with bench.autocast():
            return states.predict(batch, case, track).float().cpu()
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise DoesNotFitError(f"prediction of {len(batch)} samples does not fit; lower budget.eval_batch") from None


class _Switcher:
    """Puts the right state into the method before it predicts."""

    def __init__(self, method: Method, fitted: Fitted) -> None:
        self._method = method
        self._states = fitted.states
        self._router = fitted.router
        together = SINGLE not in fitted.states and fitted.blind in ("auto", "concat")
        self._combined = method.combine(tuple(fitted.states.values())) if together else None
        self._inside: str | None = None

    def no_logits(self) -> Tensor:
        """(0, C): those of no sample."""
        return torch.zeros(0, self._method.net.config.n_classes)

    def knows(self, case: Case, track: Track) -> bool:
        return SINGLE in self._states or track == "blind" or case.name in self._states

    def predict(self, batch: Batch, case: Case, track: Track) -> Tensor:
        """Logits (B, C)."""
        if SINGLE in self._states:
            return self._with(SINGLE, self._states[SINGLE], batch)
        if track != "blind":
            return self._with(case.name, self._states[case.name], batch)
        if self._router is not None:
            return self._routed(self._router, batch)
        if self._combined is not None:
            return self._with("(combined)", self._combined, batch)
        return self._average(batch)

    def _with(self, name: str, state: State, batch: Batch) -> Tensor:
        if self._inside != name:
            self._method.load(state)
            self._inside = name
        return self._method.predict(batch)

    def _routed(self, router: Router, batch: Batch) -> Tensor:
        """Every sample by the state of the case that the router finds in it."""
        picked = router.pick(batch)  # (B,)
        rows = {case: (picked == index).nonzero()[:, 0] for index, case in enumerate(router.cases)}
        parts = [self._with(case, self._states[case], batch.select(r.cpu())) for case, r in rows.items() if len(r)]
        order = torch.cat([r for r in rows.values() if len(r)]).argsort()
        return torch.cat(parts)[order]

    def _average(self, batch: Batch) -> Tensor:
        """Log of the mean probability over the case-wise states."""
        each = torch.stack(
            [self._with(name, state, batch).float() for name, state in self._states.items()]
        )  # (K, B, C)
        if self._method.recipe.multi_label:
            return torch.logit(each.sigmoid().mean(dim=0), eps=1e-6)
        return each.log_softmax(dim=-1).logsumexp(dim=0) - float(np.log(len(each)))


def score_all(found: Sequence[Predictions | Missed], multi_label: bool) -> tuple[Score, ...]:
    """Accuracy (mAP when multi-label), NLL and calibration error of each prediction set."""
    return tuple(score for entry in found for score in _scores(entry, multi_label))


def _scores(entry: Predictions | Missed, multi_label: bool) -> Iterator[Score]:
    place = Score(case=entry.case, severity=entry.severity, track=entry.track, metric="accuracy", value=None, n=0)
    if isinstance(entry, Missed):
        metric = "map" if multi_label else "accuracy"
        yield replace(place, metric=metric, n=entry.samples, reason=entry.reason)
        return
    for metric, value in _values(entry, multi_label).items():
        reason = None if value is not None else "not defined for these predictions"
        yield replace(place, metric=metric, value=value, n=len(entry.ids), reason=reason, digest=entry.digest)


def _values(entry: Predictions, multi_label: bool) -> dict[str, float | None]:
    found = (entry.logits, entry.labels)
    if multi_label:
        return {"map": float(np.mean(metrics.average_precision(*found))), "nll": metrics.nll(*found)}
    ece = metrics.expected_calibration_error(*found)
    return {"accuracy": metrics.accuracy(*found), "nll": metrics.nll(*found), "ece": ece}


def headline(scores: Sequence[Score], track: Track) -> float | None:
    """Mean of the main metric over the cases on one track; None if a case has no value."""
    values = [s.value for s in scores if s.track == track and s.metric in ("accuracy", "map")]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def feeds_for(data: TrialData, split: str, cases: Sequence[Case], batch_size: int) -> list[EvalFeed]:
    return [EvalFeed(data, split, case, batch_size) for case in cases]
