"""What the tasks on words of bits share."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from .sequence_task import SequenceTask


def random_words(*shape: int, generator: torch.Generator | None = None) -> Tensor:
    """Zeros and ones, equally likely, of the default dtype."""
    return torch.randint(2, shape, generator=generator).to(torch.get_default_dtype())


@dataclasses.dataclass(frozen=True)
class WordTask(SequenceTask):
    """Sequences of random words.

    Attributes:
        len_word: L, bits of a word.
        min_num_words, max_num_words: of a sequence, equally likely from the one to the other.

    Raises:
        ValueError: a number below 1, or a maximum below its minimum.
    """

    len_word: int
    min_num_words: int
    max_num_words: int

    def __post_init__(self) -> None:
        self._check_size("len_word")
        self._check_range("num_words")

    @property
    def input_dim(self) -> int:
        """I: the bits of a word and two marks."""
        return self.len_word + 2

    def _draw_words(self, batch_size: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """``(words [max_num_words,B,L], num_words [B])``."""
        self._check_batch_size(batch_size)
        num_words = self._draw("num_words", batch_size, generator)
        return random_words(self.max_num_words, batch_size, self.len_word, generator=generator), num_words
