"""What the machine can do, measured: the arithmetic and the bandwidth that the floor of a benchmark is computed from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

import routing_ext  # noqa: F401  (registers the operators)

from .measure import fastest

MATMUL = 512  # rows, inputs and outputs: large enough for any kernel, and within the second-level cache
WORKING_SETS = tuple(2**n for n in (19, 21, 23, 25, 28))  # bytes: from the second-level cache to the memory


@dataclass
class Rates:
    """Of ``threads`` threads."""

    threads: int
    gflops: dict[str, dict[str, float]] = field(default_factory=dict)
    """GFLOP/s of a large product, by dtype and by who computes it."""
    bandwidth: dict[int, float] = field(default_factory=dict)
    """GB/s of a copy, bytes read and bytes written both counted, by the bytes it touches."""

    def attainable_gflops(self, dtype: str) -> float:
        return max(self.gflops[dtype].values())

    def attainable_bandwidth(self, working_set: float) -> float:
        """The best of the copies that touch as much, to the next smaller size, or more."""
        smaller = max((size for size in self.bandwidth if size <= working_set), default=0)
        return max(rate for size, rate in self.bandwidth.items() if size >= smaller)

    def as_json(self) -> dict[str, Any]:
        """To three digits."""
        return {
            "threads": self.threads,
            "gflops": {dtype: {name: _short(r) for name, r in by_whom.items()} for dtype, by_whom in self.gflops.items()},
            "bandwidth": {str(size): _short(r) for size, r in self.bandwidth.items()},
        }


def _short(value: float) -> float:
    return float(f"{value:.3g}")


@dataclass(frozen=True)
class Work:
    """What a computation cannot do without."""

    flop: float
    bytes: float
    working_set: float
    dtype: str = "float32"

    def floor(self, rates: Rates) -> tuple[float, str]:
        """Seconds, and which of the two it is."""
        arithmetic = self.flop / (rates.attainable_gflops(self.dtype) * 1e9) if self.flop else 0.0
        bandwidth = self.bytes / (rates.attainable_bandwidth(self.working_set) * 1e9)
        return (arithmetic, "arithmetic") if arithmetic >= bandwidth else (bandwidth, "bandwidth")


def linear_work(batch: int, selected: int, in_features: int, out_features: int, dtype: str, backward: bool) -> Work:
    """Of linear layers, of which ``selected`` get samples; with a backward pass to the input and all parameters."""
    x, y, w = batch * in_features, batch * out_features, selected * (out_features * in_features + out_features)
    size = getattr(torch, dtype).itemsize
    passes = 3 if backward else 1
    forward_elements, backward_elements = x + w + y, (y + x + w) + (x + w)
    return Work(
        flop=2.0 * passes * batch * in_features * out_features,
        bytes=float(size * (forward_elements + (backward_elements if backward else 0))),
        working_set=float(size * (2 if backward else 1) * forward_elements),
        dtype=dtype,
    )


def measure_rates(threads: int, dtypes: Iterable[str], budget: float = 0.3) -> Rates:
    """``budget``: seconds for each figure. The fastest call counts, so that other load on the machine matters little."""
    rates = Rates(threads)
    for dtype in dtypes:
        rates.gflops[dtype] = _measure_gflops(getattr(torch, dtype), budget)
    for size in WORKING_SETS:
        source = torch.zeros(size // 8)
        target = torch.zeros_like(source)
        rates.bandwidth[size] = size / fastest(lambda: target.copy_(source), budget) / 1e9  # noqa: B023
    return rates


@torch.no_grad()
def _measure_gflops(dtype: torch.dtype, budget: float) -> dict[str, float]:
    n = MATMUL
    x, w, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype), torch.randn(n).to(dtype)
    order, layout = torch.arange(n), torch.tensor([0, n, -1])
    ops = torch.ops.routing_ext
    calls = {
        "own forward": lambda: ops.grouped_linear(x, order, layout, [w], [b], [0], n, False),
        "own gradient of x": lambda: ops.grouped_linear_backward(
            x, None, None, order, layout, [w], [0], n, (True, False, False)
        ),
        "torch mm": lambda: torch.mm(x, w.t()),
    }
    if dtype == torch.float32 and torch.backends.mkldnn.is_available():
        calls["torch mkldnn linear"] = lambda: torch.ops.mkldnn._linear_pointwise(x, w, b, "none", [], "")
    return {name: 2 * n**3 / fastest(call, budget) / 1e9 for name, call in calls.items()}
