"""Pictures and short sounds of a board's cases, made from the embedded data."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import soundfile
from PIL import Image

from mmbench import registry
from mmbench.cases import Case, parse_reference
from mmbench.corruption import Stage
from mmbench.data.features import SAMPLE_RATE
from mmbench.pipeline import RAW_AUDIO, Corrupted, pcm16
from mmbench.report.aggregate import slug
from mmbench.report.conditions import Condition, Group
from mmbench.report.site.model import Fact, Sample, Sound
from mmbench.report.site.render import put
from mmbench.severity_tables import severity_words
from mmbench.sheet import Row, Sheet, Tile, draw, picture_tile, spectrogram_tile, stacked
from mmbench.shown_samples import SIZES, Samples, read_samples

FOLDER = "samples"
DATASET = "synthetic-av"
CLEAN = Case("clean")
SIDE = 112
"""Pixels of a picture's side on a sheet."""
SOUND_SECONDS = 2
JPEG_QUALITY = 70


@dataclass(frozen=True)
class Level:
    """A case of a corruption, and what a sheet calls it."""

    case: Case
    title: str
    severity: int


def write_samples(subjects: Sequence[Group], cases: Mapping[str, Case], out: Path) -> dict[str, Sample]:
    """Write a sheet and sounds of every corruption into `out`/samples; returns them by label.

    What no registry knows has none. Raises RecordError where nothing can be written.
    """
    samples = read_samples(DATASET)
    found = {}
    for subject in subjects:
        levels = [
            _level(condition, cases[condition.case]) for condition in subject.conditions if condition.case in cases
        ]
        if levels:
            found[subject.label] = _sample(subject.label, levels, samples, out)
    return found


def _level(condition: Condition, case: Case) -> Level:
    if condition.scale == "severity":
        return Level(case, f"severity {condition.level:g}", int(condition.level))
    title = f"rate {condition.level:g}" if condition.scale else "as scored"
    return Level(case, title, 0)


def _sample(label: str, levels: Sequence[Level], samples: Samples, out: Path) -> Sample:
    stem = f"{FOLDER}/{slug(label)}"
    shown = levels if levels[0].case.is_complete else [Level(CLEAN, "clean", 0), *levels]
    seen = [samples.under(level.case) for level in shown]
    sheet = draw(_sheet(label, shown, seen, samples))
    put(out / f"{stem}.jpg", _jpeg(sheet))
    heard = _heard(levels[-1].case)
    titles = ", ".join(level.title for level in shown)
    return Sample(
        picture=f"{stem}.jpg",
        alt=f"{len(samples.titles)} samples of {samples.dataset}: {titles}.",
        width=sheet.width,
        height=sheet.height,
        sounds=tuple(_sounds(stem, shown, seen, samples, out)) if heard else (),
        severities=tuple(_severities(levels)),
    )


def _sheet(label: str, levels: Sequence[Level], seen: Sequence[Corrupted], samples: Samples) -> Sheet:
    """Samples by levels, along whichever side makes the sheet wide rather than tall."""
    modalities = _modalities([level.case for level in levels])
    frames = samples.raw.frames.tolist()
    tiles = [[_tile(one, frames[row], row, modalities) for row in range(len(frames))] for one in seen]
    names = [level.title for level in levels], list(samples.titles)
    if len(levels) > len(frames):
        tiles, names = [list(column) for column in zip(*tiles, strict=True)], names[::-1]
    rows = tuple(Row(name, tuple(line)) for name, line in zip(names[0], tiles, strict=True))
    foot = f"Samples of {samples.dataset}, as the backbone sees them."
    if "audio" in modalities:
        foot += " Spectrograms: log-mel, 20 Hz at the bottom to 8 kHz."
    return Sheet(label, "", tuple(names[1]), rows, foot)


def _modalities(cases: Sequence[Case]) -> tuple[str, ...]:
    """What is worth a look: what the cases change, or both where they change nothing."""
    touched = {
        modality
        for case in cases
        for modality, hit in (
            ("vision", case.vision or (case.missing and case.missing.which != "audio")),
            ("audio", case.audio or (case.missing and case.missing.which != "vision")),
        )
        if hit
    }
    return tuple(modality for modality in ("vision", "audio") if modality in touched or not touched)


def _tile(seen: Corrupted, frames: int, row: int, modalities: Sequence[str]) -> Tile:
    tiles = [picture_tile(seen.batch.image[row], SIDE)] if "vision" in modalities else []
    if "audio" in modalities:
        height = SIZES.mel_bins * SIDE // SIZES.image_size
        tiles.append(spectrogram_tile(seen.batch.audio[row, :frames], SIDE, height))
    return stacked(tiles)


def _heard(case: Case) -> bool:
    """Whether the sound that can be played is the one that a method hears."""
    if case.audio is None:
        return case.is_complete
    return Stage(parse_reference(case.audio).card.stage) in RAW_AUDIO


def _sounds(
    stem: str, levels: Sequence[Level], seen: Sequence[Corrupted], samples: Samples, out: Path
) -> Iterator[Sound]:
    """The first sample: clean, and at the weakest, the middle and the strongest level."""
    length = min(int(samples.raw.wave_lengths[0]), SOUND_SECONDS * SAMPLE_RATE)
    last = len(levels) - 1
    for place in sorted({0, min(1, last), (1 + last) // 2, last}):
        content = io.BytesIO()
        wave = pcm16(seen[place].wave[:1]).numpy()[0, :length]  # (S,)
        soundfile.write(content, wave, SAMPLE_RATE, subtype="PCM_16", format="WAV")
        path = f"{stem}_{place}.wav"
        put(out / path, content.getvalue())
        yield Sound(f"{samples.titles[0]}, {levels[place].title}", path)


def _severities(levels: Sequence[Level]) -> Iterator[Fact]:
    """The rows of the severity tables behind each level."""
    known = registry.corruptions()
    for level in levels:
        names = [text.partition("@")[0] for text in (level.case.audio, level.case.vision) if text]
        words = dict.fromkeys(w for name in names for w in severity_words(known.load(name), level.severity))
        if words:
            yield Fact(level.title, "; ".join(words))


def _jpeg(sheet: Image.Image) -> bytes:
    content = io.BytesIO()
    sheet.save(content, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return content.getvalue()
