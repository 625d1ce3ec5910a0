"""`mmbench show CORRUPTION --out DIR`: what is written, what it holds, what is refused; and the page of corruptions."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner, Result

from mmbench import registry
from mmbench.cli import app
from mmbench.contact_sheet import severities_of
from mmbench.data.features import normalise_image
from mmbench.errors import ConfigError
from mmbench.severity_tables import severity_words
from mmbench.sheet import Row, Sheet, draw, picture_tile, spectrogram_tile
from mmbench.shown_samples import read_samples

PAGE = Path(__file__).resolve().parents[1] / "corruptions" / "README.md"
FENCE = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)


def show(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["show", *arguments])


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def sounds(folder: Path) -> dict[str, NDArray[np.int16]]:
    return {path.stem: soundfile.read(path, dtype="int16")[0] for path in sorted(folder.glob("*.wav"))}


def test_a_sound_is_written_as_sheet_and_wav_files(tmp_path: Path) -> None:
    result = show("read/rain_snr", "--severities", "1,5", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert {path.name for path in tmp_path.iterdir()} == {"read-rain_snr.png", "read-rain_snr"}
    found = sounds(tmp_path / "read-rain_snr")
    raw = read_samples("synthetic-av").raw
    assert len(found) == 3 * 3
    info = soundfile.info(next((tmp_path / "read-rain_snr").glob("*.wav")))
    assert (info.samplerate, info.subtype, info.channels) == (16000, "PCM_16", 1)
    clean = found["1_ambulance-00000_0-clean"].astype(float)
    assert np.array_equal(clean, raw.wave[0, : raw.wave_lengths[0]].numpy() * 32768)
    for severity, snr_db in ((1, 20), (5, 0)):
        noise = found[f"1_ambulance-00000_{severity}"] - clean
        assert 10 * np.log10(np.mean(clean**2) / np.mean(noise**2)) == pytest.approx(snr_db, abs=0.1)
    assert re.search(
        r"to its change, .*: 20\.0, 0\.0 dB at severity 1, 5 \(median of 3 samples\)$", result.output, re.M
    )


def test_a_picture_stands_in_the_sheet_pixel_by_pixel(tmp_path: Path) -> None:
    assert show("avc/concert-sight", "--severities", "3", "--out", str(tmp_path)).exit_code == 0
    sheet, raw = pixels(tmp_path / "avc-concert-sight.png"), read_samples("synthetic-av").raw
    clean = raw.image[0].permute(1, 2, 0).numpy()
    corners = np.argwhere((sheet == clean[0, 0]).all(2)).tolist()
    (place,) = [(y, x) for y, x in corners if np.array_equal(sheet[y : y + 224, x : x + 224], clean)]
    below = sheet[place[0] + 228 : place[0] + 452, place[1] : place[1] + 224]
    assert below.mean() > clean.mean() + 40  # severity 3 of brightness
    assert not (tmp_path / "avc-concert-sight").exists()


def test_a_pair_holds_both(tmp_path: Path) -> None:
    assert show("avc/interference", "--severities", "2", "--out", str(tmp_path)).exit_code == 0
    assert len(sounds(tmp_path / "avc-interference")) == 6
    assert pixels(tmp_path / "avc-interference.png").shape[0] > 2 * (224 + 128)


def test_what_cannot_be_played_says_so(tmp_path: Path) -> None:
    result = show("spec/*", "--severities", "3", "--out", str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"spec-time_mask.png", "spec-freq_mask.png"}
    assert "spec/time_mask acts on the spectrogram (stage normalised): there is no sound to write" in result.output


def test_what_does_not_apply_says_so(tmp_path: Path) -> None:
    result = show("sensor/desync", "--severities", "1", "--out", str(tmp_path))
    assert "not applicable: still pictures; shown, but never scored" in result.output
    assert (tmp_path / "sensor-desync.png").exists()


def test_a_family_in_one_picture(tmp_path: Path) -> None:
    result = show("missing/*", "--overview", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert [path.name for path in tmp_path.iterdir()] == ["missing.jpg"]
    assert (pixels(tmp_path / "missing.jpg") < 4).all(2).mean() > 0.05  # silence and black


def test_a_sheet_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "imagenet_c-contrast.png").write_bytes(b"old")
    for severities in ("1", "5"):
        assert show("imagenet_c/contrast", "--severities", severities, "--out", str(tmp_path)).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["imagenet_c-contrast.png"]
    assert pixels(tmp_path / "imagenet_c-contrast.png").shape[1] > 3 * 224


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["imagenet_c/fogg"], "imagenet_c/fog"),
        (["imagenet/*"], "did you mean: imagenet_c"),
        (["imagenet_c/fog", "--severities", "6"], "has the severities 1, 2, 3, 4, 5; got 6"),
        (["imagenet_c/fog", "--severities", "3-1"], "severities are written 1-5, 3 or 1,3,5; got '3-1'"),
        (["imagenet_c/fog@3"], "--severities"),
        (["imagenet_c/fog", "--overview"], "write 'imagenet_c/*'"),
        (["imagenet_c/fog", "--dataset", "synthetic"], "did you mean: synthetic-av"),
        (["lora-qv"], "neither a data set nor a corruption"),
    ],
)
def test_what_cannot_be_shown_is_named(arguments: list[str], words: str, tmp_path: Path) -> None:
    result = show(*arguments, "--out", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert words in result.output
    assert list(tmp_path.rglob("*.*")) == []


@pytest.mark.parametrize("name", ["imagenet_c/contrast", "synthetic-av"])
def test_a_file_in_the_way_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    result = show(name, "--out", str(tmp_path / "file"))
    assert result.exit_code == 2
    assert "cannot make the folder" in result.output
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_severities() -> None:
    assert severities_of("1-5") == (1, 2, 3, 4, 5)
    assert severities_of("3") == (3,)
    assert severities_of("1,3-4,3") == (1, 3, 4)
    for text in ("", "a", "1-", "1..5"):
        with pytest.raises(ConfigError):
            severities_of(text)


def test_a_severity_tells_its_parameters() -> None:
    def words(name: str, severity: int) -> tuple[str, ...]:
        return severity_words(registry.corruptions().load(name), severity)

    assert words("imagenet_c/gaussian_noise", 3) == ("gaussian std 0.18",)
    assert words("avc/rain-sound", 2) == ("scene snr db 15",)
    assert words("avc/gaussian-sound", 2) == ("noise snr db 30",)
    assert words("imagenet_c/spatter", 5) == ("mud 0.67 0.4 1 0.65",)
    assert words("seed/audio-alone", 0) == ()


def test_samples_of_a_folder(tmp_path: Path) -> None:
    for name in "abc":
        for part, ending in (("Dataset_v3_sound", "wav"), ("Dataset_v3_vision", "png")):
            path = tmp_path / "clips" / part / "dog" / f"{name}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if ending == "wav":
                soundfile.write(path, np.sin(np.arange(8000) * ord(name) / 300), 16000)
            else:
                Image.new("RGB", (40, 30), (ord(name), 90, 30)).save(path)
    samples = read_samples(str(tmp_path / "clips"))
    assert [len(title) > 0 for title in samples.titles] == [True] * 3
    assert samples.raw.image.shape == (3, 3, 224, 224)
    assert samples.raw.wave_lengths.tolist() == [8000] * 3


def test_tiles_keep_their_colours_and_their_side_up() -> None:
    image = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert np.array_equal(picture_tile(normalise_image(image)[0], 8), image[0].permute(1, 2, 0).numpy())
    mel = torch.full((20, 128), -3.0)
    mel[10:, 100:] = 3.0  # late and high
    tile = spectrogram_tile(mel, 20, 128).astype(int).sum(2)
    assert tile[:28, 10:].min() > tile[28:].max() and tile[:28, :10].max() < tile[:28, 10:].min()


def test_long_words_stay_within_the_sheet() -> None:
    tile = np.zeros((30, 40, 3), dtype=np.uint8)
    rows = (Row("severity 1\n" + "parameter " * 12, (tile, tile)), Row("short", (tile,)))
    sheet = draw(Sheet("a title", "word " * 40, ("a very long sample name", "b"), rows, "foot"))
    levels = np.asarray(sheet)
    assert (levels[:, -4:] == levels[0, 0]).all() and (levels[-4:] == levels[0, 0]).all()


def test_the_page_lists_every_corruption_and_shows_every_family() -> None:
    text = PAGE.read_text(encoding="utf-8")
    registered = set(registry.corruptions().names())
    listed = set(re.findall(r"\| `([a-z_]+/[a-zA-Z0-9_-]+)` (?=\|)", text))
    assert listed == registered
    pictures = [PAGE.parent / target for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)]
    assert {path.stem for path in pictures} == {name.partition("/")[0] for name in registered}
    assert max(path.stat().st_size for path in pictures) <= 120_000
    assert sum(path.stat().st_size for path in pictures) <= 600_000


def test_the_commands_of_the_page_are_taken(tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    usage = CliRunner().invoke(app, ["show", "--help"], env={"COLUMNS": "200"}).output
    options = set(re.findall(r"--[a-z]+", " ".join(re.findall(r"mmbench show [^`\n]*", text))))
    assert options >= {"--out", "--overview", "--severities"}
    assert [option for option in options if option not in usage] == []


def test_the_example_of_the_page_runs(use_plugin: Callable[[str], Path], tmp_path: Path) -> None:
    (source,) = FENCE.findall(PAGE.read_text(encoding="utf-8"))
    use_plugin(source)
    result = show("mine/dropout", "--severities", "5", "--out", str(tmp_path / "look"))
    assert result.exit_code == 0, result.output
    found = sounds(tmp_path / "look" / "mine-dropout")
    clean, lost = found["1_ambulance-00000_0-clean"], found["1_ambulance-00000_5"]
    assert 0.37 < (lost[clean != 0] == 0).mean() < 0.43
