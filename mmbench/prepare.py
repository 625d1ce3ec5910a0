"""Brings data and backbone to hand: both are built once, cached by content, and shared by all trials."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmbench import registry
from mmbench.backbone.checkpoint import BackboneMeta, load_meta
from mmbench.backbone.config import BackboneConfig, preset
from mmbench.cases import Case
from mmbench.config import BackboneSpec, DataConfig
from mmbench.data.splits import Splits, split
from mmbench.data.store import Store, build_store, open_store
from mmbench.errors import ConfigError
from mmbench.feed import TrialData
from mmbench.files import cache_folder
from mmbench.frozen import FrozenSets, subject_of
from mmbench.records import DataFacts
from mmbench.trials import PROTOCOL

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Place:
    """A built backbone and its description."""

    folder: Path
    meta: BackboneMeta


def model_config(spec: BackboneSpec, n_classes: int) -> BackboneConfig:
    """The sizes a suite's backbone will have; a built one brings its own. Raises ConfigError if classes disagree."""
    if spec.path is None:
        return preset(spec.name, n_classes=n_classes, fusion=spec.fusion)
    config = load_meta(spec.path).config
    if config.n_classes != n_classes:
        raise ConfigError(
            f"backbone {spec.path} was fine-tuned for {config.n_classes} classes, the data set has {n_classes}; "
            "build one on this data set: mmbench backbone build"
        )
    return config


def input_sizes(spec: BackboneSpec) -> tuple[int, int]:
    """Frames and image side that a backbone reads."""
    config = preset(spec.name) if spec.path is None else load_meta(spec.path).config
    return config.frames, config.image_size


def prepare_data(dataset: DataConfig, spec: BackboneSpec, progress: Progress | None = None) -> TrialData:
    """Read a data set into its store (or open the one that is there) and cut it into splits.

    Raises DataError naming a broken or missing file.
    """
    source = registry.datasets().load(dataset.name)(dataset)
    frames, image_size = input_sizes(spec)
    store = build_store(source, frames, image_size, cache_folder() / "stores", dataset.on_error, progress)
    return trial_data(dataset, store)


def reopen_data(dataset: DataConfig, folder: Path) -> TrialData:
    """What `prepare_data` built, by its folder."""
    return trial_data(dataset, open_store(folder))


def frozen_sets(data: TrialData, folder: Path) -> FrozenSets:
    """The frozen sets of a folder, as far as they fit this data."""
    return FrozenSets(folder, subject_of(data.name, data.store, data.splits.test, PROTOCOL))


def with_frozen(data: TrialData, folder: Path | None, cases: Sequence[Case]) -> TrialData:
    """The data with its test sets read from a folder, every byte of them checked; as it is without a folder.

    Raises DataError if a case that applies to the data has no set there, or one that is damaged or foreign.
    """
    if folder is None:
        return data
    sets = frozen_sets(data, folder)
    for case in cases:
        if data.unmet(case) is None:
            sets.open(case)
    return replace(data, frozen=sets)


def trial_data(dataset: DataConfig, store: Store) -> TrialData:
    splits = split(store.items, dataset.split, store.classes)
    still = store.index.static_images
    return TrialData(dataset.name, store, splits, store.multi_label, still, pictures=store.pictures)


def data_facts(dataset: DataConfig, data: TrialData) -> DataFacts:
    """What a record says of its data."""
    splits: Splits = data.splits
    film = f"{data.pictures} pictures a sample: training draws one, a test shows the middle one"
    return DataFacts(
        name=dataset.title,
        digest=data.store.digest,
        classes=data.store.classes,
        multi_label=data.multi_label,
        train=len(splits.train),
        val=len(splits.val),
        test=len(splits.test),
        split=splits.kind,
        leaks=splits.leaks,
        note="; ".join(filter(None, (splits.note, film if data.pictures > 1 else ""))),
        skipped=tuple(f"{skipped.path}: {skipped.reason}" for skipped in data.store.skipped),
        frozen=data.frozen is not None,
    )
