"""`submit check`: sound results pass, edited ones are caught, and hostile files do no harm."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from report_records import save
from results_bed import edit, edit_predictions, trial_folder, write_results
from typer.testing import CliRunner

from mmbench.cli import app
from mmbench.layout import PREDICTIONS
from mmbench.records import MARKER, RECORD, Score, TrialRecord, find_records, load_record
from mmbench.report.board import portable_suite
from mmbench.report.second import second_metric
from mmbench.submission import Outcome, check_submission
from mmbench.submission_files import Finding

Change = Callable[[TrialRecord], TrialRecord]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_results(tmp_path_factory.mktemp("results"))


@pytest.fixture
def results(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "results"))


def serious(outcome: Outcome, check: str) -> list[Finding]:
    return [found for found in outcome.findings if (found.severity, found.check) == ("serious", check)]


def only(outcome: Outcome, check: str) -> str:
    """The message of the one check that found something."""
    assert {found.check for found in outcome.findings if found.severity == "serious"} == {check}, outcome.findings
    return serious(outcome, check)[0].message


def test_sound_results_pass(sound: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in sound.rglob("*")}
    outcome = check_submission(sound)
    assert outcome == Outcome(trials=3, scores=3 * 4 * 3, findings=())
    assert {path: path.stat().st_mtime_ns for path in sound.rglob("*")} == before


def scored(metric: str, case: str, **changes: Any) -> Change:
    """Change one score of a record."""

    def hit(score: Score) -> bool:
        return (score.metric, score.case) == (metric, case)

    def change(record: TrialRecord) -> TrialRecord:
        scores = tuple(replace(s, **changes) if hit(s) else s for s in record.scores)
        return record.model_copy(update={"scores": scores})

    return change


@pytest.mark.parametrize("metric", ["accuracy", "nll", "ece"])
def test_a_score_edited_by_hand_is_caught(results: Path, metric: str) -> None:
    place = trial_folder(results)
    true = next(s.value for s in load_record(place / RECORD).scores if (s.metric, s.case) == (metric, "complete"))
    assert true is not None
    edit(place, scored(metric, "complete", value=true + 3e-6))
    message = only(check_submission(results), "recomputed")
    assert message.startswith(f"{metric} of complete (blind) is")
    edit(place, scored(metric, "complete", value=true + 1e-9))  # what another order of sums may give
    assert not check_submission(results).findings


def test_a_record_edited_without_its_marker_is_caught(results: Path) -> None:
    path = trial_folder(results) / RECORD
    path.write_text(path.read_text().replace("lora-qv", "lora-qv", 1) + "\n")
    assert "changed after the trial ended" in only(check_submission(results), "marker")


def trial(**changes: Any) -> Change:
    return lambda record: record.model_copy(update={"trial": record.trial.model_copy(update=changes)})


def costs(**changes: Any) -> Change:
    def change(record: TrialRecord) -> TrialRecord:
        assert record.costs is not None
        return record.model_copy(update={"costs": record.costs.model_copy(update=changes)})

    return change


def environment(**changes: Any) -> Change:
    return lambda record: record.model_copy(update={"environment": record.environment.model_copy(update=changes)})


def budget(key: str, value: Any) -> Change:
    return lambda record: trial(budget={**record.trial.budget, key: value})(record)


def cheaper(key: str, factor: float) -> Change:
    return lambda record: costs(**{key: type(getattr(record.costs, key))(getattr(record.costs, key) * factor)})(record)


def phase(name: str, value: float) -> Change:
    def change(record: TrialRecord) -> TrialRecord:
        assert record.costs is not None
        return costs(seconds=record.costs.seconds.model_copy(update={name: value}))(record)

    return change


def little_memory(record: TrialRecord) -> TrialRecord:
    assert record.costs is not None
    return costs(train_memory=record.costs.train_memory.model_copy(update={"rss_bytes": 1000}))(record)


def without_a_case(record: TrialRecord) -> TrialRecord:
    return record.model_copy(update={"scores": tuple(s for s in record.scores if s.case != "missing-audio")})


def hidden_case(record: TrialRecord) -> TrialRecord:
    """A bad case called not applicable, in a record that no longer says what the case is."""
    bare = trial(contents={key: value for key, value in record.trial.contents.items() if key != "cases"})(record)
    return scored("accuracy", "missing-audio", value=None, reason="not applicable: too hard")(bare)


def other_lr(record: TrialRecord) -> TrialRecord:
    return record.model_copy(update={"lr": 0.5})


EDITED = {
    "budget": (budget("epochs", 40.0), "suite", "its budget has epochs 40.0, the suite 4.0"),
    "batch": (budget("batch_size", 8), "suite", "its budget has batch_size 8"),
    "text budget": (budget("epochs", "4"), "schema", "text for numbers"),
    "no budget": (trial(budget={"epoch": 4}), "schema", "its budget is none"),
    "seed": (trial(seed=7), "suite", "the suite has no seed 7"),
    "options": (trial(options={"rank": 64}), "suite", 'its options {"rank": 64} is not'),
    "hidden option": (trial(deviations=("rank = 64",)), "suite", "its deviations"),
    "family": (trial(family="prompt"), "suite", 'its family "prompt" is not'),
    "title": (trial(title="better-lora"), "suite", "the suite has no method better-lora"),
    "steps": (costs(samples_seen=99999), "budget", "saw 99999 training samples; its budget gives 3560"),
    "tuning": (lambda r: r.model_copy(update={"tuning": r.tuning[:1]}), "budget", "tried 1 learning rates"),
    "lr": (other_lr, "budget", "trained with learning rate 0.5"),
    "parameters": (cheaper("trainable_parameters", 0.5), "sizes", "parameters train beside the head; lora-qv has"),
    "stored": (cheaper("stored_bytes", 0.01), "sizes", "stores"),
    "memory": (little_memory, "sizes", "rss_bytes of training is 1000, less than the weights'"),
    "epoch": (cheaper("epoch_seconds", 0.1), "time", "are too short for"),
    "wall": (phase("wall", 1.0), "time", "its wall clock is 1.00 s"),
    "no evaluation": (phase("evaluate", 0.0), "time", "its phases sum to"),
    "dirty": (environment(dirty=True), "environment", "changes that are in no commit"),
    "commit": (environment(commit=None), "environment", "the commit is not known"),
    "packages": (environment(packages={}), "environment", "the versions of mmbench, torch"),
    "date": (environment(date="yesterday"), "environment", "yesterday is not one"),
    "fewer samples": (scored("accuracy", "complete", n=10), "scores", "stands on 10 samples"),
    "no digest": (scored("nll", "complete", digest=None), "scores", "has no digest"),
    "no accuracy": (scored("accuracy", "complete", value=1.5), "scores", "cannot be 1.5"),
    "left out": (without_a_case, "scores", "for 1 cases: missing-audio"),
    "hidden": (scored("accuracy", "missing-audio", value=None), "scores", "absent without a reason"),
    "evaded": (
        scored("accuracy", "missing-audio", value=None, reason="not applicable: too hard"),
        "scores",
        "this case applies to any data",
    ),
    "evaded without the case": (hidden_case, "scores", "this case applies to any data"),
    "crash": (lambda r: r.model_copy(update={"status": "crashed"}), "status", "crashed, which is no result"),
}


@pytest.mark.parametrize("change, check, words", EDITED.values(), ids=EDITED.keys())
def test_what_cannot_be_true_is_caught(results: Path, change: Change, check: str, words: str) -> None:
    edit(trial_folder(results), change)
    found = serious(check_submission(results), check)
    assert any(words in finding.message for finding in found), found


def test_an_id_is_the_digest_of_its_content(results: Path) -> None:
    place = trial_folder(results)
    other = place.with_name(place.name[:-12] + "0123456789ab")
    place.rename(other)
    edit(other, lambda record: trial(id=other.name)(record))
    assert "its content gives another one" in only(check_submission(results), "id")


def test_a_record_in_the_place_of_another_is_caught(results: Path) -> None:
    shutil.copytree(trial_folder(results, seed=0), trial_folder(results).with_name("another"))
    assert "holds the record of another trial" in only(check_submission(results), "id")


def changed_list(table: pa.Table, name: str, change: Callable[[Any], None]) -> pa.Table:
    values = np.array(table.column(name).to_pylist())
    change(values)
    column = pa.array(values.tolist(), table.schema.field(name).type)
    return table.set_column(table.schema.get_field_index(name), name, column)


def _nan(values: Any) -> None:
    values[3, 2] = np.nan


def _class(values: Any) -> None:
    values[3, 0] = 99


def _relabel(values: Any) -> None:
    values[:, 0] = (values[:, 0] + 1) % 10


def _ids(table: pa.Table, ids: list[str]) -> pa.Table:
    return table.set_column(0, "sample", pa.array(ids * 4, pa.string()))


PREDICTED = {
    "NaN": (lambda t: changed_list(t, "logits", _nan), "recomputed", "are not all finite"),
    "class": (lambda t: changed_list(t, "label", _class), "recomputed", "outside the 10 classes"),
    "rows": (lambda t: t.slice(0, 1000), "predictions", "holds 1000 rows where the record's scores stand on 1800"),
    "twice": (lambda t: _ids(t, ["a"] * 450), "predictions", "holds a sample twice"),
    "mixed": (lambda t: t.take(np.random.default_rng(0).permutation(1800)), "predictions", "twice, with others"),
    "other case": (
        lambda t: t.set_column(1, "case", pc.replace_substring(t["case"], "complete", "easy")),
        "predictions",
        "has no score for: easy (blind)",
    ),
    "type": (lambda t: t.set_column(2, "severity", t["severity"].cast(pa.int64())), "predictions", "severity is int64"),
    "column": (lambda t: t.drop_columns(["label"]), "predictions", "its columns are"),
    "extra": (lambda t: t.append_column("more", t["case"]), "predictions", "its columns are"),
    "gap": (
        lambda t: t.set_column(0, "sample", pa.array([None] * 1800, pa.string())),
        "predictions",
        "column sample has gaps",
    ),
    "long": (lambda t: _ids(t, [f"{i}{'x' * 5000}" for i in range(450)]), "predictions", "holds a text of"),
    "narrow": (
        lambda t: t.set_column(7, "logits", pa.array([[0.0]] * 1800, pa.list_(pa.float32()))),
        "predictions",
        "does not hold 10 values",
    ),
}


@pytest.mark.parametrize("change, check, words", PREDICTED.values(), ids=PREDICTED.keys())
def test_predictions_that_do_not_fit_are_caught(
    results: Path, change: Callable[[pa.Table], pa.Table], check: str, words: str
) -> None:
    edit_predictions(trial_folder(results), change)
    found = serious(check_submission(results), check)
    assert any(words in finding.message for finding in found), found


def test_trials_scored_on_other_samples_are_caught(results: Path) -> None:
    edit_predictions(trial_folder(results), lambda table: _ids(table, [f"other-{i}" for i in range(450)]))
    assert "differ from those of 2 trials" in only(check_submission(results), "samples")


def test_labels_changed_to_fit_are_caught(results: Path) -> None:
    place = trial_folder(results)
    edit_predictions(place, lambda table: changed_list(table, "label", _relabel))
    assert {found.place for found in serious(check_submission(results), "samples")} == {f"trials/{place.name}"}


def test_missing_predictions_are_a_finding(results: Path) -> None:
    (trial_folder(results) / PREDICTIONS).unlink()
    assert "cannot be computed again" in only(check_submission(results), "predictions")


def other_digest(record: TrialRecord) -> TrialRecord:
    scores = tuple(replace(s, digest="0" * 64) for s in record.scores)
    return record.model_copy(update={"scores": scores})


def test_other_evaluation_sets_do_not_stand_together(results: Path) -> None:
    edit(trial_folder(results, "source"), other_digest)
    assert "evaluation set of" in only(check_submission(results), "together")


def test_missing_trials_are_told_and_no_error(results: Path) -> None:
    shutil.rmtree(trial_folder(results, seed=1))
    outcome = check_submission(results)
    assert [(f.severity, f.message) for f in outcome.findings] == [
        ("note", "1 of its 3 trials are not here: lora-qv+clean seed 1")
    ]


@pytest.fixture
def board(results: Path, tmp_path: Path) -> Path:
    return save(tmp_path / "board", [load_record(path) for path in find_records(results)])


def test_results_fit_their_own_board(results: Path, board: Path) -> None:
    assert not check_submission(results, board).findings


def test_a_board_of_another_budget_does_not_take_them(results: Path, board: Path) -> None:
    for path in find_records(board):
        record = budget("batch_size", 512)(load_record(path))
        renamed = trial(id=f"{record.trial.id}-x")(record)
        path.with_name(f"{renamed.trial.id}.json").write_text(renamed.model_dump_json())
        path.unlink()
    found = serious(check_submission(results, board), "board")
    assert any("batch_size" in finding.message for finding in found)


def test_a_board_with_other_scores_of_a_trial_is_told(results: Path, board: Path) -> None:
    path = next(find_records(board))
    path.write_text(scored("accuracy", "complete", value=0.1)(load_record(path)).model_dump_json())
    (finding,) = check_submission(results, board).findings
    assert (finding.severity, finding.place) == ("note", path.stem)


def test_a_board_without_a_score_that_the_results_have_is_told(results: Path, board: Path) -> None:
    path = next(find_records(board))
    path.write_text(scored("accuracy", "complete", value=None)(load_record(path)).model_dump_json())
    told = [f.message for f in check_submission(results, board).findings if f.check == "board"]
    assert told and "with other scores, as accuracy of complete" in told[0]


@pytest.mark.parametrize("value", [0.0, 0.9, None])
def test_a_second_score_that_the_predictions_do_not_give_is_caught(results: Path, value: float | None) -> None:
    def forged(record: TrialRecord) -> TrialRecord:
        assert record.data is not None
        first = next(score for score in record.scores if (score.metric, score.case) == ("accuracy", "noise-to-audio"))
        second = replace(first, metric=second_metric("accuracy"), value=value)
        data = record.data.model_copy(update={"classes": ("rain", *record.data.classes[1:])})
        cases = [{"name": name} for name in record.trial.cases]
        cases[record.trial.cases.index("noise-to-audio")]["audio"] = "avc/rain-sound@3"
        rainy = trial(contents={**record.trial.contents, "cases": cases})(record)
        return rainy.model_copy(update={"scores": (*record.scores, second), "data": data})

    edit(trial_folder(results), forged)
    (found,) = serious(check_submission(results), "recomputed")
    assert found.message.startswith(f"second score of noise-to-audio (blind) is {value} in the record")


def damage_bytes(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[40:400] = bytes(360)
    path.write_bytes(bytes(content))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def not_parquet(path: Path) -> None:
    path.write_text("PAR1 nothing PAR1")


def many_rows(path: Path) -> None:
    """A few kilobytes that unpack to a million values."""
    table = pq.read_table(path).slice(0, 1)
    pq.write_table(table.take(pa.array(np.zeros(100_000, np.int64))), path, compression="zstd")


@pytest.mark.parametrize("damage", [damage_bytes, cut, not_parquet, many_rows])
def test_hostile_predictions_are_a_finding(results: Path, damage: Callable[[Path], None]) -> None:
    damage(trial_folder(results) / PREDICTIONS)
    assert only(check_submission(results), "predictions")


def test_a_record_that_claims_endless_predictions_is_not_read(results: Path) -> None:
    def endless(record: TrialRecord) -> TrialRecord:
        assert record.data is not None
        scores = tuple(replace(score, n=10**12) for score in record.scores)
        return record.model_copy(update={"scores": scores, "data": record.data.model_copy(update={"test": 10**12})})

    edit(trial_folder(results), endless)
    assert "scores stand on 4000000000000" in only(check_submission(results), "predictions")


def links(results: Path) -> Iterator[tuple[Path, Path]]:
    place = trial_folder(results)
    yield place / PREDICTIONS, Path("/etc/passwd")
    yield place / RECORD, Path("/etc/passwd")
    yield place, results.parent
    yield results / "suite.yaml", Path("/etc/passwd")


@pytest.mark.parametrize("which", range(4))
def test_links_are_not_followed(results: Path, which: int) -> None:
    path, target = list(links(results))[which]
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(target)
    assert any("symbolic link" in f.message for f in serious(check_submission(results), "files"))


def test_a_pipe_is_not_waited_for(results: Path) -> None:
    (trial_folder(results) / RECORD).unlink()
    os.mkfifo(trial_folder(results) / RECORD)
    assert "neither a file nor a folder" in only(check_submission(results), "files")


def test_a_record_too_large_is_not_read(results: Path) -> None:
    with (trial_folder(results) / RECORD).open("ab") as file:
        file.truncate(2**30)
    assert "1024 MiB; at most 32 MiB are read" in only(check_submission(results), "files")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"schema_version": 2}', "\0", '{"schema_version": 99}'])
def test_a_record_that_is_none_is_a_finding(results: Path, text: str) -> None:
    (trial_folder(results) / RECORD).write_text(text)
    assert serious(check_submission(results), "schema")


@pytest.mark.parametrize(
    "text, words",
    [
        ("a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}]\n" for n in range(1, 9)), "unfolds to more"),
        ("name: t\nmethods: [source]\nmehtods: []\n", "mehtods"),
        ("!!python/object/apply:os.system [exit]", "not valid YAML"),
        ("[" * 5000, "50 levels deep"),
        ("- " * 5000, "50 levels deep"),
    ],
)
def test_a_suite_that_is_none_is_a_finding(results: Path, text: str, words: str) -> None:
    (results / "suite.yaml").write_text(text)
    assert any(words in f.message for f in serious(check_submission(results), "suite"))


def test_a_suite_with_aliases_is_read_and_published_without(results: Path, tmp_path: Path) -> None:
    suite = yaml.safe_load((results / "suite.yaml").read_text())
    shared = {**suite, "train_cases": suite["cases"]}
    (results / "suite.yaml").write_text(yaml.safe_dump(shared))
    assert "*id001" in (results / "suite.yaml").read_text()
    assert not serious(check_submission(results), "suite")
    published = portable_suite((results / "suite.yaml").read_bytes())
    assert "*" not in published and yaml.safe_load(published)["train_cases"] == suite["cases"]


def test_a_score_that_is_no_number_is_caught(results: Path) -> None:
    place = trial_folder(results)
    content = json.loads((place / RECORD).read_text())
    content["scores"][0]["value"] = float("nan")
    (place / RECORD).write_text(json.dumps(content))
    assert "should be a finite number" in serious(check_submission(results), "schema")[0].message


def test_no_suite_is_a_finding(results: Path) -> None:
    (results / "suite.yaml").unlink()
    assert "is not there" in only(check_submission(results), "suite")


def test_an_id_that_is_a_path_names_no_file(results: Path) -> None:
    edit(trial_folder(results), trial(id="../../escape"))
    assert "trial.id String should match" in only(check_submission(results), "schema")


def test_unfinished_trials_and_strange_files_are_notes(results: Path) -> None:
    (trial_folder(results) / "run.sh").touch()
    (results / "exploit.py").touch()
    (trial_folder(results, seed=1) / MARKER).unlink()
    outcome = check_submission(results)
    assert outcome.trials == 2 and not outcome.serious
    words = " ".join(finding.message for finding in outcome.findings)
    assert "run.sh" in words and "not finished" in words and "no part of results" in words


def test_an_empty_folder_is_a_finding(tmp_path: Path) -> None:
    assert any("no finished trial" in finding.message for finding in check_submission(tmp_path).findings)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["submit", "check", *arguments], env={"COLUMNS": "80"})


def test_the_verb_tells_and_its_exit_code_says_it(results: Path) -> None:
    good = run(str(results))
    assert (good.exit_code, good.stdout) == (
        0,
        "3 trials, 36 scores computed again\nserious findings: 0, notes: 0; ready to submit\n",
    )
    edit(trial_folder(results), environment(dirty=True, plugins={"[red]x[/red]\x1b[2J.py": "0"}))
    bad = run(str(results))
    assert bad.exit_code == 1
    assert "serious environment: the checkout had changes" in bad.stdout
    assert "[red]x[/red] [2J.py" in bad.stdout  # as it stands, and no control character with it
    lines = [json.loads(line) for line in run(str(results), "--json").stdout.splitlines()]
    assert {*lines[0]} == {field.name for field in dataclasses.fields(Finding)}
    assert lines[-1] == {"trials": 3, "scores": 36, "serious": 1}


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    found = run(str(tmp_path / "nothing"))
    assert found.exit_code == 2
    assert "cannot read" in found.stderr and "give a results folder" in found.stderr
