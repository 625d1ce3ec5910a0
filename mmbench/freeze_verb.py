"""What `data corrupt` does: reads the command line, and freezes or checks the test sets of every data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmbench.assets import use_assets
from mmbench.cases import Case, case_data, parse_cases
from mmbench.config import Suite
from mmbench.errors import ConfigError
from mmbench.feed import TrialData
from mmbench.freeze import check_sets, write_sets
from mmbench.prepare import prepare_data
from mmbench.runner import read_data
from mmbench.trials import suite_cases


@dataclass(frozen=True)
class FreezeRequest:
    """A command line, read."""

    what: Path
    """A suite, a folder of pairs, or a registered data set that needs no files."""
    cases: tuple[str, ...] = ()
    """The suite's unless given."""
    out: Path | None = None
    dry_run: bool = False
    check: Path | None = None
    overrides: tuple[str, ...] = ()


def freeze_command(request: FreezeRequest) -> None:
    """Write, size up or check the frozen sets of every data set of a suite."""
    if (request.out is None and not request.dry_run) == (request.check is None):
        raise ConfigError("choose one: --out DIR to write sets, --dry-run to size them up, --check DIR to check them")
    suite = read_data(request.what, request.overrides)
    cases = _cases(suite, request.cases)
    use_assets(suite.assets)
    known: set[Path] = set()  # backbones of one input size share a store
    for dataset in suite.datasets:
        for backbone in suite.backbones:
            data = prepare_data(dataset, backbone)
            if data.store.folder in known:
                continue
            known.add(data.store.folder)
            applicable = tuple(case for case in cases if not _told_unmet(case, data))
            if request.check is not None:
                check_sets(data, applicable, request.check)
            else:
                write_sets(data, applicable, request.out, request.dry_run)


def _cases(suite: Suite, names: Sequence[str]) -> tuple[Case, ...]:
    """Named cases, sets and corruptions, and what the suite itself writes out; all of the suite's without names."""
    own = {case.name: case for case in suite_cases(suite)[0]}
    if not names:
        return tuple(own.values())
    return parse_cases(case_data(own[name]) if name in own else name for name in names)


def _told_unmet(case: Case, data: TrialData) -> bool:
    reason = data.unmet(case)
    if reason is not None:
        print(f"{case.name}: {reason}")
    return reason is not None
