"""What the tests share: inputs, views of inputs, and how close is close enough."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import hypothesis
import pytest
import torch
from torch import Tensor

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]

randomised = hypothesis.settings(
    deadline=None,
    max_examples=60,
    derandomize="CI" in os.environ,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)


@pytest.fixture(scope="session", params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Imported by the conftest.py of each folder of tests that run on the GPU, too."""
    name: str = request.param
    return name


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64, device: str = "cpu", grad: bool = True) -> Tensor:
    """Standard normal numbers, the same on every device, exact in `dtype`."""
    t = torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(device, dtype)
    return t.requires_grad_(grad)


def choices(counts: Sequence[int], inactive: int = 0, device: str = "cpu") -> tuple[Tensor, Tensor | None]:
    """``(actions, mask)`` in random order: ``counts[k]`` samples choose module k. The inactive ones name no module at all."""
    actions = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
    nonsense = torch.arange(inactive) * 1000 - 1
    shuffled = torch.randperm(len(actions) + inactive, generator=generator(len(actions)))
    actions = torch.cat([actions, nonsense])
    mask = torch.arange(len(actions)) < len(actions) - inactive
    return actions[shuffled].to(device), mask[shuffled].to(device) if inactive else None


def _sliced(t: Tensor) -> Tensor:
    filler = torch.nan if t.is_floating_point() else t.dtype is torch.bool or 1 << 40
    around = t.new_full([n + 2 for n in t.shape], filler)
    inside = around[(slice(1, -1),) * t.dim()]
    inside.copy_(t)
    return inside


def _unaligned(t: Tensor) -> Tensor:
    return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)


# The same numbers in other places: none of these is contiguous and aligned.
VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "sliced": _sliced,
    "strided": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "transposed": lambda t: t.movedim(-1, 0).contiguous().movedim(0, -1),
    "unaligned": _unaligned,
}


def assert_same(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def assert_identical(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype is expected.dtype
    assert torch.equal(actual, expected)


def assert_as_accurate(actual: Tensor, plain: Tensor, exact: Tensor) -> None:
    """The error of `actual` against the float64 result is at most twice that of plain PyTorch in the same dtype."""
    assert actual.dtype is plain.dtype
    assert actual.shape == plain.shape == exact.shape
    if exact.numel() == 0:
        return
    error, allowed = ((t.double() - exact).abs().max().item() for t in (actual, plain))
    tiny = 16 * torch.finfo(torch.float32).eps * max(1.0, exact.abs().max().item())
    assert error <= 2 * allowed + tiny, f"error {error:.3g}, plain PyTorch {allowed:.3g}"


def gradients(y: Tensor, inputs: Sequence[Tensor], grad: Tensor | None = None) -> list[Tensor | None]:
    """The gradient of each input; None where y does not depend on it."""
    if not y.requires_grad:
        return [None] * len(inputs)
    return list(torch.autograd.grad(y, inputs, torch.ones_like(y) if grad is None else grad, allow_unused=True))
