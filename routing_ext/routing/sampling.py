"""Random draws of the decision layers: the reference's stream by default, a faster one on request, or a replay.

The reference asks each agent in turn. So it draws agent after agent, for each as many numbers as the agent has samples, and
with torch's own recipe for a categorical sample: the largest of ``p / q`` with q exponentially distributed. :class:`Draws`
fills the numbers of all agents in that order, and the rest is done for the whole batch at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

import torch
from torch import Tensor

from ..ops import scatter_rows
from ..ops.policy_gradients import handles, sample_by_inversion, sample_categorical

_fast: ContextVar[bool] = ContextVar("fast_sampling", default=False)
_replayed: ContextVar[Iterator[Tensor] | None] = ContextVar("replay", default=None)


@contextlib.contextmanager
def fast_sampling() -> Iterator[None]:
    """Within it, actions are drawn from the same distributions with one random number a sample, not K: another stream."""
    token = _fast.set(True)
    try:
        yield
    finally:
        _fast.reset(token)


@contextlib.contextmanager
def replay(actions: Sequence[Tensor]) -> Iterator[None]:
    """Within it, the i-th call of a decision layer takes ``actions[i]`` (int64 ``[B]``) instead of drawing.

    All else is as if these had been drawn: states, losses, gradients. Calls beyond the last raise :class:`ValueError`.
    """
    token = _replayed.set(iter(actions))
    try:
        yield
    finally:
        _replayed.reset(token)


def next_replayed(batch_size: int, device: torch.device, num_selections: int) -> Tensor | None:
    """The actions ``[B]`` that the present call has to take, if any."""
    source = _replayed.get()
    if source is None:
        return None
    actions = next(source, None)
    if actions is None:
        raise ValueError("replay: actions must have one element for each call of a decision layer, got fewer")
    actions = actions.reshape(-1).to(device=device, dtype=torch.int64)
    if actions.numel() != batch_size:
        raise ValueError(f"replay: actions must have one element for each of {batch_size} samples, got {actions.numel()}")
    if actions.numel():
        least, most = int(actions.min()), int(actions.max())
        if least < 0 or most >= num_selections:
            raise ValueError(f"replay: actions must be in [0, {num_selections}), got {least if least < 0 else most}")
    return actions


class Draws:
    """The random numbers of one decision call.

    Args:
        batch_size: B.
        order: the samples that decide, sorted by agent; None: all, in batch order.
        sizes: how many of them each agent has that has any.
    """

    def __init__(self, batch_size: int, order: Tensor | None, sizes: Sequence[int], device: torch.device) -> None:
        self._batch_size = batch_size
        self._order = order
        self._sizes = sizes
        self._device = device
        self._fast = _fast.get()

    def _fill(self, *buffers: tuple[Tensor, str]) -> list[Tensor]:
        """Fills the buffers ``[n, width]``, agent after agent."""
        sizes = [sum(self._sizes)] if self._fast else self._sizes
        for parts in zip(*(buffer.split(sizes) for buffer, _ in buffers), strict=True):
            for rows, (_, kind) in zip(parts, buffers, strict=True):
                if kind == "exponential":
                    rows.exponential_()
                elif kind == "uniform":
                    rows.uniform_()
                else:
                    rows.random_(0, int(kind))
        return [buffer for buffer, _ in buffers]

    def _in_batch_order(self, by_agent: Tensor) -> Tensor:
        """``[B, ...]`` of what is sorted by agent ``[n, ...]``; zero where no decision is made."""
        return by_agent if self._order is None else scatter_rows(by_agent, self._order, self._batch_size)

    def _by_agent(self, rows: Tensor, row_of: Tensor | None) -> Tensor:
        """``[n, K]``: the rows of the samples that decide, sorted by agent."""
        index = self._order if row_of is None else row_of if self._order is None else row_of.index_select(0, self._order)
        return rows if index is None else rows.index_select(0, index)

    def _empty(self, width: int, dtype: torch.dtype) -> Tensor:
        return torch.empty((sum(self._sizes), width), dtype=dtype, device=self._device)

    def _noise(self, width: int, dtype: torch.dtype) -> tuple[Tensor, str]:
        return (self._empty(1, dtype), "uniform") if self._fast else (self._empty(width, dtype), "exponential")

    def _scale(self, probs: Tensor) -> Tensor:
        """What :meth:`_choose` holds the noise against."""
        return probs.cumsum(1) if self._fast else probs

    def _choose(self, scale: Tensor, noise: Tensor) -> Tensor:
        if self._fast:
            # Not the noise itself: it can be 0, and then an action of probability 0 would come first.
            chosen = torch.searchsorted(scale.contiguous(), (1 - noise) * scale[:, -1:])
            return chosen.view(-1).clamp_(max=scale.size(1) - 1)
        return (scale / noise).argmax(1)

    def categorical(self, probs: Tensor, row_of: Tensor | None = None) -> Tensor:
        """int64 ``[B]`` from ``probs [B, K]``, or from the rows `row_of` (int64 ``[B]``) of it."""
        if handles((probs,)):
            sample = sample_by_inversion if self._fast else sample_categorical
            return sample(probs, row_of, self._order, self._sizes, self._batch_size)
        (noise,) = self._fill(self._noise(probs.size(1), probs.dtype))
        return self._in_batch_order(self._choose(self._by_agent(self._scale(probs), row_of), noise))

    def explore(self, exploration: float) -> Tensor:
        """bool ``[B]``, true with probability `exploration`."""
        (noise,) = self._fill(self._noise(2, torch.float32))
        return self._in_batch_order(self._coin(exploration, noise))

    def _coin(self, exploration: float, noise: Tensor) -> Tensor:
        probs = torch.full((1, 2), exploration, dtype=torch.float32, device=self._device)  # tensor([...]) would wait for a GPU
        probs[:, 0].fill_(1 - exploration)
        return self._choose(self._scale(probs).expand(noise.size(0), 2), noise) == 1

    def explore_and_categorical(
        self, exploration: float, probs: Tensor, row_of: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        coin, noise = self._fill(self._noise(2, torch.float32), self._noise(probs.size(1), probs.dtype))
        explore, actions = self._coin(exploration, coin), self._choose(self._by_agent(self._scale(probs), row_of), noise)
        return self._in_batch_order(explore), self._in_batch_order(actions)

    def explore_and_any(self, exploration: float, num_selections: int) -> tuple[Tensor, Tensor]:
        """Also an action int64 ``[B]`` of all with equal probability."""
        coin, action = self._fill(self._noise(2, torch.float32), (self._empty(1, torch.int64), str(num_selections)))
        return self._in_batch_order(self._coin(exploration, coin)), self._in_batch_order(action.view(-1))

    def uniform(self, width: int, count: int = 1) -> list[Tensor]:
        """`count` tensors ``[B, width]`` from U(0, 1)."""
        filled = self._fill(*[(self._empty(width, torch.float32), "uniform") for _ in range(count)])
        return [self._in_batch_order(buffer) for buffer in filled]
