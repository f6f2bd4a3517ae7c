from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from helpers import device

__all__ = ["device"]


@pytest.fixture(autouse=True, scope="session")
def _poisoned_memory() -> Iterator[None]:
    """Memory from at::empty is NaN, so that an element that no kernel writes is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def cpu_kernels(device: str, emulated_cuda: bool) -> None:
    """For a test of what only the CPU kernels do, such as to look at each index."""
    if device != "cpu" or emulated_cuda:
        pytest.skip("of the CPU kernels")


@pytest.fixture
def cuda_kernels(device: str, emulated_cuda: bool) -> None:
    """For a test of what only the CUDA kernels do, emulated or not."""
    if device == "cpu" and not emulated_cuda:
        pytest.skip("of the CUDA kernels")
