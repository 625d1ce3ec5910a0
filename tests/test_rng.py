"""Streams are keyed by content and their numbers are fixed for good."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmbench.rng import (
    CHUNK,
    EVALUATION,
    TRAINING,
    Draws,
    StreamKey,
    integers,
    normals,
    permutation,
    stream,
    stream_digest,
    uniforms,
)

KEY = StreamKey("cifar10-av", "test", 0)
VECTOR = (KEY, "sample-000042", "imagenet_c/gaussian_noise", 3, "noise")


def draws(ids: tuple[str, ...], corruption: str = "family/name", severity: int = 0) -> Draws:
    return Draws(KEY, corruption, severity, ids, torch.full((len(ids),), 100))


def test_reference_vector() -> None:
    words = np.frombuffer(stream_digest(*VECTOR), dtype="<u8").tolist()
    assert words == [8841493819962176324, 7125408071705512631]
    assert stream(*VECTOR).random_raw(4).tolist() == [
        3288388218900163210,
        8275117354998503608,
        7807029148126436617,
        8532673481897904305,
    ]
    np.testing.assert_allclose(uniforms(stream(*VECTOR), 2), [0.1782638825453648, 0.448595010693094], rtol=1e-14)
    np.testing.assert_allclose(normals(stream(*VECTOR), 2), [-0.9220015539811429, -0.12921184808527972], rtol=1e-13)


@pytest.mark.parametrize(
    "changed",
    [
        (StreamKey("other", "test", 0), *VECTOR[1:]),
        (StreamKey("cifar10-av", "val", 0), *VECTOR[1:]),
        (StreamKey("cifar10-av", "test", 1), *VECTOR[1:]),
        (StreamKey("cifar10-av", "test", 0, TRAINING), *VECTOR[1:]),
        (StreamKey("cifar10-av", "test", 0, EVALUATION, 0), *VECTOR[1:]),
        (KEY, "sample-000043", *VECTOR[2:]),
        (KEY, "sample-000042", "imagenet_c/fog", 3, "noise"),
        (KEY, "sample-000042", "imagenet_c/gaussian_noise", 4, "noise"),
        (KEY, "sample-000042", "imagenet_c/gaussian_noise", 3, "angle"),
    ],
)
def test_every_field_changes_the_stream(changed: tuple[StreamKey, str, str, int, str]) -> None:
    assert stream_digest(*changed) != stream_digest(*VECTOR)


def test_training_epochs_differ() -> None:
    first, second = (StreamKey("d", "train", 0, TRAINING, epoch) for epoch in (0, 1))
    assert stream_digest(first, *VECTOR[1:]) != stream_digest(second, *VECTOR[1:])


def test_distributions() -> None:
    n = 200_000
    values = normals(stream(*VECTOR), n)
    assert abs(values.mean()) < 5 / np.sqrt(n)
    assert abs(values.std() - 1) < 0.01
    counts = np.bincount(integers(stream(*VECTOR), n, 5), minlength=5)
    assert counts.size == 5
    assert np.abs(counts / n - 0.2).max() < 0.01
    assert sorted(permutation(stream(*VECTOR), 50).tolist()) == list(range(50))


def test_draws_agree_with_the_streams() -> None:
    own = draws(("a", "b"))
    noise = own.normal("noise", (3, 4))
    assert noise.shape == (2, 3, 4) and noise.dtype == torch.float32
    expected = normals(stream(KEY, "b", "family/name", 0, "noise"), 12).astype(np.float32).reshape(3, 4)
    np.testing.assert_allclose(noise[1].numpy(), expected, rtol=1e-6)
    expected = uniforms(stream(KEY, "a", "family/name", 0, "u"), 2).astype(np.float32)
    np.testing.assert_allclose(own.uniform("u", (2,))[0].numpy(), expected, rtol=1e-7)
    assert own.integers("k", 1000).tolist() == [
        int(integers(stream(KEY, sample_id, "family/name", 0, "k"), 1, 1000)[0]) for sample_id in ("a", "b")
    ]
    assert own.permutation("p", 7)[0].tolist() == permutation(stream(KEY, "a", "family/name", 0, "p"), 7).tolist()


def test_draws_belong_to_the_sample_not_to_the_batch() -> None:
    whole = draws(tuple("abcdefgh")).normal("noise", (5,))
    shuffled = draws(tuple("hgfedcba")).normal("noise", (5,))
    assert torch.equal(whole, shuffled.flip(0))
    assert torch.equal(draws(tuple("abcdefgh")).select([2, 5]).normal("noise", (5,)), whole[[2, 5]])


def test_a_long_draw_is_the_stream_of_its_sample() -> None:
    own, shape = draws(("a", "b")), (3, CHUNK // 2 + 5)
    count = 3 * (CHUNK // 2 + 5)
    expected = uniforms(stream(KEY, "b", "family/name", 0, "noise"), count).astype(np.float32).reshape(shape)
    assert np.array_equal(own.uniform("noise", shape)[1].numpy(), np.minimum(expected, np.float32(1 - 2.0**-24)))
    expected = normals(stream(KEY, "b", "family/name", 0, "noise"), count).astype(np.float32).reshape(shape)
    np.testing.assert_allclose(own.normal("noise", shape)[1].numpy(), expected, rtol=1e-6)
    whole = integers(stream(KEY, "b", "family/name", 0, "noise"), count, 36).reshape(shape)
    assert np.array_equal(own.integers("noise", 36, shape)[1].numpy(), whole)


def test_no_draws_of_no_samples_or_no_values() -> None:
    assert draws(()).normal("noise", (3,)).shape == (0, 3) and draws(()).integers("k", 4).shape == (0,)
    assert draws(("a",)).uniform("noise", (0, 3)).shape == (1, 0, 3)


def test_a_longer_draw_begins_with_the_shorter_one() -> None:
    assert torch.equal(draws(("a",)).normal("noise", (9,))[:, :4], draws(("a",)).normal("noise", (4,)))


def test_integers_respect_a_bound_per_sample() -> None:
    ids = tuple(f"s{i}" for i in range(300))
    high = torch.arange(300) % 3 + 1
    drawn = draws(ids).integers("start", high)
    assert (drawn >= 0).all() and (drawn < high).all()
    assert set(drawn[high == 3].tolist()) == {0, 1, 2}


def test_float32_uniforms_stay_below_one() -> None:
    values = draws(("a",)).uniform("u", (1_000_000,))
    assert values.min() > 0 and values.max() < 1
