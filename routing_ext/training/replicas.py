"""Training in several processes, each with its part of the rows of every batch."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn


@dataclasses.dataclass(frozen=True)
class Replicas:
    """The processes that train together, and which of them this is.

    Every process makes the whole batch, runs the network on its own rows, and sees the whole output. So losses are those of
    one process, and the sum of the processes' gradients is the gradient of one process, whatever the loss divides by.

    Attributes:
        rank: of this process.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    def rows(self, batch_size: int) -> slice:
        """The rows of this process."""
        return slice(batch_size * self.rank // self.size, batch_size * (self.rank + 1) // self.size)

    def join(self, part: Tensor, batch_size: int, dim: int = 0) -> Tensor:
        """All processes' rows. Gradients go into those of this process only.

        Args:
            part: with the rows of this process in `dim`.
            batch_size: B.
            dim: see above.
        """
        if self.size == 1:
            return part
        sizes = [rows.stop - rows.start for rows in (Replicas(rank, self.size).rows(batch_size) for rank in range(self.size))]
        longest = max(sizes)
        own = part.detach().movedim(dim, 0)
        padded = own.new_zeros(longest, *own.shape[1:])
        padded[: len(own)] = own
        gathered = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(gathered, padded)
        parts = [rows[:size].movedim(0, dim) for rows, size in zip(gathered, sizes, strict=True)]
        parts[self.rank] = part
        return torch.cat(parts, dim)

    def add_up(self, parameters: Sequence[nn.Parameter], flag: bool) -> bool:
        """Adds up the gradients of all processes, in one message; parameters that none of them used stay without gradient.

        Returns:
            Whether any process has the flag.
        """
        if self.size == 1:
            return flag
        used = torch.tensor([float(p.grad is not None) for p in parameters] + [float(flag)], device=parameters[0].device)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        message = torch.cat([used.to(gradients[0].dtype), *(g.flatten() for g in gradients)])
        distributed.all_reduce(message)
        flags, rest = message[: len(used)].tolist(), message[len(used) :]
        for p, is_used, total in zip(parameters, flags, rest.split([g.numel() for g in gradients]), strict=False):
            p.grad = total.view_as(p).clone() if is_used else None
        return bool(flags[-1] > 0)

    def mean(self, values: Tensor) -> Tensor:
        """Of all processes."""
        if self.size > 1:
            distributed.all_reduce(values)
            values /= self.size
        return values

    def collect(self, value: Tensor) -> list[Tensor]:
        """Of all processes, which have tensors of one shape."""
        if self.size == 1:
            return [value]
        values = [torch.empty_like(value) for _ in range(self.size)]
        distributed.all_gather(values, value)
        return values


ALONE = Replicas()


def join_replicas(device: str = "cpu") -> Replicas:
    """The processes that torchrun started, or this one alone. To be called once, before training."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE
    if not distributed.is_initialized():
        distributed.init_process_group("gloo" if torch.device(device).type == "cpu" else "nccl")
    return Replicas(distributed.get_rank(), size)
