"""Every registered method keeps every rule; a new method is tested by being registered."""

from __future__ import annotations

import pytest

from mmbench import registry
from mmbench.conformance import CHECKS, Check, check_method, run_check
from mmbench.conformance_bed import Bed, Subject
from mmbench.errors import UnknownNameError


@pytest.mark.parametrize("name", registry.methods().names())
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_method_keeps_the_rule(name: str, check: Check) -> None:
    finding = run_check(check, Subject(name, Bed(), {}))
    assert finding.ok, finding.message


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lora-qv", {"rank": 2, "alpha": 1.0}),
        ("lora-qkv", {"rank": 3, "dropout": 0.1}),
        ("adapter-pfeiffer", {"rank": 4}),
        ("prompt-the-missing", {"length": 1, "position": "attention"}),
        ("prompt-the-missing", {"length": 5, "position": "input"}),
    ],
)
def test_rules_hold_for_other_options_too(name: str, options: dict[str, object]) -> None:
    assert [finding.message for finding in check_method(name, options=options) if not finding.ok] == []


def test_an_unknown_method_is_an_error_and_not_a_finding() -> None:
    with pytest.raises(UnknownNameError, match="did you mean: lora-qv"):
        check_method("lora-qq")
