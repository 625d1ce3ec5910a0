"""Results at a URL: claims, transfers and what a path of the command line means, on an in-memory store."""

from __future__ import annotations

import hashlib
import json
import uuid
from pathlib import Path

import fsspec
import pytest

from mmbench import remote
from mmbench.errors import ConfigError
from mmbench.executors.base import Finished
from mmbench.executors.shared import SharedExecutor
from mmbench.files import RecordError
from mmbench.layout import PREDICTIONS, STATES
from mmbench.mirror import mirror_folder, mirror_of, pull_all, push_rest
from mmbench.records import MARKER, RECORD, is_done
from mmbench.remote import Remote, open_remote, url_of
from mmbench.retry import put_aside


@pytest.fixture
def url() -> str:
    return f"memory://{uuid.uuid4().hex}/run"


def finished(folder: Path, content: bytes = b"{}") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).write_bytes(content)
    (folder / "events.jsonl").write_text("{}\n")
    (folder / MARKER).write_text(hashlib.sha256(content).hexdigest())
    return folder


def files(url: str) -> dict[str, bytes]:
    store, root = fsspec.core.url_to_fs(url)
    return {path.removeprefix(f"{root}/"): store.cat_file(path) for path in store.find(root)}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (Path("s3://bucket/runs"), "s3://bucket/runs"),
        (Path("gs://b/a/c"), "gs://b/a/c"),
        (Path("runs/x"), None),
        (Path("/tmp/x"), None),
        (Path("c:odd"), None),
    ],
)
def test_a_url_survives_being_a_path(path: Path, expected: str | None) -> None:
    assert url_of(path) == expected


def test_mirrors_of_two_urls_differ(tmp_path: Path) -> None:
    folders = {mirror_folder(url, tmp_path) for url in ("s3://a/b", "s3://a-b", "gs://a/b", "s3://../../etc")}
    assert len(folders) == 4
    assert all(folder.parent == tmp_path / "results" for folder in folders)


@pytest.mark.parametrize("bad", ["http://host/x", "nosuch://host/x"])
def test_a_store_that_cannot_be_used_is_named(bad: str) -> None:
    with pytest.raises(ConfigError, match=bad):
        open_remote(bad)


def test_a_trial_goes_up_marker_last_and_comes_down_whole(url: str, tmp_path: Path, monkeypatch) -> None:
    first = open_remote(url)
    order: list[str] = []
    pipe = first._files.pipe_file
    monkeypatch.setattr(
        first._files, "pipe_file", lambda path, *a, **k: (order.append(path.split("/")[-1]), pipe(path, *a, **k))
    )
    folder = finished(tmp_path / "here" / "t-1")
    (folder / "claim.json").write_text("{}")
    first.push(folder)
    assert order == ["events.jsonl", RECORD, MARKER]
    assert "trials/t-1/claim.json" not in files(url)
    pull_all(open_remote(url), tmp_path / "there")
    assert is_done(tmp_path / "there" / "trials" / "t-1")
    assert (tmp_path / "there" / "trials" / "t-1" / "events.jsonl").read_text() == "{}\n"


def test_a_record_that_does_not_fit_its_marker_is_not_done(url: str, tmp_path: Path) -> None:
    one = open_remote(url)
    one.push(finished(tmp_path / "t-1"))
    one.put(f"trials/t-1/{RECORD}", b"{half")
    assert not one.pull("t-1", tmp_path / "again" / "t-1")
    assert not (tmp_path / "again" / "t-1" / MARKER).exists()


def test_what_is_whole_there_stays_and_what_is_half_there_is_replaced(url: str, tmp_path: Path) -> None:
    one = open_remote(url)
    one.push(finished(tmp_path / "a" / "t-1", b"{}"))
    one.push(finished(tmp_path / "b" / "t-1", b'{"x": 1}'))
    assert files(url)[f"trials/t-1/{RECORD}"] == b"{}"
    one.put(f"trials/t-1/{RECORD}", b"{half")
    one.push(tmp_path / "b" / "t-1")
    assert one.pull("t-1", tmp_path / "c" / "t-1")
    assert (tmp_path / "c" / "t-1" / RECORD).read_bytes() == b'{"x": 1}'


def test_what_is_half_there_harms_no_whole_trial_here(url: str, tmp_path: Path) -> None:
    one = open_remote(url)
    one.put(f"trials/t-1/{RECORD}", b"{half")
    one.put(f"trials/t-1/{MARKER}", b"0" * 64)
    here = finished(tmp_path / "trials" / "t-1")
    pull_all(one, tmp_path)
    assert is_done(here)


def test_what_is_half_there_is_sent_again_by_the_machine_that_has_it_whole(url: str, tmp_path: Path) -> None:
    one = open_remote(url)
    one.put(f"trials/t-1/{RECORD}", b"{half")
    one.put(f"trials/t-1/{MARKER}", b"0" * 64)
    finished(tmp_path / "trials" / "t-1")
    pull_all(one, tmp_path)
    push_rest(one, tmp_path)
    assert open_remote(url).finished_record("t-1") == b"{}"


