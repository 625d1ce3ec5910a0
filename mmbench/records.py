"""What a trial leaves: a versioned JSON record. No torch here, so that reading thousands of records stays light."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import from_json

from mmbench.cards import Track
from mmbench.files import RecordError, read_plain, write_atomic
from mmbench.layout import MARKER_BYTES, RECORD_BYTES
from mmbench.one_device import OneDevice
from mmbench.strict_json import LARGEST_INTEGER, Contents, Plain

SCHEMA = 2
TRIAL_ID = r"^[A-Za-z0-9_][A-Za-z0-9._+-]{0,199}$"

Status = Literal["ok", "refused", "does-not-fit", "diverged", "over-budget", "crashed"]
"""How a trial ended. All but `crashed` are results; a crash can be run again with `--retry crashed`."""
FAILED: tuple[Status, ...] = ("does-not-fit", "diverged", "over-budget", "crashed")
"""What counts as a failure: all but a result and a refusal, which was foreseen."""

Whole = Annotated[int, Field(gt=-LARGEST_INTEGER, lt=LARGEST_INTEGER)]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Failure(Part):
    """Why a trial has no complete result."""

    kind: str
    message: str
    traceback: str | None = None


class TrialFacts(Part):
    """What was run; everything that enters the id, and the words tables use for it."""

    id: str = Field(pattern=TRIAL_ID)
    """Names a folder and files, and so holds no separator."""
    suite: str
    method: str
    """The registered name."""
    title: str
    """What tables call the row: the method's label in the suite, or its name."""
    family: str
    regime: Literal["clean", "mixed", "casewise", "missing-rate", "none"]
    """`none` for rows that do not train."""
    dataset: str
    backbone: str
    strategies: tuple[str, ...] = ()
    """Training strategies, the innermost first."""
    online: str | None = None
    """The online adapter; such records have tables of their own."""
    seed: Whole
    options: Plain
    budget: Plain
    cases: tuple[str, ...]
    train_cases: tuple[str, ...]
    contents: Contents = Field(default_factory=dict)
    """What the names stand for: cases, training cases, tracks and split, written out."""
    deviations: tuple[str, ...] = ()
    """Every difference from the suite's defaults, in words, for the table's footnotes."""


class Environment(Part, OneDevice):
    """Where it ran; costs are compared only within one kind and number of devices and threads of each."""

    date: str
    python: str
    platform: str
    device: str
    """GPU model, or the processor's name."""
    device_kind: Literal["cpu", "cuda"]
    threads: Whole
    workers: Whole | None = None
    """Trials at a time on the machine; None for one run by hand."""
    packages: dict[str, str]
    commit: str | None = None
    dirty: bool | None = None
    deterministic: bool = True
    plugins: dict[str, str] = Field(default_factory=dict)
    """Plugin file name -> SHA-256 of its content."""


class DataFacts(Part):
    """What the numbers were measured on."""

    name: str
    digest: str
    classes: tuple[str, ...]
    multi_label: bool
    train: Whole
    val: Whole
    test: Whole
    split: str
    leaks: bool
    note: str = ""
    skipped: tuple[str, ...] = ()
    """Files left out under `on_error: skip`, with the reason."""
    frozen: bool = False
    """Whether the corrupted test sets were read from frozen ones; their digests are those of sets made on the fly."""


class BackboneFacts(Part):
    name: str
    digest: str
    parameters: Whole
    fusion: str


class TuningTrial(Part):
    """One learning rate tried on the validation split."""

    lr: float
    score: float | None
    """Mean validation accuracy (or mAP) over the training cases; None where the trial diverged."""
    samples: Whole


@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Score:
    """One number, long form. A board holds a million of them, hence no model, which takes three times the memory."""

    case: str
    severity: Whole = 0  # where the case has no scale
    track: Track
    metric: str  # accuracy, map, nll, ece ...
    value: float | None
    n: Whole
    reason: str | None = None
    digest: str | None = None
    """SHA-256 of the corrupted evaluation set; two records enter one table only if it agrees."""
    stream: str = ""
    """`setting/batch` of an online adapter; empty for predictions of the model as trained."""
    update: Literal["none", "before", "after"] = "none"
    """Whether an online prediction was made before (the headline) or after the update on its own batch."""


class OnlineFacts(Part):
    """What adapted at test time, and what that cost beside the scored predictions."""

    name: str
    options: Plain
    base: str
    """Id of the trial that trained it."""
    updated_parameters: Whole
    forwards_per_sample: float
    backwards_per_sample: float
    source_samples: Whole
    update_seconds_per_sample: float | None
    used_share: float | None
    """Share of the test samples that entered an update, over all streams."""


