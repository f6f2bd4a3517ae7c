from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from helpers import VIEWS, assert_identical, assert_same, generator, normal
from torch import Tensor
from torch.autograd import gradcheck

from routing_ext import reference
from routing_ext.memory import DncState, NtmState
from routing_ext.ops import dnc_sequence, ntm_sequence

raw = torch.ops.routing_ext

State = DncState | NtmState
Sequencer = Callable[..., tuple[Tensor, Any]]


class Case(NamedTuple):
    model: str
    T: int
    B: int
    I: int  # noqa: E741
    H: int
    O: int  # noqa: E741
    N: int
    W: int
    V: int
    R: int
    S: int = 3

    def __str__(self) -> str:
        return f"{self.model}-T{self.T}-B{self.B}-I{self.I}-H{self.H}-O{self.O}-N{self.N}-W{self.W}-V{self.V}-R{self.R}"

    @property
    def is_dnc(self) -> bool:
        return self.model == "dnc"

    @property
    def sequence(self) -> Sequencer:
        return dnc_sequence if self.is_dnc else ntm_sequence

    @property
    def reference(self) -> Sequencer:
        return reference.dnc_sequence if self.is_dnc else reference.ntm_sequence

    def initial(self) -> State:
        return (DncState if self.is_dnc else NtmState).initial(self._asdict(), torch.float64)

    def x(self, dtype: torch.dtype = torch.float64) -> Tensor:
        return normal(self.T, self.B, self.I, seed=0, dtype=dtype)

    def weights(self, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        h, w, v, r, s = self.H, self.W, self.V, self.R, self.S
        dnc = [v * w, v, v, v, v * w, v * w, r * w, r, r, r * (2 * v + 1)]
        ntm = [v * w, v, v, v * s, v, v * w, v * w, r * w, r, r, r * s, r]
        interface = [shape for n in (dnc if self.is_dnc else ntm) for shape in ((n, h), (n,))]
        shapes = [(4 * h, self.I + r * w), (4 * h, h), (4 * h,), (4 * h,), *interface, (self.O, h + r * w), (self.O,)]
        return [(normal(*s, seed=i, grad=False) / h**0.5).to(dtype).requires_grad_() for i, s in enumerate(shapes)]

    def state(self, dtype: torch.dtype = torch.float64) -> Any:
        """In the middle of a sequence, as it were: no two locations are alike."""
        b, n, w, v, r, h = self.B, self.N, self.W, self.V, self.R, self.H
        g = generator(1)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=g, dtype=torch.float64)

        fields = {
            "memory": uniform(b, n, w) - 0.5,
            "usage": uniform(b, n),
            "precedence": 0.9 * uniform(b, v, n).softmax(-1),
            "link": uniform(b, v, n, n) / n * (1 - torch.eye(n, dtype=torch.float64)),
            "write_weights": 0.8 * uniform(b, v, n).softmax(-1),
            "read_weights": 0.9 * uniform(b, r, n).softmax(-1),
            "hidden": uniform(b, h) - 0.5,
            "cell": uniform(b, h) - 0.5,
            "read_vectors": uniform(b, r, w) - 0.5,
        }
        kind = DncState if self.is_dnc else NtmState
        return kind(*(fields[name].to(dtype).requires_grad_() for name in kind._fields))


CASES = [
    Case("dnc", 1, 1, 1, 1, 1, 1, 1, 1, 1),
    Case("dnc", 5, 3, 0, 5, 2, 7, 4, 1, 1),
    Case("dnc", 5, 3, 3, 17, 33, 16, 5, 2, 3),
    Case("dnc", 4, 1, 9, 64, 8, 17, 16, 1, 4),
    Case("dnc", 3, 9, 2, 33, 49, 64, 3, 3, 5),
    Case("dnc", 3, 19, 5, 50, 3, 9, 17, 4, 2),
    Case("dnc", 0, 3, 2, 5, 2, 9, 4, 1, 2),
    Case("dnc", 4, 0, 2, 5, 2, 9, 4, 1, 2),
    Case("ntm", 1, 1, 1, 1, 1, 1, 1, 1, 1, 1),
    Case("ntm", 5, 3, 0, 5, 2, 7, 4, 1, 1),
    Case("ntm", 5, 3, 3, 17, 33, 19, 5, 2, 3, 5),
    Case("ntm", 5, 3, 3, 7, 2, 19, 5, 2, 3, 4),
    Case("ntm", 22, 16, 10, 100, 8, 128, 20, 1, 1),
    Case("ntm", 0, 3, 2, 5, 2, 9, 4, 1, 2),
    Case("ntm", 4, 0, 2, 5, 2, 9, 4, 1, 2),
]
DNC = Case("dnc", 7, 3, 2, 9, 4, 11, 5, 2, 3)
NTM = Case("ntm", 5, 3, 2, 9, 4, 11, 5, 2, 3)
TINY = [Case("dnc", 3, 2, 1, 2, 1, 3, 2, 1, 2), Case("dnc", 2, 1, 1, 2, 1, 3, 1, 2, 1), Case("ntm", 3, 2, 1, 2, 1, 4, 2, 1, 2)]

