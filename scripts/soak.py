"""A long run under fire: many tiny trials whose workers, their parent and the sweep are killed at random until all end.

    python scripts/soak.py [--trials 500] [--workers 2] [--every 3] [--seed 0] [--out FOLDER]

Then every trial must have one whole record, none may have run after it was finished or twice at once, no claim and no
half file may be left, and open files, memory and disk must have stayed within bounds. Linux only: it looks into /proc.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from mmbench.claims import CLAIM
from mmbench.executors.base import ENTRY
from mmbench.records import MARKER, RECORD, finished_record
from mmbench.status import standing

POLL_SECONDS = 0.1
LOOK_EVERY = 10
"""Polls between two looks at all records."""
MOST_FILES = 64
"""Open files of a sweep or of its template."""
MOST_GROWTH_BYTES = 64 * 2**20
"""Of a sweep's resident memory, from its first trial on."""
MOST_TIMES = 3
"""How much larger than the median a trial's folder may be."""
ODDS = {"worker": 0.75, "template": 0.05, "sweep": 0.2}
"""Who is killed, worker's parent and sweep included."""
PLUGIN = '''
import os, sys, time
from pathlib import Path
from mmbench.method import Method
from mmbench.registry import method

STARTS = Path(__file__).parent / "starts"


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


@method("soaked", title="Soaked", family="soak", reference="none", year=2026, memory="M0")
class Soaked(Method):
    """Trains the head, and leaves a line for each of its starts: trial, process, time, and whether it is not alone."""

    def build(self, rng):
        trial = Path(sys.argv[-3]).name
        STARTS.touch()
        before = [line.split() for line in STARTS.read_text().splitlines()]
        twice = any(known == trial and alive(pid) for known, pid, *_ in before)
        with STARTS.open("a") as log:
            log.write(f"{trial} {os.getpid()} {time.time()} {int(twice)}\\n")
'''


@dataclass(frozen=True)
class Plan:
    """What is run, and how it is disturbed."""

    folder: Path
    trials: int
    workers: int
    every_seconds: float
    """Mean time between two kills, once a sweep has begun with its trials."""

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def suite(self) -> dict[str, object]:
        return {
            "name": "soak",
            "methods": ["soaked"],
            "regimes": ["clean"],
            "cases": ["complete"],
            "seeds": list(range(self.trials)),
            "datasets": [{"name": "synthetic-av", "samples": 60}],
            "backbones": [{"name": "cavmae-tiny", "epochs": 1}],
            "budget": {"samples": 10, "tuning_trials": 1, "batch_size": 10},
        }


@dataclass
class Log:
    """What was seen on the way."""

    kills: Counter[str] = field(default_factory=Counter)
    sweeps: int = 0
    most_files: int = 0
    most_growth_bytes: int = 0
    most_rss_bytes: int = 0
    finished: dict[str, bytes] = field(default_factory=dict)
    """Trial -> the record it was first seen with."""
    redone: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Check:
    what: str
    wrong: str
    """Empty if it holds."""


def soak(plan: Plan, rng: random.Random) -> Log:
    """Sweeps, one after the other, until one comes to its end with every trial well."""
    (plan.folder / "suite.yaml").write_text(yaml.safe_dump(plan.suite()))
    (plan.folder / "plugin.py").write_text(PLUGIN)
    log = Log()
    failed = False
    while not (plan.out / "trials").is_dir() or standing(plan.out).statuses["ok"] < plan.trials:
        command = ["retry", str(plan.out), "--failed"] if failed else ["run", str(plan.folder / "suite.yaml")]
        command += [] if failed else ["--out", str(plan.out)]
        command += ["--plugin", str(plan.folder / "plugin.py"), "--workers", str(plan.workers), "--device", "cpu", "-q"]
        with (plan.folder / "sweeps.txt").open("a") as said:
            sweep = subprocess.Popen([sys.executable, str(ENTRY), *command], stderr=said, stdout=said)
        log.sweeps += 1
        _disturb(sweep, plan, rng, log)
        if sweep.returncode not in (0, 1, -signal.SIGKILL):
            raise SystemExit(f"a sweep ended with exit code {sweep.returncode}; see {plan.folder / 'sweeps.txt'}")
        failed = sweep.returncode == 1  # some workers were killed as often as a sweep starts a trial
    return log


