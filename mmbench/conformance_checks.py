"""The checks themselves. Each takes a method on its bed and says what is wrong and how to mend it, or None."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from safetensors.torch import load as read_safetensors
from safetensors.torch import save as write_safetensors
from torch import Tensor, nn

from mmbench.backbone.cavmae import CAVMAEFT
from mmbench.conformance_bed import KNOWLEDGE, Subject, blanked, mode, parameters, tensors, train, watch
from mmbench.data.batch import Batch
from mmbench.formula import evaluate, numbers
from mmbench.method import Method
from mmbench.train import shares

EXACT, CLOSE = 1e-6, 1e-5


def identity_at_start(subject: Subject) -> str | None:
    method = subject.make()
    if not method.card.identity_at_start:
        return None
    batch = subject.bed.batch()
    with torch.no_grad():
        plain = subject.bed.net().eval()(batch.audio, batch.image)
    difference = gap(method.predict(batch), plain)
    if difference <= EXACT:
        return None
    return (
        f"before training its logits differ from the frozen backbone's by {difference:.1e}: start the added tensors "
        "so that they change nothing, or declare identity_at_start=False"
    )


def gradients_reach(subject: Subject) -> str | None:
    method = subject.make()
    declared = set(method.trainable())
    if not method.card.trains:
        return f"declares trains=False but frees {words(declared)}" if declared else None
    seen = train(method, subject.bed)
    if declared - seen.reached:
        return f"no gradient reaches {words(declared - seen.reached)}: use them in `logits` or freeze them in `build`"
    if seen.strays:
        return f"a gradient reaches {words(seen.strays)}, which `trainable` does not name: freeze them or declare them"
    return None


def frozen_unchanged(subject: Subject) -> str | None:
    net = subject.bed.net()
    source = dict(net.named_parameters())  # the objects themselves: a wrapper may rename them
    method = subject.make(net=net)
    trained = {id(p) for p in method.trainable().values()} | {id(p) for p in state_buffers(method).values()}
    watched = {name: t for name, t in {**source, **tensors(method)}.items() if id(t) not in trained}
    before = {name: t.detach().clone() for name, t in watched.items()}
    train(method, subject.bed)
    method.predict(subject.bed.batch())
    moved = {name for name, t in watched.items() if not torch.equal(t, before[name])}
    if moved:
        return f"training or predicting changed frozen tensors: {words(moved)}; write to trainable tensors only"
    return None


def state_buffers(method: Method) -> dict[str, Tensor]:
    """Buffers that the method's state declares."""
    declared = set(method.state())
    return {name: t for name, t in tensors(method).items() if name in declared}


def state_round_trip(subject: Subject) -> str | None:
    method, batch = subject.trained(), subject.bed.batch()
    state, expected = method.state(), method.predict(subject.bed.batch())
    for how, copy in (("", state), (" from a file", read_safetensors(write_safetensors(state)) if state else {})):
        other = subject.make(seed=7)
        other.load(copy)
        if not torch.equal(other.predict(batch), expected):
            return (
                f"a state loaded{how} into a method built with another seed predicts something else: `state` must "
                "hold every tensor that is not the backbone's, random ones that stay frozen included"
            )
    return None


def start_is_restored(subject: Subject) -> str | None:
    method, batch = subject.make(), subject.bed.batch()
    start = method.state()
    kept, expected = {n: t.clone() for n, t in start.items()}, method.predict(batch)
    train(method, subject.bed)
    if any(not torch.equal(start[name], kept[name]) for name in kept):
        return "training changed a state that was taken before it: `state` must return copies"
    method.load(start)
    if not torch.equal(method.predict(batch), expected):
        return "loading the start state after training does not restore the first predictions: `load` misses something"
    return None


