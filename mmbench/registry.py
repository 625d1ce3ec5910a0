"""Finds methods, corruptions and data sets: built-in folders, installed entry points and `--plugin` files.

Names and facts are read from each file's syntax tree, so listing imports no plugin and no torch; a file is imported
only when one of its entries is used. That is why decorator arguments must be literals, or `**NAME` of a literal
mapping at the top of the same file: what the rows of a family share.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from mmbench.cards import CorruptionCard, DatasetCard, MethodCard, OnlineCard, StrategyCard
from mmbench.errors import ConfigError, UnknownNameError

Card = TypeVar("Card", MethodCard, StrategyCard, OnlineCard, CorruptionCard, DatasetCard)
Registered = TypeVar("Registered", bound=Callable[..., Any])

GROUPS = {
    "method": "mmbench.methods",
    "strategy": "mmbench.strategies",
    "online": "mmbench.online",
    "corruption": "mmbench.corruptions",
    "dataset": "mmbench.datasets",
}
"""Entry-point group of each kind."""
ROOT = Path(__file__).resolve().parent.parent
_loaded: dict[tuple[str, str], Any] = {}  # (kind, name) -> class or function, filled by the decorators on import
_plugins: list[Path] = []


@dataclass(frozen=True)
class Origin:
    """Where an entry comes from: a module to import, or a file to load."""

    label: str
    module: str
    path: Path


@dataclass(frozen=True)
class Entry(Generic[Card]):
    card: Card
    origin: Origin
    definition: str = ""
    """The docstring of the class or function."""


@dataclass(frozen=True)
class Broken:
    """An installed entry point that could not be read; shown by `ls` and `doctor`, never fatal."""

    label: str
    reason: str


class Registry(Generic[Card]):
    """The entries of one kind, by name."""

    def __init__(self, kind: str, make: Callable[..., Card], folder: Path) -> None:
        self.kind = kind
        self.broken: list[Broken] = []
        self._make: Callable[..., Card] = make
        self._entries: dict[str, Entry[Card]] = {}
        self._imported: set[Origin] = set()
        self._built_in = {path for path in folder.glob("*.py") if path.name != "__init__.py"}
        for path in sorted(self._built_in):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            self._add(Origin("mmbench", module, path))
        for point in entry_points(group=GROUPS[kind]):
            self._add_entry_point(point)
        for path in _plugins:
            self._add(Origin(str(path), plugin_module(path), path))

    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def card(self, name: str) -> Card:
        return self.entry(name).card

    def entry(self, name: str) -> Entry[Card]:
        if name not in self._entries:
            raise UnknownNameError(self.kind, name, self._entries)
        return self._entries[name]

    def load(self, name: str) -> Any:
        """Import the entry's file and return the class or function it registers."""
        origin = self.entry(name).origin
        if origin not in self._imported:
            _import(origin)
            self._imported.add(origin)
        if (self.kind, name) not in _loaded:
            raise ConfigError(f"{origin.path} lists {self.kind} '{name}' but does not register it when imported")
        return _loaded[self.kind, name]

    def _add_entry_point(self, point: EntryPoint) -> None:
        label = f"{point.dist.name} {point.dist.version}" if point.dist else point.name
        try:
            spec = importlib.util.find_spec(point.module)
            if spec is None or spec.origin is None:
                raise ConfigError(f"no module '{point.module}'")
            if Path(spec.origin).resolve() not in self._built_in:
                self._add(Origin(label, point.module, Path(spec.origin)))
        except Exception as error:
            self.broken.append(Broken(f"{label}: {point.name}", f"{type(error).__name__}: {error}"))

    def _add(self, origin: Origin) -> None:
        for name, facts, definition in _decorated(origin.path, self.kind):
            if name in self._entries:
                other = self._entries[name].origin
                raise ConfigError(f"{self.kind} '{name}' is defined twice: in {other.path} and in {origin.path}")
            try:
                card = self._make(name, **facts)
            except TypeError as error:
                raise ConfigError(f"{origin.path}: {self.kind} '{name}': {error}") from None
            self._entries[name] = Entry(card, origin, definition)


def _decorated(path: Path, kind: str) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Name, facts and docstring of every top-level `@kind(...)` in a file, without running it."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except (OSError, SyntaxError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    shared = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    for node in tree.body:
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            continue
        for call in node.decorator_list:
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == kind:
                yield (*_literal_call(call, shared, path), ast.get_docstring(node) or "")


