from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from helpers import FLOATS, VIEWS, assert_as_accurate, assert_identical, assert_same, choices, gradients, normal, randomised
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from routing_ext import reference
from routing_ext.ops import DispatchPlan, dispatch_plan, grouped_linear

raw = torch.ops.routing_ext

each_activation = pytest.mark.parametrize("activation", ["none", "relu"])
each_layout = pytest.mark.parametrize("stacked", [False, True], ids=["separate", "stacked"])
with_and_without_bias = pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])


class Case(NamedTuple):
    counts: Sequence[int]  # samples of each module
    inactive: int
    d: int
    o: int

    def __str__(self) -> str:
        counts = "+".join(map(str, self.counts)) if len(self.counts) < 10 else f"{len(self.counts)} modules"
        return f"{counts}({self.inactive})-{self.d}-{self.o}"


CASES = [
    Case((0,), 0, 3, 2),
    Case((0, 0), 0, 3, 2),
    Case((0, 0, 0), 5, 17, 3),
    Case((1,), 0, 1, 1),
    Case((7,), 2, 16, 130),
    Case((3, 0, 9), 2, 0, 5),
    Case((3, 0, 9), 2, 5, 0),
    Case((1, 2, 3, 4, 5, 6, 7), 3, 33, 31),
    Case((8, 0, 11, 12, 13), 0, 15, 65),
    Case((47, 48, 49, 50), 1, 64, 17),
    Case((255, 0, 256, 257), 1, 17, 16),
    Case((301, 5), 0, 31, 63),
    Case((1, 0) * 60, 1, 5, 3),
    Case((0, 7, 60), 1, 300, 130),
    Case((3, 7), 0, 270, 420),  # few rows for each thread, and more columns than are packed at once
]
SMALL = Case((3, 0, 1, 2), 1, 3, 2)
WIDTHS = [0, 1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 130]


def plan_of(counts: Sequence[int], inactive: int, device: str) -> DispatchPlan:
    actions, mask = choices(counts, inactive, device)
    return dispatch_plan(actions, len(counts), mask)


class Layer(NamedTuple):
    """The arguments of grouped_linear, of both layouts."""

    x: Tensor
    weights: list[Tensor] | Tensor
    biases: list[Tensor] | Tensor | None
    plan: DispatchPlan
    activation: str

    @staticmethod
    def of(
        case: Case,
        stacked: bool,
        bias: bool,
        activation: str,
        device: str,
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
    ) -> Layer:
        counts, inactive, d, o = case
        modules, batch = len(counts), sum(counts) + inactive
        plan = plan_of(counts, inactive, device)
        x = normal(batch, d, seed=seed, dtype=dtype, device=device)
        w = normal(modules, o, d, seed=seed + 1, device=device, grad=False) / max(d, 1) ** 0.5
        b = normal(modules, o, seed=seed + 2, device=device, grad=False)
        w, b = w.to(dtype), b.to(dtype)
        weights = w.requires_grad_() if stacked else [t.clone().requires_grad_() for t in w]
        biases = b.requires_grad_() if stacked else [t.clone().requires_grad_() for t in b]
        return Layer(x, weights, biases if bias else None, plan, activation)

    @property
    def stacked(self) -> bool:
        return isinstance(self.weights, Tensor)

    @property
    def parameters(self) -> list[Tensor]:
        return [t for group in (self.weights, self.biases) if group is not None for t in ([group] if self.stacked else group)]

    @property
    def inputs(self) -> list[Tensor]:
        return [self.x, *self.parameters]

    def with_inputs(self, x: Tensor, *parameters: Tensor) -> Layer:
        if self.stacked:
            return self._replace(x=x, weights=parameters[0], biases=None if self.biases is None else parameters[1])
        k = self.plan.num_modules
        return self._replace(x=x, weights=list(parameters[:k]), biases=None if self.biases is None else list(parameters[k:]))

    def map(self, f: Callable[[Tensor], Tensor]) -> Layer:
        return self.with_inputs(*[f(t).detach().requires_grad_(t.requires_grad) for t in self.inputs])

    def grad(self, dtype: torch.dtype | None = None) -> Tensor:
        out_features = self.weights[0].size(0)
        return normal(len(self.x), out_features, seed=9, dtype=dtype or self.x.dtype, device=self.x.device.type, grad=False)

    def __call__(self, op: Callable[..., Tensor] = grouped_linear) -> Tensor:
        return op(self.x, self.weights, self.biases, self.plan, self.activation)

    def results(self, op: Callable[..., Tensor], grad: Tensor | None = None) -> list[Tensor | None]:
        y = self(op)
        return [y, *gradients(y, self.inputs, self.grad() if grad is None else grad)]


def expected_results(layer: Layer, grad: Tensor | None = None, zeros_for_idle: bool = False) -> list[Tensor | None]:
    """Of the reference. What y does not depend on has the gradient None if it is a parameter of its own, else zero."""
    y, *grads = layer.results(reference.grouped_linear, grad)
    for i, t in enumerate(layer.inputs):
        if grads[i] is None and t.requires_grad and (i == 0 or layer.stacked or zeros_for_idle):
            grads[i] = torch.zeros_like(t)
    return [y, *grads]


