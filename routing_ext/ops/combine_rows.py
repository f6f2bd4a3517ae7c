"""Weighted sums of what several modules made of each sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._devices import check_devices

_forward_op = torch.ops.routing_ext.combine_rows.default
_backward_op = torch.ops.routing_ext.combine_rows_backward.default


class CombineRowsFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(y, weights)
        combined: Tensor = _forward_op(y, weights)
        return combined

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        y, weights = ctx.saved_tensors
        wants_y, wants_weights = ctx.needs_input_grad
        if not torch.is_grad_enabled():
            grad_y, grad_weights = _backward_op(grad, y, weights, (wants_y, wants_weights))
            return grad_y if wants_y else None, grad_weights if wants_weights else None
        # With create_graph=True: of operators that have gradients themselves.
        of_choices = grad.unsqueeze(1)
        grad_y = (of_choices * weights.view(*weights.shape, *[1] * (y.dim() - 1))).view(y.shape) if wants_y else None
        if not wants_weights:
            return grad_y, None
        products = of_choices * y.view(*weights.shape, *y.shape[1:])
        return grad_y, products.flatten(2).sum(2) if products.dim() > 2 else products


def combine_rows(y: Tensor, weights: Tensor) -> Tensor:
    """``combined[b] = sum over j of weights[b, j] y[b * n + j]``, in one pass.

    Args:
        y: ``[B * n, ...]``, float32, float64, bfloat16 or float16 (sums are float32 in the last two): the rows of n choices of
            each sample, one behind the other.
        weights: ``[B, n]``; brought to the dtype of ``y``.

    Returns:
        ``[B, ...]`` in the dtype of ``y``. Deterministic; differentiable in both, any number of times.

    Raises:
        RuntimeError: wrong shape, dtype or device.
    """
    weights = weights.to(y.dtype)
    if torch.is_grad_enabled() and (y.requires_grad or weights.requires_grad):
        return CombineRowsFunction.apply(y.contiguous(), weights)  # type: ignore[no-any-return, no-untyped-call]
    return _forward_op(y, weights)  # type: ignore[no-any-return]


@torch.library.register_fake("routing_ext::combine_rows")
def _(y: Tensor, weights: Tensor) -> Tensor:
    check_devices("combine_rows", y, weights=weights)
    return y.new_empty((weights.size(0), *y.shape[1:]))


@torch.library.register_fake("routing_ext::combine_rows_backward")
def _(grad: Tensor, y: Tensor, weights: Tensor, output_mask: tuple[bool, bool]) -> tuple[Tensor, Tensor]:
    check_devices("combine_rows_backward", y, grad=grad, weights=weights)
    wants_y, wants_weights = output_mask
    return y.new_empty(y.shape if wants_y else (0,)), weights.new_empty(weights.shape if wants_weights else (0,))
