"""A trial: one method x regime x data set x backbone x seed under a budget, and its id."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from mmbench import registry
from mmbench.backbone.config import preset
from mmbench.cards import MethodCard, Track
from mmbench.cases import Case, Missing, case_data, parse_case, parse_cases
from mmbench.config import BackboneSpec, Budget, Config, DataConfig, MethodSpec, PartSpec, Regime, Suite
from mmbench.errors import ConfigError
from mmbench.files import read_plain
from mmbench.layout import RECORD_BYTES, SPEC
from mmbench.method_options import resolve_options
from mmbench.records import TRIAL_ID
from mmbench.row_checks import check_blind, check_shared, checked
from mmbench.suite_file import explain

PROTOCOL = 1
"""Raised whenever the same spec would give other numbers; enters every trial id."""


@dataclass(frozen=True)
class Digests:
    """Content that a trial stands on, by digest instead of by path."""

    data: str
    backbone: str
    assets: str = ""
    """Empty without assets; see mmbench.assets."""


class Trial(Config):
    """Everything a worker needs; written as `spec.json` in the trial's folder."""

    id: str
    suite: str
    method: MethodSpec
    regime: Regime | None
    """None for rows that do not train."""
    dataset: DataConfig
    backbone: BackboneSpec
    backbone_folder: Path
    store_folder: Path
    seed: int
    cases: tuple[Any, ...]
    train_cases: tuple[Any, ...]
    tracks: tuple[Track, ...]
    budget: Budget
    streams: tuple[str, ...] = ()
    """How the online adapter sees the test data, as `setting/batch`."""
    base: str | None = Field(default=None, pattern=TRIAL_ID)
    """Id of the trial whose trained states an online adapter starts from; its folder lies beside this one's."""
    plugins: tuple[Path, ...] = ()
    assets: Path | None = None
    """Folder of the user's recordings and photographs; the environment's unless given."""
    frozen: Path | None = None
    """Folder of frozen test sets; no part of the id, as the sets are those that corrupting gives."""

    def parsed_cases(self) -> tuple[Case, ...]:
        return tuple(parse_case(case) for case in self.cases)

    def parsed_train_cases(self) -> tuple[Case, ...]:
        return tuple(parse_case(case) for case in self.train_cases)

    def contents(self) -> dict[str, Any]:
        """What the record's names stand for."""
        split = self.dataset.split_facts()
        streams = {"streams": self.streams} if self.streams else {}
        return {"cases": self.cases, "train_cases": self.train_cases, "tracks": self.tracks, "split": split, **streams}

    @property
    def title(self) -> str:
        return f"{self.method.title}+{self.regime}" if self.regime else self.method.title

    @property
    def devices(self) -> int:
        """That it uses; an online adapter meets its stream in order, and so on one."""
        return 1 if self.method.online else self.budget.devices


@dataclass(frozen=True)
class Row:
    """One line of the grid before data and backbone are at hand."""

    method: MethodSpec
    card: MethodCard
    regime: Regime | None
    dataset: DataConfig
    backbone: BackboneSpec
    seed: int

    def offline(self) -> Row:
        """The row that trains what this one adapts online."""
        return replace(self, method=self.method.offline())


def rows(suite: Suite) -> tuple[Row, ...]:
    """The grid of a suite, every name and option checked.

    Rows that do not train have no regime, and one seed, because nothing in them is random. A row with an online
    adapter comes after the row that trains what it adapts, which is added if the suite does not list it.
    """
    found = []
    for dataset in suite.datasets:
        registry.datasets().card(dataset.name)
        for backbone in suite.backbones:
            if backbone.path is None:
                preset(backbone.name)
            for method in suite.methods:
                card = checked(method)
                regimes = (method.regimes or suite.regimes) if card.trains else (None,)
                check_blind(method, regimes)
                check_shared(method, card, suite.budget.devices)
                seeds = suite.seeds if card.trains or method.online else suite.seeds[:1]
                found += [Row(method, card, r, dataset, backbone, s) for r in regimes for s in seeds]
    suite_cases(suite)
    return _with_bases(found)


def _with_bases(found: Sequence[Row]) -> tuple[Row, ...]:
    """Every online row after its base; a base that the suite lists, whatever its label, is not added again."""

    def content(row: Row) -> Row:
        options = resolve_options(row.card, row.method.options)
        plain = row.method.model_copy(update={"label": None, "regimes": None, "options": options})
        seed = row.seed if row.card.trains or row.method.online else -1
        return replace(row, method=plain, seed=seed)

    known = [content(row) for row in found if row.method.online is None]
    added: list[Row] = []
    for row in found:
        base = row.offline()
        if row.method.online and content(base) not in known:
            known.append(content(base))
            added.append(base)
    offline = [row for row in found if row.method.online is None]
    return (*offline, *added, *(row for row in found if row.method.online))


