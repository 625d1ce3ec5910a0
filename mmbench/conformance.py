"""What every method must keep to, checked by name on a model so small that all checks take a second.

No test framework is needed: `check_method("lora-qv")` returns findings, for built-in methods and plugins alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mmbench import conformance_checks as checks
from mmbench import registry
from mmbench.conformance_bed import Bed, Subject
from mmbench.conformance_resume import resumes


@dataclass(frozen=True)
class Check:
    """One rule; the function returns what is wrong and how to mend it, or None."""

    name: str
    function: Callable[[Subject], str | None]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    check: str
    ok: bool
    message: str


CHECKS = (
    Check("identity-at-start", checks.identity_at_start),
    Check("gradients-reach", checks.gradients_reach),
    Check("frozen-unchanged", checks.frozen_unchanged),
    Check("state-round-trip", checks.state_round_trip),
    Check("start-is-restored", checks.start_is_restored),
    Check("export-equals-predict", checks.export_equals_predict),
    Check("alone-equals-batch", checks.alone_equals_batch),
    Check("count-is-declared", checks.count_is_declared),
    Check("blind-call", checks.blind_call),
    Check("training-knowledge", checks.training_knowledge),
    Check("phases-share", checks.phases_share),
    Check("groups-cover", checks.groups_cover),
    Check("predict-is-pure", checks.predict_is_pure),
    Check("micro-batches", checks.micro_batches),
    Check("view-is-pure", checks.view_is_pure),
    Check("start-is-seeded", checks.start_is_seeded),
    Check("combined-state", checks.combined_state),
    Check("resumes", resumes),
)


def check_method(name: str, bed: Bed | None = None, options: Mapping[str, Any] | None = None) -> tuple[Finding, ...]:
    """Run every check on a registered method. Raises UnknownNameError if there is none of that name."""
    registry.methods().card(name)
    subject = Subject(name, bed or Bed(), options or {})
    return tuple(run_check(check, subject) for check in CHECKS)


def run_check(check: Check, subject: Subject) -> Finding:
    """One check; a method that raises fails it. The global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            message = check.function(subject)
        except Exception as error:
            message = f"raised {type(error).__name__}: {error}"
    return Finding(check.name, message is None, message or "")
