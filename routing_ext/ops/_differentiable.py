"""Raw operators that have a raw backward pass, as differentiable functions for any floating point dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionMeta, once_differentiable

from ._devices import check_devices

_LOW_PRECISION = (torch.bfloat16, torch.float16)


def differentiable(op: str, fake: Callable[..., Tensor | tuple[Tensor, ...]], results: int = 1) -> Callable[..., Any]:
    """``function(*tensors, options=())``: the first `results` results of a raw operator, differentiable once.

    Its raw backward pass takes the gradients of these, perhaps None, the tensors, all other results, and the options. It
    returns the gradients of the tensors. The raw operators take float32 and float64. The function computes low precision in
    float32; its results have the dtype of its arguments, or under autocast float32.

    Args:
        op: name of the raw operator, whose backward pass is called like it with ``_backward`` behind.
        fake: what the operator returns, as far as shapes go, of its tensors and options.
        results: how many of the operator's results there are to the caller; the others are for the backward pass.
    """
    forward_op = getattr(torch.ops.routing_ext, op).default
    backward_op = getattr(torch.ops.routing_ext, f"{op}_backward").default
    names = [a.name for a in forward_op._schema.arguments if isinstance(a.type, torch.TensorType)]

    def for_caller(computed: Any) -> Any:
        return computed if results == 1 else computed[:results]

    def forward(ctx: Any, options: tuple[Any, ...], *tensors: Tensor) -> Any:
        computed = forward_op(*tensors, *options)
        ctx.save_for_backward(*tensors, *(() if results == 1 else computed[results:]))
        ctx.options = options
        ctx.set_materialize_grads(False)
        return for_caller(computed)

    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if all(g is None for g in grads):
            return (None,) * len(ctx.needs_input_grad)
        return (None, *backward_op(*grads, *ctx.saved_tensors, *ctx.options))

    class_name = op.title().replace("_", "") + "Function"
    methods = {"forward": staticmethod(forward), "backward": staticmethod(once_differentiable(backward))}
    function: Any = FunctionMeta(class_name, (torch.autograd.Function,), methods)

    def call(*tensors: Tensor, options: tuple[Any, ...] = ()) -> Any:
        device, dtype = tensors[0].device.type, tensors[0].dtype
        autocast = device != "meta" and torch.is_autocast_enabled(device)
        low = all(t.dtype == dtype for t in tensors) and dtype in _LOW_PRECISION
        if low or autocast:
            tensors = tuple(t.float() if t.dtype in _LOW_PRECISION else t for t in tensors)
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            computed = function.apply(options, *tensors)
        else:
            computed = for_caller(forward_op(*tensors, *options))
        if not low or autocast:
            return computed
        return computed.to(dtype) if results == 1 else tuple(t.to(dtype) for t in computed)

    def fake_forward(*arguments: Any) -> Any:
        tensors = arguments[: len(names)]
        check_devices(op, tensors[0], **dict(zip(names, tensors, strict=True)))
        return fake(*arguments)

    def fake_backward(*arguments: Any) -> tuple[Tensor, ...]:
        return tuple(t.new_empty(t.shape) for t in arguments[results : results + len(names)])

    torch.library.register_fake(f"routing_ext::{op}")(fake_forward)
    torch.library.register_fake(f"routing_ext::{op}_backward")(fake_backward)
    return call
