"""How a neural Turing machine addresses its memory, and the whole step (Graves et al., 2014)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._memory_options import DncOptions, numbers
from .._states import NtmState
from ._differentiable import differentiable


def _fake_access(
    interface: Tensor, memory: Tensor, write_weights: Tensor, read_weights: Tensor, options: Sequence[float]
) -> tuple[Tensor, ...]:
    (batch, locations, word), writes, reads = memory.shape, write_weights.size(1), read_weights.size(1)
    shifts = (interface.size(1) - writes * (3 * word + 3) - reads * (word + 3)) // (writes + reads)
    sizes = [0, 0, 0, *(int(n) for n in (locations, word, writes, reads, shifts))]
    row = torch.ops.routing_ext.memory_row_size("ntm", options, sizes, memory.dtype)
    shapes = (memory.shape, write_weights.shape, read_weights.shape, (batch, reads, word), (batch, row))
    return tuple(memory.new_empty(s) for s in shapes)


_ntm_location = differentiable(
    "ntm_location", lambda content, gates, shifts, sharpness, previous: content.new_empty(content.shape)
)
_ntm_access = differentiable("ntm_access", _fake_access, results=4)


def ntm_location(content: Tensor, gates: Tensor, shifts: Tensor, sharpness: Tensor, previous: Tensor) -> Tensor:
    """Weights by content, blended with the last step's, moved along the memory, and sharpened.

    Computes what :func:`routing_ext.reference.ntm_location` does.

    Args:
        content: ``[B,H,N]``.
        gates: ``[B,H]``, in [0, 1]; 0: nothing of the content.
        shifts: ``[B,H,S]``, by ``-(S // 2)`` and up; adding up to 1.
        sharpness: ``[B,H]``, at least 1.
        previous: ``[B,H,N]``, weights of the last step.

    Returns:
        ``[B,H,N]``; finite, with finite gradients, even where all powers vanish.

    Raises:
        RuntimeError: wrong shape, dtype or device.
    """
    return _ntm_location(content, gates, shifts, sharpness, previous)  # type: ignore[no-any-return]


def ntm_access(interface: Tensor, state: NtmState, *, words: str = "tanh") -> NtmState:
    """The state after one step of the memory, controlled by the interface: all of the accessor in one call.

    Computes what :func:`routing_ext.reference.ntm_access` does.

    Args:
        interface: ``[B,I]``, before its activations. For the V write heads: keys ``V*W``, strengths ``V``, gates ``V``, shifts
            ``V*S``, sharpness ``V``, erase ``V*W``, add ``V*W``; for the R read heads: keys ``R*W``, strengths ``R``, gates
            ``R``, shifts ``R*S``, sharpness ``R``. S is what fits.
        state: after the last step. Of its read vectors only the shape counts; `hidden` and `cell` are handed on.
        words: ``"linear"``: keys and what is added to the memory are as the interface has them.

    Returns:
        The next state. Differentiable, once, in the interface and the state.

    Raises:
        ValueError: words are none of these.
        RuntimeError: wrong shape, dtype or device.
    """
    options = numbers(DncOptions.read("ntm_access", {"words": words}))
    *memory, read_vectors = _ntm_access(interface, *state[:3], options=(options,))
    return NtmState._make([*memory, state.hidden, state.cell, read_vectors])
