"""grouped_linear's CUDA kernels: both tile sizes, splits of the samples, both tables of modules and several parts of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

ops = torch.ops.routing_ext

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


class Case(NamedTuple):
    batch: int
    num_modules: int
    in_features: int
    out_features: int


CASES = [
    Case(0, 3, 5, 4),
    Case(1, 1, 1, 1),
    Case(31, 4, 33, 31),
    Case(33, 64, 17, 65),
    Case(200, 65, 8, 12),  # the larger table
    Case(700, 1030, 6, 5),  # two parts
    Case(40, 2049, 3, 2),  # three, most modules idle
    Case(20, 2, 0, 7),
    Case(40, 3, 6, 0),
    Case(600, 2, 40, 18),  # splits
    Case(4200, 3, 20, 132),  # the larger tile
]


class Problem:
    """Random samples and parameters, some modules without samples, some samples inactive."""

    def __init__(self, case: Case, dtype: torch.dtype, device: str):
        self.case, self.dtype = case, dtype
        generator = torch.Generator().manual_seed(sum(case))

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

        actions = torch.randint(max(case.num_modules - 1, 1), (case.batch,), generator=generator).to(device)
        mask = (torch.rand(case.batch, generator=generator) < 0.9).to(device)
        self.order, self.layout = ops.dispatch_plan(actions, case.num_modules, mask)
        self.x = random(case.batch, case.in_features)
        self.grad = random(case.batch, case.out_features)
        self.weights = random(case.num_modules, case.out_features, case.in_features)
        self.biases = random(case.num_modules, case.out_features)

    def expected(self, modules: list[int], bias: bool, relu: bool) -> tuple[Tensor, ...]:
        """In float64: y, and the gradients of x, the weights and the biases of `modules`."""
        x, weights, biases = (t.double().requires_grad_() for t in (self.x, self.weights, self.biases))
        y = x.new_zeros(self.grad.shape)
        offsets = self.layout.tolist()
        for k in modules:
            rows = self.order[offsets[k] : offsets[k + 1]]
            z = x[rows] @ weights[k].T + (biases[k] if bias else biases[k] - biases[k].detach())
            y = y.index_copy(0, rows, z.relu() if relu else z)
        y_low = y.to(self.dtype)
        if relu:  # what the backward pass of the operator sees: a tiny positive y may have become zero
            y = torch.where(y_low > 0, y, 0)
        grads = torch.autograd.grad(y, (x, weights, biases), self.grad.double(), allow_unused=True, materialize_grads=True)
        return y.detach(), grads[0], grads[1][modules], grads[2][modules]


def assert_close(got: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    tolerance = {torch.float64: 1e-11, torch.float32: 2e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    assert got.dtype == dtype
    atol = tolerance * float(want.abs().max()) if want.numel() else 0
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=atol)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("form", ["stacked, bias, relu", "separate, no bias", "separate, bias, some not listed"])
def test_forward_and_backward(case: Case, dtype: torch.dtype, form: str, device: str) -> None:
    problem = Problem(case, dtype, device)
    stacked, bias, relu = "stacked" in form, "no bias" not in form, "relu" in form
    modules = list(range(0, case.num_modules, 3 if "not listed" in form else 1))
    listed = [] if stacked else modules
    weights = [problem.weights] if stacked else [problem.weights[k].clone() for k in modules]
    biases = [] if not bias else [problem.biases] if stacked else [problem.biases[k].clone() for k in modules]

    y = ops.grouped_linear(problem.x, problem.order, problem.layout, weights, biases, listed, case.out_features, relu)
    want_y, *want = problem.expected(modules, bias, relu)
    assert_close(y, want_y, dtype)

    grad_x, grad_weights, grad_biases = ops.grouped_linear_backward(
        problem.grad,
        y if relu else None,
        problem.x,
        problem.order,
        problem.layout,
        weights,
        listed,
        case.in_features,
        (True, True, True),
    )
    assert_close(grad_x, want[0], dtype)
    assert_close(grad_weights[0] if stacked else torch.stack(grad_weights), want[1], dtype)
    assert_close(grad_biases[0] if stacked else torch.stack(grad_biases), want[2], dtype)


@pytest.fixture
def _tf32() -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, True
    yield
    matmul.allow_tf32 = before


@pytest.mark.usefixtures("_tf32")
@pytest.mark.parametrize("case", [Case(33, 4, 17, 65), Case(600, 2, 40, 18), Case(4200, 3, 20, 132)], ids=str)
def test_tf32_where_torch_allows_it(case: Case, device: str) -> None:
    """Rounded operands, sums in float32: as the definition with rounded matrices. float64 is not touched."""

    def rounded(t: Tensor) -> Tensor:
        bits = t.view(torch.int32)
        return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)

    problem = Problem(case, torch.float32, device)
    given = problem.x, problem.order, problem.layout, [problem.weights], [problem.biases], [], case.out_features, False
    y = ops.grouped_linear(*given)
    grads = ops.grouped_linear_backward(
        problem.grad, None, problem.x, problem.order, problem.layout, given[3], [], case.in_features, (True, True, True)
    )
    exact = problem.expected(list(range(case.num_modules)), True, False)
    problem.x, problem.grad, problem.weights = (rounded(t) for t in (problem.x, problem.grad, problem.weights))
    want = problem.expected(list(range(case.num_modules)), True, False)
    got = y, grads[0], grads[1][0], grads[2][0]
    for mine, theirs in zip(got[:3], want[:3], strict=True):
        assert_close(mine, theirs, torch.float32)
    assert_close(got[3], exact[3], torch.float32)  # the biases' is a sum, not a product
    if device == "cpu" or torch.cuda.get_device_capability() >= (8, 0):
        assert (y.double() - exact[0]).abs().max() > 1e-5, "it was rounded"


@pytest.mark.parametrize("case", [Case(33, 4, 17, 65), Case(600, 2, 70, 18)], ids=str)
def test_each_gradient_alone(case: Case, device: str) -> None:
    problem = Problem(case, torch.float64, device)
    want = problem.expected(list(range(case.num_modules)), True, False)[1:]
    for wanted in range(3):
        weights, x = [problem.weights] if wanted == 0 else [], problem.x if wanted == 1 else None
        mask = [k == wanted for k in range(3)]
        grad_x, grad_weights, grad_biases = ops.grouped_linear_backward(
            problem.grad, None, x, problem.order, problem.layout, weights, [], case.in_features, mask
        )
        got = [[grad_x] if grad_x.numel() else [], grad_weights, grad_biases]
        assert [len(g) for g in got] == mask
        assert_close(got[wanted][0], want[wanted], torch.float64)


def test_result_is_the_same_whatever_else_is_in_the_batch(device: str) -> None:
    """A sample's sum has the same order in both tile sizes and wherever its row is in a tile."""
    case = Case(4200, 3, 20, 132)
    problem = Problem(case, torch.float32, device)
    y = ops.grouped_linear(problem.x, problem.order, problem.layout, [problem.weights], [], [], case.out_features, False)
    rows = problem.order[5:40]  # of module 0
    layout = torch.tensor([0, 35, 35, 35, -1], device=device)
    few = ops.grouped_linear(
        problem.x[rows], torch.arange(35, device=device), layout, [problem.weights], [], [], case.out_features, False
    )
    assert torch.equal(few, y[rows])


