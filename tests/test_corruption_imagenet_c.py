"""The 19 corruptions of ImageNet-C against the statistics of the published functions and against plain versions."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import imagenet_c_reference as plain
import numpy as np
import pytest
import torch
from imagenet_c_image import golden_image, statistics
from PIL import Image
from scipy import ndimage
from scipy.stats import poisson
from torch import Tensor

from corruptions.imagenet_c_blur import GLASS, MOTION, disc, shuffle
from corruptions.imagenet_c_spatter import canny, chamfer_distance, equalised
from corruptions.imagenet_c_weather import FROST, plasma
from mmbench.corruption import load_corruption
from mmbench.errors import DataError
from mmbench.frost import DRAWN, LOOKS, photographs
from mmbench.imaging import motion_blur, smoothing_matrix, to_bytes
from mmbench.registry import corruptions
from mmbench.rng import PoissonTable, StreamKey

GOLDEN = json.loads((Path(__file__).parent / "data" / "golden_corruptions" / "imagenet_c.json").read_text())
DETERMINISTIC = [(name, severity) for name, rows in GOLDEN["deterministic"].items() for severity in rows]
RANDOM = [(name, severity) for name, rows in GOLDEN["random"].items() for severity in rows]
SEVERITIES = (1, 2, 3, 4, 5)
DRAWS = 5
LEVELS = ("mad", "rmse", "mean", "std")
SHARES = ("frac0", "frac255")
IMAGE = golden_image()


def corrupt(reference: str, image: np.ndarray[Any, Any], count: int = 1, seed: int = 0) -> np.ndarray[Any, Any]:
    """(count, H, W, 3): draws of one image."""
    corruption = load_corruption(f"imagenet_c/{reference}")
    x = tensor(image).repeat(count, 1, 1, 1)
    ids = tuple(f"image-{i}" for i in range(count))
    draws = corruption.draws(StreamKey("golden", "test", seed), ids, torch.full((count,), x.shape[2]))
    return corruption.apply(x, draws).permute(0, 2, 3, 1).numpy()


def tensor(image: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].contiguous()


def noise_image(side: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Smooth enough to look like an image, with flat and black parts."""
    levels = ndimage.gaussian_filter(np.random.default_rng(seed).uniform(-400, 655, (side, side, 3)), (1.5, 1.5, 0))
    image = np.clip(levels, 0, 255).astype(np.uint8)
    image[: side // 4, : side // 4] = 0
    image[-side // 4 :, -side // 4 :] = (200, 200, 200)
    return image


def test_the_set_is_complete() -> None:
    cards = [corruptions().card(name) for name in corruptions().names() if name.startswith("imagenet_c/")]
    assert sum(card.variant == "main" for card in cards) == 15
    assert sum(card.variant == "extra" for card in cards) == 4
    assert {card.name.split("/")[1] for card in cards} == set(plain.REFERENCE)
    assert {card.name.split("/")[1] for card in cards if card.deterministic} == set(GOLDEN["deterministic"])


def test_the_golden_image_is_the_one_of_the_statistics() -> None:
    digest = hashlib.sha256(IMAGE.tobytes()).hexdigest()
    assert digest == "afb447422e7fd7a7f6a54195c4c417f40959c502a3cfafaab69cad52ec24c9cc"


@pytest.mark.parametrize(("name", "severity"), DETERMINISTIC)
def test_deterministic_ones_are_within_one_level(name: str, severity: str) -> None:
    golden = GOLDEN["deterministic"][name][severity]
    probe = np.frombuffer(base64.b85decode(golden["probe"]), dtype=np.uint8).reshape(14, 14, 3)
    out = corrupt(f"{name}@{severity}", IMAGE)[0]
    assert np.abs(out[8::16, 8::16].astype(int) - probe).max() <= 1
    assert abs(math.sqrt(((out.astype(float) - IMAGE) ** 2).mean()) - golden["rmse"]) <= 0.15


@pytest.mark.parametrize(("name", "severity"), RANDOM)
def test_random_ones_have_the_published_statistics(name: str, severity: str) -> None:
    golden = GOLDEN["random"][name][severity]
    found = [statistics(out, IMAGE) for out in corrupt(f"{name}@{severity}", IMAGE, DRAWS)]
    for statistic in found[0]:
        own = np.array([one[statistic] for one in found])
        mean, sd = (np.array(value) for value in golden[statistic])
        error = 4 * np.sqrt(sd**2 / 32 + own.var(0, ddof=1) / DRAWS)
        room = 0.3 if statistic in LEVELS else 0.002 if statistic in SHARES else 0.02
        allowed = error + (0.05 * mean if statistic == "psr16" else room)
        assert (np.abs(own.mean(0) - mean) <= allowed).all(), statistic


@pytest.mark.parametrize("severity", SEVERITIES)
def test_motion_blur_at_the_stored_angles(severity: int) -> None:
    golden = GOLDEN["random"]["motion_blur"][str(severity)]
    angles = torch.tensor(golden["angle_deg"], dtype=torch.float64)
    out = to_bytes(motion_blur(tensor(IMAGE).repeat(len(angles), 1, 1, 1), angles, *MOTION[severity]))
    rmse = (out.double() - tensor(IMAGE)).square().mean((1, 2, 3)).sqrt()
    assert (rmse - torch.tensor(golden["rmse_per_draw"])).abs().max() <= 0.01


def test_motion_blur_is_one_sided() -> None:
    point = torch.zeros(1, 1, 21, 21, dtype=torch.uint8)
    point[0, 0, 10, 10] = 255
    smear = motion_blur(point, torch.tensor([0.0]), 2, 3.0)[0, 0]
    assert (smear[10, 6:11] > 0).all() and int((smear > 0).sum()) == 5
    assert (smear[10, 6:11].diff() > 0).all()


@pytest.mark.parametrize("side", [64, 96])
@pytest.mark.parametrize(("name", "severity"), [pair for pair in DETERMINISTIC if int(pair[1]) in (1, 3, 5)])
def test_deterministic_ones_equal_the_plain_version(name: str, severity: str, side: int) -> None:
    image = noise_image(side)
    expected = plain.REFERENCE[name](image, int(severity), np.random.default_rng(0))
    out = corrupt(f"{name}@{severity}", image)[0]
    assert np.abs(out.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("severity", [1, 3, 5])
@pytest.mark.parametrize("name", [*GOLDEN["random"], "frost"])
def test_random_ones_change_small_images_as_the_plain_version_does(name: str, severity: int) -> None:
    image, rng = noise_image(64), np.random.default_rng(0)
    drawn = [plain.REFERENCE[name](image, severity, rng).astype(float) - image for _ in range(16)]
    own = corrupt(f"{name}@{severity}", image, 16).astype(float) - image
    for statistic in (np.mean, np.std):
        ours, theirs = (np.array([statistic(change) for change in changes]) for changes in (own, drawn))
        assert abs(ours.mean() - theirs.mean()) <= 4 * math.sqrt((ours.var() + theirs.var()) / 16) + 0.3


@pytest.mark.parametrize("severity", SEVERITIES)
def test_glass_blur_equals_the_sequence(severity: int) -> None:
    _, reach, passes = GLASS[severity]
    image = noise_image(64, severity)
    offsets = np.random.default_rng(severity).integers(-reach, reach, (passes, 64 - 2 * reach, 64 - 2 * reach, 2))
    expected = plain.shuffled(image, offsets, reach)
    coded = torch.from_numpy((offsets[..., 0] + reach) * 2 * reach + offsets[..., 1] + reach)[None]
    both = shuffle(tensor(image).repeat(2, 1, 1, 1), coded.repeat(2, 1, 1, 1), reach)  # a batch chains nothing across
    assert np.array_equal(both[0].permute(1, 2, 0).numpy(), expected)
    assert torch.equal(both[0], both[1])


@pytest.mark.parametrize("name", ["gaussian_blur", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"])
def test_a_blur_leaves_a_flat_image_alone(name: str) -> None:
    image = np.broadcast_to(np.array([230, 40, 255], dtype=np.uint8), (64, 64, 3))
    for severity in (1, 3):  # the defocus kernels of 4 and 5 brighten
        assert np.array_equal(corrupt(f"{name}@{severity}", image)[0], image)


def test_the_widest_defocus_kernels_brighten_as_published() -> None:
    sums = [float(disc(radius, sigma).sum()) for radius, sigma in ((6, 0.5), (8, 0.5), (10, 0.5))]
    assert sums == pytest.approx([1, 1.01298, 1.01079], abs=1e-5)


def test_poisson_counts_invert_the_distribution() -> None:
    rates = [0.0, 0.3, 5.0, 60.0]
    uniform = torch.rand(4, 500, generator=torch.Generator().manual_seed(0))
    uniform[:, :3] = torch.tensor([1e-9, 0.5, 1 - 2.0**-24])
    rows = torch.arange(4)[:, None].expand(4, 500)
    counts = PoissonTable.of(rates).counts(rows, uniform)
    expected = np.maximum(poisson.ppf(uniform.double().numpy(), np.array(rates)[:, None]), 0)
    assert np.array_equal(counts.numpy(), expected)


class Replayed:
    """A generator that hands out given uniforms."""

    def __init__(self, uniforms: np.ndarray[Any, Any]) -> None:
        self._left = uniforms

    def random(self, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        count = math.prod(shape)
        drawn, self._left = self._left[:count], self._left[count:]
        return drawn.reshape(shape)


def test_plasma_equals_the_plain_version() -> None:
    uniforms = np.random.default_rng(0).random(255)
    ours = plasma(torch.from_numpy(uniforms)[None], 16, 1.7)[0].numpy()
    assert ours == pytest.approx(plain.plasma(16, 1.7, Replayed(uniforms)), abs=1e-12)  # type: ignore[arg-type]
    assert ours.min() == 0 and ours.max() == 1


@pytest.mark.parametrize("sigma", [2.44, 19.52, 170.8])
def test_elastic_fields_are_smoothed_as_by_scipy(sigma: float) -> None:
    field = np.random.default_rng(0).uniform(-1, 1, (48, 48))
    matrix = smoothing_matrix(48, sigma, 3.0).numpy()
    expected = ndimage.gaussian_filter(field, sigma, mode="reflect", truncate=3)
    assert matrix @ field @ matrix.T == pytest.approx(expected, abs=1e-12)


def test_edges_of_a_step_and_of_weak_ones() -> None:
    levels = np.zeros((20, 20), dtype=np.uint8)
    levels[:, 10:] = 200
    assert np.array_equal(np.flatnonzero(canny(levels).any(0)), [9]) and canny(levels)[:, 9].all()
    assert not canny(levels // 8).any()  # a step of 25 has norm 100: weak, and no strong edge touches it
    levels[:10] //= 8
    assert canny(levels)[:, 9].sum() > 10  # what touches a strong edge is kept
    diagonal = np.triu(np.full((20, 20), 200, dtype=np.uint8))
    rows, columns = np.nonzero(canny(diagonal))
    assert set(rows - columns) == {0, 1} and len(rows) > 30  # one pixel to either side, compared across the step


def test_chamfer_distance_is_the_shortest_walk() -> None:
    edges = np.random.default_rng(0).random((24, 24)) < 0.02
    moves = [(dy, dx, cost) for dy, dx, cost in ((0, 1, 1.0), (1, 1, 1.4), (1, 2, 2.1969), (2, 1, 2.1969), (1, 0, 1.0))]
    signed = [(sy * dy, sx * dx, cost) for dy, dx, cost in moves for sy in (-1, 1) for sx in (-1, 1)]
    walk = np.pad(np.where(edges, 0, np.inf), 2, constant_values=np.inf)
    for _ in range(24):
        for dy, dx, cost in signed:
            walk[2:-2, 2:-2] = np.minimum(walk[2:-2, 2:-2], walk[2 + dy : 26 + dy, 2 + dx : 26 + dx] + cost)
    # The nearest by Euclid is nearly always the nearest by walk; where not, it is hardly farther.
    gap = chamfer_distance(edges) - walk[2:-2, 2:-2]
    assert gap.min() > -1e-9 and gap.max() < 0.3 and (gap < 1e-9).mean() > 0.9
    assert np.isinf(chamfer_distance(np.zeros((4, 4), dtype=bool))).all()


def test_equalised_levels() -> None:
    assert np.array_equal(equalised(np.array([[3, 3, 5, 9]], dtype=np.uint8)), [[0, 0, 128, 255]])
    assert np.array_equal(equalised(np.full((2, 2), 20, dtype=np.uint8)), np.full((2, 2), 20))


def test_generated_frost_has_the_measured_palette() -> None:
    photos = photographs(224, 224)
    assert len({id(photo) for photo in photos}) == 4 and photos[1] is photos[2]
    for photo, look in zip(photos, [LOOKS[index] for index in DRAWN], strict=True):
        crops = photo.double().unfold(1, 224, 72).unfold(2, 224, 72).reshape(3, -1, 224, 224).transpose(0, 1)
        mean = crops.mean((0, 2, 3))
        assert mean.tolist() == pytest.approx(list(look.mean_rgb), rel=0.1)
        assert float(crops.std((2, 3)).mean()) == pytest.approx(look.std, rel=0.1)
        assert np.mean([slope(crop.mean(0).numpy()) for crop in crops]) == pytest.approx(look.slope, abs=0.2)


def slope(grey: np.ndarray[Any, Any]) -> float:
    """Of log power over log frequency, rings from 4 to 80 cycles of a crop of 224, under a Hann window."""
    window = np.hanning(224)[:, None] * np.hanning(224)
    power = np.abs(np.fft.fft2((grey - grey.mean()) * window)) ** 2
    waves = np.fft.fftfreq(224, 1 / 224)
    rings = np.round(np.hypot(waves[:, None], waves)).astype(int)
    radial = np.bincount(rings.ravel(), power.ravel()) / np.bincount(rings.ravel())
    return float(np.polyfit(np.log(np.arange(4, 81)), np.log(radial[4:81]), 1)[0])


@pytest.fixture
def frost_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMBENCH_ASSETS", str(tmp_path))
    folder = tmp_path / "frost"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("severity", SEVERITIES)
def test_frost_blends_a_photograph_of_ones_own(frost_folder: Path, severity: int) -> None:
    Image.new("L", (80, 70), 90).save(frost_folder / "mine.png")
    image_share, frost_share = FROST[severity]
    out = corrupt(f"frost@{severity}", np.full((64, 64, 3), 100, dtype=np.uint8))
    assert (out == int(image_share * 100 + frost_share * 90 + 1e-6)).all()


def test_frost_never_draws_the_sixth_published_photograph(frost_folder: Path) -> None:
    for index in range(1, 7):
        Image.new("RGB", (80, 80), (10 * index, 0, 0)).save(frost_folder / f"frost{index}.png")
    assert [int(photo[0, 0, 0]) for photo in photographs(64, 64)] == [10, 20, 30, 40, 50]


def test_a_broken_or_small_photograph_is_named(frost_folder: Path) -> None:
    Image.new("RGB", (64, 80)).save(frost_folder / "small.png")
    with pytest.raises(DataError, match=r"small\.png has 64x80 pixels.*64x64"):
        photographs(64, 64)
    (frost_folder / "small.png").rename(frost_folder / "small.webp")
    with pytest.raises(DataError, match=r"frost holds no file that is read; put files \(\.jpg, \.jpeg, \.png\)"):
        photographs(64, 64)
    (frost_folder / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cannot read photograph .*broken\.jpg"):
        photographs(64, 64)


def test_oblong_images_keep_their_shape() -> None:
    image = noise_image(64)[:40]
    for name in plain.REFERENCE:
        out = corrupt(f"{name}@3", image)
        assert out.shape == (1, 40, 64, 3) and not np.array_equal(out[0], image), name
