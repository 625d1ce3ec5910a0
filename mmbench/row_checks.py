"""What a line of a suite must be before anything is built: known names and options, and parts that go together."""

from __future__ import annotations

from collections.abc import Sequence

from mmbench import registry
from mmbench.cards import MethodCard
from mmbench.config import MethodSpec, Regime
from mmbench.errors import ConfigError
from mmbench.method_options import resolve_options


def checked(method: MethodSpec) -> MethodCard:
    """The method's card; raises ConfigError or UnknownNameError for what the registries do not hold."""
    for kind, found in (("a training strategy", registry.strategies()), ("an online adapter", registry.onlines())):
        if method.name in found.names():
            raise ConfigError(f"'{method.name}' is {kind}; combine it with a method: lora-qv+mixed+{method.name}")
    card = registry.methods().card(method.name)
    resolve_options(card, method.options)
    for part in method.strategies:
        resolve_options(registry.strategies().card(part.name), part.options)
    if method.strategies and not card.trains:
        raise ConfigError(f"{method.title}: {method.name} does not train, so a training strategy has nothing to act on")
    if method.regimes and not card.trains:
        raise ConfigError(f"{method.title}: {method.name} does not train, so it has no regime; leave it away")
    if method.online:
        resolve_options(registry.onlines().card(method.online.name), method.online.options)
    return card


def check_blind(method: MethodSpec, regimes: Sequence[Regime | None]) -> None:
    """Raises ConfigError where the row has no case-wise states to answer blindly with."""
    if method.blind == "auto":
        return
    if "casewise" not in regimes:
        raise ConfigError(f"{method.title}: blind: {method.blind} is for case-wise states; add the regime casewise")
    if method.online:
        raise ConfigError(f"{method.title}: an online adapter needs one state; leave blind: {method.blind} away")


def check_shared(method: MethodSpec, card: MethodCard, devices: int) -> None:
    """Raises ConfigError where a training looks at all samples of a step, which several devices share."""
    if devices == 1 or not card.trains:
        return
    known = registry.strategies()
    whole = [part.name for part in method.strategies if known.card(part.name).whole_step]
    whole += [method.name] if card.needs.batch_dependent else []
    if whole:
        raise ConfigError(
            f"{method.title}: {whole[0]} looks at all samples of a step together, and budget.devices: {devices} shares "
            "each step among devices; set it to 1 or leave the method out"
        )