def pairs(got: Sequence[Tensor | None], want: Sequence[Tensor | None]) -> Iterator[tuple[int, Tensor, Tensor]]:
    assert [t is None for t in got] == [t is None for t in want]
    for i, (g, w) in enumerate(zip(got, want, strict=True)):
        if g is not None and w is not None:
            yield i, g, w


def check(layer: Layer, grad: Tensor | None = None, tolerance: float = 1e-12) -> None:
    for _, got, want in pairs(layer.results(grouped_linear, grad), expected_results(layer, grad)):
        assert_same(got, want, tolerance)


def check_accuracy(layer: Layer) -> None:
    grad = layer.grad()
    plain = expected_results(layer, grad)
    exact = expected_results(layer.map(Tensor.double), grad.double())
    for i, got, want in pairs(layer.results(grouped_linear), plain):
        reference64 = exact[i]
        assert reference64 is not None
        assert_as_accurate(got, want, reference64)


# ---- values and gradients ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@each_layout
@pytest.mark.parametrize(("bias", "activation"), [(False, "none"), (True, "none"), (True, "relu")])
def test_is_the_loop_over_modules(
    case: Case, dtype: torch.dtype, stacked: bool, bias: bool, activation: str, device: str
) -> None:
    layer = Layer.of(case, stacked, bias, activation, device, dtype)
    check(layer) if dtype is torch.float64 else check_accuracy(layer)


@pytest.mark.parametrize("d", WIDTHS)
def test_widths(d: int, device: str) -> None:
    counts = (1, 2, 5, 0, 6, 7)
    for i, o in enumerate(WIDTHS):
        check(Layer.of(Case(counts[i % 3 :], i % 2, d, o), bool(i & 1), bool(i & 2), ("none", "relu")[i % 3 == 0], device))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_rows_of_one_module(dtype: torch.dtype, device: str) -> None:
    for n in [*range(1, 20), 31, 32, 33, *range(46, 51), *range(94, 99), *range(254, 259), 511, 513]:
        layer = Layer.of(Case((n, 2), n % 3, 9, 34), False, True, "relu", device, dtype)
        check(layer) if dtype is torch.float64 else check_accuracy(layer)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.usefixtures("cpu_kernels")
def test_depth_beyond_the_cache(dtype: torch.dtype) -> None:
    layer = Layer.of(Case((7, 4), 0, 50_001, 35), False, True, "none", "cpu", dtype)
    check(layer, tolerance=1e-11) if dtype is torch.float64 else check_accuracy(layer)


def test_thousand_modules(device: str) -> None:
    counts = [0] * 1000
    counts[3], counts[500], counts[999] = 2, 1, 4
    for stacked in (False, True):
        check(Layer.of(Case(counts, 1, 4, 3), stacked, True, "relu", device))


@randomised
@given(
    counts=st.lists(st.integers(0, 20), min_size=1, max_size=6),
    inactive=st.integers(0, 5),
    d=st.integers(0, 70),
    o=st.integers(0, 70),
    stacked=st.booleans(),
    bias=st.booleans(),
    activation=st.sampled_from(["none", "relu"]),
    dtype=st.sampled_from(FLOATS),
    seed=st.integers(0, 1000),
)
def test_random(
    device: str,
    counts: list[int],
    inactive: int,
    d: int,
    o: int,
    stacked: bool,
    bias: bool,
    activation: str,
    dtype: torch.dtype,
    seed: int,
) -> None:
    layer = Layer.of(Case(counts, inactive, d, o), stacked, bias, activation, device, dtype, seed)
    check(layer) if dtype is torch.float64 else check_accuracy(layer)


@each_layout
@each_activation
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_nan_stays_in_its_row(activation: str, stacked: bool, dtype: torch.dtype, device: str) -> None:
    layer = Layer.of(Case((2, 9), 2, 17, 33), stacked, True, activation, device, dtype)
    row = int(layer.plan.order[4])
    with torch.no_grad():
        layer.x[row, 16] = torch.nan
    y = layer()
    assert y[row].isnan().all()
    assert not y[torch.arange(len(y), device=device) != row].isnan().any()
    if dtype is torch.float64:
        check(layer)


@each_layout
@each_activation
def test_nan_of_inactive_samples_goes_nowhere(activation: str, stacked: bool, device: str) -> None:
    layer = Layer.of(Case((2, 9), 3, 17, 33), stacked, True, activation, device)
    inactive, grad = layer.plan.order[11:], layer.grad()
    with torch.no_grad():
        layer.x[inactive] = torch.nan
    grad[inactive] = torch.nan
    check(layer, grad)
    for result in layer.results(grouped_linear, grad):
        assert result is not None
        assert not result.isnan().any()


@each_layout
def test_infinite_input(stacked: bool, device: str) -> None:
    layer = Layer.of(Case((2, 9), 2, 17, 33), stacked, True, "relu", device)
    with torch.no_grad():
        layer.x[layer.plan.order[4], 3] = torch.inf
    check(layer)


