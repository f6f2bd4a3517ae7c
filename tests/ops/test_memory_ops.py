"""The operators of memory networks against their definitions. What they must hold whoever computes them: tests/memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers import VIEWS, assert_as_accurate, assert_identical, assert_same, generator
from torch import Tensor
from torch.autograd import gradcheck

from routing_ext import ops, reference
from routing_ext.memory import DncState, NtmState

F64 = torch.float64
raw = torch.ops.routing_ext

# ---- the operators ----------------------------------------------------------------------------------------------------------

Sizes = dict[str, int]


def sizes(b: int, n: int, w: int, h: int, v: int, r: int, s: int) -> Sizes:
    """I_D and I_N: of the interfaces."""
    dnc, ntm = v * (3 * w + 3) + r * (w + 2 + 2 * v + 1), v * (3 * w + 3 + s) + r * (w + 3 + s)
    return {"B": b, "N": n, "W": w, "H": h, "V": v, "R": r, "S": s, "D": dnc, "T": ntm}


def signed(t: Tensor) -> Tensor:
    return 2 * t - 1


def weights(t: Tensor) -> Tensor:
    return 0.9 * t / t.sum(-1, keepdim=True).clamp(min=1e-9)


def gate(t: Tensor) -> Tensor:
    return 0.05 + 0.9 * t


def at_least_one(t: Tensor) -> Tensor:
    return 1 + 3 * t


def link(t: Tensor) -> Tensor:
    n = t.size(-1)
    return t / n * (1 - torch.eye(n, dtype=t.dtype))


@dataclass(frozen=True)
class Operator:
    """Of each argument its shape in letters, and what makes it of random numbers in [0, 1]. `calls`: the operator and its
    definition, by variant."""

    arguments: dict[str, tuple[str, Callable[[Tensor], Tensor]]]
    calls: dict[str, tuple[Callable[..., Any], Callable[..., Any]]]
    options: tuple[Any, ...] = ()  # of the raw operator
    kept: int = 0  # results of the raw operator that only the backward pass needs

    def inputs(self, sizes: Sizes, dtype: torch.dtype = F64, grad: bool = True) -> list[Tensor]:
        made = []
        for seed, (letters, make) in enumerate(self.arguments.values()):
            t = torch.rand([sizes[letter] for letter in letters], generator=generator(seed), dtype=F64)
            made.append(make(t).to(dtype).requires_grad_(grad))
        return made


def both(name: str, **keywords: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def call(module: Any) -> Callable[..., Any]:
        return lambda *inputs: getattr(module, name)(*inputs, **keywords)

    return call(ops), call(reference)


def access(name: str, kind: type[DncState] | type[NtmState], **keywords: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Of the interface and the state without what the operator hands on; gives such a state, and the read vectors."""

    def call(module: Any) -> Callable[..., Any]:
        def step(interface: Tensor, *memory: Tensor) -> tuple[Tensor, ...]:
            batch, _, word = memory[0].shape
            nothing = memory[0].new_zeros(batch, 0)
            reads = memory[0].new_zeros(batch, memory[-1].size(1), word)
            after = getattr(module, name)(interface, kind(*memory, nothing, nothing, reads), **keywords)
            return (*after[: len(memory)], after.read_vectors)

        return step

    return call(ops), call(reference)


