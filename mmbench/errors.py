"""Errors a user can act on: each names the thing, the value and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MMBenchError(Exception):
    """Base of every error that is reported without a traceback."""


class ConfigError(MMBenchError):
    """A suite, an option or a command line that cannot be used as written."""


class UnknownNameError(ConfigError):
    """A name that no registry holds; the message offers the nearest known ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        super().__init__(f"no {kind} '{name}'; {near_words(name, known)}")


def near_words(name: str, known: Iterable[str]) -> str:
    """The known names nearest to one that is not among them; all of them where none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean: {', '.join(near)}?" if near else f"known: {', '.join(known) or 'none'}"


class DataError(MMBenchError):
    """A data file or folder that is missing, broken or contradicts its description."""


class FrozenSetError(DataError):
    """A frozen test set that is absent, damaged or made from something else."""


class StoreError(DataError):
    """A store that is damaged, or changed since it was written."""


class CheckpointError(MMBenchError):
    """A checkpoint that does not fit the model it is loaded into."""


class RefusedError(MMBenchError):
    """A method that needs more than the track or the budget offers."""


class DoesNotFitError(MMBenchError):
    """One sample alone exceeds the memory cap."""


class DivergedError(MMBenchError):
    """The loss became NaN or infinite."""


class OverBudgetError(MMBenchError):
    """The wall clock of the budget ran out."""
