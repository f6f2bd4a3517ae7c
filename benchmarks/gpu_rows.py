"""What is measured on a GPU: each row with its sides, timed by events, as calls and as replays of a CUDA graph.

With the device "cpu" the same code runs without events and graphs: whether it works, not how fast.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import TOLERANCE, Disagreement, quartiles
from benchmarks.rates import linear_work
from benchmarks.routed_networks import WIDTHS, RoutedNetwork, our_layers
from routing_ext import reference
from routing_ext.memory import DNCCircuit
from routing_ext.ops import dispatch_plan, dnc_sequence, gather_rows, scatter_rows
from routing_ext.routing import LinearBank, Selection, fast_sampling

Row = dict[str, Any]
Call = Callable[[], object]

TASKS = 20


class Timer:
    """Microseconds of calls on a device."""

    def __init__(self, device: str, budget: float) -> None:
        self.device = device
        self._budget = budget

    def quartiles(self, call: Call) -> list[float]:
        """Of single calls, from a first event to a second one behind all that the call has launched."""
        for _ in range(3):
            call()
        times: list[float] = []
        end = time.perf_counter() + self._budget
        while len(times) < 5 or (time.perf_counter() < end and len(times) < 500):
            times.append(self._once(call))
        return [float(f"{t:.4g}") for t in quartiles(times)]

    def _once(self, call: Call) -> float:
        if self.device == "cpu":
            begin = time.perf_counter()
            call()
            return (time.perf_counter() - begin) * 1e6
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        first.record()
        call()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) * 1e3

    def replayed(self, call: Call) -> list[float] | None:
        """Of replays of the call's graph; None where it cannot be captured."""
        if self.device == "cpu":
            return None
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                call()
        except RuntimeError as error:
            print(f"    no graph: {str(error).splitlines()[0]}")
            torch.cuda.synchronize()
            return None
        return self.quartiles(graph.replay)

    def side(self, call: Call, as_graph: bool = True) -> dict[str, list[float]]:
        """As a call, and replayed if that is asked for and possible."""
        graph = self.replayed(call) if as_graph else None
        return {"us": self.quartiles(call)} | ({} if graph is None else {"graph_us": graph})


def with_backward(
    apply: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor, parameters: Sequence[Tensor]
) -> Callable[[], list[Tensor]]:
    """A call: forward and backward pass, all gradients anew. It returns the output, and the gradient of x."""
    leaves = [x, *parameters]

    def call() -> list[Tensor]:
        for leaf in leaves:
            leaf.grad = None
        y = apply(x)
        y.backward(grad)
        assert x.grad is not None
        return [y.detach(), x.grad]

    return call


def check_agreement(calls: dict[str, Callable[[], list[Tensor]]]) -> None:
    expected: list[Tensor] | None = None
    for name, call in calls.items():
        found = [t.detach().double() for t in call()]
        if expected is None:
            expected, dtype = found, call()[0].dtype
        for a, b in zip(found, expected, strict=True):
            error, scale = float((a - b).abs().max()), max(1.0, float(b.abs().max()))
            if not error <= TOLERANCE[dtype] * scale:
                raise Disagreement(f"{name} differs by {error:.3g}")


# ---- ceilings ---------------------------------------------------------------------------------------------------------------


