"""The parameters behind a severity, read off the tables that stand beside a corruption's function."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any

Function = Any  # a plain function, which typing cannot tell from other callables


def severity_words(function: Function, severity: int) -> tuple[str, ...]:
    """The rows for this severity, as `snr db 10`, of every module-level table that the function or its helpers name.

    A table is a mapping whose keys are severities, 1 to 5. Nothing for a function that keeps its numbers elsewhere.
    """
    tables = dict(_tables(inspect.unwrap(function), set()))
    rows = {name: table[severity] for name, table in tables.items() if severity in table}
    return tuple(f"{name.lower().replace('_', ' ')} {_numbers(row)}" for name, row in rows.items())


def _tables(function: Function, seen: set[Function]) -> Iterator[tuple[str, Mapping[int, Any]]]:
    seen.add(function)
    for name in _names(function.__code__):
        value = function.__globals__.get(name)
        if isinstance(value, Mapping) and value and set(value) <= {1, 2, 3, 4, 5}:
            yield name, value
        elif isinstance(value, FunctionType) and value not in seen and _package(value) == _package(function):
            yield from _tables(value, seen)


def _names(code: CodeType) -> Iterator[str]:
    """What a function and the functions within it refer to."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _package(function: FunctionType) -> str:
    return function.__module__.partition(".")[0]


def _numbers(row: Any) -> str:
    values = row if isinstance(row, (tuple, list)) else (row,)
    return " ".join(f"{value:g}" if isinstance(value, (int, float)) else str(value) for value in values)
