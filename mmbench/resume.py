"""Where a trial stands, kept in its folder so that a killed or stopped one goes on instead of starting anew.

One safetensors file: tensors, and everything else as JSON in its header. It is written aside and renamed, between two
steps only, and read back only if its checksum, the trial, the code and the software are the ones it was written with.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mmbench import registry
from mmbench.layout import EVENTS
from mmbench.method import State
from mmbench.plain import Tensors, digest_of, pack, unpack
from mmbench.ranks import ALONE, Ranks
from mmbench.records import Environment

PROGRESS = "progress.safetensors"
ASIDE = "progress-unused.safetensors"
"""Progress that could not be used; it goes once the trial has its record."""
FORMAT = "1"
EVERY_SECONDS = 30.0
"""Between two writings at least, so that short trials never write."""
WRITING_SHARE = 0.05
"""Of a training's time that writing may take: large states are written less often."""
STEP_SECONDS = 15.0
"""How long SIGTERM waits for the end of a step; the rest of the usual 30 seconds is for writing."""

REPEAT_SECONDS = 1.0
"""In which a second SIGTERM is the first one: a cluster may signal a trial and also its parent, which passes it on."""


class Interrupted(BaseException):
    """SIGTERM: leave without a record, so that the next run goes on with the trial."""


class Part(Protocol):
    """Something that changes from step to step, in the words of torch's optimisers; its state is plain data."""

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to bring a fresh part to where this one is."""

    def load_state_dict(self, state: Any, /) -> object:
        """Go on from there."""


@dataclass(frozen=True)
class Place:
    """A position between two steps, and what a training had finished before."""

    job: str
    case: str
    """Of the state that is being trained; empty if not trained case by case."""
    phase: int
    steps: int
    """Steps of the phase that are done."""
    states: dict[str, State]
    """Finished states by case."""
    router: State | None = None


@dataclass
class Keeper:
    """Writes and reads the progress of one trial; without a path it keeps nothing."""

    path: Path | None = None
    keys: Mapping[str, str] = field(default_factory=dict)
    """What must be the same for progress to be used: a digest by its name."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    log: Callable[..., None] = lambda **row: None
    meters: dict[str, Part] = field(default_factory=dict)
    """Clocks and the like, which go on from the sums of the runs before."""
    tried: list[dict[str, Any]] = field(default_factory=list)
    """Finished tuning trials."""
    place: Place | None = None
    """Where an earlier run stood, until a training has taken it up."""
    events_bytes: int = 0
    """Length of the event log at that time."""
    ranks: Ranks = ALONE
    """All of them read; the first one writes, for all."""
    _parts: dict[str, Any] = field(default_factory=dict)
    _asked: bool = False
    _writing: bool = False
    _failed: bool = False
    _cost_seconds: float = 0.0
    _last: float = field(default_factory=time.perf_counter)

    def open(self) -> str | None:
        """Read what an earlier run left; returns why it cannot be used and puts it aside in that case."""
        if self.path is None:
            return None
        unusable = self._look(self.path) if self.path.exists() else None
        if self.ranks.any(self.place is None)[0]:
            self.place, self.tried, self._parts, self.events_bytes = None, [], {}, 0
        if unusable and self.ranks.first:
            with contextlib.suppress(OSError):
                self.path.replace(self.path.with_name(ASIDE))
        return unusable

    def _look(self, path: Path) -> str | None:
        try:
            found = read_kept(path, self.keys, self.device)
            place, self.tried = Place(**found["place"]), found["tried"]
            self._parts, self.events_bytes, self.place = found["parts"], found["events_bytes"], place
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            return str(error) if isinstance(error, UnusableError) else f"its progress is damaged: {error}"
        return None

    def take_up(self, job: str) -> Place | None:
        """The place where an earlier run stood in this training; None if it was not at it."""
        return self.place if self.place is not None and self.place.job == job else None

    def resume(self, parts: Mapping[str, Part]) -> int:
        """Bring the parts of a phase to where the earlier run stood; returns the steps that are done."""
        assert self.place is not None  # the caller has taken it up
        for name, part in {**parts, **self.meters}.items():
            part.load_state_dict(self._parts[name])
        steps, job = self.place.steps, self.place.job
        self.place, self._parts = None, {}
        self.log(event="resumed", job=job, steps=steps)
        return steps

    def offer(self, place: Callable[[], Place], parts: Mapping[str, Part]) -> None:
        """Called between two steps: writes if it is time. Raises Interrupted if SIGTERM has come, to any rank."""
        if self.path is None:
            return
        pause_seconds = max(EVERY_SECONDS, self._cost_seconds / WRITING_SHARE)
        due = self.ranks.first and time.perf_counter() - self._last >= pause_seconds
        asked, due = self.ranks.any(self._asked, due)
        if asked or due:
            self._writing = True
            self._write(self.path, place(), parts)
            self._writing = False
        if asked:
            raise Interrupted

    def _write(self, path: Path, place: Place, parts: Mapping[str, Part]) -> None:
        began = time.perf_counter()
        states = {name: part.state_dict() for name, part in {**parts, **self.meters}.items()}
        events = path.with_name(EVENTS)
        found = {"place": vars(place), "tried": self.tried, "parts": states}
        try:
            if self.ranks.first:
                save_kept({**found, "events_bytes": events.stat().st_size if events.exists() else 0}, self.keys, path)
        except (OSError, SafetensorError) as error:
            if not self._failed:
                self.log(event="not-kept", message=f"cannot write {path.name}: {error}; the training goes on")
            self._failed = True
        if "peaks" in self.meters:
            self.meters["peaks"].load_state_dict(states["peaks"])  # what writing took is no memory of the training
        self._last = time.perf_counter()
        self._cost_seconds = self._last - began

    @contextlib.contextmanager
    def steps(self) -> Iterator[None]:
        """Inside, SIGTERM waits for the next `offer`, for STEP_SECONDS at most; a second one does not wait."""
        if self.path is None or threading.current_thread() is not threading.main_thread():
            yield
            return

        asked = 0.0

        def stop(number: int, frame: FrameType | None) -> None:
            nonlocal asked
            if number == signal.SIGALRM and self._writing:
                return  # the step has ended; what it came to is worth the wait
            if self._asked and number == signal.SIGTERM and time.monotonic() - asked < REPEAT_SECONDS:
                return
            if self._asked:
                raise Interrupted
            self._asked, asked = True, time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, STEP_SECONDS)

        old = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGALRM)}
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            for number, handler in old.items():
                signal.signal(number, handler)
        if self._asked:
            raise Interrupted


