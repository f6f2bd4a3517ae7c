"""Inputs of the benchmarks, and how a function of them becomes a side of a measurement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .measure import Kind, Side


@dataclass(frozen=True)
class Case:
    """One row of a table. Subclasses add what it depends on."""

    @property
    def id(self) -> str:
        raise NotImplementedError

    @property
    def headline(self) -> bool:
        """Whether the row stands in the README, and is measured with two threads as well."""
        return False


class Workload:
    """An input, and the gradient of the output if there is a backward pass."""

    def __init__(self, x: Tensor, grad: Tensor, backward: bool) -> None:
        self.x = x.requires_grad_(backward)
        self.grad = grad
        self.backward = backward

    def side(
        self,
        name: str,
        kind: Kind,
        apply: Callable[[Tensor], Tensor],
        parameters: Sequence[Tensor],
        before: Callable[[], object] | None = None,
    ) -> Side:
        """``apply(x)``, and its backward pass to x and the parameters. All gradients are None before each call."""
        leaves = (self.x, *parameters)

        def prepare() -> None:
            torch.set_grad_enabled(self.backward)
            for leaf in leaves:
                leaf.grad = None
            if before is not None:
                before()

        def call() -> Tensor:
            y = apply(self.x)
            if self.backward:
                y.backward(self.grad)
            return y

        def results(y: object) -> list[Tensor]:
            assert isinstance(y, Tensor)
            return [y, *gradients(self.x, parameters)] if self.backward else [y]

        return Side(name, kind, call, prepare, results, parameters if self.backward else ())


def gradients(x: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Of x, and of all parameters in one vector, zero where there is none."""
    assert x.grad is not None
    vectors = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    return [x.grad, torch.cat(vectors)] if vectors else [x.grad]


def parameters_of(modules: Sequence[nn.Linear]) -> tuple[list[Tensor], list[Tensor]]:
    return [m.weight for m in modules], [m.bias for m in modules]
