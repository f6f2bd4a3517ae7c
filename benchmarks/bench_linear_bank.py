"""K linear layers in one parameter (LinearBank) against K separate modules, and what else stacked parameters allow."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.measure import Kind, Side
from benchmarks.peers import gathered_bmm_stacked, grouped_mm_stacked, padded_bmm_stacked
from benchmarks.rates import linear_work
from benchmarks.workloads import Case, Workload, parameters_of
from routing_ext import reference
from routing_ext.routing import LinearBank, Selection


@dataclass(frozen=True)
class BankCase(Case):
    d: int
    o: int
    K: int
    B: int
    step: bool
    """Whether an Adam step follows the backward pass."""

    @property
    def id(self) -> str:
        return f"{self.d}to{self.o}-K{self.K}-B{self.B}-{'step' if self.step else 'fb'}"

    @property
    def headline(self) -> bool:
        return (self.K, self.B) == (128, 1024)


CASES = [BankCase(128, 48, k, b, step) for k in (20, 128) for b in (256, 1024) for step in (False, True)]
TINY = [BankCase(12, 8, 5, 33, step) for step in (False, True)]


def bench_linear_bank(case: BankCase, compare: Callable[..., None]) -> None:
    torch.manual_seed(0)
    bank = LinearBank(case.K, case.d, case.o)
    modules = bank.to_modules()
    actions = torch.randint(case.K, (case.B,))
    # All modules get samples: an optimiser would move idle ones of a bank, but not separate ones.
    actions[: case.K] = torch.arange(case.K)[: case.B]
    work = Workload(torch.randn(case.B, case.d), torch.randn(case.B, case.o), backward=True)
    mxs = [None] * case.B

    def separate(name: str, kind: Kind, layer: type[nn.Module]) -> Side:
        own = copy.deepcopy(modules)
        selection = layer(*own)
        weights, biases = parameters_of(own)  # type: ignore[arg-type]
        return _trained(work, name, kind, lambda x: selection(x, mxs, actions)[0], [*weights, *biases], case.step)

    def stacked(name: str, form: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> Side:
        w, b = (p.detach().clone().requires_grad_() for p in bank.parameters())
        return _trained(work, name, Kind.TORCH, lambda x: form(x, actions, w, b), [w, b], case.step)

    sides = [
        _trained(work, "LinearBank", Kind.OURS, lambda x: bank(x, actions), list(bank.parameters()), case.step),
        separate("Selection of K nn.Linear", Kind.REFERENCE, Selection),
        separate("plain-Python loop", Kind.REFERENCE, reference.Selection),
        stacked("grouped_mm, stacked", grouped_mm_stacked),
        stacked("padded bmm, stacked", padded_bmm_stacked),
        stacked("gathered bmm, stacked", gathered_bmm_stacked),
    ]
    compare(sides, None if case.step else linear_work(case.B, case.K, case.d, case.o, "float32", backward=True))


def _trained(
    work: Workload, name: str, kind: Kind, apply: Callable[[Tensor], Tensor], parameters: list[Tensor], step: bool
) -> Side:
    side = work.side(name, kind, apply, parameters)
    if step:
        optimizer = torch.optim.Adam(parameters, lr=1e-6)
        forward_backward = side.call

        def call() -> object:
            y = forward_backward()
            optimizer.step()
            return y

        side.call = call
    return side
