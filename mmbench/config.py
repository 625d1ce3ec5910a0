"""The suite file: what is compared, on what, under which budget. Strict: an unknown key or a bad value is an error."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mmbench import registry
from mmbench.cards import Track
from mmbench.errors import ConfigError, UnknownNameError
from mmbench.one_device import OneDevice

Regime = Literal["clean", "mixed", "casewise", "missing-rate"]
Blind = Literal["auto", "concat", "average", "router"]
Stream = Annotated[str, Field(pattern=r"^(reset|continual|mixed)/[1-9][0-9]{0,3}$")]
MOST_TRIALS = 100_000
"""Of a suite and regime: few lines may write out a grid that is larger than what can be listed."""
MOST_METHODS = 1000
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SplitConfig(Config):
    """How a data set is cut into train, val and test."""

    kind: Literal["grouped", "random", "published", "listed"] = "grouped"
    """`grouped` keeps files of one recording on one side; `published` is the 70/30 cut per class, which may leak;
    `listed` takes train, test and perhaps val from the entries of a manifest."""
    test: float = Field(default=0.3, gt=0, lt=1)
    """Share of all samples."""
    val: float = Field(default=0.15, gt=0, lt=1)
    """Share of the samples that are left for training."""
    seed: int = 0


class DataConfig(Config):
    """One data set, as a suite names it."""

    name: str
    """A registered data set; see `mmbench ls datasets`."""
    label: str | None = None
    """What tables call it; the registered name unless given."""
    root: Path | None = None
    """Folder of the files; relative paths count from the suite file."""
    audio_dir: str | None = None
    vision_dir: str | None = None
    classes: tuple[str, ...] | None = None
    """Class names in label order; the folder names, sorted, unless given."""
    group_pattern: str | None = None
    """Regular expression whose first group, found in a file's stem, names its recording."""
    manifest: Path | None = None
    label_csv: Path | None = None
    multi_label: bool = False
    frames: int = Field(default=1, ge=1)
    """Pictures of a clip, for a manifest: with more than one, every clip must hold just these, frame_0 to frame_N-1.
    Training shows each sample one of them, drawn in every epoch, a test the middle one. 1: the middle one of ten."""
    samples: int | None = Field(default=None, gt=0)
    """Number of samples; for generated data only."""
    seed: int = 0
    """Seed of generated data."""
    split: SplitConfig = SplitConfig()
    on_error: Literal["raise", "skip"] = "raise"
    """An unreadable file ends the run, or is left out, counted and listed."""

    @property
    def title(self) -> str:
        return self.label or self.name

    def split_facts(self) -> dict[str, Any]:
        """What decides, beside the samples, which of them are in which split; enters every digest built on it."""
        groups = {} if self.group_pattern is None else {"group_pattern": self.group_pattern}
        return {**self.split.model_dump(), **groups}


