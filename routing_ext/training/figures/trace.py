"""What a memory network does in the course of one sequence."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from ...tasks import SequenceBatch


MANY_LOCATIONS = 32


@dataclasses.dataclass(frozen=True)
class Trace:
    """One sequence of T steps: I inputs, O outputs; N locations of W elements, V write heads, R read heads.

    What a network does not have is None: an NTM has no usage and no link, an LSTM no memory at all.

    Attributes:
        input: ``[T,I]``.
        target: ``[T,O]``.
        output: ``[T,O]``.
        counts: bool ``[T]``, whether the output counts.
        wrong: bool ``[T,O]``, which bits that count are wrong.
        memory: ``[T,N,W]``, after each step, as all that follows.
        write_weights: ``[T,V,N]``.
        read_weights: ``[T,R,N]``.
        usage: ``[T,N]``.
        link: ``[T,V,N,N]``, ``[i,j]``: location i was written after j.
        num_locations: how many there are, of which N are shown; None without a memory.
    """

    input: Tensor
    target: Tensor
    output: Tensor
    counts: Tensor
    wrong: Tensor
    memory: Tensor | None = None
    write_weights: Tensor | None = None
    read_weights: Tensor | None = None
    usage: Tensor | None = None
    link: Tensor | None = None
    num_locations: int | None = None

    @property
    def num_steps(self) -> int:
        """T."""
        return self.input.size(0)

    @property
    def memory_range(self) -> float:
        """The number, at least 1, with one digit, that few of the elements exceed that are something at all."""
        if self.memory is None or not (written := self.memory.abs()[self.memory.abs() > 0.01]).numel():
            return 1.0
        high = max(1.0, written.kthvalue(math.ceil(0.95 * len(written))).values.item())
        digit = 10.0 ** math.floor(math.log10(high))
        return math.ceil(high / digit) * digit

    def of_used_locations(self) -> Trace:
        """The same with the locations only that a head points at in some step, if these are few."""
        if self.write_weights is None or self.read_weights is None:
            return self
        weights = torch.cat([self.write_weights, self.read_weights], 1).amax((0, 1))
        used = (weights > 0.1).nonzero()[:, 0]
        if len(weights) <= MANY_LOCATIONS or 2 * len(used) > len(weights):
            return self
        dimensions = {"memory": (1,), "write_weights": (2,), "read_weights": (2,), "usage": (1,), "link": (2, 3)}
        changes = {}
        for field, places in dimensions.items():
            values = getattr(self, field)
            for place in places if values is not None else ():
                values = values.index_select(place, used)
            changes[field] = values
        return dataclasses.replace(self, **changes)


@torch.no_grad()
def trace(network: nn.Module, batch: SequenceBatch, sequence: int = 0) -> Trace:
    """Follows a network through one sequence of a batch, up to its last step that has an input or counts.

    Args:
        network: with ``unroll(x, state) -> (y, state)``; what its states have of the fields of :class:`Trace` is kept.
        batch: of its task.
        sequence: which of the batch.
    """
    stepped: Any = network
    batch = type(batch)(*(t[:, sequence : sequence + 1] for t in batch))
    used = ((batch.input != 0).any(-1) | (batch.mask[..., 0] != 0)).any(1).nonzero()
    batch = type(batch)(*(t[: int(used.max()) + 1 if len(used) else len(t)] for t in batch))
    state, outputs, states = None, [], []
    for x in batch.input.split(1):
        y, state = stepped.unroll(x, state)
        outputs.append(y)
        states.append(state)
    output = torch.cat(outputs)
    fields = ("memory", "write_weights", "read_weights", "usage", "link")
    over_time = {
        field: torch.cat([getattr(state, field) for state in states]).cpu() for field in fields if hasattr(states[0], field)
    }
    return Trace(
        input=batch.input[:, 0].cpu(),
        target=batch.target[:, 0].cpu(),
        output=output[:, 0].cpu(),
        counts=batch.mask[:, 0, 0].cpu() > 0,
        wrong=batch.wrong_bits(output)[:, 0].cpu(),
        **over_time,
        num_locations=over_time["memory"].size(1) if over_time else None,
    )
