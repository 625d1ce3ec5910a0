"""Workers: whether forked or started on their own, each is a process of its own that ends, tells and stops the same."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from mmbench.environment import WORKERS
from mmbench.executors import local
from mmbench.executors.base import BUSY, Finished
from mmbench.executors.local import LocalExecutor, Slot
from mmbench.outputs import load_states
from mmbench.records import RECORD, load_record
from mmbench.registry import ROOT
from mmbench.run import run_trial
from mmbench.suite_file import parse_suite
from mmbench.sweep import plan

FORKED, EXECUTED = Slot("cpu", None, 1), Slot("cuda", "0", 1)
BOTH = pytest.mark.parametrize("slot", [FORKED, EXECUTED], ids=["forked", "executed"])
linux = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
WAITS = "import pathlib, time\npathlib.Path(folder, 'up').write_text(str(os.getpid()))\ntime.sleep({seconds})\n"


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., LocalExecutor]]:
    """Executors whose workers run the `do.py` of their folder instead of a trial, and import `preloaded` before."""
    entry = tmp_path / "entry.py"
    entry.write_text("import os, sys\nfolder = sys.argv[2]\nexec(open(folder + '/do.py').read())")
    (tmp_path / "preloaded.py").write_text("import os\nos.write(1, b'an import that prints')\n")
    monkeypatch.setattr(local, "ENTRY", entry)
    monkeypatch.setattr(local, "PRELOAD", ("preloaded",))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    executors: list[LocalExecutor] = []

    def make(*slots: Slot) -> LocalExecutor:
        executors.append(LocalExecutor(slots))
        return executors[-1]

    yield make
    for executor in executors:
        executor.stop()


def job(tmp_path: Path, name: str, script: str) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "do.py").write_text(script)
    return folder


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def collect(executor: LocalExecutor, count: int = 1) -> dict[str, Finished]:
    ended: list[Finished] = []

    def enough() -> bool:
        ended.extend(executor.collect())
        return len(ended) >= count

    wait_for(enough)
    return {finished.folder.name: finished for finished in ended}


def pid_of(folder: Path) -> int:
    """The worker's process id, once it is up."""
    wait_for(lambda: (folder / "up").exists() and (folder / "up").read_text())
    return int((folder / "up").read_text())


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] not in ("Z", "X")


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@BOTH
@pytest.mark.parametrize(
    ("script", "code", "said"),
    [
        ("print('lost')", 0, ""),
        ("raise SystemExit(130)", 130, ""),
        ("os._exit(75)", 75, ""),
        ("os.kill(os.getpid(), 9)", -9, ""),
        ("os.kill(os.getpid(), 15)", -15, ""),
        ("raise OSError('no space')", 1, "OSError: no space"),
        ("import sys, atexit; atexit.register(print, 'bye', file=sys.stderr)", 0, "bye"),
    ],
)
def test_how_a_worker_ended_is_told(
    sweep: Callable[..., LocalExecutor], tmp_path: Path, slot: Slot, script: str, code: int, said: str
) -> None:
    executor = sweep(slot)
    executor.submit(job(tmp_path, "one", script))
    assert not executor.has_room()
    finished = collect(executor)["one"]
    assert finished.code == code
    assert finished.stderr.endswith(f"{said}\n") if said else finished.stderr == ""
    assert executor.has_room() and not executor.running()


