"""Options of a method, strategy or adapter: defaults from its card, changes from the suite. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmbench.cards import MethodCard, OnlineCard, StrategyCard
from mmbench.errors import ConfigError, UnknownNameError


def resolve_options(card: MethodCard | StrategyCard | OnlineCard, given: Mapping[str, Any]) -> dict[str, Any]:
    """The card's options with the given ones in place.

    Raises ConfigError naming an unknown option or a value of another type.
    """
    resolved = dict(card.options)
    for key, value in given.items():
        if key not in card.options:
            raise UnknownNameError(f"option of {card.name}", key, card.options)
        default = card.options[key]
        fits = isinstance(value, type(default)) and isinstance(value, bool) == isinstance(default, bool)
        if not fits and not (isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool)):
            raise ConfigError(
                f"option {key} of {card.name} must be {type(default).__name__}, like {default!r}; got {value!r}"
            )
        if type(default) is int and value < 1:
            raise ConfigError(f"option {key} of {card.name} is a count, at least 1; got {value}")
        resolved[key] = float(value) if isinstance(default, float) else value  # 1 and 1.0 are one setting
    return resolved
