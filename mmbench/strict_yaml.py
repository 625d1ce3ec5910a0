"""YAML as a person means it: plain values only, no key twice, and nothing that unfolds or nests without end."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable
from typing import Any

import yaml
from yaml.constructor import ConstructorError

MOST_CHARACTERS = 2**18
MOST_DEPTH = 50
MOST_VALUES = 20_000
"""With every alias written out: a few lines of aliases to aliases stand for more than any memory holds."""
LARGEST_INTEGER = 2**63
PLAIN = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map"))


class StrictLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice instead of keeping the last one, and whatever JSON could not hold."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._sizes: dict[yaml.Node, int] = {}  # values that each composed node stands for

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._depth += 1
        alias, mark = self.check_event(yaml.AliasEvent), self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self._depth > MOST_DEPTH:
            raise ConstructorError(None, None, f"nests more than {MOST_DEPTH} levels deep", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is None:
            return None
        if alias and node not in self._sizes:  # what it names is still being read
            raise ConstructorError(None, None, "holds an alias of itself", mark)
        size = self._sizes.setdefault(node, 1 + sum(self._sizes[part] for part in _parts(node)))
        if size > MOST_VALUES:
            raise ConstructorError(None, None, f"unfolds to more than {MOST_VALUES} values", mark)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag not in PLAIN:
            kind = node.tag.rpartition(":")[2]
            raise ConstructorError(None, None, f"a value of the kind '{kind}'; put text in quotes", node.start_mark)
        value = super().construct_object(node, deep)
        reason = _unusable(value)
        if reason:
            raise ConstructorError(None, None, reason, node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = (key for key, _ in node.value if key.tag in PLAIN)
        keys = Counter(key for key in (self.construct_object(name, deep=True) for name in names) if _hashable(key))
        twice = [str(key) for key, count in keys.items() if count > 1]
        if twice:
            raise ConstructorError(None, None, f"key given twice: {', '.join(twice)}", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(text: str | bytes) -> Any:
    """The content of one document. Raises ValueError in one line for what is no YAML or not plain."""
    text = text if isinstance(text, str) else text.decode()
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"{len(text)} characters; at most {MOST_CHARACTERS} are read")
    try:
        return yaml.load(text, StrictLoader)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError) as e:
        # The loader itself stumbles over values that only look like numbers, and over characters beyond Unicode.
        raise ValueError(" ".join(str(e).split()) or type(e).__name__) from None


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _hashable(key: object) -> bool:
    return isinstance(key, Hashable)


def _unusable(value: object) -> str | None:
    """Why a value cannot go into a record or name a file."""
    if isinstance(value, int) and abs(value) >= LARGEST_INTEGER:
        return "an integer of more than 64 bits"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is no finite number"
    if isinstance(value, str) and ("\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value)):
        return "text with a character that no text holds"
    return None
