"""Closed forms of parameter counts: arithmetic over the sizes of a backbone, evaluated without torch.

Names: d width; E blocks of each encoder; U joint blocks; N = 2E + U; H heads; p patch size; Ta, Tv tokens of audio and
vision; F live parameters of the fusion block; X directions of its cross-attention, 0 to 2; C classes; and every option
of the method by its name.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping

from mmbench.errors import ConfigError

_BINARY: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}
_FUNCTIONS: Mapping[str, Callable[..., float]] = {"min": min, "max": max}


def evaluate(formula: str, names: Mapping[str, float]) -> int:
    """The value of a formula of numbers, names, + - * // **, min and max.

    Raises ConfigError naming what it does not understand.
    """
    try:
        return int(_value(ast.parse(formula, mode="eval").body, names))
    except (SyntaxError, ZeroDivisionError, OverflowError) as error:
        raise ConfigError(f"the formula '{formula}' cannot be evaluated: {error}") from None


def _value(node: ast.expr, names: Mapping[str, float]) -> float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return float(node.value) if isinstance(node.value, float) else int(node.value)  # type: ignore[arg-type]
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _BINARY[type(node.op)](_value(node.left, names), _value(node.right, names))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS:
        return _FUNCTIONS[node.func.id](*(_value(argument, names) for argument in node.args))
    known = ", ".join(sorted(names))
    raise ConfigError(f"'{ast.unparse(node)}' has no place in a formula; known names: {known}")


def numbers(options: Mapping[str, object]) -> dict[str, float]:
    """The options that can stand in a formula."""
    return {name: value for name, value in options.items() if isinstance(value, (int, float))}