class UnusableError(ValueError):
    """Progress that is whole, but of something else."""


def discard(folder: Path) -> None:
    """Remove what was kept: the trial has its record."""
    for name in (PROGRESS, ASIDE):
        (folder / name).unlink(missing_ok=True)


def keys_of(spec: str, found: Environment) -> dict[str, str]:
    """What decides every bit of a training: the trial, the code, and the software with the device it runs on."""
    software = found.model_dump_json(include={"python", "device", "device_kind", "threads", "packages", "plugins"})
    code = hashlib.sha256()
    for package in ("mmbench", "methods", "corruptions"):
        for path in sorted((registry.ROOT / package).rglob("*.py")):
            code.update(f"{path.relative_to(registry.ROOT)}\n".encode() + path.read_bytes())
    digests = {"trial": spec.encode(), "software or device": software.encode()}
    return {"code": code.hexdigest(), **{name: hashlib.sha256(text).hexdigest() for name, text in digests.items()}}


def save_kept(content: dict[str, Any], keys: Mapping[str, str], path: Path) -> None:
    tensors = Tensors()
    text, named = json.dumps(pack(content, tensors)), tensors.named
    header = {"format": FORMAT, "keys": json.dumps(dict(keys)), "content": text, "sha256": digest_of(text, named).hex()}
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        save_file(named, aside, metadata=header)
        aside.replace(path)
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def read_kept(path: Path, keys: Mapping[str, str], device: torch.device) -> dict[str, Any]:
    """The content; raises UnusableError with the reason, and ValueError or SafetensorError where it is damaged."""
    with safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
        if header.get("format") != FORMAT:
            raise UnusableError("its progress is of another version")
        theirs = json.loads(header["keys"])
        other = [name for name in keys if theirs.get(name) != keys[name]]
        if other:
            raise UnusableError(f"its progress was made with another {' and another '.join(other)}")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    if digest_of(header["content"], tensors).hex() != header["sha256"]:
        raise ValueError("the checksum differs")
    content: dict[str, Any] = unpack(json.loads(header["content"]), tensors, device)
    return content
