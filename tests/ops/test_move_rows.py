from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import VIEWS, assert_identical, generator, gradients, normal, randomised
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from routing_ext import reference
from routing_ext.ops import gather_rows, scatter_rows

raw = torch.ops.routing_ext

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int16,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
]
TRAILING: list[tuple[int, ...]] = [(), (0,), (1,), (3,), (16,), (31,), (33,), (2, 5), (3, 0, 2), (1, 2, 3, 4), (1025,)]
# Rows moved, of how many.
ROWS = [(0, 0), (0, 3), (1, 1), (2, 5), (31, 32), (33, 33), (70, 100)]


def indices(n: int, num_rows: int, device: str) -> Tensor:
    return torch.randperm(num_rows, generator=generator(n))[:n].to(device)


def matrix(rows: int, trailing: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    return torch.randint(-99, 99, (rows, *trailing), generator=generator(rows)).to(device, dtype)


def check(x: Tensor, y: Tensor, order: Tensor) -> None:
    """Gathers from x, and scatters y to as many rows as x has."""
    assert_identical(gather_rows(x, order), reference.gather_rows(x, order))
    assert_identical(scatter_rows(y, order, len(x)), reference.scatter_rows(y, order, len(x)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("trailing", TRAILING)
def test_dtypes_and_shapes(trailing: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    for n, num_rows in ROWS:
        order = indices(n, num_rows, device)
        check(matrix(num_rows, trailing, dtype, device), matrix(n, trailing, dtype, device), order)


def test_several_tasks(device: str) -> None:
    order = indices(900, 1000, device)
    check(matrix(1000, (300,), torch.float32, device), matrix(900, (300,), torch.float32, device), order)


@randomised
@given(
    st.integers(0, 70).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
    st.lists(st.integers(0, 5), max_size=3),
    st.sampled_from(DTYPES),
)
def test_random(device: str, rows: tuple[int, int], trailing: list[int], dtype: torch.dtype) -> None:
    n, num_rows = rows
    order = indices(n, num_rows, device)
    check(matrix(num_rows, tuple(trailing), dtype, device), matrix(n, tuple(trailing), dtype, device), order)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("trailing", [(), (1,), (4,), (7, 3)])
def test_not_contiguous(trailing: tuple[int, ...], view: str, device: str) -> None:
    x, y, order = matrix(9, trailing, torch.float32, device), matrix(6, trailing, torch.float32, device), indices(6, 9, device)
    move = VIEWS[view]
    check(move(x), y, order)
    check(x, move(y), order)
    check(x, y, move(order))


@pytest.mark.parametrize(
    ("trailing", "memory_format"), [((3, 4, 5), torch.channels_last), ((3, 2, 4, 5), torch.channels_last_3d)], ids=str
)
def test_channels_last(trailing: tuple[int, ...], memory_format: torch.memory_format, device: str) -> None:
    x = normal(6, *trailing, seed=0, device=device, grad=False).to(memory_format=memory_format)
    y, order = x[:4], indices(4, 6, device)
    check(x, y, order)
    for result in (gather_rows(x, order), scatter_rows(y, order, 6)):
        assert result.is_contiguous(memory_format=memory_format)
    torch.library.opcheck(raw.gather_rows.default, (x, order))
    torch.library.opcheck(raw.scatter_rows.default, (y, order, 6))


def test_nan_stays(device: str) -> None:
    x, order = torch.full((3, 2), torch.nan, device=device), indices(2, 3, device)
    assert gather_rows(x, order).isnan().all()
    assert scatter_rows(x[:2], order, 3).isnan().sum() == 4


OPERATORS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "gather_rows": (gather_rows, reference.gather_rows),
    "scatter_rows": (
        lambda y, order: scatter_rows(y, order, len(y) + 3),
        lambda y, order: reference.scatter_rows(y, order, len(y) + 3),
    ),
}
each_operator = pytest.mark.parametrize("name", OPERATORS)


@each_operator
@pytest.mark.parametrize("trailing", [(), (0,), (3,), (2, 3)])
def test_gradients(name: str, trailing: tuple[int, ...], device: str) -> None:
    op, _ = OPERATORS[name]
    x, order = normal(5, *trailing, seed=1, device=device), indices(5, 5, device)
    assert gradcheck(op, (x, order))
    assert gradgradcheck(op, (x, order))


@each_operator
@pytest.mark.parametrize("expand", [False, True], ids=["full", "expanded"])
def test_gradient_is_the_reference(name: str, expand: bool, device: str) -> None:
    op, plain = OPERATORS[name]
    x, order = normal(8, 4, seed=2, device=device), indices(8, 8, device)
    y, expected = op(x, order), plain(x, order)
    grad = (
        y.new_ones(()).expand(y.shape) if expand else VIEWS["transposed"](normal(*y.shape, seed=3, device=device, grad=False))
    )
    (got,), (want,) = gradients(y, [x], grad), gradients(expected, [x], grad)
    assert got is not None
    assert want is not None
    assert_identical(got, want)


def test_gradient_of_some_rows(device: str) -> None:
    x, order = normal(7, 2, seed=4, device=device), indices(3, 7, device)
    (got,) = gradients(gather_rows(x, order), [x])
    assert got is not None
    assert_identical(got, torch.zeros_like(x).index_fill(0, order, 1))


@each_operator
def test_backward_twice(name: str, device: str) -> None:
    op, _ = OPERATORS[name]
    x = normal(4, 3, seed=5, device=device)
    y = op(x, indices(4, 4, device)).square().sum()
    first, second = (torch.autograd.grad(y, x, retain_graph=True)[0] for _ in range(2))
    assert_identical(first, second)


@each_operator
def test_without_gradient(name: str, device: str) -> None:
    op, _ = OPERATORS[name]
    order = indices(4, 4, device)
    assert not op(normal(4, 3, seed=0, device=device, grad=False), order).requires_grad
    with torch.no_grad():
        assert not op(normal(4, 3, seed=0, device=device), order).requires_grad


X, Y, ORDER = torch.zeros(4, 3), torch.zeros(2, 3), torch.tensor([3, 1])


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda to: gather_rows(to(X[0, 0]), to(ORDER)), "gather_rows: x must have at least 1 dimension"),
        (lambda to: gather_rows(to(X), to(ORDER[None])), "gather_rows: order must have 1 dimension"),
        (lambda to: gather_rows(to(X), to(ORDER.int())), "gather_rows: order must have dtype"),
        (lambda to: gather_rows(to(X), ORDER.to("meta")), "gather_rows: order must be on"),
        (lambda to: gather_rows(X.to("meta"), to(ORDER)), "gather_rows: order must be on"),
        (lambda to: scatter_rows(to(Y[0, 0]), to(ORDER), 4), "scatter_rows: y must have at least 1 dimension"),
        (lambda to: scatter_rows(to(Y), to(ORDER[None]), 4), "scatter_rows: order must have 1 dimension"),
        (lambda to: scatter_rows(to(Y), to(ORDER.int()), 4), "scatter_rows: order must have dtype"),
        (lambda to: scatter_rows(to(Y), to(ORDER[:1]), 4), "scatter_rows: order must have an index for each of the 2 rows"),
        (
            lambda to: scatter_rows(to(Y), to(ORDER), 1),
            "scatter_rows: num_rows must be at least the number of rows of y, 2, got 1",
        ),
        (lambda to: scatter_rows(to(Y), ORDER.to("meta"), 4), "scatter_rows: order must be on"),
        (lambda to: scatter_rows(Y.to("meta"), to(ORDER), 4), "scatter_rows: order must be on"),
    ],
)
def test_wrong_arguments(call: Callable[[Any], Tensor], argument: str, device: str) -> None:
    with pytest.raises(RuntimeError, match=argument):
        call(lambda t: t.to(device))


