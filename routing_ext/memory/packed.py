"""Packed sequences, as recurrent layers take and give them."""

from __future__ import annotations

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence


def packed_like(packed: PackedSequence, y: Tensor, lengths: Tensor) -> PackedSequence:
    """``y [T,B,O]``, of samples in the order of ``pad_packed_sequence(packed)``, in the order and lengths of `packed`."""
    if packed.sorted_indices is not None:
        y, lengths = y.index_select(1, packed.sorted_indices), lengths[packed.sorted_indices.cpu()]
    return packed._replace(data=pack_padded_sequence(y, lengths).data)
