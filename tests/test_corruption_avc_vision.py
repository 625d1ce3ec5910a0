"""Pictures of the fifteen audio-visual pairs: published tables, and the repairs that their notes name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mmbench.corruption import load_corruption
from mmbench.errors import DataError
from mmbench.registry import corruptions
from mmbench.rng import StreamKey

KEY = StreamKey("vggsound", "test", 0)
SIGHTS = [name for name in corruptions().names() if name.startswith("avc/") and name.endswith("-sight")]
SAME = {
    "gaussian": "gaussian_noise",
    "impulse": "impulse_noise",
    "shot": "shot_noise",
    "speckle": "speckle_noise",
    "compression": "jpeg_compression",
    "frost": "frost",
    "spatter": "spatter",
    "wind": "motion_blur",
    "concert": "brightness",
}


def pictures(count: int = 2, side: int = 48) -> Tensor:
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)


def flat(rgb: tuple[int, int, int], count: int = 1, side: int = 64) -> Tensor:
    return torch.tensor(rgb, dtype=torch.uint8)[None, :, None, None].repeat(count, 1, side, side)


def corrupt(reference: str, x: Tensor) -> Tensor:
    corruption = load_corruption(reference)
    lengths = torch.full((len(x),), x.shape[2])
    return corruption.apply(x, corruption.draws(KEY, tuple(f"s{i}" for i in range(len(x))), lengths))


def test_every_sound_has_its_sight() -> None:
    sounds = {name for name in corruptions().names() if name.startswith("avc/") and name.endswith("-sound")}
    assert {name.replace("-sight", "-sound") for name in SIGHTS} == sounds and len(SIGHTS) == 15
    assert all("repair" in corruptions().card(name).note for name in SIGHTS)
    assert {corruptions().card(name).variant for name in SIGHTS} == {"avc-fixed-1"}


@pytest.mark.parametrize("pair", SAME)
def test_shared_functions_give_the_same_pictures(pair: str) -> None:
    assert torch.equal(corrupt(f"avc/{pair}-sight@3", pictures()), corrupt(f"imagenet_c/{SAME[pair]}@3", pictures()))


@pytest.mark.parametrize("severity", range(1, 6))
def test_what_falls_is_the_same_turned_by_half_a_turn(severity: int) -> None:
    for pair in ("snow", "rain"):
        out = corrupt(f"avc/{pair}-sight@{severity}", flat((60, 60, 60), 2))
        assert torch.equal(out, out.flip(2, 3)) and not torch.equal(out[0], out[1])
        red, green, blue = out.long().unbind(1)
        assert torch.equal(red, blue) if pair == "snow" else bool(((red <= green) & (green <= blue)).all())
        assert pair == "snow" or bool((red < blue).any())


def test_pictures_pale_as_stated() -> None:
    # Where nothing falls: kept * x + (1 - kept) * max(x, factor * grey + offset).
    out = corrupt("avc/rain-sight@1", flat((100, 100, 100)))
    assert int(out.min()) == int(0.8 * 100 + 0.2 * (1.3 * 100 + 0.3 * 255))
    out = corrupt("avc/snow-sight@3", flat((100, 100, 100), 4))
    assert int(out.min()) == int(0.7 * 100 + 0.3 * (1.5 * 100 + 0.5 * 255))


@pytest.mark.parametrize("severity", range(1, 6))
def test_smoke_is_nearly_flat(severity: int) -> None:
    strength = 255 * (1.5, 2.0, 2.5, 2.5, 3.0)[severity - 1]
    sigma = (2.0, 2.0, 1.7, 1.5, 1.4)[severity - 1]
    out = corrupt(f"avc/smoke-sight@{severity}", flat((200, 200, 200), side=160)).double()
    scale = 200 / (200 + strength)
    assert float(out.mean()) == pytest.approx((200 + strength / 2) * scale - 0.5, abs=1.0)
    noise = 12**-0.5 / (2 * sigma * np.pi**0.5)  # std of smoothed uniforms
    assert float(out.std()) == pytest.approx(strength * noise * scale, rel=0.1)


@pytest.mark.parametrize("severity", range(1, 6))
def test_red_is_lost_under_water(severity: int) -> None:
    kept, contrast = (0.9, 0.7, 0.5, 0.3, 0.1)[severity - 1], (0.9, 0.8, 0.7, 0.6, 0.5)[severity - 1]
    out = corrupt(f"avc/underwater-sight@{severity}", flat((200, 100, 150)))[0, :, 0, 0].double()
    expected = 0.85 * contrast * torch.tensor([200 * kept, 100, 150]) + 0.15 * 20 * severity
    assert torch.equal(out, (expected.double() + 1e-4).floor())


def test_water_blurs_over_its_kernel() -> None:
    point = torch.zeros(1, 3, 41, 41, dtype=torch.uint8)
    point[:, 1, 15:26, 15:26] = 255
    for severity, size in {1: 3, 4: 11, 5: 15}.items():
        green = corrupt(f"avc/underwater-sight@{severity}", point)[0, 1]
        reached = (green > int(green.min())).nonzero()
        assert int(reached.min()) >= 15 - size // 2 and int(reached.max()) <= 25 + size // 2
        assert (int(reached.min()) < 15) and int(green.max()) <= 255 * 0.85 + 15


@pytest.mark.parametrize("severity", range(1, 6))
def test_somebody_covers_a_stated_part(severity: int) -> None:
    side = 120
    out = corrupt(f"avc/crowd-sight@{severity}", flat((0, 255, 0), 4, side))
    share = (out != flat((0, 255, 0), 4, side)).any(1).double().mean((1, 2))
    box = (0.1 * severity) ** 2
    assert (share <= box * 1.15).all() and (share >= box * 0.65).all()
    assert not torch.equal(out[0], out[1])


def cut_out(folder: Path, name: str, alpha: int = 0) -> None:
    """A red rectangle of twice its width in height, in a frame of this alpha."""
    pixels = np.zeros((84, 44, 4), dtype=np.uint8)
    pixels[..., 3] = alpha
    pixels[2:-2, 2:-2] = (255, 0, 0, 255)
    (folder / "crowd").mkdir(exist_ok=True)
    Image.fromarray(pixels).save(folder / "crowd" / name)


def test_cut_outs_of_the_user_keep_colours_and_proportions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_out(tmp_path, "red.png")
    monkeypatch.setenv("MMBENCH_ASSETS", str(tmp_path))
    out = corrupt("avc/crowd-sight@4", flat((0, 0, 0), 2, 100))
    assert not out[:, 1:].any() and int(out[:, 0].max()) == 255
    for picture in out[:, 0] > 127:
        height, width = int(picture.any(1).sum()), int(picture.any(0).sum())
        assert height * width / 100**2 == pytest.approx(0.16, rel=0.2)
        assert height / width == pytest.approx(2, rel=0.1)


def test_cut_outs_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMBENCH_ASSETS", str(tmp_path))
    cut_out(tmp_path, "solid.png", alpha=255)
    with pytest.raises(DataError, match=r"solid\.png has no transparent pixel"):
        corrupt("avc/crowd-sight@1", pictures())
    Image.new("RGBA", (20, 40)).save(tmp_path / "crowd" / "solid.png")
    with pytest.raises(DataError, match=r"solid\.png has no visible pixel"):
        corrupt("avc/crowd-sight@1", pictures())
    (tmp_path / "crowd" / "solid.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"cannot read cut-out .*solid\.png"):
        corrupt("avc/crowd-sight@1", pictures())


@pytest.mark.parametrize("severity", [1, 5])
def test_pictures_are_turned_by_whole_degrees(severity: int) -> None:
    before = pictures(3)
    most, found = 6 * severity + 5, []
    for one, out in zip(before, corrupt(f"avc/interference-sight@{severity}", before), strict=True):
        image = Image.fromarray(one.permute(1, 2, 0).numpy())
        turned = [np.asarray(image.rotate(angle)) for angle in range(-most, most + 1)]
        equal = [float((wanted == out.permute(1, 2, 0).numpy()).mean()) for wanted in turned]
        assert max(equal) > 0.99
        found.append(int(np.argmax(equal)) - most)
    assert len(set(found)) > 1
