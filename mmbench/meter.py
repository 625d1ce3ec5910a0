"""Clocks, memory and counts. Each figure says what it covers; what cannot be measured here is None, never 0."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from mmbench.ranks import ALONE, Ranks
from mmbench.records import PeakMemory, PhaseSeconds, TrainingState


class Clock:
    """Exclusive wall-clock accumulators: time is always charged to exactly one phase.

    Entering a phase inside another pauses the outer one, so the sum over all phases is the wall clock.
    """

    def __init__(self, device: torch.device, now: Callable[[], float] = time.perf_counter) -> None:
        self._device = device
        self._now = now
        self._seconds: dict[str, float] = {}
        self._stack = ["setup"]
        self._whole: str | None = None
        self._started = self._since = now()
        self._before_seconds = 0.0

    @contextlib.contextmanager
    def phase(self, name: str, whole: bool = False) -> Iterator[None]:
        """Charge the time inside to `name`; with `whole`, phases entered inside are charged to it as well.

        Work queued on the device is waited for at both ends.
        """
        self._charge()
        held, self._whole = self._whole, self._whole or (name if whole else None)
        self._stack.append(self._whole or name)
        try:
            yield
        finally:
            self._charge()
            self._stack.pop()
            self._whole = held

    def seconds(self, name: str) -> float:
        return self._seconds.get(name, 0.0)

    def elapsed(self) -> float:
        """Wall clock since the clock was made, and that of the runs before."""
        return self._before_seconds + self._now() - self._started

    def summary(self) -> PhaseSeconds:
        self._charge()
        names = ("setup", "data", "train", "tune", "evaluate", "log")
        return PhaseSeconds(**{name: self.seconds(name) for name in names}, wall=self.elapsed())

    def state_dict(self) -> dict[str, float]:
        """Seconds by phase until now."""
        self._charge()
        return dict(self._seconds)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Add what an earlier run of the same trial took."""
        for name, seconds in state.items():
            self._seconds[name] = self.seconds(name) + seconds
            self._before_seconds += seconds

    def _charge(self) -> None:
        synchronize(self._device)
        now = self._now()
        self._seconds[self._stack[-1]] = self.seconds(self._stack[-1]) + now - self._since
        self._since = now


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class PeakMeter:
    """Peak memory of one phase at a time, on the device of one trial that needs most of it."""

    def __init__(self, device: torch.device, ranks: Ranks = ALONE) -> None:
        self._device, self._ranks = device, ranks
        self._resident_is_ours = False
        self._before: PeakMemory | None = None

    def reset(self) -> None:
        """Start a new phase. On Linux the kernel's resident high-water mark is reset too."""
        self._before = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # what an earlier phase reserved is not this phase's
            torch.cuda.reset_peak_memory_stats(self._device)
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self._resident_is_ours = True
        except OSError:
            self._resident_is_ours = False

    def read(self) -> PeakMemory:
        """Peak since the last reset; no resident size where the system cannot start its mark anew."""
        cuda = self._device.type == "cuda"
        now = PeakMemory(
            allocated_bytes=torch.cuda.max_memory_allocated(self._device) if cuda else None,
            reserved_bytes=torch.cuda.max_memory_reserved(self._device) if cuda else None,
            rss_bytes=_peak_rss_bytes() if self._resident_is_ours else None,
        )
        now = _largest(now, self._ranks)
        return now if self._before is None else _larger(now, self._before)

    def state_dict(self) -> dict[str, int | None]:
        """The phase's peaks until now."""
        return self.read().model_dump()

    def load_state_dict(self, state: Mapping[str, int | None]) -> None:
        """Measure anew from here; the phase's peak is no less than these."""
        self.reset()
        self._before = PeakMemory(**state)


def _larger(one: PeakMemory, other: PeakMemory) -> PeakMemory:
    """Of each figure the larger one; None where either was not measured."""
    pairs = {name: (getattr(one, name), getattr(other, name)) for name in PeakMemory.model_fields}
    return PeakMemory(**{name: None if None in pair else max(pair) for name, pair in pairs.items()})


def _largest(mine: PeakMemory, ranks: Ranks) -> PeakMemory:
    """Of each figure the largest of all ranks; None where one of them has not measured it."""
    figures = mine.model_dump()
    each = ranks.gather(torch.tensor([-1 if value is None else value for value in figures.values()]))  # (world, 3)
    largest = each.amax(dim=0).where(each.amin(dim=0) >= 0, -1).tolist()
    return PeakMemory(**{name: None if most < 0 else most for name, most in zip(figures, largest, strict=True)})


def _peak_rss_bytes() -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