@pytest.mark.parametrize("index", [4, -1, 1 << 40])
@pytest.mark.usefixtures("cpu_kernels")
def test_index_out_of_range_raises(index: int) -> None:
    order = torch.tensor([1, index])
    with pytest.raises(RuntimeError, match=rf"gather_rows: order must be in \[0, 4\), got {index} at 1"):
        gather_rows(X, order)
    with pytest.raises(RuntimeError, match=rf"scatter_rows: order must be in \[0, 4\), got {index} at 1"):
        scatter_rows(Y, order, 4)


@pytest.mark.usefixtures("cpu_kernels")
def test_repeated_index_raises() -> None:
    with pytest.raises(RuntimeError, match="scatter_rows: order must not repeat an index, got 1 at 0 and at 2"):
        scatter_rows(torch.zeros(3, 2), torch.tensor([1, 0, 1]), 4)


@pytest.mark.parametrize("index", [4, -1, 1 << 40])
@pytest.mark.usefixtures("cuda_kernels")
def test_row_out_of_range_is_zero_or_left_out(index: int, device: str) -> None:
    x, order = torch.ones(4, 3, device=device), torch.tensor([1, index], device=device)
    assert_identical(gather_rows(x, order), x[:2] * torch.tensor([[1.0], [0.0]], device=device))
    assert_identical(scatter_rows(x[:2], order, 4), x * torch.tensor([[0.0], [1.0], [0.0], [0.0]], device=device))


@pytest.mark.parametrize("trailing", [(), (3,), (2, 0)])
def test_opcheck(trailing: tuple[int, ...], device: str) -> None:
    x, order = normal(5, *trailing, seed=0, device=device, grad=False), indices(3, 5, device)
    torch.library.opcheck(raw.gather_rows.default, (x, order))
    torch.library.opcheck(raw.scatter_rows.default, (x[:3], order, 5))


def test_raw_operators_refuse_a_gradient(device: str) -> None:
    x, order = normal(5, 2, seed=0, device=device), indices(5, 5, device)
    for name, args in (("gather_rows", (x, order)), ("scatter_rows", (x, order, 5))):
        y = getattr(raw, name)(*args)
        with pytest.raises(RuntimeError, match=f"routing_ext::{name}.*not implemented"):
            y.sum().backward()


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool, device: str) -> None:
    torch._dynamo.reset()

    def there_and_back(x: Tensor, order: Tensor) -> Tensor:
        return scatter_rows(gather_rows(x, order).sin(), order, x.size(0))

    compiled = torch.compile(there_and_back, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for rows in (5, 8):
        x, order = normal(rows, 3, seed=rows, device=device), indices(rows - 2, rows, device)
        y, expected = compiled(x, order), there_and_back(x, order)
        assert_identical(y, expected)
        (got,), (want,) = gradients(y, [x]), gradients(expected, [x])
        assert got is not None
        assert want is not None
        assert_identical(got, want)
