"""Sorting the samples by module: dispatch_plan against argsort and bincount."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.measure import Kind, Side
from benchmarks.peers import sort_and_count
from benchmarks.rates import Work
from benchmarks.workloads import Case
from routing_ext.ops import dispatch_plan


@dataclass(frozen=True)
class PlanCase(Case):
    K: int
    B: int
    masked: bool = False

    @property
    def id(self) -> str:
        return f"K{self.K}-B{self.B}{'-masked' if self.masked else ''}"


CASES = [
    *(PlanCase(k, b) for k in (20, 1000) for b in (10, 256, 1024, 8192, 65536)),
    PlanCase(20, 1024, masked=True),
    PlanCase(20, 65536, masked=True),
]
TINY = [PlanCase(5, 33), PlanCase(5, 33, masked=True)]


def bench_dispatch_plan(case: PlanCase, compare: Callable[..., None]) -> None:
    torch.manual_seed(0)
    actions = torch.randint(case.K, (case.B,))
    mask = torch.rand(case.B) < 0.8 if case.masked else None

    def in_torch() -> tuple[Tensor, Tensor]:
        if mask is None:
            return sort_and_count(actions, case.K)
        order, offsets = sort_and_count(torch.where(mask, actions, case.K), case.K + 1)
        return order, offsets[:-1]

    ops: Any = torch.ops.routing_ext
    sides = [
        Side("dispatch_plan", Kind.OURS, lambda: dispatch_plan(actions, case.K, mask), results=_order_and_offsets),
        Side("kernels alone", Kind.KERNELS, lambda: ops.dispatch_plan(actions, case.K, mask)),
        Side("argsort and bincount", Kind.TORCH, in_torch, results=_order_and_offsets),
    ]
    size = 8.0 * (2 * case.B + case.K) + (case.B if case.masked else 0)
    compare(sides, Work(flop=0, bytes=size, working_set=size))


def _order_and_offsets(plan: object) -> list[Tensor]:
    return list(cast("tuple[Tensor, Tensor]", plan))