# ---- views ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("argument", ["x", "weights", "biases", "grad", "order", "layout"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@each_layout
def test_not_contiguous(stacked: bool, dtype: torch.dtype, argument: str, view: str, device: str) -> None:
    layer = Layer.of(Case((3, 0, 8, 1), 2, 19, 35), stacked, True, "relu", device, dtype)
    move, grad = VIEWS[view], layer.grad()
    results = layer.results(grouped_linear, grad)

    def moved(t: Tensor) -> Tensor:
        return move(t.detach()).requires_grad_(t.requires_grad)

    if argument == "grad":
        grad = moved(grad)
    elif argument in ("order", "layout"):
        plan = layer.plan
        order, sizes = (moved(t) if argument == name else t for name, t in (("order", plan.order), ("layout", plan.layout)))
        layer = layer._replace(plan=DispatchPlan(order, sizes, plan.num_modules))
    else:
        given = getattr(layer, argument)
        layer = layer._replace(**{argument: moved(given) if isinstance(given, Tensor) else [moved(t) for t in given]})
    for _, got, want in pairs(layer.results(grouped_linear, grad), results):
        assert_identical(got, want)


@each_layout
@each_activation
def test_expanded(activation: str, stacked: bool, device: str) -> None:
    """One weight for all modules and one row for all samples, and the gradient that sum() sends back."""
    like = Layer.of(Case((3, 0, 8), 1, 5, 4), stacked, True, activation, device)
    row, w, b = (normal(*shape, seed=i, device=device) for i, shape in enumerate([(1, 5), (4, 5), (4,)]))
    x = row.expand(12, 5)
    weights, biases = (w.expand(3, 4, 5), b.expand(3, 4)) if stacked else ([w] * 3, [b] * 3)
    layer = like._replace(x=x, weights=weights, biases=biases)
    results = [[y, *gradients(y.sum(), [row, w, b])] for y in (layer(), layer(reference.grouped_linear))]
    for _, got, want in pairs(*results):
        assert_same(got, want)


# ---- who gets a gradient ----------------------------------------------------------------------------------------------------


def accumulated(y: Tensor, layer: Layer) -> list[Tensor | None]:
    y.backward(layer.grad())
    grads = [t.grad for t in layer.inputs]
    for t in layer.inputs:
        t.grad = None
    return grads


INPUTS = ("x", "weights", "biases")


@each_layout
@each_activation
@pytest.mark.parametrize("wanted", [c for n in (1, 2, 3) for c in itertools.combinations(INPUTS, n)], ids="+".join)
def test_only_some_inputs_want_a_gradient(wanted: Sequence[str], activation: str, stacked: bool, device: str) -> None:
    layer = Layer.of(Case((3, 0, 8), 1, 5, 4), stacked, True, activation, device)
    for name in INPUTS:
        given = getattr(layer, name)
        for t in [given] if isinstance(given, Tensor) else given:
            t.requires_grad_(name in wanted)
    for _, got, want in pairs(accumulated(layer(), layer), accumulated(layer(reference.grouped_linear), layer)):
        assert_same(got, want)


@each_activation
@pytest.mark.parametrize("frozen", [(0,), (2,), (4,), (0, 3), (2, 3, 4)], ids=str)
def test_some_modules_are_frozen(frozen: Sequence[int], activation: str, device: str) -> None:
    """`frozen`: positions among three weights and three biases."""
    layer = Layer.of(Case((3, 0, 8), 1, 5, 4), False, True, activation, device)
    for i in frozen:
        layer.parameters[i].requires_grad_(False)
    for _, got, want in pairs(accumulated(layer(), layer), accumulated(layer(reference.grouped_linear), layer)):
        assert_same(got, want)


@each_layout
def test_nothing_wants_a_gradient(stacked: bool, device: str) -> None:
    layer = Layer.of(SMALL, stacked, True, "relu", device)
    with torch.no_grad():
        assert not layer().requires_grad
    layer = layer.map(torch.clone)
    for t in layer.inputs:
        t.requires_grad_(False)
    assert not layer().requires_grad
    assert_same(layer(), layer(reference.grouped_linear))


