"""Associative recall: see some items, and say which one followed the one that is asked for."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from .sequence_batch import SequenceBatch
from .sequence_task import SequenceTask
from .words import random_words


def associative_recall_batch(items: Tensor, num_items: Tensor, asked: Tensor) -> SequenceBatch:
    """The sequences of given items (Graves et al., 2014, section 4.3).

    A sequence of n items of W words has these steps, and zeros after them up to ``T = max(n) * (W + 1) + 2 * W + 2``:

    - n times: a step with the mark of an item, input element L; W steps: its words, input elements 0 to L - 1;
    - 1 step: the mark of the question, input element L + 1;
    - W steps: the words of an item once more;
    - 1 step: the mark of the question;
    - W steps: no input; the words of the next item, in the target.

    The mask is 1 at these last W steps. So each item has a mark on either side; neighbours share the one between them.

    Args:
        items: ``[S,W,B,L]``, of which a sequence has the first n.
        num_items: int64 ``[B]``, each n, from 2 to S.
        asked: int64 ``[B]``, which item is shown once more, from 0 to n - 2.

    Returns:
        A batch with I = L + 2 and O = L.
    """
    most, words_per_item, _, len_word = items.shape
    size = words_per_item + 1
    steps = int(num_items.max()) * size + 2 * words_per_item + 2
    step = torch.arange(steps, device=items.device).unsqueeze(1)  # [T,1]
    asking = step - num_items * size  # [T,B], steps since the first mark of the question
    in_list = asking < 0
    is_question = (asking > 0) & (asking < size)
    is_answer = (asking > size) & (asking <= size + words_per_item)

    item = torch.where(in_list, step // size, torch.where(is_question, asked, asked + 1))
    word = torch.where(in_list, step, asking) % size - 1
    is_word = (in_list & (word >= 0)) | is_question
    index = (item * words_per_item + word).clamp(0, most * words_per_item - 1)
    said = items.flatten(0, 1).gather(0, index.unsqueeze(-1).expand(-1, -1, len_word))  # [T,B,L]

    def column(values: Tensor) -> Tensor:
        return values.unsqueeze(-1).to(items.dtype)

    return SequenceBatch(
        input=torch.cat([said * column(is_word), column(in_list & (word < 0)), column((asking == 0) | (asking == size))], -1),
        target=said * column(is_answer),
        mask=column(is_answer),
    )


@dataclasses.dataclass(frozen=True)
class AssociativeRecall(SequenceTask):
    """Associative recall, with the sizes of Graves et al. (2014). :func:`associative_recall_batch` describes the sequences.

    Items are drawn one by one: if two are equal, which at the default sizes are one pair in 2**18, what follows may be
    ambiguous.

    Attributes:
        len_word: L, bits of a word.
        words_per_item: W.
        min_num_items, max_num_items: of a sequence, equally likely from the one to the other.

    Raises:
        ValueError: less than 2 items, another number below 1, or a maximum below its minimum.
    """

    len_word: int = 6
    words_per_item: int = 3
    min_num_items: int = 2
    max_num_items: int = 6

    def __post_init__(self) -> None:
        self._check_size("len_word")
        self._check_size("words_per_item")
        self._check_range("num_items", least=2)

    @property
    def input_dim(self) -> int:
        """I: the bits of a word and two marks."""
        return self.len_word + 2

    @property
    def output_dim(self) -> int:
        """O: the bits of a word."""
        return self.len_word

    def batch(self, batch_size: int, generator: torch.Generator | None = None) -> SequenceBatch:
        """Random sequences. Each item but the last is equally likely to be asked for.

        Args:
            batch_size: B.
            generator: on the CPU; by default, torch's.

        Raises:
            ValueError: `batch_size` is below 1.
        """
        self._check_batch_size(batch_size)
        num_items = self._draw("num_items", batch_size, generator)
        items = random_words(self.max_num_items, self.words_per_item, batch_size, self.len_word, generator=generator)
        asked = (torch.rand(batch_size, generator=generator, dtype=torch.float64) * (num_items - 1)).long()
        return associative_recall_batch(items, num_items, asked)

    def harder(self) -> dict[str, AssociativeRecall]:
        """Up to four times as many items."""
        sizes = [factor * self.max_num_items for factor in (1, 2, 3, 4)]
        return {f"{n} items": dataclasses.replace(self, min_num_items=n, max_num_items=n) for n in sizes}
