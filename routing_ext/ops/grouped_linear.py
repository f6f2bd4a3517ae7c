"""Linear layers of K modules, each applied to the samples that chose it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._devices import check_devices
from .dispatch_plan import DispatchPlan

_forward_op = torch.ops.routing_ext.grouped_linear.default
_backward_op = torch.ops.routing_ext.grouped_linear_backward.default
_node_op = torch.ops.routing_ext.grouped_linear_node.default


class GroupedLinearFunction(torch.autograd.Function):
    """``parameters`` are the weights and then the biases of ``modules``, or the stacked ones if ``modules`` is empty."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        plan: DispatchPlan,
        modules: Sequence[int],
        num_weights: int,
        out_features: int,
        relu: bool,
        *parameters: Tensor,
    ) -> Tensor:
        weights, biases = parameters[:num_weights], parameters[num_weights:]
        y: Tensor = _forward_op(x, plan.order, plan.layout, weights, biases, modules, out_features, relu)
        needs: tuple[bool, ...] = ctx.needs_input_grad
        needs_x, needs_weights, needs_biases = needs[0], any(needs[6 : 6 + num_weights]), any(needs[6 + num_weights :])
        ctx.save_for_backward(
            plan.order,  # with the layout, so that a change of the plan is noticed
            plan.layout,
            x if needs_weights else None,
            y if relu else None,
            *(weights if needs_x else [None] * num_weights),
        )
        ctx.plan, ctx.modules, ctx.in_features, ctx.num_biases = plan, modules, x.size(1), len(biases)
        ctx.output_mask = (needs_x, needs_weights, needs_biases)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _, _, x, y, *weights = ctx.saved_tensors
        grad_x, grad_weights, grad_biases = grouped_linear_backward(
            grad, y, x, weights, ctx.plan, ctx.modules, ctx.in_features, ctx.output_mask
        )
        _, wants_weights, wants_biases = ctx.output_mask
        of_weights = _of_selected(ctx.plan, ctx.modules, grad_weights) if wants_weights else [None] * len(weights)
        of_biases = _of_selected(ctx.plan, ctx.modules, grad_biases) if wants_biases else [None] * ctx.num_biases
        return (grad_x, None, None, None, None, None, *of_weights, *of_biases)


def _of_selected(plan: DispatchPlan, modules: Sequence[int], gradients: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """None in place of the zero gradients of separate modules that got no samples, where that is known by now."""
    if not plan.known_on_host or modules is plan.selected():
        return gradients
    offsets = plan.host_offsets()
    if len(modules) == 0:
        return gradients
    return [g if offsets[k] != offsets[k + 1] else None for k, g in zip(modules, gradients, strict=True)]


class GroupedLinearBackwardFunction(torch.autograd.Function):
    """The backward pass as a function of ``grad``, ``x`` and the weights, which makes derivatives of any order."""

    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor,
        y: Tensor | None,
        x: Tensor | None,
        plan: DispatchPlan,
        modules: Sequence[int],
        in_features: int,
        output_mask: tuple[bool, bool, bool],
        *weights: Tensor | None,
    ) -> tuple[Tensor, ...]:
        grad_x, grad_weights, grad_biases = _raw_backward(grad, y, x, weights, plan, modules, in_features, output_mask)
        ctx.save_for_backward(plan.order, plan.layout, grad, y, x, *weights)
        ctx.plan, ctx.modules, ctx.in_features, ctx.output_mask = plan, modules, in_features, output_mask
        ctx.num_weights, ctx.num_biases = len(grad_weights), len(grad_biases)
        ctx.set_materialize_grads(False)
        return (grad_x, *grad_weights, *grad_biases)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        _, _, grad, y, x, *weights = ctx.saved_tensors
        plan, modules, in_features, out_features = ctx.plan, ctx.modules, ctx.in_features, grad.size(1)
        shapes = [(out_features, in_features)] * ctx.num_weights, [(out_features,)] * ctx.num_biases
        if len(modules) == 0:
            shapes = tuple([(plan.num_modules, *s) for s in group] for group in shapes)  # type: ignore[assignment]
        v_x = grads[0] if ctx.output_mask[0] else None
        v_weights = _filled(grads[1 : 1 + ctx.num_weights], shapes[0], grad)
        v_biases = _filled(grads[1 + ctx.num_weights :], shapes[1], grad)
        needs_grad, needs_x, needs_weights = ctx.needs_input_grad[0], ctx.needs_input_grad[2], any(ctx.needs_input_grad[7:])

        # grad_x = W' g, grad_W = sum g x', grad_b = sum g, with g = grad where y > 0: each is linear in g, and in W or x.
        d_grad: Tensor | None = None
        d_x: Tensor | None = None
        d_weights: Sequence[Tensor | None] = [None] * len(weights)
        if needs_grad:
            terms = []
            if v_x is not None:
                terms.append(_apply(v_x, weights, [], plan, modules, out_features, False))
            if v_weights:
                terms.append(_apply(x, v_weights, v_biases, plan, modules, out_features, False))
            elif v_biases:
                no_input = grad.new_empty((grad.size(0), 0))
                no_weights = [b.new_empty((*b.shape, 0)) for b in v_biases]
                terms.append(_apply(no_input, no_weights, v_biases, plan, modules, out_features, False))
            if terms:
                total = terms[0] if len(terms) == 1 else terms[0] + terms[1]
                d_grad = total if y is None else total.masked_fill(y <= 0, 0)
        if needs_x and v_weights:
            mask = (True, False, False)
            d_x = grouped_linear_backward(grad, y, None, v_weights, plan, modules, in_features, mask)[0]
        if needs_weights and v_x is not None:
            mask = (False, True, False)
            d_weights = grouped_linear_backward(grad, y, v_x, [], plan, modules, in_features, mask)[1]
            d_weights = _of_selected(plan, modules, d_weights)
        return (d_grad, None, d_x, None, None, None, None, *d_weights)


