"""Sequences of memory networks whose interface is normalised, against their definitions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from helpers import generator, normal
from torch import Tensor
from torch.autograd import gradcheck

from routing_ext import ops, reference
from routing_ext._memory_options import DncOptions, numbers
from routing_ext.memory import DncState, NtmState
from routing_ext.ops.memory_step import MemoryRun, Network, pack_weights

raw = torch.ops.routing_ext
F64 = torch.float64
T, I, H, O = 6, 2, 9, 3  # noqa: E741
EPS = 1e-3


class Case(NamedTuple):
    model: str
    options: dict[str, Any]
    B: int = 5
    N: int = 11
    W: int = 5
    V: int = 2
    R: int = 3
    S: int = 3

    @property
    def kind(self) -> type[DncState] | type[NtmState]:
        return DncState if self.model == "dnc" else NtmState

    def of_step(self) -> DncOptions:
        return DncOptions(**{name: value for name, value in self.options.items() if name in DncOptions._fields})

    def parts(self) -> list[int]:
        v, r, w, s = self.V, self.R, self.W, self.S
        if self.model == "dnc":
            return list(self.of_step().interface(v, r, w).values())
        return [v * w, v, v, v * s, v, v * w, v * w, r * w, r, r, r * s, r]

    def sequence(self, module: Any, *args: Any, **more: Any) -> tuple[Tensor, Any]:
        result: tuple[Tensor, Any] = getattr(module, f"{self.model}_sequence")(*args, norm_eps=EPS, **self.options, **more)
        return result

    def tensors(self, dtype: torch.dtype = F64) -> list[Tensor]:
        """x, the memory that a sample begins with, the norm's weight and bias, and the weights."""
        reads, width = self.R * self.W, sum(self.parts())
        shapes = [(T, self.B, I), (self.B, self.N, self.W), (width,), (width,)]
        shapes += [(4 * H, I + reads), (4 * H, H), (4 * H,), (4 * H,)]
        shapes += [shape for part in self.parts() for shape in ((part, H), (part,))]
        shapes += [(O, H + reads), (O,)]
        drawn = [normal(*shape, seed=i, grad=False) / (H**0.5 if i > 3 else 1) for i, shape in enumerate(shapes)]
        return [t.to(dtype).requires_grad_() for t in drawn]

    def state(self, memory: Tensor) -> Any:
        sizes = {"B": self.B, "H": H, "V": self.V, "R": self.R, "N": self.N, "W": self.W}
        state = self.kind.initial(sizes, memory.dtype)
        if not self.options.get("link", True):
            state = state._replace(precedence=state.precedence[..., :0], link=state.link[..., :0, :0])
        if self.model == "dnc":  # not alike: which of equal locations is used first is a matter of rounding
            state = state._replace(usage=torch.rand(self.B, self.N, generator=generator(2)).to(memory.dtype))
        return state._replace(memory=memory)


CASES = {
    "dnc": Case("dnc", {}),
    "dnc-options": Case("dnc", {"link": False, "mask_min": 0.1, "usage": "paper", "strengths": "oneplus"}),
    "dnc-small": Case("dnc", {"output": "linear", "initial": "zeros"}, N=1, W=1, V=1, R=1, B=1),
    "dnc-large": Case("dnc", {}, N=12, W=34, V=1, R=4, B=2),
    "ntm": Case("ntm", {}),
    "ntm-linear": Case("ntm", {"words": "linear", "output": "linear"}, N=16, W=16, V=1, R=1, S=2),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "lengths": {"lengths": [3, 6, 0, 5, 1]},
    "resets": {"resets": 0.3},
    "both": {"lengths": [3, 6, 0, 5, 1], "resets": 0.3},
    "no-steps": {"lengths": [0] * 5},
    "reset-memory": {"lengths": [3, 6, 0, 5, 1], "resets": 0.3, "reset_memory": True},
}


def masks(case: Case, given: dict[str, Any]) -> dict[str, Tensor]:
    made = {}
    if "lengths" in given:
        made["lengths"] = torch.tensor(given["lengths"][: case.B])
    if "resets" in given:
        made["resets"] = torch.rand(T, case.B, generator=generator(1)) < given["resets"]
    if "reset_memory" in given:
        made["reset_memory"] = normal(case.B, case.N, case.W, seed=3)
    return made


