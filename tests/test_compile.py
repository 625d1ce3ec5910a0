"""Compiled training steps: the same numbers, no silent way out, and no time of the compiler in the step's time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from beds import CPU, build, make_bench, make_job, memory_data
from test_trials import trial

from mmbench.backbone import compiling
from mmbench.conformance_bed import Bed
from mmbench.errors import ConfigError
from mmbench.ledger import WARMUP_STEPS, StepTimes
from mmbench.method import Method
from mmbench.profile_rows import Setting
from mmbench.profiling import build_method, random_batch
from mmbench.train import fit

Graph = Callable[..., Any]
Backend = Callable[[Graph, Any], Graph]
COMPILE = torch.compile


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Nothing compiled before or after."""
    forget()
    yield
    forget()


def forget() -> None:
    compiling.compiled.cache_clear()
    torch.compiler.reset()


def plain(graph: Graph, inputs: Any) -> Graph:
    """A backend that runs the traced operations as they are: what is traced is tested, not what generates code."""
    return graph


def broken(graph: Graph, inputs: Any) -> Graph:
    raise ValueError("no such processor")


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Callable[[Backend], None]:
    def use(chosen: Backend) -> None:
        monkeypatch.setattr(torch, "compile", lambda function: COMPILE(function, backend=chosen))

    return use


def gradients(method: Method, compiled: bool) -> tuple[float, dict[str, Any]]:
    method.net.compile_blocks(compiled)
    method.net.train()
    method.extra.train()
    torch.manual_seed(0)  # dropout of library layers
    loss = method.loss(random_batch(method.net.config, 4, CPU)).total
    loss.backward()
    return float(loss.detach()), {name: p.grad for name, p in method.trainable().items() if p.grad is not None}


def assert_same_step(make: Callable[[], Method], tolerance: float) -> None:
    expected_loss, expected = gradients(make(), compiled=False)
    loss, found = gradients(make(), compiled=True)
    assert loss == pytest.approx(expected_loss, rel=tolerance)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.slow
def test_a_compiled_step_is_the_same_step() -> None:
    """With the compiler that a trial uses; on a CPU it needs a C++ compiler."""
    assert_same_step(lambda: build_method(Setting(method="full-finetune"), CPU), 1e-4)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", ["adapter-houlsby", "prompt-the-missing"])
def test_hooks_act_on_compiled_blocks(name: str, recompute: bool, backend: Callable[[Backend], None]) -> None:
    def make() -> Method:
        method = build(name)
        method.net.recompute_blocks(recompute)
        return method

    backend(plain)
    assert_same_step(make, 1e-6)


def train() -> None:
    method = build("partial-1")
    method.net.compile_blocks(True)
    fit(method, memory_data(), make_job(), make_bench(compile=True))


def test_what_does_not_compile_is_an_error_that_names_the_option(backend: Callable[[Backend], None]) -> None:
    backend(broken)
    with pytest.raises(ConfigError, match=r"budget\.compile: torch\.compile failed with .*no such processor"):
        train()


def test_too_many_variants_are_an_error_and_not_a_plain_step(
    backend: Callable[[Backend], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend(plain)
    monkeypatch.setattr(compiling, "VARIANTS", 1)
    with pytest.raises(ConfigError, match="FailOnRecompileLimitHit"):
        train()


def test_an_environment_that_switches_it_off_is_an_error() -> None:
    with torch._dynamo.config.patch(disable=True), pytest.raises(ConfigError, match="TORCH_COMPILE_DISABLE"):
        train()


def test_only_training_is_compiled(backend: Callable[[Backend], None]) -> None:
    backend(broken)
    method = build("partial-1")
    method.net.compile_blocks(True)
    assert method.predict(Bed().batch()).shape == (6, 4)


def test_the_compilers_time_is_setup(backend: Callable[[Backend], None]) -> None:
    now = 0.0

    def slow(graph: Graph, inputs: Any) -> Graph:
        nonlocal now
        now += 1.0  # seconds; nothing else takes any
        return graph

    backend(slow)
    method, bench = build("partial-1"), make_bench(now=lambda: now, compile=True)
    method.net.compile_blocks(True)
    times = fit(method, memory_data(), make_job(samples=80), bench).ledger.times
    assert bench.clock.seconds("setup") == now > 1.0
    assert bench.clock.seconds("train") == bench.clock.seconds("data") == 0.0
    # Of 20 samples in batches of 8 the last one is smaller, which may need code of its own.
    assert 0 in times.compiling and times.compiling <= {0, 1, 2} and len(times.seconds) == 12


def test_steps_in_which_something_was_compiled_are_warm_up() -> None:
    times = StepTimes()
    for _ in range(WARMUP_STEPS):
        times.add(9.0, 10)
    times.add(7.0, 10, compiled=True)
    assert times.median() is None and times.epoch_seconds(100) is None
    times.add(1.0, 10)
    times.add(3.0, 5)
    assert times.median() == 2.0
    assert times.epoch_seconds(30) == pytest.approx(4.0 / 15 * 30)


def test_the_key_left_off_leaves_the_ids_of_before() -> None:
    assert trial().id == trial(budget={"compile": False}).id == "lora-qv-casewise-s3-74a396075e53"
    assert trial(budget={"compile": True}).id != trial().id
