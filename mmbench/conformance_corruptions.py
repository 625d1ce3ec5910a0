"""What every corruption must keep to, checked by name at each of its severities on a small batch.

`check_corruption("imagenet_c/fog")` returns findings, for built-in corruptions and plugins alike.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mmbench.conformance import Finding
from mmbench.corruption import Corruption, Stage, load_corruption
from mmbench.errors import MMBenchError
from mmbench.registry import corruptions
from mmbench.rng import StreamKey

KEY = StreamKey("synthetic-av", "test", 0)
IDS = tuple(f"sample-{i}" for i in range(8))
ALL = tuple(range(len(IDS)))
SIDE = 64  # pixels; a corruption must not count on the input size of one backbone


def inputs(corruption: Corruption) -> tuple[Tensor, Tensor]:
    """A batch for the corruption's stage, and valid lengths."""
    generator = torch.Generator().manual_seed(0)
    if corruption.card.modality == "vision" and corruption.stage == Stage.SAMPLE:
        return torch.tensor([5, 9, 1, 3, 5, 2, 7, 4]), torch.full((8,), 10)  # pictures shown, of ten
    if corruption.card.modality == "vision":
        image = torch.randint(0, 256, (8, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
        return (image if corruption.stage == Stage.IMAGE else image / 64 - 2), torch.full((8,), SIDE)
    if corruption.stage in (Stage.SAMPLE, Stage.WAVEFORM):
        lengths = torch.tensor([16000, 12000, 8000, 16000, 9000, 16000, 4000, 16000])
        wave = (torch.rand(8, 16000, generator=generator) - 0.5) * (torch.arange(16000) < lengths[:, None])
        return wave, lengths
    return torch.randn(8, 128, 128, generator=generator), torch.tensor([128, 98, 60, 128, 20, 128, 98, 128])


def extremes(corruption: Corruption) -> tuple[Tensor, Tensor]:
    """The same with samples that formulas forget: silent, very short and empty clips; pictures of one colour."""
    batch, lengths = (x.clone() for x in inputs(corruption))
    if corruption.card.modality == "vision" and corruption.stage == Stage.SAMPLE:
        return torch.tensor([0, 9, 0, 1, 0, 0, 2, 4]), torch.tensor([10, 10, 1, 2, 3, 4, 3, 5])
    batch[0] = 0
    if corruption.card.modality == "vision":
        batch[1] = 255 if corruption.stage == Stage.IMAGE else 2
        return batch, lengths
    lengths[2:6] = torch.tensor([0, 1, 2, 3])
    for row, length in enumerate(lengths.tolist()):
        batch[row, length:] = 0
    return batch, lengths


def output(corruption: Corruption, rows: Sequence[int] = ALL, key: StreamKey = KEY) -> Tensor:
    batch, lengths = inputs(corruption)
    chosen = list(rows)
    return corruption.apply(batch[chosen], corruption.draws(key, tuple(IDS[row] for row in rows), lengths[chosen]))


def contract(corruption: Corruption) -> str | None:
    """Shape, type, finite values and an input left alone are what `apply` looks at."""
    batch, lengths = inputs(corruption)
    out = corruption.apply(batch, corruption.draws(KEY, IDS, lengths))
    if out.data_ptr() == batch.data_ptr():
        return "the output is the input itself: return a new tensor, x.clone() at least"
    return None


def extreme_inputs(corruption: Corruption) -> str | None:
    batch, lengths = extremes(corruption)
    corruption.apply(batch, corruption.draws(KEY, IDS, lengths))
    return None


def repeats(corruption: Corruption) -> str | None:
    if torch.equal(output(corruption), output(corruption)):
        return None
    return "two calls disagree: take every random number from `draws`, and keep nothing between calls"


def alone_equals_batch(corruption: Corruption) -> str | None:
    whole = output(corruption)
    for row in ALL:
        if not torch.equal(output(corruption, [row])[0], whole[row]):
            return "a sample alone comes out otherwise than in a batch: let no sample depend on its neighbours"
    order = [5, 2, 7, 0, 1, 6, 3, 4]
    if not torch.equal(output(corruption, order), whole[order]):
        return "the order of a batch matters: let no sample depend on its neighbours"
    return None


def global_generators(corruption: Corruption) -> str | None:
    before = _generators()
    output(corruption)
    moved = [name for name, state in _generators().items() if state != before[name]]
    if not moved:
        return None
    return f"it draws from the global generator of {', '.join(moved)}: take random numbers from `draws`"


def determinism(corruption: Corruption) -> str | None:
    other = output(corruption, key=StreamKey("other", "test", 9))
    if not corruption.card.deterministic or torch.equal(other, output(corruption)):
        return None
    return "it draws, but is registered as deterministic=True"


Rule = Callable[[Corruption], "str | None"]
RULES: Mapping[str, Rule] = {
    "contract": contract,
    "extreme-inputs": extreme_inputs,
    "repeats": repeats,
    "alone-equals-batch": alone_equals_batch,
    "global-generators": global_generators,
    "determinism": determinism,
}


def check_corruption(name: str) -> tuple[Finding, ...]:
    """Run every rule at every severity; where the contract is broken, the others have nothing to look at.

    Raises UnknownNameError if there is no corruption of that name.
    """
    severities = corruptions().card(name).severities
    texts = [name] if severities == (0,) else [f"{name}@{severity}" for severity in severities]
    subjects = [load_corruption(text) for text in texts]
    first = check_rule("contract", subjects)
    if not first.ok:
        return (first,)
    rest = (check_rule(rule, subjects) for rule in RULES if rule != "contract")
    return (first, *rest, _acts(subjects))


def check_rule(rule: str, subjects: Sequence[Corruption]) -> Finding:
    """One rule at all severities; a corruption that raises fails it. The first failure is told."""
    for subject in subjects:
        message = _outcome(RULES[rule], replace(subject, watched=True))
        if message is not None:
            return Finding(rule, False, f"at severity {subject.severity}: {message}" if subject.severity else message)
    return Finding(rule, True, "")


def _acts(subjects: Sequence[Corruption]) -> Finding:
    """Some severity changes something; a table may begin with one that does not."""

    def idle(subject: Corruption) -> str | None:
        return "nothing is corrupted" if torch.equal(output(subject), inputs(subject)[0]) else None

    messages = [_outcome(idle, subject) for subject in subjects]
    ok = any(message is None for message in messages)
    return Finding("acts", ok, "" if ok else f"{messages[0]}, at any severity")


def _outcome(rule: Rule, subject: Corruption) -> str | None:
    with torch.random.fork_rng(devices=[]):
        try:
            return rule(subject)
        except MMBenchError as error:
            return str(error)
        except Exception as error:
            return f"raised {type(error).__name__}: {error}"


def _generators() -> dict[str, str]:
    """The states of the generators that all code of a process shares."""
    return {
        "torch": str(torch.get_rng_state().tolist()),
        "numpy": str(np.random.get_state(legacy=False)),
        "random": str(random.getstate()),
    }
