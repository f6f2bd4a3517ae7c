"""What the tasks on words of bits share."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class WordTask:
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
        if self.len_word < 1:
            raise ValueError(f"{type(self).__name__}: len_word must be at least 1, got {self.len_word}")
        self._check_range("num_words")

    @property
    def input_dim(self) -> int:
        """I: the bits of a word and two marks."""
        return self.len_word + 2

    def _check_range(self, name: str) -> None:
        low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
        if not 1 <= low <= high:
            names = f"1 <= min_{name} <= max_{name}"
            raise ValueError(f"{type(self).__name__}: must hold {names}, got {low} and {high}")

    def _draw(self, batch_size: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """``(words [max_num_words,B,L], num_words [B])``."""
        if batch_size < 1:
            raise ValueError(f"{type(self).__name__}.batch: batch_size must be at least 1, got {batch_size}")
        num_words = torch.randint(self.min_num_words, self.max_num_words + 1, (batch_size,), generator=generator)
        words = torch.randint(2, (self.max_num_words, batch_size, self.len_word), generator=generator)
        return words.to(torch.get_default_dtype()), num_words
