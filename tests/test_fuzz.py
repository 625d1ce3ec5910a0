"""Files that others made, damaged at random: the outcome is a value or an error that names the file, and comes soon.

`MMBENCH_FUZZ=long` looks a hundred times longer; scripts/fuzz.py searches by coverage without end.
"""

from __future__ import annotations

import copy
import json
import os
from typing import Any

import pytest
import yaml
from fuzz_targets import SUITE, attempt, targets
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

LONG = os.environ.get("MMBENCH_FUZZ") == "long"
EXAMPLES = 2000 if LONG else 40
TARGETS = targets()
PLAIN = {name: json.loads(t.seeds[0]) for name, t in TARGETS.items() if t.file.endswith(".json") or name == "claim"}
PLAIN["suite"] = yaml.safe_load(SUITE)
quick = settings(
    max_examples=EXAMPLES, deadline=None, database=None, derandomize=not LONG, suppress_health_check=list(HealthCheck)
)

SPELT = (  # raw JSON that no reader may stumble over
    *("NaN", "-Infinity", "1e999", "9" * 30, "9" * 5000, "-1", "0", "true", "null", "1e-300", "[]", "{}"),
    *('"\\ud800"', '"\\u0000"', '"../../x"', '"/etc/passwd"', '"~nobody-of-this-name/x"', '"\\u001b[2J"', '"é/名"'),
    *(f'"{"a" * 5000}"', "[" * 60 + "]" * 60, "[" * 20_000 + "]" * 20_000, '{"a":' * 400 + "1" + "}" * 400),
)


@st.composite
def damaged(draw: st.DrawFn, seed: bytes) -> bytes:
    """Bytes of a sound file, cut, doubled, flipped or overwritten in a few places."""
    content = bytearray(seed)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(0, len(content) - 1)))
        end = draw(st.integers(start, min(len(content), start + draw(st.sampled_from((1, 4, 8, 64, 10**6))))))
        change = draw(st.sampled_from(("cut", "double", "ones", "random", "end")))
        if change == "cut":
            del content[start:end]
        elif change == "double":
            content[start:start] = content[start:end]
        elif change == "ones":
            content[start:end] = b"\xff" * (end - start)
        elif change == "random":
            content[start:end] = draw(st.binary(max_size=16))
        else:
            del content[start:]
    return bytes(content)


@st.composite
def misspelt(draw: st.DrawFn, value: Any) -> bytes:
    """A sound document with a hostile value or key somewhere in it."""
    document = {"root": copy.deepcopy(value)}
    for number in range(draw(st.integers(1, 2))):
        place, key = _place(draw, document)
        mark = f"@{number}@"
        if isinstance(place, dict) and key != "root" and draw(st.booleans()):
            place[mark] = place.pop(key) if draw(st.booleans()) else 1
        else:
            place[key] = mark
    text = json.dumps(document["root"])
    names = [spelt for spelt in SPELT if spelt.startswith('"')]
    for number in range(2):
        text = text.replace(f'"@{number}@":', f"{draw(st.sampled_from(names))}:")
        text = text.replace(f'"@{number}@"', draw(st.sampled_from(SPELT)))
    return text.encode()


def _place(draw: st.DrawFn, document: dict[str, Any]) -> tuple[Any, Any]:
    """Somewhere in a document: a container and a key of it."""
    here: Any = document
    key: Any = "root"
    while isinstance(here[key], (dict, list)) and here[key] and draw(st.integers(0, 4)):
        here = here[key]
        key = draw(st.sampled_from(sorted(here))) if isinstance(here, dict) else draw(st.integers(0, len(here) - 1))
    return here, key


def test_the_sound_examples_are_read() -> None:
    """Or the damage would never get beyond the first check."""
    unfinished = {"clips", "labels", "frozen", "index", "outcomes"}  # need files or sums that the examples lack
    assert {name for name, target in TARGETS.items() if attempt(target, target.seeds[0])} == unfinished


@pytest.mark.timeout(3600 if LONG else 60)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_end_with_a_named_cause(name: str) -> None:
    @quick
    @given(damaged(TARGETS[name].seeds[0]))
    @example(b"")
    @example(b"plain text, whatever the name says\n")
    @example(bytes(4096))
    @example(b"\xff" * 64)
    def check(content: bytes) -> None:
        attempt(TARGETS[name], content)

    check()


@pytest.mark.timeout(3600 if LONG else 60)
@pytest.mark.parametrize("name", PLAIN)
def test_hostile_values_end_with_a_named_cause(name: str) -> None:
    @quick
    @given(misspelt(PLAIN[name]))
    def check(content: bytes) -> None:
        attempt(TARGETS[name], content)

    check()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("spelt", SPELT, ids=range(len(SPELT)))
def test_a_hostile_value_alone_is_refused_everywhere(spelt: str) -> None:
    for name in PLAIN:
        assert attempt(TARGETS[name], spelt.encode()) is not None or name == "claim"  # half a claim is no error
    attempt(TARGETS["events"], b'{"event": "epoch", "time": 1, "job": "final/a", "loss": ' + spelt.encode() + b"}\n")