each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_model = pytest.mark.parametrize("case", [DNC, NTM], ids=str)


def results(y: Tensor, state: State, inputs: Sequence[Tensor], of_state: bool = True) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and the gradients of some sum of them. of_state: of the final state, too."""
    outputs = [y, *state] if of_state else [y]
    loss = sum(((t * normal(*t.shape, seed=i, grad=False).to(t.dtype)).sum() for i, t in enumerate(outputs)), y.new_zeros(()))
    grads = torch.autograd.grad(loss, inputs, allow_unused=True) if loss.requires_grad else [None] * len(inputs)
    return outputs, [torch.zeros_like(t) if g is None else g for t, g in zip(inputs, grads, strict=True)]


def assert_agree(actual: Any, expected: Any, tolerance: float) -> None:
    """Gradients relative to the largest element."""
    for got, want in zip(actual[0], expected[0], strict=True):
        assert_same(got, want, tolerance)
    for got, want in zip(actual[1], expected[1], strict=True):
        scale = 1e-3 + (want.abs().max() if want.numel() else 0)
        assert_same(got / scale, want / scale, tolerance)


def check(case: Case, given: bool, tolerance: float, **options: Any) -> None:
    """Against the reference. Without a state, locations that were never written are alike, and which of them is used first is
    a matter of rounding: then the outputs are compared, which do not depend on it."""
    x, weights, state = case.x(), case.weights(), case.state() if given else None
    inputs = [x, *weights, *(state or ())]
    reference_options = {name: value for name, value in options.items() if name != "link_every"}
    expected = case.reference(x, weights, state or case.initial(), **reference_options)
    actual = case.sequence(x, weights, state, num_locations=case.N, **options)
    assert type(actual[1]) is type(expected[1])
    assert [t.shape for t in actual[1]] == [t.shape for t in expected[1]]
    assert_agree(results(*actual, inputs, given), results(*expected, inputs, given), tolerance)


# ---- values and gradients ---------------------------------------------------------------------------------------------------


@each_case
@pytest.mark.parametrize("given", [True, False], ids=["state", "no-state"])
def test_agrees_with_reference(case: Case, given: bool) -> None:
    check(case, given, 1e-10)


@each_case
def test_float32_is_as_accurate_as_the_reference(case: Case) -> None:
    """Measured against float64. Small gradients are what is left of large terms, so theirs are measured by all of them."""

    def run(sequence: Sequencer, dtype: torch.dtype) -> list[Tensor]:
        x, weights, state = case.x(dtype), case.weights(dtype), case.state(dtype)
        return list(itertools.chain(*results(*sequence(x, weights, state), [x, *weights, *state])))

    exact = run(case.reference, torch.float64)
    small = 1e-3 * torch.stack([t.norm() for t in exact]).norm() + 1e-3
    plain, actual = run(case.reference, torch.float32), run(case.sequence, torch.float32)
    for got, ordinary, want in zip(actual, plain, exact, strict=True):
        assert got.dtype is torch.float32
        error, allowed = ((t - want).norm() / (want.norm() + small) for t in (got, ordinary))
        assert error <= 10 * allowed + 2e-5


OPTIONS: dict[str, dict[str, Any]] = {
    "paper": {"usage": "paper"},
    "softmax": {"allocation": "softmax", "temperature": 0.2},
    "paper-softmax": {"usage": "paper", "allocation": "softmax"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("given", [True, False], ids=["state", "no-state"])
def test_options(given: bool, options: dict[str, Any]) -> None:
    check(DNC, given, 1e-10, **options)


@each_model
@pytest.mark.parametrize("clip_value", [0.05, 0.3])
def test_clipping(case: Case, clip_value: float) -> None:
    check(case, True, 1e-10, clip_value=clip_value)


@pytest.mark.parametrize("N", [8, 11])
@pytest.mark.parametrize("given", [True, False], ids=["state", "no-state"])
@pytest.mark.parametrize("link_every", [1, 2, 3, 6, 7, 100])
def test_links_computed_again(link_every: int, given: bool, N: int) -> None:
    check(DNC._replace(N=N), given, 1e-10, link_every=link_every)


def test_links_computed_again_in_a_large_network() -> None:
    """Where that is the default, and not all samples are taken at a time."""
    check(Case("dnc", 10, 5, 2, 9, 4, 200, 5, 1, 1), True, 1e-10)


@pytest.mark.parametrize("case", TINY, ids=str)
def test_gradcheck(case: Case) -> None:
    state = case.state()

    def function(x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        y, final = case.sequence(x, tensors[len(state) :], type(state)(*tensors[: len(state)]))
        return (y, *final)

    assert gradcheck(function, (case.x(), *state, *case.weights()))


@each_model
def test_gradients_of_some(case: Case) -> None:
    """Of the input alone, the weights alone, the state alone, from the output alone or one part of the state alone."""
    x, weights, state = case.x(), case.weights(), case.state()
    groups = [[x], weights, list(state)]
    for wanted in groups:
        for t in itertools.chain(*groups):
            t.requires_grad_(any(t is w for w in wanted))
        actual, expected = (f(x, weights, state) for f in (case.sequence, case.reference))
        pairs = [(actual[0], expected[0]), *zip(actual[1], expected[1], strict=True)]
        for got, want in pairs:
            grads = [torch.autograd.grad(t.sum(), wanted, allow_unused=True, retain_graph=True) for t in (got, want)]
            for g, e in zip(*grads, strict=True):
                assert_same(g, torch.zeros_like(g) if e is None else e, 1e-10)


@each_model
def test_without_gradients(case: Case) -> None:
    x, weights, state = case.x(), case.weights(), case.state()
    expected = case.sequence(x, weights, state)
    with torch.no_grad():
        actual = case.sequence(x, weights, state)
    for got, want in zip((actual[0], *actual[1]), (expected[0], *expected[1]), strict=True):
        assert not got.requires_grad
        assert_identical(got, want.detach())


@each_model
def test_in_two_halves(case: Case) -> None:
    x, weights, state = case.x(), case.weights(), case.state()
    inputs = [x, *weights, *state]
    first, between = case.sequence(x[:2], weights, state)
    second, final = case.sequence(x[2:], weights, between)
    expected = case.sequence(x, weights, state)
    assert_agree(results(torch.cat([first, second]), final, inputs), results(*expected, inputs), 1e-12)


@each_model
@pytest.mark.parametrize("view", VIEWS)
def test_views(case: Case, view: str) -> None:
    x, weights, state = case.x(), case.weights(), case.state()
    inputs = [x, *weights, *state]
    expected = results(*case.sequence(x, weights, state), inputs)
    seen = VIEWS[view]
    actual = case.sequence(seen(x), [seen(w) for w in weights], type(state)(*map(seen, state)))
    assert_agree(results(*actual, inputs), expected, 1e-12)


@each_model
def test_expanded_gradient(case: Case) -> None:
    x, weights = case.x(), case.weights()
    grads = []
    for sequence in (case.sequence, case.reference):
        y, _ = sequence(x, weights, case.initial())
        grads.append(torch.autograd.grad(y.sum(), weights))
    for got, want in zip(*grads, strict=True):
        assert_same(got, want, 1e-10)


@each_model
def test_number_of_threads_changes_nothing(case: Case, cpu_kernels: None) -> None:
    x, weights, state = case._replace(B=7).x(), case.weights(), case._replace(B=7).state()
    inputs = [x, *weights, *state]
    before, outcomes = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            outcomes.append(results(*case.sequence(x, weights, state), inputs))
    finally:
        torch.set_num_threads(before)
    for other in outcomes[1:]:
        for got, want in zip(itertools.chain(*other), itertools.chain(*outcomes[0]), strict=True):
            assert_identical(got, want)


@pytest.mark.parametrize("batch", [1, 2])
def test_several_threads_for_one_sample(batch: int, cpu_kernels: None) -> None:
    """With more threads than samples, they share the link of each. Sums are in another order then."""
    case = Case("dnc", T=6, B=batch, I=2, H=3, O=2, N=259, W=3, V=2, R=5)
    x, weights, state = case.x(), case.weights(), case.state()
    inputs = [x, *weights, *state]
    before, outcomes = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            outcomes.append(results(*case.sequence(x, weights, state, link_every=2), inputs))
    finally:
        torch.set_num_threads(before)
    for other in outcomes[1:]:
        for got, want in zip(itertools.chain(*other), itertools.chain(*outcomes[0]), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


# ---- graphs -----------------------------------------------------------------------------------------------------------------


@each_model
def test_two_sequences_before_a_backward_pass(case: Case) -> None:
    weights = case.weights()
    xs = [case.x(), case.x().detach().flip(0).requires_grad_()]
    expected = [torch.autograd.grad(case.sequence(x, weights, num_locations=case.N)[0].sum(), [x, *weights]) for x in xs]
    both = [case.sequence(x, weights, num_locations=case.N)[0] for x in xs]
    for y, x, want in zip(both, xs, expected, strict=True):
        for g, e in zip(torch.autograd.grad(y.sum(), [x, *weights]), want, strict=True):
            assert_identical(g, e)


@each_model
def test_backward_twice(case: Case) -> None:
    x, weights = case.x(), case.weights()
    y, _ = case.sequence(x, weights, num_locations=case.N)
    first = torch.autograd.grad(y.sum(), weights, retain_graph=True)
    for got, want in zip(torch.autograd.grad(y.sum(), weights), first, strict=True):
        assert_identical(got, want)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(y.sum(), weights)


@each_model
def test_no_second_derivative(case: Case) -> None:
    x, weights = case.x(), case.weights()
    y, _ = case.sequence(x, weights, num_locations=case.N)
    with pytest.raises(RuntimeError, match=f"{case.model}_sequence: has no second derivative"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


@each_model
@pytest.mark.parametrize("what", ["x", "weight"])
def test_changes_before_the_backward_pass_raise(case: Case, what: str) -> None:
    x, weights = case.x(), case.weights()
    y, _ = case.sequence(x, weights, num_locations=case.N)
    with torch.no_grad():
        (x if what == "x" else weights[5]).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# ---- dtypes -----------------------------------------------------------------------------------------------------------------


@each_model
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_float32(case: Case, low: torch.dtype) -> None:
    x, weights = case.x(low), case.weights(torch.float32)
    expected, _ = case.sequence(x.detach().float(), weights, num_locations=case.N)
    with torch.autocast("cpu", low):
        y, state = case.sequence(x, weights, num_locations=case.N)
    assert all(t.dtype is torch.float32 for t in state)
    assert_identical(y, expected)
    assert torch.autograd.grad(y.sum(), x)[0].dtype is low


# ---- torch.library and torch.compile ----------------------------------------------------------------------------------------


@each_model
@pytest.mark.parametrize("given", [True, False], ids=["state", "no-state"])
def test_opcheck(case: Case, given: bool) -> None:
    x, weights = case.x().detach(), [w.detach() for w in case.weights()]
    state = list(case.state().detach()) if given else []
    torch.library.opcheck(
        raw.memory_sequence.default, (case.model, [], x, state, weights, None, None, None, [case.N], 20.0, 2, False)
    )
    but_not_values = ("test_schema", "test_autograd_registration", "test_faketensor")  # the tape has gaps
    args = (case.model, [], x, state, weights, None, None, None, [case.N], 20.0, 2, True)
    torch.library.opcheck(raw.memory_sequence.default, args, test_utils=but_not_values)
    y, final, tape = raw.memory_sequence(case.model, [], x, state, weights, None, None, None, [case.N], 20.0, 2, True)
    link = state[3] if given and case.is_dnc else None
    for mask, grad_state in (((True, True, given), list(final)), ((False, True, False), [None] * len(final))):
        args = (case.model, [], y, grad_state, x, link, weights, None, None, None, tape, [case.N], 20.0, 2, (*mask, False))
        torch.library.opcheck(raw.memory_sequence_backward.default, args)


def check_compiled(case: Case, backend: str, dynamic: bool) -> None:
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend=backend, dynamic=dynamic)
    def compiled(x: Tensor, weights: list[Tensor], state: Any) -> tuple[Tensor, Any]:
        y, state = case.sequence(x, weights, state)
        return y.sin(), state

    for steps, batch in ((case.T, case.B), (case.T + 2, case.B + 1)):
        this = case._replace(T=steps, B=batch)
        x, weights, state = this.x(), this.weights(), this.state()
        inputs = [x, *weights, *state]
        y, final = case.reference(x, weights, state)
        assert_agree(results(*compiled(x, weights, state), inputs), results(y.sin(), final, inputs), 1e-10)


@each_model
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(case: Case, dynamic: bool) -> None:
    check_compiled(case, "aot_eager", dynamic)


@pytest.mark.slow
@each_model
def test_compile_with_inductor(case: Case) -> None:
    check_compiled(case, "inductor", True)


# ---- wrong use --------------------------------------------------------------------------------------------------------------


def replaced(tensors: Sequence[Tensor], i: int, t: Tensor) -> list[Tensor]:
    return [*tensors[:i], t, *tensors[i + 1 :]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, w, s: (x[0], w, s), r"x must have 3 dimension\(s\), got \[3, 2\]"),
        (lambda x, w, s: (x.half(), w, s), "x must be float32 or float64, got Half"),
        (lambda x, w, s: (x.float(), w, s), "weights must have the dtype of x, Float, at 0, got Double"),
        (lambda x, w, s: (x, w[:-1], s), "weights must be 26 tensors for dnc, or 24 without an output layer, got 25"),
        (lambda x, w, s: (x[..., :1], w, s), r"weights must have shape \[36, 16\] at 0, got \[36, 17\]"),
        (lambda x, w, s: (x, replaced(w, 0, w[0][:, :2]), s), r"weights must have shape \[36, 17\] at 0, got \[36, 2\]"),
        (lambda x, w, s: (x, replaced(w, 5, w[4]), s), r"weights must have shape \[10\] at 5, got \[10, 9\]"),
        (lambda x, w, s: (x, replaced(w, 6, w[6][0]), s), r"weights must have 2 dimensions at 6, got \[9\]"),
        (lambda x, w, s: (x, replaced(w, 22, w[22][:7]), s), r"weights must have shape \[15, 9\] at 22, got \[7, 9\]"),
        (lambda x, w, s: (x, w, s._replace(usage=s.cell)), r"state must have shape \[3, 11\] at 1, got \[3, 9\]"),
        (lambda x, w, s: (x, w, s._replace(link=s.link.float())), "state must have the dtype of x, Double, at 3, got Float"),
        (lambda x, w, s: (x[:, :2], w, s), r"state must have shape \[2, 11, 5\] at 0, got \[3, 11, 5\]"),
    ],
)
def test_wrong_tensors(change: Callable[..., Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^memory_sequence: {message}"):
        dnc_sequence(*change(DNC.x(), DNC.weights(), DNC.state()))


def test_wrong_options() -> None:
    x, weights = DNC.x(), DNC.weights()
    with pytest.raises(ValueError, match='dnc_sequence: usage must be "reference", "paper" or "package", got \'other\''):
        dnc_sequence(x, weights, num_locations=4, usage="other")
    with pytest.raises(ValueError, match="dnc_sequence: temperature must be positive, got 0"):
        dnc_sequence(x, weights, num_locations=4, allocation="softmax", temperature=0)
    with pytest.raises(TypeError, match=r"dnc_sequence: options are usage, allocation, .*; got use"):
        dnc_sequence(x, weights, num_locations=4, use="paper")
    with pytest.raises(RuntimeError, match=r"memory_sequence: options must be .* numbers, or none, got 1"):
        raw.memory_sequence("dnc", [1.0], x, [], weights, None, None, None, [4], 20.0, 2, False)
    with pytest.raises(ValueError, match="dnc_sequence: num_locations is needed where there is no state"):
        dnc_sequence(x, weights)
    with pytest.raises(ValueError, match="ntm_sequence: num_locations must be that of the state, 11, got 4"):
        ntm_sequence(NTM.x(), NTM.weights(), NTM.state(), num_locations=4)
    with pytest.raises(RuntimeError, match="memory_sequence: num_locations must be at least 1, got 0"):
        dnc_sequence(x, weights, num_locations=0)
    with pytest.raises(RuntimeError, match="memory_sequence: link_every must be at least 1, got 0"):
        dnc_sequence(x, weights, num_locations=4, link_every=0)
    unmoved = NTM._replace(S=0)
    with pytest.raises(RuntimeError, match="memory_sequence: weights must be of at least one shift, got 0"):
        ntm_sequence(unmoved.x(), unmoved.weights(), num_locations=4)


def test_wrong_tape() -> None:
    x, weights = DNC.x().detach(), [w.detach() for w in DNC.weights()]
    y, final, tape = raw.memory_sequence("dnc", [], x, [], weights, None, None, None, [DNC.N], 20.0, 2, True)
    args = ("dnc", [], y, [None] * len(final), x, None, weights, None, None, None)
    for wrong in ([], [tape[0][1:], tape[1]], [tape[0], tape[1][1:]], [tape[0].float(), tape[1]]):
        with pytest.raises(RuntimeError, match="memory_sequence_backward: tape must be the one that the forward pass gave"):
            raw.memory_sequence_backward(*args, wrong, [DNC.N], 20.0, 2, (True, True, False, False))
    with pytest.raises(RuntimeError, match="memory_sequence: model must be dnc or ntm, got lstm"):
        raw.memory_sequence("lstm", [], x, [], weights, None, None, None, [DNC.N], 20.0, 2, True)