@pytest.mark.parametrize("counts", [(0, 4, 0, 1), (0, 0, 0)], ids=str)
def test_idle_modules(counts: Sequence[int], device: str) -> None:
    """Their gradients are None if they have tensors of their own, zeros if these are stacked; in the second order, too."""
    idle = [n == 0 for n in counts]
    for stacked in (False, True):
        layer = Layer.of(Case(counts, 3, 5, 4), stacked, True, "none", device)
        weights = layer.parameters[: 1 if stacked else len(counts)]
        (x_grad,) = torch.autograd.grad(layer().square().sum(), layer.x, create_graph=True)
        for grads in (gradients(layer(), layer.parameters), gradients(x_grad.square().sum(), weights)):
            if stacked:
                assert all(g is None or (~g.flatten(1).any(1)).tolist() == idle for g in grads)
            else:
                assert [g is None for g in grads] == idle * (len(grads) // len(idle))


# ---- autograd ---------------------------------------------------------------------------------------------------------------


def away_from_zero(case: Case, stacked: bool, bias: bool, activation: str, device: str) -> Layer:
    """A layer whose sums are not near the kink of the ReLU."""
    for seed in itertools.count():
        layer = Layer.of(case, stacked, bias, activation, device, seed=seed)
        active = layer.plan.order[: layer.plan.host_offsets()[-1]]
        if bool((layer._replace(activation="none")()[active].abs() > 0.02).all()):
            return layer
    raise AssertionError


def as_function(layer: Layer) -> Callable[..., Tensor]:
    return lambda *inputs: layer.with_inputs(*inputs)()


@each_layout
@with_and_without_bias
@each_activation
def test_gradcheck(activation: str, bias: bool, stacked: bool, device: str) -> None:
    layer = away_from_zero(SMALL, stacked, bias, activation, device)
    assert gradcheck(as_function(layer), layer.inputs)
    assert gradgradcheck(as_function(layer), layer.inputs)


@each_layout
@each_activation
@pytest.mark.parametrize("wanted", [("x",), ("weights",), ("biases",), ("x", "biases"), ("weights", "biases")], ids="+".join)
def test_gradcheck_of_some_inputs(wanted: Sequence[str], activation: str, stacked: bool, device: str) -> None:
    layer = away_from_zero(Case((3, 0, 2), 1, 3, 2), stacked, True, activation, device)
    for name in INPUTS:
        given = getattr(layer, name)
        for t in [given] if isinstance(given, Tensor) else given:
            t.requires_grad_(name in wanted)
    assert gradcheck(as_function(layer), layer.inputs)
    assert gradgradcheck(as_function(layer), layer.inputs)


@each_layout
@each_activation
def test_third_order(activation: str, stacked: bool, device: str) -> None:
    layer = away_from_zero(Case((2, 0, 1), 1, 2, 2), stacked, True, activation, device)

    def first_order(*inputs: Tensor) -> tuple[Tensor, ...]:
        y = layer.with_inputs(*inputs)().pow(3).sum()
        return tuple(g for g in torch.autograd.grad(y, inputs, create_graph=True, allow_unused=True) if g is not None)

    assert gradcheck(first_order, layer.inputs)
    assert gradgradcheck(first_order, layer.inputs)


@each_layout
@each_activation
def test_second_order_is_the_reference(activation: str, stacked: bool, device: str) -> None:
    """Of a gradient penalty, at sizes that fill blocks."""
    layer = Layer.of(Case((7, 0, 60, 2), 2, 33, 70), stacked, True, activation, device)

    def penalty(op: Callable[..., Tensor]) -> list[Tensor | None]:
        grads = torch.autograd.grad(layer(op).pow(3).sum(), layer.inputs, create_graph=True, allow_unused=True)
        return gradients(sum(g.square().sum() for g in grads if g is not None), layer.inputs)  # type: ignore[arg-type]

    for _, got, want in pairs(penalty(grouped_linear), penalty(reference.grouped_linear)):
        assert_same(got, want, 1e-10)


@each_layout
def test_two_forwards_before_one_backward(stacked: bool, device: str) -> None:
    layer = Layer.of(Case((3, 0, 8), 1, 5, 5), stacked, True, "relu", device)
    other = plan_of((0, 10, 1), 1, device)

    def both(op: Callable[..., Tensor]) -> list[Tensor | None]:
        first = layer(op)
        second = layer._replace(x=first, plan=other)(op)
        return [second, *gradients(first.sin() + second, layer.inputs)]

    for _, got, want in pairs(both(grouped_linear), both(reference.grouped_linear)):
        assert_same(got, want)


@each_layout
@each_activation
def test_backward_twice(activation: str, stacked: bool, device: str) -> None:
    layer = Layer.of(Case((3, 0, 8), 1, 5, 4), stacked, True, activation, device)
    y = layer()
    first, second = (
        torch.autograd.grad(y, layer.inputs, layer.grad(), retain_graph=True, allow_unused=True) for _ in range(2)
    )
    for _, got, want in pairs(first, second):
        assert_identical(got, want)
    y.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()


@each_layout
@pytest.mark.parametrize(
    ("changed", "wanted", "activation", "raises"),
    [
        ("weights", ("x", "weights"), "none", True),
        ("weights", ("weights",), "none", False),
        ("biases", INPUTS, "relu", False),
        ("x", ("x", "weights"), "none", True),
        ("x", ("x", "biases"), "none", False),
        ("y", INPUTS, "relu", True),
        ("y", INPUTS, "none", False),
    ],
)
def test_change_in_place_before_backward(
    changed: str, wanted: Sequence[str], activation: str, raises: bool, stacked: bool, device: str
) -> None:
    """Raises exactly if the backward pass would have read what was there."""
    layer = Layer.of(Case((3, 2), 0, 5, 4), stacked, True, activation, device)
    for name in INPUTS:
        given = getattr(layer, name)
        for t in [given] if isinstance(given, Tensor) else given:
            t.requires_grad_(name in wanted)
    y = layer()
    target = y if changed == "y" else getattr(layer, changed)
    with torch.no_grad():
        (target if isinstance(target, Tensor) else target[0]).add_(1)
    if raises:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
    else:
        y.sum().backward()


@each_layout
def test_result_may_be_changed_in_place(stacked: bool, device: str) -> None:
    layer = Layer.of(Case((3, 0, 8), 1, 5, 4), stacked, True, "none", device)
    expected = torch.relu(layer(reference.grouped_linear))
    for _, got, want in pairs(gradients(torch.relu_(layer()), layer.inputs), gradients(expected, layer.inputs)):
        assert_same(got, want)


def test_one_tensor_for_several_modules(device: str) -> None:
    layer = Layer.of(Case((3, 0, 8, 2), 1, 5, 4), False, True, "relu", device)
    assert isinstance(layer.weights, list)
    assert isinstance(layer.biases, list)
    layer = layer._replace(weights=[layer.weights[i] for i in (0, 1, 0, 1)], biases=[layer.biases[0]] * 4)
    check(layer)


# ---- determinism ------------------------------------------------------------------------------------------------------------


@each_layout
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", [Case((40, 0, 200, 3), 2, 70, 90), Case((2, 3), 0, 500, 700)], ids=str)
def test_repeats_bit_by_bit(case: Case, dtype: torch.dtype, stacked: bool, device: str) -> None:
    layer = Layer.of(case, stacked, True, "relu", device, dtype)
    first, *others = (layer.results(grouped_linear) for _ in range(4))
    for other in others:
        for _, got, want in pairs(other, first):
            assert_identical(got, want)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "case", [Case((40, 0, 200, 3), 2, 70, 90), Case((2, 3), 0, 500, 700), Case((1,), 0, 700, 800)], ids=str
)
@pytest.mark.usefixtures("cpu_kernels")
def test_number_of_threads(case: Case, threads: Callable[[int], None]) -> None:
    layer = Layer.of(case, False, True, "relu", "cpu")
    results = []
    for n in (1, 2, 3, 7):
        threads(n)
        results.append(layer.results(grouped_linear))
    for other in results[1:]:
        for _, got, want in pairs(other, results[0]):
            assert_same(got, want)


