"""Choosing tables, columns and rows: what is kept keeps its numbers, and a filter is read, never run."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_records import CASES, accuracy, efficiency, failed, field, of, record, save
from typer.testing import CliRunner

from mmbench.cases import RESERVED, parse_cases
from mmbench.cli import app
from mmbench.errors import ConfigError
from mmbench.report.aggregate import Board
from mmbench.report.model import Cell, Column, Facts, Row, Table
from mmbench.report.tables import all_tables
from mmbench.report.view import TEXTS, View, split_names
from mmbench.report.where import Kind, Value, parse

KINDS: dict[str, Kind] = {
    "mean": "number",
    "noise-to-audio": "number",
    "kept/missing": "number",
    "rain, without scenes": "number",
    "method": "text",
    "family": "text",
    "strategies": "texts",
}
VALUES: dict[str, Value] = {
    "mean": 70.0,
    "noise-to-audio": 55.5,
    "kept/missing": None,
    "rain, without scenes": 3.0,
    "method": "lora-qv+mixup",
    "family": "lora",
    "strategies": ("mixup", "sam"),
}


@pytest.mark.parametrize(
    ("source", "passes"),
    [
        ("mean >= 70", True),
        ("mean > 70", False),
        ("70 <= mean and mean<7.1e1", True),
        ("noise-to-audio < mean", True),
        ("`rain, without scenes` = 3", True),
        ("mean == 1 or mean == 2 or family == 'lora'", True),
        ("family == 'lora' or mean > 100 and mean < 0", True),  # and binds closer than or
        ("(family == 'lora' or mean > 100) and mean < 0", False),
        ("not family == 'prompt' and not (mean < 70)", True),
        ("family in ('prompt', \"lora\")", True),
        ("family not in ['prompt', 'lora']", False),
        ("mean in (1, 70)", True),
        ("method ~ 'LORA'", True),
        ("method ~ 'ora-qvx'", False),
        ("'mixup' in strategies", True),
        ("'mix' in strategies", False),
        ("strategies ~ 'mix'", True),
        ("strategies == 'mixup+sam'", True),
        ("'augmix' not in strategies", True),
        ("kept/missing > 0 or kept/missing <= 0", False),  # no value passes no comparison
        ("kept/missing != 5", False),
        ("not kept/missing > 0", True),
        ("mean > -1 and mean > .5", True),
    ],
)
def test_expressions_mean_what_they_say(source: str, passes: bool) -> None:
    assert parse(source, KINDS)(VALUES) is passes


@pytest.mark.parametrize(
    ("source", "position", "words"),
    [
        ("", 1, "found the end"),
        ("mean", 5, "a comparison expected"),
        ("mean > ", 8, "found the end"),
        ("mean > 70 70", 11, "the end, and, or expected"),
        ("(mean > 70", 11, "')'"),
        ("men > 70", 1, "did you mean: mean"),
        ("family == lora", 11, "text stands in quotes"),
        ("family > 'a'", 8, "compares numbers"),
        ("mean == 'a'", 6, "between a number and a text"),
        ("mean ~ 'a'", 6, "text within text"),
        ("family in 'lora'", 11, "a list in brackets"),
        ("family in ('a', 3)", 17, "a text expected"),
        ("family in ('a'", 15, "end of the list"),
        ("family == 'lora", 11, 'cannot read "\'"'),
        ("60 < mean < 80", 11, "the end, and, or expected"),
        ("__import__('os').system('x')", 1, "no column '__import__'"),
        ("mean.__class__ > 3", 1, "no column"),
        ("mean if mean else mean", 6, "a comparison expected"),
        ("method not ~ 'a'", 12, "a comparison expected"),
        ("(" * 51 + "mean > 1", 51, "more than 50"),
        ("not " * 100_000 + "mean > 1", 201, "more than 50"),
    ],
)
def test_an_error_names_the_position_and_what_is_allowed(source: str, position: int, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(source, KINDS)
    assert f"position {position}: " in str(caught.value)
    assert words in str(caught.value) and "allowed are numbers" in str(caught.value)


@given(st.text(alphabet="mean >=<~!()[]'\"`,.0123 andornotfamily\x00\\_-", max_size=60))
def test_whatever_is_typed_is_a_test_or_an_error_a_user_can_act_on(source: str) -> None:
    try:
        found = parse(source, KINDS)
    except ConfigError:
        return
    assert found(VALUES) in (True, False)


def _random_tree(rng: random.Random, depth: int) -> tuple[str, bool]:
    """An expression with brackets everywhere, and its truth by Python's own rules on constants."""
    if depth == 0:
        left, right = rng.choice(("mean", "noise-to-audio", "12")), rng.choice(("55.5", "70", "mean"))
        numbers = [float(VALUES.get(text) or text) for text in (left, right)]  # type: ignore[arg-type]
        sign = rng.choice(("<", "<=", ">", ">=", "==", "!="))
        a, b = numbers
        truth = {"<": a < b, "<=": a <= b, ">": a > b, ">=": a >= b, "==": a == b, "!=": a != b}[sign]
        return f"{left} {sign} {right}", truth
    kind = rng.choice(("and", "or", "not"))
    one, first = _random_tree(rng, depth - 1)
    if kind == "not":
        return f"not ({one})", not first
    two, second = _random_tree(rng, depth - 1)
    return f"({one}) {kind} ({two})", (first and second) if kind == "and" else (first or second)


