"""What the cases of a board stand for: which corruption, of which family, how strong; and how they are grouped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

from mmbench.report.comparable import Same, Selection

CLEAN = "complete"
MISSING = "missing"
OTHER = "other"
"""Family of a case that no record writes out and whose name tells nothing."""
_FILLS = {"audio": "silence", "vision": "black"}


@dataclass(frozen=True)
class Condition:
    """One case, read from what the records say it contains."""

    case: str
    corruption: str
    """The same for every severity or rate; empty for undamaged samples."""
    family: str = ""
    scale: Literal["", "severity", "rate"] = ""
    level: float = 0.0
    """Severity 1..5, or the share of samples that lack a modality; 0 without a scale."""

    @property
    def clean(self) -> bool:
        return not self.corruption


@dataclass(frozen=True)
class Group:
    """The cases of one corruption, the weakest first."""

    label: str
    family: str
    conditions: tuple[Condition, ...]

    @cached_property
    def cases(self) -> tuple[str, ...]:
        return tuple(condition.case for condition in self.conditions)


def conditions_of(selection: Selection) -> tuple[Condition, ...]:
    """Every case in the suite's order; its contents count, and its name only where no record has them."""
    return _conditions_of(Same(selection))


@lru_cache(maxsize=8)
def _conditions_of(same: Same[Selection]) -> tuple[Condition, ...]:
    selection = same.thing
    written = {entry["name"]: entry for record in selection.records for entry in _entries(record.trial.contents)}
    return tuple(read_condition(written.get(case) or _from_name(case)) for case in selection.cases)


def _entries(contents: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    return (entry for entry in contents.get("cases", ()) if isinstance(entry, Mapping) and entry.get("name"))


def _from_name(case: str) -> Mapping[str, Any]:
    """`complete` and `family/name@severity` say what they are; any other name is a corruption of its own."""
    return {"name": case} if case == CLEAN else {"name": case, "vision": case}


def read_condition(entry: Mapping[str, Any]) -> Condition:
    """A case as written out in a record: `{name, audio, vision, missing}`."""
    name = str(entry["name"])
    references = [str(entry[key]) for key in ("audio", "vision") if entry.get(key)]
    missing: Mapping[str, Any] = entry.get("missing") or {}
    rate = float(missing.get("rate", 1.0)) if missing else 0.0
    if not references:
        return Condition(name, _missing_words(missing), MISSING, "rate", rate) if rate else Condition(name, "")
    absent = [f"{_missing_words(missing)} {rate:g}"] if rate else []
    families = [text.partition("/")[0] if "/" in text else OTHER for text in references]
    family = "+".join(dict.fromkeys([*families, *([MISSING] if rate else [])]))
    levels = {text.partition("@")[2] for text in references}
    level = levels.pop() if len(levels) == 1 else ""
    if not level.isdecimal():  # no scale, or two severities at once: a corruption of its own
        return Condition(name, " + ".join([*references, *absent]), family)
    return Condition(
        name, " + ".join([*(r.partition("@")[0] for r in references), *absent]), family, "severity", float(level)
    )


def _missing_words(missing: Mapping[str, Any]) -> str:
    """`missing/mixed`, and every setting that is not the usual one."""
    which = str(missing.get("which", "mixed"))
    used = _FILLS if which == "mixed" else {which: _FILLS.get(which, "")}
    odd = [f"{m} {fill}" for m, usual in used.items() if (fill := missing.get(f"{m}_fill", usual)) != usual]
    share = float(missing.get("audio_share", 0.5))
    odd += [f"{share:.0%} audio"] if which == "mixed" and share != 0.5 else []
    return f"{MISSING}/{which}" + (f" ({', '.join(odd)})" if odd else "")


def corruptions_of(conditions: Sequence[Condition]) -> tuple[Group, ...]:
    """One group a corruption, in the order of the cases; undamaged samples are in none."""
    groups: dict[str, list[Condition]] = {}
    for condition in conditions:
        if not condition.clean:
            groups.setdefault(condition.corruption, []).append(condition)
    labels = {corruption: _label(corruption, members) for corruption, members in groups.items()}
    taken = Counter(labels.values())
    return tuple(
        Group(
            labels[corruption] if taken[labels[corruption]] == 1 else corruption,
            members[0].family,
            tuple(sorted(members, key=lambda condition: condition.level)),
        )
        for corruption, members in groups.items()
    )


def _label(corruption: str, members: Sequence[Condition]) -> str:
    """The name of its cases without the severity where they share one, else what they contain."""
    names = {member.case.rpartition("@")[0] or member.case for member in members}
    return names.pop() if len(names) == 1 else corruption


def families_of(groups: Sequence[Group]) -> dict[str, tuple[Group, ...]]:
    """Family -> its corruptions, in the order of the cases."""
    return {
        family: tuple(g for g in groups if g.family == family) for family in dict.fromkeys(g.family for g in groups)
    }


def clean_case(conditions: Sequence[Condition]) -> str | None:
    """Name of the case of undamaged samples."""
    return next((condition.case for condition in conditions if condition.clean), None)
