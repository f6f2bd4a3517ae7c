"""Training on whole sequences: our circuits, unrolled and step by step; plain PyTorch, also compiled; the reference."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks.measure import Kind
from benchmarks.memory_peers import (
    MemoryCase,
    Training,
    compiled_step,
    memory_work,
    our_circuit,
    plain,
    reference_circuit,
    step_by_step,
    unrolled,
)
from benchmarks.memory_use import page_faults, saved_bytes

CASES = [
    MemoryCase("S", "dnc", B=16, H=64, R=4, N=16, W=16, T=9),  # the reference's repeat-copy
    MemoryCase("M", "dnc", B=16, H=100, R=4, N=128, W=32, T=32),
    MemoryCase("L", "dnc", B=8, H=256, R=4, N=512, W=64, T=16),
    MemoryCase("NTM", "ntm", B=16, H=100, R=1, N=128, W=20, T=22, I=10, O=8),  # the reference's copy
]
TINY = [
    MemoryCase("tiny", "dnc", B=3, H=8, R=2, N=9, W=5, T=4),
    MemoryCase("tiny", "ntm", B=3, H=8, R=1, N=9, W=5, T=4),
]


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")  # by the reference
def bench_memory_sequence(case: MemoryCase, compare: Callable[..., None], request: pytest.FixtureRequest) -> None:
    torch.manual_seed(0)
    training, circuit = Training(case), our_circuit(case)
    sides = [
        training.side("unroll", Kind.OURS, unrolled(circuit), circuit),
        training.side("step by step", Kind.OURS, step_by_step(circuit), circuit),
        training.side("plain PyTorch", Kind.TORCH, plain(case.model, circuit), circuit),
    ]
    checkout = request.config.getoption("reference_dnc")
    if checkout:
        published = reference_circuit(checkout, case, like=circuit)
        sides.append(training.side("reference", Kind.REFERENCE, step_by_step(published), published))
    memory = {
        "saved_bytes": {s.name: saved_bytes(s, training.x, training.targets) for s in sides if s.name != "step by step"},
        "page_faults": {s.name: page_faults(s) for s in sides},
    }
    if request.config.getoption("with_compile"):
        torch.compiler.reset()
        sides.append(training.side("compiled step", Kind.TORCH, compiled_step(case.model, circuit), circuit))
    compare(sides, memory_work(case), **memory)
