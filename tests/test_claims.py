"""One worker per folder: claims across processes, the dead and the living."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from mmbench import claims
from mmbench.claims import CLAIM, claimed, is_claimed, is_own

HOLD = """
import sys, time
from pathlib import Path
from mmbench.claims import claimed
with claimed(Path(sys.argv[1])) as mine:
    print(mine, flush=True)
    time.sleep(60)
"""


def contend(folder: Path, together: Barrier, wins: str) -> None:
    together.wait(60)
    with claimed(folder) as mine:
        if mine:
            (Path(wins) / str(os.getpid())).touch()
        together.wait(60)  # nobody lets go before all have tried


def test_of_many_processes_one_wins(tmp_path: Path) -> None:
    folder, wins = tmp_path / "trial", tmp_path / "wins"
    folder.mkdir()
    wins.mkdir()
    context = multiprocessing.get_context("fork")
    together = context.Barrier(8)
    workers = [context.Process(target=contend, args=(folder, together, str(wins))) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(list(wins.iterdir())) == 1
    assert not (folder / CLAIM).exists()


def test_a_claim_is_given_back_even_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inside"), claimed(tmp_path) as mine:
        assert mine and is_claimed(tmp_path)
        raise ValueError("inside")
    assert list(tmp_path.iterdir()) == []
    with claimed(tmp_path) as again:
        assert again


def test_a_held_claim_is_refused_and_left_alone(tmp_path: Path) -> None:
    with claimed(tmp_path) as first:
        content = (tmp_path / CLAIM).read_text()
        with claimed(tmp_path) as second:
            assert first and not second
        assert (tmp_path / CLAIM).read_text() == content


def test_the_claim_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"True\n"
    assert is_claimed(tmp_path)
    with claimed(tmp_path) as mine:
        assert not mine
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    assert (tmp_path / CLAIM).exists() and not is_claimed(tmp_path)
    with claimed(tmp_path) as mine:
        assert mine
    assert list(tmp_path.iterdir()) == []


def write(folder: Path, content: str, age_seconds: float) -> None:
    path = folder / CLAIM
    path.write_text(content)
    then = time.time() - age_seconds
    os.utime(path, (then, then))


@pytest.mark.parametrize(("age_seconds", "held"), [(1.0, True), (1000.0, False)])
def test_a_claim_of_another_host_is_held_as_long_as_its_heart_beats(
    tmp_path: Path, age_seconds: float, held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "WATCH_SECONDS", 0.1)
    owner = {"token": "t", "host": f"not-{socket.gethostname()}", "pid": 1, "born": "5"}
    write(tmp_path, json.dumps(owner), age_seconds)
    assert is_claimed(tmp_path) == held
    with claimed(tmp_path) as mine:
        assert mine != held


@pytest.mark.parametrize("jump_seconds", [1000.0, -1000.0], ids=["forwards", "backwards"])
def test_a_clock_that_jumped_takes_no_beating_claim(
    tmp_path: Path, jump_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "WATCH_SECONDS", 5.0)
    owner = {"token": "t", "host": f"not-{socket.gethostname()}", "pid": 1, "born": "5"}
    write(tmp_path, json.dumps(owner), jump_seconds)
    heart = threading.Timer(0.3, os.utime, (tmp_path / CLAIM,))
    heart.start()
    with claimed(tmp_path) as mine:
        assert not mine
    heart.join()


def test_a_dead_claim_from_the_future_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "WATCH_SECONDS", 0.1)
    owner = {"token": "t", "host": f"not-{socket.gethostname()}", "pid": 1, "born": "5"}
    write(tmp_path, json.dumps(owner), age_seconds=-1000.0)
    with claimed(tmp_path) as mine:
        assert mine


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": "x"}'])
def test_a_half_written_claim_is_respected_for_a_moment_only(tmp_path: Path, content: str) -> None:
    write(tmp_path, content, age_seconds=0.0)
    assert is_claimed(tmp_path)
    write(tmp_path, content, age_seconds=60.0)
    with claimed(tmp_path) as mine:
        assert mine


def test_a_process_with_a_reused_id_does_not_keep_the_claim_alive(tmp_path: Path) -> None:
    with claimed(tmp_path):
        owner = json.loads((tmp_path / CLAIM).read_text())
    write(tmp_path, json.dumps({**owner, "born": "another time"}), age_seconds=0.0)
    with claimed(tmp_path) as mine:
        assert mine


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("name", ["boot", "pids"], ids=["another boot", "another container"])
def test_process_ids_of_elsewhere_mean_nothing_even_if_the_host_has_the_same_name(tmp_path: Path, name: str) -> None:
    with claimed(tmp_path):
        owner = json.loads((tmp_path / CLAIM).read_text())
    assert owner[name]
    write(tmp_path, json.dumps({**owner, name: "another", "pid": 2**22 + 1}), age_seconds=1.0)
    assert is_claimed(tmp_path)
    with claimed(tmp_path) as mine:
        assert not mine


def test_a_claim_that_was_lost_is_neither_kept_alive_nor_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.02)
    with claimed(tmp_path):
        assert is_own(tmp_path)
        owner = json.loads((tmp_path / CLAIM).read_text())
        aside = tmp_path / "aside"
        aside.write_text(json.dumps({**owner, "token": "another", "host": "elsewhere"}))
        os.utime(aside, (1.0, 1.0))
        aside.replace(tmp_path / CLAIM)
        assert not is_own(tmp_path)
        time.sleep(0.3)
        assert (tmp_path / CLAIM).stat().st_mtime == 1.0
    assert (tmp_path / CLAIM).exists()


def test_the_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.02)
    with claimed(tmp_path):
        os.utime(tmp_path / CLAIM, (1.0, 1.0))
        deadline = time.monotonic() + 5
        while (tmp_path / CLAIM).stat().st_mtime == 1.0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
