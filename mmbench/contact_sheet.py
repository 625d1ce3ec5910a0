"""What `show CORRUPTION --out DIR` writes: a sheet to look at, severities by samples, and sounds to listen to."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import soundfile
from PIL import Image

from mmbench import registry
from mmbench.audio_mix import measured_snr_db
from mmbench.cards import CorruptionCard
from mmbench.cases import HALVES, Case, family_members, pairs, parse_case, unmet
from mmbench.corruption import Stage
from mmbench.data.features import SAMPLE_RATE
from mmbench.errors import ConfigError, UnknownNameError
from mmbench.files import make_folder, write_atomic
from mmbench.pipeline import RAW_AUDIO, Corrupted, pcm16
from mmbench.severity_tables import severity_words
from mmbench.sheet import Row, Sheet, Tile, draw, picture_tile, spectrogram_tile, stacked
from mmbench.shown_samples import SIZES, Samples, read_samples

CLEAN = Case("clean")
THUMBNAIL = 80  # pixels, a side of the pictures of an overview
JPEG_QUALITY = 55
SEVERITIES = re.compile(r"([0-9]{1,3})(?:-([0-9]{1,3}))?")


@dataclass(frozen=True)
class Look:
    """What to show: of which data, at which severities (all unless given), a family in one picture or one by one."""

    dataset: str = "synthetic-av"
    severities: tuple[int, ...] | None = None
    overview: bool = False


@dataclass(frozen=True)
class Subject:
    """A corruption, or the two of a pair, at some severities; 0 alone where there is no scale."""

    name: str
    cards: tuple[CorruptionCard, ...]
    severities: tuple[int, ...]

    @property
    def has_scale(self) -> bool:
        return self.severities != (0,)

    @property
    def title(self) -> str:
        variants = dict.fromkeys(card.variant for card in self.cards if card.variant)
        return f"{self.name} ({', '.join(variants)})" if variants else self.name

    @property
    def spectrogram_stage(self) -> str | None:
        """Where it changes what is heard without changing the waveform; None for what can be played or is silent."""
        stages = [card.stage for card in self.cards if card.modality == "audio"]
        return next((stage for stage in stages if Stage(stage) not in RAW_AUDIO), None)

    @property
    def is_heard(self) -> bool:
        return any(card.modality == "audio" for card in self.cards) and self.spectrogram_stage is None

    def case(self, severity: int) -> Case:
        """The case that consists of it; a fill takes the place of every sample."""
        modality = self.cards[0].modality
        if self.cards[0].stage == "missing":
            absent = {"which": modality, f"{modality}_fill": self.name.partition("-")[2]}
            return parse_case({"name": self.name, "missing": absent})
        return parse_case(f"{self.name}@{severity}" if self.has_scale else self.name)

    def label(self, severity: int) -> str:
        """The severity, with the parameters behind it a line each."""
        functions = [registry.corruptions().load(card.name) for card in self.cards]
        words = dict.fromkeys(word for function in functions for word in severity_words(function, severity))
        return "\n".join((f"severity {severity}" if self.has_scale else "corrupted", *words))

    def tile(self, seen: Corrupted, frames: int, row: int, side: int) -> Tile:
        """One sample as the backbone sees it: the picture, the valid frames of the spectrogram, or both."""
        modalities = {card.modality for card in self.cards}
        tiles = [picture_tile(seen.batch.image[row], side)] if "vision" in modalities else []
        if "audio" in modalities:
            tiles.append(
                spectrogram_tile(seen.batch.audio[row, :frames], side, SIZES.mel_bins * side // SIZES.image_size)
            )
        return stacked(tiles)


def severities_of(text: str) -> tuple[int, ...]:
    """`1-5`, `3` or `1,3,5`; raises ConfigError for anything else."""
    found: list[int] = []
    for part in text.split(","):
        match = SEVERITIES.fullmatch(part.strip())
        if match is None or int(match[1]) > int(match[2] or match[1]):
            raise ConfigError(f"severities are written 1-5, 3 or 1,3,5; got '{text}'")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return tuple(dict.fromkeys(found))


def write_sheets(name: str, folder: Path, look: Look) -> Iterator[str]:
    """Sheets and sounds of a corruption, of a pair, or of all of `family/*`; yields what was written, line by line.

    Raises UnknownNameError, ConfigError, the data set's own error, or RecordError where nothing can be written.
    """
    family = name.removesuffix("/*") if name.endswith("/*") else None
    if look.overview and family is None:
        raise ConfigError(f"an overview shows a family: write '{name.partition('/')[0]}/*', or leave --overview out")
    members = family_members(f"{family}/") if family is not None else (name,)
    subjects = [_subject(member, look.severities) for member in members]
    make_folder(folder)
    samples = read_samples(look.dataset)
    if look.overview:
        path = folder / f"{family}.jpg"
        _save(path, draw(_overview(f"{family}/*", subjects, samples)))
        yield f"wrote {path}"
        return
    for subject in subjects:
        yield from _write(subject, samples, folder)


def _subject(name: str, wanted: tuple[int, ...] | None) -> Subject:
    found = registry.corruptions()
    if "@" in name:
        raise ConfigError(f"write '{name.partition('@')[0]}' and choose its severities with --severities")
    if name not in (*found.names(), *pairs()):
        raise UnknownNameError("corruption", name, [*found.names(), *pairs()])
    parts = [name] if name in found.names() else [name + end for end in HALVES.values()]
    cards = tuple(found.card(part) for part in parts)
    known = cards[0].severities
    if wanted is None or known == (0,):
        return Subject(name, cards, known)
    for severity in wanted:
        if severity not in known:
            raise ConfigError(f"corruption '{name}' has the severities {', '.join(map(str, known))}; got {severity}")
    return Subject(name, cards, wanted)


def _write(subject: Subject, samples: Samples, folder: Path) -> Iterator[str]:
    """One sheet, and the sounds in a folder beside it."""
    stem = subject.name.replace("/", "-")
    cases = (CLEAN, *map(subject.case, subject.severities))
    seen = [samples.under(case) for case in cases]
    path = folder / f"{stem}.png"
    _save(path, draw(_sheet(subject, seen, samples)))
    yield f"wrote {path}"
    if subject.is_heard:
        make_folder(folder / stem)
        names = ["0-clean", *(str(severity or "corrupted") for severity in subject.severities)]
        for name, one in zip(names, seen, strict=True):
            _write_sounds(one, samples, folder / stem, name)
        yield f"wrote {folder / stem}: {len(seen) * len(samples.titles)} sounds, 16 kHz, 16 bit"
        yield _ratios(subject, seen[1:], samples)
    if subject.spectrogram_stage:
        yield f"{subject.name} acts on the spectrogram (stage {subject.spectrogram_stage}): there is no sound to write"
    if reason := unmet(cases[-1], samples.still_pictures, samples.pictures):
        yield f"{subject.name} on {samples.dataset}: {reason}; shown, but never scored"


def _ratios(subject: Subject, corrupted: Sequence[Corrupted], samples: Samples) -> str:
    """What clipping and 16 bits have left of a nominal ratio."""
    raw = samples.raw
    found = [float(measured_snr_db(raw.wave, one.wave, raw.wave_lengths).nanmedian()) for one in corrupted]
    ratios = ", ".join(f"{round(ratio, 1) + 0.0:.1f}" for ratio in found)  # adding 0 takes the sign from -0
    where = f" at severity {', '.join(map(str, subject.severities))}" if subject.has_scale else ""
    return f"a clip's power to its change, after 16 bits: {ratios} dB{where} (median of {len(samples.titles)} samples)"


def _sheet(subject: Subject, seen: Sequence[Corrupted], samples: Samples) -> Sheet:
    frames = samples.raw.frames.tolist()
    labels = ["clean", *map(subject.label, subject.severities)]
    rows = [
        Row(label, tuple(subject.tile(one, count, row, SIZES.image_size) for row, count in enumerate(frames)))
        for label, one in zip(labels, seen, strict=True)
    ]
    reference = "; ".join(dict.fromkeys(card.reference for card in subject.cards))
    reason = unmet(subject.case(subject.severities[-1]), samples.still_pictures, samples.pictures)
    remark = f" ({reason}; shown, but never scored)" if reason else ""
    return Sheet(subject.title, f"{reference}{remark}", samples.titles, tuple(rows), _foot([subject], samples))


def _overview(title: str, subjects: Sequence[Subject], samples: Samples) -> Sheet:
    """A row a corruption: the first sample clean and at each severity; several samples where none has a scale."""
    frames = samples.raw.frames.tolist()
    scaled = any(subject.has_scale for subject in subjects)
    clean = samples.under(CLEAN)
    rows = []
    for subject in subjects:
        shown = [(samples.under(subject.case(severity)), 0) for severity in subject.severities]
        if not scaled:
            shown = [(shown[0][0], row) for row in range(len(frames))]
        tiles = tuple(subject.tile(one, frames[row], row, THUMBNAIL) for one, row in [(clean, 0), *shown])
        rows.append(Row(subject.name.partition("/")[2], tiles))
    most = max((subject.severities for subject in subjects), key=len)
    heads = (
        [f"severity {severity}" for severity in most] if scaled else [f"sample {row + 1}" for row in range(len(frames))]
    )
    return Sheet(title, "", ("clean", *heads), tuple(rows), _foot(subjects, samples))


def _foot(subjects: Sequence[Subject], samples: Samples) -> str:
    modalities = {card.modality for subject in subjects for card in subject.cards}
    words = [f"Samples of {samples.dataset}, as the backbone sees them."]
    if "audio" in modalities:
        words.append("Spectrograms: log-mel, 20 Hz at the bottom to 8 kHz, the same colours in every sheet.")
    return " ".join(words)


def _save(path: Path, sheet: Image.Image) -> None:
    """PNG, or JPEG if the name says so."""
    content = io.BytesIO()
    sheet.save(content, "PNG") if path.suffix == ".png" else sheet.save(
        content, "JPEG", quality=JPEG_QUALITY, optimize=True
    )
    write_atomic(path, content.getvalue())


def _write_sounds(seen: Corrupted, samples: Samples, folder: Path, name: str) -> None:
    """The 16-bit samples themselves, a file each, named so that a sample's severities stand together."""
    waves, lengths = pcm16(seen.wave).numpy(), samples.raw.wave_lengths.tolist()
    for row, (sample_id, length) in enumerate(zip(samples.raw.ids, lengths, strict=True)):
        content = io.BytesIO()
        soundfile.write(content, waves[row, :length], SAMPLE_RATE, subtype="PCM_16", format="WAV")
        stem = re.sub(r"[^\w.-]+", "-", sample_id)[:80]
        write_atomic(folder / f"{row + 1}_{stem}_{name}.wav", content.getvalue())
