"""How the time of a step grows with the memory and with the sequence, and the peak of memory with the sequence."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from benchmarks.measure import Kind
from benchmarks.memory_peers import MemoryCase, Training, memory_work, our_circuit, plain, unrolled
from benchmarks.memory_use import peak_bytes

M = MemoryCase("T", "dnc", B=16, H=100, R=4, N=128, W=32, T=32)
NTM = MemoryCase("T", "ntm", B=16, H=100, R=1, N=128, W=20, T=22, I=10, O=8)
LOCATIONS = [2**n for n in range(4, 13)]
STEPS = [1, 3, 10, 32, 100, 316, 1000]
CASES = [
    *(dataclasses.replace(c, name="N", B=2, N=n, T=8) for c in (M, NTM) for n in LOCATIONS),
    *(dataclasses.replace(c, T=t) for c in (M, NTM) for t in STEPS),
]
TINY = [
    MemoryCase("N", "dnc", B=2, H=8, R=2, N=16, W=5, T=4),
    MemoryCase("N", "ntm", B=2, H=8, R=1, N=16, W=5, T=4),
    MemoryCase("T", "dnc", B=2, H=8, R=2, N=16, W=5, T=1),
]


def bench_memory_scaling(case: MemoryCase, compare: Callable[..., None]) -> None:
    torch.manual_seed(0)
    training, circuit = Training(case), our_circuit(case)
    sides = [training.side("unroll", Kind.OURS, unrolled(circuit), circuit)]
    if case.plain_fits:
        sides.append(training.side("plain PyTorch", Kind.TORCH, plain(case.model, circuit), circuit))
    peaks = {s.name: peak_bytes(_trained, case, s.name) for s in sides} if case.name == "T" else {}
    compare(sides, memory_work(case), peak_bytes=peaks)


def _trained(case: MemoryCase, form: str) -> Callable[[], object]:
    """A training step, after one on short sequences, which loads what is loaded once."""
    circuit = our_circuit(case)
    apply = unrolled(circuit) if form == "unroll" else plain(case.model, circuit)
    steps = [Training(c).side(form, Kind.OURS, apply, circuit) for c in (dataclasses.replace(case, T=1), case)]
    steps[0].call()
    steps[1].prepare()
    return steps[1].call
