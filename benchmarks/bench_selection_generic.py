"""Selection of modules that it cannot run together: each is called once, on a slice. What is left is mostly their own time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.measure import Kind, Side
from benchmarks.peers import inverse_of, sort_and_count, sort_and_split
from benchmarks.workloads import Case, Workload, gradients
from routing_ext import reference
from routing_ext.routing import Selection


@dataclass(frozen=True)
class GenericCase(Case):
    module: str
    K: int
    B: int
    backward: bool = True

    @property
    def id(self) -> str:
        return f"{self.module}-K{self.K}-B{self.B}-{'fb' if self.backward else 'f'}"


CASES = [
    *(GenericCase("mlp", k, b) for k in (4, 20) for b in (10, 256, 1024)),
    *(GenericCase("conv", k, b) for k in (4, 20) for b in (10, 64, 256)),
    GenericCase("mlp", 20, 256, backward=False),
    GenericCase("conv", 20, 64, backward=False),
]
TINY = [GenericCase(module, 4, 10, backward) for module in ("mlp", "conv") for backward in (False, True)]

SHAPES = {"mlp": (128,), "conv": (8, 14, 14)}


def make_module(name: str) -> nn.Module:
    if name == "mlp":
        return nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 48))
    return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))


def bench_selection_generic(case: GenericCase, compare: Callable[..., None]) -> None:
    torch.manual_seed(0)
    modules = [make_module(case.module) for _ in range(case.K)]
    parameters = [p for m in modules for p in m.parameters()]
    actions = torch.randint(case.K, (case.B,))
    x = torch.randn(case.B, *SHAPES[case.module])
    with torch.no_grad():
        grad = torch.randn(case.B, *modules[0](x[:1]).shape[1:])
    work = Workload(x, grad, case.backward)
    ours, loop = Selection(*modules), reference.Selection(*modules)
    mxs = [None] * case.B
    same_dropout = partial(torch.manual_seed, 1)
    sides = [
        work.side("Selection", Kind.OURS, lambda x: ours(x, mxs, actions)[0], parameters, same_dropout),
        work.side("plain-Python loop", Kind.REFERENCE, lambda x: loop(x, mxs, actions)[0], parameters, same_dropout),
        work.side("sort and split", Kind.TORCH, lambda x: sort_and_split(x, actions, modules), parameters, same_dropout),
        _modules_alone(work, actions, modules, parameters, same_dropout),
    ]
    compare(sides)


def _modules_alone(
    work: Workload, actions: Tensor, modules: list[nn.Module], parameters: Sequence[Tensor], before: Callable[[], object]
) -> Side:
    """The modules' own time, on slices that lie ready: a bound for every way to call them one by one."""
    order, offsets = sort_and_count(actions, len(modules))
    bounds, inverse = offsets.tolist(), inverse_of(order)
    selected = [k for k in range(len(modules)) if bounds[k] < bounds[k + 1]]
    xs = [work.x.detach()[order[bounds[k] : bounds[k + 1]]].requires_grad_(work.backward) for k in selected]
    grads = [work.grad[order[bounds[k] : bounds[k + 1]]] for k in selected]

    def prepare() -> None:
        torch.set_grad_enabled(work.backward)
        for leaf in (*xs, *parameters):
            leaf.grad = None
        before()

    def call() -> list[Tensor]:
        ys = [modules[k](rows) for k, rows in zip(selected, xs, strict=True)]
        if work.backward:
            torch.autograd.backward(ys, grads)
        return ys

    def results(ys: object) -> list[Tensor]:
        assert isinstance(ys, list)
        found = [torch.cat(ys)[inverse]]
        if work.backward:
            whole = torch.cat([rows.detach() for rows in xs]).requires_grad_()
            whole.grad = torch.cat([rows.grad for rows in xs if rows.grad is not None])
            found += gradients(whole, parameters)
            found[1] = found[1][inverse]
        return found

    return Side("modules alone", Kind.BOUND, call, prepare, results, parameters if work.backward else ())
