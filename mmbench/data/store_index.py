"""Everything about a store but its arrays, as it is written beside them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from mmbench.data.source import Skipped
from mmbench.data.store_writer import Contents

SCHEMA = 1
INDEX = "index.json"


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
    """What was written; raises KeyError, TypeError or AttributeError for anything else."""
    held = fields.pop("contents")
    skipped = tuple(Skipped(**entry) for entry in held.pop("skipped"))
    labels = tuple(tuple(entry) for entry in held.pop("labels"))
    digest = held.pop("digest")
    lists = {key: tuple(value) for key, value in held.items()}
    contents = Contents(skipped=skipped, labels=labels, digest=digest, **lists)
    return StoreIndex(**{**fields, "classes": tuple(fields["classes"])}, contents=contents)
