"""What the host waits for in a training step on a GPU, as docs/dispatch.md states it.

The steps run on the meta device, whose tensors have no numbers: to need one is an error, but for what is counted here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import ALGORITHMS
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from routing_ext import routing
from routing_ext.ops import DispatchPlan
from routing_ext.routing import (
    CollaborationReward,
    CorrectClassifiedReward,
    Initialization,
    Loss,
    ManualReward,
    NegLossReward,
    PerTaskAssignment,
    RoutingGRUCell,
    RoutingLSTMCell,
    RunningAverageCollaborationReward,
    Selection,
    fast_sampling,
    replay,
)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "dispatch.md"
B, K, WIDTH, DEPTH = 12, 4, 6, 3


class _Uploads(TorchFunctionMode):
    """Tensors made of numbers of the host: on the meta device no dispatch mode sees them."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self._counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor, Tensor.new_tensor) and result.is_meta:
            self._counts["upload"] += 1
        return result


class Waits(TorchDispatchMode):
    """Lets the meta device pass for a GPU, and counts what the host would wait for.

    Attributes:
        counts: ``plan``: the sizes of a plan's groups; ``read``: a number; ``nonzero``: a size that depends on numbers;
            ``upload``: a copy from memory that is not pinned.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._plans: dict[int, tuple[Tensor, list[int]]] = {}  # by the layout, which stays alive, so that its id is its own
        self._uploads = _Uploads(self.counts)
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> Waits:
        def host_offsets(plan: DispatchPlan) -> list[int]:
            if plan._host_offsets is None:
                self.counts["plan"] += 1
                plan._host_offsets = self._plans[id(plan.layout)][1]
            return plan._host_offsets

        self._patch.setattr(DispatchPlan, "host_offsets", host_offsets)
        self._patch.setattr(DispatchPlan, "selected_early", lambda plan: range(plan.num_modules))
        self._patch.setattr(DispatchPlan, "known_on_host", property(lambda plan: True))
        self._uploads.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._uploads.__exit__(*error)
        self._patch.undo()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten, kwargs = torch.ops.aten, kwargs or {}
        if func is aten._local_scalar_dense.default:
            self.counts["read"] += 1
            return 1
        if func is aten.nonzero.default:
            self.counts["nonzero"] += 1
            return torch.empty((args[0].size(0) - 2, args[0].dim()), dtype=torch.int64, device="meta")
        result = func(*args, **kwargs)
        if func is aten._to_copy.default and args[0].device.type == "cpu" and result.is_meta:
            self.counts["upload"] += 1
        if func is torch.ops.routing_ext.dispatch_plan.default:
            actions, num_modules, mask = args
            active = actions.size(0) - (0 if mask is None else 2)
            self._plans[id(result[1])] = result[1], [active * k // num_modules for k in range(num_modules + 1)]
        return result


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """``(x [B, WIDTH], tasks, mask)``."""
    x = torch.empty((B, WIDTH), device="meta", requires_grad=True)
    return x, torch.empty(B, dtype=torch.int64, device="meta"), torch.empty(B, dtype=torch.bool, device="meta")


def waits(forward: Callable[[], Tensor]) -> tuple[Counter[str], Counter[str]]:
    """Of the forward pass, which returns a loss, and of the backward pass; both for the second time."""
    with Waits():
        forward().backward()
    counted = Waits()
    with counted:
        total = forward()
    first = counted.counts.copy()
    with counted:
        total.backward()
    return first, counted.counts - first


# ---- what is counted: one step of each kind, with its row in the page -------------------------------------------------------


def decision(algorithm: str, agents: int, masked: bool, part: bool = False, **kwargs: Any) -> Callable[[], Tensor]:
    """With its loss; `part`: of a list of the samples."""
    layer = getattr(routing, algorithm)(K, WIDTH, num_agents=agents, exploration=0.3, **kwargs).to("meta")
    reward = CorrectClassifiedReward() if masked else NegLossReward()
    loss = Loss(nn.CrossEntropyLoss(), reward)

    def forward() -> Tensor:
        x, tasks, mask = batch()
        xs, mxs, _ = Initialization()(x, tasks)
        ys, mxs, _ = layer(xs, mxs, tasks, mask=mask if masked else None)
        return sum(loss(ys, list(mxs) if part else mxs, tasks))  # type: ignore[return-value]

    return forward


def decisions(agents: int, masked: bool) -> Iterator[Callable[[], Tensor]]:
    for algorithm in ALGORITHMS:
        yield decision(algorithm, agents, masked)
        yield decision(algorithm, agents, masked, policy_storage_type="tabular")
    for reward in (CollaborationReward(0.1), RunningAverageCollaborationReward(0.1), ManualReward([0.1] * K)):
        yield decision("WPL", agents, masked, additional_reward_func=reward)


def selection(*modules: nn.Module) -> Callable[[], Tensor]:
    layer = Selection(*modules).to("meta")

    def forward() -> Tensor:
        x, tasks, mask = batch()
        return layer(x, [None] * B, tasks, mask)[0].sum()

    return forward


def assignment(as_list: bool) -> Callable[[], Tensor]:
    def forward() -> Tensor:
        x, tasks, _ = batch()
        xs, mxs, _ = Initialization()(x, [0] * B if as_list else tasks)
        return PerTaskAssignment()(xs, mxs)[0].sum()

    return forward


def cell(cell_class: type[Any], masked: bool, recurrent: bool) -> Callable[[], Tensor]:
    layer = cell_class(WIDTH, WIDTH, K, DEPTH, routing.WPL, recurrent=recurrent).to("meta")

    def forward() -> Tensor:
        x, _, mask = batch()
        xs, mxs, _ = Initialization()(x)
        hidden, _ = layer(xs, None, mxs, mask=mask if masked else None)
        return (hidden[0] if isinstance(hidden, tuple) else hidden).sum()

    return forward


def replayed() -> Callable[[], Tensor]:
    drawn = decision("WPL", agents=1, masked=False)

    def forward() -> Tensor:
        with replay([batch()[1]]):
            return drawn()

    return forward


def stated() -> dict[str, tuple[int, int]]:
    """The rows of the page's table."""
    section = PAGE.read_text().partition("\n## Host synchronisation\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| (\d+) \| (\d+) \|$", section, re.MULTILINE)
    return {name.replace("`", ""): (int(forward), int(backward)) for name, forward, backward in rows}


