"""Loading ahead: the same results in the same order, errors in their place, nothing begun after the end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from beds import COMPLETE, NO_AUDIO, build, equal, make_bench, make_job, memory_data

from mmbench import train
from mmbench.ahead import ahead
from mmbench.train import SINGLE, fit


def counted(n: int, begun: list[int]) -> Iterator[Callable[[], int]]:
    def job(i: int) -> int:
        begun.append(i)
        if i == 7:
            raise ValueError("seven")
        return i

    for i in range(n):
        yield lambda i=i: job(i)


@pytest.mark.parametrize("depth", [0, 1, 3, 50])
def test_results_come_in_order(depth: int) -> None:
    assert list(ahead(counted(6, []), depth)) == list(range(6))


@pytest.mark.parametrize("depth", [0, 2])
def test_an_error_comes_in_its_place(depth: int) -> None:
    results = ahead(counted(12, []), depth)
    assert [next(results) for _ in range(7)] == list(range(7))
    with pytest.raises(ValueError, match="seven"):
        next(results)


def test_the_next_ones_are_made_meanwhile_and_no_more() -> None:
    begun: list[int] = []
    made = threading.Semaphore(0)
    jobs = (lambda job=job: (job(), made.release())[0] for job in counted(6, begun))
    results = ahead(jobs, 2)
    assert next(results) == 0
    for _ in range(3):
        assert made.acquire(timeout=10)  # 0, 1 and 2 without anyone asking for them
    assert begun == [0, 1, 2]


def test_closing_drops_what_has_not_begun() -> None:
    begun: list[int] = []
    at_work, permits = threading.Semaphore(0), threading.Semaphore(1)

    def gated(job: Callable[[], int]) -> int:
        at_work.release()
        assert permits.acquire(timeout=10)
        return job()

    results = ahead((partial(gated, job) for job in counted(6, begun)), 3)
    assert next(results) == 0
    assert at_work.acquire(timeout=10) and at_work.acquire(timeout=10)  # the second one waits for its permit
    threading.Timer(0.2, permits.release).start()
    results.close()
    assert begun == [0, 1]


def test_training_with_batches_loaded_ahead_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(cases=(COMPLETE, NO_AUDIO), samples=50)
    plain = fit(build("lora-qv"), memory_data(), job, make_bench())
    monkeypatch.setattr(train, "ahead", lambda jobs, depth: ahead(jobs, 2))
    threaded = fit(build("lora-qv"), memory_data(), job, make_bench())
    assert equal(plain.states[SINGLE], threaded.states[SINGLE])
