"""What a profile leaves: one JSON record a row. No torch here, so that tables and plots stay light."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from mmbench.files import make_folder, write_atomic
from mmbench.records import Environment, Failure, Part, PeakMemory, Status, TrainingState

Precision = Literal["fp32", "bf16"]


class Setting(Part):
    """What one row measures."""

    method: str
    backbone: str = "cavmae-tiny"
    batch: int = 8
    """Samples of one optimiser step."""
    precision: Precision = "fp32"
    options: dict[str, Any] = Field(default_factory=dict)
    """Those that were asked for; the others stand at the method's defaults."""
    compile: bool = False
    """Whether the steps run compiled blocks; what is counted is the same."""

    @property
    def words(self) -> str:
        """Everything but the method, in a few words."""
        parts = [*(["compiled"] if self.compile else []), *(f"{key} {value}" for key, value in self.options.items())]
        return ", ".join([f"{self.backbone} b{self.batch} {self.precision}", *parts])

    @property
    def file_name(self) -> str:
        parts = [*(["compiled"] if self.compile else []), *(f"{key}-{value}" for key, value in self.options.items())]
        return "_".join([self.method, self.backbone, f"b{self.batch}", self.precision, *parts])


@dataclass(frozen=True)
class Plan:
    """How every row of a run is measured."""

    steps: int = 5
    """Timed steps, after the warm-up."""
    epoch_samples: int = 10_000
    """Samples of the epoch whose seconds are told."""
    memory_cap_gib: float | None = None
    trace: Path | None = None
    """Folder of the traces of torch's profiler."""


class Counts(Part):
    """Counted from the passes themselves, the same on every device and on none."""

    trainable_parameters: int
    """Values of tensors that receive a gradient or that the optimiser holds, head included."""
    head_parameters: int
    hidden_parameters: int
    """The part of the trainable ones that the method does not tell of."""
    total_parameters: int
    stored_bytes: int
    """What a user must keep beside the backbone; one state."""
    state: TrainingState
    """Bytes of one step with the whole batch at once: weights, gradients, optimiser, activations."""
    train_flops_per_sample: float
    eval_flops_per_sample: float
    kept_bytes_per_step: int
    """Bytes that are still held after a step and were not before it: a leak unless zero."""
    waits_per_step: int | None
    """Times a step waits for a value of the device; None on meta, where no value can be read."""
    largest_batch: int | None = None
    """Samples at once whose training state stays within the memory cap; None without a cap."""


class Measured(Part):
    """Measured on the device; None where it cannot be."""

    micro_batch: int
    """Samples at once; less than the batch where that did not fit."""
    steps: int
    train_memory: PeakMemory
    eval_memory: PeakMemory
    """Of a prediction of the whole batch."""
    single_memory: PeakMemory
    """Of a prediction of one sample."""
    step_seconds_median: float
    step_seconds_std: float | None
    samples_per_second: float
    epoch_samples: int
    epoch_seconds: float
    """Training steps of `epoch_samples` samples; reading and corrupting them is left out."""
    matmul_flops_per_second: float
    """Rate of one large matrix product on this device at this precision."""
    copy_bytes_per_second: float | None = None
    """Rate of a large copy within this device's memory, read and written; None in older rows."""
    achieved_share: float
    """FLOP of a training step over its median seconds, as a share of that rate."""
    energy_joules_per_step: float | None
    eval_seconds_per_sample: float
    single_seconds_median: float
    """Latency of a prediction of one sample."""
    single_seconds_std: float | None
    largest_batch: int | None = None
    """Samples at once that ran within the memory cap; on a GPU only."""


class ProfileRow(Part):
    """One row; `schema_version` stays first. Without counts, `failure` says why."""

    schema_version: Literal[1] = 1
    status: Status
    failure: Failure | None = None
    setting: Setting
    memory_cap_gib: float | None = None
    device: Literal["meta", "cpu", "cuda"]
    environment: Environment
    counts: Counts | None = None
    measured: Measured | None = None

    @property
    def peak_bytes(self) -> int | None:
        """Peak of training: allocated on CUDA, resident size of the process on a CPU."""
        if self.measured is None:
            return None
        memory = self.measured.train_memory
        return memory.allocated_bytes if self.device == "cuda" else memory.rss_bytes


def write_row(row: ProfileRow, folder: Path) -> Path:
    """Write one record, aside and renamed."""
    make_folder(folder)
    path = folder / f"{row.setting.file_name}.json"
    write_atomic(path, row.model_dump_json(indent=1).encode())
    return path
