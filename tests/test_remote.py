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
from mmbench.records import MARKER, RECORD, is_done
from mmbench.remote import Remote, mirror_folder, mirror_of, open_remote, pull_all, url_of


@pytest.fixture
def url() -> str:
    return f"memory://{uuid.uuid4().hex}/run"


def finished(folder: Path, content: bytes = b"{}") -> Path:
    folder.mkdir(parents=True)
    (folder / RECORD).write_bytes(content)
    (folder / "events.jsonl").write_text("{}\n")
    (folder / "claim.json").write_text("{}")
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
    first.push(finished(tmp_path / "here" / "t-1"))
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


def test_what_is_finished_there_is_never_overwritten(url: str, tmp_path: Path) -> None:
    one = open_remote(url)
    one.push(finished(tmp_path / "a" / "t-1", b"{}"))
    one.push(finished(tmp_path / "b" / "t-1", b'{"x": 1}'))
    assert files(url)[f"trials/t-1/{RECORD}"] == b"{}"


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
    shared = SharedExecutor(inner, open_remote(url), tmp_path / "mirror", look_seconds=0.0)
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


def test_a_record_written_by_the_sweep_itself_goes_up_at_the_end(url: str, tmp_path: Path) -> None:
    shared = SharedExecutor(Inner(), open_remote(url), tmp_path)
    finished(tmp_path / "trials" / "t-9")
    shared.stop()
    assert open_remote(url).trials() == {"t-9"}


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
