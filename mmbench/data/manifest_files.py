"""The two files of a CAV-MAE manifest: a json of clips, and a csv of index, mid and display name. Torch-free."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmbench.errors import DataError
from mmbench.strict_json import read_json

COLUMNS = ("index", "mid", "display_name")


@dataclass(frozen=True)
class Labels:
    """Mids and names in class order; a mid is what manifests name a class by."""

    mids: tuple[str, ...]
    names: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, or the mids where names repeat."""
        return self.names if len(set(self.names)) == len(self.names) else self.mids

    def numbers(self) -> Mapping[str, int]:
        """The class of each mid."""
        return {mid: number for number, mid in enumerate(self.mids)}


def read_labels(path: Path) -> Labels:
    """Raises DataError naming the file and what is wrong with it."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            if missing := [column for column in COLUMNS if column not in (reader.fieldnames or ())]:
                raise DataError(f"{path} has no column {', '.join(missing)}; its header must be {','.join(COLUMNS)}")
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read label csv {path}: {error}") from None
    if not rows:
        raise DataError(f"{path} lists no class")
    for number, row in enumerate(rows):
        if row["index"] != str(number):
            raise DataError(f"{path} line {number + 2}: index '{row['index']}' where {number} was expected")
    mids, names = tuple(str(row["mid"]) for row in rows), tuple(str(row["display_name"]) for row in rows)
    if twice := [mid for mid, count in Counter(mids).items() if count > 1]:
        raise DataError(f"{path} gives mid {', '.join(twice)} twice")
    return Labels(mids, names)


def labels_of(names: Sequence[str]) -> Labels:
    """Classes by name; a manifest parts labels by commas, so a mid has none.

    Raises DataError for names that differ in commas and spaces alone.
    """
    mids = tuple("_".join(name.replace(",", " ").split()) for name in names)
    if twice := [mid for mid, count in Counter(mids).items() if count > 1]:
        raise DataError(
            f"several labels are written '{twice[0]}' without commas and spaces; name one of them otherwise"
        )
    return Labels(mids, tuple(names))


def label_text(labels: Labels) -> str:
    """The file's content."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(zip(range(len(labels.mids)), labels.mids, labels.names, strict=True))
    return buffer.getvalue()


def read_entries(path: Path) -> Sequence[Any]:
    """The clips as they are written, unchecked; raises DataError naming the file."""
    try:
        content = read_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read manifest {path}: {error}") from None
    entries = content.get("data") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise DataError(f'{path} must be an object whose key "data" holds the list of clips')
    return entries
