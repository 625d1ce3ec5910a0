"""Starts the ranks of a trial on this machine by torchrun, and tells what became of them."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from mmbench.errors import ConfigError, MMBenchError, StoreError
from mmbench.records import TrialRecord, load_record
from mmbench.resume import Interrupted

SCRIPT = Path(__file__).with_name("rank_process.py")
LOST_PEER, OUTSIDE, INTERRUPTED = 69, 74, 130
"""Exit codes of a rank: another one has gone; what no trial can help (its cause is left in words); asked to stop."""
NAMED = ("crashed", "does-not-fit")
"""Failures that are those of one rank; any other the ranks come to together, as a rule."""
SAME_SECONDS = 2.0
"""What torchrun ends itself, once a rank has failed, ends later than this."""


class RankDiedError(MMBenchError):
    """A rank of a trial ended without a word."""


def run_ranks(folder: Path, device: torch.device, world: int) -> TrialRecord:
    """The record of a trial that `world` processes run, each with a device of its own.

    Raises RankDiedError, Interrupted, StoreError where no trial can help, and ConfigError without enough devices.
    """
    _check(device, world)
    with tempfile.TemporaryDirectory(prefix="mmbench-ranks-") as left, _surroundings(world):
        words = [str(SCRIPT), str(folder.resolve()), device.type, left, str(os.getpid())]
        options = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(world), "--max-restarts", "0"]
        try:
            chosen = torchrun.parse_args([*options, "--log-dir", left, *words])  # type: ignore[no-untyped-call]
            torchrun.run(chosen)  # type: ignore[no-untyped-call]
        except SignalException:
            raise Interrupted from None
        except ChildFailedError as error:
            return _settle(error.failures, Path(left), world)
        return load_record(Path(left) / "0.json")


def _check(device: torch.device, world: int) -> None:
    if device.index is not None:
        raise ConfigError(f"device {device} is one, and budget.devices asks for {world}; use --device {device.type}")
    if device.type == "cuda" and torch.cuda.device_count() < world:
        raise ConfigError(f"budget.devices asks for {world} GPUs, and {torch.cuda.device_count()} can be seen")


@contextlib.contextmanager
def _surroundings(world: int) -> Iterator[None]:
    """Environment of the ranks: loopback alone, and threads that share the machine unless they are set."""
    usual = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    usual["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // world))
    # SIGTERM and Ctrl-C stay with this process: torchrun, which ends its ranks on any way out, would break off at a
    # second signal.
    usual["PET_SIGNALS_TO_HANDLE"] = "SIGHUP"
    usual["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # else DDP doubts in every log that tensors can go without a gradient
    added = {name: value for name, value in usual.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _settle(failures: dict[int, ProcessFailure], left: Path, world: int) -> TrialRecord:
    """What ended the ranks: the failure that came first, as the others only follow from it."""
    records = sorted(left.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    if records:
        record = load_record(records[0])
        alone = record.status in NAMED or len(records) < world
        if record.failure is None or not alone:  # the ranks were done before one of them failed
            return record
        named = f"rank {records[0].stem} of {world}: {record.failure.message}"
        return record.model_copy(update={"failure": record.failure.model_copy(update={"message": named})})
    for path in left.glob("*.txt"):
        raise StoreError(f"rank {path.stem} of {world}: {path.read_text()}")
    raise _cause(failures, world)


def _cause(failures: dict[int, ProcessFailure], world: int) -> BaseException:
    """What the exit codes tell, of ranks that left nothing else."""
    in_time = sorted(failures.items(), key=lambda entry: (entry[1].timestamp, entry[0]))
    first_seconds = in_time[0][1].timestamp
    killed, told = [], []
    for rank, failure in in_time:
        code = failure.exitcode
        if code < 0 and code != -signal.SIGTERM and failure.timestamp - first_seconds <= SAME_SECONDS:
            hint = " (out of host memory, unless someone ended it)" if code == -signal.SIGKILL else ""
            killed.append(f"rank {rank} of {world} was killed by signal {-code}{hint}")
        elif code > 0 and code not in (LOST_PEER, INTERRUPTED):
            told.append(f"rank {rank} of {world} ended with exit code {code} and without a record")
    if killed or told:
        return RankDiedError((killed or told)[0])
    if INTERRUPTED in (failure.exitcode for failure in failures.values()):
        return Interrupted()
    return RankDiedError(f"the {world} ranks lost each other")
