"""The suite file: what is compared, on what, under which budget. Strict: an unknown key or a bad value is an error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mmbench.cards import Track
from mmbench.errors import ConfigError, near_words
from mmbench.strict_yaml import StrictLoader

Regime = Literal["clean", "mixed", "casewise"]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SplitConfig(Config):
    """How a data set is cut into train, val and test."""

    kind: Literal["grouped", "random", "published"] = "grouped"
    """`grouped` keeps files of one recording on one side; `published` is the 70/30 cut per class, which may leak."""
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


class Budget(Config):
    """What every method of a suite may spend; nothing in it depends on the method."""

    epochs: float = Field(default=5.0, gt=0)
    """Passes over the training split, summed over all phases of a method."""
    samples: int | None = Field(default=None, gt=0)
    """Training samples forwarded in all phases together; overrides epochs."""
    batch_size: int = Field(default=64, gt=0)
    """Effective batch: the samples of one optimiser step."""
    micro_batch: int | None = Field(default=None, gt=0)
    """Samples in memory at once; the effective batch unless given. Halved while the memory cap binds."""
    eval_batch: int = Field(default=64, gt=0)
    memory_cap_gib: float | None = Field(default=None, gt=0)
    """Cap on device memory; enforced on CUDA, counted as training state elsewhere."""
    tuning_trials: int = Field(default=3, ge=1)
    """Learning rates tried per method; 1 takes the middle of the method's range without a search."""
    tuning_share: float = Field(default=1 / 3, gt=0, le=1)
    """Share of the samples one tuning trial sees."""
    wall_clock_minutes: float | None = Field(default=None, gt=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    train_head: bool = True
    """Whether the classification head trains along with every method."""
    optim: OptimConfig = OptimConfig()


class BackboneSpec(Config):
    """Which frozen source model a suite starts from."""

    name: str = "cavmae-tiny"
    """A preset; see `mmbench ls backbones`."""
    label: str | None = None
    """What tables call it; its name, and its fusion where that is not the usual one, unless given."""
    path: Path | None = None
    """A folder written by `mmbench backbone build` or `import`; built on first use from clean data unless given."""
    init: Path | None = None
    """An official CAV-MAE checkpoint to start the clean fine-tuning from."""
    fusion: Literal["none", "gated", "as-published"] = "gated"
    epochs: float = Field(default=12.0, gt=0)
    """Passes of the clean fine-tuning; this and the next two suit cavmae-tiny on the embedded data."""
    lr: float = Field(default=2e-3, gt=0)
    batch_size: int = Field(default=32, gt=0)

    @property
    def title(self) -> str:
        return self.label or (self.name if self.fusion == "gated" else f"{self.name} (fusion {self.fusion})")


class MethodSpec(Config):
    """A method of the suite, with options that differ from its card."""

    name: str
    label: str | None = None
    regimes: tuple[Regime, ...] | None = Field(default=None, min_length=1)
    """Regimes of this method only; the suite's unless given."""
    options: Mapping[str, Any] = Field(default_factory=dict)

    @property
    def title(self) -> str:
        return self.label or self.name


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
    tracks: tuple[Track, ...] = Field(default=("informed", "avail", "blind"), min_length=1)
    datasets: tuple[DataConfig, ...] = Field((DataConfig(name="synthetic-av"),), min_length=1)
    backbones: tuple[BackboneSpec, ...] = Field(default=(BackboneSpec(),), min_length=1)
    seeds: tuple[Seed, ...] = Field(default=(0, 1, 2), min_length=1)
    budget: Budget = Budget()

    @field_validator("methods", mode="before")
    @classmethod
    def _methods(cls, value: Any) -> Any:
        return (
            [method_entry(v) if isinstance(v, str) else v for v in value] if isinstance(value, (list, tuple)) else value
        )

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
        ):
            twice = sorted({n for n in names if names.count(n) > 1})
            if twice:
                raise ValueError(f"{what} named twice: {', '.join(twice)} (give the second one a label)")
        return self


