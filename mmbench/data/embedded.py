"""synthetic-av: ten classes whose sound and picture are made on the spot, each ambiguous alone for some classes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from mmbench.data.dice import VERSION, Dice
from mmbench.data.source import Item, Pair, Skipped, fingerprint_of
from mmbench.data.synthetic_picture import Light, picture
from mmbench.data.synthetic_sound import Room, sound
from mmbench.errors import ConfigError
from mmbench.registry import dataset

if TYPE_CHECKING:
    from mmbench.config import DataConfig

NAME = "synthetic-av"
DEFAULT_SAMPLES = 1500


@dataclass(frozen=True)
class Kind:
    """A class: which family it is heard as and which it is seen as."""

    name: str
    sound: str
    picture: str


# Three pairs share a sound, three others share a picture, and no two classes share both: with one modality nobody
# can exceed 70 %, with both all can be told apart.
KINDS = (
    Kind("ambulance", "siren", "cross"),
    Kind("alarm", "siren", "flames"),
    Kind("campfire", "hiss", "flames"),
    Kind("rain", "hiss", "streaks"),
    Kind("woodpecker", "knock", "trunks"),
    Kind("drill", "knock", "bricks"),
    Kind("gong", "bell", "disc"),
    Kind("fan", "hum", "disc"),
    Kind("birds", "chirp", "horizon"),
    Kind("thunder", "rumble", "horizon"),
)


@dataclass(frozen=True)
class SyntheticSource:
    """Sample k is of class k mod 10 and of session k div 10; it is the same however many samples are asked for."""

    samples: int
    seed: int
    name: str = NAME
    multi_label: bool = False
    static_images: bool = True
    problems: tuple[Skipped, ...] = ()
    root: Path | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(kind.name for kind in KINDS)

    @cached_property
    def items(self) -> tuple[Item, ...]:
        return tuple(self._item(number) for number in range(self.samples))

    def _item(self, number: int) -> Item:
        session, label = divmod(number, len(KINDS))
        return Item(f"{KINDS[label].name}/{session:05d}", (label,), f"session-{session:05d}")

    def read(self, item: Item, image_size: int) -> Pair:
        kind = KINDS[item.labels[0]]
        room, light = _session(self.seed, item.group)
        return Pair(
            wave=sound(kind.sound, room, Dice.of(NAME, self.seed, item.id, "sound")),
            image=picture(kind.picture, light, Dice.of(NAME, self.seed, item.id, "picture"), image_size),
        )

    def fingerprint(self) -> str:
        return fingerprint_of((NAME, VERSION, str(self.samples), str(self.seed)))


@lru_cache(maxsize=64)
def _session(seed: int, group: str) -> tuple[Room, Light]:
    return Room.of(Dice.of(NAME, seed, group, "room")), Light.of(Dice.of(NAME, seed, group, "light"))


@dataset(
    "synthetic-av",
    title="Synthetic audio-visual scenes",
    licence="MIT",
    note="generated, ten classes; one modality alone cannot tell three pairs of them apart",
)
def synthetic_av(config: DataConfig) -> SyntheticSource:
    """The embedded data set; raises ConfigError for settings that only files have."""
    for key in ("root", "classes", "manifest", "label_csv", "group_pattern", "audio_dir", "vision_dir"):
        if getattr(config, key) is not None:
            raise ConfigError(f"data set '{NAME}' is generated and takes no '{key}'; it knows samples, seed and split")
    if config.frames > 1:
        raise ConfigError(f"data set '{NAME}' holds still pictures; frames: {config.frames} needs a manifest")
    return SyntheticSource(config.samples or DEFAULT_SAMPLES, config.seed)