@BOTH
def test_a_worker_has_its_own_session_arguments_and_environment(
    sweep: Callable[..., LocalExecutor], tmp_path: Path, slot: Slot, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f"""
import sys
threads, workers, gpu = (os.environ.get(name) for name in ("OMP_NUM_THREADS", "{WORKERS}", "CUDA_VISIBLE_DEVICES"))
assert os.getsid(0) == os.getpid()
assert sys.argv == [{str(tmp_path / "entry.py")!r}, "trial", folder, "--device", {slot.device!r}], sys.argv
assert sys.path[0] == {str(tmp_path)!r} and not any("executors" in path for path in sys.path), sys.path
assert (threads, workers, gpu) == ("1", "2", {slot.gpu!r}), (threads, workers, gpu)
assert sys.stdin.read() == ""
"""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    executor = sweep(slot, slot)
    executor.submit(job(tmp_path, "one", script))
    finished = collect(executor)["one"]
    assert finished.code == 0, finished.stderr


@linux
def test_what_is_preloaded_is_imported_once_and_its_memory_is_no_worker_s(
    sweep: Callable[..., LocalExecutor], tmp_path: Path
) -> None:
    preloaded = f"open({str(tmp_path / 'imports')!r}, 'a').write('x')\nblock = bytearray(os.urandom(1)) * (400 << 20)\n"
    (tmp_path / "preloaded.py").write_text(f"import os\n{preloaded}del block\n")
    script = """
import sys
assert "preloaded" in sys.modules
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
assert int(peak.split()[1]) < 200 << 10, peak
"""
    executor = sweep(FORKED, FORKED)
    for name in ("one", "two"):
        executor.submit(job(tmp_path, name, script))
    assert all(finished.code == 0 for finished in collect(executor, 2).values())
    assert (tmp_path / "imports").read_text() == "x"


@linux
def test_workers_on_a_gpu_are_not_forked(sweep: Callable[..., LocalExecutor], tmp_path: Path) -> None:
    executor = sweep(EXECUTED, FORKED)
    for name in ("executed", "forked"):
        executor.submit(job(tmp_path, name, WAITS.format(seconds=60)))
    assert parent(pid_of(tmp_path / "executed")) == os.getpid()
    assert parent(parent(pid_of(tmp_path / "forked"))) == os.getpid()


@BOTH
def test_killing_one_worker_harms_no_other(sweep: Callable[..., LocalExecutor], tmp_path: Path, slot: Slot) -> None:
    executor = sweep(slot, slot)
    folders = [job(tmp_path, name, WAITS.format(seconds=s)) for name, s in (("one", 60), ("two", 0.5))]
    for folder in folders:
        executor.submit(folder)
    pid_of(folders[1])
    os.kill(pid_of(folders[0]), signal.SIGKILL)
    assert {name: finished.code for name, finished in collect(executor, 2).items()} == {"one": -9, "two": 0}
    executor.submit(job(tmp_path, "three", ""))
    assert collect(executor)["three"].code == 0


@BOTH
def test_stopping_asks_first_and_kills_what_stays(
    sweep: Callable[..., LocalExecutor], tmp_path: Path, slot: Slot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "GRACE_SECONDS", 1.0)
    leave = "import signal\ndef leave(*_):\n    pathlib.Path(folder, 'left').touch()\n    raise SystemExit(130)\n"
    polite = WAITS.format(seconds=60).replace("\n", f"\n{leave}signal.signal(signal.SIGTERM, leave)\n", 1)
    stubborn = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + WAITS.format(seconds=60)
    executor = sweep(slot, slot)
    folders = [job(tmp_path, "polite", polite), job(tmp_path, "stubborn", stubborn)]
    for folder in folders:
        executor.submit(folder)
    pids = [pid_of(folder) for folder in folders]
    pids += [parent(pid) for pid in pids if parent(pid) != os.getpid()]
    executor.stop()
    assert not any(alive(pid) for pid in pids) and not executor.running()
    assert (folders[0] / "left").exists()


@linux
def test_stopping_does_not_wait_for_imports(sweep: Callable[..., LocalExecutor], tmp_path: Path) -> None:
    (tmp_path / "preloaded.py").write_text("import time\ntime.sleep(60)\n")
    executor = sweep(FORKED)
    executor.submit(job(tmp_path, "one", WAITS.format(seconds=60)))
    began = time.monotonic()
    executor.stop()
    assert time.monotonic() - began < 5


@linux
def test_a_dead_template_is_reported_and_replaced(sweep: Callable[..., LocalExecutor], tmp_path: Path) -> None:
    executor = sweep(FORKED)
    one = job(tmp_path, "one", WAITS.format(seconds=1))
    executor.submit(one)
    worker = pid_of(one)
    os.kill(parent(worker), signal.SIGKILL)
    with pytest.warns(RuntimeWarning, match=r"imports preloaded once .* died.*exit code -9"):
        assert collect(executor)["one"].code == BUSY  # its claim and its record say the rest
    assert alive(worker)
    executor.submit(job(tmp_path, "two", "assert os.getppid() == " + str(os.getpid())))
    assert collect(executor)["two"].code == 0


@linux
def test_a_template_that_cannot_import_is_reported_and_replaced(
    sweep: Callable[..., LocalExecutor], tmp_path: Path
) -> None:
    (tmp_path / "preloaded.py").write_text("import no_such_library\n")
    executor = sweep(FORKED)
    executor.submit(job(tmp_path, "one", ""))
    with pytest.warns(RuntimeWarning, match=re.compile("exit code 1, last words: .*No module named", re.DOTALL)):
        assert collect(executor)["one"].code == BUSY
    executor.submit(tmp_path / "one")
    assert collect(executor)["one"].code == 0


@linux
def test_a_template_goes_with_its_sweep_and_leaves_its_workers(
    sweep: Callable[..., LocalExecutor], tmp_path: Path
) -> None:
    folder = job(tmp_path, "one", WAITS.format(seconds=1) + "pathlib.Path(folder, 'through').touch()")
    script = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from mmbench.executors import local
local.ENTRY, local.PRELOAD = {str(tmp_path / "entry.py")!r}, ("preloaded",)
local.LocalExecutor((local.Slot("cpu", None, 1),)).submit(Path({str(folder)!r}))
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", script])
    worker = pid_of(folder)
    template = parent(worker)
    assert parent(template) == process.pid
    process.kill()
    process.wait()
    wait_for(lambda: not alive(template), 10.0)
    wait_for(lambda: (folder / "through").exists(), 10.0)


@linux
@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_a_forked_trial_equals_the_same_trial_here(cache: Path, tmp_path: Path, threads: int) -> None:
    suite = parse_suite(
        {
            "name": "tiny",
            "methods": ["lora-qv"],
            "regimes": ["clean"],
            "seeds": [0],
            "datasets": [{"name": "synthetic-av", "samples": 60}],
            "backbones": [{"name": "cavmae-tiny", "epochs": 1}],
            "budget": {"samples": 20, "tuning_trials": 1, "batch_size": 10},
        }
    )
    ((trial, forked),) = plan(suite, tmp_path, torch.device("cpu"), lambda event: None)
    forked.mkdir(parents=True)
    (forked / "spec.json").write_text(trial.model_dump_json())
    here = tmp_path / "here"
    shutil.copytree(forked, here)
    executor = LocalExecutor((Slot("cpu", None, threads),))
    try:
        executor.submit(forked)
        finished = collect(executor)[forked.name]
    finally:
        executor.stop()
    assert finished.code == 0, finished.stderr
    assert run_trial(here, torch.device("cpu")) == "ok"
    one, two = load_record(forked / RECORD), load_record(here / RECORD)
    assert one.environment.threads == threads
    assert one.costs is not None and two.costs is not None and one.costs.training_state == two.costs.training_state
    if threads == 1:  # as many as the tests use
        assert one.scores == two.scores
        states = [load_states(folder)[""] for folder in (forked, here)]
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
