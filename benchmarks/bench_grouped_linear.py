"""Selection of K nn.Linear: our layer, the plain-Python loop, and the best forms in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.measure import Kind, Side
from benchmarks.peers import LinearPeer, compiled_peers, linear_peers
from benchmarks.rates import linear_work
from benchmarks.workloads import Case, Workload, parameters_of
from routing_ext import reference
from routing_ext.routing import Selection


@dataclass(frozen=True)
class LinearCase(Case):
    d: int
    o: int
    K: int
    B: int
    backward: bool = True
    dtype: str = "float32"

    @property
    def id(self) -> str:
        dtype = "" if self.dtype == "float32" else f"-{self.dtype}"
        return f"{self.d}to{self.o}-K{self.K}-B{self.B}-{'fb' if self.backward else 'f'}{dtype}"

    @property
    def headline(self) -> bool:
        shape = (self.d, self.o, self.K, self.B)
        return self.backward and self.dtype == "float32" and shape in HEADLINES

    @property
    def compiled(self) -> bool:
        shape = (self.d, self.o, self.K, self.B)
        return self.backward and self.dtype == "float32" and shape in COMPILED


HEADLINES = [
    (128, 48, 20, 10),
    (128, 48, 20, 256),
    (128, 48, 20, 1024),
    (128, 48, 128, 1024),
    (512, 512, 20, 256),
    (512, 512, 20, 1024),
]
COMPILED = [(128, 48, 20, 10), (128, 48, 20, 256), (512, 512, 20, 256)]

CASES = [
    *(LinearCase(128, 48, k, b, backward) for k in (4, 20, 128) for b in (10, 256, 1024, 8192) for backward in (False, True)),
    *(LinearCase(512, 512, k, b, backward) for k in (4, 20) for b in (256, 1024) for backward in (False, True)),
    LinearCase(512, 512, 20, 8192),
    LinearCase(128, 48, 20, 1024, dtype="float64"),
    LinearCase(128, 48, 20, 1024, dtype="bfloat16"),
    LinearCase(512, 512, 20, 1024, dtype="bfloat16"),
]
TINY = [
    LinearCase(12, 8, 4, 10, backward=False),
    LinearCase(12, 8, 4, 10),
    LinearCase(13, 5, 20, 33),
    LinearCase(12, 8, 20, 33, dtype="float64"),
    LinearCase(16, 8, 5, 33, dtype="bfloat16"),
]


def bench_grouped_linear(case: LinearCase, compare: Callable[..., None], request: pytest.FixtureRequest) -> None:
    torch.manual_seed(0)
    dtype: torch.dtype = getattr(torch, case.dtype)
    modules = [nn.Linear(case.d, case.o, dtype=dtype) for _ in range(case.K)]
    weights, biases = parameters_of(modules)
    actions = torch.randint(case.K, (case.B,))
    work = Workload(torch.randn(case.B, case.d).to(dtype), torch.randn(case.B, case.o).to(dtype), case.backward)
    ours, loop = Selection(*modules), reference.Selection(*modules)
    mxs = [None] * case.B

    forms = linear_peers(work.x, case.K, case.o)
    if case.compiled and request.config.getoption("with_compile"):
        torch.compiler.reset()
        forms |= compiled_peers(forms)

    def with_parameters(form: LinearPeer) -> Callable[[Tensor], Tensor]:
        return lambda x: form(x, actions, weights, biases)

    parameters = [*weights, *biases]
    selected = actions.unique().tolist()
    sides = [
        work.side("Selection", Kind.OURS, lambda x: ours(x, mxs, actions)[0], parameters),
        _kernels(work, actions, [w.detach() for w in weights], [b.detach() for b in biases], selected),
        work.side("plain-Python loop", Kind.REFERENCE, lambda x: loop(x, mxs, actions)[0], parameters),
        *(work.side(name, Kind.TORCH, with_parameters(form), parameters) for name, form in forms.items()),
    ]
    compare(sides, linear_work(case.B, len(selected), case.d, case.o, case.dtype, case.backward), selected=len(selected))


def _kernels(work: Workload, actions: Tensor, weights: list[Tensor], biases: list[Tensor], selected: list[int]) -> Side:
    """The raw operators that Selection calls, one after the other."""
    ops: Any = torch.ops.routing_ext
    x, grad, out_features = work.x.detach(), work.grad, biases[0].size(0)
    w, b = [weights[k] for k in selected], [biases[k] for k in selected]

    def call() -> object:
        order, layout = ops.dispatch_plan(actions, len(weights), None)
        y = ops.grouped_linear(x, order, layout, w, b, selected, out_features, False)
        if not work.backward:
            return y
        return ops.grouped_linear_backward(grad, None, x, order, layout, w, selected, x.size(1), (True, True, True))

    return Side("kernels alone", Kind.KERNELS, call, partial(torch.set_grad_enabled, False))
