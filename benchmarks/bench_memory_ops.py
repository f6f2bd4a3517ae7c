"""The operators of memory networks, one by one and as one step, against their definitions in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.measure import Kind, Side
from benchmarks.rates import Work
from benchmarks.workloads import Case
from routing_ext import ops, reference
from routing_ext.memory import DncState, NtmState


@dataclass(frozen=True)
class MemoryOpCase(Case):
    """One write head, R read heads, N locations of W elements, three shifts; R heads where they may be of any kind."""

    op: str
    N: int
    backward: bool
    B: int = 16
    W: int = 32
    R: int = 4

    @property
    def id(self) -> str:
        return f"{self.op}-N{self.N}-{'fb' if self.backward else 'f'}"

    @property
    def shapes(self) -> dict[str, Sequence[int]]:
        """Of the arguments."""
        b, n, w, r = self.B, self.N, self.W, self.R
        memory, written, read = (b, n, w), (b, 1, n), (b, r, n)
        dnc: dict[str, Sequence[int]] = {"memory": memory, "usage": (b, n), "precedence": written, "link": (b, 1, n, n)}
        heads = {"write_weights": written, "read_weights": read}
        return {
            "content_weights": {"keys": (b, r, w), "strengths": (b, r), "memory": memory},
            "dnc_usage": {"usage": (b, n), "write_weights": written, "free_gates": (b, r), "read_weights": read},
            "dnc_allocation": {"usage": (b, n), "write_gates": (b, 1)},
            "dnc_temporal_link": {"link": (b, 1, n, n), "precedence": written, **heads},
            "ntm_location": {"content": read, "gates": (b, r), "shifts": (b, r, 3), "sharpness": (b, r), "previous": read},
            "memory_write": {"memory": memory, "write_weights": written, "erase": (b, 1, w), "add": (b, 1, w)},
            "memory_read": {"memory": memory, "read_weights": read},
            "dnc_access": {"interface": (b, 3 * w + 3 + r * (w + 5)), **dnc, **heads},
            "ntm_access": {"interface": (b, 3 * w + 6 + r * (w + 6)), "memory": memory, **heads},
        }[self.op]

    def inputs(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)

        def made(name: str, shape: Sequence[int]) -> Tensor:
            t = torch.rand(list(shape), generator=generator)
            if name in ("link", "precedence", "content", "previous", "shifts") or name.endswith("weights"):
                t = t / t.sum(-1, keepdim=True) / (self.N if name == "link" else 1)
            if name == "link":
                t = t * (1 - torch.eye(self.N))
            return (1 + t if name == "sharpness" else t).requires_grad_(self.backward)

        return [made(name, shape) for name, shape in self.shapes.items()]


OPERATORS = (
    "content_weights",
    "dnc_usage",
    "dnc_allocation",
    "dnc_temporal_link",
    "ntm_location",
    "memory_write",
    "memory_read",
    "dnc_access",
    "ntm_access",
)
CASES = [
    *(MemoryOpCase(op, n, backward) for op in OPERATORS for n in (16, 128, 512) for backward in (False, True)),
    *(MemoryOpCase(op, n, True, B=2) for op in ("dnc_allocation", "dnc_temporal_link") for n in (1024, 2048, 4096)),
]
TINY = [MemoryOpCase(op, 9, backward, B=2, W=5, R=2) for op in OPERATORS for backward in (False, True)]


def _called(module: Any, op: str) -> Callable[..., Sequence[Tensor]]:
    """The operator as a function of tensors to tensors."""
    function = getattr(module, op)
    if not op.endswith("_access"):
        return lambda *inputs: [y] if isinstance(y := function(*inputs), Tensor) else y
    kind: Any = DncState if op.startswith("dnc") else NtmState

    def step(interface: Tensor, memory: Tensor, *others: Tensor) -> Sequence[Tensor]:
        nothing, reads = (
            memory.new_empty(memory.size(0), 0),
            memory.new_empty(memory.size(0), others[-1].size(1), memory.size(2)),
        )
        after = function(interface, kind(memory, *others, nothing, nothing, reads))
        return [*after[: 1 + len(others)], after.read_vectors]

    return step


def bench_memory_ops(case: MemoryOpCase, compare: Callable[..., None]) -> None:
    inputs = case.inputs()
    outputs = [y.detach() for y in _called(reference, case.op)(*inputs)]
    grads = [torch.randn_like(y) for y in outputs]

    def prepare() -> None:
        torch.set_grad_enabled(case.backward)
        for t in inputs:
            t.grad = None

    def run(function: Callable[..., Sequence[Tensor]]) -> Sequence[Tensor]:
        ys = function(*inputs)
        if case.backward:
            torch.autograd.backward(ys, grads)
        return ys

    def results(ys: object) -> list[Tensor]:
        found = [y.detach() for y in cast("Sequence[Tensor]", ys)]
        return [*found, *(torch.zeros_like(t) if t.grad is None else t.grad for t in inputs)] if case.backward else found

    raw: Any = torch.ops.routing_ext
    options: tuple[object, ...] = {"dnc_allocation": (0.0,), "dnc_access": ([],), "ntm_access": ([],)}.get(case.op, ())
    plain = [t.detach() for t in inputs]

    def kernels() -> None:
        ys = getattr(raw, case.op)(*plain, *options)
        if case.backward:
            kept = [] if isinstance(ys, Tensor) else ys[len(outputs) :]
            getattr(raw, f"{case.op}_backward")(*grads, *plain, *kept, *options)

    sides = [
        Side(case.op, Kind.OURS, partial(run, _called(ops, case.op)), prepare, results),
        Side("kernels alone", Kind.KERNELS, kernels, partial(torch.set_grad_enabled, False)),
        Side("plain PyTorch", Kind.TORCH, partial(run, _called(reference, case.op)), prepare, results),
    ]
    # Read and written once: forward the arguments and the results; backward both, the results' gradients, the arguments'.
    size = sum(4.0 * t.numel() for t in (*inputs, *outputs)) * (3 if case.backward else 1)
    compare(sides, Work(flop=0, bytes=size, working_set=size))
