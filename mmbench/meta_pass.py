"""Forward passes on the meta device as they run elsewhere: torch has no fused attention and no autocast there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

LOWER = frozenset(
    (
        *(F.linear, F.conv1d, F.conv2d, F.scaled_dot_product_attention, F.bilinear),
        *(torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.einsum, torch.conv1d, torch.conv2d),
        *(Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm, Tensor.addmm, Tensor.baddbmm),
    )
)
"""Matrix products and what is made of them, which autocast runs in bf16."""
FULL = frozenset(
    (
        *(F.layer_norm, F.group_norm, F.softmax, F.log_softmax, F.cross_entropy, F.nll_loss, F.mse_loss, F.kl_div),
        *(F.binary_cross_entropy_with_logits, F.cosine_similarity, F.normalize, torch.softmax, torch.log_softmax),
        *(Tensor.softmax, Tensor.log_softmax, torch.norm, Tensor.norm, torch.exp, Tensor.exp, torch.log, Tensor.log),
        *(torch.sum, Tensor.sum, Tensor.pow, torch.pow, Tensor.__pow__, Tensor.cumsum),
    )
)
"""What it runs in fp32 on a GPU."""


class MetaPass(TorchFunctionMode):
    """Fused attention, and with `lower` the casts of CUDA's autocast; a parameter's cast is kept, as there."""

    def __init__(self, lower: bool) -> None:
        super().__init__()
        self._lower = lower
        self._casts: dict[int, tuple[Tensor, Tensor]] = {}  # holding the parameter keeps its id from being reused

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if self._lower and func in LOWER:
            args, kwargs = self._cast(args, torch.bfloat16), self._cast(kwargs, torch.bfloat16)
        elif self._lower and func in FULL:
            args, kwargs = self._cast(args, torch.float32), self._cast(kwargs, torch.float32)
        if func is F.scaled_dot_product_attention:
            return fused_attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, Tensor):
            return self._cast_tensor(value, dtype)
        if isinstance(value, (tuple, list)):
            return type(value)(self._cast(inner, dtype) for inner in value)
        if isinstance(value, dict):
            return {key: self._cast(inner, dtype) for key, inner in value.items()}
        return value

    def _cast_tensor(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        if tensor.dtype not in (torch.float32, torch.bfloat16) or tensor.dtype == dtype:
            return tensor
        if not (tensor.is_leaf and tensor.requires_grad and torch.is_grad_enabled()):
            return tensor.to(dtype)
        if id(tensor) not in self._casts:
            self._casts[id(tensor)] = tensor, tensor.to(dtype)
        return self._casts[id(tensor)][1]


def fused_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **more: Any) -> Tensor:
    """The kernel that keeps no scores (B, H, T, T); with dropout, which it cannot, the explicit form."""
    if more.get("dropout_p") or query.ndim != 4:
        return F.scaled_dot_product_attention(query, key, value, attn_mask, **more)
    mask = None if attn_mask is None else attn_mask.to(query.dtype)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(query, key, value, attn_mask=mask, scale=more.get("scale"), is_causal=more.get("is_causal", False))[0]  # type: ignore[no-any-return]