# ---- autocast ---------------------------------------------------------------------------------------------------------------


@each_layout
@each_activation
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16], ids=str)
def test_autocast(given: torch.dtype, dtype: torch.dtype, activation: str, stacked: bool, device: str) -> None:
    layer = Layer.of(Case((3, 0, 8), 1, 33, 20), stacked, True, activation, device, torch.float32)
    layer = layer._replace(x=layer.x.detach().to(given).requires_grad_())
    exact = expected_results(layer.map(Tensor.double), layer.grad(torch.float64))

    def cast(x: Tensor, weights: Any, biases: Any, plan: DispatchPlan, activation: str) -> Tensor:
        """What autocast makes of a loop over nn.Linear."""
        weights, biases = ([t.to(dtype) for t in group] for group in (weights, biases))
        return reference.grouped_linear(x.to(dtype), weights, biases, plan, activation)

    grad = layer.grad(dtype)
    plain = layer.results(cast, grad)
    with torch.autocast(device, dtype):
        y = layer()
    assert y.dtype is dtype
    for i, got, want in pairs([y, *gradients(y, layer.inputs, grad)], plain):
        reference64 = exact[i]
        assert reference64 is not None
        assert_as_accurate(got, want, reference64)


@each_layout
def test_autocast_leaves_float64_alone(stacked: bool, device: str) -> None:
    layer = Layer.of(Case((3, 0, 8), 1, 33, 20), stacked, True, "relu", device)
    with torch.autocast(device, torch.bfloat16):
        assert F.linear(layer.x, layer.weights[0]).dtype is torch.float64
        check(layer)


# ---- torch.library and torch.compile ----------------------------------------------------------------------------------------


@each_layout
@with_and_without_bias
@each_activation
def test_opcheck(activation: str, bias: bool, stacked: bool, device: str) -> None:
    layer = Layer.of(SMALL, stacked, bias, activation, device).map(Tensor.detach)
    for t in layer.inputs:
        t.requires_grad_(False)
    plan, relu = layer.plan, activation == "relu"
    weights, biases = ([] if g is None else [g] if stacked else list(g) for g in (layer.weights, layer.biases))
    modules = [] if stacked else list(range(4))
    torch.library.opcheck(
        raw.grouped_linear.default, (layer.x, plan.order, plan.layout, weights, biases, modules, SMALL.o, relu)
    )
    y = layer() if relu else None
    for wanted in ([True, True, True], [True, False, False], [False, True, bias], [False, False, True]):
        args = (layer.grad(), y, layer.x, plan.order, plan.layout, weights, modules, SMALL.d, wanted)
        torch.library.opcheck(raw.grouped_linear_backward.default, args)


