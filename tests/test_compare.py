"""`compare`: the answer, what it is worth, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from outcome_records import CASES, IDS, answers, predictions, put, results, trial_of
from report_records import BUDGET, board, failed, field, of, record, save, scores
from rich.console import Console
from scipy import stats
from typer.testing import CliRunner

from mmbench.cli import app
from mmbench.errors import ConfigError
from mmbench.report.aggregate import load_board
from mmbench.report.compare import compare
from mmbench.report.compare_text import as_json, for_terminal


def shown(found: object, width: int = 80) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(for_terminal(found))  # type: ignore[arg-type]
    return capture.get()


def test_a_better_row_is_found_with_where_and_how_sure(tmp_path: Path) -> None:
    made = results(tmp_path)
    (found,) = compare(load_board(tmp_path), "good", "poor")
    means = [np.mean([s.value for r in made if r.trial.title == t for s in r.scores]) for t in ("good", "poor")]
    assert found.winner == "good+clean"
    assert found.overall.value == pytest.approx(means[0] - means[1])
    assert found.overall.low is not None and 0 < found.overall.low < found.overall.value
    assert [entry.case for entry in found.cases] == list(CASES)
    assert all(e.adjusted is not None and e.p is not None and e.p <= e.adjusted < 0.05 for e in found.cases)
    assert (found.seeds, found.samples, found.holds, found.ahead) == ((0, 1, 2), len(IDS), "seeds and samples", 1.0)
    assert {c.what: c.ratio for c in found.costs}["trainable parameters"] == 1.0
    assert all(m.low is not None and m.high is not None and m.low <= m.value <= m.high for m in found.iqm)
    assert found.iqm[0].value > found.iqm[1].value
    (back,) = compare(load_board(tmp_path), "poor", "good+clean")
    assert back.winner == "good+clean" and back.overall.value == pytest.approx(-found.overall.value)


def test_one_seed_is_students_test_over_the_samples(tmp_path: Path) -> None:
    right = {title: answers(share, 3) for title, share in (("a", 0.8), ("b", 0.5))}
    for title, found in right.items():
        put(tmp_path, trial_of(title, found), predictions(found))
    (result,) = compare(load_board(tmp_path), "a", "b")
    differences = np.mean(right["a"], axis=0) - np.mean(right["b"], axis=0)  # (S,)
    assert result.holds == "samples"
    assert result.overall.p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, rel=1e-4)


def test_pairs_are_made_by_sample_id_whatever_the_order(tmp_path: Path) -> None:
    right = answers(0.5, 1)
    turned = np.random.default_rng(0).permutation(len(IDS))
    put(tmp_path, trial_of("a", right), predictions(right))
    put(tmp_path, trial_of("b", right), predictions(right).take(np.concatenate([turned, turned + len(IDS)])))
    (found,) = compare(load_board(tmp_path), "a", "b")
    assert (found.overall.value, found.overall.low, found.overall.high, found.overall.p) == (0, 0, 0, 1)
    assert found.winner is None


def test_without_predictions_the_seeds_alone_tell_the_variance() -> None:
    records = [record(t, s, of(*(v + s for v in values))) for t, values in _TWO.items() for s in range(3)]
    (found,) = compare(board(records), "a", "b")
    assert found.holds == "seeds" and found.samples is None
    # Two rows cannot moderate each other: each has the variance 1 of its seeds, in points, and two degrees of freedom.
    half = stats.t.ppf(0.975, 4) * np.sqrt(2 / 3) / 100
    assert found.overall.high == pytest.approx(found.overall.value + half, rel=1e-4)
    assert any("no per-sample predictions" in note for note in found.notes)
    (single,) = compare(board([r for r in records if r.trial.seed == 0]), "a", "b")
    assert single.overall.p is None and single.winner is None
    assert "Cannot be told" in shown(single)


def test_rows_without_a_seed_in_common_are_said_to_have_none() -> None:
    records = [record("a", s, of(60 + s, 60, 60, 60)) for s in range(3)]
    (found,) = compare(board([*records, *(record("b", s, of(50 + s, 60, 60, 60)) for s in (3, 4, 5))]), "a", "b")
    assert (found.seeds, found.winner, found.overall.p) == ((), None, None)
    text = " ".join(shown(found).split())
    assert "they have no seed in common" in text and "one seed" not in text
    assert "seeds none in common" in text


def test_a_score_missing_in_a_seed_that_is_not_compared_changes_nothing() -> None:
    gap = {**of(62, 60, 60, 60), "complete": None}
    records = [record("a", s, gap if s == 2 else of(60 + s, 60, 60, 60)) for s in range(3)]
    records += [record("b", s, of(60 + s, 60, 61, 60)) for s in (0, 1)]
    (found,) = compare(board(records), "a", "b")
    (whole,) = compare(board([r for r in records if r.trial.seed < 2]), "a", "b")
    assert found.winner is None and found.overall == whole.overall
    assert json.loads(as_json([found]))[0]["winner"] is None


_TWO = {"a": (80.0, 60.0, 50.0, 40.0), "b": (81.0, 50.0, 40.0, 30.0)}


def test_only_seeds_that_both_rows_have_are_compared() -> None:
    records = [record("a", s, of(*(50 + 10 * s,) * 4)) for s in range(3)]
    records += [record("b", s, of(*(40 + 10 * s,) * 4)) for s in (0, 1)] + [failed("b", "diverged", "NaN", 2)]
    (found,) = compare(board(records), "a", "b")
    assert found.seeds == (0, 1) and found.overall.first == pytest.approx(0.55)
    assert any("seed 2: diverged" in note for note in found.notes)


def test_a_case_without_a_score_is_left_out_and_said() -> None:
    gap = of(90, 70, 60, 40) | {"noise-to-both": None}
    (found,) = compare(board([record(t, s, gap) for t in "ab" for s in range(2)]), "a", "b")
    assert len(found.cases) == 3 and any("noise-to-both" in note for note in found.notes)
    json.loads(as_json([found]))


def test_names_are_those_of_the_tables() -> None:
    found = board(field())
    with pytest.raises(ConfigError, match=r"choose one: full-finetune\+clean, full-finetune\+mixed"):
        compare(found, "full-finetune", "source")
    with pytest.raises(ConfigError, match=r"no row 'sorce'.*did you mean: source.*rows: .*linear-probe\+mixed"):
        compare(found, "sorce", "source")
    with pytest.raises(ConfigError, match="one row"):
        compare(found, "source", "source")
    assert compare(found, "full-finetune+mixed", "linear-probe")[0].first == "full-finetune+mixed"


def test_what_must_not_be_compared_is_refused_by_name() -> None:
    usual = [record(name) for name in ("a", "b")]
    other = {
        r"budget is another: epochs 50\.0": record("odd", trial_budget={**BUDGET, "epochs": 50.0}),
        r"evaluation set of complete is another": record("odd", scores=scores(dict.fromkeys(CASES, 0.9), salt="x")),
        r"odd\+clean on cifar10-av, cavmae-tiny": record("odd", trial_dataset="cifar10-av"),
        r"odd\+clean on synthetic-av, cavmae-base": record("odd", trial_backbone="cavmae-base"),
        r"odd\+clean: informed; .*two tracks": record("odd", scores=scores(of(9, 9, 9, 9), "informed")),
        r"none finished": failed("odd", "crashed", "boom"),
    }
    for words, entry in other.items():
        with pytest.raises(ConfigError, match=words):
            compare(board([*usual, entry]), "odd", "a")


def test_the_track_asked_for_is_the_one_compared() -> None:
    found = board(field())
    names = "lora-qv+casewise", "prompt-zero+casewise"
    assert compare(found, *names)[0].track == "informed"
    assert compare(found, *names, "blind")[0].track == "blind"
    with pytest.raises(ConfigError, match="not both scored on track avail"):
        compare(found, *names, "avail")


def test_hostile_names_stay_text_and_lines_stay_short(tmp_path: Path) -> None:
    names = ("[red]x[/red]\x1b[31m", "y" * 120)
    save(tmp_path, [record(name, s, of(90 - 9 * i, 70, 60, 50 + s)) for i, name in enumerate(names) for s in range(3)])
    (found,) = compare(load_board(tmp_path), *names)
    text = shown(found)
    assert "[red]x[/red]" in text and "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_verb_prints_text_and_json_and_refuses_with_code_2(tmp_path: Path) -> None:
    results(tmp_path)
    run = CliRunner()
    said = run.invoke(app, ["compare", "good", "poor", str(tmp_path)])
    assert said.exit_code == 0 and "good+clean is better by" in said.stdout
    (found,) = json.loads(run.invoke(app, ["compare", "good", "poor", str(tmp_path), "--json"]).stdout)
    assert found["schema"] == 1 and found["winner"] == "good+clean"
    assert found["overall"]["first"] - found["overall"]["second"] == pytest.approx(found["difference"])
    assert run.invoke(app, ["compare", "good", "gone", str(tmp_path)]).exit_code == 2
    assert run.invoke(app, ["compare", "good", "poor", str(tmp_path), "--track", "deaf"]).exit_code == 2