def test_random_expressions_have_the_truth_of_their_parts() -> None:
    rng = random.Random(0)
    found = [_random_tree(rng, depth) for depth in (1, 2, 3, 4) for _ in range(100)]
    assert {truth for _, truth in found} == {True, False}
    for source, truth in found:
        assert parse(source, KINDS)(VALUES) is truth, source


def table(slug: str = "t") -> Table:
    columns = (Column("mean", "mean", "%", 1, "higher", headline=True), Column("worst", "worst case", "%", 1, "higher"))

    def made(name: str, mean: float | None, worst: float, **changes: object) -> Row:
        cells = (Cell(mean, 1.0, 3, word="crashed"), Cell(worst, 1.0, 3, best=name == "b"))
        return Row(name, "mixed", cells, facts=Facts(name, "lora"), **changes)  # type: ignore[arg-type]

    rows = (made("a", 80, 10), made("b", 70, 30), made("c", None, 20), made("paper", 90, 5, reported=True))
    return Table("T", slug, columns, rows, ("made by hand",))


def names(tables: tuple[Table, ...]) -> list[list[str]]:
    return [[row.name for row in table.rows] for table in tables]


def test_rows_are_sorted_with_what_has_no_value_last_and_papers_apart() -> None:
    assert names(View(sort="mean").apply((table(),))) == [["b", "a", "c", "paper"]]
    assert names(View(sort="-mean").apply((table(),))) == [["a", "b", "c", "paper"]]
    assert names(View(sort="-worst case").apply((table(),))) == [["b", "c", "a", "paper"]]
    assert names(View(sort="-method").apply((table(),))) == [["c", "b", "a", "paper"]]


def test_columns_follow_the_order_asked_for_and_numbers_stay() -> None:
    (shown,) = View(columns=("worst case", "mean", "worst")).apply((table(),))
    assert [column.key for column in shown.columns] == ["worst", "mean"]
    assert shown.rows[0].cells == tuple(reversed(table().rows[0].cells))


def test_a_filtered_table_says_how_much_it_shows_and_what_best_means() -> None:
    (shown,) = View(where="worst > 15").apply((table(),))
    assert names((shown,)) == [["b", "c"]]
    assert shown.notes[0] == "Shown: 2 of 4 rows, those with worst > 15."
    assert shown.notes[1] == "Best values are those of the whole table." and shown.notes[-1] == "made by hand"
    assert View(where="worst > 1000").apply((table(),)) == ()


def test_a_table_is_found_by_its_name_a_part_of_it_or_a_pattern() -> None:
    every = (table("x_blind"), table("x_blind_robustness"), table("x_avail"))
    for wanted, found in (("x_blind", 1), ("blind", 2), ("*_robustness", 1), ("x_*", 3)):
        assert len(View(tables=(wanted,)).apply(every)) == found
    with pytest.raises(ConfigError, match=r"no table 'y' here; the tables: x_blind, x_blind_robustness, x_avail"):
        View(tables=("y",)).apply(every)


def test_an_unknown_column_is_answered_with_those_there_are() -> None:
    for view in (View(columns=("men",)), View(sort="-men")):
        with pytest.raises(ConfigError, match=r"no column.* 'men'; there are: .*mean, worst"):
            view.apply((table(),))


def test_a_label_of_two_columns_is_answered_with_their_keys() -> None:
    columns = (Column("speed", "training", "samples/s"), Column("flop", "training", "GFLOP"), Column("x", "flop"))
    two = Table("T", "t", columns, (Row("a", "mixed", (Cell(1.0, n=1), Cell(2.0, n=1), Cell(3.0, n=1))),))
    for view in (View(columns=("training",)), View(sort="-training"), View(where="not training > 1")):
        with pytest.raises(
            ConfigError, match=r"'training' is the label of several columns of t; name one: speed, flop"
        ):
            view.apply((two,))
    # What is one column's key and another's label is the key, in every place.
    (shown,) = View(columns=("flop",), where="flop == 2", sort="flop").apply((two,))
    assert [(c.key, cell.mean) for c, cell in zip(shown.columns, shown.rows[0].cells, strict=True)] == [("flop", 2.0)]


