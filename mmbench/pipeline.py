"""From stored samples to what a method sees under a case: every stage in order, absence last; plus the set's digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from mmbench.cards import Modality
from mmbench.cases import Case
from mmbench.corruption import Corruption, Stage, load_corruption
from mmbench.data.batch import Batch, RawBatch
from mmbench.data.features import fbank, normalise_audio, normalise_image
from mmbench.rng import Draws, StreamKey, stream, uniforms

PCM_STEPS = 32768  # of a 16-bit file: samples are whole multiples of 1 / 32768
RAW_AUDIO = (Stage.SAMPLE, Stage.WAVEFORM)
LATER = (Stage.FBANK, Stage.NORMALISED)  # after the bytes that a digest can compare between machines
MODALITIES: tuple[Modality, Modality] = ("audio", "vision")  # the columns of Batch.available


@dataclass(frozen=True)
class MissingPlan:
    """Which samples of a split lack a modality; no sample lacks both."""

    audio: frozenset[str]
    vision: frozenset[str]

    def available(self, ids: Sequence[str]) -> Tensor:
        """(B, 2) bool [audio, vision]."""
        rows = [[sample_id not in self.audio, sample_id not in self.vision] for sample_id in ids]
        return torch.tensor(rows, dtype=torch.bool).reshape(len(ids), 2)


COMPLETE = MissingPlan(frozenset(), frozenset())


def missing_plan(case: Case, ids: Sequence[str], key: StreamKey) -> MissingPlan:
    """The plan of a case for all ids of a split, in any order.

    Samples are ranked by a draw that knows neither case nor rate, the first floor(N * rate) lack something, and every
    prefix of the ranking holds the exact shares: what is missing at one rate is missing, the same way, at a higher one.
    """
    if case.missing is None:
        return COMPLETE
    no_audio, no_vision = case.missing.counts(len(ids))
    ranked = _ranking(tuple(ids), key)
    share = case.missing.vision_share()
    absent = ranked[: no_audio + no_vision]
    lacks_vision = [int(share * (rank + 1)) > int(share * rank) for rank in range(len(absent))]
    return MissingPlan(
        audio=frozenset(i for i, vision in zip(absent, lacks_vision, strict=True) if not vision),
        vision=frozenset(i for i, vision in zip(absent, lacks_vision, strict=True) if vision),
    )


@lru_cache(maxsize=8)
def _ranking(ids: tuple[str, ...], key: StreamKey) -> tuple[str, ...]:
    """The ids of a split in the order in which they go missing; every case and every tuning trial asks for it again."""
    ranks = {sample_id: float(uniforms(stream(key, sample_id, "missing", 0, "rank"), 1)[0]) for sample_id in ids}
    return tuple(sorted(ids, key=lambda sample_id: (ranks[sample_id], sample_id)))


class SetDigest:
    """SHA-256 of a corrupted set, whatever the order and size of its batches.

    Per sample it covers the 16-bit waveform, the 8-bit image, which modality is absent, and for everything later, where
    the last bits of a float may differ between machines, what was applied and the key of its draws.
    """

    def __init__(self) -> None:
        self._samples: dict[str, bytes] = {}

    def update(self, sample_id: str, pieces: Iterable[bytes]) -> None:
        """Add one sample; raises ValueError if it was added before with other contents."""
        content = hashlib.sha256()
        for piece in pieces:
            content.update(len(piece).to_bytes(8, "little"))  # so that no two lists of pieces read the same
            content.update(piece)
        if self._samples.setdefault(sample_id, content.digest()) != content.digest():
            raise ValueError(f"sample '{sample_id}' came twice with different contents; use one SetDigest per set")

    def adopt(self, sample_id: str, content: bytes) -> None:
        """Add one sample by what `contents` gave for it."""
        self._samples[sample_id] = content

    def contents(self, ids: Sequence[str]) -> tuple[bytes, ...]:
        """SHA-256 of each of these samples, 32 bytes."""
        return tuple(self._samples[sample_id] for sample_id in ids)

    def hexdigest(self) -> str:
        whole = hashlib.sha256()
        for sample_id in sorted(self._samples):
            whole.update(hashlib.sha256(sample_id.encode()).digest() + self._samples[sample_id])
        return whole.hexdigest()


@dataclass(frozen=True)
class _Active:
    """The corruptions of one case on one batch."""

    raw: RawBatch
    key: StreamKey
    audio: Corruption | None
    vision: Corruption | None

    def on_audio(self, stages: Sequence[Stage], x: Tensor, lengths: Tensor) -> Tensor:
        return self._apply(self.audio, stages, x, lengths)

    def on_vision(self, stages: Sequence[Stage], x: Tensor, lengths: Tensor) -> Tensor:
        return self._apply(self.vision, stages, x, lengths)

    @property
    def rows(self) -> Tensor:
        return torch.full((len(self.raw.ids),), self.raw.image.shape[2])  # (B,) image rows

    def _apply(self, corruption: Corruption | None, stages: Sequence[Stage], x: Tensor, lengths: Tensor) -> Tensor:
        if corruption is None or corruption.stage not in stages:
            return x
        return corruption.apply(x, corruption.draws(self.key, self.raw.ids, lengths))


@dataclass(frozen=True)
class Corrupted:
    """A batch under a case, and the sound that it was computed from."""

    batch: Batch
    wave: Tensor  # (B, S) float32, whole multiples of 1 / PCM_STEPS


def corrupt(
    raw: RawBatch, case: Case, key: StreamKey, plan: MissingPlan | None = None, digest: SetDigest | None = None
) -> Corrupted:
    """The batch a method sees under a case, and the sound for those who want to hear it; `raw` is left as it is.

    A case with missing samples needs the plan of its whole split. The digest, if given, takes in the batch.
    """
    staged = stage_case(raw, case, key, plan, digest)
    return Corrupted(staged.to("cpu"), staged.wave)


@dataclass(frozen=True)
class Staged:
    """A batch under a case as far as the bytes that a digest compares, which are made on the CPU wherever it goes.

    What follows, from the log-mel on, is made by `to` on the device of the model.
    """

    active: _Active
    case: Case
    wave: Tensor  # (B, S) float32, whole multiples of 1 / PCM_STEPS
    image: Tensor  # (B, 3, H, W) uint8
    available: Tensor  # (B, 2) bool

    def to(self, device: str | torch.device) -> Batch:
        """The batch a method sees, made on a device; its floats differ between devices in their last bits."""
        audio = _fill(self._audio(device), self.available[:, 0], self.case, "audio", self.active)
        vision = normalise_image(self.image.to(device))  # bytes travel, floats are made there
        vision = self.active.on_vision((Stage.NORMALISED,), vision, self.active.rows)  # (B, 3, H, W)
        vision = _fill(vision, self.available[:, 1], self.case, "vision", self.active)
        raw, case = self.active.raw, self.case
        touched = torch.tensor([case.audio is not None, case.vision is not None])
        label, available, affected = (x.to(device) for x in (raw.label, self.available, ~self.available | touched))
        return Batch(audio, vision, label, raw.ids, (case.name,) * len(raw.ids), available, affected)

    def _audio(self, device: str | torch.device) -> Tensor:
        """Normalised log-mel (B, T, 128); the stored one unless the sound changed."""
        raw, frames = self.active.raw, self.active.raw.frames
        if self.wave is raw.wave:
            mel = raw.fbank.to(device)
        else:
            mel, frames = fbank(self.wave.to(device), raw.wave_lengths, raw.fbank.shape[1])
        mel = self.active.on_audio((Stage.FBANK,), mel, frames)
        return self.active.on_audio((Stage.NORMALISED,), normalise_audio(mel), frames)


def stage_case(
    raw: RawBatch, case: Case, key: StreamKey, plan: MissingPlan | None = None, digest: SetDigest | None = None
) -> Staged:
    """As `corrupt`, without what follows the bytes of the digest."""
    if plan is None and case.missing is not None:
        raise ValueError(f"case '{case.name}' has missing samples; pass missing_plan(case, all ids of the split, key)")
    active = _Active(raw, key, *(load_corruption(text) if text else None for text in (case.audio, case.vision)))
    wave = _heard(active)
    image = active.on_vision((Stage.IMAGE,), _shown(active), active.rows)  # (B, 3, H, W) uint8
    available = (plan or COMPLETE).available(raw.ids)
    if digest is not None:
        _digest_batch(digest, active, wave, image, _absences(case, available))
    return Staged(active, case, wave, image, available)


def _shown(active: _Active) -> Tensor:
    """(B, 3, H, W) uint8: of a film any picture in training, the middle one in a test (CAV-MAE, ICLR 2023).

    A corruption of the stage `sample` acts on the choice.
    """
    film, key = active.raw.film, active.key
    if film is None:
        return active.raw.image
    lengths = torch.full((len(active.raw),), film.length)
    training = key.epoch is not None
    any_of = Draws(key, "film", 0, active.raw.ids, lengths)
    number = any_of.integers("shown", film.length) if training else film.middle
    return film.at(active.on_vision((Stage.SAMPLE,), number, lengths))


def _heard(active: _Active) -> Tensor:
    """Waveform (B, S), the stored one itself unless the sound changes."""
    raw = active.raw
    if active.audio is None or active.audio.stage not in RAW_AUDIO:
        return raw.wave
    wave = active.on_audio(RAW_AUDIO, raw.wave, raw.wave_lengths)
    inside = torch.arange(wave.shape[1]) < raw.wave_lengths[:, None]  # (B, S): noise must not lengthen a clip
    return (pcm16(wave).to(torch.float32) / PCM_STEPS) * inside


def pcm16(wave: Tensor) -> Tensor:
    """Rounded and clipped as a 16-bit file would: sets written to disk and sets made on the fly agree."""
    return (wave * PCM_STEPS).round_().clamp_(-PCM_STEPS, PCM_STEPS - 1).to(torch.int16)


def _fill(x: Tensor, present: Tensor, case: Case, modality: Modality, active: _Active) -> Tensor:
    rows = (~present).nonzero()[:, 0]
    if case.missing is None or len(rows) == 0:
        return x
    filler = load_corruption(case.missing.fill(modality))
    lengths = active.raw.frames if modality == "audio" else active.rows
    draws = filler.draws(active.key, active.raw.ids, lengths).select(rows.tolist())
    places = rows.to(x.device)
    return x.index_copy(0, places, filler.apply(x[places], draws))


def _absences(case: Case, available: Tensor) -> list[bytes]:
    """Per sample: what is present, and the fill of what is not."""
    fills = [case.missing.fill(modality) if case.missing else "" for modality in MODALITIES]
    return [
        "/".join("present" if here else fill for here, fill in zip(row, fills, strict=True)).encode()
        for row in available.tolist()
    ]


def _digest_batch(digest: SetDigest, active: _Active, wave: Tensor, image: Tensor, absences: list[bytes]) -> None:
    pcm, pixels = pcm16(wave).numpy().astype("<i2", copy=False), image.contiguous().numpy()
    later: list[tuple[bytes, ...]] = [() for _ in active.raw.ids]
    for corruption in (active.audio, active.vision):
        if corruption is not None and corruption.stage in LATER:
            card = corruption.card
            fact = f"{card.name}@{corruption.severity}:{card.variant}".encode()
            keys = corruption.draws(active.key, active.raw.ids, active.raw.frames).digests()
            later = [(*pieces, fact, key) for pieces, key in zip(later, keys, strict=True)]
    for row, (sample_id, length) in enumerate(zip(active.raw.ids, active.raw.wave_lengths.tolist(), strict=True)):
        pieces = (pcm[row, :length].tobytes(), pixels[row].tobytes(), absences[row], *later[row])
        digest.update(sample_id, pieces)
