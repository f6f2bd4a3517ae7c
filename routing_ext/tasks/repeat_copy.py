"""The repeat-copy task: remember some words, and say them as often as is asked for."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from .sequence_batch import SequenceBatch
from .words import WordTask


def repeat_copy_batch(words: Tensor, num_words: Tensor, repeats: Tensor, max_repeats_norm: float = 10.0) -> SequenceBatch:
    """The sequences of given words, as the environment of pytorch-dnc forms them.

    A sequence of n words with r repeats has these steps, and zeros after them up to the longest that its batch could have,
    ``T = max(n) * (max(r) + 1) + 3``:

    - step 0: the start mark, input element L;
    - n steps: the words, input elements 0 to L - 1;
    - 1 step: how often to say them, ``r / max_repeats_norm`` in input element L + 1;
    - n * r steps: no input; the words, r times over, in target elements 0 to L - 1;
    - 1 step: no input; the end mark, target element L.

    The mask is 1 from the first word of the target to the end mark.

    Args:
        words: ``[S,B,L]``, of which a sequence has the first n.
        num_words: int64 ``[B]``, each n, from 0 to S.
        repeats: int64 ``[B]``, each r, from 0.
        max_repeats_norm: see above.

    Returns:
        A batch with I = L + 2 and O = L + 1.
    """
    steps = int(num_words.max()) * (int(repeats.max()) + 1) + 3
    step = torch.arange(steps, device=words.device).unsqueeze(1)  # [T,1]
    said = step - num_words - 2  # [T,B], steps of the target before this one
    is_word, is_answer = (step >= 1) & (step <= num_words), (said >= 0) & (said < num_words * repeats)
    is_end = said == num_words * repeats
    which = torch.where(is_word, step - 1, is_answer * (said % num_words.clamp(min=1)))
    word = words.gather(0, which.unsqueeze(-1).expand(-1, -1, words.size(2)))  # [T,B,L]
    request = (said == -1) * (repeats / max_repeats_norm)

    def column(values: Tensor) -> Tensor:
        return values.expand_as(said).unsqueeze(-1).to(words.dtype)

    return SequenceBatch(
        input=torch.cat([word * column(is_word), column(step == 0), column(request)], -1),
        target=torch.cat([word * column(is_answer), column(is_end)], -1),
        mask=column(is_answer | is_end),
    )


@dataclasses.dataclass(frozen=True)
class RepeatCopy(WordTask):
    """The repeat-copy task of pytorch-dnc, with its sizes by default. :func:`repeat_copy_batch` describes the sequences.

    Attributes:
        len_word, min_num_words, max_num_words: see :class:`WordTask`.
        min_repeats, max_repeats: of a sequence, equally likely from the one to the other.
        max_repeats_norm: what the number of repeats in the input is divided by.
    """

    len_word: int = 4
    min_num_words: int = 1
    max_num_words: int = 2
    min_repeats: int = 1
    max_repeats: int = 2
    max_repeats_norm: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_range("repeats")

    @property
    def output_dim(self) -> int:
        """O: the bits of a word and the end mark."""
        return self.len_word + 1

    def batch(self, batch_size: int, generator: torch.Generator | None = None) -> SequenceBatch:
        """Random sequences.

        Args:
            batch_size: B.
            generator: on the CPU; by default, torch's.

        Raises:
            ValueError: `batch_size` is below 1.
        """
        words, num_words = self._draw_words(batch_size, generator)
        repeats = self._draw("repeats", batch_size, generator)
        return repeat_copy_batch(words, num_words, repeats, self.max_repeats_norm)

    def harder(self) -> dict[str, RepeatCopy]:
        """Up to four times as many repeats, up to four times as many words, and twice as many of both."""
        sizes = [
            (words * self.max_num_words, repeats * self.max_repeats)
            for words, repeats in ((1, 1), (1, 2), (1, 4), (2, 1), (4, 1), (2, 2))
        ]
        return {
            f"{n} words, {r} repeats": dataclasses.replace(
                self, min_num_words=n, max_num_words=n, min_repeats=r, max_repeats=r
            )
            for n, r in sizes
        }