def with_gradients(results: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    parts = [(t * normal(*t.shape, seed=i, grad=False).to(t.dtype)).sum() for i, t in enumerate(results)]
    grads = torch.autograd.grad(sum(parts), inputs, allow_unused=True, materialize_grads=True)  # type: ignore[arg-type]
    return [*results, *grads]


def assert_agree(actual: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float = 1e-10) -> None:
    for got, want in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def run(case: Case, module: Any, tensors: list[Tensor], **more: Any) -> list[Tensor]:
    x, memory, weight, bias, *ws = tensors
    y, final = case.sequence(module, x, ws, case.state(memory), norm=(weight, bias), **more)
    also = [more["reset_memory"]] if "reset_memory" in more else []
    return with_gradients([y, *final], [*tensors, *also])


@each_case
@pytest.mark.parametrize("given", MASKS.values(), ids=MASKS)
def test_against_the_definition(case: Case, given: dict[str, Any]) -> None:
    tensors, more = case.tensors(), masks(case, given)
    assert_agree(run(case, ops, tensors, **more), run(case, reference, tensors, **more))


@each_case
def test_without_an_output_layer(case: Case) -> None:
    tensors = case.tensors()[:-2]
    assert_agree(run(case, ops, tensors), run(case, reference, tensors))


@each_case
def test_without_a_gradient(case: Case) -> None:
    x, memory, weight, bias, *ws = case.tensors()
    expected, _ = case.sequence(ops, x, ws, case.state(memory), norm=(weight, bias))
    with torch.no_grad():
        y, _ = case.sequence(ops, x, ws, case.state(memory), norm=(weight, bias))
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("given", [{}, {"link_every": 2}, {"lengths": [3, 6, 0, 5, 1], "link_every": 3}], ids=str)
def test_links_that_are_computed_again(given: dict[str, Any]) -> None:
    case = CASES["dnc"]
    more = masks(case, given)
    tensors = case.tensors()
    found = run(case, ops, tensors, **more, link_every=given.get("link_every", 1))
    assert_agree(found, run(case, reference, tensors, **more))


@pytest.mark.parametrize("model", ["dnc", "ntm"])
def test_gradcheck(model: str) -> None:
    case = Case(model, {}, B=2, N=4, W=3, V=1, R=2)
    _, memory, weight, bias, *ws = case.tensors()
    x = normal(3, 2, I, seed=0)

    def f(x: Tensor, memory: Tensor, weight: Tensor, bias: Tensor, interface: Tensor) -> tuple[Tensor, ...]:
        y, final = case.sequence(ops, x, [*ws[:4], interface, *ws[5:]], case.state(memory), norm=(weight, bias))
        return (y, final.memory, final.read_weights)

    assert gradcheck(f, (x, memory, weight, bias, ws[4]))


@each_case
def test_in_float32(case: Case) -> None:
    """As accurate as the definition, measured as in test_memory_sequence.py."""
    exact = run(case, reference, case.tensors())
    plain, actual = (run(case, module, case.tensors(torch.float32)) for module in (reference, ops))
    small = 1e-3 * torch.stack([t.norm() for t in exact]).norm() + 1e-3
    for got, ordinary, want in zip(actual, plain, exact, strict=True):
        assert got.dtype is torch.float32
        error, allowed = ((t - want).norm() / (want.norm() + small) for t in (got, ordinary))
        assert error <= 10 * allowed + 2e-5


@each_case
def test_step_by_step(case: Case) -> None:
    """The norm's weights are behind those of the interface."""
    x, memory, weight, bias, *ws = tensors = case.tensors()
    behind = 4 + 2 * len(case.parts())
    ws = [*ws[:behind], weight, bias, *ws[behind:]]
    of_sequence = {name: value for name, value in case.options.items() if name not in DncOptions._fields}
    options = numbers(case.of_step(), norm_eps=EPS, **of_sequence)
    sizes = {"B": case.B, "I": I, "H": H, "O": O, "N": case.N, "W": case.W, "V": case.V, "R": case.R}
    network = Network(case.model, options, sizes | {"S": case.S if case.model == "ntm" else 0}, F64, x.device, 20.0)
    steps = MemoryRun(network, pack_weights(network, ws), case.state(memory))
    ys = []
    for x_t in x:
        y = steps.step(x_t, ws)
        assert y is not None
        ys.append(y)
    assert_agree(with_gradients([torch.cat(ys), *steps.state()], tensors), run(case, reference, tensors))


def test_number_of_threads(cpu_kernels: None) -> None:
    case, outcomes, threads = Case("dnc", {}, B=7, N=64, W=8), [], torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            outcomes.append(run(case, ops, case.tensors()))
    finally:
        torch.set_num_threads(threads)
    for other in outcomes[1:]:
        assert_agree(other, outcomes[0], 1e-11)


def test_only_some_gradients_are_wanted() -> None:
    case = CASES["dnc"]
    x, memory, weight, bias, *ws = case.tensors()
    y, _ = case.sequence(ops, x, [w.detach() for w in ws], case.state(memory.detach()), norm=(weight, bias.detach()))
    expected, _ = case.sequence(reference, x, ws, case.state(memory), norm=(weight, bias))
    grads = [torch.autograd.grad(t.square().sum(), [weight]) for t in (y, expected)]
    assert_agree(*grads)


@pytest.mark.parametrize("case", [CASES["dnc-options"], CASES["ntm"]], ids=["dnc", "ntm"])
def test_compile(case: Case) -> None:
    torch._dynamo.reset()
    wrapped: Callable[..., Any] = lambda *args, **more: case.sequence(ops, *args, **more)  # noqa: E731
    compiled = torch.compile(wrapped, fullgraph=True, backend="aot_eager")
    x, memory, weight, bias, *ws = tensors = case.tensors()
    y, final = compiled(x, ws, case.state(memory), norm=(weight, bias))
    assert_agree(with_gradients([y, *final], tensors), run(case, ops, tensors))


@pytest.mark.parametrize("case", [CASES["dnc-options"], CASES["ntm"]], ids=["dnc", "ntm"])
def test_opcheck(case: Case) -> None:
    """Fake tensors have the shapes of the real ones, the tape's and the gradients' included."""
    x, memory, weight, bias, *ws = (t.detach() for t in case.tensors())
    behind = 4 + 2 * len(case.parts())
    ws = [*ws[:behind], weight, bias, *ws[behind:]]
    of_sequence = {name: value for name, value in case.options.items() if name not in DncOptions._fields}
    options = numbers(case.of_step(), norm_eps=EPS, **of_sequence)
    state = list(case.state(memory))
    rest = [None, None, None, [case.N], 20.0, 1]
    y, final, tape = raw.memory_sequence(case.model, options, x, state, ws, *rest, True)
    but_not_values = ("test_schema", "test_autograd_registration", "test_faketensor")  # the tape has gaps
    args = (case.model, options, x, state, ws, *rest, True)
    torch.library.opcheck(raw.memory_sequence.default, args, test_utils=but_not_values)
    link = state[3] if case.model == "dnc" else None
    args = (case.model, options, y, final, x, link, ws, *rest[:3], tape, *rest[3:], (True, True, True, False))
    torch.library.opcheck(raw.memory_sequence_backward.default, args)


def test_a_constant_interface_and_a_large_one() -> None:
    """Where the deviation is zero, and where squares are large."""
    for scale in (0.0, 1e15):
        for dtype in (torch.float32, F64):
            case = CASES["dnc"]
            x, memory, weight, bias, *ws = case.tensors(dtype)
            ws = [w if i < 4 or i >= len(ws) - 2 else (w * scale).detach().requires_grad_() for i, w in enumerate(ws)]
            found = run(case, ops, [x, memory, weight, bias, *ws])
            assert all(t.isfinite().all() for t in found)


@pytest.mark.parametrize(
    ("norm", "error", "message"),
    [
        ((torch.ones(7),), ValueError, "norm must be weight and bias, and norm_eps not negative, got 1 tensors"),
        ((torch.ones(7, dtype=F64),) * 2, RuntimeError, r"weights must have shape \[\d+\] at \d+, got \[7\]"),
    ],
)
@each_case
def test_wrong_use(case: Case, norm: tuple[Tensor, ...], error: type[Exception], message: str) -> None:
    x, memory, _, _, *ws = case.tensors()
    with pytest.raises(error, match=message):
        case.sequence(ops, x, ws, case.state(memory), norm=norm)


def test_a_negative_epsilon_and_a_memory_alone() -> None:
    case = CASES["ntm"]
    x, _, weight, bias, *ws = case.tensors()
    with pytest.raises(ValueError, match=r"^ntm_sequence: norm must be weight and bias, .* got norm_eps=-1"):
        ops.ntm_sequence(x, ws, num_locations=11, norm=(weight, bias), norm_eps=-1)
    with pytest.raises(RuntimeError, match="memory_sequence: options must be without a normalisation where there are no wei"):
        torch.ops.routing_ext.memory_sequence(
            "dnc", numbers(norm_eps=0.0), x.detach(), [], [], None, None, None, [11, 5, 2, 3, 0], 20.0, 1, False
        )


def test_an_accessor_has_none() -> None:
    n, w, v, r = 5, 2, 1, 1
    state = torch.zeros(1, n, w), torch.zeros(1, n), torch.zeros(1, v, n), torch.zeros(1, v, n, n), torch.zeros(1, v, n)
    interface = torch.zeros(1, v * (3 * w + 3) + r * (w + 2 + 2 * v + 1))
    with pytest.raises(RuntimeError, match="dnc_access: options must be without a normalisation, which sequences have"):
        torch.ops.routing_ext.dnc_access(interface, *state, torch.zeros(1, r, n), numbers(norm_eps=0.0))
