"""Priority sort: see some words, each with a priority, and say the most urgent ones in order."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from .sequence_batch import SequenceBatch
from .sequence_task import SequenceTask
from .words import random_words


def priority_sort_batch(words: Tensor, priorities: Tensor, num_sorted: int) -> SequenceBatch:
    """The sequences of given words (Graves et al., 2014, section 4.5).

    ``T = S + 1 + num_sorted`` steps:

    - S steps: the words, input elements 0 to L - 1, and their priorities, input element L;
    - 1 step: the mark that asks for them, input element L + 1;
    - num_sorted steps: no input; the words of the highest priorities, the highest first, in the target.

    The mask is 1 at these last steps. Of equal priorities, the word that came first comes first.

    Args:
        words: ``[S,B,L]``.
        priorities: ``[S,B]``.
        num_sorted: how many words to say, from 1 to S.

    Returns:
        A batch with I = L + 2 and O = L.
    """
    num_words, batch_size, len_word = words.shape
    order = priorities.argsort(dim=0, descending=True, stable=True)[:num_sorted]
    answer = slice(num_words + 1, num_words + 1 + num_sorted)
    input, target, mask = (words.new_zeros(answer.stop, batch_size, size) for size in (len_word + 2, len_word, 1))
    input[:num_words, :, :len_word] = words
    input[:num_words, :, len_word] = priorities
    input[num_words, :, len_word + 1] = 1
    target[answer] = words.gather(0, order.unsqueeze(-1).expand(-1, -1, len_word))
    mask[answer] = 1
    return SequenceBatch(input, target, mask)


@dataclasses.dataclass(frozen=True)
class PrioritySort(SequenceTask):
    """Priority sort, with the sizes of Graves et al. (2014). :func:`priority_sort_batch` describes the sequences.

    Priorities are uniform from -1 to 1. The publication does not say how long the words are.

    Attributes:
        len_word: L, bits of a word.
        num_words: S, of a sequence.
        num_sorted: how many of them are asked for.

    Raises:
        ValueError: a number below 1, or more words asked for than there are.
    """

    len_word: int = 8
    num_words: int = 20
    num_sorted: int = 16

    def __post_init__(self) -> None:
        self._check_size("len_word")
        if not 1 <= self.num_sorted <= self.num_words:
            got = f"{self.num_sorted} and {self.num_words}"
            raise ValueError(f"PrioritySort: must hold 1 <= num_sorted <= num_words, got {got}")

    @property
    def input_dim(self) -> int:
        """I: the bits of a word, its priority and a mark."""
        return self.len_word + 2

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
        self._check_batch_size(batch_size)
        words = random_words(self.num_words, batch_size, self.len_word, generator=generator)
        priorities = 2 * torch.rand(self.num_words, batch_size, generator=generator, dtype=words.dtype) - 1
        return priority_sort_batch(words, priorities, self.num_sorted)

    def harder(self) -> dict[str, PrioritySort]:
        """Up to twice as many words, of which as large a part is asked for."""
        sizes = [(half * self.num_words // 2, half * self.num_sorted // 2) for half in (2, 3, 4)]
        return {f"{m} of {n} words": dataclasses.replace(self, num_words=n, num_sorted=m) for n, m in sizes}
