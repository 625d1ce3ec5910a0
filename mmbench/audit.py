"""What a step does that a method's own lists do not tell: hidden tensors, memory that stays, waits for the device."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmbench.bench import Bench
from mmbench.data.batch import Batch
from mmbench.errors import DivergedError
from mmbench.meter import storage_id
from mmbench.strategy import Regimen

AUDITED = 2
"""Steps looked at; growth is what the last one leaves, for the first may fill caches."""


@dataclass(frozen=True)
class Audit:
    leaves: tuple[Tensor, ...]
    """Tensors that a loss gives a gradient, wherever they are held."""
    kept_bytes_per_step: int
    waits_per_step: int | None
    """None on meta, where no value can be read."""


def audit(regimen: Regimen, batch: Batch, take: Callable[[], object] | None, bench: Bench) -> Audit:
    """Look at a few steps of `regimen`; `take` is the optimiser's step, None on the meta device.

    Raises DivergedError where a loss is not finite.
    """
    gc.collect()
    gc.freeze()  # what is there already is not what a step leaves, and need not be looked through
    try:
        return _steps(regimen, batch, take, bench)
    finally:
        gc.unfreeze()


def _steps(regimen: Regimen, batch: Batch, take: Callable[[], object] | None, bench: Bench) -> Audit:
    leaves: tuple[Tensor, ...] = ()
    held = _Held()
    sizes: list[int] = []
    waits = 0
    total = AUDITED + 1
    for step in range(AUDITED):
        with held, Waits() as counted:
            with bench.autocast():
                loss = regimen.loss(batch).total
            leaves = tuple(graph_leaves(loss))
            loss.backward()  # type: ignore[no-untyped-call]
            regimen.after_backward(step, total)
        if take is not None:
            take()
        with held, counted:
            regimen.method.after_step(step, total)
        waits = counted.count
        if not loss.is_meta and not torch.isfinite(loss):
            raise DivergedError(f"the loss of step {step + 1} is {float(loss.detach())}")
        for leaf in leaves:
            leaf.grad = None
        del loss
        sizes.append(held.live_bytes())
    return Audit(leaves, sizes[-1] - sizes[-2], None if take is None else waits)


def graph_leaves(loss: Tensor) -> Iterator[Tensor]:
    """Every tensor at which the graph of a loss ends, each once."""
    seen: set[Any] = set()
    waiting = [loss.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting += [following for following, _ in node.next_functions]


class _Held:
    """Bytes of all tensors alive: those Python holds, and those that graphs made inside keep for backward."""

    def __init__(self) -> None:
        self._saved: weakref.WeakSet[_Packed] = weakref.WeakSet()

    def __enter__(self) -> _Held:
        # A fresh wrapper lives exactly as long as the graph that it was packed for.
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda packed: packed.tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, tensor: Tensor) -> _Packed:
        packed = _Packed(tensor)
        self._saved.add(packed)
        return packed

    def live_bytes(self) -> int:
        gc.collect()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # looking at every object wakes deprecated ones
            found = [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor)]
        found += [packed.tensor for packed in self._saved]
        return sum({storage_id(t): t.untyped_storage().nbytes() for t in found if t.layout is torch.strided}.values())


class _Packed:
    """What autograd keeps in place of a tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what must wait for the device: values read by Python, and shapes that depend on values."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        self.count += _waits(func, args, kwargs)
        return func(*args, **kwargs)


_ATEN = torch.ops.aten
VALUES = frozenset(
    (
        *(_ATEN._local_scalar_dense.default, _ATEN.equal.default, _ATEN.allclose.default, _ATEN.nonzero.default),
        *(_ATEN.masked_select.default, _ATEN.bincount.default, _ATEN._unique2.default, _ATEN.unique_dim.default),
        *(_ATEN.unique_consecutive.default, _ATEN.unique_dim_consecutive.default),
    )
)
"""What gives Python a value, or a shape that depends on values."""
COPIES = frozenset((_ATEN._to_copy.default, _ATEN.copy_.default))


def _waits(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a GPU must have come so far before Python goes on."""
    if func in VALUES:
        return True
    if func is _ATEN.index.Tensor:
        return _by_mask(args[1])
    if func in (_ATEN.index_put.default, _ATEN.index_put_.default):
        return _by_mask(args[1]) and args[2].numel() > 1  # one value is filled in wherever the mask holds
    if func is _ATEN.repeat_interleave.Tensor:
        return kwargs.get("output_size") is None
    return func in COPIES and _crosses(func, args, kwargs)


def _by_mask(indices: Sequence[Tensor | None]) -> bool:
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


def _crosses(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """A copy between the host and the GPU that is waited for."""
    if func is _ATEN._to_copy.default:
        here, there = args[0].device, torch.device(kwargs.get("device") or args[0].device)
        return here.type != there.type and not kwargs.get("non_blocking")
    return args[0].device.type != args[1].device.type and not (args[2:] and args[2]) and not kwargs.get("non_blocking")
