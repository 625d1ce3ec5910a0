"""Cases are data: named ones exist, written ones are checked, and what does not fit is named."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmbench.cases import Case, Missing, named_cases, named_sets, parse_case, parse_cases, parse_reference, unmet
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
        assert parse_cases([name]) == parse_cases(cases)


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


@pytest.mark.parametrize("entry", [{}, {"missing": {"which": "audio"}}, {"name": ""}, {"name": 3}, 7, None])
def test_a_case_needs_a_name(entry: Any) -> None:
    with pytest.raises(ConfigError, match="a 'name'"):
        parse_case(entry)


def test_a_pair_without_a_name_is_called_by_its_corruptions() -> None:
    pair = parse_case({"audio": "read/rain@3", "vision": "imagenet_c/fog@3"})
    assert pair == Case("read/rain+imagenet_c/fog@3", "read/rain@3", "imagenet_c/fog@3")
    assert parse_case({"audio": "read/rain@3", "vision": "imagenet_c/fog@4"}).name == "read/rain@3+imagenet_c/fog@4"
    assert parse_case({"audio": "read/rain@3"}) == parse_case("read/rain@3")


@pytest.mark.parametrize("text", ["seed/audio-alone@", "seed/audio-alone@0", "seed/none", "", "@1"])
def test_broken_references(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_reference(text)


PAIRS = """
from mmbench.registry import corruption

OWN = {"family": "own", "reference": "test"}

@corruption("own/rain-sound", modality="audio", stage="waveform", **OWN)
@corruption("own/hum-sound", modality="audio", stage="waveform", severities=(0,), **OWN)
@corruption("own/hum-sight", modality="vision", stage="image", severities=(0,), **OWN)
@corruption("own/rain-sight", modality="vision", stage="image", **OWN)
@corruption("own/lone-sound", modality="audio", stage="waveform", **OWN)
def nothing(x, draws, severity):
    return x
"""


def test_a_corruption_is_a_case() -> None:
    assert parse_case("imagenet_c/fog@3") == Case("imagenet_c/fog@3", vision="imagenet_c/fog@3")
    assert parse_case("read/rain@5") == Case("read/rain@5", audio="read/rain@5")
    assert parse_case("read/rain@5").severity() == 5 and parse_case("seed/audio-alone").severity() is None


def test_a_case_of_moving_pictures_says_so() -> None:
    assert unmet(parse_case("sensor/desync@1"), still_pictures=True) == "not applicable: still pictures"


def test_a_pair_of_corruptions_is_a_case(use_plugin: Callable[[str], Path]) -> None:
    use_plugin(PAIRS)
    assert parse_case("own/rain@3") == Case("own/rain@3", "own/rain-sound@3", "own/rain-sight@3")
    assert parse_case("own/rain@3").severity() == 3
    assert parse_case("own/hum") == Case("own/hum", "own/hum-sound", "own/hum-sight")
    assert parse_case("own/rain-sound@2") == Case("own/rain-sound@2", audio="own/rain-sound@2")
    names = [case.name for case in parse_cases(["own/rain@2-3", "own/rain@3", "own/hum"])]
    assert names == ["own/rain@2", "own/rain@3", "own/hum"]
    with pytest.raises(UnknownNameError, match=r"no corruption 'own/lone'; did you mean: .*own/lone-sound"):
        parse_case("own/lone@3")


def test_ranges_and_families(use_plugin: Callable[[str], Path]) -> None:
    assert [case.name for case in parse_cases(["imagenet_c/fog@1-5"])] == [f"imagenet_c/fog@{n}" for n in range(1, 6)]
    use_plugin(PAIRS.replace("own/hum", "other/hum"))
    names = [case.name for case in parse_cases(["own/*@4-5"])]
    assert names == ["own/rain@4", "own/rain@5", "own/lone-sound@4", "own/lone-sound@5"]  # halves go with their pair


def test_headline_and_full_sets() -> None:
    headline, full = ({case.name for case in parse_cases([name])} for name in ("headline", "full"))
    assert {f"{name}@{n}" for name in ("imagenet_c/fog", "read/rain") for n in range(1, 6)} <= headline <= full
    assert {"complete", "noise-to-both", "missing-mixed-0.5", "avc/rain@1", "sensor/desync@5"} <= headline
    assert "spec/time_mask@3" in full and not any(name.endswith(("-sound@1", "-sight@1")) for name in full)
    assert sum(name.startswith("imagenet_c/") for name in full) == 19 * 5


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("imagenet_c/fogg@3", "no corruption 'imagenet_c/fogg'; did you mean: imagenet_c/fog"),
        ("imagenet_c/fog", "needs a severity: write 'imagenet_c/fog@N'"),
        ("imagenet_c/fog@6", "has the severities 1, 2, 3, 4, 5; got '6'"),
        ("imagenet_c/fog@4-6", "has the severities 1, 2, 3, 4, 5; got '6'"),
        ("imagenet_c/fog@5-1", "a range of severities begins with the smaller one, '@1-5'"),
        ("imagenet_c/fog@1-", "got '1-'"),
        ("imagenet_c/fog@-1", "got '-1'"),
        ("seed/audio-alone@1-5", "'seed/audio-alone' has no severities"),
        ("missing/audio-silence", "fills a gap"),
        ("imagenet/*@3", "no family of corruptions 'imagenet'; did you mean: imagenet_c"),
        ("/", "no corruption '/'"),
    ],
)
def test_what_is_no_case(entry: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_cases([entry])
    assert message in str(caught.value)


def test_reading_cases_imports_no_torch() -> None:
    code = "import sys; from mmbench.cases import named_cases; named_cases(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
