"""Online adapters have tables of their own: before and after the update, every stream, how often they harm."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from report_records import CASES, board, cell, data, failed, field, record, row, save, scores

from mmbench.cases import parse_case
from mmbench.evaluate import Predictions
from mmbench.outputs import save_predictions
from mmbench.records import OnlineFacts, Score, TrialRecord, save_record
from mmbench.report.aggregate import load_board
from mmbench.report.board import write_board
from mmbench.report.model import NOT_MEASURED, Table
from mmbench.report.online import online_tables
from mmbench.report.tables import all_tables
from mmbench.streams import StreamPredictions

STREAMS = ("reset/64", "mixed/16")
FACTS = OnlineFacts(
    name="tent",
    options={},
    base="lora-qv-mixed-s0-0123",
    updated_parameters=2_000_000,
    forwards_per_sample=1,
    backwards_per_sample=1,
    source_samples=0,
    update_seconds_per_sample=0.004,
    used_share=1.0,
)


def adapted(
    seed: int = 0, plain: float = 0.6, before: float = 0.7, after: float = 0.75, mixed: float = 0.5, **changes: Any
) -> TrialRecord:
    """A trial of one adapter with the same value in every case, except the worst one 0.1 below under reset."""
    found: list[Score] = []
    for stream, update, value in (
        ("", "none", plain),
        ("reset/64", "before", before),
        ("reset/64", "after", after),
        ("mixed/16", "before", mixed),
        ("mixed/16", "after", mixed),
    ):
        by_case = {case: value - 0.1 * (case == CASES[3] and update == "before") for case in CASES}
        found += [replace(s, stream=stream, update=update) for s in scores(by_case)]
    facts = {
        "trial_method": "lora-qv",
        "trial_regime": "mixed",
        "trial_online": "tent",
        "scores": tuple(found),
        "online": FACTS,
        **changes,
    }
    return record("lora-qv+tent", seed, **facts)


def tables(*records: TrialRecord) -> tuple[Table, ...]:
    return online_tables(board(records), "synthetic-av", "cavmae-tiny")


def test_the_headline_is_the_score_before_the_update_of_the_first_stream() -> None:
    settings, cases = tables(adapted())
    assert settings.headline is not None
    assert settings.columns[settings.headline].label == "reset/64 before"
    assert cell(settings, "lora-qv+tent", "before", "mixed").mean == pytest.approx(67.5)
    assert cell(settings, "lora-qv+tent", "after", "mixed").mean == pytest.approx(75.0)
    assert cell(settings, "lora-qv+tent", "worst", "mixed").mean == pytest.approx(60.0)
    assert cell(settings, "lora-qv+tent", "mixed/16", "mixed").mean == pytest.approx(47.5)
    assert cell(cases, "lora-qv+tent", CASES[3], "mixed").mean == pytest.approx(60.0)


def test_collapse_is_the_share_of_streams_below_the_unadapted_model() -> None:
    settings, _ = tables(adapted())
    # Every case of mixed/16 is worse; under reset none is, the worst case being exactly equal.
    assert cell(settings, "lora-qv+tent", "worse", "mixed").mean == pytest.approx(50.0)
    better, _ = tables(adapted(mixed=0.9))
    assert cell(better, "lora-qv+tent", "worse", "mixed").mean == pytest.approx(0.0)


def test_the_largest_drop_says_how_bad_the_worst_stream_is() -> None:
    settings, _ = tables(adapted())
    # mixed/16: 0.5 before against 0.6 unadapted, in the last case 0.4 against 0.6
    assert cell(settings, "lora-qv+tent", "drop", "mixed").mean == pytest.approx(20.0)
    better, _ = tables(adapted(mixed=0.9))
    assert cell(better, "lora-qv+tent", "drop", "mixed").mean == pytest.approx(0.0)


def test_tracks_never_share_a_table() -> None:
    told = adapted()
    scored = tuple(replace(s, track="informed") for s in told.scores)
    facts = told.trial.model_copy(update={"method": "map-input", "title": "map-input+tent"})
    found = tables(adapted(), told.model_copy(update={"scores": scored, "trial": facts}))
    assert [table.title.rpartition(", ")[2] for table in found] == ["blind track"] * 2 + ["informed track"] * 2
    names = [{row.name for row in table.rows} for table in found]
    assert names[0] == {"lora-qv+tent"} and names[2] == {"map-input+tent"}


def test_rows_with_other_streams_or_options_are_not_averaged() -> None:
    other = adapted(1, trial_deviations=("tent: lr = 0.1",))
    settings, _ = tables(adapted(0), adapted(2), other)
    assert cell(settings, "lora-qv+tent", "before", "mixed").n == 2
    assert any("method or option" in note for note in settings.notes)


def test_an_older_record_tells_its_streams_by_its_scores() -> None:
    newer = adapted(1, trial_contents={**adapted(1).trial.contents, "streams": ["reset/64", "mixed/16"]})
    settings, _ = tables(adapted(0), newer)
    assert cell(settings, "lora-qv+tent", "before", "mixed").n == 2


def test_the_unadapted_state_stands_beside_its_adapters() -> None:
    settings, cases = tables(adapted(0), adapted(1, plain=0.7))
    assert cell(cases, "lora-qv (unadapted)", "mean", "mixed").mean == pytest.approx(65.0)
    assert cell(settings, "lora-qv+tent", "unadapted", "mixed").mean == pytest.approx(65.0)


def over_rank(rank: int, seed: int, plain: float) -> TrialRecord:
    said = (f"rank = {rank}", "tent: lr = 0.1")
    found = adapted(seed, plain=plain, trial_options={"rank": rank}, trial_deviations=said)
    facts = found.trial.model_copy(update={"title": f"r{rank}+tent", "id": f"r{rank}-{seed}"})
    return found.model_copy(update={"trial": facts})


def test_two_bases_of_one_method_are_two_rows() -> None:
    records = [over_rank(4, seed, 0.5) for seed in (0, 1)] + [over_rank(64, seed, 0.9) for seed in (0, 1, 2)]
    _, cases = tables(*records)
    small, large = (f"lora-qv, rank = {rank} (unadapted)" for rank in (4, 64))
    assert cell(cases, small, "mean", "mixed").mean == pytest.approx(50.0)
    assert cell(cases, large, "mean", "mixed").mean == pytest.approx(90.0)
    assert cell(cases, large, "mean", "mixed").n == 3
    assert (row(cases, small, "mixed").complete, row(cases, large, "mixed").complete) == (False, True)
    assert row(cases, small, "mixed").notes == ("2/3 seeds (1 not run)", "rank = 4")


def test_two_adapters_share_the_row_of_their_base() -> None:
    other = adapted(0, trial_deviations=("eata: lr = 1",), trial_online="eata")
    facts = other.trial.model_copy(update={"title": "lora-qv+eata"})
    _, cases = tables(adapted(0), other.model_copy(update={"trial": facts}))
    assert cell(cases, "lora-qv (unadapted)", "mean", "mixed").n == 1
    assert [r.name for r in cases.rows if "unadapted" in r.name] == ["lora-qv (unadapted)"]


def test_a_row_over_the_frozen_model_wants_every_seed() -> None:
    both = [adapted(seed, trial_regime="none") for seed in (0, 1)]
    settings, _ = tables(*both)
    assert row(settings, "lora-qv+tent", NOT_MEASURED).complete
    lone, _ = tables(both[0], adapted(0), adapted(1))
    assert "1/2 seeds (1 not run)" in row(lone, "lora-qv+tent", NOT_MEASURED).notes


def test_costs_of_an_update_are_told() -> None:
    settings, _ = tables(adapted())
    assert cell(settings, "lora-qv+tent", "updated", "mixed").mean == pytest.approx(2.0)
    assert cell(settings, "lora-qv+tent", "passes", "mixed").mean == pytest.approx(2.0)
    assert cell(settings, "lora-qv+tent", "milliseconds", "mixed").mean == pytest.approx(4.0)
    assert cell(settings, "lora-qv+tent", "used", "mixed").mean == pytest.approx(100.0)


def test_a_refused_adapter_keeps_its_row() -> None:
    refused = failed("source+tent", "refused", "its base trial ended as diverged", trial_online="tent")
    settings, cases = tables(adapted(), refused)
    assert row(settings, "source+tent").cells[0].word == "refused"
    assert row(cases, "source+tent").cells[0].word == "refused"


def test_offline_tables_never_hold_an_adapted_row() -> None:
    records = [*field(), adapted()]
    for table in all_tables(board(records)):
        if "online" not in table.slug:
            assert all("tent" not in r.name for r in table.rows)
    assert tables(*field()) == ()


def test_a_board_of_online_trials_alone_can_be_written(tmp_path: Path) -> None:
    written = write_board(save(tmp_path, [adapted(0), adapted(1)]))
    names = {path.name for path in written.files}
    assert "synthetic-av_cavmae-tiny_online_settings_blind.md" in names
    assert "synthetic-av_cavmae-tiny_online_reset-64_blind_cases.png" in names
    assert "unadapted" in (tmp_path / "README.md").read_text()


def test_the_first_stream_and_the_unadapted_state_have_second_scores(tmp_path: Path) -> None:
    """Two samples of each of rain, dog, cat, met under rain: unadapted it knows cats, adapted dogs too."""
    case, labels, ids = "read/rain@3", np.array([0, 0, 1, 1, 2, 2]), tuple("abcdef")

    def guess(*right: int) -> NDArray[np.float64]:
        return np.eye(3)[np.where(np.isin(labels, right), labels, (labels + 1) % 3)]

    order = [5, 0, 3, 1, 4, 2]  # a stream has an order of its own
    ordered = (case, 3, "blind", tuple(ids[i] for i in order))
    met = [StreamPredictions(*ordered, guess(1, 2)[order], labels[order], "", "reset/64", "before")]
    met += [StreamPredictions(*ordered, guess(0, 1, 2)[order], labels[order], "", "reset/64", "after")]
    values = (
        ("", "none", 1 / 3),
        ("reset/64", "before", 2 / 3),
        ("reset/64", "after", 1.0),
        ("mixed/16", "before", 0.5),
    )
    found = [
        Score(case=case, severity=3, track="blind", metric="accuracy", value=v, n=6, stream=s, update=u)  # type: ignore[arg-type]
        for s, u, v in values
    ]
    facts = {"trial_cases": (case,), "trial_contents": {"cases": [asdict(parse_case(case))]}, "scores": tuple(found)}
    trial = tmp_path / "trials" / "one"
    trial.mkdir(parents=True)
    save_predictions([Predictions(case, 3, "blind", ids, guess(2), labels, ""), *met], trial)
    save_record(adapted(**facts, data=data(classes=("heavy_rain", "dog", "cat"), multi_label=False)), trial)
    second = {(s.stream, s.update): (s.value, s.n) for s in load_board(tmp_path).records[0].scores if "-" in s.metric}
    assert second == {("", "none"): (0.5, 4), ("reset/64", "before"): (1.0, 4), ("reset/64", "after"): (1.0, 4)}
    _, cases = online_tables(load_board(tmp_path), "synthetic-av", "cavmae-tiny")
    assert cell(cases, "lora-qv+tent", f"{case}, without scenes", "mixed").mean == pytest.approx(100)
    assert cell(cases, "lora-qv+tent", case, "mixed").mean == pytest.approx(200 / 3)
    assert cell(cases, "lora-qv (unadapted)", f"{case}, without scenes", "mixed").mean == pytest.approx(50)
    assert cell(cases, "lora-qv+tent", "mean", "mixed").mean == pytest.approx(200 / 3)  # of first scores
    assert any("met the samples of the scenes" in note for note in cases.notes)