def check_compiled(backend: str, dynamic: bool, activation: str, stacked: bool, device: str) -> None:
    """One graph for the plan and the layer, and its backward. Which modules are idle is not known: zeros for them."""
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend=backend, dynamic=dynamic)
    def compiled(actions: Tensor, mask: Tensor | None, x: Tensor, weights: Any, biases: Any) -> Tensor:
        plan = dispatch_plan(actions, 3, mask)
        return grouped_linear(x, weights, biases, plan, activation).sin()

    for counts in ((3, 0, 8), (2, 5, 1)):
        layer = Layer.of(Case(counts, 2, 5, 4), stacked, True, activation, device)
        y = compiled(*choices(counts, 2, device), layer.x, layer.weights, layer.biases)
        expected = layer(reference.grouped_linear).sin()
        assert_same(y, expected)
        grads = gradients(expected, layer.inputs, layer.grad())
        for i, got in enumerate(gradients(y, layer.inputs, layer.grad())):
            want = grads[i]
            assert got is not None
            assert_same(got, torch.zeros_like(got) if want is None else want)


@each_layout
@each_activation
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool, activation: str, stacked: bool, device: str) -> None:
    check_compiled("aot_eager", dynamic, activation, stacked, device)


@pytest.mark.slow
def test_compile_with_inductor(device: str) -> None:
    check_compiled("inductor", True, "relu", False, device)


def test_compile_takes_a_plan(device: str) -> None:
    torch._dynamo.reset()
    layer = Layer.of(Case((3, 0, 8), 2, 5, 4), False, True, "relu", device)
    compiled = torch.compile(grouped_linear, fullgraph=True, backend="aot_eager")
    assert_same(layer(compiled), layer(reference.grouped_linear))


# ---- wrong use --------------------------------------------------------------------------------------------------------------

META = torch.device("meta")


def first_replaced(tensors: Any, f: Callable[[Tensor], Tensor]) -> list[Tensor]:
    return [f(tensors[0]), *tensors[1:]]


@pytest.mark.parametrize(
    ("stacked", "change", "error", "message"),
    [
        (False, lambda a: {"activation": "gelu"}, ValueError, "activation must be 'none' or 'relu', got 'gelu'"),
        (
            True,
            lambda a: {"weights": a.weights[0]},
            ValueError,
            r"weights must have shape \[3, o, d\] if stacked, got \[4, 5\]",
        ),
        (True, lambda a: {"weights": a.weights[:2]}, ValueError, "weights must have shape"),
        (True, lambda a: {"biases": list(a.biases)}, ValueError, "biases must be stacked like weights"),
        (True, lambda a: {"biases": a.biases[:2]}, RuntimeError, "biases must have shape"),
        (True, lambda a: {"biases": a.biases.T}, RuntimeError, "biases must have shape"),
        (True, lambda a: {"weights": a.weights.mT}, RuntimeError, "x must have 4 columns"),
        (False, lambda a: {"biases": torch.stack(a.biases)}, ValueError, "biases must be a sequence like weights"),
        (False, lambda a: {"weights": a.weights[:2]}, ValueError, "weights must have one tensor for each of 3 modules, got 2"),
        (False, lambda a: {"biases": a.biases[:2]}, ValueError, "biases must have one tensor for each of 3 modules, got 2"),
        (False, lambda a: {"weights": []}, ValueError, "weights must have one tensor for each of 3 modules, got 0"),
        (False, lambda a: {"x": a.x[0]}, RuntimeError, "x must have 2 dimension"),
        (False, lambda a: {"x": a.x[None]}, RuntimeError, "x must have 2 dimension"),
        (False, lambda a: {"x": a.x.long()}, RuntimeError, "x must be float32"),
        (False, lambda a: {"x": a.x.float()}, RuntimeError, "weights must have the dtype of the input, Float, got Double"),
        (False, lambda a: {"x": a.x.to(META)}, RuntimeError, "(order|weights) must be on"),
        (False, lambda a: {"x": a.x[:, 1:]}, RuntimeError, r"x must have 5 columns, as the weights have, got \[5, 4\]"),
        (False, lambda a: {"x": a.x[1:]}, RuntimeError, "order must have one index for each of 4 samples"),
        (False, lambda a: {"weights": first_replaced(a.weights, lambda w: w[1:])}, RuntimeError, "weights must have shape"),
        (False, lambda a: {"weights": first_replaced(a.weights, Tensor.float)}, RuntimeError, "weights must have the dtype"),
        (False, lambda a: {"weights": first_replaced(a.weights, lambda w: w.to(META))}, RuntimeError, "weights must be on"),
        (False, lambda a: {"biases": first_replaced(a.biases, lambda b: b[1:])}, RuntimeError, "biases must have shape"),
        (False, lambda a: {"biases": first_replaced(a.biases, Tensor.float)}, RuntimeError, "biases must have the dtype"),
        (False, lambda a: {"biases": first_replaced(a.biases, lambda b: b.to(META))}, RuntimeError, "biases must be on"),
        (True, lambda a: {"weights": a.weights.to(META)}, RuntimeError, "weights must be on"),
        (
            False,
            lambda a: {"plan": DispatchPlan(a.plan.order.to(META), a.plan.layout.to(META), 3)},
            RuntimeError,
            "order must be on",
        ),
        (
            False,
            lambda a: {"plan": DispatchPlan(a.plan.order[1:], a.plan.layout, 3)},
            RuntimeError,
            "order must have one index",
        ),
        (False, lambda a: {"plan": DispatchPlan(a.plan.order.int(), a.plan.layout, 3)}, RuntimeError, "order must have dtype"),
        (
            False,
            lambda a: {"plan": dispatch_plan(a.plan.order[:0], 0), "weights": [], "biases": []},
            ValueError,
            "weights must have at least one module",
        ),
    ],
)
@pytest.mark.parametrize("wants_gradient", [False, True])
def test_wrong_arguments(
    wants_gradient: bool,
    stacked: bool,
    change: Callable[[Layer], dict[str, Any]],
    error: type[Exception],
    message: str,
    device: str,
) -> None:
    layer = Layer.of(Case((3, 0, 2), 0, 5, 4), stacked, True, "none", device)
    with torch.set_grad_enabled(wants_gradient), pytest.raises(error, match=f"grouped_linear: {message}"):
        layer._replace(**change(layer))()


