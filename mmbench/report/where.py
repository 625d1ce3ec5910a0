"""A filter over the rows of tables: comparisons joined by and, or, not. It is read and walked, never run as code.

    mean >= 70 and (family == 'lora' or method ~ 'prompt') and not 'mixup' in strategies

A name is a bare word (`mean`, `noise-to-audio`, `kept/missing`) or stands in backticks (`rain, without scenes`).
A row without a value passes no comparison with it.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from mmbench.errors import ConfigError, near_words

Value = float | str | tuple[str, ...] | None
Values = Mapping[str, Value]
Test = Callable[[Values], bool]
Kind = Literal["number", "text", "texts"]

_TOKEN = re.compile(
    r"""\s*(?:(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?=[\s()\[\],=!<>~]|$)
    |(?P<text>'[^']*'|"[^"]*")|(?P<quoted>`[^`]+`)|(?P<sign>==|!=|<=|>=|[=<>~()\[\],])
    |(?P<word>[^\s()\[\],'"`=!<>~]+))""",
    re.VERBOSE,
)
_SAME: dict[str, Callable[[object, object], bool]] = {"==": operator.eq, "=": operator.eq, "!=": operator.ne}
_ORDER: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_RESERVED = ("and", "or", "not", "in")
_DEEPEST = 50
_LONGEST_SHOWN = 200
_GRAMMAR = "allowed are numbers, 'text', names, == != < <= > >= ~ (holds the text), in (...), and, or, not, brackets"


@dataclass(frozen=True)
class _Token:
    kind: str
    """number, text, name, sign, one of the reserved words, or end."""
    text: str
    at: int
    """Position in the expression, from 1."""


@dataclass(frozen=True)
class _Operand:
    """A value, or a name that has one in every row."""

    kind: Kind
    of: Callable[[Values], Value]
    at: int


def parse(source: str, kinds: Mapping[str, Kind]) -> Test:
    """A test of one row's values; `kinds` holds every name there is.

    Raises ConfigError that names the position and what is allowed.
    """
    parser = _Parser(source, _tokens(source), kinds)
    found = parser.either()
    parser.expect("end", "the end, and, or")
    return found


def names_in(source: str) -> tuple[str, ...]:
    """The names that an expression holds; raises ConfigError where it cannot be read."""
    return tuple(token.text for token in _tokens(source) if token.kind == "name")


def _tokens(source: str) -> list[_Token]:
    tokens: list[_Token] = []
    at = 0
    last = len(source.rstrip())
    while at < last:
        found = _TOKEN.match(source, at)
        if found is None:
            start = last - len(source[at:last].lstrip())
            raise _error(source, start + 1, f"cannot read {source[start]!r}")
        kind = str(found.lastgroup)
        text = found.group(kind)
        if kind in ("text", "quoted"):
            text = text[1:-1]
        if kind == "word":
            kind = text if text in _RESERVED else "name"
        tokens.append(_Token("name" if kind == "quoted" else kind, text, found.start(found.lastgroup or 0) + 1))
        at = found.end()
    return [*tokens, _Token("end", "the end", len(source) + 1)]


def _error(source: str, at: int, what: str) -> ConfigError:
    shown = source if len(source) <= _LONGEST_SHOWN else f"{source[:_LONGEST_SHOWN]}..."
    return ConfigError(f"filter {shown!r}, position {at}: {what}; {_GRAMMAR}")


class _Parser:
    """One method a rule of the grammar, the loosest first."""

    def __init__(self, source: str, tokens: list[_Token], kinds: Mapping[str, Kind]) -> None:
        self.source = source
        self.tokens = tokens
        self.kinds = kinds
        self.next = 0
        self.depth = 0

    @property
    def token(self) -> _Token:
        return self.tokens[self.next]

    def take(self, *texts: str) -> _Token | None:
        """The next token if it is one of these words or signs."""
        token = self.token
        if token.kind not in ("sign", *_RESERVED) or token.text not in texts:
            return None
        self.next += 1
        return token

    def expect(self, text: str, words: str) -> None:
        if text == "end" and self.token.kind == "end":
            return
        if self.take(text) is None:
            raise _error(self.source, self.token.at, f"{words} expected, found {self.token.text}")

    def either(self) -> Test:
        tests = [self.both()]
        while self.take("or"):
            tests.append(self.both())
        return tests[0] if len(tests) == 1 else lambda values: any(test(values) for test in tests)

    def both(self) -> Test:
        tests = [self.negated()]
        while self.take("and"):
            tests.append(self.negated())
        return tests[0] if len(tests) == 1 else lambda values: all(test(values) for test in tests)

    def negated(self) -> Test:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise _error(self.source, self.token.at, f"more than {_DEEPEST} brackets or nots within each other")
        if self.take("not"):
            test = self.negated()
            found: Test = lambda values: not test(values)  # noqa: E731
        elif self.take("("):
            found = self.either()
            self.expect(")", "')', and, or")
        else:
            found = self.comparison()
        self.depth -= 1
        return found

    def comparison(self) -> Test:
        left = self.operand()
        negated = self.take("not") is not None
        if self.take("in"):
            test = self.membership(left)
            return (lambda values: not test(values)) if negated else test
        sign = None if negated else self.take(*_SAME, *_ORDER, "~")
        if sign is None:
            raise _error(self.source, self.token.at, f"a comparison expected, found {self.token.text}")
        return self.compared(left, sign, self.operand())

    def compared(self, left: _Operand, sign: _Token, right: _Operand) -> Test:
        numbers = (left.kind == "number", right.kind == "number")
        if sign.text == "~":
            if any(numbers):
                raise _error(self.source, sign.at, "~ looks for text within text")
            return lambda v: _with(left.of(v), right.of(v), _holds)
        if numbers[0] != numbers[1]:
            raise _error(self.source, sign.at, f"{sign.text} between a {left.kind} and a {right.kind}")
        if sign.text in _SAME:
            same = _SAME[sign.text]
            return lambda v: _with(left.of(v), right.of(v), lambda a, b: same(_joined(a), _joined(b)))
        if not all(numbers):
            raise _error(self.source, sign.at, f"{sign.text} compares numbers")
        order = _ORDER[sign.text]
        return lambda v: _with(left.of(v), right.of(v), order)

    def membership(self, left: _Operand) -> Test:
        """`x in ('a', 'b')`, or `'a' in strategies`."""
        opening = self.take("(", "[")
        if opening is None:
            right = self.operand()
            if right.kind != "texts" or left.kind != "text":
                raise _error(self.source, right.at, "in needs a list in brackets, or 'text' in strategies")
            return lambda v: _with(left.of(v), right.of(v), lambda a, b: a in b)
        items = [self.operand()]
        while self.take(","):
            items.append(self.operand())
        self.expect({"(": ")", "[": "]"}[opening.text], f"a comma or the end of the list after '{opening.text}'")
        odd = [item for item in items if (item.kind == "number") != (left.kind == "number")]
        if odd:
            raise _error(self.source, odd[0].at, f"a {left.kind} expected in this list")
        return lambda v: any(_with(left.of(v), i.of(v), lambda a, b: _joined(a) == _joined(b)) for i in items)

    def operand(self) -> _Operand:
        token = self.token
        self.next += token.kind != "end"
        if token.kind == "number":
            number = float(token.text)
            return _Operand("number", lambda values: number, token.at)
        if token.kind == "text":
            return _Operand("text", lambda values: token.text, token.at)
        if token.kind != "name":
            raise _error(self.source, token.at, f"a name, a number or 'text' expected, found {token.text}")
        if token.text not in self.kinds:
            near = near_words(token.text, self.kinds)
            raise _error(self.source, token.at, f"no column {token.text!r} ({near}); text stands in quotes")
        return _Operand(self.kinds[token.text], lambda values: values.get(token.text), token.at)


def _with(left: Value, right: Value, test: Callable[..., bool]) -> bool:
    """False where a side has no value."""
    return left is not None and right is not None and test(left, right)


def _holds(whole: Value, part: Value) -> bool:
    return str(_joined(part)).casefold() in str(_joined(whole)).casefold()


def _joined(value: Value) -> Value:
    return "+".join(value) if isinstance(value, tuple) else value