OPERATORS = {
    "content_weights": Operator(
        {"keys": ("BHW", signed), "strengths": ("BH", at_least_one), "memory": ("BNW", signed)},
        {"": both("content_weights")},
    ),
    "dnc_usage": Operator(
        {
            "usage": ("BN", gate),
            "write_weights": ("BVN", weights),
            "free_gates": ("BR", gate),
            "read_weights": ("BRN", weights),
        },
        {"": both("dnc_usage")},
    ),
    "dnc_allocation": Operator(
        {"usage": ("BN", gate), "write_gates": ("BV", gate)},
        {"sort": both("dnc_allocation"), "softmax": both("dnc_allocation", mode="softmax", temperature=0.3)},
        options=(0.0,),
        kept=1,
    ),
    "dnc_temporal_link": Operator(
        {
            "link": ("BVNN", link),
            "precedence": ("BVN", weights),
            "write_weights": ("BVN", weights),
            "read_weights": ("BRN", weights),
        },
        {"": both("dnc_temporal_link")},
    ),
    "ntm_location": Operator(
        {
            "content": ("BHN", weights),
            "gates": ("BH", gate),
            "shifts": ("BHS", weights),
            "sharpness": ("BH", at_least_one),
            "previous": ("BHN", weights),
        },
        {"": both("ntm_location")},
    ),
    "memory_write": Operator(
        {"memory": ("BNW", signed), "write_weights": ("BVN", weights), "erase": ("BVW", gate), "add": ("BVW", signed)},
        {"": both("memory_write")},
    ),
    "memory_read": Operator(
        {"memory": ("BNW", signed), "read_weights": ("BRN", weights)},
        {"": both("memory_read")},
    ),
    "dnc_access": Operator(
        {
            "interface": ("BD", lambda t: 3 * signed(t)),
            "memory": ("BNW", signed),
            "usage": ("BN", gate),
            "precedence": ("BVN", weights),
            "link": ("BVNN", link),
            "write_weights": ("BVN", weights),
            "read_weights": ("BRN", weights),
        },
        {
            "reference": access("dnc_access", DncState),
            "paper": access("dnc_access", DncState, usage="paper"),
            "softmax": access("dnc_access", DncState, allocation="softmax", temperature=0.3),
        },
        options=([],),
        kept=1,
    ),
    "ntm_access": Operator(
        {
            "interface": ("BT", lambda t: 3 * signed(t)),
            "memory": ("BNW", signed),
            "write_weights": ("BVN", weights),
            "read_weights": ("BRN", weights),
        },
        {"": access("ntm_access", NtmState), "linear": access("ntm_access", NtmState, words="linear")},
        options=([],),
        kept=1,
    ),
}
VARIANTS = [(name, variant) for name, operator in OPERATORS.items() for variant in operator.calls]
each_operator = pytest.mark.parametrize("name", OPERATORS)
each_variant = pytest.mark.parametrize(("name", "variant"), VARIANTS, ids=["-".join(filter(None, v)) for v in VARIANTS])

SIZES = [
    sizes(2, 1, 1, 1, 1, 1, 1),
    sizes(2, 5, 3, 1, 1, 1, 3),
    sizes(1, 16, 16, 2, 1, 4, 3),
    sizes(3, 33, 7, 3, 3, 2, 5),
    sizes(2, 64, 9, 5, 4, 9, 7),
    sizes(1, 150, 32, 4, 2, 5, 3),
    sizes(2, 17, 5, 2, 2, 3, 4),
    sizes(0, 5, 3, 2, 2, 2, 3),
]
SMALL = sizes(2, 6, 3, 2, 2, 3, 3)


def tensors(results: Any) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else list(results)


def with_gradients(call: Callable[..., Any], inputs: Sequence[Tensor], dtype: torch.dtype = F64) -> Iterator[Tensor]:
    """Results, then the gradients of the inputs for random gradients of the results."""
    results = tensors(call(*inputs))
    yield from results
    grads = [torch.randn(t.shape, generator=generator(i), dtype=F64).to(t.dtype) for i, t in enumerate(results)]
    for t, g in zip(inputs, torch.autograd.grad(results, inputs, grads, allow_unused=True), strict=True):
        yield torch.zeros_like(t) if g is None else g


def assert_as_defined(name: str, variant: str, inputs: Sequence[Tensor], tolerance: float = 1e-12) -> None:
    ours, plain = OPERATORS[name].calls[variant]
    for actual, expected in zip(with_gradients(ours, inputs), with_gradients(plain, inputs), strict=True):
        assert_same(actual, expected, tolerance * max(1, len(expected) and float(expected.detach().abs().max())))


