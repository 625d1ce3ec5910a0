"""What `profile` does: every combination of methods and settings, one row each, whatever becomes of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console

from mmbench import registry
from mmbench.backbone.config import preset
from mmbench.bench import pick_device
from mmbench.endings import classify
from mmbench.environment import environment
from mmbench.errors import ConfigError, UnknownNameError
from mmbench.profile_rows import Plan, Precision, ProfileRow, Setting, write_row
from mmbench.profiling import profile
from mmbench.records import Environment
from mmbench.report.profile import profile_table, write_profile
from mmbench.report.profile_plots import write_plots
from mmbench.report.text import for_terminal

EVERY = "all"
"""In place of methods: all that train."""
META = "meta"
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True)
class Grid:
    """What is combined; words as the command line gives them, each a value or several with commas between."""

    methods: Sequence[str]
    backbones: str = "cavmae-tiny"
    batches: str = "8"
    precisions: str = "fp32"
    options: Sequence[str] = ()
    """`name=v1,v2`; a method without that option has one row for all of them."""
    compile: bool = False


def settings(grid: Grid) -> tuple[Setting, ...]:
    """Every combination, methods together. Raises ConfigError for a name or value that no row could have."""
    known = registry.methods()
    methods = list(dict.fromkeys(name for word in _words(grid.methods) for name in _methods(word)))
    offered = _options(grid.options)
    for key in offered:
        if not any(key in known.card(name).options for name in methods):
            raise UnknownNameError("option of these methods", key, {k for n in methods for k in known.card(n).options})
    backbones = [preset(name).name for name in _words([grid.backbones])]
    batches = [_batch(text) for text in _words([grid.batches])]
    precisions = [_precision(text) for text in _words([grid.precisions])]
    for given, what in ((methods, "method"), (backbones, "backbone"), (batches, "batch"), (precisions, "precision")):
        if not given:
            raise ConfigError(f"no {what} is named; there is nothing to profile")
    rows = []
    for name, backbone, batch, precision in product(methods, backbones, batches, precisions):
        defaults = known.card(name).options
        own = {key: [_typed(name, key, text) for text in texts] for key, texts in offered.items() if key in defaults}
        for values in product(*own.values()):
            options = dict(zip(own, values, strict=True))
            row = Setting(method=name, backbone=backbone, batch=batch, precision=precision, options=options)
            rows.append(row.model_copy(update={"compile": grid.compile}))
    return tuple(rows)


def _words(texts: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(word.strip() for text in texts for word in text.split(",") if word.strip()))


def _methods(word: str) -> list[str]:
    known = registry.methods()
    if word == EVERY:
        return [name for name in known.names() if known.card(name).trains]
    return [known.card(word).name]


def _options(texts: Sequence[str]) -> dict[str, list[str]]:
    found = {}
    for text in texts:
        key, equals, values = text.partition("=")
        if not equals or not _words([values]):
            raise ConfigError(f"option '{text}' is not of the form name=value or name=v1,v2")
        found[key.strip()] = _words([values])
    return found


def _batch(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ConfigError(f"batch '{text}' is not a number of samples, at least 1")
    return int(text)


def _precision(text: str) -> Precision:
    for known in PRECISIONS:
        if text == known:
            return known
    raise ConfigError(f"no precision '{text}'; use fp32 or bf16")


def _typed(method: str, key: str, text: str) -> Any:
    """The text as a value of the default's type."""
    default = registry.methods().card(method).options[key]
    if isinstance(default, bool):
        return {"true": True, "false": False}.get(text.lower(), text)
    if not isinstance(default, (int, float)):
        return text
    try:
        return type(default)(text)
    except ValueError:
        raise ConfigError(f"option {key} of {method} must be like {default!r}; got '{text}'") from None


@dataclass(frozen=True)
class Output:
    """Where rows go beside the terminal."""

    folder: Path | None = None
    as_json: bool = False


def profile_device(wanted: str | None) -> torch.device:
    return torch.device(META) if wanted == META else pick_device(wanted)


def run_grid(rows: Sequence[Setting], plan: Plan, wanted: str | None, output: Output) -> tuple[ProfileRow, ...]:
    """Profile row after row; each is written when it is done, tables and plots at the end or when interrupted.

    Raises KeyboardInterrupt after that. Raises ConfigError for a trace or compiled blocks without a device.
    """
    device = profile_device(wanted)
    for wanted_too, flag in ((plan.trace is not None, "--trace"), (any(row.compile for row in rows), "--compile")):
        if device.type == META and wanted_too:
            raise ConfigError(f"nothing runs on the meta device; leave out {flag}")
    done: list[ProfileRow] = []
    try:
        for row in _run(rows, plan, device):
            done.append(row)
            _tell(row, len(done), len(rows), output)
    finally:
        if done:
            _finish(tuple(done), output)
    return tuple(done)


def _run(rows: Sequence[Setting], plan: Plan, device: torch.device) -> Iterator[ProfileRow]:
    where = _where(device)
    for setting in rows:
        facts: dict[str, Any] = {
            "setting": setting,
            "memory_cap_gib": plan.memory_cap_gib,
            "device": device.type,
            "environment": where,
        }
        try:
            counts, measured = profile(setting, plan, device)
            yield ProfileRow(status="ok", counts=counts, measured=measured, **facts)
        except Exception as error:
            status, failure = classify(error)
            yield ProfileRow(status=status, failure=failure, **facts)


def _where(device: torch.device) -> Environment:
    found = environment(torch.device("cpu") if device.type == META else device)
    return found.model_copy(update={"device": "meta (counted, nothing run)"}) if device.type == META else found


def _tell(row: ProfileRow, done: int, total: int, output: Output) -> None:
    if output.folder is not None:
        write_row(row, output.folder / "rows")
    if output.as_json:
        print(row.model_dump_json(), flush=True)
    else:
        reason = f": {row.failure.message}" if row.failure else ""
        print(f"{done}/{total} {row.setting.method} {row.setting.words}: {row.status}{reason}", file=sys.stderr)


def _finish(rows: tuple[ProfileRow, ...], output: Output) -> None:
    if not output.as_json:
        console = Console()
        console.print(for_terminal(profile_table(rows), console.width))
    if output.folder is not None:
        write_profile(rows, output.folder)
        write_plots(rows, output.folder)
        if not output.as_json:
            print(f"rows, tables and plots in {output.folder}", file=sys.stderr)
