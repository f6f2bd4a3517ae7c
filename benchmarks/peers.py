"""The other sides: the best ways we know to apply K linear layers to the samples that chose them, in plain PyTorch.

Each takes ``x [B,d]``, ``actions [B]``, K weights ``[o,d]`` and K biases ``[o]``, and returns ``[B,o]``. The plain-Python
loop is :class:`routing_ext.reference.Selection`.

Forms that stack the weights of all modules give the idle ones a gradient of zeros, where the loop and our Selection leave
None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LinearPeer = Callable[[Tensor, Tensor, Sequence[Tensor], Sequence[Tensor]], Tensor]

MAX_GATHERED_BYTES = 256 * 2**20
MAX_DENSE_MODULES = 4


def sort_and_count(actions: Tensor, num_modules: int) -> tuple[Tensor, Tensor]:
    """Order ``[B]`` and offsets ``[K+1]``; no check of the range."""
    order = torch.argsort(actions, stable=True)
    return order, F.pad(torch.bincount(actions, minlength=num_modules).cumsum(0), (1, 0))


def inverse_of(order: Tensor) -> Tensor:
    return torch.empty_like(order).scatter_(0, order, torch.arange(order.size(0)))


def sorted_segments(x: Tensor, actions: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """One ``F.linear`` for each selected module, on its samples as a slice of the sorted batch."""
    order = torch.argsort(actions, stable=True)
    segments = x.index_select(0, order).split(torch.bincount(actions, minlength=len(weights)).tolist())
    ys = [F.linear(rows, w, b) for rows, w, b in zip(segments, weights, biases, strict=True) if rows.size(0)]
    return torch.cat(ys).index_select(0, inverse_of(order))


def grouped_mm(x: Tensor, actions: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """``F.grouped_mm`` on the sorted batch and the stacked weights of the selected modules."""
    order = torch.argsort(actions, stable=True)
    counts = torch.bincount(actions, minlength=len(weights))
    selected = counts.nonzero().flatten().tolist()
    counts = counts[selected]
    w = torch.stack([weights[k] for k in selected])
    b = torch.stack([biases[k] for k in selected])
    y = F.grouped_mm(x.index_select(0, order), w.transpose(1, 2), offs=counts.cumsum(0, dtype=torch.int32))
    y = y + b.repeat_interleave(counts, 0)
    return y.index_select(0, inverse_of(order))


def grouped_mm_stacked(x: Tensor, actions: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """:func:`grouped_mm` for parameters that are stacked already: ``weight [K,o,d]``, ``bias [K,o]``."""
    order = torch.argsort(actions, stable=True)
    offsets = torch.bincount(actions, minlength=weight.size(0)).cumsum(0, dtype=torch.int32)
    y = F.grouped_mm(x.index_select(0, order), weight.transpose(1, 2), offs=offsets)
    return y.index_select(0, inverse_of(order)) + bias.index_select(0, actions)


def gathered_bmm(x: Tensor, actions: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """One matrix-vector product for each sample, with a copy of its weight."""
    return gathered_bmm_stacked(x, actions, torch.stack(list(weights)), torch.stack(list(biases)))


def gathered_bmm_stacked(x: Tensor, actions: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    w, b = weight.index_select(0, actions), bias.index_select(0, actions)
    return torch.baddbmm(b.unsqueeze(2), w, x.unsqueeze(2)).squeeze(2)


def padded_bmm(x: Tensor, actions: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """One ``baddbmm`` over all modules, each with as many rows as the busiest has samples."""
    return padded_bmm_stacked(x, actions, torch.stack(list(weights)), torch.stack(list(biases)))


def padded_bmm_stacked(x: Tensor, actions: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    order = torch.argsort(actions, stable=True)
    counts = torch.bincount(actions, minlength=weight.size(0))
    slots, module = int(counts.max()), actions.index_select(0, order)
    position = torch.arange(x.size(0)) - (counts.cumsum(0) - counts).index_select(0, module)
    place = torch.empty_like(order).scatter_(0, order, module * slots + position)
    padded = x.new_zeros((weight.size(0) * slots, x.size(1))).index_copy(0, place, x).view(weight.size(0), slots, -1)
    y = torch.baddbmm(bias.unsqueeze(1), padded, weight.transpose(1, 2))
    return y.flatten(0, 1).index_select(0, place)


def dense_then_gather(x: Tensor, actions: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """All modules on all samples as one ``F.linear``; then the rows that were wanted."""
    y = F.linear(x, torch.cat(list(weights)), torch.cat(list(biases))).view(x.size(0), len(weights), -1)
    return y.gather(1, actions.view(-1, 1, 1).expand(-1, 1, y.size(2))).squeeze(1)


def linear_peers(x: Tensor, num_modules: int, out_features: int) -> dict[str, LinearPeer]:
    """The forms that can run on this input, by name."""
    forms: dict[str, LinearPeer] = {"sorted segments": sorted_segments}
    aligned = (x.size(1) * x.element_size()) % 16 == 0 and (out_features * x.element_size()) % 16 == 0
    if aligned and x.dtype != torch.float64:
        forms["grouped_mm"] = grouped_mm
    forms["padded bmm"] = padded_bmm
    if x.numel() * out_features * x.element_size() < MAX_GATHERED_BYTES:
        forms["gathered bmm"] = gathered_bmm
    if num_modules <= MAX_DENSE_MODULES:
        forms["dense"] = dense_then_gather
    return forms


def compiled_peers(forms: dict[str, LinearPeer]) -> dict[str, LinearPeer]:
    """The forms that torch.compile makes something of. The batch never changes here, which is their best case."""
    wanted = ("sorted segments", "gathered bmm")
    return {f"{name}, compiled": torch.compile(forms[name]) for name in wanted if name in forms}


def sort_and_split(x: Tensor, actions: Tensor, modules: Sequence[nn.Module]) -> Tensor:
    """:func:`sorted_segments` for modules of any type."""
    order = torch.argsort(actions, stable=True)
    segments = x.index_select(0, order).split(torch.bincount(actions, minlength=len(modules)).tolist())
    ys = [module(rows) for rows, module in zip(segments, modules, strict=True) if rows.size(0)]
    return torch.cat(ys).index_select(0, inverse_of(order))