def test_no_two_columns_of_a_cost_table_share_a_label() -> None:
    for cost in efficiency(field(1)):
        labels = [column.label for column in cost.columns]
        assert len(set(labels)) == len(labels)


def test_no_case_can_be_called_what_other_columns_are_called() -> None:
    others = {column.key for column in accuracy(field()).columns} - set(CASES)
    assert others | set(TEXTS) == RESERVED
    for name in RESERVED:
        with pytest.raises(ConfigError, match=f"case '{name}': tables have a column of this name"):
            parse_cases([{"name": name, "audio": "seed/audio-alone"}])
    with pytest.raises(ConfigError, match="case 'complete' is the undamaged one"):
        parse_cases([{"name": "complete", "missing": {"which": "audio"}}])
    assert [case.name for case in parse_cases([{"name": "complete"}])] == ["complete"]


def test_tables_without_the_wanted_column_are_left_out() -> None:
    other = Table("U", "u", (Column("epoch", "epoch", "s"),), (Row("a", "mixed", (Cell(1.0, n=1),)),))
    assert [t.slug for t in View(columns=("epoch",)).apply((table(), other))] == ["u"]
    assert names(View(sort="epoch").apply((table(), other)))[0] == ["a", "b", "c", "paper"]
    assert [t.slug for t in View(where="epoch > 0").apply((table(), other))] == ["u"]


def test_names_with_a_comma_stand_in_quotes() -> None:
    assert split_names('mean, "rain, without scenes"') == ("mean", "rain, without scenes")
    assert split_names("") == ()


def test_rows_of_real_records_are_filtered_by_what_they_are() -> None:
    mixup = record("lora-qv+mixup", 0, of(90, 60, 60, 60), trial_method="lora-qv", trial_strategies=("mixup",))
    records = (*field(1), mixup, failed("broken", "refused", "needs the case"))
    tables = all_tables(Board(Path("b"), "b", records, ()))

    def found(where: str) -> set[str]:
        return {row.name for table in View(where=where).apply(tables) for row in table.rows if not row.reported}

    assert found("'mixup' in strategies") == {"lora-qv+mixup"}
    assert found("registered == 'lora-qv'") == {"lora-qv", "lora-qv+mixup"}
    assert found("regime == 'casewise' and mean > 79") == {"lora-qv", "prompt-the-missing"}
    assert "broken" in found("source == 'measured' and not mean > 0")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return save(tmp_path / "results", field(1))


def run(*words: str) -> str:
    done = CliRunner().invoke(app, ["leaderboard", *words])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_verb_prints_the_choice_and_writes_nothing(results: Path) -> None:
    before = sorted(path.name for path in results.iterdir())
    chosen = ["--table", "cavmae-tiny_blind", "--columns", "mean", "--sort", "-mean", "--filter", "regime == 'mixed'"]
    lines = list(csv.DictReader(io.StringIO(run(str(results), *chosen, "--format", "csv"))))
    means = [float(line["mean"]) for line in lines if line["measure"] == "mean"]
    assert len(means) == 5 and means == sorted(means, reverse=True)
    assert {line["regime"] for line in lines} == {"mixed"}
    assert sorted(path.name for path in results.iterdir()) == before


def test_json_and_parquet_come_from_the_verb_as_one_document(results: Path, tmp_path: Path) -> None:
    wanted = (str(results), "--table", "informed", "--columns", "mean")
    content = json.loads(run(*wanted, "--format", "json"))
    assert (content["schema"], content["schema_version"]) == ("mmbench-tables", 1)
    done = CliRunner().invoke(app, ["leaderboard", *wanted, "--format", "parquet"])
    frame = pd.read_parquet(io.BytesIO(done.stdout_bytes))
    assert set(frame["measure"]) == {"mean"} and set(frame["table"]) == {t["slug"] for t in content["tables"]}


def test_the_verb_answers_a_wrong_filter_in_one_line(results: Path) -> None:
    done = CliRunner().invoke(app, ["leaderboard", str(results), "--filter", "mean >"])
    assert done.exit_code == 2
    assert done.stderr.startswith("error: filter 'mean >', position 7: ") and done.stderr.count("\n") == 1
