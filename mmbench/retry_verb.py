"""What `retry` does: run trials of a folder again, by the suite that the folder keeps."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mmbench import registry
from mmbench.errors import ConfigError
from mmbench.layout import SUITE
from mmbench.mirror import typed_words
from mmbench.records import FAILED, Status
from mmbench.runner import RunRequest, run_command
from mmbench.status import Standing, standing
from mmbench.status_files import read_spec


def retry_command(request: RunRequest, failed: bool, quiet: bool, as_json: bool) -> Any:
    """Run what ended in one of the request's statuses again, and whatever is unfinished; None if there is nothing.

    `request.out` is the folder or URL, `request.suite` the folder where its records lie. Raises ConfigError if its
    suite cannot be run as it stands there.
    """
    assert request.out is not None  # the verb's argument
    wanted = replace(request, suite=request.suite / SUITE, retry=(*request.retry, *(FAILED if failed else ())))
    statuses = wanted.statuses()
    if not statuses:
        raise ConfigError("say what to run again: --failed, or --status crashed")
    now = standing(request.suite)
    typed = typed_words(request.out)
    if now.note:
        raise ConfigError(f"{now.note}{_plugin_words(now, typed, statuses)}")
    found = [entry for entry in now.ended if entry.status in statuses]
    if not found and not now.unfinished:
        print(f"nothing to run again in {typed}: no trial is {' or '.join(statuses)}", file=sys.stderr)
        return None
    if not quiet and not as_json:
        unfinished = f", and {now.unfinished} unfinished" if now.unfinished else ""
        print(f"{len(found)} trials run again{unfinished}; their records stay as trial.json.old", file=sys.stderr)
    return run_command(wanted, quiet, as_json)


def _plugin_words(now: Standing, typed: str, statuses: Sequence[Status]) -> str:
    """The command with the plugins that its trials name: a folder may come from anywhere, so the user says it."""
    specs = (read_spec(now.folder / "trials" / entry.id) for entry in now.ended)
    used = dict.fromkeys(path for spec in specs if spec is not None for path in spec.plugins)
    missing = [path for path in used if path not in registry.plugins()]
    if not missing:
        return ""
    words = [f"--status {status}" for status in statuses] + [f"--plugin {shlex.quote(str(path))}" for path in missing]
    return f"; its trials used a plugin: mmbench retry {shlex.quote(typed)} {' '.join(words)}"
