"""Routing among ever more modules: a step's cost, against cross-stitch layers, which send every sample through all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.bench_routing_step import TASKS, Training
from benchmarks.measure import Kind, Side
from benchmarks.routed_networks import WIDTHS, RoutedNetwork, our_layers, with_banks
from benchmarks.workloads import Case


@dataclass(frozen=True)
class ModulesCase(Case):
    K: int
    B: int = 256

    @property
    def id(self) -> str:
        return f"K{self.K}-B{self.B}"


CASES = [ModulesCase(k) for k in (4, 20, 100, 500)]
TINY = [ModulesCase(4, 10)]


class CrossStitch(nn.Module):
    """Three layers of K linear modules, whose outputs are mixed with the weights of the sample's task (Misra et al., 2016)."""

    def __init__(self, num_modules: int) -> None:
        super().__init__()
        shapes = list(zip(WIDTHS[:-1], WIDTHS[1:], strict=True))
        self.linear = nn.ModuleList(nn.Linear(d, num_modules * o) for d, o in shapes)
        self.mixing = nn.ParameterList(torch.full((TASKS, num_modules), 1 / num_modules) for _ in shapes)

    def forward(self, x: Tensor, tasks: Tensor) -> Tensor:
        for linear, mixing in zip(self.linear, self.mixing, strict=True):
            weights = mixing[tasks]
            ys = linear(x).view(x.size(0), weights.size(1), -1)
            x = torch.bmm(weights.unsqueeze(1), ys if linear is self.linear[-1] else F.relu(ys)).squeeze(1)
        return x


def bench_routing_modules(case: ModulesCase, compare: Callable[..., None]) -> None:
    torch.manual_seed(0)
    network = RoutedNetwork(our_layers(), "WPL", num_modules=case.K, num_agents=TASKS)
    x = torch.randn(case.B, WIDTHS[0], requires_grad=True)
    tasks, targets = torch.randint(TASKS, (case.B,)), torch.randn(case.B, WIDTHS[-1])
    batch = x, tasks, targets
    routed = Training("routing layers", Kind.OURS, network, batch)
    fast = Training("LinearBank, fast_sampling", Kind.OURS, with_banks(network), batch, fast=True, actions=routed.actions)
    stitched = CrossStitch(case.K)

    def prepare() -> None:
        torch.set_grad_enabled(True)
        for leaf in (x, *stitched.parameters()):
            leaf.grad = None

    def call() -> None:
        F.mse_loss(stitched(x, tasks), targets).backward()

    compare([routed.side(), fast.side(), Side("cross-stitch", Kind.TORCH, call, prepare)])
