"""A case that means nothing on the data has a reason instead of a score, for every method alike, and enters no mean."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import pytest
from beds import COMPLETE, HeadOnly, asked, make, make_bench
from beds import memory_data as memory
from report_records import accuracy, cell, record, row, scores

from mmbench import registry
from mmbench.cards import NOT_APPLICABLE
from mmbench.cases import Case, parse_case, unmet
from mmbench.desk import Desk
from mmbench.errors import RefusedError
from mmbench.evaluate import Missed, Predictions, feeds_for, predict_cases, score_all
from mmbench.feed import TrialData
from mmbench.records import TrialRecord
from mmbench.report.online import Streams
from mmbench.streams import open_deck
from mmbench.train import SINGLE, Fitted, Ledger
from mmbench.trials import Trial

PLUGIN = """
from mmbench.registry import corruption

@corruption("film/late", family="film", modality="audio", stage="waveform", severities=(0,), reference="test",
            requires="moving-pictures")
def late(x, draws, severity):
    return 0 * x
"""
REASON = f"{NOT_APPLICABLE}still pictures"


@pytest.fixture(autouse=True, scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    path = tmp_path_factory.mktemp("plugin") / "film.py"
    path.write_text(PLUGIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_plugins", [])
        registry.use_plugins((path,))
        yield
    registry.corruptions.cache_clear()


def late() -> Case:
    return parse_case("film/late")


def stills() -> TrialData:
    return replace(memory(), still_pictures=True)


def test_only_still_pictures_rule_a_case_out() -> None:
    assert unmet(late(), still_pictures=True) == REASON
    assert unmet(late(), still_pictures=False) is None and unmet(COMPLETE, still_pictures=True) is None


def test_it_is_a_result_without_a_prediction() -> None:
    method, data = make(HeadOnly), stills()
    fitted = Fitted({SINGLE: method.state()}, Ledger())
    found = predict_cases(method, fitted, feeds_for(data, "test", (late(),), 4), ("blind",), make_bench())
    assert found == [Missed("film/late", 0, "blind", 10, REASON)] and asked(data) == []
    (score,) = score_all(found, multi_label=False)
    assert (score.value, score.reason) == (None, REASON)
    moving = predict_cases(method, fitted, feeds_for(memory(), "test", (late(),), 4), ("blind",), make_bench())
    assert isinstance(moving[0], Predictions)


def test_streams_leave_it_out_and_keep_the_reason() -> None:
    deck = open_deck(make(HeadOnly), stills(), (late(), COMPLETE), 0, "blind", make_bench())
    assert deck.cases == (COMPLETE,) and [entry.case for entry in deck.unadapted] == ["complete"]
    assert [(entry.case, entry.reason) for entry in deck.missed] == [("film/late", REASON)]
    with pytest.raises(RefusedError, match="film/late is not applicable"):
        open_deck(make(HeadOnly), stills(), (late(),), 0, "blind", make_bench())


class Told:
    """A trial, as far as its training cases go."""

    regime = "mixed"

    def __init__(self, *cases: Case) -> None:
        self.parsed_train_cases = lambda: cases


def desk(data: TrialData, *cases: Case) -> Desk:
    return Desk(cast(Trial, Told(*cases)), data, None, None, None, None)  # type: ignore[arg-type]


def test_training_leaves_it_out_unless_nothing_is_left() -> None:
    assert desk(stills(), late(), COMPLETE).train_cases() == (COMPLETE,)
    assert desk(memory(), late(), COMPLETE).train_cases() == (late(), COMPLETE)
    with pytest.raises(RefusedError, match="film/late is not applicable: still pictures; list others"):
        desk(stills(), late()).train_cases()


def scored(name: str, complete: float) -> TrialRecord:
    known, idle = scores({"complete": complete, "film/late": None})
    idle = replace(idle, reason=REASON, digest=None)
    return record(name, trial_cases=("complete", "film/late"), scores=(known, idle))


def test_tables_show_why_and_leave_it_out_of_the_mean() -> None:
    records = [scored("a", 0.9), scored("b", 0.7)]
    table = accuracy(records)
    assert cell(table, "a", "film/late").word == "n/a"
    assert cell(table, "a", "film/late").notes == (f"film/late: {REASON}",)
    assert cell(table, "a", "mean").mean == cell(table, "a", "worst").mean == pytest.approx(90)
    assert row(table, "a").complete and cell(table, "a", "mean").best
    assert Streams(records[0], "accuracy").mean("", "none") == 0.9
