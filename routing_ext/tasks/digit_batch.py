"""Batches of sequences whose targets are decimal digits, and triples of labels, which are written with them."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from .sequence_batch import SequenceBatch

BASE = 10
LABEL_DIGITS = 3
NUM_LABELS = BASE**LABEL_DIGITS
BLANK = -1
TRIPLE_DIM = 3 * LABEL_DIGITS * BASE


class DigitBatch(SequenceBatch):
    """As :class:`SequenceBatch`, with a target of digits: each is ten elements, of which one is 1 where the target counts.

    A network's ten outputs for a digit are logistic functions of its logits, as those of all circuits are. The probabilities
    of the ten digits are the softmax of these logits, ``log(y / (1 - y))``, as in the DNC's publication. The outputs are
    not these probabilities: ten outputs of 1/2 are a guess among ten, and so are ten of any other number.
    """

    __slots__ = ()

    def loss(self, output: Tensor) -> Tensor:
        """The DNC's (Graves et al., 2016): cross-entropy (nats), summed over the digits that count; its mean over the batch.

        Args:
            output: ``[T,B,O]``, logistic functions of logits.
        """
        return self._cross_entropy(output) / self.target.size(1)

    def wrong_bits(self, output: Tensor) -> Tensor:
        """``[T,B,O]`` bool: at the element of the target's digit, where that counts and another's output is at least as high.

        Args:
            output: ``[T,B,O]``.
        """
        self._check(output)
        outputs = _by_digit(output)
        right = (outputs * _by_digit(self.target)).sum(-1, keepdim=True)
        alone = ((outputs >= right).sum(-1, keepdim=True) == 1).expand_as(outputs).flatten(-2)
        return (self.mask > 0) & (self.target > 0.5) & ~alone

    @property
    def num_counted(self) -> Tensor:
        """A scalar: of how many digits each can be wrong."""
        return self.mask.sum() * (self.target.size(2) // BASE)

    def _cross_entropy(self, output: Tensor) -> Tensor:
        self._check(output)
        nats = -F.log_softmax(_by_digit(_logits(output)), -1)
        return (nats * _by_digit(self.target * self.mask)).sum()


def _by_digit(elements: Tensor) -> Tensor:
    """``[..., O]`` as ``[..., O / 10, 10]``."""
    return elements.view(*elements.shape[:-1], -1, BASE)


def _logits(output: Tensor) -> Tensor:
    """``log(y / (1 - y))``, kept finite: from -27 up to 15 in float32 and 36 in float64."""
    y = output.clamp(1e-12, 1 - torch.finfo(output.dtype).eps)
    return y.log() - torch.log1p(-y)


def encode_triples(labels: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Triples of labels as a network reads them: three digits a label, ten elements a digit, of which one is 1.

    Args:
        labels: int64 ``[..., 3]``, from 0 to 999, or -1 for a label that is left open, which has zeros only.
        dtype: of the result; by default, torch's.

    Returns:
        ``[..., 90]``.
    """
    vectors = _label_vectors(torch.get_default_dtype() if dtype is None else dtype).to(labels.device)
    return F.embedding(labels - BLANK, vectors).flatten(-2)


@functools.cache
def _label_vectors(dtype: torch.dtype) -> Tensor:
    """``[1001,30]``: that of a label left open, and those of 0 to 999."""
    digits = torch.cartesian_prod(*[torch.arange(BASE)] * LABEL_DIGITS)
    return torch.cat([torch.zeros(1, LABEL_DIGITS * BASE), F.one_hot(digits, BASE).flatten(1)]).to(dtype)


def decode_triples(vectors: Tensor) -> Tensor:
    """The labels that :func:`encode_triples` wrote, or those that a network finds likeliest.

    Args:
        vectors: ``[..., 90]``, for example an output.

    Returns:
        Int64 ``[..., 3]``, -1 for a label with zeros only.
    """
    elements = vectors.unflatten(-1, (3, LABEL_DIGITS, BASE))
    places = BASE ** torch.arange(LABEL_DIGITS - 1, -1, -1, device=vectors.device)
    labels = (elements.argmax(-1) * places).sum(-1)
    return torch.where((elements == 0).flatten(-2).all(-1), BLANK, labels)
