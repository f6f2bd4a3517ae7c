"""The layer that sends each sample of a batch through the module chosen for it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import DispatchPlan, combine_rows, dispatch_plan
from .apply_modules import apply_modules
from .choices import choices_of, each_choice
from .linear_stages import linear_stages, select_linear_layers

_InputKind = tuple[torch.Size, torch.dtype, torch.dtype | None]


def _kind_of_input(xs: Tensor) -> _InputKind:
    """What the shape and dtype of an output depend on."""
    device = xs.device.type
    autocast = torch.get_autocast_dtype(device) if not xs.is_meta and torch.is_autocast_enabled(device) else None
    return xs.shape[1:], xs.dtype, autocast


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
        if not modules:
            raise ValueError("Selection: modules must be at least one, got none")
        self.name = name
        self._submodules = nn.ModuleList(modules)
        self._store_module_pointers = store_module_pointers
        self._logging_selections = False
        self._selection_log: list[Tensor] = []
        self.last_selection_freeze = []
        linear_stages(modules)  # learns about their classes now: torch.compile cannot trace that
        # The shape and dtype of the output for an input.
        self._last_output: tuple[_InputKind, torch.Size, torch.dtype] | None = None

    def extra_repr(self) -> str:
        return f"name={self.name!r}" if self.name else ""

    def forward(
        self, xs: Tensor, mxs: Any, actions: Tensor, mask: Tensor | None = None, weights: Tensor | None = None
    ) -> tuple[Tensor, Any, Tensor]:
        """Sends the batch through the modules.

        Args:
            xs: ``[B, ...]``.
            mxs: the samples' meta information, one each; returned as it is.
            actions: integers ``[B]`` or ``[B, 1]``, the module of each sample; with `weights`, ``[B, n]``, n modules.
            mask: bool (or uint8) ``[B]``, false for samples that take no part: their output is zero.
            weights: ``[B, n]``, or ``[B]`` for n = 1: the output is the sum of the modules', each times its weight.

        Returns:
            ``(ys [B, ...], mxs, actions)``. A single module is called on the whole batch, whatever actions and mask say.

        Raises:
            TypeError: ``actions`` is no tensor.
            ValueError: ``mxs``, ``actions`` or ``weights`` is not of the batch's length.
            RuntimeError: an action is outside ``[0, K)``, or a mask has the wrong shape, dtype or device.
        """
        batch = xs.size(0)
        if len(mxs) != batch:
            raise ValueError(f"Selection: mxs must have one element for each of {batch} samples, got {len(mxs)}")
        if weights is not None:
            choices = choices_of(type(self).__name__, batch, actions, weights)
            of_each = [mx for mx in mxs for _ in range(choices)] if self._store_module_pointers else range(batch * choices)
            rows, own_mask = each_choice(xs, mask, choices)
            of_choices, _, _ = self.forward(rows, of_each, actions.reshape(-1), own_mask)
            return combine_rows(of_choices, weights.view(batch, choices)), mxs, actions
        modules: list[nn.Module] = list(self._submodules._modules.values())
        if len(modules) == 1:
            return modules[0](xs), mxs, actions
        if not isinstance(actions, Tensor):
            raise TypeError(f"Selection: actions must be the tensor that a decision gives, got {type(actions).__name__}")
        if actions.numel() != batch:
            raise ValueError(
                f"Selection: actions must have one element for each of {batch} samples, got {list(actions.shape)}"
            )
        if mask is not None and mask.dtype == torch.uint8:
            mask = mask.bool()
        chosen = actions.reshape(-1) if actions.dim() != 1 else actions
        if chosen.dtype != torch.int64 and not chosen.dtype.is_floating_point:
            chosen = chosen.long()
        ys = select_linear_layers(xs, chosen, mask, modules)
        if ys is None:
            ys = self._apply_any(xs, dispatch_plan(chosen, len(modules), mask), modules)
        if self._logging_selections:
            self._selection_log.append(chosen.detach().clone())
        if self._store_module_pointers:
            for mx, a in zip(mxs, chosen.tolist(), strict=True):
                if 0 <= a < len(modules):  # any other is an inactive sample's
                    mx.append("selected_modules", modules[a])
        return ys, mxs, actions

    def _apply_any(self, xs: Tensor, plan: DispatchPlan, modules: list[nn.Module]) -> Tensor:
        ys = apply_modules(xs, plan, modules)
        if ys is None:
            shape, dtype = self._output_of(xs, modules[0])
            return torch.zeros((xs.size(0), *shape), dtype=dtype, device=xs.device)
        if not torch.compiler.is_compiling():
            self._last_output = _kind_of_input(xs), ys.shape[1:], ys.dtype
        return ys

    def _output_of(self, xs: Tensor, module: nn.Module) -> tuple[torch.Size, torch.dtype]:
        """Of a batch without active samples. Asks a copy of the module, so that its state and the random numbers stay."""
        if self._last_output is None or self._last_output[0] != _kind_of_input(xs):
            twin = copy.deepcopy(module).eval()
            for part in twin.modules():
                part._forward_hooks.clear()
                part._forward_pre_hooks.clear()
            with torch.no_grad(), torch.random.fork_rng():
                ys: Tensor = twin(torch.zeros((1, *xs.shape[1:]), dtype=xs.dtype, device=xs.device))
            self._last_output = _kind_of_input(xs), ys.shape[1:], ys.dtype
        return self._last_output[1:]

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
