"""What `status` tells of a folder in every state, and what `retry` runs again."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from report_records import record, save
from rich.console import Console
from typer.testing import CliRunner

from mmbench.claims import CLAIM, claimed
from mmbench.cli import app
from mmbench.files import RecordError
from mmbench.records import MARKER, RECORD, Failure, TrialRecord, is_done, save_record
from mmbench.registry import ROOT
from mmbench.remote import open_remote, url_of
from mmbench.retry import put_aside
from mmbench.runner import RunRequest
from mmbench.status import Standing, groups, standing
from mmbench.status_verb import duration, exit_code, page
from mmbench.suite_file import parse_suite
from mmbench.trials import Digests, make_trial, rows

CONTENT = {
    "name": "tiny",
    "methods": ["lora-qv", "source"],
    "regimes": ["clean"],
    "cases": ["complete"],
    "seeds": [0, 1, 2],
    "budget": {"samples": 20, "tuning_trials": 1},
}
"""Four trials: three of lora-qv, one of source."""


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder just planned: specs, and no trial has begun."""
    return planned(tmp_path / "out")


def planned(out: Path, **changes: Any) -> Path:
    suite = parse_suite({**CONTENT, **changes})
    for row in rows(suite):
        trial = make_trial(row, suite, Digests("d", "b"), {"backbone": Path("b"), "store": Path("s")})
        (out / "trials" / trial.id).mkdir(parents=True)
        (out / "trials" / trial.id / "spec.json").write_text(trial.model_dump_json())
    (out / "suite.yaml").write_text(yaml.safe_dump(suite.model_dump(mode="json")))
    return out


def folders(out: Path) -> list[Path]:
    return sorted((out / "trials").iterdir())


def finish(folder: Path, status: str = "ok", message: str = "", wall: float = 20.0, **changes: Any) -> TrialRecord:
    failure = Failure(kind="Error", message=message) if message else None
    title = folder.name.partition("-clean")[0].partition("-frozen")[0]
    regime = "none" if title == "source" else "clean"
    made = record(title, trial_regime=regime, status=status, failure=failure, **changes)
    if made.costs is not None:
        seconds = made.costs.seconds.model_copy(update={"wall": wall})
        made = made.model_copy(update={"costs": made.costs.model_copy(update={"seconds": seconds})})
    save_record(made.model_copy(update={"trial": made.trial.model_copy(update={"id": folder.name})}), folder)
    return made


def shown(now: Standing) -> str:
    """The page at 80 columns."""
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(page(now), crop=False)
    text = console.export_text()
    assert max(len(line) for line in text.splitlines() if not line.startswith("  mmbench ")) <= 80
    return text


def test_a_planned_folder_waits(results: Path) -> None:
    now = standing(results)
    assert (now.total, len(now.waiting), now.unplanned, now.seconds_left) == (4, 4, 0, None)
    assert exit_code(now) == 3
    text = shown(now)
    assert "tiny: 0 of 4 done\n" in text and "4 waiting" in text
    assert f"nothing is running; go on with\n  mmbench run {results}/suite.yaml --out {results}\n" in text


def test_before_trials_are_planned_the_suite_tells_how_many_wait(results: Path) -> None:
    shutil.rmtree(results / "trials")
    now = standing(results)
    assert (now.total, now.unplanned, exit_code(now)) == (4, 4, 3)


def test_every_way_to_end_is_counted_with_its_reason(results: Path) -> None:
    one, two, three, four = folders(results)
    finish(one)
    finish(two, "crashed", f"cannot read {two.name} at byte 17\nand more")
    finish(three, "crashed", f"cannot read {three.name} at byte 4")
    finish(four, "refused", "needs to be told")
    now = standing(results)
    assert now.statuses == {"ok": 1, "crashed": 2, "refused": 1}
    assert (now.failed, now.unfinished, exit_code(now)) == (2, 0, 1)
    assert [(g.status, g.reason, g.trials) for g in groups(now.ended)] == [
        ("refused", "needs to be told", (four.name,)),
        ("crashed", f"cannot read {two.name} at byte 17", (two.name, three.name)),
    ]
    assert f"\n  mmbench retry {results} --failed\n" in shown(now)


def test_all_well_is_exit_code_zero_and_a_refusal_is_well(results: Path) -> None:
    for folder in folders(results)[:3]:
        finish(folder)
    finish(folders(results)[3], "refused", "foreseen")
    assert exit_code(standing(results)) == 0