def _filled(grads: Sequence[Tensor | None], shapes: Sequence[tuple[int, ...]], like: Tensor) -> list[Tensor]:
    """Zeros for the gradients that are missing; empty if all are."""
    if all(g is None for g in grads):
        return []
    return [like.new_zeros(s) if g is None else g for g, s in zip(grads, shapes, strict=True)]


def _raw_backward(
    grad: Tensor,
    y: Tensor | None,
    x: Tensor | None,
    weights: Sequence[Tensor | None],
    plan: DispatchPlan,
    modules: Sequence[int],
    in_features: int,
    output_mask: tuple[bool, bool, bool],
) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
    return _backward_op(  # type: ignore[no-any-return]
        grad, y, x, plan.order, plan.layout, weights if output_mask[0] else [], modules, in_features, output_mask
    )


def grouped_linear_backward(
    grad: Tensor,
    y: Tensor | None,
    x: Tensor | None,
    weights: Sequence[Tensor | None],
    plan: DispatchPlan,
    modules: Sequence[int],
    in_features: int,
    output_mask: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Sequence[Tensor], Sequence[Tensor]]:
    """The gradients of :func:`grouped_linear`; with ``create_graph=True`` differentiable in ``grad``, ``x`` and weights."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (grad, x, *weights)):
        grad_x, *rest = GroupedLinearBackwardFunction.apply(  # type: ignore[no-untyped-call]
            grad, y, x, plan, modules, in_features, output_mask, *weights
        )
        entries = (len(modules) or 1) if output_mask[1] else 0
        return grad_x if output_mask[0] else None, rest[:entries], rest[entries:]
    grad_x, grad_weights, grad_biases = _raw_backward(grad, y, x, weights, plan, modules, in_features, output_mask)
    return grad_x if output_mask[0] else None, grad_weights, grad_biases


def _apply(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    plan: DispatchPlan,
    modules: Sequence[int],
    out_features: int,
    relu: bool,
) -> Tensor:
    if torch.is_grad_enabled() and (x.requires_grad or any(t.requires_grad for t in (*weights, *biases))):
        if x.is_cpu and modules and modules is plan.known_selected:
            return _node_op(  # type: ignore[no-any-return]
                x, plan.order, plan.layout, weights, biases, modules, out_features, relu
            )
        return GroupedLinearFunction.apply(  # type: ignore[no-any-return, no-untyped-call]
            x, plan, modules, len(weights), out_features, relu, *weights, *biases
        )
    return _forward_op(  # type: ignore[no-any-return]
        x, plan.order, plan.layout, weights, biases, modules, out_features, relu
    )


def _autocast(t: Tensor, dtype: torch.dtype) -> Tensor:
    return t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t


def grouped_linear_of(
    modules: Sequence[int],
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None,
    plan: DispatchPlan,
    relu: bool,
) -> Tensor:
    """:func:`grouped_linear` for a caller who holds the parameters of `modules` only (ascending; empty: the stacked ones).

    Samples of other modules get zero, as if they were inactive.
    """
    biases = biases or []
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, *parameters = [_autocast(t, dtype) for t in (x, *weights, *biases)]
        weights, biases = parameters[: len(weights)], parameters[len(weights) :]
    return _apply(x, weights, biases, plan, modules, weights[0].size(-2), relu)


def grouped_linear(
    x: Tensor,
    weights: Sequence[Tensor] | Tensor,
    biases: Sequence[Tensor] | Tensor | None,
    plan: DispatchPlan,
    activation: str = "none",
) -> Tensor:
    """``y[i] = act(W[a_i] x[i] + b[a_i])``, where ``a_i`` is the module of sample i; zero for inactive samples.

    Args:
        x: ``[B, d]``, float32, float64, bfloat16 or float16 (sums are float32 in the last two).
        weights: K tensors ``[o, d]`` with the dtype of ``x``, or one ``[K, o, d]``.
        biases: likewise ``[o]`` or ``[K, o]``, or None.
        plan: from :func:`dispatch_plan`, on the device of ``x``.
        activation: ``"none"`` or ``"relu"``.

    Returns:
        ``[B, o]``. Under autocast it is computed in autocast's dtype, as by :class:`torch.nn.Linear`. Deterministic,
        differentiable any number of times. Separate tensors of modules that got no sample receive the gradient None, as if
        they had not been called; a stacked tensor gets zero rows for them. Under ``torch.compile`` and in a captured CUDA
        graph, where the selection is not known on the host, separate tensors get zeros, too.

    Raises:
        ValueError: an unknown activation, or not one tensor for each module.
        RuntimeError: wrong shape, dtype or device.
    """
    if activation not in ("none", "relu"):
        raise ValueError(f"grouped_linear: activation must be 'none' or 'relu', got {activation!r}")
    relu = activation == "relu"
    if isinstance(weights, Tensor):
        if weights.dim() != 3 or weights.size(0) != plan.num_modules:
            raise ValueError(
                f"grouped_linear: weights must have shape [{plan.num_modules}, o, d] if stacked, got {list(weights.shape)}"
            )
        if biases is not None and not isinstance(biases, Tensor):
            raise ValueError("grouped_linear: biases must be stacked like weights, or None, got a sequence")
        return grouped_linear_of((), x, [weights], None if biases is None else [biases], plan, relu)
    if isinstance(biases, Tensor):
        raise ValueError("grouped_linear: biases must be a sequence like weights, or None, got a tensor")
    for name, given in (("weights", weights), ("biases", biases)):
        if given is not None and len(given) != plan.num_modules:
            raise ValueError(
                f"grouped_linear: {name} must have one tensor for each of {plan.num_modules} modules, got {len(given)}"
            )
    if plan.num_modules == 0:
        raise ValueError("grouped_linear: weights must have at least one module, got none")
    if weights[0].dim() != 2:
        raise ValueError(f"grouped_linear: weights must have shape [o, d] each, got {list(weights[0].shape)}")
    modules = plan.selected_early()  # modules that are known to be idle stay out of the graph
    chosen = [weights[k] for k in modules], None if biases is None else [biases[k] for k in modules]
    return grouped_linear_of(modules, x, *chosen, plan, relu)


@torch.library.register_fake("routing_ext::grouped_linear")
def _(
    x: Tensor,
    order: Tensor,
    layout: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    modules: Sequence[int],
    out_features: int,
    relu: bool,
) -> Tensor:
    check_devices("grouped_linear", x, order=order, layout=layout, weights=weights, biases=biases)
    return x.new_empty((x.size(0), out_features))


@torch.library.register_fake("routing_ext::grouped_linear_backward")
def _(
    grad: Tensor,
    y: Tensor | None,
    x: Tensor | None,
    order: Tensor,
    layout: Tensor,
    weights: Sequence[Tensor],
    modules: Sequence[int],
    in_features: int,
    output_mask: Sequence[bool],
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    check_devices("grouped_linear_backward", grad, y=y, x=x, order=order, layout=layout, weights=weights)
    wants_x, wants_weights, wants_biases = output_mask
    out_features = grad.size(1)
    copies = len(modules) or 1
    lead = () if modules else (layout.size(0) - 2,)
    return (
        grad.new_empty((grad.size(0), in_features) if wants_x else (0,)),
        [grad.new_empty((*lead, out_features, in_features)) for _ in range(copies if wants_weights else 0)],
        [grad.new_empty((*lead, out_features)) for _ in range(copies if wants_biases else 0)],
    )