@pytest.mark.slow
@pytest.mark.parametrize(("in_features", "out_features"), [(1, 65536 * 64), (65536 * 64, 1)])
def test_more_tiles_than_a_grid_has_rows_of_blocks(in_features: int, out_features: int, device: str) -> None:
    x = torch.full((1, in_features), 2.0, device=device)
    weight = torch.arange(in_features * out_features, device=device).remainder(2).float().view(1, out_features, in_features)
    order, layout = torch.zeros(1, dtype=torch.int64, device=device), torch.tensor([0, 1, -1], device=device)
    y = ops.grouped_linear(x, order, layout, [weight], [], [], out_features, False)
    torch.testing.assert_close(y, x @ weight[0].T)
    grad = torch.ones_like(y)
    grad_x, (grad_weight,), (grad_bias,) = ops.grouped_linear_backward(
        grad, None, x, order, layout, [weight], [], in_features, (True, True, True)
    )
    torch.testing.assert_close(grad_x, grad @ weight[0])
    assert bool((grad_weight == 2).all())
    assert bool((grad_bias == 1).all())


@pytest.mark.parametrize("batch", [100, 4200])
def test_a_plan_of_something_else_leads_nowhere_out_of_bounds(batch: int, device: str) -> None:
    """On a GPU the contents of order and layout are not checked; for AddressSanitizer to watch."""
    x, weights = torch.randn(batch, 9, device=device), torch.randn(3, 70, 9, device=device)
    layout = torch.tensor([-5, 1 << 40, 3, batch + 50, -1], device=device)
    order = torch.arange(batch, device=device)
    order[::3] = batch
    order[1::3] = -(1 << 50)
    y = ops.grouped_linear(x, order, layout, [weights], [], [], 70, True)
    assert y.shape == (batch, 70)
    grad_x, grad_weights, _ = ops.grouped_linear_backward(y, y, x, order, layout, [weights], [], 9, (True, True, True))
    assert grad_x.shape == x.shape
    assert grad_weights[0].shape == weights.shape


def test_nan_passes_relu_in_both_directions(device: str) -> None:
    x = torch.tensor([[float("nan")], [1.0], [-1.0]], device=device)
    order, layout = torch.arange(3, device=device), torch.tensor([0, 3, -1], device=device)
    weight = torch.ones(1, 1, 1, device=device)
    y = ops.grouped_linear(x, order, layout, [weight], [], [], 1, True)
    assert y.isnan().flatten().tolist() == [True, False, False]
    assert y[1:].flatten().tolist() == [1, 0]
    grad = ops.grouped_linear_backward(torch.ones_like(y), y, x, order, layout, [weight], [], 1, (True, False, False))[0]
    assert grad.flatten().tolist() == [1, 1, 0]
