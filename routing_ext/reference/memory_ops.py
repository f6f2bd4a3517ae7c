"""The definitions of the operators that both memory networks have: to find by content, to write, to read."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-6


def content_weights(
    keys: Tensor, strengths: Tensor, memory: Tensor, *, masks: Tensor | None = None, cosine: str = "reference"
) -> Tensor:
    """``[B,H,N]``: over the locations, the softmax of each key's similarity to them, times its strength.

    The similarity is ``k.m / (sqrt((|k|^2 + e) (|m|^2 + e)) + e)`` with e = 1e-6, the cosine of key and location.

    Args:
        keys: ``[B,H,W]``.
        strengths: ``[B,H]``.
        memory: ``[B,N,W]``.
        masks: ``[B,H,W]``, with which each head multiplies its key and the memory before it compares them.
        cosine: ``"plain"``: the similarity is ``k.m / (|k| |m| + e)``.
    """
    if masks is None:
        products, seen = keys @ memory.mT, memory.unsqueeze(1)
    else:
        keys, seen = keys * masks, memory.unsqueeze(1) * masks.unsqueeze(2)  # [B,H,N,W]
        products = torch.einsum("bhw,bhnw->bhn", keys, seen)
    if cosine == "plain":
        cosines = products / (keys.norm(dim=-1, keepdim=True) * seen.norm(dim=-1) + EPSILON)
    else:
        squares = (keys.square().sum(-1, keepdim=True) + EPSILON) * (seen.square().sum(-1) + EPSILON)
        cosines = products / (squares.sqrt() + EPSILON)
    return torch.softmax(strengths.unsqueeze(-1) * cosines, -1)


def memory_write(memory: Tensor, write_weights: Tensor, erase: Tensor, add: Tensor) -> Tensor:
    """``[B,N,W]``: the memory, kept as far as no head erases it, and what all heads add.

    Args:
        memory: ``[B,N,W]``.
        write_weights: ``[B,V,N]``.
        erase: ``[B,V,W]``, in [0, 1].
        add: ``[B,V,W]``.
    """
    kept = (1 - write_weights.unsqueeze(-1) * erase.unsqueeze(-2)).prod(1)
    return memory * kept + write_weights.mT @ add


def memory_read(memory: Tensor, read_weights: Tensor) -> Tensor:
    """``[B,R,W]``: the mean of the locations of ``memory [B,N,W]`` under ``read_weights [B,R,N]``."""
    return read_weights @ memory