# ---- results ----------------------------------------------------------------------------------------------------------------


@each_variant
@pytest.mark.parametrize("size", SIZES, ids=lambda s: "x".join(str(s[letter]) for letter in "BNWHVRS"))
def test_float64(name: str, variant: str, size: Sizes) -> None:
    assert_as_defined(name, variant, OPERATORS[name].inputs(size))


@each_variant
@pytest.mark.parametrize("size", SIZES[1:6:2], ids=lambda s: "x".join(str(s[letter]) for letter in "BNWHVRS"))
def test_float32(name: str, variant: str, size: Sizes) -> None:
    ours, plain = OPERATORS[name].calls[variant]
    single = OPERATORS[name].inputs(size, torch.float32)
    exact = [t.detach().double().requires_grad_() for t in single]
    for results in zip(with_gradients(ours, single), with_gradients(plain, single), with_gradients(plain, exact), strict=True):
        assert_as_accurate(*results)


@each_variant
@pytest.mark.parametrize("view", VIEWS)
def test_not_contiguous(name: str, variant: str, view: str) -> None:
    assert_as_defined(name, variant, [VIEWS[view](t.detach()).requires_grad_() for t in OPERATORS[name].inputs(SMALL)])


@each_variant
def test_expanded_inputs_and_gradients(name: str, variant: str) -> None:
    ours, plain = OPERATORS[name].calls[variant]
    inputs = [t.detach()[:1].requires_grad_() for t in OPERATORS[name].inputs(SMALL)]

    def gradients(call: Callable[..., Any]) -> Sequence[Tensor | None]:
        results = tensors(call(*(t.expand(2, *t.shape[1:]) for t in inputs)))
        return torch.autograd.grad(sum(t.sum() for t in results), inputs, allow_unused=True)

    for actual, expected in zip(gradients(ours), gradients(plain), strict=True):
        if expected is not None:
            assert actual is not None
            assert_same(actual, expected)


@each_variant
@pytest.mark.parametrize("wanted", [0, -1])
def test_gradient_of_one_result(name: str, variant: str, wanted: int) -> None:
    ours, plain = OPERATORS[name].calls[variant]
    inputs = OPERATORS[name].inputs(SMALL)
    results, expected = (torch.autograd.grad(tensors(call(*inputs))[wanted].square().sum(), inputs, allow_unused=True)
                         for call in (ours, plain))  # fmt: skip
    for t, actual, defined in zip(inputs, results, expected, strict=True):
        assert_same(torch.zeros_like(t) if actual is None else actual, torch.zeros_like(t) if defined is None else defined)


@each_variant
def test_one_input_with_a_gradient(name: str, variant: str) -> None:
    ours, _ = OPERATORS[name].calls[variant]
    inputs = OPERATORS[name].inputs(SMALL)
    all_of_them = list(with_gradients(ours, inputs))[-len(inputs) :]
    for i, expected in enumerate(all_of_them):
        some = [t.detach().requires_grad_(j == i) for j, t in enumerate(inputs)]
        results = [t for t in tensors(ours(*some)) if t.requires_grad]
        if not results:
            assert not expected.any()
            continue
        (actual,) = list(with_gradients(lambda t: ours(*some[:i], t, *some[i + 1 :]), [some[i]]))[-1:]  # noqa: B023
        assert_same(actual, expected)