def _disturb(sweep: subprocess.Popen[bytes], plan: Plan, rng: random.Random, log: Log) -> None:
    """Kill now and then, from the first worker on, until the sweep has gone; `log` takes in what is seen."""
    next_kill, first_rss = None, 0
    for poll in itertools.count():
        time.sleep(POLL_SECONDS)
        if sweep.poll() is not None:
            return
        templates = children(sweep.pid)
        workers = [pid for template in templates for pid in children(template)]
        if poll % LOOK_EVERY == 0:
            _look(plan, log)
        if not workers:
            continue
        rss = rss_bytes(sweep.pid)
        first_rss = first_rss or rss
        log.most_rss_bytes = max(log.most_rss_bytes, rss)
        log.most_growth_bytes = max(log.most_growth_bytes, rss - first_rss)
        log.most_files = max(log.most_files, *map(open_files, [sweep.pid, *templates]))
        if next_kill is None:
            next_kill = time.monotonic() + rng.expovariate(1 / plan.every_seconds)
        if time.monotonic() >= next_kill:
            kind = rng.choices(list(ODDS), list(ODDS.values()))[0]
            among = {"worker": workers, "template": templates, "sweep": [sweep.pid]}[kind]
            if _kill(rng.choice(among)):
                log.kills[kind] += 1
            next_kill = time.monotonic() + rng.expovariate(1 / plan.every_seconds)


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _look(plan: Plan, log: Log) -> None:
    """Note what is finished now, and whether anything that was finished well has changed."""
    for folder in (path.parent for path in plan.out.glob(f"trials/*/{MARKER}")):
        content = finished_record(folder)
        if content is None:
            continue
        if folder.name not in log.finished and json.loads(content)["status"] == "ok":
            log.finished[folder.name] = content
        elif log.finished.get(folder.name, content) != content:
            log.redone.add(folder.name)


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def open_files(pid: int) -> int:
    try:
        return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return 0


def rss_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def checks(plan: Plan, log: Log) -> Iterator[Check]:
    """What must hold in the end."""
    now = standing(plan.out)
    folders = sorted((plan.out / "trials").iterdir())
    counted = f"{dict(now.statuses)}, {now.unfinished} unfinished"
    whole = now.statuses == {"ok": plan.trials} and not now.unfinished and len(folders) == plan.trials
    yield Check("every trial has one whole record", "" if whole else counted)
    names = [json.loads((folder / RECORD).read_bytes())["trial"]["id"] for folder in folders]
    alien = [folder.name for folder, name in zip(folders, names, strict=True) if folder.name != name]
    yield Check("every record is that of its folder", _shown(alien))
    yield Check("no finished record was written again", _shown(sorted(log.redone)))
    starts = [line.split() for line in (plan.folder / "starts").read_text().splitlines()]
    ends = {folder.name: (folder / RECORD).stat().st_mtime for folder in folders}
    yield Check("no trial ran after it was finished", _shown([t for t, _, when, _ in starts if float(when) > ends[t]]))
    yield Check("no trial ran twice at once", _shown([trial for trial, _, _, twice in starts if twice == "1"]))
    left = [path for folder in folders for path in folder.iterdir() if path.name.startswith(".") or path.name == CLAIM]
    yield Check("no claim and no half file is left", _shown([str(path.relative_to(plan.out)) for path in left]))
    yield Check("open files are bounded", f"{log.most_files}" if log.most_files > MOST_FILES else "")
    grown = log.most_growth_bytes
    yield Check("the sweep's memory is bounded", f"grew by {grown} bytes" if grown > MOST_GROWTH_BYTES else "")
    sizes = {folder.name: _size_bytes(folder) for folder in folders}
    median = sorted(sizes.values())[len(sizes) // 2]
    large = [name for name, size in sizes.items() if size > MOST_TIMES * median]
    yield Check("no trial's folder has grown", _shown(large))


def _shown(names: list[str]) -> str:
    return f"{len(names)}: {', '.join(names[:3])}" if names else ""


def _size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--every", type=float, default=3.0, help="mean seconds between two kills")
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    parser.add_argument("--out", type=Path, help="a new folder; a temporary one unless given")
    given = parser.parse_args()
    folder = (given.out or Path(tempfile.mkdtemp(prefix="mmbench-soak-"))).resolve()
    folder.mkdir(parents=True, exist_ok=given.out is None)
    plan = Plan(folder, given.trials, given.workers, given.every)
    began = time.monotonic()
    log = soak(plan, random.Random(given.seed))
    _look(plan, log)
    kills = ", ".join(f"{count} x {kind}" for kind, count in log.kills.items()) or "nobody"
    print(f"{plan.trials} trials in {time.monotonic() - began:.0f} s by {log.sweeps} sweeps; killed: {kills}")
    starts = len((folder / "starts").read_text().splitlines())
    memory = f"{log.most_rss_bytes / 2**20:.0f} MiB (grew by {log.most_growth_bytes / 2**20:.0f})"
    disk = _size_bytes_below(plan.out) / 2**20
    print(f"{starts} starts; at most {log.most_files} open files, {memory} of a sweep, {disk:.1f} MiB of results")
    found = list(checks(plan, log))
    for check in found:
        print(f"{'FAIL' if check.wrong else 'ok  '} {check.what}{f' ({check.wrong})' if check.wrong else ''}")
    return int(any(check.wrong for check in found))


def _size_bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    sys.exit(main())
