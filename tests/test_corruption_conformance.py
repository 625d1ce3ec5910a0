"""Every registered corruption keeps the contract; a new one is tested by being registered."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmbench.corruption import Corruption, Stage, load_corruption
from mmbench.errors import ConfigError
from mmbench.registry import corruptions
from mmbench.rng import StreamKey

KEY = StreamKey("synthetic-av", "test", 0)
IDS = tuple(f"sample-{i}" for i in range(8))
REFERENCES = [
    name if card.severities == (0,) else f"{name}@{severity}"
    for name in corruptions().names()
    for card in [corruptions().card(name)]
    for severity in card.severities
]


def inputs(corruption: Corruption) -> tuple[Tensor, Tensor]:
    """A batch for the corruption's stage, and valid lengths."""
    generator = torch.Generator().manual_seed(0)
    if corruption.card.modality == "vision" and corruption.stage == Stage.SAMPLE:
        return torch.tensor([5, 9, 1, 3, 5, 2, 7, 4]), torch.full((8,), 10)  # pictures shown, of ten
    if corruption.card.modality == "vision":
        image = torch.randint(0, 256, (8, 3, 64, 64), generator=generator, dtype=torch.uint8)
        return (image if corruption.stage == Stage.IMAGE else image / 64 - 2), torch.full((8,), 64)
    if corruption.stage in (Stage.SAMPLE, Stage.WAVEFORM):
        lengths = torch.tensor([16000, 12000, 8000, 16000, 9000, 16000, 4000, 16000])
        wave = (torch.rand(8, 16000, generator=generator) - 0.5) * (torch.arange(16000) < lengths[:, None])
        return wave, lengths
    return torch.randn(8, 128, 128, generator=generator), torch.tensor([128, 98, 60, 128, 20, 128, 98, 128])


def apply(corruption: Corruption, rows: list[int]) -> Tensor:
    batch, lengths = inputs(corruption)
    ids = tuple(IDS[row] for row in rows)
    return corruption.apply(batch[rows], corruption.draws(KEY, ids, lengths[rows]))


@pytest.mark.parametrize("reference", REFERENCES)
def test_contract(reference: str) -> None:
    corruption = load_corruption(reference)
    batch, lengths = inputs(corruption)
    before = batch.clone()
    out = corruption.apply(batch, corruption.draws(KEY, IDS, lengths))
    assert torch.equal(batch, before), "the input was edited"
    assert out.data_ptr() != batch.data_ptr(), "the output shares the input's memory"
    assert out.shape == batch.shape and out.dtype == batch.dtype
    assert not out.is_floating_point() or torch.isfinite(out).all()
    assert not torch.equal(out, batch), "nothing was corrupted"
    assert torch.equal(out, apply(corruption, list(range(8)))), "a repeat differs"


@pytest.mark.parametrize("reference", REFERENCES)
def test_independent_of_the_batch(reference: str) -> None:
    corruption = load_corruption(reference)
    whole = apply(corruption, list(range(8)))
    for row in range(8):
        assert torch.equal(apply(corruption, [row])[0], whole[row]), f"sample {row} alone differs"
    order = [5, 2, 7, 0, 1, 6, 3, 4]
    assert torch.equal(apply(corruption, order), whole[order]), "the order matters"


@pytest.mark.parametrize("reference", REFERENCES)
def test_global_generators_play_no_part(reference: str) -> None:
    corruption = load_corruption(reference)
    torch.manual_seed(1)
    first, state = apply(corruption, [0, 1, 2]), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state), "the global generator moved"
    torch.manual_seed(2)
    assert torch.equal(apply(corruption, [0, 1, 2]), first)


@pytest.mark.parametrize("name", corruptions().names())
def test_card(name: str) -> None:
    card = corruptions().card(name)
    assert name.startswith(f"{card.family}/")
    assert card.severities in ((0,), (1, 2, 3, 4, 5))
    assert card.reference and Stage(card.stage)
    corruption = load_corruption(REFERENCES[[r.split("@")[0] for r in REFERENCES].index(name)])
    if card.deterministic:
        batch, lengths = inputs(corruption)
        other = corruption.draws(StreamKey("other", "test", 9), IDS, lengths)
        assert torch.equal(corruption.apply(batch, other), apply(corruption, list(range(8))))


@pytest.mark.parametrize("name", corruptions().names())
def test_severity_out_of_range(name: str) -> None:
    for wrong in ("@6", "@x", "@-1"):
        with pytest.raises(ConfigError, match=name):
            load_corruption(name + wrong)


def test_a_function_that_changes_the_type_is_caught() -> None:
    real = load_corruption("missing/audio-mean")
    broken = Corruption(real.card, 0, lambda x, draws, severity: x.double())
    with pytest.raises(ConfigError, match=r"missing/audio-mean.*float64.*keep shape and type"):
        broken.apply(torch.zeros(1, 4, 128), broken.draws(KEY, ("a",), torch.tensor([4])))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_function_that_gives_no_numbers_is_caught(value: float) -> None:
    real = load_corruption("read/gaussian_noise@1")
    broken = Corruption(real.card, 1, lambda x, draws, severity: x.index_fill(1, torch.tensor([3]), value))
    with pytest.raises(ConfigError, match=r"read/gaussian_noise.*2 of 2 samples.*not finite.*such as 'a'"):
        broken.apply(torch.zeros(2, 400), broken.draws(KEY, ("a", "b"), torch.tensor([400, 400])))