def test_a_run_that_ended_without_predictions_has_none_of_the_run_before(url: str, tmp_path: Path) -> None:
    here, other = tmp_path / "here" / "trials" / "t-1", tmp_path / "other" / "trials" / "t-1"
    finished(other, b'"ok"')
    for name in (PREDICTIONS, STATES):
        (other / name).write_bytes(b"old")
    open_remote(url).push(other)
    pull_all(open_remote(url), tmp_path / "here")
    assert (here / STATES).read_bytes() == (here / PREDICTIONS).read_bytes() == b"old"
    run_again(url, tmp_path / "other", "t-1")
    for name in (PREDICTIONS, STATES):
        (other / name).unlink()
    open_remote(url).push(finished(other, b'"crashed"'))
    pull_all(open_remote(url), tmp_path / "here")
    assert (here / RECORD).read_bytes() == b'"crashed"'
    assert not {f"trials/t-1/{name}" for name in (PREDICTIONS, STATES)} & files(url).keys()
    assert not (here / STATES).exists() and not (here / PREDICTIONS).exists()


def run_again(url: str, mirror: Path, trial: str) -> None:
    """As `retry` begins: the record is put aside here and there."""
    marker = (mirror / "trials" / trial / MARKER).read_bytes()
    put_aside(mirror / "trials" / trial)
    open_remote(url).put_aside(trial, marker)


def test_what_another_machine_ran_again_is_seen_here(url: str, tmp_path: Path) -> None:
    here, other = tmp_path / "here", tmp_path / "other"
    open_remote(url).push(finished(here / "trials" / "t-1", b'"crashed"'))
    pull_all(open_remote(url), other)
    run_again(url, other, "t-1")
    pull_all(open_remote(url), here)
    assert not is_done(here / "trials" / "t-1")  # the other machine is at it
    open_remote(url).push(finished(other / "trials" / "t-1", b'"ok"'))
    pull_all(open_remote(url), here)
    assert (here / "trials" / "t-1" / RECORD).read_bytes() == b'"ok"' and is_done(here / "trials" / "t-1")


def test_an_old_record_does_not_return_while_another_machine_runs_it_again(url: str, tmp_path: Path) -> None:
    here, other = tmp_path / "here", tmp_path / "other"
    open_remote(url).push(finished(other / "trials" / "t-1", b'"crashed"'))
    pull_all(open_remote(url), here)
    run_again(url, other, "t-1")
    SharedExecutor(Inner(), open_remote(url)).stop()
    pull_all(open_remote(url), here)
    push_rest(open_remote(url), here)
    assert open_remote(url).trials() == frozenset()


def test_only_what_was_seen_is_put_aside(url: str, tmp_path: Path) -> None:
    here, other = tmp_path / "here", tmp_path / "other"
    open_remote(url).push(finished(here / "trials" / "t-1", b'"crashed"'))
    pull_all(open_remote(url), other)
    run_again(url, other, "t-1")
    open_remote(url).push(finished(other / "trials" / "t-1", b'"ok"'))
    run_again(url, here, "t-1")  # of the crash; it was planned for long
    assert open_remote(url).finished_record("t-1") == b'"ok"'


def test_what_never_reached_the_url_goes_up_with_the_next_sweep(url: str, tmp_path: Path) -> None:
    finished(tmp_path / "trials" / "t-1")  # and then the machine went down
    pull_all(open_remote(url), tmp_path)
    push_rest(open_remote(url), tmp_path)
    assert open_remote(url).trials() == {"t-1"}


def test_of_two_processes_one_gets_the_trial(url: str) -> None:
    one, two = open_remote(url), open_remote(url)
    assert one.claim("t-1")
    assert not two.claim("t-1")
    one.release("t-1")
    assert two.claim("t-1")
    two.close()
    assert not files(url)


def test_a_dead_claim_is_taken_over_and_a_beating_one_is_not(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "STALE_SECONDS", -1.0)  # every claim is old
    monkeypatch.setattr(remote, "HEARTBEAT_SECONDS", -1.0)
    monkeypatch.setattr(remote, "WATCH_SECONDS", 0.2)
    two = open_remote(url)
    two.put("trials/t-1/claim.json", b'{"token": "of the dead"}')
    assert two.claim("t-1")
    one = open_remote(url)  # two beats all the time now
    monkeypatch.setattr(remote, "WATCH_SECONDS", 3.0)
    assert not one.claim("t-1")
    two.close()


def test_a_claim_that_another_process_has_just_taken_over_is_left_to_it(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "STALE_SECONDS", -1.0)
    monkeypatch.setattr(remote, "WATCH_SECONDS", 0.0)
    one, two = open_remote(url), open_remote(url)
    one.put("trials/t-1/claim.json", b'{"token": "of the dead"}')
    judge = two._is_dead

    def judge_slowly(trial: str) -> bool:
        dead = judge(trial)
        two._is_dead = lambda trial: False
        assert one.claim(trial)
        return dead

    monkeypatch.setattr(two, "_is_dead", judge_slowly)
    assert not two.claim("t-1")
    one.close()
    two.close()
    assert not files(url)


