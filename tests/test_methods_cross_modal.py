"""LAVisH and ShaSpec-lite: what one stream takes from the other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from beds import build
from test_methods_branch import complete, gap, shaken, through_block, tokens
from torch import Tensor

from mmbench.backbone.blocks import BlockCall
from mmbench.conformance_bed import SIZES, Bed, train
from mmbench.method import Method


def lavish_with(gate_cross: float) -> Method:
    method = shaken("lavish")
    with torch.no_grad():
        for name, parameter in method.extra.named_parameters():
            if name.endswith("gate_cross"):
                parameter.fill_(gate_cross)
    return method


@pytest.mark.parametrize(("gate_cross", "sees"), [(1.0, True), (0.0, False)])
@pytest.mark.parametrize(("modality", "own"), [("a", SIZES.audio_tokens), ("v", SIZES.vision_tokens)])
def test_lavish_sees_the_other_stream_through_its_gate(modality: str, own: int, gate_cross: float, sees: bool) -> None:
    method, x = lavish_with(gate_cross), tokens(own)
    one, two = (through_block(method, x, modality, tokens(7, seed=seed)) for seed in (8, 9))
    assert (gap(one, two) > 1e-5) == sees
    alone = through_block(method, x, modality)
    assert torch.equal(alone, BlockCall(getattr(method.net, f"blocks_{modality}")[0]).run(x))
    assert gap(one, alone) > 1e-3


def test_lavish_latents_do_not_care_for_the_order_of_the_other_tokens() -> None:
    method, x, other = lavish_with(1.0), tokens(SIZES.audio_tokens), tokens(7, seed=8)
    assert gap(through_block(method, x, "a", other), through_block(method, x, "a", other.flip(1))) < 1e-5


def test_lavish_adds_nothing_to_joint_blocks() -> None:
    assert not any("_u" in name for name in build("lavish").extra)


def test_an_absent_stream_of_shaspec_is_never_looked_at() -> None:
    method, batch = shaken("shaspec-lite"), Bed().batch()
    other = replace(batch, audio=batch.audio + 1.0)
    rows = (method.predict(batch) - method.predict(other)).abs().amax(dim=1)
    assert batch.available is not None
    assert [float(row) > 1e-4 for row in rows] == batch.available[:, 0].tolist()


def test_an_absent_stream_of_shaspec_borrows_the_mean_shared_part_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    method, batch = shaken("shaspec-lite"), Bed().batch().select([1])  # without audio
    seen: list[tuple[Tensor, Tensor]] = []
    fusion = method.net.fusion

    def spy(audio: Tensor, vision: Tensor) -> tuple[Tensor, Tensor]:
        seen.append((audio, vision))
        return fusion(audio, vision)

    monkeypatch.setattr(method.net, "fusion", spy)
    for changed in ("", "specific_a", "specific_v", "shared_"):
        with torch.no_grad():
            for name, parameter in method.extra.named_parameters():
                if changed and name.startswith(changed):
                    parameter.mul_(3.0)
        method.predict(batch)
    audio, vision = ([pair[stream] for pair in seen] for stream in (0, 1))
    assert audio[0].shape[1] == SIZES.audio_tokens and gap(audio[0], audio[0][:, :1].expand_as(audio[0])) == 0.0
    assert torch.equal(audio[1], audio[0]) and torch.equal(vision[1], vision[0])  # nothing specific of the absent one
    assert torch.equal(audio[2], audio[0]) and gap(vision[2], vision[0]) > 1e-3  # nor of the other
    assert gap(audio[3], audio[2]) > 1e-3


def test_shaspec_adds_its_two_terms_to_the_suites_loss() -> None:
    batch, terms = Bed().batch(), {}
    for alignment, classification in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)):
        method = shaken("shaspec-lite", {"alignment": alignment, "classification": classification})
        loss = method.loss(batch)
        terms[alignment, classification] = float((loss.total - method.criterion(loss.logits, batch.label)).detach())
    assert terms[0.0, 0.0] == 0.0
    assert terms[1.0, 0.0] > 0.01 and terms[0.0, 1.0] > 0.01


def test_shaspec_aligns_complete_samples_only() -> None:
    method = shaken("shaspec-lite", {"alignment": 1.0, "classification": 0.0})
    for rows, aligned in (([0, 3], True), ([1, 2], False)):
        batch = Bed().batch().select(rows)
        loss = method.loss(batch)
        assert (float((loss.total - method.criterion(loss.logits, batch.label)).detach()) > 1e-3) == aligned


def test_shaspec_learns_to_tell_its_streams_apart() -> None:
    method = build("shaspec-lite", {"alignment": 0.0, "classification": 1.0})
    batch = complete(Bed().batch())

    def telling() -> float:
        loss = method.loss(batch)
        return float((loss.total - method.criterion(loss.logits, batch.label)).detach())

    before = telling()
    train(method, Bed(), steps=10)
    assert telling() < 0.8 * before
