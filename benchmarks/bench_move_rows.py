"""Moving rows into the order of the modules and back: gather_rows and scatter_rows against what torch has for it."""

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
from routing_ext.ops import gather_rows, scatter_rows


@dataclass(frozen=True)
class MoveCase(Case):
    op: str
    rows: int
    width: int
    backward: bool

    @property
    def id(self) -> str:
        return f"{self.op}-{self.rows}x{self.width}-{'fb' if self.backward else 'f'}"


CASES = [
    MoveCase(op, rows, width, backward)
    for op in ("gather", "scatter")
    for rows, width in ((10, 128), (256, 128), (1024, 48), (1024, 1024), (65536, 128))
    for backward in (False, True)
]
TINY = [MoveCase(op, 33, 5, backward) for op in ("gather", "scatter") for backward in (False, True)]


def bench_move_rows(case: MoveCase, compare: Callable[..., None]) -> None:
    torch.manual_seed(0)
    n, order = case.rows, torch.randperm(case.rows)
    work = Workload(torch.randn(n, case.width), torch.randn(n, case.width), case.backward)
    ops: Any = torch.ops.routing_ext
    x = work.x.detach()

    def index_copy(y: Tensor) -> Tensor:
        return y.new_zeros(n, case.width).index_copy(0, order, y)

    def index_put(y: Tensor) -> Tensor:
        return y.new_zeros(n, case.width).index_put((order,), y)

    forms: dict[str, Callable[[Tensor], Tensor]]
    if case.op == "gather":
        ours: Callable[[Tensor], Tensor] = lambda x: gather_rows(x, order)  # noqa: E731
        forms = {"index_select": lambda x: x.index_select(0, order), "x[order]": lambda x: x[order]}
        raw = [partial(ops.gather_rows, x, order), partial(ops.scatter_rows, work.grad, order, n)]
    else:
        ours = lambda y: scatter_rows(y, order, n)  # noqa: E731
        forms = {"index_copy": index_copy, "index_put": index_put}
        raw = [partial(ops.scatter_rows, x, order, n), partial(ops.gather_rows, work.grad, order)]

    def kernels() -> list[Tensor]:
        return [call() for call in raw[: 1 + case.backward]]

    sides = [
        work.side(f"{case.op}_rows", Kind.OURS, ours, ()),
        Side("kernels alone", Kind.KERNELS, kernels, partial(torch.set_grad_enabled, False)),
        *(work.side(name, Kind.TORCH, form, ()) for name, form in forms.items()),
    ]
    size = (1 + case.backward) * (2.0 * x.numel() * x.element_size() + 8 * n)
    compare(sides, Work(flop=0, bytes=size, working_set=size))
