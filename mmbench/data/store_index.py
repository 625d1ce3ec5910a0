"""Everything about a store but its arrays, as it is written beside them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from mmbench.data.source import Skipped
from mmbench.data.store_writer import Contents

MOST_FRAMES = 2**20  # three hours
MOST_IMAGE_SIZE = 2**13
MOST_WAVE = 2**31  # samples of sound
SCHEMA = 1
INDEX = "index.json"
INDEX_BYTES = 2**32


@dataclass(frozen=True)
class StoreIndex:
    """Everything about a store but its arrays."""

    schema: int
    name: str
    classes: tuple[str, ...]
    multi_label: bool
    static_images: bool
    frames: int
    image_size: int
    contents: Contents

    def fields(self) -> dict[str, Any]:
        """As written; a split that no data set told is left away, as in the indexes of before."""
        fields = asdict(self)
        if not self.contents.splits:
            del fields["contents"]["splits"]
        return fields

    def checksum(self) -> str:
        """SHA-256 over all fields."""
        text = json.dumps(self.fields(), sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def index_from(fields: dict[str, Any]) -> StoreIndex:
    """What was written; raises ValueError, KeyError, TypeError or AttributeError for anything else."""
    held = fields.pop("contents")
    skipped = tuple(Skipped(**entry) for entry in held.pop("skipped"))
    labels = tuple(tuple(entry) for entry in held.pop("labels"))
    digest = held.pop("digest")
    lists = {key: tuple(value) for key, value in held.items()}
    contents = Contents(skipped=skipped, labels=labels, digest=digest, **lists)
    index = StoreIndex(**{**fields, "classes": tuple(fields["classes"])}, contents=contents)
    wrong = [what for what, right in _checks(index) if not right]
    if wrong:
        raise ValueError(f"its index holds wrong {', '.join(wrong)}")
    return index


def _checks(index: StoreIndex) -> Iterator[tuple[str, bool]]:
    """Whatever a batch relies on, so that nothing is read beside the arrays and no memory taken for nothing."""
    held = index.contents
    yield "frames", _whole([index.frames], 1, MOST_FRAMES)
    yield "image_size", _whole([index.image_size], 1, MOST_IMAGE_SIZE)
    yield "frame_counts", _whole(held.frame_counts, 0, index.frames)
    yield "wave_lengths", _whole(held.wave_lengths, 0, MOST_WAVE)
    yield "labels", _whole(list(chain.from_iterable(held.labels)), 0, len(index.classes) - 1)
    yield "number of labels", index.multi_label or set(map(len, held.labels)) <= {1}
    texts = {"classes": index.classes, "ids": held.ids, "groups": held.groups, "splits": held.splits}
    yield from ((what, set(map(type, values)) <= {str}) for what, values in texts.items())
    yield "ids", len(set(held.ids)) == len(held.ids)


def _whole(values: Sequence[object], least: int, most: int) -> bool:
    """Whether all are integers in this range; a store tells millions."""
    return set(map(type, values)) <= {int} and all(least <= edge <= most for edge in _edges(values))


def _edges(values: Sequence[Any]) -> tuple[Any, ...]:
    return (min(values), max(values)) if values else ()
