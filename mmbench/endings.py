"""What an error says of the trial that it ends."""

from __future__ import annotations

import traceback

from mmbench.errors import (
    ConfigError,
    DivergedError,
    DoesNotFitError,
    FrozenSetError,
    MMBenchError,
    OverBudgetError,
    RefusedError,
    StoreError,
)
from mmbench.files import no_room
from mmbench.records import Failure, Status
from mmbench.steps import out_of_memory

STATUSES: tuple[tuple[type[Exception], Status], ...] = (
    (RefusedError, "refused"),
    (ConfigError, "refused"),
    (DoesNotFitError, "does-not-fit"),
    (DivergedError, "diverged"),
    (OverBudgetError, "over-budget"),
)


def is_outside(error: Exception) -> bool:
    """Whether an error is no fault of the trial: once the cause is mended, the same command runs the trial again."""
    return isinstance(error, (FrozenSetError, StoreError)) or no_room(error)


def classify(error: Exception) -> tuple[Status, Failure]:
    """The status an error stands for; whatever is not foreseen is a crash and keeps its traceback."""
    status: Status = next((status for kind, status in STATUSES if isinstance(error, kind)), "crashed")
    if status == "crashed" and out_of_memory(error):
        status = "does-not-fit"
    trace = "".join(traceback.format_exception(error))[-4000:] if status == "crashed" else None
    message = str(error) if isinstance(error, MMBenchError) else f"{type(error).__name__}: {error}"
    return status, Failure(kind=type(error).__name__, message=message[:2000], traceback=trace)
