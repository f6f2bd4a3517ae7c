"""Makes ``device="cuda"`` usable in a CPU build of torch, for tests: `pytest --pretended-cuda` (docs/cuda-emulation.md).

Tensors there say that they are on CUDA, and Python takes the ways that it takes on a GPU. Memory is the host's, torch's own
operators run on the CPU, and ours are the emulated CUDA kernels.
"""

from __future__ import annotations

from typing import Any

import emulated_build
import torch

from routing_ext.ops import DispatchPlan


class _Event:
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def record(self, stream: Any = None) -> None: ...
    def synchronize(self) -> None: ...


def install() -> emulated_build.Emulation:
    """In a process of its own, before the first backward pass."""
    path = emulated_build.build_pretended()
    torch.ops.load_library(str(path))
    cuda: Any = torch.cuda
    cuda.is_available = lambda: True
    cuda._lazy_init = lambda: None
    cuda.is_current_stream_capturing = lambda: False
    cuda.is_bf16_supported = lambda including_emulation=True: True  # autocast asks
    cuda.current_stream = lambda device=None: None
    cuda.Event = _Event

    def start_copy(plan: Any) -> None:
        plan._host_layout = plan.layout.cpu()  # not pinned: there is no such memory
        plan._copied = _Event()

    DispatchPlan._start_copy = start_copy  # type: ignore[method-assign]
    return emulated_build.Emulation(path)
