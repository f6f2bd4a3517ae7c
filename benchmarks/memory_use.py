"""How much memory a side uses: what it keeps for its backward pass, its peak, and its page faults."""

from __future__ import annotations

import gc
import multiprocessing
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .measure import Side


def saved_bytes(side: Side, *given: Tensor) -> int:
    """Of all tensors that autograd keeps from the forward for the backward pass, without the parameters and those given."""
    known = {t.untyped_storage().data_ptr() for t in (*side.parameters, *given)}
    kept: dict[int, torch.UntypedStorage] = {}  # holds them, so that no other comes to lie at the same address

    def keep(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        kept.setdefault(storage.data_ptr(), storage)
        return t

    side.prepare()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        side.call()
    return sum(storage.nbytes() for address, storage in kept.items() if address not in known)


def page_faults(side: Side, warm_up: int = 3, calls: int = 5) -> float:
    """A call, after some, with the garbage collector off."""
    gc.collect()
    gc.disable()
    try:
        for call in range(warm_up + calls):
            if call == warm_up:
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            side.prepare()
            side.call()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / calls
    finally:
        gc.enable()


def peak_bytes(prepare: Callable[..., Callable[[], object]], *arguments: Any) -> int:
    """The most memory that ``prepare(*arguments)()`` takes while it runs twice, in a process of its own. Linux only.

    Args:
        prepare: a module's function.
        arguments: to be pickled.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_bytes, (torch.get_num_threads(), prepare, arguments))


def _peak_bytes(threads: int, prepare: Callable[..., Callable[[], object]], arguments: tuple[Any, ...]) -> int:
    torch.set_num_threads(threads)
    call = prepare(*arguments)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status("VmRSS")
    call()
    call()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    """Bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
