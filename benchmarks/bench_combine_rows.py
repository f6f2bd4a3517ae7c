"""The weighted sum of several modules' outputs: combine_rows against what torch has for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Kind, Side
from benchmarks.rates import Work
from benchmarks.workloads import Case, Workload
from routing_ext.ops import combine_rows


@dataclass(frozen=True)
class CombineCase(Case):
    B: int
    choices: int
    width: int
    backward: bool

    @property
    def id(self) -> str:
        return f"{self.B}x{self.choices}x{self.width}-{'fb' if self.backward else 'f'}"


CASES = [
    CombineCase(B, choices, width, backward)
    for B, choices, width in ((10, 2, 128), (256, 2, 128), (1024, 2, 1024), (1024, 8, 128), (16384, 2, 128))
    for backward in (False, True)
]
TINY = [CombineCase(7, 3, 5, backward) for backward in (False, True)]


def bench_combine_rows(case: CombineCase, compare: Callable[..., None]) -> None:
    torch.manual_seed(0)
    shape = (case.B, case.choices)
    work = Workload(torch.randn(case.B * case.choices, case.width), torch.randn(case.B, case.width), case.backward)
    weights = torch.rand(shape).softmax(1).requires_grad_(case.backward)
    ops: Any = torch.ops.routing_ext
    y, w = work.x.detach(), weights.detach()

    def kernels() -> None:
        ops.combine_rows(y, w)
        if case.backward:
            ops.combine_rows_backward(work.grad, y, w, (True, True))

    forms: dict[str, Callable[[Tensor], Tensor]] = {
        "bmm": lambda y: torch.bmm(weights.unsqueeze(1), y.view(*shape, -1)).squeeze(1),
        "product and sum": lambda y: (weights.unsqueeze(2) * y.view(*shape, -1)).sum(1),
    }
    sides = [
        work.side("combine_rows", Kind.OURS, lambda y: combine_rows(y, weights), [weights]),
        Side("kernels alone", Kind.KERNELS, kernels, partial(torch.set_grad_enabled, False)),
        *(work.side(name, Kind.TORCH, form, [weights]) for name, form in forms.items()),
    ]
    moved, made = y.numel() + w.numel(), work.grad.numel()
    # Backward: the gradient, the rows and the weights are read, the gradients of rows and weights written.
    elements = moved + made + case.backward * (2 * moved + made)
    size = elements * y.element_size()
    compare(sides, Work(flop=2.0 * y.numel() * (1 + 2 * case.backward), bytes=size, working_set=size))
