"""A trial with an online adapter: the trained states of its base trial, adapted along every stream of the suite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mmbench import registry
from mmbench.cards import Track
from mmbench.cases import Case
from mmbench.costs import CostInputs, collect_costs
from mmbench.data.batch import Batch
from mmbench.desk import Desk
from mmbench.errors import ConfigError, RefusedError
from mmbench.evaluate import score_all
from mmbench.feed import TrainFeed, blank, seed_from
from mmbench.layout import STATES
from mmbench.ledger import Ledger
from mmbench.online import Online
from mmbench.outputs import check_own, load_states, save_predictions
from mmbench.records import RECORD, OnlineFacts, PeakMemory, is_done, load_record
from mmbench.streams import Deck, StreamResult, open_deck, run_stream, stream_scores
from mmbench.train import SINGLE, Fitted
from mmbench.trials import Trial


def check_base(trial: Trial, folder: Path) -> None:
    """Raises ConfigError if the trial that this one starts from has not run; nothing is recorded then."""
    if trial.base is not None and not is_done(folder.parent / trial.base):
        raise ConfigError(
            f"{trial.id} adapts what the trial {trial.base} trained, which has not been run in {folder.parent}; "
            "run the suite rather than this trial alone"
        )


def check_trained(trial: Trial, folder: Path) -> None:
    """Raises RefusedError if the base trial left nothing to adapt."""
    if trial.base is not None:
        status = load_record(folder.parent / trial.base / RECORD).status
        if status != "ok":
            raise RefusedError(f"its base trial {trial.base} ended as {status}, so there is no trained state to adapt")


def adapt_trial(desk: Desk, folder: Path) -> dict[str, Any]:
    """What the record of an online trial holds beside its facts; costs of training are its base's.

    `predictions.parquet` holds the unadapted predictions and those of the first stream; a suite may have many streams.
    """
    trial, bench = desk.trial, desk.bench
    track = _track(desk)
    fitted = _restore(desk, folder)
    with bench.clock.phase("evaluate"):
        deck = open_deck(desk.method, desk.data, trial.parsed_cases(), trial.seed, track, bench)
        desk.peaks.reset()  # from here on it is the adapter's memory
        adapter = make_adapter(desk, track)
        results = [_run_stream(adapter, deck, name, desk) for name in trial.streams]
        scores = score_all((*deck.unadapted, *deck.missed), desk.data.multi_label)
        scores += tuple(score for result in results for score in stream_scores(result.predictions))
    eval_memory = desk.peaks.read()
    with bench.clock.phase("log"):
        check_own(folder)
        save_predictions((*deck.unadapted, *results[0].predictions), folder)
    # No time per prediction: the evaluation's seconds hold the updates too, which OnlineFacts tells apart.
    inputs = CostInputs(fitted, None, PeakMemory(), eval_memory, None, predicted=0)
    costs = collect_costs(desk.method, desk.data, inputs, bench)
    return {"scores": scores, "costs": costs, "online": online_facts(trial, adapter, results)}


def _track(desk: Desk) -> Track:
    """The track that tells the method the least; raises RefusedError where no adapter can work."""
    if desk.data.multi_label:
        raise RefusedError(
            "online adapters minimise functions of a softmax over exclusive classes; this data has several labels a "
            "sample"
        )
    tracks = desk.tracks()
    if desk.casewise and tracks[0] != "blind":
        raise RefusedError(
            f"an online adapter is not told the case, so {desk.trial.title} needs the blind track; "
            f"the suite offers {', '.join(desk.trial.tracks)}"
        )
    return tracks[0]


def _restore(desk: Desk, folder: Path) -> Fitted:
    """Put the state that the base trial left into the method."""
    trial, method = desk.trial, desk.method
    base = folder.parent / str(trial.base)
    kept = method.card.trains or (base / STATES).is_file()
    states = load_states(base) if kept else {SINGLE: method.state()}
    state = states[SINGLE] if SINGLE in states else method.combine(tuple(states.values()))
    if state is None:
        raise RefusedError(
            f"{trial.method.name} was trained case by case and does not combine its states; an online adapter needs "
            "one state: choose another regime"
        )
    method.load(state)
    return Fitted({SINGLE: state}, Ledger())


def make_adapter(desk: Desk, track: Track) -> Online:
    """The trial's adapter over the trained method."""
    part = desk.trial.method.online
    assert part is not None  # only online trials come here
    kind: type[Online] = registry.onlines().load(part.name)
    rng = torch.Generator().manual_seed(seed_from("online", desk.trial.seed))
    return kind(desk.method, part.options, source_samples(desk, kind.card.source_samples, track), rng)


def source_samples(desk: Desk, count: int, track: Track) -> Batch | None:
    """The first `count` of a shuffled clean training split, without labels; fewer if the split is smaller."""
    if count == 0:
        return None
    feed = TrainFeed(desk.data, desk.trial.seed, (Case("complete"),))
    epoch, ids = next(feed.order(count, count))
    return blank(feed.load(epoch, ids).to(desk.bench.device), track)


def _run_stream(adapter: Online, deck: Deck, name: str, desk: Desk) -> StreamResult:
    result = run_stream(adapter, deck, name, desk.bench)
    usage = result.usage
    desk.bench.log(event="stream", stream=name, samples=usage.samples, used=usage.used, update_seconds=usage.seconds)
    return result


def online_facts(trial: Trial, adapter: Online, results: list[StreamResult]) -> OnlineFacts:
    card = adapter.card
    samples = sum(result.usage.samples for result in results)
    return OnlineFacts(
        name=card.name,
        options=dict(adapter.options),
        base=str(trial.base),
        updated_parameters=sum(p.numel() for p in adapter.updated().values()),
        forwards_per_sample=card.forwards,
        backwards_per_sample=card.backwards,
        source_samples=0 if adapter.source is None else len(adapter.source),
        update_seconds_per_sample=sum(result.usage.seconds for result in results) / samples,
        used_share=sum(result.usage.used for result in results) / samples,
    )
