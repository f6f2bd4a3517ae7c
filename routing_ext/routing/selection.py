"""The layer that sends each sample of a batch through the module chosen for it."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import DispatchPlan, dispatch_plan, gather_rows, grouped_linear, scatter_rows
from .linear_stages import Stage, grouped_stages


class Selection(nn.Module):
    """Applies to each sample the module that its action names; a drop-in for ``PytorchRouting.CoreLayers.Selection``.

    Modules made of :class:`~torch.nn.Linear` and ReLU only (also ``nn.Sequential`` of them, and ``nn.Linear`` subclasses that
    add a ReLU), alike but for their values, run together as :func:`~routing_ext.ops.grouped_linear`. Any others are called
    once each, on the samples that chose them as one contiguous slice in batch order.

    A module that no sample chose is not called, and its parameters get the gradient None. Under ``torch.compile`` and in
    a captured CUDA graph, where the choice is not known on the host, linear modules get zeros instead.

    Args:
        modules: the modules to choose from; all take the same input and return tensors of the same trailing shape.
        name: kept as an attribute.
        store_module_pointers: append ``('selected_modules', module)`` to each sample's meta information.
    """

    last_selection_freeze: list[int]

    def __init__(self, *modules: nn.Module, name: str = "", store_module_pointers: bool = False) -> None:
        super().__init__()
        self.name = name
        self._submodules = nn.ModuleList(modules)
        self._store_module_pointers = store_module_pointers
        self._logging_selections = False
        self._selection_log: list[Tensor] = []
        self.last_selection_freeze = []
        self._output_shape: torch.Size | None = None

    def extra_repr(self) -> str:
        return f"name={self.name!r}" if self.name else ""

    def forward(self, xs: Tensor, mxs: Any, actions: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Any, Tensor]:
        """Sends the batch through the modules.

        Args:
            xs: ``[B, ...]``.
            mxs: the samples' meta information, one each; returned as it is.
            actions: int64 ``[B]``, the module of each sample.
            mask: bool (or uint8) ``[B]``, false for samples that take no part: their output is zero.

        Returns:
            ``(ys [B, ...], mxs, actions)``. A single module is called on the whole batch, whatever actions and mask say.

        Raises:
            ValueError: ``mxs`` or ``actions`` is not of the batch's length.
            RuntimeError: an action is outside ``[0, K)``, or a mask has the wrong shape, dtype or device.
        """
        if len(xs) != len(mxs):
            raise ValueError(f"Selection: mxs must have one element for each of {len(xs)} samples, got {len(mxs)}")
        modules = list(self._submodules._modules.values())
        if len(modules) == 1:
            return modules[0](xs), mxs, actions  # type: ignore[misc]
        if actions.numel() != len(xs):
            raise ValueError(f"Selection: actions must have one element for each of {len(xs)} samples, got {list(actions.shape)}")
        if mask is not None and mask.dtype == torch.uint8:
            mask = mask.bool()
        plan = dispatch_plan(actions.reshape(-1), len(modules), mask)
        ys = self._apply_modules(xs, plan, modules)  # type: ignore[arg-type]
        if self._logging_selections:
            self._selection_log.append(actions.detach().reshape(-1).clone())
        if self._store_module_pointers:
            for mx, a in zip(mxs, actions.reshape(-1).tolist(), strict=True):
                mx.append("selected_modules", modules[a])
        return ys, mxs, actions

    def _apply_modules(self, xs: Tensor, plan: DispatchPlan, modules: list[nn.Module]) -> Tensor:
        if xs.dim() == 2:
            # Where the host knows which modules run, only those have to be alike.
            idle_known = plan.known_on_host and not plan.layout.is_cuda
            running = plan.selected() if idle_known else range(plan.num_modules)
            stages = grouped_stages([modules[k] for k in running] or modules[:1])
            if stages is not None:
                return _apply_stages(xs, stages, plan, list(running) or [0])
        return self._call_each(xs, plan, modules)

    def _call_each(self, xs: Tensor, plan: DispatchPlan, modules: list[nn.Module]) -> Tensor:
        offsets, selected, batch = plan.host_offsets(), plan.selected(), len(xs)
        if not selected:
            return xs.new_zeros((batch, *self._shape_of_output(xs, modules[0])))
        if len(selected) == 1 and offsets[-1] == batch:
            ys: Tensor = modules[selected[0]](xs)
        else:
            order = plan.order[: offsets[-1]]
            slices = gather_rows(xs, order).split([offsets[k + 1] - offsets[k] for k in selected])
            outputs = [modules[k](rows) for k, rows in zip(selected, slices, strict=True)]
            ys = scatter_rows(torch.cat(outputs), order, batch)
        self._output_shape = ys.shape[1:]
        return ys

    def _shape_of_output(self, xs: Tensor, module: nn.Module) -> torch.Size:
        """Of a batch in which no sample is active, found without touching the module's state or the random numbers."""
        if self._output_shape is None:
            twin = copy.deepcopy(module).to("meta").eval()
            with torch.no_grad():
                self._output_shape = twin(torch.empty((1, *xs.shape[1:]), dtype=xs.dtype, device="meta")).shape[1:]
        return self._output_shape

    def start_logging_selections(self) -> None:
        """From now on, remembers which actions come."""
        self._logging_selections = True

    def stop_logging_and_get_selections(self, add_to_old: bool = False) -> list[int]:
        """The different actions since :meth:`start_logging_selections`, ascending; also in ``last_selection_freeze``.

        Args:
            add_to_old: put the result before that of the last call.
        """
        self._logging_selections = False
        new: list[int] = torch.cat(self._selection_log).unique().tolist() if self._selection_log else []
        self._selection_log.clear()
        self.last_selection_freeze = new + self.last_selection_freeze if add_to_old else new
        return self.last_selection_freeze


def _apply_stages(xs: Tensor, stages: list[list[Stage]], plan: DispatchPlan, running: Iterable[int]) -> Tensor:
    """`stages` holds the parameters of the modules in `running` only: no other gets samples."""
    for stage in stages:
        weights: list[Tensor] = [stage[0].weight] * plan.num_modules
        biases: list[Tensor] | None = None if stage[0].bias is None else [stage[0].bias] * plan.num_modules
        for k, parameters in zip(running, stage, strict=True):
            weights[k] = parameters.weight
            if biases is not None and parameters.bias is not None:
                biases[k] = parameters.bias
        xs = grouped_linear(xs, weights, biases, plan, "relu" if stage[0].relu else "none")
    return xs
