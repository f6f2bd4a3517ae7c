"""Several modules for each sample: the batch with a row for each choice."""

from __future__ import annotations

from torch import Tensor


def choices_of(name: str, batch: int, actions: Tensor, weights: Tensor) -> int:
    """n, for ``actions [B, n]``, or as many in one dimension, and ``weights [B, n]``.

    Raises:
        ValueError: they are of other shapes.
    """
    if weights.dim() not in (1, 2) or weights.size(0) != batch:
        raise ValueError(f"{name}: weights must be [B, n] for {batch} samples, got {list(weights.shape)}")
    choices = 1 if weights.dim() == 1 else weights.size(1)
    if actions.numel() != batch * choices:
        raise ValueError(
            f"{name}: actions must have one element for each of the weights {list(weights.shape)}, got {list(actions.shape)}"
        )
    return choices


def each_choice(xs: Tensor, mask: Tensor | None, choices: int) -> tuple[Tensor, Tensor | None]:
    """``xs [B * n, ...]`` and ``mask [B * n]``: each sample n times, one behind the other."""
    if choices == 1:
        return xs, mask
    rows = xs.unsqueeze(1).expand(-1, choices, *xs.shape[1:]).flatten(0, 1)
    return rows, None if mask is None else mask.reshape(-1, 1).expand(-1, choices).flatten()
