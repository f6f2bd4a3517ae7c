from __future__ import annotations

import pytest
import torch
from helpers import FLOATS, VIEWS, assert_as_accurate, assert_same, gradients, normal
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from routing_ext import reference
from routing_ext.ops import combine_rows

raw = torch.ops.routing_ext

# Samples, choices, and the shape of a row.
SHAPES = [
    (0, 2, (3,)),
    (3, 0, (2,)),
    (4, 2, (0,)),
    (1, 1, ()),
    (5, 2, (31,)),
    (7, 3, (33,)),
    (2, 8, (2, 3, 2)),
    (33, 2, (600,)),
]


def arguments(batch: int, choices: int, row: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    y = normal(batch * choices, *row, seed=1, dtype=dtype, device=device)
    return y, normal(batch, choices, seed=2, dtype=dtype, device=device)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_the_definition(shape: tuple[int, int, tuple[int, ...]], dtype: torch.dtype, device: str) -> None:
    y, weights = arguments(*shape, dtype, device)
    combined = combine_rows(y, weights)
    exact = [t.detach().double().requires_grad_() for t in (y, weights)]
    expected = reference.combine_rows(*exact)
    plain = reference.combine_rows(y, weights)
    grad = normal(*combined.shape, seed=3, dtype=dtype, device=device, grad=False)
    mine, theirs = gradients(combined, [y, weights], grad), gradients(plain, [y, weights], grad)
    of_exact = gradients(expected, exact, grad.double())
    for own, other, right in zip([combined, *mine], [plain, *theirs], [expected, *of_exact], strict=True):
        assert own is not None
        assert other is not None
        assert right is not None
        if dtype is torch.float64:
            assert_same(own.detach(), right.detach())
        else:
            assert_as_accurate(own.detach(), other.detach(), right.detach())


@pytest.mark.parametrize("view", VIEWS)
def test_not_contiguous(view: str, device: str) -> None:
    y, weights = arguments(6, 3, (5, 4), torch.float64, device)
    expected = reference.combine_rows(y, weights)
    move = VIEWS[view]
    assert_same(combine_rows(move(y), weights).detach(), expected.detach())
    assert_same(combine_rows(y, move(weights)).detach(), expected.detach())
    grad = normal(6, 5, 4, seed=3, device=device, grad=False)
    mine = gradients(combine_rows(y, weights), [y, weights], move(grad))
    for own, other in zip(mine, gradients(expected, [y, weights], grad), strict=True):
        assert own is not None
        assert other is not None
        assert_same(own, other)


def test_expanded_gradient(device: str) -> None:
    y, weights = arguments(6, 3, (5,), torch.float64, device)
    combine_rows(y, weights).sum().backward()
    assert_same(y.grad, weights.detach().reshape(-1, 1).expand(18, 5))
    assert_same(weights.grad, y.detach().sum(1).view(6, 3))


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_one_gradient_only(wanted: tuple[bool, bool], device: str) -> None:
    y, weights = arguments(4, 2, (3,), torch.float64, device)
    y.requires_grad_(wanted[0])
    weights.requires_grad_(wanted[1])
    combine_rows(y, weights).sum().backward()
    assert (y.grad is not None, weights.grad is not None) == wanted


def test_weights_of_another_dtype(device: str) -> None:
    y = normal(8, 3, seed=1, dtype=torch.bfloat16, device=device)
    weights = normal(4, 2, seed=2, dtype=torch.float32, device=device)
    combined = combine_rows(y, weights)
    combined.sum().backward()
    assert combined.dtype is torch.bfloat16
    assert weights.grad is not None
    assert weights.grad.dtype is torch.float32


@pytest.mark.parametrize("row", [(), (5,), (2, 2)])
def test_gradients(row: tuple[int, ...], device: str) -> None:
    y, weights = arguments(3, 2, row, torch.float64, device)
    assert gradcheck(combine_rows, (y, weights))
    assert gradgradcheck(combine_rows, (y, weights))


@pytest.mark.parametrize("row", [(), (5,)])
def test_opcheck(row: tuple[int, ...], device: str) -> None:
    y, weights = (t.detach() for t in arguments(3, 2, row, torch.float32, device))
    torch.library.opcheck(raw.combine_rows.default, (y, weights))
    grad = combine_rows(y, weights)
    for mask in ((True, True), (False, True), (True, False)):
        torch.library.opcheck(raw.combine_rows_backward.default, (grad, y, weights, mask))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool, device: str) -> None:
    compiled = torch.compile(combine_rows, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for batch in (3, 5):
        y, weights = arguments(batch, 2, (4,), torch.float32, device)
        mine, theirs = compiled(y, weights), combine_rows(y, weights)
        assert_same(mine.detach(), theirs.detach(), 1e-6)
        for own, other in zip(gradients(mine, [y, weights]), gradients(theirs, [y, weights]), strict=True):
            assert own is not None
            assert other is not None
            assert_same(own, other, 1e-6)


def test_wrong_arguments(device: str) -> None:
    y, weights = torch.ones(6, 4, device=device), torch.ones(3, 2, device=device)
    with pytest.raises(RuntimeError, match=r"combine_rows: y must have a row for each of the weights \[3, 2\], got \[5, 4\]"):
        combine_rows(y[:5], weights)
    with pytest.raises(RuntimeError, match=r"combine_rows: weights must have 2 dimension"):
        combine_rows(y, weights.view(6))
    with pytest.raises(RuntimeError, match=r"combine_rows: y must be float32, float64, bfloat16 or float16, got Long"):
        combine_rows(y.long(), weights)
    with pytest.raises(RuntimeError, match=r"combine_rows: weights must have the dtype of y, Float, got Double"):
        raw.combine_rows(y, weights.double())
    with pytest.raises(RuntimeError, match=r"combine_rows: weights must be on"):
        combine_rows(y, weights.to("meta"))
    with pytest.raises(RuntimeError, match=r"combine_rows_backward: grad must be like the rows of y"):
        raw.combine_rows_backward(y, y, weights, (True, True))
