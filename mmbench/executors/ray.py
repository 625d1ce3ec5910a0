"""Trials as Ray core tasks, each of which starts a fresh process with its share of the node."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmbench.errors import ConfigError
from mmbench.executors.base import Finished, Share, parse_options, tail
from mmbench.executors.there import run_there
from mmbench.layout import STDERR

OPTIONS: dict[str, type] = {"address": str, "cpus": int}
LOST = -9
"""Exit code told of a task whose Ray worker or node died."""
KNOCK_SECONDS = 10.0
PASSED_ON = ("MMBENCH_", "PYTHONPATH")
"""Beginnings of the names of environment variables that trials on other nodes need too."""


class RayExecutor:
    """Every trial is a task that is not retried by Ray: the sweep decides what runs again.

    Without an address a Ray of its own is started on this machine. Raises ConfigError if Ray is missing or cannot be
    reached.
    """

    def __init__(self, share: Share, words: tuple[str, ...]):
        options = parse_options(words, OPTIONS, "ray")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a benchmark reports to nobody
        self._ray = _connected(str(options.get("address", "local")))
        self._share = replace(share, threads=int(options.get("cpus", share.threads)))
        self._check_nodes()
        self._task = self._ray.remote(num_cpus=self._share.cores, num_gpus=self._share.gpus, max_retries=0)(run_there)
        self._variables = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
        self._running: dict[Any, Path] = {}

    def _check_nodes(self) -> None:
        """Raises ConfigError where Ray would wait for ever."""
        wanted = {"CPU": float(self._share.cores), **({"GPU": float(self._share.gpus)} if self._share.gpus else {})}
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if not any(all(node.get(name, 0.0) >= need for name, need in wanted.items()) for node in nodes):
            words = " and ".join(f"{need:g} {name}" for name, need in wanted.items())
            raise ConfigError(f"no node of the Ray cluster has {words} for a trial; set --executor-option cpus=N")

    def has_room(self) -> bool:
        return True

    def running(self) -> tuple[Path, ...]:
        return tuple(self._running.values())

    def submit(self, folder: Path) -> None:
        place = str(folder.resolve())
        self._running[self._task.remote(place, self._share.device, self._share.threads, self._variables)] = folder

    def collect(self) -> list[Finished]:
        if not self._running:
            return []
        ready, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        return [self._finish(reference) for reference in ready]

    def _finish(self, reference: Any) -> Finished:
        folder = self._running.pop(reference)
        try:
            code = int(self._ray.get(reference))
        except self._ray.exceptions.RayError as error:
            return Finished(folder, LOST, f"the Ray worker ended: {str(error).splitlines()[0][:300]}")
        return Finished(folder, code, tail(folder / STDERR))

    def stop(self) -> None:
        for reference in self._running:
            self._ray.cancel(reference)  # interrupts the task, which asks its trial to leave
        if self._running:
            self._ray.wait(list(self._running), num_returns=len(self._running), timeout=40)
        self._running = {}
        self._ray.shutdown()


def _connected(address: str) -> Any:
    try:
        import ray
    except ImportError:
        raise ConfigError('executor ray needs Ray: pip install "mmbench[ray]"') from None
    _knock(address)
    own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, **own)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ConfigError(f"cannot reach Ray at '{address}': {str(error).splitlines()[0][:200]}") from None
    return ray


def _knock(address: str) -> None:
    """Raises ConfigError where nothing listens; Ray itself would try for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host:  # `local`, `auto`: Ray knows by itself whether there is one
        return
    try:
        socket.create_connection((host, int(port)), KNOCK_SECONDS).close()
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot reach Ray at '{address}': {error}; give host:port of its head node") from None
