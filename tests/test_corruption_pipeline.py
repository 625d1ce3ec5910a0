"""Stages run in order, absence comes last, nothing stored is edited, and digests tell sets apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from mmbench import registry
from mmbench.cases import Case, Missing, named_cases, parse_case
from mmbench.data.batch import Batch, RawBatch
from mmbench.data.features import fbank, normalise_audio, normalise_image
from mmbench.errors import ConfigError
from mmbench.pipeline import SetDigest, corrupt, missing_plan
from mmbench.rng import StreamKey

KEY = StreamKey("synthetic-av", "test", 0)
FRAMES = 64
PLUGIN = """
from mmbench.registry import corruption

@corruption("mine/gain", family="mine", modality="audio", stage="waveform", reference="test", deterministic=True)
def gain(x, draws, severity):
    return x * (0.1 * severity)

@corruption("mine/hiss", family="mine", modality="audio", stage="waveform", severities=(0,), reference="test")
def hiss(x, draws, severity):
    return x + 0.01 * draws.normal("noise", x.shape[1:])

@corruption("mine/invert", family="mine", modality="vision", stage="image", severities=(0,), reference="test")
def invert(x, draws, severity):
    return 255 - x

@corruption("mine/floor", family="mine", modality="audio", stage="fbank", severities=(0,), reference="test")
def floor(x, draws, severity):
    assert (draws.lengths <= x.shape[1]).all()
    return x.clamp(min=-3.0)