@pytest.mark.parametrize("n", [40, 500])
def test_allocation_of_equally_used_locations(n: int) -> None:
    usage = torch.randint(7, (2, n), generator=generator(n)).double() / 7
    usage[1, n // 2 :] = 1
    assert_as_defined("dnc_allocation", "sort", [usage.requires_grad_(), torch.ones(2, 2, dtype=F64, requires_grad=True)])


@pytest.mark.parametrize("n", [48, 49, 96, 97, 192, 193, 3000])
def test_allocation_of_many_locations(n: int) -> None:
    assert_as_defined("dnc_allocation", "sort", OPERATORS["dnc_allocation"].inputs(sizes(2, n, 1, 1, 2, 1, 1)))


# ---- precision --------------------------------------------------------------------------------------------------------------


@each_variant
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(name: str, variant: str, dtype: torch.dtype) -> None:
    ours, _ = OPERATORS[name].calls[variant]
    low = OPERATORS[name].inputs(SMALL, dtype)
    single = [t.detach().float().requires_grad_() for t in low]
    for actual, expected in zip(tensors(ours(*low)), tensors(ours(*single)), strict=True):
        assert_identical(actual, expected.to(dtype))
    for t, g in zip(low, list(with_gradients(ours, low))[-len(low) :], strict=True):
        assert g.dtype is t.dtype
        assert g.isfinite().all()


@each_variant
def test_autocast_computes_in_float32(name: str, variant: str) -> None:
    ours, _ = OPERATORS[name].calls[variant]
    first, *others = OPERATORS[name].inputs(SMALL, torch.float32)
    first = first.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        results = tensors(ours(first, *others))
    for actual, expected in zip(results, tensors(ours(first.float(), *others)), strict=True):
        assert_identical(actual, expected)
    (g,) = torch.autograd.grad(results[-1].sum(), first, allow_unused=True)
    assert g is None or g.dtype is torch.bfloat16


# ---- autograd, compile ------------------------------------------------------------------------------------------------------


@each_variant
def test_gradcheck(name: str, variant: str) -> None:
    ours, _ = OPERATORS[name].calls[variant]
    inputs = OPERATORS[name].inputs(sizes(2, 4, 2, 2, 2, 1, 3))
    if variant == "paper":  # where usage has no gradient to the write weights
        inputs[5] = inputs[5].detach()
    assert gradcheck(ours, inputs)


@each_operator
def test_opcheck(name: str) -> None:
    operator = OPERATORS[name]
    inputs = operator.inputs(SMALL, grad=False)
    op, backward = getattr(raw, name).default, getattr(raw, f"{name}_backward").default
    results = tensors(op(*inputs, *operator.options))
    public = len(results) - operator.kept
    # What is kept has gaps, which hold anything: it cannot be compared with that of another call.
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    checks += ["test_aot_dispatch_dynamic"] * (name not in ("dnc_access", "ntm_access"))
    torch.library.opcheck(op, (*inputs, *operator.options), test_utils=checks)
    grads = [torch.ones_like(t) for t in results[:public]]
    torch.library.opcheck(backward, (*grads, *inputs, *results[public:], *operator.options))


@each_variant
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(name: str, variant: str, dynamic: bool) -> None:
    torch._dynamo.reset()
    ours, _ = OPERATORS[name].calls[variant]
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for size in (SMALL, sizes(3, 6, 3, 2, 2, 3, 3)):
        inputs = OPERATORS[name].inputs(size)
        for actual, expected in zip(with_gradients(compiled, inputs), with_gradients(ours, inputs), strict=True):
            assert_identical(actual, expected)


@each_variant
def test_without_gradient(name: str, variant: str) -> None:
    ours, _ = OPERATORS[name].calls[variant]
    inputs = OPERATORS[name].inputs(SMALL)
    with torch.no_grad():
        results = tensors(ours(*inputs))
    assert not any(t.requires_grad for t in results)
    for actual, expected in zip(results, tensors(ours(*inputs)), strict=True):
        assert_identical(actual, expected.detach())


@each_variant
def test_backward_twice(name: str, variant: str) -> None:
    ours, _ = OPERATORS[name].calls[variant]
    inputs = OPERATORS[name].inputs(SMALL)
    total = sum(t.square().sum() for t in tensors(ours(*inputs)))
    assert isinstance(total, Tensor)
    first, second = (torch.autograd.grad(total, inputs, retain_graph=True, allow_unused=True) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert_identical(a, b)


@each_operator
def test_second_derivative_raises(name: str) -> None:
    ours, _ = next(iter(OPERATORS[name].calls.values()))
    inputs = OPERATORS[name].inputs(SMALL)
    first = torch.autograd.grad(tensors(ours(*inputs))[0].square().sum(), inputs, create_graph=True, allow_unused=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        next(g for g in first if g is not None).sum().backward()


# ---- wrong arguments --------------------------------------------------------------------------------------------------------

ARGUMENTS = [(name, i, a) for name, operator in OPERATORS.items() for i, a in enumerate(operator.arguments)]


@pytest.mark.parametrize(("name", "position", "argument"), ARGUMENTS, ids=[f"{n}-{a}" for n, _, a in ARGUMENTS])
def test_wrong_arguments(name: str, position: int, argument: str) -> None:
    op = getattr(raw, name)
    inputs, options = OPERATORS[name].inputs(SMALL, grad=False), OPERATORS[name].options

    def call(wrong: Callable[[Tensor], Tensor]) -> None:
        op(*inputs[:position], wrong(inputs[position]), *inputs[position + 1 :], *options)

    with pytest.raises(RuntimeError, match=rf"{name}: {argument} must have shape \[.*\], got \[.*\]"):
        call(lambda t: t.unsqueeze(-1))
    first = next(iter(OPERATORS[name].arguments))
    expected = "must be float32 or float64, got Half" if position == 0 else f"must have the dtype of {first}, double, got Half"
    with pytest.raises(RuntimeError, match=f"(?i){name}: {argument} {expected}"):
        call(lambda t: t.half())
    with pytest.raises(RuntimeError, match=rf"{name}: .* must be on"):
        call(lambda t: t.to("meta"))


def test_messages() -> None:
    keys, strengths, memory = OPERATORS["content_weights"].inputs(SMALL, grad=False)
    with pytest.raises(RuntimeError, match=r"content_weights: strengths must have shape \[2, 2\], got \[2, 3\]"):
        ops.content_weights(keys, torch.zeros(2, 3, dtype=F64), memory)
    with pytest.raises(RuntimeError, match=r"content_weights: keys must have shape \[B, H, W\], got \[2, 3\]"):
        ops.content_weights(keys[:, 0], strengths, memory)
    with pytest.raises(
        RuntimeError, match=r"content_weights: memory must have at least 1 of each but samples, got \[2, 0, 3\]"
    ):
        ops.content_weights(keys, strengths, memory[:, :0])
    content, gates, shifts, sharpness, previous = OPERATORS["ntm_location"].inputs(SMALL, grad=False)
    with pytest.raises(RuntimeError, match="ntm_location: shifts must have at least 1 of each but samples"):
        ops.ntm_location(content, gates, shifts[..., :0], sharpness, previous)
    with pytest.raises(ValueError, match="dnc_allocation: temperature must be positive, got 0"):
        ops.dnc_allocation(memory[..., 0], gates, mode="softmax", temperature=0)
    kept = torch.zeros(2, 2, memory.size(1), dtype=memory.dtype, device=memory.device)
    with pytest.raises(RuntimeError, match="dnc_allocation_backward: temperature must not be negative, got -1"):
        torch.ops.routing_ext.dnc_allocation_backward(kept, None, memory[..., 0], gates, kept, -1.0)
    for name, elements in (("dnc_access", SMALL["D"]), ("ntm_access", SMALL["T"])):
        ours, _ = next(iter(OPERATORS[name].calls.values()))
        interface, *state = OPERATORS[name].inputs(SMALL, grad=False)
        with pytest.raises(RuntimeError, match=f"{name}: interface must have {elements} elements"):
            ours(torch.cat([interface, interface[:, :1]], 1), *state)
