"""Batches of sequences, and how well they were answered."""

from __future__ import annotations

import math
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

Self = TypeVar("Self", bound="SequenceBatch")


class SequenceBatch(NamedTuple):
    """B sequences of T steps, those that end early filled up with zeros. The elements of the target are bits.

    Attributes:
        input: ``[T,B,I]``.
        target: ``[T,B,O]``, in [0, 1].
        mask: ``[T,B,1]``: 1 at the steps whose output counts, 0 elsewhere.
    """

    input: Tensor
    target: Tensor
    mask: Tensor

    def to(self: Self, *args: torch.device | torch.dtype | str, non_blocking: bool = False) -> Self:
        """The same with another dtype or on another device; arguments as of :meth:`torch.Tensor.to`."""
        return type(self)(*(t.to(*args, non_blocking=non_blocking) for t in self))  # type: ignore[call-overload]

    def loss(self, output: Tensor) -> Tensor:
        """What pytorch-dnc trains with: cross-entropy (nats) where the mask is 1, summed, divided by ``T * B * O`` and by B.

        That is the mean over all elements, those that do not count included, and once more over the batch.

        Args:
            output: ``[T,B,O]``, probabilities.
        """
        return self._cross_entropy(output) / (self.target.numel() * self.target.size(1))

    def bits_per_sequence(self, output: Tensor) -> Tensor:
        """Cross-entropy where the mask is 1, in bits, summed over each sequence; its mean over the batch.

        Whoever guesses pays one bit for each bit that counts.

        Args:
            output: ``[T,B,O]``, probabilities.
        """
        return self._cross_entropy(output) / (math.log(2) * self.target.size(1))

    def wrong_bits(self, output: Tensor) -> Tensor:
        """``[T,B,O]`` bool: which bits that count are wrong, the output being rounded.

        Args:
            output: ``[T,B,O]``, probabilities.
        """
        self._check(output)
        return (self.mask > 0) & ((output > 0.5) != (self.target > 0.5))

    def solved(self, output: Tensor) -> Tensor:
        """``[B]`` bool: which sequences have nothing wrong.

        Args:
            output: as of :meth:`wrong_bits`.
        """
        return ~self.wrong_bits(output).transpose(0, 1).flatten(1).any(1)

    @property
    def num_counted(self) -> Tensor:
        """A scalar: of how many bits each can be wrong."""
        return self.mask.sum() * self.target.size(2)

    def _cross_entropy(self, output: Tensor) -> Tensor:
        """Its sum over all that counts, in nats."""
        self._check(output)
        return F.binary_cross_entropy(output, self.target, self.mask.expand_as(self.target), reduction="sum")

    def _check(self, output: Tensor) -> None:
        if output.shape != self.target.shape:
            raise ValueError(f"{type(self).__name__}: output must be {list(self.target.shape)}, got {list(output.shape)}")
