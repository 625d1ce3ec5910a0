"""What every online adapter must keep to, checked by name over several trained methods on a very small model.

`check_online("...")` returns findings, for built-in adapters and plugins alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from mmbench import registry
from mmbench.conformance import Check, Finding, run_check
from mmbench.conformance_bed import Bed, Subject, blanked, parameters, tensors, watch
from mmbench.conformance_checks import CLOSE, forbidden, gap, words
from mmbench.conformance_online_bed import (
    STREAM,
    OnlineSubject,
    Trace,
    agree,
    changed,
    copies,
    counted_forwards,
    follow,
)
from mmbench.data.batch import Batch
from mmbench.errors import RefusedError
from mmbench.formula import evaluate, numbers

FAMILIES = ("frozen", "lora", "prompt")
"""An adapter is checked over the first method of each of these, unless others are asked for."""


def reset_restores(subject: OnlineSubject) -> str | None:
    adapter = subject.adapter()
    before, rng = copies(adapter.method), adapter.rng.get_state()
    first = follow(adapter, subject.stream(adapter))
    adapter.reset(len(STREAM))
    if changed(adapter.method, before):
        return f"after `reset` {words(changed(adapter.method, before))} are not as at the start: name them in `updated`"
    if not torch.equal(adapter.rng.get_state(), rng):
        return "after `reset` its `rng` is not as at the start: call super().reset(steps)"
    if agree(follow(adapter, subject.stream(adapter)), first):
        return None
    return "after `reset` the same stream is predicted otherwise: make optimisers, averages and the like in `begin`"


def no_gradient_left(subject: OnlineSubject) -> str | None:
    adapter = subject.adapter()
    follow(adapter, subject.stream(adapter))
    adapter.reset(len(STREAM))
    left = {name for name, p in parameters(adapter.method).items() if p.grad is not None}
    return f"after `reset` gradients are left on {words(left)}: clear them after each step" if left else None


def predict_is_pure(subject: OnlineSubject) -> str | None:
    adapter = subject.adapter()
    batch, before, rng = subject.stream(adapter)[0], copies(adapter.method), adapter.rng.get_state()
    logits = adapter.predict(batch)
    if logits.requires_grad:
        return "`predict` builds a graph: wrap it in torch.no_grad()"
    if changed(adapter.method, before) or not torch.equal(adapter.rng.get_state(), rng):
        return "`predict` changes tensors or draws from `rng`: leave both to `adapt`"
    if not torch.equal(adapter.predict(batch), logits):
        return "two calls of `predict` on one batch disagree"
    with torch.random.fork_rng(devices=[]):  # both start from one global state, which is another rule's business
        asked = subject.adapter()
        last = follow(asked, subject.stream(asked)).logits[-1]
    quiet = subject.adapter()
    batches = subject.stream(quiet)
    for each in batches:
        quiet.adapt(each)
    if torch.equal(quiet.predict(batches[-1]), last):
        return None
    return "`adapt` does otherwise when `predict` is called between updates: keep no state in `predict`"


def starts_unadapted(subject: OnlineSubject) -> str | None:
    method = subject.method()
    batch = blanked(method, subject.base.bed.batch())
    plain = method.predict(batch)
    adapter = subject.adapter(method)
    difference = gap(adapter.predict(batch), plain)
    if not adapter.card.identity_at_start or difference <= CLOSE:
        return None
    return (
        f"before the first update its logits differ from the trained method's by {difference:.1e}: start from the "
        "method as it is, or declare identity_at_start=False"
    )


def samples_enter(subject: OnlineSubject) -> str | None:
    """Without an update most other rules have nothing to look at."""
    adapter = subject.adapter()
    if any(follow(adapter, subject.stream(adapter)).used):
        return None
    return "no sample enters an update, so nothing is checked of it: give `check_options` under which its filters open"


def changes_are_declared(subject: OnlineSubject) -> str | None:
    adapter = subject.adapter()
    before, declared = copies(adapter.method), {id(p) for p in adapter.updated().values()}
    follow(adapter, subject.stream(adapter))
    if {id(p) for p in adapter.updated().values()} != declared:
        return "`updated` names other tensors after an update: it must return the same parameters at every call"
    strays = {n for n in changed(adapter.method, before) if id(tensors(adapter.method)[n]) not in declared}
    return (
        f"`adapt` changes {words(strays)}, which `updated` does not name: declare them or leave them"
        if strays
        else None
    )


def updates_reach(subject: OnlineSubject) -> str | None:
    adapter = subject.adapter()
    before = {name: p.detach().clone() for name, p in adapter.updated().items()}
    used = follow(adapter, subject.stream(adapter)).used
    still = {name for name, p in adapter.updated().items() if torch.equal(p, before[name])}
    if not any(used) or not still:
        return None
    return f"{words(still)} never change, though samples entered an update: leave them out of `updated`"


def knowledge(subject: OnlineSubject) -> str | None:
    adapter = subject.adapter()
    reads: list[str] = []
    for seed, size in enumerate(STREAM):
        batch = watch(subject.base.bed.batch(seed, size), forbidden(adapter.method), reads)
        adapter.predict(batch)
        adapter.adapt(batch)
    return f"it reads {words(reads)}, which no adapter over {subject.base.name} is told" if reads else None


def batch_unchanged(subject: OnlineSubject) -> str | None:
    adapter = subject.adapter()
    batch = subject.stream(adapter)[0]
    kept = replace(batch, audio=batch.audio.clone(), image=batch.image.clone())
    follow(adapter, [batch])
    same = torch.equal(batch.audio, kept.audio) and torch.equal(batch.image, kept.image)
    return None if same else "it changes its batch in place: work on copies"


def single_sample(subject: OnlineSubject) -> str | None:
    adapter = subject.adapter()
    batches = [batch.select([row]) for batch in subject.stream(adapter) for row in range(2)]
    return _sound(follow(adapter, batches), batches, subject)


def finite(subject: OnlineSubject) -> str | None:
    adapter = subject.adapter()
    batches = subject.stream(adapter)
    return _sound(follow(adapter, batches), batches, subject)


def _sound(trace: Trace, batches: Sequence[Batch], subject: OnlineSubject) -> str | None:
    for place, batch in enumerate(batches):
        shape, used = (len(batch), subject.base.bed.config.n_classes), trace.used[place]
        for logits in trace.logits[2 * place : 2 * place + 2]:
            if logits.shape != shape or not bool(logits.isfinite().all()):
                return f"predictions of {len(batch)} samples must be finite logits (B, C) = {shape}"
        if type(used) is not int or not 0 <= used <= len(batch):
            return f"`adapt` must return how many of {len(batch)} samples entered the update, got {used!r}"
    return None


def count_is_declared(subject: OnlineSubject) -> str | None:
    adapter = subject.adapter()
    formula = adapter.card.parameters
    if not formula or adapter.method.card.trains:  # the formula is that of the plain backbone
        return None
    declared = evaluate(formula, {**subject.base.bed.config.symbols(), **numbers(adapter.options)})
    counted = sum(p.numel() for p in adapter.updated().values())
    if declared == counted:
        return None
    return f"{counted} values are updated, but `parameters` ({formula}) gives {declared}: mend either"


def forwards_are_declared(subject: OnlineSubject) -> str | None:
    """A filter may spare an update some of its passes, so less than declared is wrong only where all samples passed."""
    adapter = subject.adapter()
    declared = adapter.card.forwards
    for batch in subject.stream(adapter):
        with counted_forwards(adapter.method) as samples:
            used = adapter.adapt(batch)
        each = sum(samples) / len(batch)
        if each > declared + CLOSE or (used == len(batch) and each < declared - CLOSE):
            return f"an update takes {each:g} forward passes per sample, but forwards={declared:g}: mend either"
    return None


def draws_are_seeded(subject: OnlineSubject) -> str | None:
    traces = []
    for skipped in (0, 7):
        torch.rand(skipped)  # moves the global generator, which an adapter must not use
        adapter = subject.adapter()
        traces.append(follow(adapter, subject.stream(adapter)))
    return None if agree(*traces) else "two adapters with one `rng` differ: draw from self.rng alone"


Rule = Callable[[OnlineSubject], str | None]
RULES: Mapping[str, Rule] = {
    "reset-restores": reset_restores,
    "no-gradient-left": no_gradient_left,
    "predict-is-pure": predict_is_pure,
    "starts-unadapted": starts_unadapted,
    "samples-enter": samples_enter,
    "changes-are-declared": changes_are_declared,
    "updates-reach": updates_reach,
    "knowledge": knowledge,
    "batch-unchanged": batch_unchanged,
    "single-sample": single_sample,
    "finite": finite,
    "count-is-declared": count_is_declared,
    "forwards-are-declared": forwards_are_declared,
    "draws-are-seeded": draws_are_seeded,
}


def check_online(name: str, bases: Sequence[str] = (), options: Mapping[str, Any] | None = None) -> tuple[Finding, ...]:
    """Run every rule on a registered adapter, under its `check_options` where `options` does not say otherwise.

    Raises UnknownNameError if there is none of that name.
    """
    registry.onlines().card(name)
    return tuple(check_rule(rule, name, bases or default_bases(), options) for rule in RULES)


def default_bases() -> tuple[str, ...]:
    known = registry.methods()
    each = ([name for name in known.names() if known.card(name).family == family] for family in FAMILIES)
    return tuple(names[0] for names in each if names)


def check_rule(rule: str, name: str, bases: Sequence[str], options: Mapping[str, Any] | None = None) -> Finding:
    """One rule over all bases; a base that the adapter refuses is left out, unless it refuses all."""
    refused: list[str] = []
    chosen = {**registry.onlines().card(name).check_options, **(options or {})}

    def apply(base: Subject) -> str | None:
        try:
            return RULES[rule](OnlineSubject(name, base, chosen))
        except RefusedError as error:
            refused.append(str(error))
            return None

    for base in bases:
        finding = run_check(Check(rule, apply), Subject(base, Bed(), {}))
        if not finding.ok:
            return Finding(rule, False, f"over {base}: {finding.message}")
    if len(refused) == len(bases):
        return Finding(rule, False, f"it refuses every method: {refused[0]}")
    return Finding(rule, True, "")
