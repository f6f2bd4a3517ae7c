"""gather_rows's and scatter_rows's CUDA kernels: every width of a chunk, rows of one chunk to rows of several blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

ops = torch.ops.routing_ext

DTYPES = [torch.bool, torch.uint8, torch.int16, torch.bfloat16, torch.float32, torch.complex128]


def contents(dtype: torch.dtype, *shape: int) -> Tensor:
    """Anything but zero."""
    return torch.arange(1, 1 + torch.Size(shape).numel()).remainder(97).add(1).view(shape).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("row", [(), (0,), (1,), (3,), (2, 16), (5000,)], ids=str)
@pytest.mark.parametrize("rows", [0, 1, 33, 300])
def test_there_and_back(rows: int, row: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    x = contents(dtype, rows, *row).to(device)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(rows)).to(device)
    y = ops.gather_rows(x, order)
    assert torch.equal(y, x[order])
    assert torch.equal(ops.scatter_rows(y, order, rows), x)
    some = order[: rows // 2]
    want = torch.zeros_like(x)
    want[some] = x[some]
    assert torch.equal(ops.scatter_rows(x[some], some, rows), want)


@pytest.mark.parametrize("offset", range(1, 16))
def test_any_alignment(offset: int, device: str) -> None:
    x = contents(torch.uint8, 16 + 20 * 48).to(device)[offset : offset + 20 * 48].view(20, 48)
    order = torch.arange(19, -1, -1, device=device)
    assert torch.equal(ops.gather_rows(x, order), x[order])
    assert torch.equal(ops.scatter_rows(x, order, 20), x[order])


def test_strided_arguments(device: str) -> None:
    x = contents(torch.float32, 7, 20).to(device).T
    order = torch.arange(40, device=device)[::2] // 2
    assert torch.equal(ops.gather_rows(x, order), x)
    assert torch.equal(ops.scatter_rows(x, order, 21)[:20], x)


def test_an_index_out_of_range_moves_nothing(device: str) -> None:
    x = contents(torch.float32, 4, 3).to(device)
    order = torch.tensor([2, -1, 4, 1 << 40, 0], device=device)
    y = ops.gather_rows(x, order)
    assert torch.equal(y[[0, 4]], x[[2, 0]])
    assert not y[1:4].any()
    back = ops.scatter_rows(contents(torch.float32, 5, 3).to(device), order, 6)
    assert back[[0, 2]].all()
    assert back[[1, 3]].eq(0).all()
