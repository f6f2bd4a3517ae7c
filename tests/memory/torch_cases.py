"""What the tests under torch's own machinery share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.multiprocessing as mp
from torch import Tensor, distributed, nn

# The parameters after some training; rank None: by one process with the whole batch.
Trained = Callable[[int | None], dict[str, Tensor]]


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x

    def right_inverse(self, x: Tensor) -> Tensor:
        return x / 2


def _work(rank: int, folder: Path, trained: Trained) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(trained(rank), folder / f"{rank}.pt")
    distributed.destroy_process_group()


def check_two_processes_train_as_one(trained: Trained, folder: Path) -> None:
    mp.spawn(_work, (folder, trained), nprocs=2)  # type: ignore[no-untyped-call]
    expected = trained(None)
    for rank in range(2):
        torch.testing.assert_close(torch.load(folder / f"{rank}.pt"), expected)