class OptimConfig(Config):
    """Optimiser defaults, the same for every method."""

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=1e-4, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_share: float = Field(default=0.05, ge=0, lt=1)
    clip_norm: float | None = Field(default=1.0, gt=0)
    head_lr_multiplier: float = Field(default=1.0, gt=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    loss: Literal["auto", "cross-entropy", "bce"] = "auto"
    """`auto`: cross-entropy for single-label data, binary cross-entropy for multi-label data."""


class Budget(Config, OneDevice):
    """What every method of a suite may spend; nothing in it depends on the method."""

    epochs: float = Field(default=5.0, gt=0)
    """Passes over the training split, summed over all phases of a method."""
    samples: int | None = Field(default=None, gt=0)
    """Training samples forwarded in all phases together; overrides epochs."""
    batch_size: int = Field(default=64, gt=0)
    """Effective batch: the samples of one optimiser step, on all devices together."""
    micro_batch: int | None = Field(default=None, gt=0)
    """Samples in a device's memory at once; all that it computes of a step unless given. Halved while the memory cap
    binds."""
    eval_batch: int = Field(default=64, gt=0)
    views: int | None = Field(default=None, gt=0)
    """Corrupted views of each training sample, used in turn from epoch to epoch; a fresh one every epoch unless given.
    With a fixed number, methods behind frozen encoders read what these make of a view from disk after its first use."""
    memory_cap_gib: float | None = Field(default=None, gt=0)
    """Cap on the memory of each device; enforced on CUDA, counted as training state elsewhere."""
    tuning_trials: int = Field(default=3, ge=1)
    """Learning rates tried per method; 1 takes the middle of the method's range without a search."""
    tuning_share: float = Field(default=1 / 3, gt=0, le=1)
    """Share of the samples one tuning trial sees."""
    wall_clock_minutes: float | None = Field(default=None, gt=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpointing: bool = False
    """Activation checkpointing in every block of the backbone: less memory, about one more forward pass a step."""
    compile: bool = False
    """torch.compile of every block in training steps; a block that does not compile ends the trial by name."""
    train_head: bool = True
    """Whether the classification head trains along with every method."""
    optim: OptimConfig = OptimConfig()

    @model_validator(mode="after")
    def _shares(self) -> Budget:
        if self.batch_size % self.devices:
            raise ValueError(f"devices: {self.devices} cannot share a batch_size of {self.batch_size} evenly")
        return self

    def deciding(self, trains: bool) -> dict[str, Any]:
        """What of it decides the numbers of a row; a key younger than the first trial ids only where it is set."""
        kept = None if trains else {"precision", "eval_batch"}
        return self.model_dump(include=kept, exclude=None if self.compile else {"compile"})


class BackboneSpec(Config):
    """Which frozen source model a suite starts from."""

    name: str = "cavmae-tiny"
    """A preset; see `mmbench ls backbones`."""
    label: str | None = None
    """What tables call it; its name, and its fusion where that is not the usual one, unless given."""
    path: Path | None = None
    """A folder written by `mmbench backbone build` or `import`; built on first use from clean data unless given."""
    init: Path | None = None
    """What the clean fine-tuning starts from: an official checkpoint, or a folder by `mmbench backbone pretrain`."""
    fusion: Literal["none", "one-way", "gated", "as-published"] = "gated"
    epochs: float = Field(default=12.0, gt=0)
    """Passes of the clean fine-tuning; this and the next two suit cavmae-tiny on the embedded data."""
    lr: float = Field(default=2e-3, gt=0)
    batch_size: int = Field(default=32, gt=0)

    @property
    def title(self) -> str:
        return self.label or (self.name if self.fusion == "gated" else f"{self.name} (fusion {self.fusion})")


class PartSpec(Config):
    """A training strategy or an online adapter, with options that differ from its card."""

    name: str
    options: Mapping[str, Any] = Field(default_factory=dict)


class MethodSpec(Config):
    """A method of the suite, with options that differ from its card, and what is combined with it."""

    name: str
    label: str | None = None
    regimes: tuple[Regime, ...] | None = Field(default=None, min_length=1)
    """Regimes of this method only; the suite's unless given."""
    options: Mapping[str, Any] = Field(default_factory=dict)
    strategies: tuple[PartSpec, ...] = ()
    """Training strategies, the innermost first."""
    online: PartSpec | None = None
    """What happens at test time; the trained state is that of the same row without it."""
    blind: Blind = "auto"
    """How case-wise states answer without knowing the case: put together as the method offers it, by the average of
    their probabilities, or by the state that a small detector picks. `auto`: put together if offered, else average."""

    @field_validator("strategies", "online", mode="before")
    @classmethod
    def _parts(cls, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [{"name": v} if isinstance(v, str) else v for v in value]
        return {"name": value} if isinstance(value, str) else value

    @property
    def title(self) -> str:
        parts = [self.name, *(s.name for s in self.strategies), *([self.online.name] if self.online else ())]
        return self.label or "+".join(parts)

    def offline(self) -> MethodSpec:
        """The same row without its online adapter."""
        return self.model_copy(update={"online": None, "label": None}) if self.online else self


class Suite(Config):
    """A whole comparison."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    title: str = ""
    note: str = ""
    methods: tuple[MethodSpec, ...] = Field(min_length=1)
    regimes: tuple[Regime, ...] = Field(default=("clean", "mixed"), min_length=1)
    cases: tuple[Any, ...] = Field(default=("paper",), min_length=1)
    """Case names, set names, or cases written out; parsed by mmbench.cases."""
    train_cases: tuple[Any, ...] | None = Field(default=None, min_length=1)
    """Cases seen in `mixed` and `casewise` training; those of `cases` unless given."""
    missing_rate: float = Field(default=0.7, gt=0, le=1)
    """Share of the samples that lack a modality in `missing-rate` training, half of them audio, half vision."""
    streams: tuple[Stream, ...] = Field(default=("reset/64",), min_length=1)
    """How online adapters see the test data, as `setting/batch`; settings are reset, continual and mixed."""
    tracks: tuple[Track, ...] = Field(default=("informed", "avail", "blind"), min_length=1)
    datasets: tuple[DataConfig, ...] = Field((DataConfig(name="synthetic-av"),), min_length=1)
    backbones: tuple[BackboneSpec, ...] = Field(default=(BackboneSpec(),), min_length=1)
    assets: Path | None = None
    """Folder of recordings and photographs in place of the generated ones, as `<folder>/<kind>/*`; relative to the
    suite file. MMBENCH_ASSETS unless given."""
    frozen: Path | None = None
    """Folder of test sets by `mmbench data corrupt`, read in place of corrupting; relative to the suite file."""
    seeds: tuple[Seed, ...] = Field(default=(0, 1, 2), min_length=1)
    budget: Budget = Budget()

    @field_validator("methods", mode="before")
    @classmethod
    def _methods(cls, value: Any) -> Any:
        if isinstance(value, (list, tuple)) and len(value) > MOST_METHODS:
            raise ValueError(f"lists {len(value)} methods, at most {MOST_METHODS}; split it")
        return [composed(v) for v in value] if isinstance(value, (list, tuple)) else value

    @field_validator("datasets", "backbones", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return [{"name": v} if isinstance(v, str) else v for v in value] if isinstance(value, (list, tuple)) else value

    @model_validator(mode="after")
    def _distinct(self) -> Suite:
        for what, names in (
            ("methods", [f"{m.title}{m.regimes or ''}" for m in self.methods]),
            ("datasets", [d.title for d in self.datasets]),
            ("backbones", [b.title for b in self.backbones]),
            ("seeds", [str(s) for s in self.seeds]),
            ("streams", list(self.streams)),
        ):
            twice = sorted(name for name, count in Counter(names).items() if count > 1)
            if twice:
                raise ValueError(f"{what} named twice: {', '.join(twice)} (give the second one a label)")
        asked = math.prod(map(len, (self.datasets, self.backbones, self.methods, self.seeds)))
        if asked > MOST_TRIALS:
            raise ValueError(f"asks for {asked} trials a regime, at most {MOST_TRIALS}; split it")
        return self


def composed(entry: Any) -> Any:
    """A suite's entry for a method with a combined name taken apart, whether it stands alone or in a mapping."""
    if isinstance(entry, str):
        return method_entry(entry)
    if isinstance(entry, Mapping) and isinstance(entry.get("name"), str):
        return {**method_entry(entry["name"]), **{key: value for key, value in entry.items() if key != "name"}}
    return entry


def method_entry(text: str) -> dict[str, Any]:
    """`lora-qv+mixed+mixup+read` as a MethodSpec mapping: after the method a regime, strategies and an online adapter.

    Raises UnknownNameError for a part that is none of these and ConfigError for a second regime or adapter.
    """
    name, *parts = text.split("+")
    entry: dict[str, Any] = {"name": name}
    regimes, strategies, onlines = get_args(Regime), registry.strategies().names(), registry.onlines().names()
    for part in parts:
        if parts.count(part) > 1:
            raise ConfigError(f"'{text}' names {part} twice")
        if part in strategies:
            entry["strategies"] = [*entry.get("strategies", []), part]
            continue
        key = "regimes" if part in regimes else "online"
        if key == "online" and part not in onlines:
            raise UnknownNameError("regime, strategy or online adapter", part, [*regimes, *strategies, *onlines])
        if key in entry:
            raise ConfigError(f"'{text}' names two {'regimes' if key == 'regimes' else 'online adapters'}")
        entry[key] = [part] if key == "regimes" else part
    return entry
