"""What `doctor` reports: versions, device, caches, registries, and what is wrong with them."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mmbench import registry
from mmbench.bench import pick_device
from mmbench.environment import environment
from mmbench.files import cache_folder

LOW_DISK_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Finding:
    what: str
    value: str
    ok: bool = True
    advice: str = ""


def report() -> tuple[Finding, ...]:
    """Everything worth knowing before a run."""
    device = pick_device()
    facts = environment(device)
    packages = ", ".join(f"{name} {version}" for name, version in facts.packages.items())
    commit = f"{facts.commit[:10]}{' (with changes)' if facts.dirty else ''}" if facts.commit else "not a checkout"
    return (
        Finding("python", facts.python),
        Finding("platform", facts.platform),
        Finding("packages", packages),
        Finding("commit", commit),
        Finding("device", f"{facts.device} ({facts.device_kind}), {facts.threads} threads"),
        _gpu_memory(device),
        _cache(cache_folder()),
        *_registries(),
    )


def _gpu_memory(device: torch.device) -> Finding:
    if device.type != "cuda":
        return Finding("gpu memory", "no GPU: memory is counted as training state, and as resident size")
    free, total = torch.cuda.mem_get_info(device)
    busy = free < 0.9 * total
    advice = "another process uses this GPU; costs measured now will not compare" if busy else ""
    return Finding("gpu memory", f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free", not busy, advice)


def _cache(folder: Path) -> Finding:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        return Finding("cache", str(folder), False, "no folder one can write to; set MMBENCH_CACHE to another folder")
    advice = "little space left; set MMBENCH_CACHE to another disk" if free < LOW_DISK_BYTES else ""
    return Finding("cache", f"{folder}, {free / 2**30:.1f} GiB free", free >= LOW_DISK_BYTES, advice)


def _registries() -> list[Finding]:
    findings = []
    every: dict[str, registry.Registry[Any]] = {
        "methods": registry.methods(),
        "training strategies": registry.strategies(),
        "online adapters": registry.onlines(),
        "corruptions": registry.corruptions(),
        "datasets": registry.datasets(),
    }
    for words, found in every.items():
        findings.append(Finding(words, str(len(found.names()))))
        findings += [Finding(f"broken {found.kind}", b.label, False, b.reason) for b in found.broken]
    return findings


def print_report(as_json: bool) -> bool:
    """Print the report; False if something is wrong."""
    findings = report()
    if as_json:
        print(json.dumps([finding.__dict__ for finding in findings]))
    else:
        console = Console(highlight=False)
        for finding in findings:
            mark = "ok  " if finding.ok else "BAD "
            console.print(f"{mark}{finding.what}: {finding.value}", markup=False)
            if finding.advice:
                console.print(f"      {finding.advice}", markup=False)
    return all(finding.ok for finding in findings)