def method_entry(text: str) -> dict[str, Any]:
    """`lora-qv` or `lora-qv+mixed` as a MethodSpec mapping."""
    name, _, regime = text.partition("+")
    return {"name": name, "regimes": [regime]} if regime else {"name": name}


def load_suite(path: Path, overrides: tuple[str, ...] = ()) -> Suite:
    """Read a suite file; `overrides` are `budget.epochs=2` strings.

    Raises ConfigError naming the file, the key and the value.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), StrictLoader)
    except OSError as error:
        raise ConfigError(f"cannot read suite {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"suite {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"suite {path} must be a mapping of keys, not {type(content).__name__}")
    return suite_of(content, overrides, path)


def suite_of(content: dict[str, Any], overrides: tuple[str, ...], path: Path | None = None) -> Suite:
    """A suite given as plain data, with `key=value` overrides put in place."""
    for override in overrides:
        _override(content, override)
    return parse_suite(content, path)


def parse_suite(content: Mapping[str, Any], path: Path | None = None) -> Suite:
    """Validate a suite given as plain data; paths in it count from the suite file's folder."""
    try:
        suite = Suite.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"suite {path or ''}: {explain(error)}") from None
    return _resolve(suite, path.resolve().parent if path else Path.cwd())


SECTIONS: Mapping[object, type[Config]] = {
    "methods": MethodSpec,
    "datasets": DataConfig,
    "split": SplitConfig,
    "backbones": BackboneSpec,
    "budget": Budget,
    "optim": OptimConfig,
}


def explain(error: ValidationError) -> str:
    """Pydantic's findings in one line: where, what, the value that was given, and near keys."""
    lines = []
    places = [found["loc"] for found in error.errors()]
    for found in error.errors():
        loc = found["loc"]
        if found["type"] == "too_short" and any(loc == place[: len(loc)] != place for place in places):
            continue  # the list looks empty only because its entries are wrong
        where = ".".join(str(part) for part in loc) or "file"
        given = "" if found["type"] in ("missing", "value_error") else f" (got {found['input']!r:.80})"
        what = found["msg"].removeprefix("Value error, ").replace("valid tuple", "list").replace("Tuple", "List")
        hint = f"; {_near_keys(loc)}" if found["type"] == "extra_forbidden" else ""
        lines.append(f"{where}: {what}{given}{hint}")
    return "; ".join(lines)


def _near_keys(place: tuple[int | str, ...]) -> str:
    """Near or known keys of the section that a place lies in."""
    sections = [SECTIONS[part] for part in place[:-1] if part in SECTIONS]
    return near_words(str(place[-1]), (sections or [Suite])[-1].model_fields)


def _override(content: dict[str, Any], text: str) -> None:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set takes key=value, got '{text}'")
    *parents, last = key.split(".")
    target: Any = content
    try:
        for parent in parents:
            target = target[int(parent)] if isinstance(target, list) else target.setdefault(parent, {})
        target[int(last) if isinstance(target, list) else last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"--set {text}: the value is not valid YAML") from None
    except (AttributeError, TypeError, ValueError, IndexError):
        raise ConfigError(
            f"--set {text}: the suite has no such place; lists take numbers, datasets.0.root=..."
        ) from None


def _resolve(suite: Suite, folder: Path) -> Suite:
    """Make every relative path absolute, counted from the suite file."""

    def absolute(path: Path | None) -> Path | None:
        return None if path is None else (folder / path.expanduser()).resolve()

    datasets = tuple(
        d.model_copy(update={key: absolute(getattr(d, key)) for key in ("root", "manifest", "label_csv")})
        for d in suite.datasets
    )
    backbones = tuple(
        b.model_copy(update={"path": absolute(b.path), "init": absolute(b.init)}) for b in suite.backbones
    )
    return suite.model_copy(update={"datasets": datasets, "backbones": backbones})
