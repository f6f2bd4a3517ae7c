"""The definitions of the operators that both memory networks have: to find by content, to write, to read."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-6


def content_weights(keys: Tensor, strengths: Tensor, memory: Tensor) -> Tensor:
    """``[B,H,N]``: over the locations, the softmax of each key's similarity to them, times its strength.

    The similarity is ``k.m / (sqrt((|k|^2 + e) (|m|^2 + e)) + e)`` with e = 1e-6, the cosine of key and location.

    Args:
        keys: ``[B,H,W]``.
        strengths: ``[B,H]``.
        memory: ``[B,N,W]``.
    """
    products = keys @ memory.mT
    key_squares = keys.square().sum(-1, keepdim=True)
    memory_squares = memory.square().sum(-1).unsqueeze(1)
    cosines = products / (((key_squares + EPSILON) * (memory_squares + EPSILON)).sqrt() + EPSILON)
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
