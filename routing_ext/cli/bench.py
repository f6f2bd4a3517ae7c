"""routing-ext bench: how much faster the fused layers are on this machine."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import reference
from .._extension import build_info
from ..memory import DNCCircuit, NTMCircuit
from ..routing import Initialization, Selection
from ..tasks import Copy, RepeatCopy
from .errors import UserError

MIN_ROUNDS = 8


@dataclasses.dataclass(frozen=True)
class Options:
    """routing-ext bench times the fused layers and the same in plain PyTorch, in turns.

    Attributes:
        seconds: of each row; there are seven
        threads: of the CPU, by default as many as torch takes
    """

    seconds: float = 4.0
    threads: int | None = None


class Rate(NamedTuple):
    """A number per second: the quartiles of many measurements."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:,.0f} ({self.low:,.0f} to {self.high:,.0f})"


def rates_in_turns(fast: Callable[[], object], slow: Callable[[], object], amount: int, seconds: float) -> tuple[Rate, Rate]:
    """What both do in a second, called in turns of about the same length, so that whatever else runs disturbs both alike.

    Args:
        fast, slow: each does `amount` in one call.
        amount: see above.
        seconds: how long to measure.
    """

    def seconds_of(call: Callable[[], object], repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - start) / repeats

    seconds_of(fast, 3), seconds_of(slow, 3)  # warm up
    repeats = max(1, round(seconds_of(slow, 3) / seconds_of(fast, 3)))
    rounds: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(rounds) < MIN_ROUNDS:
        rounds.append((seconds_of(fast, repeats), seconds_of(slow, 1)))
    first, second = (
        Rate(*(amount / quartile for quartile in reversed(statistics.quantiles(times, n=4))))
        for times in zip(*rounds, strict=True)
    )
    return first, second


class Row(NamedTuple):
    """Two ways to compute the same output, with the gradients of some parameters or without."""

    name: str
    against: str
    ours: Callable[[], Tensor]
    plain: Callable[[], Tensor]
    parameters: list[nn.Parameter]  # none: forward only
    batch_size: int

    def measure(self, seconds: float) -> tuple[Rate, Rate]:
        """Samples per second, of ours and plain, once both agree."""
        torch.testing.assert_close(self.ours(), self.plain(), rtol=1e-3, atol=1e-4)

        def call(compute: Callable[[], Tensor]) -> Callable[[], object]:
            if not self.parameters:
                return torch.no_grad()(compute)
            return lambda: torch.autograd.grad(compute().square().mean(), self.parameters, allow_unused=True)

        return rates_in_turns(call(self.ours), call(self.plain), self.batch_size, seconds)


def run(options: Options) -> None:
    """Prints a row for each comparison."""
    if not options.seconds > 0 or (options.threads is not None and options.threads < 1):
        raise UserError(f"seconds and threads must be above 0, got {options.seconds:g} and {options.threads}", exit_code=2)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    how = f"{threads} thread{'s' * (threads > 1)}, {build_info()['isa']}, float32; median (quartiles)"
    print(f"Sequences or samples per second, {how}")
    print(f"{'':42}{'routing_ext':>28}  {'plain PyTorch':>26}   ratio")
    slower = 0
    for row in rows():
        ours, plain = row.measure(options.seconds)
        ratio = round(ours.median / plain.median, 2)
        slower += ratio < 1
        end = "  slower" if ratio < 1 else ""
        print(f"{row.name:42}{ours!s:>28}  {plain!s:>26}{ratio:>7.2f}x  against {row.against}{end}", flush=True)
    if slower:
        print(f"In {slower} of these rows, plain PyTorch is faster here.")


def rows() -> Iterator[Row]:
    """Memory networks with the sizes of pytorch-dnc, and with a larger memory; routed layers, small and large."""
    small = {"hidden_dim": 64, "num_write_heads": 1, "num_read_heads": 4, "mem_hei": 16, "mem_wid": 16}
    ntm = {"hidden_dim": 100, "num_write_heads": 1, "num_read_heads": 1, "mem_hei": 128, "mem_wid": 20}
    yield unrolled("DNC on repeat-copy, B 16, N 16", DNCCircuit(input_dim=6, output_dim=5, **small), RepeatCopy())
    large = DNCCircuit(input_dim=6, output_dim=5, **{**small, "mem_hei": 128})
    yield unrolled("DNC on repeat-copy, B 16, N 128", large, RepeatCopy())
    yield unrolled("NTM on copy, B 16, N 128", NTMCircuit(input_dim=10, output_dim=8, **ntm), Copy())
    yield selected(modules=20, inputs=128, outputs=48, batch_size=256)
    yield selected(modules=4, inputs=512, outputs=512, batch_size=1024)
    yield selected(modules=20, inputs=128, outputs=48, batch_size=10)
    yield selected(modules=4, inputs=128, outputs=48, batch_size=10, dense=True)


def unrolled(name: str, circuit: DNCCircuit | NTMCircuit, task: Copy | RepeatCopy, batch_size: int = 16) -> Row:
    """A circuit on a batch of a task, forward and backward, against its definition."""
    x = task.batch(batch_size).input
    define: Callable[..., tuple[Tensor, object]] = reference.ntm_sequence
    if isinstance(circuit, DNCCircuit):
        define = reference.dnc_sequence

    def plain() -> Tensor:
        return define(x, circuit._weights(), circuit.initial_state(batch_size), clip_value=circuit.clip_value)[0]

    return Row(name, "its definition", lambda: circuit.unroll(x)[0], plain, list(circuit.parameters()), batch_size)


def selected(modules: int, inputs: int, outputs: int, batch_size: int, dense: bool = False) -> Row:
    """Each sample through a module of its own: forward and backward against a loop over the modules.

    Or, if dense, forward against one product with the joined weights of all modules, of which most is thrown away.
    """
    x, actions = torch.randn(batch_size, inputs), torch.randint(modules, (batch_size,))
    layers = [nn.Linear(inputs, outputs) for _ in range(modules)]
    ours, loop = Selection(*layers), reference.Selection(*layers)
    _, meta, _ = Initialization()(x)
    weight, bias = torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
    rows = torch.arange(batch_size)

    def all_at_once() -> Tensor:
        return nn.functional.linear(x, weight, bias).view(batch_size, modules, outputs)[rows, actions]

    def one_by_one() -> Tensor:
        ys: Tensor = loop(x, meta, actions)[0]
        return ys

    name = f"{modules} modules {inputs}-{outputs}, B {batch_size}"
    if dense:
        return Row(f"{name}, forward", "all modules at once", lambda: ours(x, meta, actions)[0], all_at_once, [], batch_size)
    parameters = [p for layer in layers for p in layer.parameters()]
    return Row(name, "a loop over the modules", lambda: ours(x, meta, actions)[0], one_by_one, parameters, batch_size)
