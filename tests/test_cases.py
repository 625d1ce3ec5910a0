"""Cases are data: named ones exist, written ones are checked, and what does not fit is named."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from mmbench.cases import Case, Missing, named_cases, named_sets, parse_case, parse_cases, parse_reference
from mmbench.errors import ConfigError, UnknownNameError


def test_the_papers_four_cases() -> None:
    assert named_sets()["paper"] == ("complete", "noise-to-audio", "noise-to-vision", "noise-to-both")
    assert parse_case("complete") == Case("complete") and parse_case("complete").is_complete
    assert parse_case("noise-to-audio") == Case("noise-to-audio", audio="seed/audio-alone")
    assert parse_case("noise-to-vision") == Case("noise-to-vision", vision="seed/vision-alone")
    assert parse_case("noise-to-both") == Case("noise-to-both", "seed/audio-both", "seed/vision-both")
    assert parse_case("noise-to-both-as-shipped").vision == "seed/vision-both-as-shipped"
    assert parse_case("missing-audio").missing == Missing("audio")
    assert parse_case("missing-mixed-0.5").missing == Missing("mixed", 0.5)


def test_every_named_set_holds_known_cases() -> None:
    for name, cases in named_sets().items():
        assert name not in named_cases()
        assert [case.name for case in parse_cases([name])] == list(cases)


def test_a_written_case() -> None:
    missing = {"which": "vision", "rate": 0.3, "vision_fill": "white"}
    case = parse_case({"name": "mine", "audio": "seed/audio-alone", "missing": missing})
    assert case == Case("mine", "seed/audio-alone", None, Missing("vision", 0.3, vision_fill="white"))
    assert case.severity() is None and not case.is_complete


def test_sets_and_cases_mix_without_repeats() -> None:
    own = {"name": "mine", "vision": "seed/vision-both"}
    names = [case.name for case in parse_cases(["paper", "missing-audio", "complete", own])]
    assert names == ["complete", "noise-to-audio", "noise-to-vision", "noise-to-both", "missing-audio", "mine"]
    with pytest.raises(ConfigError, match="'complete' is given twice"):
        parse_cases(["paper", {"name": "complete", "audio": "seed/audio-both"}])


@pytest.mark.parametrize(("name", "hint"), [("noise-to-audi", "noise-to-audio"), ("missing-mixed-0.4", "missing-mix")])
def test_unknown_case(name: str, hint: str) -> None:
    with pytest.raises(UnknownNameError, match=f"no case '{name}'; did you mean: .*{hint}"):
        parse_case(name)
    with pytest.raises(UnknownNameError, match=name):
        parse_cases(["paper", name])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"audio": "seed/audio-alon"}, "no corruption 'seed/audio-alon'; did you mean: seed/audio-alone"),
        ({"audio": "seed/vision-alone"}, "'seed/vision-alone' corrupts vision; write it under 'vision'"),
        ({"vision": "seed/audio-both"}, "corrupts audio"),
        ({"audio": "seed/audio-alone@3"}, "has no severities"),
        ({"audio": "missing/audio-silence"}, "fills a gap"),
        ({"audio": 3}, "audio must be"),
        ({"sound": "seed/audio-alone"}, "unknown key 'sound'; known: name, audio"),
        ({"missing": "audio"}, "missing needs 'which'"),
        ({"missing": {"which": "both"}}, "audio, vision or mixed"),
        ({"missing": {"which": "audio", "rate": 1.5}}, "missing.rate must lie between 0 and 1, got 1.5"),
        ({"missing": {"which": "audio", "rate": True}}, "missing.rate"),
        ({"missing": {"which": "mixed", "audio_share": "half"}}, "missing.audio_share"),
        ({"missing": {"which": "audio", "rates": 0.5}}, "unknown key 'rates'"),
        ({"missing": {"which": "audio", "audio_fill": "hum"}}, "no audio_fill 'hum'; choose one of: silence, mean"),
        ({"missing": {"which": "audio", "vision_fill": 0}}, "no vision_fill '0'"),
    ],
)
def test_what_does_not_fit_is_named(body: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_case({"name": "mine", **body})
    assert str(caught.value).startswith("case 'mine': ")
    assert message in str(caught.value)


@pytest.mark.parametrize("entry", [{}, {"audio": "seed/audio-alone"}, {"name": ""}, {"name": 3}, 7, None])
def test_a_case_needs_a_name(entry: Any) -> None:
    with pytest.raises(ConfigError, match="a 'name'"):
        parse_case(entry)


@pytest.mark.parametrize("text", ["seed/audio-alone@", "seed/audio-alone@0", "seed/none", "", "@1"])
def test_broken_references(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_reference(text)


def test_reading_cases_imports_no_torch() -> None:
    code = "import sys; from mmbench.cases import named_cases; named_cases(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
