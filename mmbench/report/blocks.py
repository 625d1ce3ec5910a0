"""What a column of scores stands for: a case, the severities of a corruption, or a whole family of a long list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from mmbench.report.comparable import Selection
from mmbench.report.conditions import Group, conditions_of, corruptions_of, families_of

By = Literal["case", "corruption", "family"]
MOST_CASES = 12
"""With more cases than this a page shows corruptions or families; CSV files and curves keep every case."""

Values = Mapping[str, float | None]  # case -> score in 0..1


@dataclass(frozen=True)
class Block:
    """A column: its label and the corruptions whose mean stands in it."""

    label: str
    groups: tuple[Group, ...]
    second: bool = False
    """Whether the samples of scenes that are classes are left out."""

    @property
    def key(self) -> str:
        return f"{self.label}, without scenes" if self.second else self.label

    @property
    def cases(self) -> tuple[str, ...]:
        return tuple(case for group in self.groups for case in group.cases)

    def mean(self, values: Values) -> float | None:
        return over_corruptions(values, self.groups)


def is_long(selection: Selection) -> bool:
    return len(selection.cases) > MOST_CASES


def blocks_of(selection: Selection, by: By = "case") -> tuple[Block, ...]:
    """The columns of a selection; lists that are not long, and undamaged samples, have one for every case.

    In columns of several cases those that do not apply to the data are left out.
    """
    conditions = conditions_of(selection)
    if by == "case" or not is_long(selection):
        return tuple(Block(c.case, (Group(c.case, c.family, (c,)),)) for c in conditions)
    clean = [Block(c.case, (Group(c.case, "", (c,)),)) for c in conditions if c.clean]
    groups = corruptions_of([c for c in conditions if c.case not in selection.idle])
    if by == "corruption":
        return (*clean, *(Block(group.label, (group,)) for group in groups))
    return (*clean, *(Block(family, members) for family, members in families_of(groups).items()))


def over_corruptions(values: Values, groups: Sequence[Group]) -> float | None:
    """Mean over severities (or rates) first, then over corruptions; None unless every case has a value."""
    means: list[float] = []
    for group in groups:
        found = [value for case in group.cases if (value := values.get(case)) is not None]
        if len(found) < len(group.cases):
            return None
        means.append(mean_of(found))
    return mean_of(means) if means else None


def mean_of(values: Sequence[float]) -> float:
    """`fmean`, quick where there is nothing to add, as in most columns of a board."""
    return values[0] if len(values) == 1 else fmean(values)


def reading(selection: Selection, by: By) -> tuple[str, ...]:
    """What must be said below columns of several cases."""
    if by == "case" or not is_long(selection):
        return ()
    left_out = [case for case in selection.cases if case in selection.idle]
    idle = f" Not applicable to this data and left out: {', '.join(left_out)}." if left_out else ""
    return (
        f"{len(selection.cases)} cases, one column a {by}: mean over severities or rates first, then over corruptions. "
        f"Mean and worst case are those of the single cases; the CSV of this table has them all.{idle}",
    )
