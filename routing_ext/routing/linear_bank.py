"""K linear layers in one parameter."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..ops import DispatchPlan, combine_rows, dispatch_plan, grouped_linear
from .choices import choices_of, each_choice
from .linear_stages import linear_stages


class LinearBank(nn.Module):
    """K linear layers with a stacked weight, of which each sample goes through one: for new code with many modules.

    Unlike :class:`Selection` of K ``nn.Linear``, the optimiser and autograd see one weight and one bias, which saves their
    cost per module. The price: modules that no sample chose get a gradient of zeros, not None. So an optimiser with momentum,
    running averages or weight decay moves them, too.

    Args:
        num_modules: K.
        in_features: d.
        out_features: o.
        bias: whether the layers have one.
        activation: None or ``"relu"``.
        device: of the parameters.
        dtype: of the parameters.

    Attributes:
        weight: ``[K, o, d]``, initialised like K ``nn.Linear``.
        bias: ``[K, o]``, or None.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        num_modules: int,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if activation not in (None, "relu"):
            raise ValueError(f"LinearBank: activation must be None or 'relu', got {activation!r}")
        self.num_modules, self.in_features, self.out_features, self.activation = (
            num_modules,
            in_features,
            out_features,
            activation,
        )
        self.weight = nn.Parameter(torch.empty((num_modules, out_features, in_features), device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty((num_modules, out_features), device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all parameters from U(-1/sqrt(d), 1/sqrt(d)), as ``nn.Linear`` does."""
        bound = 1 / math.sqrt(self.in_features) if self.in_features > 0 else 0.0
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def extra_repr(self) -> str:
        return (
            f"num_modules={self.num_modules}, in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, activation={self.activation!r}"
        )

    def forward(
        self, x: Tensor, actions: Tensor | DispatchPlan, mask: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """``y[i] = act(weight[a_i] x[i] + bias[a_i])``; zero where ``mask`` is false.

        Args:
            x: ``[B, d]``.
            actions: int64 ``[B]``, or the plan that :func:`~routing_ext.ops.dispatch_plan` made of them; with `weights`, int64
                ``[B, n]``, n layers for each sample, or the plan of all ``B * n``.
            mask: bool ``[B]``.
            weights: ``[B, n]``, or ``[B]`` for n = 1: the result is the sum of the layers', each times its weight.

        Returns:
            ``[B, o]``.

        Raises:
            ValueError: a plan for another number of modules, or a plan and a mask; actions and weights of different shapes.
            RuntimeError: wrong shape, dtype or device, or an action outside ``[0, K)``.
        """
        if weights is not None:
            chosen = actions.order if isinstance(actions, DispatchPlan) else actions
            choices = choices_of("LinearBank", x.size(0), chosen, weights)
            rows, mask = each_choice(x, mask, choices)
            ys = self.forward(rows, actions if isinstance(actions, DispatchPlan) else actions.reshape(-1), mask)
            return combine_rows(ys, weights.view(x.size(0), choices))
        if isinstance(actions, DispatchPlan):
            if mask is not None:
                raise ValueError("LinearBank: mask must be None where actions is a plan, which has its own")
            plan = actions
        else:
            plan = dispatch_plan(actions, self.num_modules, mask)
        return grouped_linear(x, self.weight, self.bias, plan, self.activation or "none")

    @classmethod
    def from_modules(cls, modules: Sequence[nn.Module]) -> LinearBank:
        """A bank with copies of the modules' parameters.

        Args:
            modules: ``nn.Linear`` of one shape, or each with the same ReLU behind it (as an ``nn.Sequential``, or a subclass).
        """
        stages = linear_stages(modules)
        if stages is None or len(stages) != 1:
            raise ValueError("LinearBank: modules must be nn.Linear of one shape, all or none with a ReLU behind, got others")
        (stage,) = stages
        out_features, in_features = stage.weights[0].shape
        activation = "relu" if stage.relu else None
        like = stage.weights[0]
        bank = cls(len(modules), in_features, out_features, stage.biases is not None, activation, "meta", like.dtype)
        bank = bank.to_empty(device=like.device)
        bank.requires_grad_(any(p.requires_grad for p in (*stage.weights, *(stage.biases or ()))))
        with torch.no_grad():
            torch.stack(stage.weights, out=bank.weight)
            if bank.bias is not None and stage.biases is not None:
                torch.stack(stage.biases, out=bank.bias)
        return bank

    def to_modules(self) -> list[nn.Module]:
        """K modules with copies of the parameters: ``nn.Linear``, in an ``nn.Sequential`` with ``nn.ReLU`` if there is one."""
        modules: list[nn.Module] = []
        for k in range(self.num_modules):
            # Without initial values, whose draws would advance the random generator.
            linear = nn.utils.skip_init(
                nn.Linear,
                self.in_features,
                self.out_features,
                bias=self.bias is not None,
                device=self.weight.device,
                dtype=self.weight.dtype,
            )
            linear.requires_grad_(self.weight.requires_grad)
            with torch.no_grad():
                linear.weight.copy_(self.weight[k])
                if self.bias is not None:
                    linear.bias.copy_(self.bias[k])
            modules.append(linear if self.activation is None else nn.Sequential(linear, nn.ReLU()))
        return modules