"""


@pytest.fixture(autouse=True, scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    path = tmp_path_factory.mktemp("plugin") / "mine.py"
    path.write_text(PLUGIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_plugins", [])
        registry.use_plugins((path,))
        yield
    registry.corruptions.cache_clear()


def make_raw(count: int = 6) -> RawBatch:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([10640, 10640, 6000, 10640, 4000, 10640])[:count]
    inside = torch.arange(10640) < lengths[:, None]
    wave = torch.randint(-9000, 9000, (count, 10640), generator=generator) / 32768 * inside
    mel, frames = fbank(wave, lengths, FRAMES)
    image = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    ids = tuple(f"clip-{i}" for i in range(count))
    return RawBatch(wave, lengths, image, mel, frames, torch.arange(count), ids)


def run(raw: RawBatch, case: Case, digest: SetDigest | None = None) -> Batch:
    return corrupt(raw, case, KEY, missing_plan(case, raw.ids, KEY), digest).batch


def digest_of(raw: RawBatch, case: Case, parts: list[list[int]], key: StreamKey = KEY) -> str:
    digest, plan = SetDigest(), missing_plan(case, raw.ids, key)
    for rows in parts:
        corrupt(raw.select(rows), case, key, plan, digest)
    return digest.hexdigest()


def test_complete_is_the_normalised_store() -> None:
    raw = make_raw()
    batch = run(raw, parse_case("complete"))
    assert torch.equal(batch.audio, normalise_audio(raw.fbank))
    assert torch.equal(batch.image, normalise_image(raw.image))
    assert batch.case == ("complete",) * 6 and batch.ids == raw.ids
    assert batch.available is not None and batch.available.all()
    assert batch.label is not None and torch.equal(batch.label, raw.label)


@pytest.mark.parametrize("name", named_cases())
def test_stored_samples_are_left_alone(name: str) -> None:
    raw, kept = make_raw(), make_raw()
    run(raw, parse_case(name))
    for field in ("wave", "wave_lengths", "image", "fbank", "frames", "label"):
        assert torch.equal(getattr(raw, field), getattr(kept, field)), field


@pytest.mark.parametrize("name", named_cases())
def test_a_sample_alone_equals_its_place_in_a_batch(name: str) -> None:
    raw, case = make_raw(), parse_case(name)
    plan, whole = missing_plan(case, raw.ids, KEY), run(raw, case)
    for row in range(6):
        alone = corrupt(raw.select([row]), case, KEY, plan).batch
        assert torch.equal(alone.audio[0], whole.audio[row]) and torch.equal(alone.image[0], whole.image[row])
        assert alone.available is not None and whole.available is not None
        assert torch.equal(alone.available[0], whole.available[row])


def test_waveform_stage_goes_through_16_bits_and_the_spectrogram() -> None:
    raw = make_raw()
    batch = run(raw, parse_case({"name": "quiet", "audio": "mine/gain@3"}))
    rounded = (raw.wave * 0.3 * 32768).round() / 32768
    assert not torch.equal(rounded, raw.wave * 0.3)
    torch.testing.assert_close(batch.audio, normalise_audio(fbank(rounded, raw.wave_lengths, FRAMES)[0]))


def test_noise_does_not_lengthen_a_clip() -> None:
    raw = make_raw()
    batch = run(raw, Case("hiss", audio="mine/hiss"))
    assert torch.equal(batch.audio[4, int(raw.frames[4]) :], run(raw, Case("c")).audio[4, int(raw.frames[4]) :])
    assert not torch.equal(batch.audio[4], run(raw, Case("c")).audio[4])


def test_image_and_fbank_stages_come_before_normalisation() -> None:
    raw = make_raw()
    batch = run(raw, parse_case({"name": "both", "audio": "mine/floor", "vision": "mine/invert"}))
    assert torch.equal(batch.image, normalise_image(255 - raw.image))
    assert torch.equal(batch.audio, normalise_audio(raw.fbank.clamp(min=-3.0)))


def test_missing_wins_over_noise() -> None:
    raw = make_raw()
    batch = run(raw, Case("gone", audio="mine/hiss", vision="mine/invert", missing=Missing("mixed", 0.5)))
    assert batch.available is not None
    assert (~batch.available).sum() == 3 and batch.available.any(1).all()
    silence = batch.audio[~batch.available[:, 0]]
    torch.testing.assert_close(silence, torch.full_like(silence, -2.4218), atol=1e-4, rtol=0)
    seen = batch.available[:, 1]
    assert torch.equal(batch.image[seen], normalise_image(255 - raw.image[seen]))
    assert (batch.image[~seen] < -1.8).all()


def test_missing_needs_the_plan_of_the_split() -> None:
    with pytest.raises(ValueError, match=r"missing-audio.*pass missing_plan"):
        corrupt(make_raw(), parse_case("missing-audio"), KEY)


def test_severity_of_a_scaled_corruption() -> None:
    assert parse_case({"name": "quiet", "audio": "mine/gain@3"}).severity() == 3
    for wrong in ("mine/gain", "mine/gain@6", "mine/gain@03"):
        with pytest.raises(ConfigError, match=r"case 'quiet'.*1, 2, 3, 4, 5"):
            parse_case({"name": "quiet", "audio": wrong})


CASES = ["complete", "noise-to-audio", "noise-to-both", "missing-mixed-0.5", "hiss"]


@pytest.mark.parametrize("name", CASES)
def test_digest_ignores_batches_and_order(name: str) -> None:
    raw = make_raw()
    case = Case("hiss", audio="mine/hiss") if name == "hiss" else parse_case(name)
    expected = digest_of(raw, case, [[0, 1, 2, 3, 4, 5]])
    assert digest_of(raw, case, [[5, 0], [3], [2, 4, 1]]) == expected
    trimmed = replace(raw, wave=torch.nn.functional.pad(raw.wave, (0, 77)))
    assert digest_of(trimmed, case, [[0, 1, 2, 3, 4, 5]]) == expected, "padding is no content"


def test_digest_tells_sets_apart() -> None:
    raw, whole = make_raw(), [[0, 1, 2, 3, 4, 5]]
    image, wave = raw.image.clone(), raw.wave.clone()
    image[3, 0, 0, 0] ^= 1
    wave[2, 100] += 1 / 32768
    complete, noisy = parse_case("complete"), parse_case("noise-to-audio")
    digests = [
        digest_of(raw, complete, whole),
        digest_of(raw, complete, [[0, 1, 2, 3, 4]]),
        digest_of(replace(raw, image=image), complete, whole),
        digest_of(replace(raw, wave=wave), complete, whole),
        digest_of(replace(raw, ids=("other", *raw.ids[1:])), complete, whole),
        digest_of(raw, noisy, whole),
        digest_of(raw, noisy, whole, StreamKey("synthetic-av", "test", 1)),
        digest_of(raw, parse_case("noise-to-audio-as-shipped"), whole),
        digest_of(raw, parse_case("missing-audio"), whole),
        digest_of(raw, parse_case("missing-audio-mean"), whole),
        digest_of(raw, parse_case("missing-vision"), whole),
        digest_of(raw, Case("quiet", audio="mine/gain@1"), whole),
        digest_of(raw, Case("quiet", audio="mine/gain@2"), whole),
    ]
    assert len(set(digests)) == len(digests)


def test_digest_does_not_depend_on_the_cases_name() -> None:
    raw, case = make_raw(), parse_case("noise-to-audio")
    assert digest_of(raw, replace(case, name="renamed"), [[0, 1]]) == digest_of(raw, case, [[1, 0]])


def test_digest_refuses_two_contents_for_one_sample() -> None:
    digest = SetDigest()
    run(make_raw(), parse_case("complete"), digest)
    with pytest.raises(ValueError, match="'clip-0' came twice"):
        run(make_raw(), parse_case("noise-to-audio"), digest)