def test_what_runs_is_told_with_place_time_and_progress(results: Path) -> None:
    first, second, *_ = folders(results)
    finish(second)
    (first / "events.jsonl").write_text(
        json.dumps({"time": 1000.0, "event": "started"})
        + "\n"
        + json.dumps({"time": 1010.0, "event": "epoch", "job": "final/all", "samples": 40, "of": 60})
        + '\n{"time": 1011.0, "eve'
    )
    with claimed(first):
        now = standing(results, now=lambda: 1012.0)
        (entry,) = now.running
        assert (entry.id, entry.since, entry.doing) == (first.name, 1000.0, "final/all: 40 of 60")
        assert entry.host == json.loads((first / CLAIM).read_text())["host"] != ""
        assert first.name in shown(now).replace("\n", "")
    assert standing(results).running == ()


def test_the_time_left_is_that_of_the_same_method_shared_among_workers(results: Path) -> None:
    """lora-qv takes 100 s, source 10 s; one lora-qv runs since 30 s, one waits: 70 s on two workers, 170 s on one."""
    lora = [folder for folder in folders(results) if "lora" in folder.name]
    (source,) = set(folders(results)) - set(lora)
    finish(lora[0], wall=100.0)
    finish(source, wall=10.0)
    for folder in lora[1:]:
        (folder / "events.jsonl").write_text(json.dumps({"time": 1000.0, "event": "started"}) + "\n")
    with claimed(lora[1]):
        assert standing(results, now=lambda: 1030.0).seconds_left == pytest.approx(170.0)
        with claimed(lora[2]):
            assert standing(results, now=lambda: 1030.0).seconds_left == pytest.approx(70.0)
            assert standing(results, now=lambda: 9999.0).seconds_left == 0.0


def test_a_kind_without_a_finished_trial_takes_as_long_as_the_mean(results: Path) -> None:
    lora = [folder for folder in folders(results) if "lora" in folder.name]
    for folder, wall in zip(lora, (10.0, 20.0, 60.0), strict=True):
        finish(folder, wall=wall)
    assert standing(results).seconds_left == pytest.approx(30.0)