def _literal_call(call: ast.Call, shared: Mapping[str, ast.expr], path: Path) -> tuple[str, dict[str, Any]]:
    facts: dict[str, Any] = {}
    try:
        (name,) = (ast.literal_eval(argument) for argument in call.args)
        for keyword in call.keywords:
            if keyword.arg:
                facts[keyword.arg] = ast.literal_eval(keyword.value)
            else:
                facts |= ast.literal_eval(shared[ast.unparse(keyword.value)])
    except (ValueError, KeyError):
        raise ConfigError(
            f"{path}:{call.lineno}: decorator takes one name and literal facts only, or **NAME of a literal mapping"
        ) from None
    return str(name), facts


def _import(origin: Origin) -> None:
    if origin.module not in sys.modules and origin.module.startswith("mmbench_plugin_"):
        spec = importlib.util.spec_from_file_location(origin.module, origin.path)
        assert spec is not None and spec.loader is not None  # the file was read when it was listed
        module = importlib.util.module_from_spec(spec)
        sys.modules[origin.module] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[origin.module]
            raise
        return
    imported = importlib.import_module(origin.module)
    found = Path(str(imported.__file__)).resolve()
    if found != origin.path.resolve():
        raise ConfigError(
            f"'{origin.module}' was imported from {found}, not from {origin.path}: another folder of that name "
            "shadows it; start mmbench from another folder or rename the other one"
        )


def plugin_module(path: Path) -> str:
    """The module name of a plugin file: distinct for every content, so that two files never mix."""
    return f"mmbench_plugin_{path.stem}_{file_digest(path)[:12]}"


def file_digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"cannot read plugin {path}: {error.strerror}") from None


def use_plugins(paths: tuple[Path, ...]) -> None:
    """Add `--plugin` files for the rest of the process; called once, at the door."""
    for path in paths:
        resolved = path.resolve()
        if resolved.suffix != ".py":
            raise ConfigError(f"plugin {path} is not a .py file")
        file_digest(resolved)
        if resolved not in _plugins:
            _plugins.append(resolved)
    for cached in (methods, strategies, onlines, corruptions, datasets):
        cached.cache_clear()


def check_plugins() -> None:
    """Raise ConfigError for a `--plugin` file that registers nothing, which otherwise would go unnoticed."""
    for path in _plugins:
        if not any(True for kind in GROUPS for _ in _decorated(path, kind)):
            raise ConfigError(f"plugin {path} registers nothing; it needs a top-level @method(...) or @corruption(...)")


def plugins() -> tuple[Path, ...]:
    return tuple(_plugins)


@lru_cache(maxsize=1)
def methods() -> Registry[MethodCard]:
    return Registry("method", MethodCard.of, ROOT / "methods")


@lru_cache(maxsize=1)
def strategies() -> Registry[StrategyCard]:
    return Registry("strategy", StrategyCard.of, ROOT / "methods")


@lru_cache(maxsize=1)
def onlines() -> Registry[OnlineCard]:
    return Registry("online", OnlineCard.of, ROOT / "methods")


@lru_cache(maxsize=1)
def corruptions() -> Registry[CorruptionCard]:
    return Registry("corruption", CorruptionCard.of, ROOT / "corruptions")


@lru_cache(maxsize=1)
def datasets() -> Registry[DatasetCard]:
    return Registry("dataset", DatasetCard.of, ROOT / "mmbench" / "data")


def _decorator(
    kind: str, make: Callable[..., Any], name: str, facts: Mapping[str, Any]
) -> Callable[[Registered], Registered]:
    def register(registered: Registered) -> Registered:
        registered.card = make(name, **facts)  # type: ignore[attr-defined]
        _loaded[kind, name] = registered
        return registered

    return register


def method(name: str, **facts: Any) -> Callable[[Registered], Registered]:
    """Register a Method class; the arguments are the fields of MethodCard, as literals."""
    return _decorator("method", MethodCard.of, name, facts)


def strategy(name: str, **facts: Any) -> Callable[[Registered], Registered]:
    """Register a Strategy class; the arguments are the fields of StrategyCard, as literals."""
    return _decorator("strategy", StrategyCard.of, name, facts)


def online(name: str, **facts: Any) -> Callable[[Registered], Registered]:
    """Register an Online class; the arguments are the fields of OnlineCard, as literals."""
    return _decorator("online", OnlineCard.of, name, facts)


def corruption(name: str, **facts: Any) -> Callable[[Registered], Registered]:
    """Register a corruption function; the arguments are the fields of CorruptionCard, as literals."""
    return _decorator("corruption", CorruptionCard.of, name, facts)


def dataset(name: str, **facts: Any) -> Callable[[Registered], Registered]:
    """Register a data-set loader `DataConfig -> Source`; the arguments are the fields of DatasetCard, as literals."""
    return _decorator("dataset", DatasetCard.of, name, facts)
