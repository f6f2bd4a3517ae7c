"""The copy task: remember some words, and say them."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from .repeat_copy import repeat_copy_batch
from .sequence_batch import SequenceBatch
from .words import WordTask


def copy_batch(words: Tensor, num_words: Tensor) -> SequenceBatch:
    """The sequences of given words, as the environment of pytorch-dnc forms them.

    They are those of :func:`repeat_copy_batch` for one repeat, asked for by a 1, without the end mark and its step:
    ``T = 2 * max(n) + 2``, and the mask is 1 at the n words of the target.

    Args:
        words: ``[S,B,L]``, of which a sequence has the first n.
        num_words: int64 ``[B]``, each n, from 0 to S.

    Returns:
        A batch with I = L + 2 and O = L.
    """
    input, target, mask = repeat_copy_batch(words, num_words, torch.ones_like(num_words), max_repeats_norm=1.0)
    end = target[..., -1:]
    return SequenceBatch(input[:-1], target[:-1, :, :-1], (mask - end)[:-1])


@dataclasses.dataclass(frozen=True)
class Copy(WordTask):
    """The copy task of pytorch-dnc, with its sizes by default. :func:`copy_batch` describes the sequences.

    Attributes:
        len_word, min_num_words, max_num_words: see :class:`WordTask`.
    """

    len_word: int = 8
    min_num_words: int = 5
    max_num_words: int = 10

    @property
    def output_dim(self) -> int:
        """O: the bits of a word."""
        return self.len_word

    def batch(self, batch_size: int, generator: torch.Generator | None = None) -> SequenceBatch:
        """Random sequences.

        Args:
            batch_size: B.
            generator: on the CPU; by default, torch's.

        Raises:
            ValueError: `batch_size` is below 1.
        """
        return copy_batch(*self._draw_words(batch_size, generator))

    def harder(self) -> dict[str, Copy]:
        """Up to six times as many words."""
        sizes = [factor * self.max_num_words for factor in (1, 2, 3, 4, 6)]
        return {f"{n} words": dataclasses.replace(self, min_num_words=n, max_num_words=n) for n in sizes}