def suite_cases(suite: Suite) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Evaluation and training cases, sets expanded."""
    cases = parse_cases(suite.cases)
    return cases, parse_cases(suite.train_cases) if suite.train_cases else cases


def make_trial(row: Row, suite: Suite, digests: Digests, folders: Mapping[str, Path]) -> Trial:
    """The trial of a grid row once its data store and backbone exist; `folders` holds their places."""
    cases, train_cases = suite_cases(suite)
    trial = Trial(
        id="-",
        suite=suite.name,
        method=row.method,
        regime=row.regime,
        dataset=row.dataset,
        backbone=row.backbone,
        backbone_folder=folders["backbone"],
        store_folder=folders["store"],
        seed=row.seed,
        cases=tuple(case_data(case) for case in cases),
        train_cases=tuple(case_data(case) for case in _train_cases(row, suite, train_cases)),
        tracks=suite.tracks,
        budget=suite.budget,
        streams=suite.streams if row.method.online else (),
        base=_base_id(row, suite, digests, folders),
        plugins=registry.plugins(),
        assets=suite.assets,
        frozen=suite.frozen,
    )
    return trial.model_copy(update={"id": trial_id(trial, row, digests)})


def _train_cases(row: Row, suite: Suite, mixed: tuple[Case, ...]) -> tuple[Case, ...]:
    if row.regime != "missing-rate":
        return mixed
    return (Case(f"missing-rate-{suite.missing_rate:g}", missing=Missing("mixed", rate=suite.missing_rate)),)


def _base_id(row: Row, suite: Suite, digests: Digests, folders: Mapping[str, Path]) -> str | None:
    if row.method.online is None:
        return None
    seed = row.seed if row.card.trains else suite.seeds[0]
    return make_trial(replace(row.offline(), seed=seed), suite, digests, folders).id


def trial_id(trial: Trial, row: Row, digests: Digests) -> str:
    """Readable name and digest of the content; moving files or renaming the suite keeps it."""
    return content_id(trial, trial_content(trial, row, digests))


def content_id(trial: Trial, content: Mapping[str, Any]) -> str:
    """The id of a trial with this content."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    method = trial.method
    parts = [method.name, *(part.name for part in method.strategies), trial.regime or "frozen"]
    parts += [method.online.name] if method.online else []
    safe = re.sub(r"[^A-Za-z0-9._]+", "-", "-".join(parts)).strip(".-")[:60]
    return f"{safe}-s{trial.seed}-{digest}"


def trial_content(trial: Trial, row: Row, digests: Digests) -> dict[str, Any]:
    """Everything that decides a trial's numbers, as JSON data without a path."""
    origin = registry.methods().entry(row.method.name).origin
    content = {
        "protocol": PROTOCOL,
        "method": row.method.name,
        "options": resolve_options(row.card, row.method.options),
        "plugin": registry.file_digest(origin.path) if origin.label != "mmbench" else None,
        "regime": trial.regime,
        "dataset": trial.dataset.name,
        "data": digests.data,
        "corruptions": _foreign_corruptions(trial),
        "split": trial.dataset.split_facts(),
        "backbone": digests.backbone,
        "seed": trial.seed,
        "cases": trial.cases,
        "train_cases": trial.train_cases if trial.regime not in (None, "clean") else (),
        "tracks": sorted(trial.tracks),
        "budget": trial.budget.deciding(row.card.trains),
        **_combined(trial),
    }
    if digests.assets:
        content["assets"] = digests.assets
    return content


def _combined(trial: Trial) -> dict[str, Any]:
    """Strategies and online adapter, options resolved, and the blind strategy: what of them is not the usual."""
    found: dict[str, Any] = {}
    if trial.regime == "casewise" and trial.method.blind != "auto":
        found["blind"] = trial.method.blind
    if trial.method.strategies:
        known = registry.strategies()
        found["strategies"] = [_part(known, part) for part in trial.method.strategies]
    if trial.method.online:
        found |= {
            "online": _part(registry.onlines(), trial.method.online),
            "streams": trial.streams,
            "base": trial.base,
        }
    return found


def _part(known: registry.Registry[Any], part: PartSpec) -> dict[str, Any]:
    origin = known.entry(part.name).origin
    plugin = registry.file_digest(origin.path) if origin.label != "mmbench" else None
    return {"name": part.name, "options": resolve_options(known.card(part.name), part.options), "plugin": plugin}


def _foreign_corruptions(trial: Trial) -> dict[str, str]:
    """Content of the files that define corruptions from outside the package: editing one makes other trials."""
    found = registry.corruptions()
    cases = (*trial.parsed_cases(), *trial.parsed_train_cases())
    names = {text.partition("@")[0] for case in cases for text in (case.audio, case.vision) if text}
    origins = {name: found.entry(name).origin for name in sorted(names)}
    return {name: registry.file_digest(o.path) for name, o in origins.items() if o.label != "mmbench"}


def read_trial(folder: Path) -> Trial:
    """The spec in a trial's folder. Raises ConfigError naming the file."""
    path = folder / SPEC
    try:
        return Trial.model_validate_json(read_plain(path, RECORD_BYTES))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except ValidationError as error:
        raise ConfigError(f"{path} is not a trial: {explain(error)}") from None