LINEAR = [nn.Linear(WIDTH, WIDTH) for _ in range(K)]
ROWS: dict[str, list[Callable[[], Tensor]]] = {
    "decision of one agent, no mask": [*decisions(1, False)],
    "decision of several agents": [*decisions(3, False)],
    "decision with a mask": [*decisions(1, True), *decisions(3, True)],
    "selection of linear modules": [selection(*LINEAR)],
    "selection of other modules": [selection(*[nn.Sequential(m, nn.Tanh()) for m in LINEAR])],
    "PerTaskAssignment, tasks in a tensor": [assignment(as_list=False)],
    "PerTaskAssignment, tasks in a list": [assignment(as_list=True)],
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("fast", [False, True])
def test_layers(name: str, fast: bool) -> None:
    for forward in ROWS[name]:
        if fast:
            with fast_sampling():
                found = waits(forward)
        else:
            found = waits(forward)
        assert tuple(counts.total() for counts in found) == stated()[name], found


@pytest.mark.parametrize("cell_class", [RoutingLSTMCell, RoutingGRUCell])
def test_recurrent_cells(cell_class: type[Any]) -> None:
    """Beyond what their decisions and selections wait for."""
    of_mask, of_stop = stated()["recurrent cell with a mask"][0], stated()["recurrent cell that may stop, a decision"][0]
    for masked in (False, True):
        for recurrent in (False, True):
            forward, backward = waits(cell(cell_class, masked, recurrent))
            of_plans = DEPTH if masked else DEPTH - 1 if recurrent else 0  # who may stop is masked from then on
            assert forward == Counter(plan=of_plans, read=of_mask * masked + of_stop * DEPTH * recurrent)
            assert backward == Counter(plan=DEPTH)


def test_loss_of_a_list() -> None:
    rows = stated()
    of_list, of_mask = rows["Loss of a list of samples"][0], rows["Loss of a list of samples, a decision with a mask"][0]
    for masked in (False, True):
        whole, _ = waits(decision("WPL", 3, masked))
        forward, backward = waits(decision("WPL", 3, masked, part=True))
        assert (forward - whole).total() == of_list + of_mask * masked
        assert not backward


def test_replay() -> None:
    assert waits(replayed()) == (Counter(read=stated()["replay, a decision"][0]), Counter())


def test_every_row_is_tested() -> None:
    others = {"recurrent cell with a mask", "recurrent cell that may stop, a decision", "replay, a decision"}
    others |= {"Loss of a list of samples", "Loss of a list of samples, a decision with a mask"}
    assert set(stated()) == set(ROWS) | others


def test_what_needs_numbers_is_seen() -> None:
    """So that these tests would notice."""
    x, tasks, mask = batch()
    with Waits() as counted:
        bool(mask.any())
        mask.nonzero()
        torch.tensor([1.0], device="meta")
        torch.zeros(3).to("meta")
        for needs_numbers in (lambda: x[mask], lambda: tasks.tolist(), lambda: x.cpu(), lambda: tasks.unique()):
            with pytest.raises((NotImplementedError, RuntimeError, IndexError)):
                needs_numbers()
    assert counted.counts == Counter(read=1, nonzero=1, upload=2)
