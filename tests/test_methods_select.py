"""Rows that free the backbone's own tensors: which ones, when, and what becomes of them."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from beds import COMPLETE, NO_AUDIO, build, equal, make_bench, make_job, memory_data
from test_methods_counts import declared
from torch import Tensor

from mmbench.backbone.config import preset
from mmbench.conformance_bed import SIZES, Bed
from mmbench.method import Recipe
from mmbench.train import SINGLE, fit

HEADLESS = Recipe(train_head=False)
JOB = make_job(lr=1e-3)
CASES = replace(JOB, cases=(COMPLETE, NO_AUDIO), casewise=True)


def states(name: str, job: object = JOB, **options: object) -> dict[str, dict[str, Tensor]]:
    return dict(fit(build(name, options), memory_data(), job, make_bench()).states)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("full-finetune", 183_256_326),
        ("wise-ft", 183_256_326),
        ("lp-ft", 183_256_326),
        ("bitfit", 219_648),
        ("layernorm-tuning", 78_336),
        ("partial-1", 7_089_408),
        ("partial-fusion", 25_989_894),
        ("linear-probe", 0),
    ],
)
def test_the_stated_counts_on_the_published_model(name: str, published: int) -> None:
    assert declared(name, preset("cavmae-base")) == published


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("bitfit", r".*bias"),
        ("layernorm-tuning", r"(norm|blocks_[avu]\.\d\.norm[12]|blocks_fu\.0\.norm[12]_[av])\.(weight|bias)"),
        ("partial-1", r"(blocks_u\.\d|norm)\..*"),
        ("partial-fusion", r"(blocks_u\.\d|blocks_fu\.0|norm)\..*"),
        ("full-finetune", r".*"),
    ],
)
@pytest.mark.parametrize("fusion", ["none", "gated", "as-published"])
def test_exactly_the_live_tensors_of_a_kind_train(name: str, pattern: str, fusion: str) -> None:
    config = replace(SIZES, fusion=fusion)  # type: ignore[arg-type]
    net = Bed(config).net()
    method = type(build(name))(net, HEADLESS, {}, torch.Generator())
    alive = {n for n in net.live_parameter_names() if not n.startswith("mlp_head.")}
    expected = {n for n in alive if re.fullmatch(pattern, n)}
    assert set(method.trainable()) == expected
    assert not any("q_norm" in n or "k_norm" in n or "modality_attention" in n for n in expected)


@pytest.mark.parametrize("name", ["partial-1", "partial-fusion", "linear-probe"])
def test_the_encoders_keep_no_graph(name: str) -> None:
    method, batch = build(name), Bed().batch()
    audio, vision = method.net.encode(batch.audio, batch.image)
    assert not audio.requires_grad and not vision.requires_grad


def test_lp_ft_trains_the_head_first_and_then_all_that_is_alive() -> None:
    method, batch = build("lp-ft"), Bed().batch()
    named = set(method.trainable())
    assert named == set(method.net.live_parameter_names())
    for phase, rate in zip(method.phases(), (0.1, 1e-3), strict=True):
        method.begin(phase)
        groups = method.groups(1e-3)
        assert {group["lr"] for group in groups} == {rate}
        given = {id(p) for group in groups for p in group["params"]}
        method.loss(batch).total.backward()  # type: ignore[no-untyped-call]
        reached = {n for n, p in method.net.named_parameters() if p.grad is not None}
        assert reached == {n for n in named if phase.name == "full" or n.startswith("mlp_head.")}
        assert given == {id(p) for n, p in method.trainable().items() if n in reached}
        assert set(method.trainable()) == named


def test_lp_ft_begins_each_case_with_the_probe_again() -> None:
    trained = states("lp-ft", CASES)
    alone = states("lp-ft", replace(CASES, cases=(COMPLETE,), samples=10))
    assert equal(trained["complete"], alone["complete"])
    reverse = states("lp-ft", replace(CASES, cases=(NO_AUDIO, COMPLETE)))
    assert equal(trained["missing-audio"], reverse["missing-audio"])


def test_lp_ft_trains_the_head_even_where_the_suite_freezes_it() -> None:
    method = build("lp-ft", recipe=HEADLESS)
    assert any(name.startswith("mlp_head.") for name in method.trainable())


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
def test_wise_ft_lies_between_the_source_and_the_fine_tuned_model(alpha: float) -> None:
    start, tuned, averaged = build("full-finetune").state(), states("full-finetune"), states("wise-ft", alpha=alpha)
    assert set(averaged[SINGLE]) == set(start)  # the source itself is not saved
    for name, tensor in averaged[SINGLE].items():
        assert torch.allclose(tensor, (1 - alpha) * start[name] + alpha * tuned[SINGLE][name], atol=1e-7), name
    assert max(float((tuned[SINGLE][n] - start[n]).abs().max()) for n in start) > 1e-3


def test_wise_ft_averages_every_case_with_the_source_and_not_with_the_case_before() -> None:
    start, tuned, averaged = build("full-finetune").state(), states("full-finetune", CASES), states("wise-ft", CASES)
    assert set(averaged) == {"complete", "missing-audio"}
    for case, state in averaged.items():
        for name, tensor in state.items():
            assert torch.allclose(tensor, (start[name] + tuned[case][name]) / 2, atol=1e-7), (case, name)
