"""Facts of the machine and the software, for records and for `mmbench doctor`."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from mmbench import registry
from mmbench.records import Environment

WORKERS = "MMBENCH_WORKERS"
"""Set by a sweep for its workers: how many of them share the machine."""
PACKAGES = ("mmbench", "torch", "torchvision", "torchaudio", "timm", "peft", "loralib", "numpy", "scipy", "pandas")


def environment(device: torch.device, devices: int = 1) -> Environment:
    """Where and with what this process runs."""
    commit, dirty = git_state(registry.ROOT)
    return Environment(
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        python=platform.python_version(),
        platform=platform.platform(),
        device=device_name(device),
        device_kind="cuda" if device.type == "cuda" else "cpu",
        threads=torch.get_num_threads(),
        workers=int(os.environ[WORKERS]) if os.environ.get(WORKERS, "").isdigit() else None,
        devices=devices,
        packages={name: found for name in PACKAGES if (found := package_version(name))},
        commit=commit,
        dirty=dirty,
        deterministic=device.type == "cpu" or torch.are_deterministic_algorithms_enabled(),
        plugins={path.name: registry.file_digest(path) for path in registry.plugins()},
    )


def package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def device_name(device: torch.device) -> str:
    """GPU model, or the processor's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


def git_state(folder: Path) -> tuple[str | None, bool | None]:
    """Commit and whether tracked files differ from it; None outside a checkout."""
    if not (folder / ".git").exists():
        return None, None
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit, bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
