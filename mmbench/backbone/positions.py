"""Fixed sine-cosine position embeddings of a token grid."""

from __future__ import annotations

import torch
from torch import Tensor


def sincos_positions(dim: int, rows: int, columns: int) -> Tensor:
    """(1, rows * columns, dim) float32, computed in float64; token n sits at column n mod columns, row n div columns.

    Each token holds sin and cos of its column, then sin and cos of its row, dim / 4 values each.
    """
    quarter = dim // 4
    exponent = torch.arange(quarter, dtype=torch.float64, device="cpu") / quarter
    omega = torch.pow(torch.tensor(10000.0, dtype=torch.float64, device="cpu"), -exponent)  # (K,)
    token = torch.arange(rows * columns, dtype=torch.float64, device="cpu")
    x = torch.outer(token % columns, omega)  # (N, K)
    y = torch.outer(torch.floor(token / columns), omega)  # (N, K)
    table = torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)  # (N, dim)
    return table.unsqueeze(0).float()
