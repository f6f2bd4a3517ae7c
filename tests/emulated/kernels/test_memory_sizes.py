"""Kernels of memory networks at the sizes at which they change their way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from routing_ext import ops, reference
from routing_ext.memory import DncState

F64 = torch.float64


def random(*shape: int, seed: int, device: str) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=g, dtype=F64).to(device).requires_grad_()


def check(name: str, inputs: list[Tensor], **options: Any) -> None:
    """Results and gradients are those of the definition."""
    found = []
    for module in (ops, reference):
        y = getattr(module, name)(*inputs, **options)
        results = [y] if isinstance(y, Tensor) else [t for t in y if t.requires_grad]
        leaves = [t for s in inputs for t in ((s,) if isinstance(s, Tensor) else s)]
        parts = [(t * random(*t.shape, seed=i, device=t.device.type)).sum() for i, t in enumerate(results)]
        grads = torch.autograd.grad(sum(parts), leaves, allow_unused=True)  # type: ignore[arg-type]
        found.append([*results, *(torch.zeros_like(t) if g is None else g for t, g in zip(leaves, grads, strict=True))])
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def access(b: int, n: int, w: int, v: int, r: int, device: str) -> tuple[Tensor, DncState]:
    interface = 4 * random(b, v * (3 * w + 3) + r * (w + 3 + 2 * v), seed=0, device=device).detach() - 2
    shapes = {
        "memory": (b, n, w), "usage": (b, n), "precedence": (b, v, n), "link": (b, v, n, n), "write_weights": (b, v, n),
        "read_weights": (b, r, n), "hidden": (b, 1), "cell": (b, 1), "read_vectors": (b, r, w),
    }  # fmt: skip
    state = {field: random(*shape, seed=i, device=device) for i, (field, shape) in enumerate(shapes.items())}
    for field in ("precedence", "link", "write_weights", "read_weights"):
        state[field] = (state[field].detach() / n).requires_grad_()
    return interface.requires_grad_(), DncState(**state)


@pytest.mark.parametrize("locations", [8, 9, 32, 33, 64, 65, 129])
def test_threads_of_a_sample(locations: int, device: str) -> None:
    check("dnc_access", [*access(2, locations, 5, 1, 2, device)])  # type: ignore[list-item]


@pytest.mark.parametrize("word", [1, 4, 5, 8, 9, 128, 129])
def test_lanes_of_a_row(word: int, device: str) -> None:
    check("dnc_access", [*access(1, 10, word, 2, 1, device)])  # type: ignore[list-item]


@pytest.mark.parametrize("heads", [1, 3, 4, 5, 9])
def test_heads_at_a_time(heads: int, device: str) -> None:
    check("dnc_access", [*access(1, 12, 3, heads, heads, device)])  # type: ignore[list-item]


def test_vectors_in_device_memory(device: str) -> None:
    """Where they are too many for the shared memory of a block."""
    check("dnc_access", [*access(2, 700, 2, 1, 7, device)])  # type: ignore[list-item]


def test_allocation_in_device_memory(device: str) -> None:
    check("dnc_allocation", [random(1, 8000, seed=0, device=device), random(1, 1, seed=1, device=device)])


def test_content_in_device_memory(device: str) -> None:
    keys, strengths = random(1, 5, 3, seed=0, device=device), random(1, 5, seed=1, device=device)
    check("content_weights", [keys, strengths, random(1, 6000, 3, seed=2, device=device)])
