"""What the registries know of an entry without importing it: plain facts, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

CaseNeed = Literal["none", "avail", "oracle"]
Track = Literal["informed", "avail", "blind"]

# What each track tells a method at test time, least first; a method runs on every track that tells it enough.
TRACK_OFFERS: Mapping[Track, tuple[CaseNeed, ...]] = {
    "blind": ("none",),
    "avail": ("none", "avail"),
    "informed": ("none", "avail", "oracle"),
}


@dataclass(frozen=True)
class Needs:
    """Privileges a method asks for; the harness grants or refuses them by track."""

    case: CaseNeed = "none"
    """What `predict` must be told: nothing, which modality is absent, or the case itself."""
    train_case: bool = False
    """Whether training must be told the case of each sample."""
    batch_dependent: bool = False
    """Whether a prediction depends on the other samples of its batch."""
    extra_forwards: float = 0.0
    """Forward passes per training sample beyond the first; they count against the budget."""

    def allowed_on(self, track: Track) -> bool:
        return self.case in TRACK_OFFERS[track]


@dataclass(frozen=True)
class MethodCard:
    """A row of the method registry."""

    name: str
    title: str
    family: str
    reference: str
    year: int
    memory: str
    """M0 no backbone graph, M1 tail only, M2 gradient crosses the encoders, M3 as full fine-tuning, M4 above it."""
    trains: bool = True
    """False for rows that only evaluate the frozen backbone; regimes do not apply to them."""
    identity_at_start: bool = True
    """Whether the method predicts exactly as the frozen backbone before its first step."""
    needs: Needs = field(default_factory=Needs)
    lr_range: tuple[float, float] = (1e-4, 1e-2)
    """The two decades in which tuning trials search, log-uniform; the default rate is their geometric mean."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options with their defaults; a suite may set these keys and no others."""
    parameters: str = ""
    """Closed form of what trains, head apart: a formula over the sizes of the backbone and the options' names, see
    mmbench.formula. Empty: not stated."""
    bibtex: str = ""
    """Key of the paper in methods/references.bib."""
    note: str = ""

    @staticmethod
    def of(name: str, **facts: Any) -> MethodCard:
        """Build a card from decorator arguments; raises TypeError for an unknown or missing fact."""
        facts["needs"] = Needs(**facts.get("needs", {}))
        return MethodCard(name=name, **facts)


@dataclass(frozen=True)
class StrategyCard:
    """A row of the registry of training strategies: what a method sees in training, beside the regime."""

    name: str
    title: str
    reference: str
    year: int
    extra_forwards: float = 0.0
    """Forward passes per training sample beyond the first; they count against the budget."""
    whole_step: bool = False
    """Whether it looks at all samples of a step together, apart from their view: then devices cannot share a step."""
    options: Mapping[str, Any] = field(default_factory=dict)
    bibtex: str = ""
    note: str = ""

    @staticmethod
    def of(name: str, **facts: Any) -> StrategyCard:
        return StrategyCard(name=name, **facts)


@dataclass(frozen=True)
class OnlineCard:
    """A row of the registry of online adapters: what happens to a trained method at test time."""

    name: str
    title: str
    reference: str
    year: int
    memory: str
    """As for methods: how far the gradient of an update reaches; M0 where none is taken."""
    updates: str
    """What changes at test time, in words."""
    parameters: str = ""
    """Closed form of the updated parameters on the plain backbone, as for methods."""
    forwards: float = 1.0
    """Forward passes per test sample that an update takes, beside those of the scored predictions."""
    backwards: float = 1.0
    source_samples: int = 0
    """Training samples it may look at before the stream begins."""
    stream_length: bool = False
    """Whether it must know in advance how long the stream is."""
    attn_maps: bool = False
    identity_at_start: bool = True
    """Whether it predicts exactly as the trained method does before its first update."""
    options: Mapping[str, Any] = field(default_factory=dict)
    check_options: Mapping[str, Any] = field(default_factory=dict)
    """Options under which its filters let the few random samples of the conformance suite into an update."""
    bibtex: str = ""
    note: str = ""

    @staticmethod
    def of(name: str, **facts: Any) -> OnlineCard:
        return OnlineCard(name=name, **facts)


Modality = Literal["audio", "vision"]
StageName = Literal["sample", "waveform", "image", "fbank", "normalised", "missing"]
STAGES: Mapping[StageName, str] = {
    "sample": "before everything else: the sound (B, S) as stored, or (B,) int64, which picture of a film is shown",
    "waveform": "sound (B, S) float32 in [-1, 1], 16 kHz, rounded to 16 bits afterwards",
    "image": "picture (B, 3, H, W) uint8 RGB",
    "fbank": "log-mel (B, T, 128) float32, not normalised",
    "normalised": "log-mel (B, T, 128) or picture (B, 3, H, W) float32 as the backbone sees it",
    "missing": "as normalised, after everything else: what stands where a modality is absent",
}
"""What a corruption acts on, in the order in which they are applied."""
NOT_APPLICABLE = "not applicable: "
"""How the reason of a score begins that no method can have: such a case is left out of means."""


@dataclass(frozen=True)
class CorruptionCard:
    """A row of the corruption registry."""

    name: str
    family: str
    modality: Modality
    stage: StageName
    reference: str
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    """(0,) for a corruption without a scale."""
    variant: str = ""
    deterministic: bool = False
    requires: Literal["", "moving-pictures"] = ""
    """What the data must be for it to mean anything; empty for any data."""
    scenes: tuple[str, ...] = ()
    """Names of classes, or their last words in lower case, that are the scene it adds: a second score leaves samples of
    such a class out."""
    note: str = ""

    @staticmethod
    def of(name: str, **facts: Any) -> CorruptionCard:
        return CorruptionCard(name=name, **facts)


@dataclass(frozen=True)
class DatasetCard:
    """A row of the data-set registry."""

    name: str
    title: str
    licence: str = ""
    note: str = ""

    @staticmethod
    def of(name: str, **facts: Any) -> DatasetCard:
        return DatasetCard(name=name, **facts)