def export_equals_predict(subject: Subject) -> str | None:
    method, batch = subject.trained(), subject.bed.batch()
    before = method.predict(batch)
    plain = method.export()
    if plain is None:
        return None
    if type(plain) is not CAVMAEFT or set(plain.state_dict()) != set(subject.bed.net().state_dict()):
        return "`export` must return a plain CAVMAEFT with the backbone's own tensor names, or None"
    with torch.no_grad():
        difference = gap(plain.eval()(batch.audio, batch.image), before)
    if difference > CLOSE:
        return (
            f"the exported backbone's logits differ from `predict` by {difference:.1e}: merge everything or return None"
        )
    if not torch.equal(method.predict(batch), before):
        return "`export` changed the method itself: work on a copy (copy.deepcopy(self.net))"
    return None


def alone_equals_batch(subject: Subject) -> str | None:
    method, batch = subject.trained(), subject.bed.batch()
    if method.card.needs.batch_dependent:
        return None
    alone = torch.cat([method.predict(batch.select([i])) for i in range(len(batch))])
    difference = gap(alone, method.predict(batch))
    if difference <= CLOSE:
        return None
    return f"a sample's logits change by {difference:.1e} with its companions: declare needs batch_dependent or mend it"


def count_is_declared(subject: Subject) -> str | None:
    method = subject.make()
    formula = method.card.parameters
    if not formula:
        return None
    declared = evaluate(formula, {**subject.bed.config.symbols(), **numbers(method.options)})
    counted = sum(p.numel() for name, p in method.trainable().items() if not name.startswith("mlp_head."))
    if declared == counted:
        return None
    return f"{counted} values train beside the head, but `parameters` ({formula}) gives {declared}: mend either"


def blind_call(subject: Subject) -> str | None:
    method = subject.trained()
    reads: list[str] = []
    batch = watch(subject.bed.batch(), forbidden(method), reads)
    told = method.predict(batch)
    if reads:
        return f"`predict` reads {words(reads)}, which its needs (case: {method.card.needs.case}) do not grant"
    if not torch.equal(method.predict(blanked(method, subject.bed.batch())), told):
        return "predictions depend on knowledge that its needs do not declare: declare needs case, or do without it"
    return None


def training_knowledge(subject: Subject) -> str | None:
    method = subject.make()
    needs = method.card.needs
    if not method.card.trains or needs.train_case or needs.case == "oracle":
        return None
    reads: list[str] = []
    method.loss(watch(subject.bed.batch(), frozenset({"case", "affected"}), reads))
    return "`loss` reads the case of training samples: declare needs train_case" if reads else None


def phases_share(subject: Subject) -> str | None:
    phases = subject.make().phases()
    total = sum(phase.share for phase in phases)
    if not math.isclose(total, 1.0, abs_tol=1e-9) or any(phase.share <= 0 for phase in phases):
        return f"the shares of `phases` must be positive and sum to 1; they are {[p.share for p in phases]}"
    if sum(shares(997, [phase.share for phase in phases])) != 997:
        return "the phases do not spend the samples of the budget exactly"
    names = [phase.name for phase in phases]
    return None if len(set(names)) == len(names) else f"two phases have one name: {words(names)}"


def groups_cover(subject: Subject) -> str | None:
    method = subject.make()
    if not method.card.trains:
        return None
    names = {id(p): name for name, p in method.trainable().items()}
    given: list[int] = []
    for phase in method.phases():
        method.begin(phase)
        listed = [id(p) for group in method.groups(1e-3) for p in group["params"]]
        twice = {names.get(key, "an undeclared tensor") for key in listed if listed.count(key) > 1}
        if twice:
            return f"`groups` lists {words(twice)} more than once: each tensor belongs in one group"
        given += listed
    if set(given) - set(names):
        return "`groups` lists tensors that `trainable` does not name: declare them or leave them out"
    forgotten = {name for key, name in names.items() if key not in given}
    return f"`groups` leaves out {words(forgotten)}: they would never be updated" if forgotten else None


