"""Work done in two processes that know each other, as torchrun makes them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import distributed


def _process(rank: int, work: Callable[[int], Any], folder: Path) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(work(rank), folder / f"{rank}.pt")
    distributed.destroy_process_group()
    # DistributedDataParallel's reducer keeps the group's threads alive for good; one that lets go of a tensor while the
    # interpreter ends would abort the process.
    os._exit(0)


def in_two_processes(work: Callable[[int], Any], folder: Path) -> list[Any]:
    """What ``work(rank)`` returns in each process: tensors, numbers, and what holds them."""
    mp.spawn(_process, (work, folder), nprocs=2)  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]
