"""What a trial works with, once its setup is done."""

from __future__ import annotations

from dataclasses import dataclass

from mmbench import registry
from mmbench.backbone.checkpoint import BackboneMeta
from mmbench.bench import Bench
from mmbench.cards import Track
from mmbench.cases import Case
from mmbench.errors import RefusedError
from mmbench.evaluate import tracks_of
from mmbench.feed import TrialData
from mmbench.meter import PeakMeter
from mmbench.method import Method
from mmbench.strategy import Strategy
from mmbench.trials import Trial


@dataclass(frozen=True)
class Desk:
    """A trial with its data, its fresh method and its meters."""

    trial: Trial
    data: TrialData
    meta: BackboneMeta
    method: Method
    bench: Bench
    peaks: PeakMeter

    @property
    def casewise(self) -> bool:
        return self.trial.regime == "casewise"

    def train_cases(self) -> tuple[Case, ...]:
        """Cases of the training; those that do not apply to the data are left out. Raises RefusedError if none does."""
        if self.trial.regime == "clean":
            return (Case("complete"),)
        cases = self.trial.parsed_train_cases()
        applicable = tuple(case for case in cases if self.data.unmet(case) is None)
        if not applicable:
            reason = self.data.unmet(cases[0])
            raise RefusedError(f"no training case can be used, {cases[0].name} is {reason}; list others in train_cases")
        return applicable

    def strategies(self) -> tuple[Strategy, ...]:
        known = registry.strategies()
        return tuple(known.load(part.name)(part.options) for part in self.trial.method.strategies)

    def tracks(self) -> tuple[Track, ...]:
        """Tracks to be scored, least knowledge first. Raises RefusedError if none tells the method enough."""
        tracks = tracks_of(self.method, self.casewise, self.trial.tracks)
        if not tracks:
            need, offered = self.method.card.needs.case, ", ".join(self.trial.tracks)
            raise RefusedError(f"{self.trial.method.name} needs to be told '{need}', which none of {offered} offers")
        return tracks
