"""`ls`, `show` and the method cards: the three axes in one table, counted and described without importing torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.testing import CliRunner

from mmbench import registry
from mmbench.axes import REGIMES, parts, short_reference, trainable_count
from mmbench.cards import STAGES
from mmbench.cards_page import cards_page
from mmbench.cli import app
from mmbench.config import Regime
from mmbench.errors import ConfigError
from mmbench.listing import describe
from mmbench.parts_table import short

PLUGIN = '''
from mmbench.method import Method
from mmbench.online import Online
from mmbench.registry import method, online, strategy
from mmbench.strategy import Strategy

@method("alpha", title="Alpha", family="outside", reference="Doe et al., On Alpha, PRIV 2024", year=2024, memory="M2",
        parameters="2 * d * rank + layers", options={"rank": 4, "layers": 3, "name": "x"},
        needs={"case": "avail", "train_case": True, "extra_forwards": 2.0})
class Alpha(Method):
    """First line of Alpha.

    And what deviates.
    """

@method("wrong", title="Wrong", family="outside", reference="nobody", year=2024, memory="M2")
class Unstated(Method):
    pass

@strategy("beta", title="Beta", reference="Roe, On Beta (extended), PRIV 2023 (oral)", year=2023, extra_forwards=1.0)
class Beta(Strategy):
    """All of Beta."""

@online("gamma", title="Gamma", reference="Poe, On Gamma, PRIV 2022", year=2022, memory="M1", updates="a few",
        parameters="3 * d", source_samples=7, stream_length=True)
class Gamma(Online):
    """All of Gamma."""
'''
HEAVY = ("torch", "timm", "peft", "loralib", "pandas")


def run(*words: str, columns: int = 80) -> str:
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": str(columns)})
    assert result.exit_code == 0, result.output
    return result.stdout


def rows(*words: str) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(run("ls", "methods", "--json", *words))}


def test_all_three_axes_stand_in_one_list() -> None:
    found = rows()
    known = (registry.methods(), registry.strategies(), registry.onlines())
    for axis, kind in enumerate(known, start=1):
        assert {found[name]["axis"] for name in kind.names()} <= {axis}
    assert set(found) == {name for kind in known for name in kind.names()} | set(get_args(Regime))
    assert [part.name for part in REGIMES] == list(get_args(Regime))


def test_families_stand_together() -> None:
    families = [(part.axis, part.family) for part in parts()]
    assert families == [f for family in dict.fromkeys(families) for f in [family] * families.count(family)]


def test_a_row_says_what_it_costs_what_it_needs_and_who_wrote_it(use_plugin: Callable[[str], Path]) -> None:
    use_plugin(PLUGIN)
    found = rows()
    assert found["alpha"] == {
        "name": "alpha",
        "axis": 1,
        "family": "outside",
        "title": "Alpha",
        "trainable": 2 * 768 * 4 + 3,
        "memory": "M2",
        "needs": ["availability", "train case", "+2 forwards"],
        "track": "avail",
        "paper": "Doe et al., PRIV 2024",
        "year": 2024,
    }
    assert found["wrong"]["trainable"] is None
    assert found["source"]["trainable"] == 0
    assert (found["beta"]["axis"], found["beta"]["needs"], found["beta"]["paper"]) == (
        2,
        ["+1 forwards"],
        "Roe, PRIV 2023",
    )
    assert (found["gamma"]["axis"], found["gamma"]["trainable"], found["gamma"]["memory"]) == (3, 3 * 768, "M1")
    assert found["gamma"]["needs"] == ["7 source samples", "stream length"]


def test_counts_are_those_of_the_backbone_that_is_asked_for(use_plugin: Callable[[str], Path]) -> None:
    use_plugin(PLUGIN)
    assert rows("--backbone", "cavmae-tiny")["alpha"]["trainable"] == 2 * 64 * 4 + 3
    bad = CliRunner().invoke(app, ["ls", "methods", "--backbone", "cavmae-huge"])
    assert bad.exit_code == 2 and "no backbone 'cavmae-huge'" in bad.stderr
    bad = CliRunner().invoke(app, ["ls", "cases", "--backbone", "cavmae-tiny"])
    assert bad.exit_code == 2 and "ls cases has no such counts" in bad.stderr


@pytest.mark.parametrize("columns", [80, 100, 140])
def test_every_name_is_whole_on_a_line_of_its_own_at_any_width(columns: int) -> None:
    lines = run("ls", "methods", columns=columns).splitlines()
    assert max(len(line) for line in lines) <= columns
    starts = [line.split()[0] for line in lines if line.strip() and not line.startswith(" ")]
    for part in parts():
        assert starts.count(part.name) == 1, part.name


def test_a_wide_terminal_gets_every_column() -> None:
    heading = run("ls", "methods", columns=140).splitlines()[0].split()
    assert heading == ["name", "axis", "family", "trainable", "memory", "needs", "track", "paper", "year"]


@pytest.mark.parametrize(
    "words", [["ls", "methods"], ["ls", "methods", "--json"], ["show", "lora-qv"], ["cite", "lora-qv"]]
)
def test_nothing_heavy_is_loaded(words: list[str], tmp_path: Path) -> None:
    code = (
        f"import sys\nfrom mmbench.cli import app\ntry:\n    app({words})\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment, check=True
    )
    assert found.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022", "Hu et al., ICLR 2022"),
        ("Alain & Bengio, Understanding intermediate layers, using probes, 2016", "Alain & Bengio, 2016"),
        ("Park, Prompt the Missing, CVPR Workshops 2025, pp. 1654-1662 (reconstructed)", "Park, CVPR Workshops 2025"),
        ("Zhang et al., mixup, ICLR 2018; rates as elsewhere", "Zhang et al., ICLR 2018"),
        ("control row of this suite", "control row of this suite"),
    ],
)
def test_a_paper_is_named_by_authors_venue_and_year(reference: str, expected: str) -> None:
    assert short_reference(reference) == expected


@pytest.mark.parametrize(
    ("count", "expected"), [(0, "0"), (9_999, "9,999"), (24_576, "25 k"), (565_248, "565 k"), (2_260_992, "2.3 M")]
)
def test_counts_are_short_where_there_is_little_room(count: int, expected: str) -> None:
    assert short(count) == expected


def test_show_tells_the_definition_the_counts_and_the_citation(use_plugin: Callable[[str], Path]) -> None:
    path = use_plugin(PLUGIN)
    alpha = describe("alpha")
    assert alpha["kind"] == "method"
    assert alpha["definition"] == "First line of Alpha.\n\nAnd what deviates."
    assert alpha["parameters"] == "2 * d * rank + layers"
    assert alpha["trainable"] == {"cavmae-base": 6_147, "cavmae-tiny": 515}
    assert alpha["options"] == {"rank": 4, "layers": 3, "name": "x"}
    assert "On Alpha, PRIV 2024" in alpha["citation"]
    assert alpha["from"] == str(path)
    assert (describe("beta")["kind"], describe("beta")["definition"]) == ("training strategy", "All of Beta.")
    assert (describe("gamma")["kind"], describe("gamma")["trainable"]["cavmae-tiny"]) == ("online adapter", 192)
    assert describe("mixed")["kind"] == "regime"
    shown = run("show", "alpha")
    assert "First line of Alpha." in shown and "cavmae-base = 6,147" in shown


def test_a_formula_that_cannot_be_evaluated_names_its_method(use_plugin: Callable[[str], Path]) -> None:
    use_plugin(PLUGIN.replace("2 * d * rank + layers", "2 * width"))
    with pytest.raises(ConfigError, match="alpha: 'width' has no place in a formula"):
        trainable_count(registry.methods().card("alpha"), "cavmae-base")


def test_the_cards_page_holds_every_part_and_what_a_card_says(use_plugin: Callable[[str], Path]) -> None:
    use_plugin(PLUGIN)
    page = cards_page()
    for part in parts():
        assert f"\n### {part.name}\n" in page
    card = page.partition("### alpha\n")[2].partition("###")[0]
    assert "First line of Alpha." in card and "And what deviates." in card
    assert "`2 * d * rank + layers`: 6,147 at cavmae-base, 515 at cavmae-tiny" in card
    assert "- needs: availability, train case, +2 forwards" in card and "`rank` = 4" in card


def test_the_committed_cards_are_those_of_the_registries() -> None:
    committed = registry.ROOT / "methods" / "CARDS.md"
    assert committed.read_text(encoding="utf-8") == cards_page(), "run: mmbench ls methods --cards methods/CARDS.md"


def test_cards_are_written_of_methods_only(tmp_path: Path) -> None:
    bad = CliRunner().invoke(app, ["ls", "cases", "--cards", str(tmp_path / "x.md")])
    assert bad.exit_code == 2 and "--cards writes the cards of methods" in bad.stderr
    run("ls", "methods", "--cards", str(tmp_path / "cards.md"))
    assert (tmp_path / "cards.md").read_text(encoding="utf-8") == cards_page()


def test_broken_packages_are_told_once(tmp_path: Path) -> None:
    info = tmp_path / "kit-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kit\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mmbench.methods]\nkit = no_such_kit\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    script = [sys.executable, "-m", "mmbench", "ls", "methods"]
    found = subprocess.run(script, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True)
    assert found.stderr.count("broken: kit 1.0: kit") == 1


def test_a_corruption_tells_its_place_among_the_stages() -> None:
    assert describe("seed/audio-alone")["stage"].startswith("normalised, 5 of 6 (sample > waveform > image > fbank > ")
    assert describe("read/rain")["stage"].startswith("waveform, 2 of 6") and "16 kHz" in describe("read/rain")["stage"]
    assert describe("read/rain@3") == {"kind": "case", "name": "read/rain@3", "what": "audio: read/rain@3"}
    with pytest.raises(ConfigError, match="no corruption 'read/rai'; did you mean: read/rain"):
        describe("read/rai@3")


def test_stages_are_listed_in_the_order_in_which_they_are_applied() -> None:
    order = subprocess.run(
        [sys.executable, "-c", "from mmbench.corruption import Stage; print(*(stage.value for stage in Stage))"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert order.stdout.split() == list(STAGES)


def test_a_pair_names_its_halves(use_plugin: Callable[[str], Path]) -> None:
    facts = 'family="own", reference="test"'
    use_plugin(
        "from mmbench.registry import corruption\n"
        f'@corruption("own/hail-sound", modality="audio", stage="waveform", {facts})\n'
        f'@corruption("own/hail-sight", modality="vision", stage="image", {facts})\n'
        "def same(x, draws, severity):\n    return x\n"
    )
    pair = describe("own/hail")
    assert (pair["audio"], pair["vision"]) == ("own/hail-sound", "own/hail-sight")
    assert (pair["audio stage"][:17], pair["vision stage"][:14]) == ("waveform, 2 of 6 ", "image, 3 of 6 ")
    assert pair["audio reference"] == "test" and "audio note" not in pair