def ceilings(timer: Timer, tiny: bool) -> dict[str, float]:
    """GFLOP/s of a large product by dtype, and GB/s of a copy, both counted as read and written."""
    n, size = (64, 1 << 16) if tiny else (8192, 1 << 30)
    found = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        a, b = (torch.randn(n, n, device=timer.device).to(dtype) for _ in range(2))
        found[f"gflop_s_{str(dtype).removeprefix('torch.')}"] = 2 * n**3 / timer.quartiles(lambda: a @ b)[0] / 1e3  # noqa: B023
    source = torch.zeros(size // 4, device=timer.device)
    target = torch.zeros_like(source)
    found["copy_gb_s"] = 2 * size / timer.quartiles(lambda: target.copy_(source))[0] / 1e3
    return {name: float(f"{rate:.4g}") for name, rate in found.items()}


# ---- rows -------------------------------------------------------------------------------------------------------------------


def grouped_mm_side(actions: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Callable[[Tensor], Tensor] | None:
    """torch's own grouped product with its sorting; None where it does not take the dtype or the sizes."""
    grouped = getattr(F, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)
    if grouped is None or weight.dtype != torch.bfloat16 or weight.size(1) % 8 or weight.size(2) % 8:
        return None
    num_modules = weight.size(0)

    def apply(x: Tensor) -> Tensor:
        order = actions.argsort(stable=True)
        ends = torch.bincount(actions, minlength=num_modules).cumsum(0).int()
        y = grouped(x[order], weight.transpose(1, 2), offs=ends) + bias[actions[order]]
        return torch.empty_like(y).index_copy(0, order, y.relu() if relu else y)

    return apply


def selection_rows(timer: Timer, tiny: bool) -> Iterator[Row]:
    shapes = [(12, 8)] if tiny else [(128, 48), (512, 512)]
    modules, batches = ([4], [33]) if tiny else ([20, 128], [256, 1024, 4096, 16384, 65536])
    for d, o in shapes:
        for num_modules in modules:
            for batch in batches:
                for dtype in (torch.float32, torch.bfloat16):
                    yield _selection_row(timer, d, o, num_modules, batch, dtype)


def _selection_row(timer: Timer, d: int, o: int, num_modules: int, batch: int, dtype: torch.dtype) -> Row:
    torch.manual_seed(0)
    device = timer.device
    modules = [nn.Linear(d, o, device=device, dtype=dtype) for _ in range(num_modules)]
    bank = LinearBank.from_modules(modules)
    actions = torch.randint(num_modules, (batch,), device=device)
    x = torch.randn(batch, d, device=device).to(dtype).requires_grad_()
    grad = torch.randn(batch, o, device=device).to(dtype)
    ours, loop, mxs = Selection(*modules), reference.Selection(*modules), [None] * batch
    parameters = [p for m in modules for p in m.parameters()]
    calls = {
        "LinearBank": with_backward(lambda t: bank(t, actions), x, grad, list(bank.parameters())),
        "Selection": with_backward(lambda t: ours(t, mxs, actions)[0], x, grad, parameters),
    }
    if batch <= 4096:  # it looks at each sample, and would take minutes
        calls["plain-Python loop"] = with_backward(lambda t: loop(t, mxs, actions)[0], x, grad, parameters)
    assert bank.bias is not None
    theirs = grouped_mm_side(actions, bank.weight, bank.bias, relu=False)
    if theirs is not None and device != "cpu":
        calls["grouped_mm"] = with_backward(theirs, x, grad, list(bank.parameters()))
    check_agreement(calls)
    sides = {name: timer.side(call, name in ("LinearBank", "grouped_mm")) for name, call in calls.items()}
    selected = len(set(actions.tolist()))
    work = linear_work(batch, selected, d, o, str(dtype).removeprefix("torch."), True)
    best = sides["LinearBank"].get("graph_us", sides["LinearBank"]["us"])[1]
    case = {"d": d, "o": o, "K": num_modules, "B": batch, "dtype": work.dtype}
    rates = {"gflop_s": work.flop / best / 1e3, "gb_s": work.bytes / best / 1e3}
    return {"bench": "selection", "case": case, "sides": sides, **{k: float(f"{v:.4g}") for k, v in rates.items()}}


def move_rows(timer: Timer, tiny: bool) -> Iterator[Row]:
    for batch, width in [(33, 8)] if tiny else [(1024, 128), (65536, 128), (65536, 4096)]:
        x = torch.randn(batch, width, device=timer.device)
        order = torch.randperm(batch, device=timer.device)
        for name, call in (
            ("gather_rows", lambda: gather_rows(x, order)),  # noqa: B023
            ("scatter_rows", lambda: scatter_rows(x, order, batch)),  # noqa: B023
        ):
            side = timer.side(call)
            gb_s = 2 * x.numel() * x.element_size() / side.get("graph_us", side["us"])[1] / 1e3
            yield {"bench": name, "case": {"B": batch, "d": width}, "sides": {"ours": side}, "gb_s": float(f"{gb_s:.4g}")}


def plan_rows(timer: Timer, tiny: bool) -> Iterator[Row]:
    for batch, num_modules in [(33, 4)] if tiny else [(256, 20), (4096, 20), (65536, 128)]:
        actions = torch.randint(num_modules, (batch,), device=timer.device)
        calls: dict[str, Call] = {
            "ours": lambda: torch.ops.routing_ext.dispatch_plan(actions, num_modules, None),  # noqa: B023
            "with its copy to the host": lambda: dispatch_plan(actions, num_modules),  # noqa: B023
            "argsort, bincount": lambda: (actions.argsort(stable=True), torch.bincount(actions, minlength=num_modules)),  # noqa: B023
        }
        sides = {name: {"us": timer.quartiles(call)} for name, call in calls.items()}
        yield {"bench": "dispatch_plan", "case": {"B": batch, "K": num_modules}, "sides": sides}


def routing_rows(timer: Timer, tiny: bool) -> Iterator[Row]:
    """A training step: 20 tasks, 20 modules, three decisions."""
    for batch in [10] if tiny else [10, 64, 256, 1024, 4096]:
        torch.manual_seed(0)
        network = RoutedNetwork(our_layers(), "WPL", "per task", 4 if tiny else 20, TASKS).to(timer.device)
        x = torch.randn(batch, WIDTHS[0], device=timer.device)
        tasks = torch.randint(TASKS, (batch,), device=timer.device)
        targets = F.one_hot(torch.randint(WIDTHS[-1], (batch,), device=timer.device), WIDTHS[-1]).float()

        def step() -> None:
            network.zero_grad()  # noqa: B023
            ys, meta = network(x, tasks)  # noqa: B023
            sum(network.loss(ys, meta, targets)).backward()  # type: ignore[union-attr]  # noqa: B023

        def fast_step() -> None:
            with fast_sampling():
                step()

        sides = {"routing layers": {"us": timer.quartiles(step)}, "fast_sampling": {"us": timer.quartiles(fast_step)}}
        yield {"bench": "routing_step", "case": {"B": batch, "tasks": TASKS, "decisions": 3}, "sides": sides}


class SequenceSize(NamedTuple):
    steps: int
    batch: int
    hidden: int
    heads: int
    locations: int
    word: int


# Of the CPU's benchmarks, and one that fills a GPU.
SEQUENCES = {
    "S": SequenceSize(9, 16, 64, 4, 16, 16),
    "M": SequenceSize(32, 16, 100, 4, 128, 32),
    "L": SequenceSize(16, 8, 256, 4, 512, 64),
    "XL": SequenceSize(64, 64, 256, 4, 256, 64),
}


def sequence_rows(timer: Timer, tiny: bool) -> Iterator[Row]:
    """A DNC over a sequence, both passes: each way of docs/cuda-memory.md, and its definition in plain PyTorch."""
    sizes = {"tiny": SequenceSize(2, 3, 8, 1, 6, 4)} if tiny else SEQUENCES
    for name, size in sizes.items():
        yield _sequence_row(timer, name, size)


def _sequence_row(timer: Timer, name: str, size: SequenceSize) -> Row:
    torch.manual_seed(0)
    width = 8
    circuit = DNCCircuit(
        input_dim=width, output_dim=width, hidden_dim=size.hidden, num_write_heads=1, num_read_heads=size.heads,
        mem_hei=size.locations, mem_wid=size.word,
    ).to(timer.device)  # fmt: skip
    weights, n = list(circuit.parameters()), size.locations
    x = torch.randn(size.steps, size.batch, width, device=timer.device).requires_grad_()
    grad = torch.randn(size.steps, size.batch, width, device=timer.device)
    call = with_backward(lambda t: dnc_sequence(t, circuit._weights(), num_locations=n)[0], x, grad, weights)
    sides = {}
    ways = {"by steps": "steps"} | {f"{b} blocks a sample": b for b in ("1", "2", "4", "8")} | {"as chosen": ""}
    for side, way in ways.items():
        with mock.patch.dict(os.environ, ROUTING_EXT_SEQUENCE=way):
            try:
                sides[side] = timer.side(call)
            except RuntimeError as error:
                if "ROUTING_EXT_SEQUENCE" not in str(error):
                    raise  # else its vectors do not fit, or there are no such clusters
    state = circuit.initial_state(size.batch)
    plain = with_backward(lambda t: reference.dnc_sequence(t, circuit._weights(), state)[0], x, grad, weights)
    sides["plain PyTorch"] = timer.side(plain)
    return {"bench": "dnc_sequence", "case": {"name": name, **size._asdict()}, "sides": sides}


def all_rows(timer: Timer, tiny: bool = False) -> Iterator[Row]:
    """And prints each."""
    for rows in (plan_rows, move_rows, selection_rows, routing_rows, sequence_rows):
        for row in rows(timer, tiny):
            shown = ", ".join(
                f"{name} {statistics.median(s.get('graph_us', s['us'])):.1f} us" for name, s in row["sides"].items()
            )
            print(f"  {row['bench']} {row['case']}: {shown}", flush=True)
            yield row
