"""Equal tuning for every method: as many learning rates, each with as many samples, scored on validation."""

from __future__ import annotations

import math
from dataclasses import replace

from mmbench.bench import Bench
from mmbench.errors import DivergedError
from mmbench.evaluate import feeds_for, headline, predict_cases, score_all, tracks_of
from mmbench.feed import TrialData
from mmbench.method import Method
from mmbench.records import TuningTrial
from mmbench.train import Job, fit
from mmbench.trials import Trial


def learning_rates(lr_range: tuple[float, float], trials: int) -> list[float]:
    """`trials` rates, evenly spaced on a log scale inside the range: the middle of each of as many stretches.

    The same places in the range are tried for every method and seed; a single trial is the middle of the range.
    """
    low, high = (math.log(bound) for bound in lr_range)
    return [math.exp(low + (high - low) * (i + 0.5) / trials) for i in range(trials)]


def tune(
    method: Method, data: TrialData, job: Job, trial: Trial, bench: Bench
) -> tuple[float, tuple[TuningTrial, ...]]:
    """The best learning rate on the validation split and the table of all tries; test data are never touched.

    A rate that diverges has no score. Raises DivergedError if all of them do. The method is left in its start state.
    """
    rates = learning_rates(method.card.lr_range, trial.budget.tuning_trials)
    if len(rates) == 1:
        return rates[0], ()
    start = method.state()
    samples = max(1, round(job.samples * trial.budget.tuning_share))
    table = [TuningTrial(**row) for row in bench.keeper.tried]
    with bench.clock.phase("tune", whole=True):
        for index, lr in list(enumerate(rates))[len(table) :]:
            attempt = replace(job, lr=lr, samples=samples, name=f"tune-{index}")
            table.append(TuningTrial(lr=lr, score=_try(method, data, attempt, trial, bench), samples=samples))
            bench.keeper.tried.append(table[-1].model_dump())
            method.load(start)
            bench.log(event="tuned", lr=lr, score=table[-1].score)
    scored = [entry for entry in table if entry.score is not None]
    if not scored:
        raise DivergedError(f"every learning rate of {', '.join(f'{lr:.2g}' for lr in rates)} diverged")
    # Of equal scores the smaller rate wins, as in VTAB: it is the one further from diverging.
    return max(scored, key=lambda entry: (entry.score, -entry.lr)).lr, tuple(table)


def _try(method: Method, data: TrialData, attempt: Job, trial: Trial, bench: Bench) -> float | None:
    """Mean validation score over the training cases, on the track that tells the most."""
    track = tracks_of(method, attempt.casewise, trial.tracks)[-1]
    feeds = feeds_for(data, "val", attempt.cases, trial.budget.eval_batch)
    try:
        fitted = fit(method, data, attempt, bench)
        found = predict_cases(method, fitted, feeds, (track,), bench)
    except DivergedError:
        return None
    return headline(score_all(found, data.multi_label), track)