X, GRAD = torch.zeros(4, 3, dtype=torch.float64), torch.zeros(4, 2, dtype=torch.float64)
ORDER, LAYOUT = torch.arange(4), torch.tensor([0, 1, 3, 3, -1])
W, B = torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
FORWARD = {
    "x": X,
    "order": ORDER,
    "layout": LAYOUT,
    "weights": [W, W],
    "biases": [B, B],
    "modules": [0, 1],
    "out_features": 2,
    "relu": False,
}
BACKWARD = {
    "grad": GRAD,
    "y": GRAD,
    "x": X,
    "order": ORDER,
    "layout": LAYOUT,
    "weights": [W, W],
    "modules": [0, 1],
    "in_features": 3,
    "output_mask": [True] * 3,
}


def moved(value: Any, device: str) -> Any:
    if isinstance(value, Tensor):
        return value if value.is_meta else value.to(device)
    return [moved(v, device) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modules": [1, 0]}, r"modules must ascend within \[0, 3\)"),
        ({"modules": [0, 0]}, "modules must ascend"),
        ({"modules": [0, 3]}, "modules must ascend"),
        ({"modules": [-1, 0]}, "modules must ascend"),
        ({"modules": [0]}, "weights must have one tensor for each module listed"),
        ({"modules": [], "weights": [W, W]}, "weights must have one tensor for each module listed"),
        ({"weights": [W]}, "weights must have one tensor"),
        ({"biases": [B]}, "biases must have one tensor"),
        ({"weights": [W, W[0]]}, "weights must have shape"),
        ({"biases": [B, B[:1]]}, "biases must have shape"),
        ({"out_features": 3}, "weights must have shape"),
        ({"layout": LAYOUT[None]}, "layout must have 1 dimension"),
        ({"layout": LAYOUT[:1]}, "layout must have at least 2 elements"),
        ({"layout": LAYOUT.int()}, "layout must have dtype"),
        ({"layout": LAYOUT.to(META)}, "layout must be on"),
        ({"order": ORDER[None]}, "order must have 1 dimension"),
        ({"order": ORDER[1:]}, "order must have one index for each of 4 samples"),
        ({"x": X.bool()}, "x must be float32, float64, bfloat16 or float16"),
        ({"x": X.to(torch.complex64)}, "x must be float32"),
    ],
)
def test_wrong_arguments_of_the_raw_operator(changes: dict[str, Any], message: str, device: str) -> None:
    raw.grouped_linear(**{k: moved(v, device) for k, v in FORWARD.items()})
    with pytest.raises(RuntimeError, match=f"grouped_linear: {message}"):
        raw.grouped_linear(**{k: moved(v, device) for k, v in (FORWARD | changes).items()})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grad": GRAD[0]}, "grad must have 2 dimension"),
        ({"grad": GRAD.long()}, "grad must be float32"),
        ({"y": GRAD[1:]}, "y must have shape"),
        ({"y": GRAD.float()}, "y must have the dtype of grad"),
        ({"y": GRAD.to(META)}, "y must be on"),
        ({"x": X[:, 1:]}, "x must have shape"),
        ({"x": X.float()}, "x must have the dtype of grad"),
        ({"x": None}, "x is needed for the gradient of the weights"),
        ({"in_features": 2}, "x must have shape"),
        ({"in_features": -1, "x": None, "output_mask": [True, False, False]}, "(weights|in_features) must"),
        ({"weights": [W]}, "weights must have one tensor"),
        ({"weights": []}, "weights must have one tensor"),
        ({"weights": [W, W[:1]]}, "weights must have shape"),
        ({"weights": [W, W.float()]}, "weights must have the dtype"),
        ({"weights": [W, W.to(META)]}, "weights must be on"),
        ({"modules": [1, 0]}, "modules must ascend"),
        ({"order": ORDER[1:]}, "order must have one index"),
        ({"layout": LAYOUT[:1]}, "layout must have at least 2 elements"),
    ],
)
def test_wrong_arguments_of_the_raw_backward(changes: dict[str, Any], message: str, device: str) -> None:
    raw.grouped_linear_backward(**{k: moved(v, device) for k, v in BACKWARD.items()})
    with pytest.raises(RuntimeError, match=f"grouped_linear_backward: {message}"):
        raw.grouped_linear_backward(**{k: moved(v, device) for k, v in (BACKWARD | changes).items()})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"order": torch.tensor([0, 1, 2, 4])}, r"order must be a permutation of \[0, 4\), got 4 at 3"),
        ({"order": torch.tensor([0, 1, 2, 1])}, r"order must be a permutation of \[0, 4\), got 1 at 3"),
        ({"order": torch.tensor([0, 1, -1, 2])}, r"order must be a permutation of \[0, 4\), got -1 at 2"),
        ({"layout": torch.tensor([0, 3, 1, 3, -1])}, "layout must ascend"),
        ({"layout": torch.tensor([0, 1, 5, 5, -1])}, "layout must ascend"),
        ({"layout": torch.tensor([-1, 1, 3, 3, -1])}, "layout must ascend"),
    ],
)
@pytest.mark.usefixtures("cpu_kernels")
def test_wrong_plan(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"grouped_linear: {message}"):
        raw.grouped_linear(**(FORWARD | changes))
    with pytest.raises(RuntimeError, match=f"grouped_linear_backward: {message}"):
        raw.grouped_linear_backward(**(BACKWARD | changes))


