"""Images for several classification tasks, in memory, and their batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """B examples: ``images [B, C, H, W]``, float32 in channels_last; ``labels`` and ``tasks``, int64 ``[B]``."""

    images: Tensor
    labels: Tensor
    tasks: Tensor

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32, *, non_blocking: bool = False) -> Batch:
        """The same on another device, the images with another dtype."""
        images = self.images.to(device, dtype, non_blocking=non_blocking)
        return Batch(images, *(t.to(device, non_blocking=non_blocking) for t in self[1:]))


@dataclasses.dataclass(frozen=True, eq=False)
class MultiTaskImages:
    """N examples: an image, the task that it is shown for, and the label that is right there.

    An image that several tasks use is stored once, and images stay bytes until they are in a batch.

    Attributes:
        images: uint8 ``[M, C, H, W]``.
        index: int64 ``[N]``, each example's image, in ``[0, M)``.
        labels: int64 ``[N]``, in ``[0, num_classes)``.
        tasks: int64 ``[N]``, in ``[0, num_tasks)``.
        num_classes: how many labels each task has.
        task_names: one a task.
        scale: the byte that becomes 1.0 in a batch.

    Raises:
        ValueError: a tensor of another shape or dtype, or a value out of range.
    """

    images: Tensor
    index: Tensor
    labels: Tensor
    tasks: Tensor
    num_classes: int
    task_names: tuple[str, ...]
    scale: float = 255.0

    def __post_init__(self) -> None:
        if self.images.dim() != 4 or self.images.dtype != torch.uint8:
            got = f"{self.images.dtype} {list(self.images.shape)}"
            raise ValueError(f"MultiTaskImages: images must be uint8 [M, C, H, W], got {got}")
        columns = {
            "index": (self.index, len(self.images)),
            "labels": (self.labels, self.num_classes),
            "tasks": (self.tasks, self.num_tasks),
        }
        for name, (column, bound) in columns.items():
            if column.dtype != torch.int64 or column.shape != self.index.shape or column.dim() != 1:
                expected, got = f"int64 [{self.index.numel()}]", f"{column.dtype} {list(column.shape)}"
                raise ValueError(f"MultiTaskImages: {name} must be {expected}, one element an example, got {got}")
            if len(column) and not 0 <= int(column.min()) <= int(column.max()) < bound:
                got = f"{int(column.min())} to {int(column.max())}"
                raise ValueError(f"MultiTaskImages: {name} must be in [0, {bound}), got {got}")

    def __len__(self) -> int:
        return len(self.index)

    @property
    def num_tasks(self) -> int:
        """How many tasks there are."""
        return len(self.task_names)

    def to(self, device: torch.device | str) -> MultiTaskImages:
        """The same on another device, where the batches are then made."""
        columns = ("images", "index", "labels", "tasks")
        return dataclasses.replace(self, **{name: getattr(self, name).to(device) for name in columns})

    def batches(self, batch_size: int, shuffle: bool = False, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Each example once; the last batch holds what is left.

        Args:
            batch_size: B.
            shuffle: in random order.
            generator: of that order, on the CPU: the same state gives the same batches on every device. By default, torch's.

        Raises:
            ValueError: ``batch_size`` is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"MultiTaskImages.batches: batch_size must be at least 1, got {batch_size}")
        device = self.index.device
        order = (
            torch.randperm(len(self), generator=generator).to(device) if shuffle else torch.arange(len(self), device=device)
        )
        return (self.at(rows) for rows in order.split(batch_size) if len(rows))

    def at(self, rows: Tensor) -> Batch:
        """The batch of given examples.

        Args:
            rows: int64 ``[B]``, in ``[0, N)``.
        """
        images = self.images[self.index[rows]].to(torch.float32, memory_format=torch.channels_last)
        return Batch(images.div_(self.scale), self.labels[rows], self.tasks[rows])


def one_vs_rest(
    images: Tensor,
    classes: Tensor,
    names: tuple[str, ...],
    balanced: bool = True,
    seed: int = 0,
    scale: float = 255.0,
) -> MultiTaskImages:
    """Task t asks of an image: is it of class t? Label 1 is yes.

    Args:
        images: uint8 ``[M, C, H, W]``.
        classes: int64 ``[M]``, in ``[0, len(names))``.
        names: of the classes, which are the tasks.
        balanced: each task has all images of its class, and as many of others, drawn at random. Otherwise it has all images,
            as in the loader of PytorchRouting: for ten classes of one size, nine of ten answers are no.
        seed: of the drawing.
        scale: see :class:`MultiTaskImages`.
    """
    generator = torch.Generator().manual_seed(seed)
    index = []
    for task in range(len(names)):
        is_yes = classes == task
        yes, no = is_yes.nonzero().view(-1), is_yes.logical_not().nonzero().view(-1)
        if balanced:
            no = no[torch.randperm(len(no), generator=generator)[: len(yes)]]
        index.append(torch.cat([yes, no]).sort().values)
    tasks = torch.arange(len(names)).repeat_interleave(torch.tensor([len(rows) for rows in index]))
    joined = torch.cat(index)
    return MultiTaskImages(images, joined, (classes[joined] == tasks).long(), tasks, 2, names, scale)


def stratified_split(classes: Tensor, test_share: float, seed: int) -> tuple[Tensor, Tensor]:
    """``(train, test)``: int64 indices into ``classes [M]``, ascending; of each class, `test_share` is in the second part.

    Args:
        classes: int64 ``[M]``, not negative.
        test_share: in [0, 1]; the number of test examples of a class is rounded down.
        seed: of the drawing.
    """
    keys = classes + torch.rand(len(classes), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    order = keys.argsort()  # by class, at random within
    counts = classes.bincount()
    ranks = torch.arange(len(classes)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    is_test = torch.empty(len(classes), dtype=torch.bool)
    is_test[order] = ranks < (counts * test_share).long().repeat_interleave(counts)
    return is_test.logical_not().nonzero().view(-1), is_test.nonzero().view(-1)