class SavedActivations:
    """Counts the bytes autograd keeps for backward: distinct storages, given tensors (parameters) left out.

    Works on any device, `meta` included, because it looks at storages and not at an allocator (methods.md 1.2).
    """

    def __init__(self, exclude: Sequence[Tensor]) -> None:
        self._excluded = {storage_id(tensor) for tensor in exclude}
        self._kept: dict[int, Tensor] = {}  # holding the tensor keeps its storage's address from being reused
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda packed: packed)

    def __enter__(self) -> SavedActivations:
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, trace)

    @property
    def total_bytes(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self._kept.values())

    def _pack(self, tensor: Tensor) -> Tensor:
        key = storage_id(tensor)
        if key not in self._excluded:
            self._kept.setdefault(key, tensor)
        return tensor


def storage_id(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


Shape = Sequence[int]


def _attention_flop(query: Shape, key: Shape, value: Shape, *rest: object, **more: object) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward_flop(out: Shape, query: Shape, key: Shape, value: Shape, *rest: object, **more: object) -> int:
    return int(sdpa_backward_flop_count(out, query, key, value))  # type: ignore[no-untyped-call]


def flop_counter() -> FlopCounterMode:
    """torch's counter, with the CPU's attention kernels that it leaves out."""
    kernels = torch.ops.aten
    mapping = {
        kernels._scaled_dot_product_flash_attention_for_cpu: _attention_flop,
        kernels._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flop,
    }
    return FlopCounterMode(display=False, custom_mapping=mapping)


@dataclass(frozen=True)
class Probe:
    """Counts of one forward and backward pass."""

    state: TrainingState
    flops_per_sample: float
    trained: frozenset[str]
    """Names of the tensors that received a gradient."""

    def reaching(self, more: frozenset[str], trainable: Mapping[str, nn.Parameter]) -> Probe:
        """The same with gradients, and Adam's moments, of what other batches reach too."""
        trained = self.trained | more
        gradients_bytes = sum(trainable[name].nbytes for name in trained)
        sizes = {"gradients_bytes": gradients_bytes, "optimizer_bytes": 2 * gradients_bytes}
        return Probe(self.state.model_copy(update=sizes), self.flops_per_sample, trained)


def probe_step(
    loss: Callable[[], Tensor], trainable: dict[str, nn.Parameter], all_parameters: Sequence[Tensor], batch: int
) -> Probe:
    """Run one loss and its backward, count what they keep and compute, and leave no gradient behind.

    Optimiser state is counted as Adam's two moments; `fit` replaces it by the optimiser's own after its first step.
    """
    with flop_counter() as flops, SavedActivations(all_parameters) as saved:
        total = loss()
        activations_bytes = saved.total_bytes
        total.backward()  # type: ignore[no-untyped-call]
    reached = {name: p for name, p in trainable.items() if p.grad is not None}
    gradients_bytes = sum(p.grad.nbytes for p in reached.values() if p.grad is not None)
    for parameter in trainable.values():
        parameter.grad = None
    state = TrainingState(
        parameters_bytes=_distinct_bytes(all_parameters),
        gradients_bytes=gradients_bytes,
        optimizer_bytes=2 * gradients_bytes,
        activations_bytes=activations_bytes,
        batch=batch,
    )
    return Probe(state, flops.get_total_flops() / batch, frozenset(reached))


def _distinct_bytes(tensors: Sequence[Tensor]) -> int:
    return sum({storage_id(t): t.untyped_storage().nbytes() for t in tensors}.values())


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the optimiser's per-parameter state; its step counters are left out."""
    states = (value for state in optimizer.state.values() for value in state.values())
    return sum(value.nbytes for value in states if isinstance(value, Tensor) and value.ndim > 0)


class EnergyMeter:
    """Energy of the NVIDIA GPUs of a trial in joules, one a rank; None where there is no NVML."""

    def __init__(self, device: torch.device, ranks: Ranks = ALONE) -> None:
        self._start = _total_energy_joules(device)
        self._device, self._ranks = device, ranks
        self._before: float | None = 0.0

    def read(self) -> float | None:
        """Since the meter was made, and in the runs before."""
        now = _total_energy_joules(self._device)
        mine = math.nan if now is None or self._start is None else now - self._start
        spent = float(self._ranks.total(torch.tensor(mine, dtype=torch.float64)))
        return None if math.isnan(spent) or self._before is None else self._before + spent

    def state_dict(self) -> dict[str, float | None]:
        return {"joules": self.read()}

    def load_state_dict(self, state: Mapping[str, float | None]) -> None:
        """Add what an earlier run took; unknown if that is."""
        self._before = state["joules"]


def _total_energy_joules(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    import pynvml

    try:
        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000.0
    except pynvml.NVMLError:
        return None
