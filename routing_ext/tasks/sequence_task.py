"""What the tasks of sequences share."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping

import torch

from .sequence_batch import SequenceBatch


@dataclasses.dataclass(frozen=True)
class SequenceTask(abc.ABC):
    """Random problems, each a sequence of inputs and one of targets. Its attributes say how large they are."""

    @property
    @abc.abstractmethod
    def input_dim(self) -> int:
        """I: elements of the input of a step."""

    @property
    @abc.abstractmethod
    def output_dim(self) -> int:
        """O: elements of the output of a step."""

    @abc.abstractmethod
    def batch(self, batch_size: int, generator: torch.Generator | None = None) -> SequenceBatch:
        """Random sequences.

        Args:
            batch_size: B.
            generator: on the CPU; by default, torch's.

        Raises:
            ValueError: `batch_size` is below 1.
        """

    @abc.abstractmethod
    def harder(self) -> Mapping[str, SequenceTask]:
        """Larger problems, to test on after training, by a name that says how large. The first is the largest of this task."""

    def _check_size(self, name: str, least: int = 1) -> None:
        if getattr(self, name) < least:
            raise ValueError(f"{type(self).__name__}: {name} must be at least {least}, got {getattr(self, name)}")

    def _check_range(self, name: str, least: int = 1) -> None:
        low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
        if not least <= low <= high:
            names = f"{least} <= min_{name} <= max_{name}"
            raise ValueError(f"{type(self).__name__}: must hold {names}, got {low} and {high}")

    def _check_batch_size(self, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"{type(self).__name__}.batch: batch_size must be at least 1, got {batch_size}")

    def _draw(self, name: str, batch_size: int, generator: torch.Generator | None) -> torch.Tensor:
        """Int64 ``[B]``, equally likely from the minimum of that name to its maximum."""
        low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
        return torch.randint(low, high + 1, (batch_size,), generator=generator)