@pytest.mark.parametrize("broken", ["record alone", "marker alone", "cut record", "empty record", "a dead claim"])
def test_what_was_broken_off_waits_and_says_so(results: Path, broken: str) -> None:
    first = folders(results)[0]
    if broken == "a dead claim":
        with claimed(first):
            owner = json.loads((first / CLAIM).read_text())
        (first / CLAIM).write_text(json.dumps({**owner, "pid": 2**22 + 1}))
    else:
        finish(first)
        whole = (first / RECORD).read_bytes()
        (first / (MARKER if broken == "record alone" else RECORD)).unlink()
        if broken in ("cut record", "empty record"):
            (first / RECORD).write_bytes(whole[: len(whole) // 2] if broken == "cut record" else b"")
    now = standing(results)
    assert len(now.waiting) == 4 and [entry.id for entry in now.waiting if entry.left_behind] == [first.name]
    assert "broken off, and waiting to run again: 1" in shown(now)


def test_a_record_of_another_version_is_a_failure_with_its_name(results: Path) -> None:
    first = folders(results)[0]
    save_record(record("x").model_copy(update={"status": "sublime"}), first)
    now = standing(results)
    assert now.statuses == {"unreadable": 1} and now.failed == 1
    assert "update mmbench" in groups(now.ended)[0].reason


def test_unfinished_trials_of_an_earlier_suite_are_not_waited_for(results: Path, tmp_path: Path) -> None:
    other = planned(tmp_path / "other", budget={"samples": 40, "tuning_trials": 1}, methods=["lora-qv"])
    for folder in folders(results):
        finish(folder)
    for folder in folders(other):
        shutil.copytree(folder, results / "trials" / f"old-{folder.name}")
    now = standing(results)
    assert len(now.foreign) == 3 and exit_code(now) == 0
    assert "3 unfinished trials are none of this suite's" in shown(now).replace("\n", " ")


def test_a_suite_that_needs_a_plugin_is_named_and_its_trials_still_count(results: Path) -> None:
    path = results / "suite.yaml"
    path.write_text(path.read_text().replace("lora-qv", "of-a-plugin"))
    now = standing(results)
    assert now.total == 4 and "no method 'of-a-plugin'" in now.note
    assert "no method 'of-a-plugin'" in " ".join(shown(now).split())


def test_a_board_is_called_one_and_no_run_is_advised(tmp_path: Path) -> None:
    (save(tmp_path, [record("a")]) / "suite.yaml").write_text(yaml.safe_dump(CONTENT))
    told = CliRunner().invoke(app, ["status", str(tmp_path)])
    assert told.exit_code == 2 and "is a board" in told.stderr and "mmbench run" not in told.output


@pytest.mark.parametrize(("make", "message"), [(False, "there is no folder"), (True, "holds no results")])
def test_a_folder_without_results_is_a_clear_error(tmp_path: Path, make: bool, message: str) -> None:
    if make:
        (tmp_path / "x").mkdir()
    with pytest.raises(RecordError, match=message):
        standing(tmp_path / "x")
    run = CliRunner().invoke(app, ["status", str(tmp_path / "x")])
    assert run.exit_code == 2 and message in run.output


def test_looking_while_trials_write_never_fails(results: Path) -> None:
    """A writer finishes, claims and puts aside the same trials over and over; every look is one of their states."""
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for folder in folders(results):
                with claimed(folder), (folder / "events.jsonl").open("a") as log:
                    log.write('{"time": 1.0, "event": "ep')
                    finish(folder)
                shutil.rmtree(folder / "x", ignore_errors=True)
                (folder / RECORD).unlink()
                (folder / MARKER).unlink()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        deadline = time.monotonic() + 2.0
        seen = set()
        while time.monotonic() < deadline:
            now = standing(results)
            assert now.total == 4
            seen |= {kind for kind in ("ended", "running", "waiting") if getattr(now, kind)}
    finally:
        stop.set()
        writer.join()
    assert {"running", "waiting"} <= seen


def test_a_thousand_trials_are_told_in_two_seconds(tmp_path: Path) -> None:
    """Half of them finished, with records of a size that fifty cases make."""
    out = planned(tmp_path / "out", seeds=list(range(999)))
    made = record("lora-qv", failure=Failure(kind="Error", message="y" * 100))
    made = made.model_copy(update={"scores": made.scores * (150 // len(made.scores) + 1)})
    for folder in folders(out)[::2]:
        save_record(made, folder)
    began = time.process_time()
    now = standing(out)
    text = shown(now)
    assert time.process_time() - began < 2.0
    assert now.total == 1000 and len(now.ended) == 500 and "500 of 1000 done" in text


def test_json_holds_everything_and_the_exit_code_agrees(results: Path) -> None:
    finish(folders(results)[0], "diverged", "the loss became nan")
    run = CliRunner().invoke(app, ["status", str(results), "--json"])
    found = json.loads(run.stdout)
    assert run.exit_code == 3
    assert (found["trials"], found["done"], found["failed"], found["waiting"], found["running"]) == (4, 1, 1, 3, 0)
    assert found["reasons"][0]["reason"] == "the loss became nan" and found["seconds_left"] is not None


def test_messages_cannot_colour_the_terminal_or_break_the_table(results: Path) -> None:
    finish(folders(results)[0], "crashed", "[bold red]x[/bold red] \x1b[31m [link=file:///etc/passwd]y")
    text = shown(standing(results))
    assert "[bold red]x[/bold red]" in text and "\x1b" not in text


def test_damaged_events_of_a_running_trial_are_passed_over(results: Path) -> None:
    first = folders(results)[0]
    with claimed(first):
        times = ["NaN", "1e999", '"x"', "-5", str(10**400), "[" * 10_000]
        lines = [f'{{"time": {moment}, "event": "started"}}' for moment in times]
        (first / "events.jsonl").write_text("\n".join([*lines, "[]"]))
        (entry,) = standing(results).running
        assert entry.since is None and first.name in shown(standing(results)).replace("\n", "")


@pytest.mark.slow
def test_watching_without_a_terminal_prints_a_line_per_change_and_ends_with_the_work(results: Path) -> None:
    command = [sys.executable, str(ROOT / "mmbench" / "__main__.py"), "status", str(results), "--watch"]
    watcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert watcher.stdout is not None
    lines = [watcher.stdout.readline()]
    for folder in folders(results):
        finish(folder)
    lines += watcher.stdout.readlines()
    assert watcher.wait(60) == 0
    assert "4 waiting" in lines[0] and "4 of 4 done" in lines[-1] and len(lines) <= 5


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (89.4, "89 s"), (90, "2 min"), (3570, "1 h"), (12000, "3 h 20 min"), (187200, "2 d 4 h")],
)
def test_durations_read_well(seconds: float, words: str) -> None:
    assert duration(seconds) == words


# Retrying ---------------------------------------------------------------------------------------------------------


def test_a_record_put_aside_again_and_again_loses_none(results: Path) -> None:
    folder = folders(results)[0]
    for text in ("first", "second", "third"):
        finish(folder, "crashed", text)
        put_aside(folder)
        assert not is_done(folder) and not (folder / CLAIM).exists()
    kept = [json.loads((folder / f"{RECORD}.old{n}").read_text())["failure"]["message"] for n in ("", "2", "3")]
    assert kept == ["first", "second", "third"]


def test_what_another_process_holds_is_not_put_aside(results: Path) -> None:
    folder = folders(results)[0]
    finish(folder, "crashed", "x")
    with claimed(folder):
        put_aside(folder)
    assert is_done(folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what to run again: --failed, or --status crashed"),
        (["--status", "lost"], "no status 'lost'; choose from ok, refused"),
    ],
)
def test_retry_asks_for_what_it_lacks(results: Path, arguments: list[str], message: str) -> None:
    run = CliRunner().invoke(app, ["retry", str(results), *arguments])
    assert run.exit_code == 2 and message in run.output


def test_nothing_to_retry_is_said_and_is_no_failure(results: Path) -> None:
    for folder in folders(results):
        finish(folder)
    run = CliRunner().invoke(app, ["retry", str(results), "--status", "crashed"])
    assert run.exit_code == 0 and "nothing to run again" in run.output


def test_at_a_url_status_and_retry_name_it_as_it_was_typed(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMBENCH_CACHE", str(tmp_path / "cache"))
    url = f"memory://{tmp_path.name}/run"
    asked: list[RunRequest] = []
    monkeypatch.setattr("mmbench.retry_verb.run_command", lambda request, *_: asked.append(request))
    for folder in folders(results):
        finish(folder, "crashed", "boom")
        open_remote(url).push(folder)
    open_remote(url).put("suite.yaml", (results / "suite.yaml").read_bytes())
    told = CliRunner().invoke(app, ["status", url])
    assert told.exit_code == 1 and f"mmbench retry {url} --failed" in told.output
    assert json.loads(CliRunner().invoke(app, ["status", url, "--json"]).stdout)["folder"] == url
    again = CliRunner().invoke(app, ["retry", url, "--failed"])
    assert again.exit_code == 0, again.output
    (request,) = asked
    assert request.out is not None and url_of(request.out) == url
    assert request.suite.is_relative_to(tmp_path / "cache") and "lora-qv" in request.suite.read_text()
    nothing = CliRunner().invoke(app, ["retry", url, "--status", "diverged"])
    assert f"nothing to run again in {url}" in nothing.output


def test_a_watched_url_is_looked_at_again(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMBENCH_CACHE", str(tmp_path / "cache"))
    url = f"memory://{tmp_path.name}/run"
    open_remote(url).put("suite.yaml", (results / "suite.yaml").read_bytes())
    first, *others = folders(results)
    for folder in others:
        finish(folder)
        open_remote(url).push(folder)

    def finish_the_last(seconds: float) -> None:
        finish(first)
        open_remote(url).push(first)

    monkeypatch.setattr("mmbench.status_verb.time.sleep", finish_the_last)
    told = CliRunner().invoke(app, ["status", url, "--watch"])
    assert told.exit_code == 0 and "4 of 4 done" in told.output


PLUGIN = """
from pathlib import Path
from mmbench.method import Method
from mmbench.registry import method

@method("moody", title="T", family="f", reference="r", year=2026, memory="M0")
class Moody(Method):
    def build(self, rng):
        if (Path(__file__).parent / "bad-day").exists():
            raise OSError("not today")
"""


@pytest.fixture
def moody(use_plugin: Callable[[str], Path], cache: Path, tmp_path: Path) -> Iterator[Path]:
    """A plugin whose method fails as long as a file named bad-day lies beside it."""
    (tmp_path / "bad-day").touch()
    yield use_plugin(PLUGIN)


@pytest.mark.slow
def test_failed_trials_run_again_by_the_folders_own_suite(moody: Path, tmp_path: Path) -> None:
    suite = {**CONTENT, "methods": ["moody", "source"], "seeds": [0]}
    suite |= {
        "datasets": [{"name": "synthetic-av", "samples": 60}],
        "backbones": [{"name": "cavmae-tiny", "epochs": 1}],
    }
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
    out = tmp_path / "out"
    common = ["--plugin", str(moody), "--device", "cpu", "--workers", "1", "--quiet"]
    run = CliRunner().invoke(app, ["run", str(tmp_path / "suite.yaml"), "--out", str(out), *common])
    assert run.exit_code == 1, run.output
    (tmp_path / "suite.yaml").unlink()
    (tmp_path / "bad-day").unlink()
    (well,) = out.glob("trials/source-*")
    (sick,) = out.glob("trials/moody-*")
    before = (well / RECORD).stat().st_mtime_ns
    reason = standing(out).ended[0].reason
    assert reason == "OSError: not today"

    foreign = subprocess.run(
        [sys.executable, str(ROOT / "mmbench" / "__main__.py"), "retry", str(out), "--failed"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert foreign.returncode == 2 and f"--plugin {moody}" in foreign.stderr
    again = CliRunner().invoke(app, ["retry", str(out), "--failed", *common])
    assert again.exit_code == 0, again.output
    assert standing(out).statuses == {"ok": 2} and (well / RECORD).stat().st_mtime_ns == before
    assert json.loads((sick / f"{RECORD}.old").read_text())["failure"]["message"] == "OSError: not today"
