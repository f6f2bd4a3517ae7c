"""kernels/ runs on the CUDA kernels, emulated (--emulated-cuda) or on a GPU; the other tests start programs of their own."""

from __future__ import annotations

import pathlib
import platform

import pytest
import torch

KERNELS = pathlib.Path(__file__).parent / "kernels"


def pytest_ignore_collect(collection_path: pathlib.Path, config: pytest.Config) -> bool | None:
    emulated = config.getoption("--emulated-cuda") is not None
    if collection_path == KERNELS:
        return None if emulated or torch.cuda.is_available() else True
    if collection_path.parent == KERNELS.parent and collection_path.name.startswith("test_"):
        return True if emulated or platform.machine() != "x86_64" else None
    return None


def pytest_itemcollected(item: pytest.Item) -> None:
    if item.path.parent == KERNELS and item.config.getoption("--emulated-cuda") is None:
        item.add_marker(pytest.mark.cuda)


@pytest.fixture
def device(emulated_cuda: bool) -> str:
    """Where the CUDA kernels take their tensors from."""
    return "cpu" if emulated_cuda else "cuda"
