"""Reading suite files: strict YAML, `--set` overrides, errors that name the key and the near ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mmbench.config import (
    BackboneSpec,
    Budget,
    Config,
    DataConfig,
    MethodSpec,
    OptimConfig,
    PartSpec,
    SplitConfig,
    Suite,
)
from mmbench.errors import ConfigError, near_words
from mmbench.files import read_plain
from mmbench.layout import SUITE_BYTES
from mmbench.strict_yaml import read_yaml


def load_suite(path: Path, overrides: tuple[str, ...] = ()) -> Suite:
    """Read a suite file; `overrides` are `budget.epochs=2` strings.

    Raises ConfigError naming the file, the key and the value.
    """
    try:
        content = read_yaml(read_plain(path, SUITE_BYTES))
    except OSError as error:
        raise ConfigError(f"cannot read suite {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"suite {path} is not valid YAML: {error}") from None
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
    "strategies": PartSpec,
    "online": PartSpec,
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
    try:
        given = read_yaml(value)
    except ValueError as error:
        raise ConfigError(f"--set {text}: the value is not valid YAML: {error}") from None
    *parents, last = key.split(".")
    target: Any = content
    try:
        for parent in parents:
            target = target[int(parent)] if isinstance(target, list) else target.setdefault(parent, {})
        target[int(last) if isinstance(target, list) else last] = given
    except (AttributeError, TypeError, ValueError, IndexError):
        raise ConfigError(
            f"--set {text}: the suite has no such place; lists take numbers, datasets.0.root=..."
        ) from None


def _resolve(suite: Suite, folder: Path) -> Suite:
    """Make every relative path absolute, counted from the suite file."""

    def absolute(path: Path | None) -> Path | None:
        try:
            return None if path is None else (folder / path.expanduser()).resolve()
        except (OSError, RuntimeError) as error:  # a user that does not exist, a loop of links, too long a name
            raise ConfigError(f"suite: '{path!s:.200}' cannot be a path: {error!s:.200}") from None

    datasets = tuple(
        d.model_copy(update={key: absolute(getattr(d, key)) for key in ("root", "manifest", "label_csv")})
        for d in suite.datasets
    )
    backbones = tuple(
        b.model_copy(update={"path": absolute(b.path), "init": absolute(b.init)}) for b in suite.backbones
    )
    places = {"assets": absolute(suite.assets), "frozen": absolute(suite.frozen)}
    return suite.model_copy(update={"datasets": datasets, "backbones": backbones, **places})
