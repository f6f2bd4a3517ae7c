"""A training step of routed networks, forward, loss and backward: our layers, and per-sample Python as published."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import Kind, Side
from benchmarks.routed_networks import (
    WIDTHS,
    RoutedNetwork,
    gradients_of,
    our_layers,
    plain_layers,
    reference_layers,
    trunk,
    with_banks,
)
from benchmarks.workloads import Case
from routing_ext.routing import fast_sampling, replay

TASKS = 20
CHECKED = 2  # steps that a side makes before its results are compared


@dataclass(frozen=True)
class StepCase(Case):
    algorithm: str
    B: int
    architecture: str = "per task"
    K: int = 20
    trunk: bool = False
    """Whether the network begins with convolutions."""

    @property
    def id(self) -> str:
        architecture = self.architecture.replace(" ", "-")
        return f"{self.algorithm}-{architecture}-K{self.K}-B{self.B}-{'step' if self.trunk else 'routing'}"

    @property
    def headline(self) -> bool:
        return (self.algorithm, self.architecture, self.trunk) == ("WPL", "per task", False)


BATCHES = (10, 64, 256, 1024)
CASES = [
    *(StepCase("WPL", b) for b in BATCHES),
    *(StepCase(algorithm, b) for algorithm in ("REINFORCE", "QLearning", "GumbelSoftmax") for b in BATCHES),
    *(StepCase("WPL", b, "dispatched") for b in BATCHES),
    *(StepCase("RELAX", b, "single") for b in BATCHES),
    *(StepCase("WPL", b, trunk=True) for b in BATCHES),
]
TINY = [
    *(StepCase(algorithm, 10, K=4) for algorithm in ("WPL", "REINFORCE", "QLearning", "GumbelSoftmax")),
    StepCase("WPL", 10, "dispatched", K=4),
    StepCase("RELAX", 10, "single", K=4),
    StepCase("WPL", 4, K=4, trunk=True),
]


def bench_routing_step(case: StepCase, compare: Callable[..., None], request: pytest.FixtureRequest) -> None:
    torch.manual_seed(0)
    checkout = request.config.getoption("reference")
    # The reference's RELAX frees the graph of the layers before it: a network with several cannot be trained.
    layers = reference_layers(checkout) if checkout and case.algorithm != "RELAX" else plain_layers()
    options = {"detach": False} if case.algorithm == "RELAX" else {}
    networks = [
        RoutedNetwork(made_of, case.algorithm, case.architecture, case.K, TASKS, **options)
        for made_of in (our_layers(), layers)
    ]
    networks[1].load_state_dict(networks[0].state_dict())
    x = torch.randn(case.B, 3, 32, 32) if case.trunk else torch.randn(case.B, WIDTHS[0], requires_grad=True)
    tasks, classes = torch.randint(TASKS, (case.B,)), torch.randint(WIDTHS[-1], (case.B,))
    batch = x, tasks, F.one_hot(classes, WIDTHS[-1]).float()
    conv = trunk() if case.trunk else None
    banks = with_banks(networks[0])
    if conv is None:
        ours = Training("routing layers", Kind.OURS, networks[0], batch)
        fast = Training("LinearBank, fast_sampling", Kind.OURS, banks, batch, fast=True, actions=ours.actions)
        others = [ours, fast]
    else:
        ours = Training("routing layers", Kind.OURS, networks[0], batch, conv)
        in_channels_last = (x.to(memory_format=torch.channels_last), *batch[1:])
        last = trunk().to(memory_format=torch.channels_last)
        last.load_state_dict(conv.state_dict())
        others = [ours, Training("channels_last", Kind.OURS, with_banks(networks[0]), in_channels_last, last, checked=False)]
    loop = Training("reference" if checkout else "plain-Python loop", Kind.REFERENCE, networks[1], batch, conv)
    compare(
        [
            *(side.side() for side in (*others, loop)),
            _gradients_alone(Training("", Kind.BOUND, copy.deepcopy(networks[0]), batch, conv)),
        ]
    )


class Training:
    """A network and its batch.

    Args:
        name: of the side.
        kind: of the side.
        network: what is trained.
        batch: inputs, tasks and targets.
        conv: comes before the network.
        fast: whether actions are drawn by fast_sampling.
        actions: those of each call of another network, which draws other ones: the results are compared with these.
        checked: whether results are compared.
    """

    def __init__(
        self,
        name: str,
        kind: Kind,
        network: RoutedNetwork,
        batch: tuple[Tensor, Tensor, Tensor],
        conv: nn.Module | None = None,
        fast: bool = False,
        actions: Sequence[Sequence[Tensor]] | None = None,
        checked: bool = True,
    ) -> None:
        self.name, self.kind, self.network, self.conv = name, kind, network, conv
        self.actions: list[list[Tensor]] | None = [] if kind is Kind.OURS else None
        self._batch, self._fast, self._given, self._checked = batch, fast, actions, checked
        self._seeds = itertools.count()
        self.leaves = [p for part in (network, conv) if part is not None for p in part.parameters()]
        if conv is None:
            self.leaves.append(batch[0])

    def side(self) -> Side:
        return Side(self.name, self.kind, self.call, self.prepare, self.results if self._checked else None)

    def prepare(self) -> None:
        torch.set_grad_enabled(True)
        torch.manual_seed(next(self._seeds))
        for leaf in self.leaves:
            leaf.grad = None

    def step(self) -> tuple[Tensor, Tensor]:
        x, tasks, targets = self._batch
        ys, meta = self.network(x if self.conv is None else self.conv(x), tasks)
        module_loss, routing_loss = self.network.loss(ys, meta, targets)
        (module_loss + routing_loss).backward()
        if self.actions is not None and len(self.actions) < CHECKED:
            self.actions.append([step.actions for step in meta.batch_steps])
        return module_loss, routing_loss

    def call(self) -> tuple[Tensor, Tensor]:
        if not self._fast:
            return self.step()
        with fast_sampling():
            return self.step()

    def results(self, returned: object) -> list[Tensor]:
        """Both losses and all gradients of the last step that is compared."""
        losses: Any = returned
        if self._given is not None:
            self.network.forget()
            self._seeds = itertools.count()
            for actions in self._given:
                self.prepare()
                with replay(actions):
                    losses = self.step()
        found = [*losses, *gradients_of(self.network)]
        if self.conv is None:
            assert self._batch[0].grad is not None
            return [*found, self._batch[0].grad]
        return [*found, *(p.grad for p in self.conv.parameters() if p.grad is not None)]


def _gradients_alone(training: Training) -> Side:
    """To allocate a gradient for each parameter that takes part, and have autograd put it there: a bound for any such step."""
    training.prepare()
    training.call()
    leaves = [leaf for leaf in training.leaves if leaf.grad is not None]

    def call() -> None:
        torch.autograd.backward(leaves, [torch.empty_like(leaf) for leaf in leaves])

    return Side("gradients alone", Kind.BOUND, call, training.prepare)
