"""sensor/* and spec/*: shares, ratios, decay times and places are those stated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from corruptions.missing import LOG_FLOOR
from corruptions.sensor_audio import GILBERT, ROOM, gilbert
from mmbench.audio_mix import measured_snr_db
from mmbench.corruption import load_corruption
from mmbench.registry import corruptions
from mmbench.rng import StreamKey

KEY = StreamKey("vggsound", "test", 0)
RATE = 16_000
LOSS = {1: (0.02, 1.5), 2: (0.05, 2), 3: (0.1, 3), 4: (0.2, 4), 5: (0.4, 6)}
SEVERITIES = range(1, 6)
SENSOR = [name for name in corruptions().names() if name.startswith("sensor/")]
CARDS = [corruptions().card(name) for name in SENSOR]
WAVEFORM = [card.name for card in CARDS if card.modality == "audio" and card.stage in ("sample", "waveform")]


def clips(count: int = 2, seconds: float = 1.1) -> tuple[Tensor, Tensor]:
    """Noise of different lengths, padded with zeros."""
    longest = int(seconds * RATE)
    lengths = torch.tensor([longest - 3001 * row for row in range(count)])
    wave = 0.1 * torch.randn(count, longest, generator=torch.Generator().manual_seed(1))
    return wave * (torch.arange(longest) < lengths[:, None]), lengths


def corrupt(reference: str, x: Tensor, lengths: Tensor | None = None) -> Tensor:
    corruption = load_corruption(reference)
    lengths = torch.full((len(x),), x.shape[-1]) if lengths is None else lengths
    return corruption.apply(x, corruption.draws(KEY, tuple(f"s{i}" for i in range(len(x))), lengths))


def runs(flags: Tensor) -> list[int]:
    """Lengths of the unbroken stretches of True in (N,)."""
    edges = torch.diff(torch.nn.functional.pad(flags.long(), (1, 1)))
    return ((edges < 0).nonzero()[:, 0] - (edges > 0).nonzero()[:, 0]).tolist()


@pytest.mark.parametrize("name", WAVEFORM)
def test_padding_stays_zero_and_its_length_plays_no_part(name: str) -> None:
    wave, lengths = clips()
    out = corrupt(f"{name}@4", wave, lengths)
    wider = corrupt(f"{name}@4", torch.nn.functional.pad(wave, (0, 5000)), lengths)
    for row, length in enumerate(lengths.tolist()):
        assert not out[row, length:].any() and not wider[row, length:].any()
        assert torch.equal(out[row, :length], wider[row, :length])


@pytest.mark.parametrize("name", WAVEFORM)
def test_silence_and_clips_of_almost_nothing(name: str) -> None:
    assert not corrupt(f"{name}@5", torch.zeros(1, 8000)).any()
    for length in (0, 1, 7):
        assert torch.isfinite(corrupt(f"{name}@5", torch.ones(1, length) / 2)).all()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_loss_and_bursts(severity: int) -> None:
    number = 200_000
    lost = gilbert(torch.rand(1, number, generator=torch.Generator().manual_seed(severity)), severity)
    (share, burst), (to_bad, to_good) = LOSS[severity], GILBERT[severity]
    spread = (share * (1 - share) / number * (2 - to_bad - to_good) / (to_bad + to_good)) ** 0.5
    assert abs(lost.double().mean() - share) < 4 * spread
    assert np.mean(runs(lost[0])) == pytest.approx(burst, rel=0.1)
    first = gilbert(torch.rand(20_000, 1, generator=torch.Generator().manual_seed(severity)), severity)
    assert abs(first.double().mean() - share) < 4 * (share * (1 - share) / 20_000) ** 0.5


def test_the_channel_is_that_of_a_walk_from_packet_to_packet() -> None:
    chances = torch.rand(1, 400, generator=torch.Generator().manual_seed(7))
    to_bad, to_good = GILBERT[5]
    bad, walked = chances[0, 0] < to_bad / (to_bad + to_good), []
    for chance in chances[0]:
        bad = bad if not walked else (chance < 1 - to_good if bad else chance < to_bad)
        walked.append(bool(bad))
    assert gilbert(chances, 5)[0].tolist() == walked


def test_whole_packets_are_lost() -> None:
    out = corrupt("sensor/packet_loss@5", torch.ones(2, 200 * 320 + 100))
    packets = out[:, : 200 * 320].reshape(2, 200, 320)
    assert torch.equal(packets.amin(2), packets.amax(2))
    assert 0 < packets.mean() < 1 and not torch.equal(packets[0], packets[1])


@pytest.mark.parametrize("severity", SEVERITIES)
def test_the_clipped_share_is_exact(severity: int) -> None:
    wave, lengths = clips()
    out = corrupt(f"sensor/clipping@{severity}", wave, lengths)
    share = {1: 0.02, 2: 0.05, 3: 0.1, 4: 0.2, 5: 0.4}[severity]
    for row, length in enumerate(lengths.tolist()):
        changed = out[row] != wave[row]
        assert abs(int(changed.sum()) - share * length) <= 1
        assert (out[row][changed].abs() == out[row].abs().max()).all()


def test_gain_clips_at_full_scale() -> None:
    wave = torch.tensor([[0.01, -0.2, 0.5]])
    torch.testing.assert_close(corrupt("sensor/gain_clip@3", wave), torch.tensor([[0.1, -1.0, 1.0]]))
    torch.testing.assert_close(corrupt("sensor/gain_clip@5", wave), torch.tensor([[1.0, -1.0, 1.0]]))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_bits(severity: int) -> None:
    bits = {1: 10, 2: 8, 3: 6, 4: 5, 5: 4}[severity]
    wave = torch.linspace(-1, 1, 5001)[None]
    out = corrupt(f"sensor/bit_depth@{severity}", wave)
    assert len(out.unique()) == 2**bits and (out == 0).any()
    inside = wave < 1 - 2.0 ** (1 - bits)
    assert (out - wave)[inside].abs().max() <= 2.0**-bits + 1e-6


@pytest.mark.parametrize("severity", SEVERITIES)
def test_bandwidth(severity: int) -> None:
    highest_hz = {1: 6000, 2: 4000, 3: 2000, 4: 1000, 5: 500}[severity]
    wave, _ = clips(1)
    power = [torch.fft.rfft(x[0].double()).abs() ** 2 for x in (wave, corrupt(f"sensor/bandwidth@{severity}", wave))]
    hertz = torch.fft.rfftfreq(wave.shape[1], 1 / RATE)
    above, below = hertz > 1.15 * highest_hz, hertz < 0.8 * highest_hz
    assert power[1][above].sum() < 1e-3 * power[0][above].sum()
    assert power[1][below].sum() == pytest.approx(float(power[0][below].sum()), rel=0.03)


def test_the_code_has_eight_bits_and_ever_less_band() -> None:
    wave, lengths = clips(1)
    out = [corrupt(f"sensor/codec@{severity}", wave, lengths) for severity in SEVERITIES]
    snr_db = [float(measured_snr_db(wave, x, lengths)) for x in out]
    assert len(out[0].unique()) <= 255
    assert 33 < snr_db[0] < 41  # what mu-law gives over a wide range of levels
    assert snr_db == sorted(snr_db, reverse=True)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_rooms_decay_as_stated(severity: int) -> None:
    rt60_s, direct_db = ROOM[severity]
    click = torch.zeros(2, int(1.4 * RATE))
    click[:, 0] = 0.9
    for heard in corrupt(f"sensor/reverb@{severity}", click).double():
        assert float(heard.square().sum()) == pytest.approx(0.81, rel=1e-4)
        assert heard[1:32].abs().max() < 1e-12 < heard[32].abs()
        echoes = heard[1:].square()
        assert float(10 * (heard[0].square() / echoes.sum()).log10()) == pytest.approx(direct_db, abs=0.01)
        level_db = 10 * (echoes[31:].flip(0).cumsum(0).flip(0) / echoes.sum()).clamp(min=1e-12).log10()
        fitted = ((level_db < -5) & (level_db > -25)).nonzero()[:, 0].numpy()
        slope = np.polyfit(fitted / RATE, level_db[fitted].numpy(), 1)[0]
        assert -60 / slope == pytest.approx(rt60_s, rel=0.05)


def test_a_room_keeps_the_level() -> None:
    wave, lengths = clips()
    out = corrupt("sensor/reverb@5", wave, lengths)
    torch.testing.assert_close(out.square().sum(1), wave.square().sum(1))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_the_muted_share_is_exact(severity: int) -> None:
    out = corrupt(f"sensor/mute_segments@{severity}", torch.ones(2, 10_001), torch.tensor([10_001, 7003]))
    for row, length in ((0, 10_001), (1, 7003)):
        muted = out[row, :length] == 0
        assert int(muted.sum()) == round(0.1 * severity * length)
        assert len(runs(muted)) <= 2 * severity


def test_the_microphone_goes_on_and_off() -> None:
    for severity, on_time_s in {1: 2.0, 3: 0.5, 5: 0.1}.items():
        out = corrupt(f"sensor/dead_mic@{severity}", torch.ones(2, 8 * RATE))
        assert out.mean(1).tolist() == pytest.approx([0.5, 0.5], abs=1e-4)
        assert max(runs(out[0] == 0)) == pytest.approx(on_time_s * RATE, abs=1)
        assert not torch.equal(out[0], out[1])


@pytest.mark.parametrize("severity", SEVERITIES)
def test_hum(severity: int) -> None:
    wave, lengths = clips()
    out = corrupt(f"sensor/hum@{severity}", wave, lengths)
    nominal_db = {1: 20, 2: 15, 3: 10, 4: 5, 5: 0}[severity]
    assert (measured_snr_db(wave, out, lengths) - nominal_db).abs().max() < 0.01
    power = torch.fft.rfft((out - wave)[0, :RATE].double()).abs() ** 2  # one bin per Hz
    assert power[[50, 100, 150, 200, 250]].sum() > 0.999 * power.sum()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_sound_comes_late_or_early(severity: int) -> None:
    lengths = torch.tensor([80_000, 2000] * 4)
    wave = (torch.arange(80_000) + 1.0).expand(8, -1) * (torch.arange(80_000) < lengths[:, None])
    out, late = corrupt(f"sensor/desync@{severity}", wave, lengths), []
    for row, length in enumerate(lengths.tolist()):
        by = min(round((0.25, 0.5, 1.0, 2.0, 4.0)[severity - 1] * RATE), length * 3 // 4)
        behind, ahead = torch.zeros(2, 80_000)
        behind[by:length], ahead[: length - by] = wave[row, : length - by], wave[row, by:length]
        late.append(torch.equal(out[row], behind))
        assert late[-1] or torch.equal(out[row], ahead)
    assert len(set(late)) == 2
    assert corruptions().card("sensor/desync").requires == "moving-pictures"


@pytest.mark.parametrize("severity", SEVERITIES)
def test_dead_bands(severity: int) -> None:
    mel = torch.zeros(2, 50, 128)
    out = corrupt(f"sensor/dead_bands@{severity}", mel, torch.tensor([50, 20]))
    assert not out[1, 20:].any()
    for row in (0, 1):
        dead = out[row, 0] == LOG_FLOOR
        assert runs(dead) == [(8, 16, 32, 48, 64)[severity - 1]]
        assert (out[row, : (50, 20)[row]] == out[row, 0]).all() and not out[row, 0][~dead].any()


@pytest.mark.parametrize(
    ("pictures", "shown"),
    [(10, [4, 3, 2, 1, 0]), (20, [8, 6, 4, 2, 0]), (5, [1, 1, 0, 0, 0]), (2, [0, 0, 0, 0, 0])],
)
def test_a_frozen_camera_shows_earlier_pictures(pictures: int, shown: list[int]) -> None:
    """The middle picture, and tenths of the film before it."""
    at = [
        corrupt(f"sensor/frozen_frame@{n}", torch.tensor([pictures // 2]), torch.tensor([pictures])) for n in SEVERITIES
    ]
    assert torch.cat(at).tolist() == shown


def test_a_frozen_camera_has_nothing_before_the_first_picture() -> None:
    numbers = torch.arange(10)
    assert corrupt("sensor/frozen_frame@3", numbers, torch.full((10,), 10)).tolist() == [0, 0, 0, 0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("severity", SEVERITIES)
def test_lost_blocks_show_what_is_above(severity: int) -> None:
    numbers = (torch.arange(14) + 1).repeat_interleave(16)[:, None].expand(224, 224).to(torch.uint8)
    out = corrupt(f"sensor/frame_loss@{severity}", numbers.expand(4, 3, 224, 224))
    blocks = out[:, 0].reshape(4, 14, 16, 14, 16).permute(0, 1, 3, 2, 4).flatten(3)  # (B, rows, columns, pixels)
    assert torch.equal(blocks.amin(3), blocks.amax(3))
    shown = torch.nn.functional.pad(blocks[..., 0].long(), (0, 0, 1, 0))  # (B, 15, 14), black above
    own = torch.arange(1, 15)[:, None]
    kept = shown[:, 1:] == own
    assert torch.equal(shown[:, 1:][~kept], shown[:, :-1][~kept])
    (share, _), (to_bad, to_good) = LOSS[severity], GILBERT[severity]
    spread = (share * (1 - share) / kept.numel() * (2 - to_bad - to_good) / (to_bad + to_good)) ** 0.5
    assert abs((~kept).double().mean() - share) < 4 * spread


def test_blocks_of_any_picture_size() -> None:
    assert corrupt("sensor/frame_loss@5", torch.full((2, 3, 50, 37), 9, dtype=torch.uint8)).shape == (2, 3, 50, 37)


@pytest.mark.parametrize(
    ("severity", "expected"), [(1, [127, 255, 255]), (2, [63, 255, 255]), (3, [0, 255, 255]), (4, [63, 63, 255])]
)
def test_dead_channels(severity: int, expected: list[int]) -> None:
    out = corrupt(f"sensor/dead_channel@{severity}", torch.full((12, 3, 8, 8), 255, dtype=torch.uint8))
    values = out[:, :, 0, 0]
    assert (out == values[:, :, None, None]).all()
    assert values.sort(1).values.tolist() == [expected] * 12
    assert len(values.unique(dim=0)) == 3  # every colour is hit


@pytest.mark.parametrize("severity", SEVERITIES)
def test_dead_pixels(severity: int) -> None:
    out = corrupt(f"sensor/dead_pixels@{severity}", torch.full((1, 3, 224, 224), 77, dtype=torch.uint8))
    pixels = out[0].flatten(1).T  # (H * W, 3)
    share = (0.01, 0.05, 0.1, 0.2, 0.4)[severity - 1]
    dead = (pixels != 77).any(1)
    black, white = (pixels == 0).all(1), (pixels == 255).all(1)
    for found, expected in ((dead, share), (black, share / 3), (white, share / 3)):
        assert abs(float(found.double().mean()) - expected) < 4 * (expected / len(pixels)) ** 0.5
    assert len(pixels[dead & ~black & ~white].unique()) > 100


@pytest.mark.parametrize("severity", SEVERITIES)
def test_occlusion_is_a_square(severity: int) -> None:
    out = corrupt(f"sensor/occlusion@{severity}", torch.full((3, 3, 100, 120), 50, dtype=torch.uint8))
    black = (out == 0).all(1)  # (B, H, W)
    for picture in black:
        side = int(picture.any(0).sum())
        assert runs(picture.any(0)) == runs(picture.any(1)) == [side]
        assert int(picture.sum()) == side**2
        assert side**2 / 12_000 == pytest.approx((0.05, 0.1, 0.2, 0.35, 0.5)[severity - 1], rel=0.05)
    assert not torch.equal(black[0], black[1])


@pytest.mark.parametrize("severity", SEVERITIES)
def test_masks(severity: int) -> None:
    mel, frames = torch.ones(2, 200, 128), torch.tensor([200, 101])
    share, bins = (0.05, 0.1, 0.2, 0.3, 0.5)[severity - 1], (8, 16, 32, 48, 64)[severity - 1]
    over_time = corrupt(f"spec/time_mask@{severity}", mel, frames)
    over_bins = corrupt(f"spec/freq_mask@{severity}", mel, frames)
    for row, length in enumerate(frames.tolist()):
        assert (over_time[row, length:] == 1).all() and (over_bins[row, length:] == 1).all()
        masked = (over_time[row] == 0).all(1)
        assert int(masked.sum()) == round(share * length) and len(runs(masked)) <= 2
        masked = (over_bins[row, :length] == 0).all(0)
        assert int(masked.sum()) == bins and len(runs(masked)) <= 2
        assert (over_bins[row, :length, ~masked] == 1).all()