class PhaseSeconds(Part):
    """Wall-clock accumulators; their sum is the trial's wall clock up to measurement overhead."""

    setup: float
    data: float
    """Store reads, corruption and transfer during training."""
    train: float
    """Forward, backward and optimiser steps, synchronised."""
    tune: float
    """The tuning trials, all of their phases together."""
    evaluate: float
    log: float
    wall: float


class PeakMemory(Part):
    """Peak since the phase began; None where the platform does not tell."""

    allocated_bytes: Whole | None = None
    reserved_bytes: Whole | None = None
    rss_bytes: Whole | None = None
    """Peak resident size of the process (CPU)."""


class TrainingState(Part):
    """Device-independent bytes one optimiser step holds at `batch` samples at once."""

    parameters_bytes: Whole
    gradients_bytes: Whole
    optimizer_bytes: Whole
    activations_bytes: Whole
    """Distinct storages saved for backward, parameters excluded."""
    batch: Whole

    @property
    def total_bytes(self) -> int:
        return self.parameters_bytes + self.gradients_bytes + self.optimizer_bytes + self.activations_bytes


class Costs(Part):
    """What it cost. None means not measured, never zero."""

    trainable_parameters: Whole
    """Elements of tensors that received a gradient, head included."""
    head_parameters: Whole
    """The part of them that belongs to the classification head."""
    total_parameters: Whole
    stored_bytes: Whole
    """Bytes of everything a user must keep beside the backbone, over all case-wise states."""
    seconds: PhaseSeconds
    epoch_seconds: float | None
    """Training-step time of one pass over the training split, from steps after the warm-up."""
    step_seconds_median: float | None
    step_seconds_std: float | None
    steps: Whole
    samples_seen: Whole
    """Training samples forwarded in the final training, over all phases, extra forwards included."""
    micro_batch: Whole | None
    train_memory: PeakMemory
    eval_memory: PeakMemory
    training_state: TrainingState | None
    train_flops_per_sample: float | None
    eval_flops_per_sample: float | None
    eval_seconds_per_sample: float | None
    """Of the final evaluation as a whole: reading, corrupting, predicting (with every state) and scoring."""
    energy_joules: float | None


class TrialRecord(Part):
    """The whole record. `schema_version` stays first, so that a reader can decide before it parses the rest."""

    schema_version: Literal[2] = 2
    status: Status
    failure: Failure | None = None
    trial: TrialFacts
    environment: Environment
    data: DataFacts | None = None
    backbone: BackboneFacts | None = None
    lr: float | None = None
    tuning: tuple[TuningTrial, ...] = ()
    scores: tuple[Score, ...] = ()
    costs: Costs | None = None
    online: OnlineFacts | None = None


RECORD = "trial.json"
MARKER = "done"
OLD_RECORD = f"{RECORD}.old"  # begins the name of a record that was put aside because its trial runs again


def save_record(record: TrialRecord, folder: Path) -> None:
    """Write the record, then the marker that says it is complete."""
    content = record.model_dump_json(indent=1).encode()
    write_atomic(folder / RECORD, content)
    write_atomic(folder / MARKER, hashlib.sha256(content).hexdigest().encode())


def is_done(folder: Path) -> bool:
    """Whether the folder holds a record that is the one its marker was written for."""
    return finished_record(folder) is not None


def finished_record(folder: Path) -> bytes | None:
    """The record of a trial that is done; None where it is missing, half written, or not the one of its marker."""
    try:
        content, marker = read_plain(folder / RECORD, RECORD_BYTES), read_plain(folder / MARKER, MARKER_BYTES)
        return content if hashlib.sha256(content).hexdigest().encode() == marker else None
    except OSError:
        return None


def load_record(path: Path) -> TrialRecord:
    """Read one record, lifting older schemas.

    Raises RecordError naming the file if it is missing, damaged or of a newer schema.
    """
    try:
        return TrialRecord.model_validate(_upgrade(from_json(read_plain(path, RECORD_BYTES))))
    except OSError as error:
        raise RecordError(f"cannot read record {path}: {error.strerror}") from None
    except (ValidationError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise RecordError(f"record {path} is damaged or not a record: {' '.join(str(error).split())[:300]}") from None


def _upgrade(content: dict[str, Any]) -> dict[str, Any]:
    """Older schemas are lifted here, one step a version. Schema 2 added strategies and online adapters."""
    found = content.get("schema_version")
    if found not in (1, SCHEMA):
        raise ValueError(f"schema {found!r} is not one this version reads (up to {SCHEMA}); update mmbench")
    return {**content, "schema_version": SCHEMA}


def find_records(folder: Path) -> Iterator[Path]:
    """Complete records below a results folder (`trials/<id>/trial.json`) or a board (`records/*.json`)."""
    for path in sorted(folder.glob(f"trials/*/{RECORD}")):
        if (path.parent / MARKER).is_file():
            yield path
    yield from sorted(folder.glob("records/*.json"))