@pytest.mark.usefixtures("cuda_kernels")
def test_wrong_action_raises_in_backward(device: str) -> None:
    layer = Layer.of(Case((3, 2), 0, 5, 4), False, True, "none", device)
    plan = dispatch_plan(torch.tensor([0, 1, 2, 1, 0], device=device), 2)
    with pytest.raises(IndexError, match=r"dispatch_plan: actions must be in \[0, 2\), got another value for sample 2"):
        layer._replace(plan=plan)().sum().backward()


@pytest.mark.parametrize("argument", ["x", "weights", "biases"])
def test_raw_operator_refuses_a_gradient(argument: str, device: str) -> None:
    args = {k: moved(v, device) for k, v in FORWARD.items()}
    given = args[argument]
    args[argument] = given.requires_grad_() if isinstance(given, Tensor) else [t.clone().requires_grad_() for t in given]
    with pytest.raises(RuntimeError, match=r"routing_ext::grouped_linear.*not implemented"):
        raw.grouped_linear(**args).sum().backward()


def test_raw_backward_refuses_a_gradient(device: str) -> None:
    args = {k: moved(v, device) for k, v in BACKWARD.items()}
    args["grad"] = args["grad"].clone().requires_grad_()
    with pytest.raises(RuntimeError, match=r"routing_ext::grouped_linear_backward.*not implemented"):
        raw.grouped_linear_backward(**args)[0].sum().backward()


@each_layout
def test_meta(stacked: bool) -> None:
    layer = Layer.of(SMALL, stacked, True, "relu", "cpu")
    plan = layer.plan
    layer = layer._replace(plan=DispatchPlan(plan.order.to(META), plan.layout.to(META), plan.num_modules))
    layer = layer.map(lambda t: t.to(META))
    for got, t in zip(layer.results(grouped_linear), [layer(), *layer.inputs], strict=True):
        assert got is not None
        assert got.is_meta
        assert got.shape == t.shape


def test_changed_plan_is_noticed(device: str) -> None:
    x = torch.randn(3, 2, device=device, requires_grad=True)
    weights = [torch.randn(4, 2, device=device, requires_grad=True) for _ in range(2)]
    plan = dispatch_plan(torch.tensor([0, 1, 0], device=device), 2)
    y = grouped_linear(x, weights, None, plan)
    plan.order.copy_(plan.order.flip(0))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("other", [torch.int64, torch.complex64])
def test_autocast_leaves_what_is_not_real_alone(other: torch.dtype, device: str) -> None:
    plan = dispatch_plan(torch.tensor([0, 0], device=device), 1)
    x = torch.ones(2, 3, device=device).to(other)
    with torch.autocast(device, torch.bfloat16), pytest.raises(RuntimeError, match="grouped_linear: x must be float32"):
        grouped_linear(x, [torch.ones(4, 3, device=device)], None, plan)


def test_weight_of_one_dimension(device: str) -> None:
    plan = dispatch_plan(torch.tensor([0], device=device), 1)
    with pytest.raises(ValueError, match="grouped_linear: weights must have shape"):
        grouped_linear(torch.ones(1, 3, device=device), [torch.ones(3, device=device)], None, plan)


@pytest.mark.usefixtures("cpu_kernels")
def test_large_results_are_recycled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    plan = dispatch_plan(torch.zeros(1024, dtype=torch.int64), 1)
    x, weight = torch.randn(1024, 64, dtype=torch.float64), torch.randn(128, 64, dtype=torch.float64)
    y = grouped_linear(x, [weight], None, plan)
    address, expected = y.data_ptr(), x @ weight.T
    del y
    again = grouped_linear(x, [weight], None, plan)
    assert again.data_ptr() == address
    other = grouped_linear(2 * x, [weight], None, plan)
    torch.testing.assert_close(again, expected)
    torch.testing.assert_close(other, 2 * expected)
