"""Cases: named pairs of corruptions, written as data and checked against the registry without importing any.

A case may be written by its corruption alone: `imagenet_c/fog@3`; `avc/rain@3` for the pair of `avc/rain-sound` and
`avc/rain-sight`. In lists `@1-5` stands for five cases and `avc/*` for every pair, or corruption, of a family.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import lru_cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Literal, cast

import yaml

from mmbench.cards import NOT_APPLICABLE, CorruptionCard, Modality
from mmbench.errors import ConfigError, UnknownNameError
from mmbench.registry import corruptions

Which = Literal["audio", "vision", "mixed"]
CASE_KEYS = ("name", "audio", "vision", "missing")
MISSING_KEYS = ("which", "rate", "audio_share", "audio_fill", "vision_fill")
HALVES: Mapping[Modality, str] = MappingProxyType({"audio": "-sound", "vision": "-sight"})
"""How the two corruptions of a pair are registered, after the name of the pair."""
RESERVED = frozenset(("mean", "worst", "ci_low", "ci_high", "rank")) | frozenset(
    ("method", "regime", "registered", "family", "strategies", "online", "source")
)
"""What tables call their other columns, and what rows are filtered by: no case can have such a name."""
RANGE = re.compile(r"([0-9]{1,3})-([0-9]{1,3})")


@dataclass(frozen=True)
class Missing:
    """How many samples lack a modality, which one, and what stands in its place."""

    which: Which
    rate: float = 1.0
    audio_share: float = 0.5
    """Of the samples that lack something under `mixed`, the share that lacks audio."""
    audio_fill: str = "silence"
    vision_fill: str = "black"

    def fill(self, modality: Modality) -> str:
        """Name of the registered corruption that fills the gap."""
        return f"missing/{modality}-{self.audio_fill if modality == 'audio' else self.vision_fill}"

    def counts(self, samples: int) -> tuple[int, int]:
        """Samples without audio and without vision, of `samples`: exact, with the odd one lacking audio."""
        absent = int(exact(self.rate) * samples)
        no_vision = int(self.vision_share() * absent)
        return absent - no_vision, no_vision

    def vision_share(self) -> Fraction:
        fixed = {"audio": Fraction(0), "vision": Fraction(1)}
        return fixed[self.which] if self.which in fixed else 1 - exact(self.audio_share)


@dataclass(frozen=True)
class Case:
    """One condition under which a method is trained or tested; corruptions as `family/name[@severity]`."""

    name: str
    audio: str | None = None
    vision: str | None = None
    missing: Missing | None = None

    @property
    def is_complete(self) -> bool:
        return self.audio is None and self.vision is None and self.missing is None

    def severity(self) -> int | None:
        """The larger severity of its corruptions; None where neither has a scale."""
        scales = [parse_reference(text).severity for text in (self.audio, self.vision) if text]
        return max(scales, default=0) or None


@dataclass(frozen=True)
class Reference:
    """A registered corruption at one severity; 0 where it has no scale."""

    name: str
    severity: int
    card: CorruptionCard


def exact(decimal: float) -> Fraction:
    """The number as written: 0.29 of 100 is 29, not the 28 of binary floating point."""
    return Fraction(str(decimal))


def parse_reference(text: str) -> Reference:
    """Read `family/name[@severity]`; raises UnknownNameError or ConfigError."""
    name, at, scale = text.partition("@")
    card = corruptions().card(name)
    if card.severities == (0,):
        if at:
            raise ConfigError(f"corruption '{name}' has no severities; write it without '@{scale}'")
        return Reference(name, 0, card)
    known = ", ".join(str(severity) for severity in card.severities)
    if not at:
        raise ConfigError(f"corruption '{name}' needs a severity: write '{name}@N' with N one of {known}")
    if scale not in {str(severity) for severity in card.severities}:
        raise ConfigError(f"corruption '{name}' has the severities {known}; got '{scale}'")
    return Reference(name, int(scale), card)


def unmet(case: Case, still_pictures: bool, pictures: int = 1) -> str | None:
    """Why a case means nothing on data with so many pictures a sample; None where it applies."""
    cards = [parse_reference(text).card for text in (case.audio, case.vision) if text]
    if still_pictures and any(card.requires == "moving-pictures" for card in cards):
        return f"{NOT_APPLICABLE}still pictures"
    if pictures == 1 and any(card.modality == "vision" and card.stage == "sample" for card in cards):
        return f"{NOT_APPLICABLE}one picture a sample"
    return None


def parse_case(entry: str | Mapping[str, Any]) -> Case:
    """A case by its name or its corruption, or written out as `{name, audio, vision, missing}`.

    Corruptions without a name are called by their own: `read/rain+imagenet_c/fog@3`.

    Raises UnknownNameError for a name nobody defined and ConfigError, naming the case, for anything that does not fit.
    """
    if isinstance(entry, str):
        known = named_cases()
        if entry in known:
            return known[entry]
        if "/" in entry:
            return _of_corruption(entry)
        raise UnknownNameError("case", entry, known)
    name = entry.get("name", _own_name(entry)) if isinstance(entry, Mapping) else None
    if not isinstance(entry, Mapping) or not isinstance(name, str) or not name.strip():
        raise ConfigError(f"a case is a name or a mapping with a 'name' or corruptions; got {entry!r}")
    _known_keys(name, entry, CASE_KEYS)
    missing = _missing(name, entry["missing"]) if entry.get("missing") is not None else None
    return Case(name, _corruption(name, entry, "audio"), _corruption(name, entry, "vision"), missing)


def _own_name(entry: Mapping[str, Any]) -> str:
    """What it consists of, one severity told once; empty where something is missing, which needs a name."""
    texts = [str(entry[key]) for key in ("audio", "vision") if entry.get(key)]
    scales = {text.partition("@")[2] for text in texts}
    if len(texts) == 2 and len(scales) == 1:
        texts[0] = texts[0].partition("@")[0]
    return "" if entry.get("missing") else "+".join(texts)


def case_data(case: Case) -> dict[str, Any]:
    """A case as plain data that `parse_case` reads back."""
    return {key: value for key, value in asdict(case).items() if value is not None}


def parse_cases(entries: Iterable[str | Mapping[str, Any]]) -> tuple[Case, ...]:
    """Cases in order, sets and ranges expanded, repeats dropped.

    Raises ConfigError if a name stands for two cases, or for something else in tables.
    """
    found: dict[str, Case] = {}
    for entry in entries:
        for case in map(parse_case, _expanded(entry) if isinstance(entry, str) else (entry,)):
            if found.setdefault(case.name, case) != case:
                raise ConfigError(f"case '{case.name}' is given twice, with different contents; rename one of them")
            if case.name in RESERVED:
                raise ConfigError(f"case '{case.name}': tables have a column of this name; rename the case")
            if case.name == "complete" and not case.is_complete:
                raise ConfigError("case 'complete' is the undamaged one everywhere; rename this one")
    return tuple(found.values())


def pairs() -> tuple[str, ...]:
    """Names under which a corruption of the sound and one of the picture are registered as a pair."""
    names = corruptions().names()
    sound, sight = HALVES["audio"], HALVES["vision"]
    stems = (name.removesuffix(sound) for name in names if name.endswith(sound))
    return tuple(stem for stem in stems if stem + sight in names)


def _of_corruption(entry: str) -> Case:
    """`family/name[@severity]` of a corruption or a pair as the case that consists of it."""
    name, at, scale = entry.partition("@")
    known = corruptions().names()
    if name in known:
        return parse_case({"name": entry, corruptions().card(name).modality: entry})
    if name in pairs():
        return parse_case({"name": entry, **{half: f"{name}{end}{at}{scale}" for half, end in HALVES.items()}})
    raise UnknownNameError("corruption", name, [*known, *pairs()])


def _expanded(entry: str) -> Iterator[str]:
    """The cases that an entry of a list stands for."""
    if entry in named_sets():
        yield from (case for member in named_sets()[entry] for case in _expanded(member))
        return
    if entry not in named_cases() and "/" not in entry:
        raise UnknownNameError("case or set of cases", entry, [*named_cases(), *named_sets()])
    name, at, scale = entry.partition("@")
    names = family_members(name.removesuffix("*")) if name.endswith("/*") else (name,)
    bounds = RANGE.fullmatch(scale)
    if bounds is None:
        yield from (f"{name}{at}{scale}" for name in names)
        return
    low, high = int(bounds[1]), int(bounds[2])
    if low > high:
        raise ConfigError(f"case '{entry}': a range of severities begins with the smaller one, '@{high}-{low}'")
    yield from (f"{name}@{severity}" for name in names for severity in range(low, high + 1))


def family_members(prefix: str) -> tuple[str, ...]:
    """Pairs and single corruptions whose names begin with `family/`; halves count as their pair.

    Raises UnknownNameError if there are none.
    """
    whole = pairs()
    halves = {pair + end for pair in whole for end in HALVES.values()}
    names = (*whole, *(name for name in corruptions().names() if name not in halves))
    found = tuple(name for name in names if name.startswith(prefix))
    if not found:
        families = {name.partition("/")[0] for name in names}
        raise UnknownNameError("family of corruptions", prefix.rstrip("/"), families)
    return found


@lru_cache(maxsize=1)
def named_cases() -> Mapping[str, Case]:
    """The cases that come with the package, by name."""
    return MappingProxyType(
        {name: parse_case({"name": name, **(body or {})}) for name, body in _shipped()["cases"].items()}
    )


@lru_cache(maxsize=1)
def named_sets() -> Mapping[str, tuple[str, ...]]:
    """Lists of cases that are usually run together, as they are written in a suite."""
    return MappingProxyType({name: tuple(cases) for name, cases in _shipped()["sets"].items()})


def _shipped() -> dict[str, dict[str, Any]]:
    text = files("corruptions").joinpath("cases.yaml").read_text(encoding="utf-8")
    return cast(dict[str, dict[str, Any]], yaml.safe_load(text))


def _corruption(case: str, entry: Mapping[str, Any], modality: Modality) -> str | None:
    text = entry.get(modality)
    if text is None:
        return None
    if not isinstance(text, str):
        raise ConfigError(f"case '{case}': {modality} must be 'family/name[@severity]', got {text!r}")
    try:
        card = parse_reference(text).card
    except ConfigError as error:
        raise ConfigError(f"case '{case}': {error}") from None
    if card.modality != modality:
        raise ConfigError(f"case '{case}': '{card.name}' corrupts {card.modality}; write it under '{card.modality}'")
    if card.stage == "missing":
        raise ConfigError(f"case '{case}': '{card.name}' fills a gap; write missing: {{which: {modality}}}")
    return text


def _missing(case: str, body: Any) -> Missing:
    if not isinstance(body, Mapping) or body.get("which") not in ("audio", "vision", "mixed"):
        raise ConfigError(f"case '{case}': missing needs 'which': audio, vision or mixed; got {body!r}")
    _known_keys(case, body, MISSING_KEYS)
    for key in ("rate", "audio_share"):
        share = body.get(key, 0.5)
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise ConfigError(f"case '{case}': missing.{key} must lie between 0 and 1, got {share!r}")
    missing = Missing(**body)
    modalities: tuple[Modality, Modality] = ("audio", "vision")
    for modality in modalities:
        _known_fill(case, missing, modality)
    return missing


def _known_fill(case: str, missing: Missing, modality: Modality) -> None:
    name = missing.fill(modality)
    known = [entry for entry in corruptions().names() if entry.startswith(f"missing/{modality}-")]
    if name not in known:
        choices = ", ".join(entry.split("-", 1)[1] for entry in known)
        value = name.split("-", 1)[1]
        raise ConfigError(f"case '{case}': no {modality}_fill '{value}'; choose one of: {choices}")


def _known_keys(case: str, body: Mapping[str, Any], known: tuple[str, ...]) -> None:
    unknown = [str(key) for key in body if key not in known]
    if unknown:
        raise ConfigError(f"case '{case}': unknown key '{unknown[0]}'; known: {', '.join(known)}")
