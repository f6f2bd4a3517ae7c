"""What both memory networks do with their memory: find by content, write, read."""

from __future__ import annotations

from torch import Tensor

from ._differentiable import differentiable

_content_weights = differentiable(
    "content_weights", lambda keys, strengths, memory: keys.new_empty((*strengths.shape, memory.size(1)))
)
_memory_write = differentiable("memory_write", lambda memory, write_weights, erase, add: memory.new_empty(memory.shape))
_memory_read = differentiable(
    "memory_read", lambda memory, read_weights: memory.new_empty((*read_weights.shape[:2], memory.size(2)))
)


def content_weights(keys: Tensor, strengths: Tensor, memory: Tensor) -> Tensor:
    """Over the locations of the memory, the softmax of each key's cosine similarity to them, times its strength.

    Computes what :func:`routing_ext.reference.content_weights` does.

    Args:
        keys: ``[B,H,W]``.
        strengths: ``[B,H]``.
        memory: ``[B,N,W]``.

    Returns:
        ``[B,H,N]``; finite, with finite gradients, for rows of zeros and for any finite strength, too.

    Raises:
        RuntimeError: wrong shape, dtype or device.
    """
    return _content_weights(keys, strengths, memory)  # type: ignore[no-any-return]


def memory_write(memory: Tensor, write_weights: Tensor, erase: Tensor, add: Tensor) -> Tensor:
    """The memory, kept as far as no head erases it, and what all heads add.

    Computes what :func:`routing_ext.reference.memory_write` does.

    Args:
        memory: ``[B,N,W]``.
        write_weights: ``[B,V,N]``.
        erase: ``[B,V,W]``, in [0, 1].
        add: ``[B,V,W]``.

    Returns:
        ``[B,N,W]``.

    Raises:
        RuntimeError: wrong shape, dtype or device.
    """
    return _memory_write(memory, write_weights, erase, add)  # type: ignore[no-any-return]


def memory_read(memory: Tensor, read_weights: Tensor) -> Tensor:
    """The mean of the locations of the memory under the weights of each read head.

    Computes what :func:`routing_ext.reference.memory_read` does.

    Args:
        memory: ``[B,N,W]``.
        read_weights: ``[B,R,N]``.

    Returns:
        ``[B,R,W]``.

    Raises:
        RuntimeError: wrong shape, dtype or device.
    """
    return _memory_read(memory, read_weights)  # type: ignore[no-any-return]
