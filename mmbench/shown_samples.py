"""A few samples of any data set, read as a run reads them, without a store of the whole."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmbench import registry
from mmbench.assets import use_assets
from mmbench.backbone.config import preset
from mmbench.cases import Case
from mmbench.config import DataConfig
from mmbench.data.batch import RawBatch
from mmbench.data.source import Item, Pair, Skipped, Source
from mmbench.data.store import build_store
from mmbench.errors import UnknownNameError
from mmbench.pipeline import Corrupted, corrupt, missing_plan
from mmbench.rng import StreamKey
from mmbench.runner import read_suite

SAMPLES = 3
SIZES = preset("cavmae-base")  # of the pictures, and of the longest sounds


@dataclass(frozen=True)
class Samples:
    """Samples as stored, and what they are."""

    dataset: str
    raw: RawBatch
    titles: tuple[str, ...]
    still_pictures: bool

    @property
    def pictures(self) -> int:
        """Of each sample."""
        return self.raw.film.length if self.raw.film else 1

    def under(self, case: Case) -> Corrupted:
        """As in the test split of an evaluation: a sample that is in it has the same draws."""
        key = StreamKey(self.dataset, "test", 0)
        return corrupt(self.raw, case, key, missing_plan(case, self.raw.ids, key))


@dataclass(frozen=True)
class _Few:
    """Some items of a data set as a data set."""

    name: str
    classes: tuple[str, ...]
    items: tuple[Item, ...]
    multi_label: bool
    static_images: bool
    root: Path | None
    reader: Callable[[Item, int], Pair]
    problems: tuple[Skipped, ...] = ()

    def read(self, item: Item, image_size: int) -> Pair:
        return self.reader(item, image_size)

    def fingerprint(self) -> str:
        """Names a store that is thrown away."""
        return ""


def read_samples(dataset: str, number: int = SAMPLES) -> Samples:
    """Samples of classes far apart, from a registered data set, the first of a suite, or a folder of pairs.

    Raises UnknownNameError, or the data set's own error.
    """
    config = _data_config(dataset)
    whole: Source = registry.datasets().load(config.name)(config)
    traits = (whole.multi_label, whole.static_images, whole.root)
    few = _Few(whole.name, whole.classes, _spread(whole.items, number), *traits, whole.read)
    with tempfile.TemporaryDirectory() as scratch:
        store = build_store(few, SIZES.frames, SIZES.image_size, Path(scratch), config.on_error)
        raw = store.batch(store.ids)
    titles = tuple(_title(item.id, [whole.classes[label] for label in item.labels]) for item in store.items)
    return Samples(config.name, raw, titles, whole.static_images)


def _title(sample_id: str, classes: Sequence[str]) -> str:
    """The id, and the classes that it does not tell."""
    untold = [name for name in classes if name not in sample_id]
    return f"{sample_id} ({', '.join(untold)})" if untold else sample_id


def _data_config(dataset: str) -> DataConfig:
    known = registry.datasets().names()
    if dataset in known:
        return DataConfig(name=dataset)
    if not Path(dataset).exists():
        raise UnknownNameError("data set, suite or folder", dataset, known)
    suite = read_suite(Path(dataset))
    use_assets(suite.assets)
    return suite.datasets[0]


def _spread(items: tuple[Item, ...], number: int) -> tuple[Item, ...]:
    """The first items of evenly spaced classes, and of the first class if there are too few."""
    firsts: dict[tuple[int, ...], Item] = {}
    for item in items:
        firsts.setdefault(item.labels[:1], item)
    candidates = [firsts[label] for label in sorted(firsts)]
    candidates += [item for item in items if item not in candidates][: max(number - len(candidates), 0)]
    return tuple(candidates[len(candidates) * place // number] for place in range(min(number, len(candidates))))