def test_a_claim_that_was_lost_is_not_given_back(url: str) -> None:
    one = open_remote(url)
    assert one.claim("t-1")
    one.put("trials/t-1/claim.json", b'{"token": "another"}')
    one.close()
    assert json.loads(files(url)["trials/t-1/claim.json"]) == {"token": "another"}


def test_an_unreachable_store_is_an_error_of_its_own(tmp_path: Path) -> None:
    class Broken:
        def __getattr__(self, name: str):
            raise TimeoutError("no route")

    with pytest.raises(RecordError, match=r"s3://x/y.*no route"):
        Remote("s3://x/y", Broken(), "x/y").trials()


class Inner:
    """Room for one trial; finishes what it gets at once."""

    def __init__(self) -> None:
        self.ran: list[Path] = []
        self._now: list[Path] = []

    def has_room(self) -> bool:
        return not self._now

    def running(self) -> tuple[Path, ...]:
        return tuple(self._now)

    def submit(self, folder: Path) -> None:
        self.ran.append(folder)
        self._now.append(folder)
        finished(folder)

    def collect(self) -> list[Finished]:
        ended, self._now = self._now, []
        return [Finished(folder, 0, "") for folder in ended]

    def stop(self) -> None:
        pass


def test_what_another_machine_finished_is_fetched_and_the_rest_is_run_and_sent(url: str, tmp_path: Path) -> None:
    open_remote(url).push(finished(tmp_path / "elsewhere" / "t-1"))
    inner = Inner()
    shared = SharedExecutor(inner, open_remote(url), look_seconds=0.0)
    trials = tmp_path / "mirror" / "trials"
    for name in ("t-1", "t-2", "t-3"):
        shared.submit(trials / name)
    ended: list[Finished] = []
    while shared.running():
        ended += shared.collect()
    shared.stop()
    assert {entry.folder.name for entry in ended} == {"t-1", "t-2", "t-3"}
    assert [folder.name for folder in inner.ran] == ["t-2", "t-3"]
    assert open_remote(url).trials() == {"t-1", "t-2", "t-3"}
    assert not [name for name in files(url) if name.endswith("claim.json")]


class Dying(Inner):
    """Its workers die without a record."""

    def submit(self, folder: Path) -> None:
        super().submit(folder)
        (folder / MARKER).unlink()


@pytest.mark.parametrize("rounds", [1, 2], ids=["last", "while others run"])
def test_a_record_that_the_sweep_itself_writes_goes_up_before_the_claim_is_given_back(
    url: str, tmp_path: Path, rounds: int
) -> None:
    shared = SharedExecutor(Dying(), open_remote(url), look_seconds=0.0)
    folder = tmp_path / "trials" / "t-9"
    shared.submit(folder)
    while not shared.collect():
        pass
    assert not open_remote(url).claim("t-9")
    finished(folder, b'"crashed"')
    for _ in range(rounds - 1):
        shared.collect()
        assert open_remote(url).trials() == {"t-9"} and "trials/t-9/claim.json" not in files(url)
    shared.stop()
    assert open_remote(url).trials() == {"t-9"} and "trials/t-9/claim.json" not in files(url)


def test_a_worker_that_was_ended_starts_again_under_the_same_claim(url: str, tmp_path: Path) -> None:
    shared = SharedExecutor(Dying(), open_remote(url), look_seconds=0.0)
    folder = tmp_path / "trials" / "t-9"
    shared.submit(folder)
    while not shared.collect():
        pass
    claim = files(url)["trials/t-9/claim.json"]
    shared.submit(folder)
    while not shared.collect():
        assert files(url)["trials/t-9/claim.json"] == claim
    shared.stop()
    assert not files(url)


def test_what_is_finished_between_the_look_and_the_claim_is_fetched(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = open_remote(url)
    look = here.trials

    def look_before() -> frozenset[str]:
        found = look()
        open_remote(url).push(finished(tmp_path / "elsewhere" / "t-1"))
        return found

    monkeypatch.setattr(here, "trials", look_before)
    inner = Inner()
    shared = SharedExecutor(inner, here, look_seconds=0.0)
    shared.submit(tmp_path / "trials" / "t-1")
    (ended,) = shared.collect()
    shared.stop()
    assert is_done(ended.folder) and not inner.ran
    assert "trials/t-1/claim.json" not in files(url)


def test_what_reads_results_reads_the_mirror_of_a_url(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMBENCH_CACHE", str(tmp_path / "cache"))
    one = open_remote(url)
    one.push(finished(tmp_path / "t-1"))
    one.put("suite.yaml", b"name: x\n")
    mirror = mirror_of(Path(url))
    assert is_done(mirror / "trials" / "t-1")
    assert (mirror / "suite.yaml").read_bytes() == b"name: x\n"
    assert mirror_of(tmp_path) == tmp_path
