"""What every training strategy must keep to, checked by name on a very small model that trains all of itself.

`check_strategy("...")` returns findings, for built-in strategies and plugins alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mmbench import registry
from mmbench.conformance import Finding
from mmbench.conformance_bed import STEPS, tensors
from mmbench.conformance_checks import CLOSE, gap, same, scale, words
from mmbench.conformance_strategy_bed import (
    Companion,
    StrategySubject,
    forwarded,
    generator,
    gradients,
    hook_count,
    knowledge,
    train,
)
from mmbench.data.batch import Batch
from mmbench.strategy import Regimen


def view_is_pure(subject: StrategySubject) -> str | None:
    regimen, batch, again = subject.regimen(), subject.batch(), subject.batch()
    views = [knowledge(regimen.view(batch, generator())) for _ in range(2)]
    if not same(knowledge(batch), knowledge(again)):
        return "`view` changes its batch in place: return a new one"
    return None if same(*views) else "`view` draws from elsewhere than its `rng`: pass generator=rng"


def view_keeps_the_batch(subject: StrategySubject) -> str | None:
    regimen, batch = subject.regimen(), subject.batch()
    view = regimen.view(batch, generator())
    if view.ids != batch.ids or view.case != batch.case:
        return "`view` changes which samples or cases a batch holds: ids and cases must stay, in their order"
    if view.audio.shape != batch.audio.shape or view.image.shape != batch.image.shape:
        return "`view` changes the shape of audio or image"
    if not (bool(view.audio.isfinite().all()) and bool(view.image.isfinite().all())):
        return "`view` makes values that are not finite"
    if view.available is None or view.affected is None:
        return "`view` forgets what is available or affected: use dataclasses.replace(batch, ...)"
    if not bool(view.available.any(dim=1).all()) or bool((~view.available & ~view.affected).any()):
        return "after `view` a sample lacks both modalities, or an absent one does not count as affected"
    return None


def labels_stay_labels(subject: StrategySubject) -> str | None:
    classes = subject.bed.config.n_classes
    for several in (False, True):
        batch = subject.batch(several)
        label = subject.regimen(multi_label=several).view(batch, generator()).label
        if label is None or label.shape not in ((len(batch),), (len(batch), classes)) or (several and label.ndim == 1):
            return "`view` must leave labels (B,), or shares or several labels (B, C)"
        if float(label.min()) < 0 or float(label.max()) > (classes - 1 if label.ndim == 1 else 1 + CLOSE):
            return "`view` makes labels outside of the classes, or shares outside of 0 to 1"
        if label.ndim == 2 and not several and gap(label.sum(dim=1), torch.ones(len(batch))) > CLOSE:
            return "`view` makes labels of one class that do not sum to 1"
    return None


def micro_batches(subject: StrategySubject) -> str | None:
    results = []
    for parts in (1, 3):
        regimen = subject.regimen()
        batch = regimen.view(subject.batch(), generator())
        rows = torch.arange(len(batch)).chunk(parts)
        for part in [batch] if parts == 1 else [batch.select(each) for each in rows]:
            (regimen.loss(part).total / parts).backward()  # type: ignore[no-untyped-call]
        regimen.after_backward(0, 1)
        results.append(gradients(regimen.method))
    whole, added = results
    if set(whole) == set(added) and all(gap(whole[n], added[n]) <= CLOSE * scale(whole[n]) for n in whole):
        return None
    return (
        "the parts of a batch do not add up to the whole: average the loss over samples, carry draws with the batch "
        "through `select`, and gather what `after_backward` needs over all parts of a step"
    )


def gradients_stay_finite(subject: StrategySubject) -> str | None:
    for several in (False, True):
        regimen = subject.regimen(multi_label=several)
        batch = regimen.view(subject.batch(several), generator())
        problem = step_problem(regimen, batch)
        if problem:
            return f"{problem} ({'several labels' if several else 'one label'} a sample)"
    return None


def step_problem(regimen: Regimen, batch: Batch) -> str | None:
    """What is wrong with one step: its loss, its logits or the gradients it leaves."""
    loss = regimen.loss(batch)
    if loss.total.ndim != 0 or loss.logits.shape != (len(batch), regimen.method.net.config.n_classes):
        return "`loss` must return a scalar and the logits (B, C) of the batch itself"
    loss.total.backward()  # type: ignore[no-untyped-call]
    regimen.after_backward(0, 1)
    left = gradients(regimen.method)
    odd = {name for name, gradient in left.items() if not bool(gradient.isfinite().all())}
    if not bool(loss.total.isfinite()) or odd:
        return f"loss or gradients are not finite: {words(odd) or 'the loss'}"
    lost = set(regimen.method.trainable()) - set(left)
    return f"no gradient is left for {words(lost)}" if lost else None


def forwards_are_declared(subject: StrategySubject) -> str | None:
    regimen = subject.regimen()
    batch = regimen.view(subject.batch(), generator())
    counted = forwarded(regimen, batch) / len(batch)
    if counted == 1 + regimen.extra_forwards:
        return None
    return (
        f"each sample is forwarded {counted:g} times, but extra_forwards={regimen.extra_forwards:g} promises "
        f"{1 + regimen.extra_forwards:g}: the budget counts what is declared"
    )


def frozen_unchanged(subject: StrategySubject) -> str | None:
    regimen = subject.regimen()
    method = regimen.method
    trained = set(method.trainable())
    before = {name: t.detach().clone() for name, t in tensors(method).items()}
    hooks = hook_count(method)
    train(regimen, subject, steps=STEPS)
    moved = {n for n, t in tensors(method).items() if n not in trained and not torch.equal(t, before[n])}
    if moved:
        return f"training changed frozen tensors: {words(moved)}"
    if set(method.trainable()) != trained:
        return "the strategy freed or froze tensors: what trains is the method's choice"
    if hook_count(method) != hooks:
        return "the strategy left hooks on the network: remove them when the loss is done"
    start = {name: t.detach().clone() for name, t in tensors(method).items()}
    train(regimen, subject, steps=1, lr=0.0)
    return None if same(start, tensors(method)) else "the strategy changes weights itself: that is the optimiser's work"


def training_repeats(subject: StrategySubject) -> str | None:
    states = []
    used = subject.make()
    for strategy in (used, used, subject.make()):
        torch.rand(1)  # the global generator is never where it was before
        method = subject.regimen().method
        train(Regimen(method, (strategy,)), subject, steps=2)
        states.append(method.state())
    if not same(states[0], states[2]):
        return "two trainings from one seed differ: draw from the `rng` of `view` only"
    if not same(states[0], states[1]):
        return "a second training with the same strategy differs: it remembers the first; start afresh in `view`"
    return None


def combines(subject: StrategySubject) -> str | None:
    alone = subject.regimen()
    expected = forwarded(alone, alone.view(subject.batch(), generator()))
    for order in ("outside", "inside"):
        other, mine = Companion({}), subject.make()
        regimen = Regimen(subject.regimen().method, (mine, other) if order == "outside" else (other, mine))
        batch = regimen.view(subject.batch(), generator())
        problem = step_problem(regimen, batch)
        if problem:
            return f"with another strategy {order} of it: {problem}"
        batch = regimen.view(subject.batch(), generator())
        if forwarded(regimen, batch) != expected:
            return f"with another strategy {order} of it, it takes other forwards than alone: call `inner` once"
    return None


@dataclass(frozen=True)
class StrategyCheck:
    """One rule; the function returns what is wrong and how to mend it, or None."""

    name: str
    function: Callable[[StrategySubject], str | None]


CHECKS = (
    StrategyCheck("view-is-pure", view_is_pure),
    StrategyCheck("view-keeps-the-batch", view_keeps_the_batch),
    StrategyCheck("labels-stay-labels", labels_stay_labels),
    StrategyCheck("micro-batches", micro_batches),
    StrategyCheck("gradients-stay-finite", gradients_stay_finite),
    StrategyCheck("forwards-are-declared", forwards_are_declared),
    StrategyCheck("frozen-unchanged", frozen_unchanged),
    StrategyCheck("training-repeats", training_repeats),
    StrategyCheck("combines", combines),
)


def check_strategy(name: str, options: Mapping[str, Any] | None = None) -> tuple[Finding, ...]:
    """Run every check on a registered strategy. Raises UnknownNameError if there is none of that name."""
    registry.strategies().card(name)
    subject = StrategySubject(name, options=options or {})
    return tuple(run_strategy_check(check, subject) for check in CHECKS)


def run_strategy_check(check: StrategyCheck, subject: StrategySubject) -> Finding:
    """One check; a strategy that raises fails it. The global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        try:
            message = check.function(subject)
        except Exception as error:
            message = f"raised {type(error).__name__}: {error}"
    return Finding(check.name, message is None, message or "")
