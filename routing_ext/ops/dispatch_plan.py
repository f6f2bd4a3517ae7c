"""Sorting the samples of a batch by the module that each of them chose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ._devices import check_devices

_plan_op = torch.ops.routing_ext.dispatch_plan.default
_rank_op = torch.ops.routing_ext.rank_of_module.default


class DispatchPlan:
    """Which samples go to which module. Made by :func:`dispatch_plan`; unpacks into ``order, offsets``.

    Attributes:
        order: int64 ``[B]``. The active samples sorted by module, then the inactive ones, each in batch order.
        offsets: int64 ``[K + 1]``. ``order[offsets[k]:offsets[k + 1]]`` chose module ``k``; ``offsets[K]`` samples are active.
        layout: int64 ``[K + 2]``. ``offsets`` and a status word, as the operators take it.
        num_modules: ``K``.
    """

    def __init__(self, order: Tensor, layout: Tensor, num_modules: int) -> None:
        self.order = order
        self.layout = layout
        self.num_modules = num_modules
        self._host_layout: Tensor | None = None
        self._copied: torch.cuda.Event | None = None
        self._host_offsets: list[int] | None = None
        self._selected: tuple[int, ...] | None = None
        if layout.is_cuda and type(layout) is Tensor and not torch.compiler.is_compiling():
            self._start_copy()

    @property
    def offsets(self) -> Tensor:
        """int64 ``[K + 1]``, a view of ``layout``."""
        return self.layout[: self.num_modules + 1]

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.order, self.offsets))

    def __repr__(self) -> str:
        return f"DispatchPlan({self.order.size(0)} samples, {self.num_modules} modules, on {self.order.device})"

    def _start_copy(self) -> None:
        """Sends the layout to the host behind the kernels that make it, so that reading it later need not wait."""
        if torch.cuda.is_current_stream_capturing():
            return
        self._host_layout = torch.empty(self.layout.shape, dtype=torch.int64, pin_memory=True)
        self._host_layout.copy_(self.layout, non_blocking=True)
        self._copied = torch.cuda.Event()
        self._copied.record(torch.cuda.current_stream(self.layout.device))

    def tell_host(self, offsets: list[int]) -> None:
        """Saves the host the wait for :meth:`host_offsets`, where the caller knows them."""
        self._host_offsets = offsets

    @property
    def known_on_host(self) -> bool:
        """Whether the host can learn the offsets: not while a CUDA graph is captured or torch.compile traces, nor on meta."""
        if torch.compiler.is_compiling() or self.layout.is_meta or type(self.layout) is not Tensor:  # such as a FakeTensor
            return False
        return not self.layout.is_cuda or (self._host_layout is not None and not torch.cuda.is_current_stream_capturing())

    def host_offsets(self) -> list[int]:
        """``offsets`` as Python integers. On CUDA this awaits a copy that started together with the plan.

        Raises:
            IndexError: an action was outside ``[0, K)`` (on the CPU, :func:`dispatch_plan` raises at once).
            RuntimeError: a CUDA graph is being captured.
        """
        if self._host_offsets is not None:
            return self._host_offsets
        if self._copied is not None:
            self._copied.synchronize()
        elif self.layout.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("DispatchPlan: the offsets of a plan made under CUDA graph capture stay on the device")
        layout: list[int] = (self.layout if self._host_layout is None else self._host_layout).tolist()
        if layout[-1] >= 0:
            raise IndexError(
                f"dispatch_plan: actions must be in [0, {self.num_modules}), got another value for sample {layout[-1]}"
            )
        if self._host_layout is not None or not self.layout.is_cuda:  # without the copy, a replayed graph may change them
            self._host_offsets = layout[:-1]
        return layout[:-1]

    def selected(self) -> tuple[int, ...]:
        """The modules that got samples, ascending. On CUDA this awaits the same copy as :meth:`host_offsets`."""
        if self._selected is not None:
            return self._selected
        offsets = self.host_offsets()
        selected = tuple([k for k, (begin, end) in enumerate(pairwise(offsets)) if begin != end])
        if self._host_offsets is not None:
            self._selected = selected
        return selected

    @property
    def known_selected(self) -> tuple[int, ...] | None:
        """:meth:`selected`, if it was asked for before."""
        return self._selected

    def selected_early(self) -> Sequence[int]:
        """The modules that may have got samples, as far as is known without waiting: on the CPU :meth:`selected`, else all.

        Never empty, unless K is 0: where no sample is active, module 0 stands for all.
        """
        if self.layout.is_cuda or not self.known_on_host:
            return range(self.num_modules)
        return self.selected() or range(min(self.num_modules, 1))


def rank_of_module(actions: Tensor, plan: DispatchPlan) -> Tensor:
    """int64 ``[B]``: which of the modules that have samples is a sample's own; any of them for inactive samples.

    Args:
        actions: int64 ``[B]``, of which the plan was made.
    """
    return _rank_op(actions, plan.layout)  # type: ignore[no-any-return]


def dispatch_plan(actions: Tensor, num_modules: int, mask: Tensor | None = None) -> DispatchPlan:
    """A stable counting sort of the active samples by module, in O(B + K).

    Args:
        actions: int64 ``[B]``, the module of each sample, in ``[0, num_modules)``. Ignored where ``mask`` is false.
        num_modules: ``K``.
        mask: bool ``[B]`` on the same device, false for samples that take no part. None: all take part.

    Returns:
        The :class:`DispatchPlan` on the device of ``actions``. Nothing waits for the GPU.

    Raises:
        RuntimeError: wrong shape, dtype or device; on the CPU also an action out of range. On CUDA such a sample counts as
            inactive, and :meth:`DispatchPlan.host_offsets` raises, hence a backward pass to parameters does, too.
    """
    order, layout = _plan_op(actions, num_modules, mask)
    return DispatchPlan(order, layout, num_modules)


@torch.library.register_fake("routing_ext::dispatch_plan")
def _(actions: Tensor, num_modules: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    check_devices("dispatch_plan", actions, mask=mask)
    return actions.new_empty(actions.shape), actions.new_empty((num_modules + 2,))


@torch.library.register_fake("routing_ext::rank_of_module")
def _(actions: Tensor, layout: Tensor) -> Tensor:
    check_devices("rank_of_module", actions, layout=layout)
    return actions.new_empty(actions.shape)
