"""One rank of a trial, as torchrun starts it: `rank_process.py FOLDER DEVICE LEFT PARENT`.

The first rank leaves the record in the folder LEFT, and so does one that fails. All of them end once the process
that started them, PARENT, has gone.
"""

from __future__ import annotations

import sys

if not __package__:
    sys.path.pop(0)  # this folder, whose modules must not be importable as top-level names

import os
import threading
import time
from pathlib import Path

import torch
from torch import distributed as dist

from mmbench.endings import is_outside
from mmbench.files import write_atomic
from mmbench.launch import INTERRUPTED, LOST_PEER, NAMED, OUTSIDE
from mmbench.ranks import Ranks
from mmbench.resume import Interrupted
from mmbench.run import run_rank, sigterm_raises

WATCH_SECONDS = 0.5


def main(folder: str, kind: str, left: str, parent: str) -> int:
    """Exit code; 0 once all ranks have run the trial to the same end."""
    threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()
    ranks = Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    device = torch.device(kind, ranks.rank) if kind == "cuda" else torch.device(kind)
    place = Path(left) / str(ranks.rank)
    try:
        with sigterm_raises(Interrupted):
            _join(device)
            record = run_rank(Path(folder), device, ranks)
    except (Interrupted, KeyboardInterrupt):
        return INTERRUPTED
    except Exception as error:
        if is_outside(error):
            write_atomic(place.with_suffix(".txt"), str(error).encode())
            return OUTSIDE
        if ranks.lost(error):
            print(f"rank {ranks.rank}: another rank has gone: {str(error)[:200]}", file=sys.stderr)
            return LOST_PEER
        raise
    if ranks.first or record.failure is not None:
        write_atomic(place.with_suffix(".json"), record.model_dump_json().encode())
    return 1 if record.status in NAMED else 0


def _join(device: torch.device) -> None:
    """Meet the other ranks at the place that torchrun names in the environment."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os._exit(LOST_PEER)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