def predict_is_pure(subject: Subject) -> str | None:
    method, batch = subject.trained(), subject.bed.batch()
    before = {name: (t.detach().clone(), t.requires_grad) for name, t in tensors(method).items()}
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(1) or t, lambda t: t):  # type: ignore[func-returns-value]
        logits = method.predict(batch)
    if logits.shape != (len(batch), subject.bed.config.n_classes) or not bool(logits.isfinite().all()):
        return f"`predict` must return finite logits (B, C) = {(len(batch), subject.bed.config.n_classes)}"
    if saved or logits.requires_grad:
        return "`predict` builds a graph: wrap it in torch.no_grad()"
    if any(p.grad is not None for p in parameters(method).values()):
        return "`predict` leaves gradients behind: clear them"
    if any(not torch.equal(t, before[n][0]) or t.requires_grad != before[n][1] for n, t in tensors(method).items()):
        return "`predict` changes tensors: updates at test time belong in an online adapter"
    return None if torch.equal(method.predict(batch), logits) else "two calls of `predict` on one batch disagree"


def micro_batches(subject: Subject) -> str | None:
    method = subject.make()
    if not method.card.trains or method.card.needs.batch_dependent:
        return None
    train(method, subject.bed, steps=1)
    random = any(isinstance(m, nn.Dropout) and m.p > 0 for m in (*method.net.modules(), *method.extra.modules()))
    mode(method, not random)  # dropout draws anew for each part; without it the training mode is what counts
    batch = subject.bed.batch(5)
    whole, parts = gradient(method, [batch]), gradient(method, [batch.select(range(s, s + 2)) for s in (0, 2, 4)])
    if set(whole) == set(parts) and all(gap(whole[n], parts[n]) <= CLOSE * scale(whole[n]) for n in whole):
        return None
    return (
        "gradients of micro-batches do not add up to that of the whole batch: average the loss over samples, "
        "or declare needs batch_dependent"
    )


def gradient(method: Method, parts: list[Batch]) -> dict[str, Tensor]:
    """The gradient of a batch given in equal parts."""
    for parameter in method.trainable().values():
        parameter.grad = None
    for part in parts:
        (method.loss(part).total / len(parts)).backward()  # type: ignore[no-untyped-call]
    return {n: p.grad.clone() for n, p in method.trainable().items() if p.grad is not None}


def scale(tensor: Tensor) -> float:
    return max(1.0, float(tensor.abs().max()))


def view_is_pure(subject: Subject) -> str | None:
    method, batch, again = subject.make(), subject.bed.batch(), subject.bed.batch()
    one, two = (method.view(batch, torch.Generator().manual_seed(3)) for _ in range(2))
    if not (torch.equal(batch.audio, again.audio) and torch.equal(batch.image, again.image)):
        return "`view` changes its batch in place: return a new one"
    if not (torch.equal(one.audio, two.audio) and torch.equal(one.image, two.image)):
        return "`view` draws from elsewhere than its `rng`: pass generator=rng"
    return None


def start_is_seeded(subject: Subject) -> str | None:
    torch.manual_seed(1)
    one = subject.make(seed=3)
    torch.manual_seed(2)
    two = subject.make(seed=3)
    batch = subject.bed.batch()
    if torch.equal(one.predict(batch), two.predict(batch)) and same(one.state(), two.state()):
        return None
    return "two methods built from one seed differ: draw every start value from the `rng` that `build` gets"


def combined_state(subject: Subject) -> str | None:
    one, two, batch = subject.trained(), subject.make(seed=7), subject.bed.batch()
    expected = one.predict(batch)
    state = one.state()
    combined = one.combine((state, two.state()))
    if combined is None:
        return None
    one.load(combined)
    if one.predict(batch).shape != expected.shape:
        return "a combined state cannot predict"
    one.load(state)
    if not torch.equal(one.predict(batch), expected):
        return "after a combined state, `load` does not bring a single state back"
    return None


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def forbidden(method: Method) -> frozenset[str]:
    """What `predict` may not look at, by the declared needs."""
    granted = {"none": set(), "avail": {"available"}, "oracle": set(KNOWLEDGE) - {"label"}}[method.card.needs.case]
    return frozenset(set(KNOWLEDGE) - granted)


def words(names: Iterable[str]) -> str:
    """A few names, and how many more there are."""
    shown = sorted(set(names))
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")


def gap(one: Tensor, other: Tensor) -> float:
    """Largest absolute difference of two tensors of one shape."""
    return float((one - other).abs().max())
