"""The conformance suite for a name of any kind that has one."""

from __future__ import annotations

from mmbench import registry
from mmbench.conformance import Finding, check_method
from mmbench.conformance_corruptions import check_corruption
from mmbench.conformance_online import check_online
from mmbench.conformance_strategies import check_strategy
from mmbench.errors import UnknownNameError


def check_entry(name: str) -> tuple[Finding, ...]:
    """Run every check on the entry of this name, whatever its kind. UnknownNameError if none has it."""
    suites = (
        (registry.methods().names(), check_method),
        (registry.strategies().names(), check_strategy),
        (registry.onlines().names(), check_online),
        (registry.corruptions().names(), check_corruption),
    )
    for names, check in suites:
        if name in names:
            return check(name)
    raise UnknownNameError(
        "method, strategy, online adapter or corruption", name, [known for names, _ in suites for known in names]
    )
