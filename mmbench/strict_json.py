"""JSON of others, read so that no later step stumbles: finite numbers of ordinary size, text that is text."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator

MOST_DEPTH = 50
LARGEST_INTEGER = 2**63


def read_json(text: str | bytes) -> Any:
    """The value that a text holds; raises ValueError for what is none, NaN, infinite or an integer beyond 64 bits."""
    text = text if isinstance(text, str) else text.decode()
    try:
        value = json.loads(text, parse_int=_integer, parse_float=_finite, parse_constant=_finite)
        if "\\ud" in text or "\\uD" in text:  # may spell half of a character, which no file takes
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nests too deep") from None
    return value


def read_events(content: bytes) -> Iterator[dict[str, Any]]:
    """The objects of a log, one a line; a line that is cut, or is no event, is passed over."""
    for line in content.splitlines():
        try:
            event = read_json(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            yield event


def _integer(text: str) -> int:
    return _bounded(int(text) if len(text) < 24 else LARGEST_INTEGER)


def _bounded(value: int) -> int:
    if abs(value) >= LARGEST_INTEGER:
        raise ValueError("holds an integer of more than 64 bits")
    return value


def _finite(text: str | float) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{str(text)[:40]} is no finite number")
    return value


def _checked(value: dict[str, Any]) -> dict[str, Any]:
    _check(value, 0)
    return value


def _check(part: Mapping[str, Any] | list[Any] | tuple[Any, ...], depth: int) -> None:
    """Leaves are looked at in place: a board holds millions, and a call for each would take longer than all else."""
    if depth > MOST_DEPTH:
        raise ValueError(f"nests more than {MOST_DEPTH} levels deep")
    for entry in (*part, *part.values()) if isinstance(part, Mapping) else part:
        if isinstance(entry, str):
            if not entry.isascii():
                entry.encode()  # UnicodeEncodeError is a ValueError
        elif isinstance(entry, float):
            _finite(entry)
        elif isinstance(entry, int):
            _bounded(entry)
        elif isinstance(entry, (Mapping, list, tuple)):
            _check(entry, depth + 1)


Plain = Annotated[dict[str, Any], AfterValidator(_checked)]
"""Values that no model describes, as far as every reader and writer can take them."""


def _named(value: dict[str, Any]) -> dict[str, Any]:
    for key, fits in {"cases": _is_case, "tracks": _is_text, "streams": _is_text}.items():
        entries = value.get(key, ())
        if not isinstance(entries, (list, tuple)) or not all(map(fits, entries)):
            raise ValueError(f"what it writes out as {key} is no list of them")
    if not isinstance(value.get("split") or {}, Mapping):
        raise ValueError("what it writes out as split is no mapping")
    return value


def _is_case(entry: object) -> bool:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        return False
    kinds = {"audio": str, "vision": str, "missing": Mapping}
    if not all(entry.get(key) is None or isinstance(entry[key], kind) for key, kind in kinds.items()):
        return False
    shares = (entry["missing"].get(key, 0) for key in ("rate", "audio_share")) if entry.get("missing") else ()
    return all(isinstance(share, (int, float)) for share in shares)


def _is_text(entry: object) -> bool:
    return isinstance(entry, str)


Contents = Annotated[Plain, AfterValidator(_named)]
"""What a trial's names stand for: of the keys that readers look into, what they take them for."""
