"""What the operators of memory networks must hold, whoever computes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from doors import door
from helpers import generator
from torch import Tensor
from torch.autograd import gradcheck

from routing_ext import ops, reference
from routing_ext.memory import DncState, NtmState

Operator = Callable[..., Any]
F64 = torch.float64


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=generator(seed), dtype=F64)


def signed(*shape: int, seed: int = 0) -> Tensor:
    return 2 * uniform(*shape, seed=seed) - 1


def weights(*shape: int, total: float = 1.0, seed: int = 0) -> Tensor:
    t = uniform(*shape, seed=seed)
    return total * t / t.sum(-1, keepdim=True)


def one_hot(n: int, index: int) -> Tensor:
    return torch.eye(n, dtype=F64)[index]


def tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def assert_finite_with_gradients(operator: Operator, *inputs: Tensor) -> None:
    """Results, and the gradients of each input, if the results have ordinary ones."""
    inputs = tuple(t.requires_grad_() for t in inputs)
    results = tensors(operator(*inputs))
    assert all(t.isfinite().all() for t in results)
    total = sum((signed(*t.shape, seed=i).to(t.dtype) * t).sum() for i, t in enumerate(results))
    grads = torch.autograd.grad(total, inputs, allow_unused=True)
    assert all(g is None or g.isfinite().all() for g in grads)


# ---- content ----------------------------------------------------------------------------------------------------------------


@door("content_weights")
def test_content_weights(content_weights: Operator) -> None:
    keys, strengths, memory = signed(5, 4, 2), 3 * uniform(5, 4), signed(5, 10, 2, seed=1)
    similarity = torch.cosine_similarity(keys.unsqueeze(2), memory.unsqueeze(1), -1)
    expected = torch.softmax(similarity * strengths.unsqueeze(-1), -1)
    torch.testing.assert_close(content_weights(keys, strengths, memory), expected, rtol=0, atol=1e-3)


@door("content_weights")
def test_content_weights_of_zero_rows_and_keys_are_finite(content_weights: Operator) -> None:
    memory = torch.zeros(2, 6, 3, dtype=F64)
    memory[:, 0] = 1
    keys = torch.stack([torch.zeros(2, 3, dtype=F64), torch.ones(2, 3, dtype=F64)], 1)
    assert_finite_with_gradients(content_weights, keys, torch.ones(2, 2, dtype=F64), memory)
    found = content_weights(keys, torch.ones(2, 2, dtype=F64), memory)
    torch.testing.assert_close(found[:, 0], torch.full((2, 6), 1 / 6, dtype=F64))


@door("content_weights")
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_content_weights_of_great_strength_find_one_location(content_weights: Operator, dtype: torch.dtype) -> None:
    memory = signed(3, 9, 4).to(dtype)
    keys = memory[:, [5, 2]].clone()
    found = content_weights(keys, torch.full((3, 2), 1e4, dtype=dtype), memory)
    torch.testing.assert_close(found, torch.eye(9, dtype=dtype)[[5, 2]].expand(3, 2, 9))
    assert_finite_with_gradients(content_weights, keys, torch.full((3, 2), 1e4, dtype=dtype), memory)


# ---- usage and allocation ---------------------------------------------------------------------------------------------------


@door("dnc_usage")
def test_usage(dnc_usage: Operator) -> None:
    usage, written, free, read = uniform(5, 11), weights(5, 7, 11), uniform(5, 3), weights(5, 3, 11, seed=1)
    written[1, 2, 3], read[1, :, 3] = 1, 0  # a full write, not read
    read[2, 0, 4], free[2, 0] = 1, 1  # a full read that frees
    new = dnc_usage(usage, written, free, read)
    assert 0 <= new.min()
    assert new.max() <= 1
    assert new[1, 3] == 1
    assert new[2, 4] == 0


@door("dnc_usage")
def test_usage_without_gradient_to_the_write_weights(dnc_usage: Operator) -> None:
    usage, written, free, read = (
        t.requires_grad_() for t in (uniform(2, 5), weights(2, 2, 5), uniform(2, 3), weights(2, 3, 5, seed=1))
    )
    total = dnc_usage(usage, written, free, read, detach_write_weights=True).sum()
    grads = torch.autograd.grad(total, [usage, written, free, read], allow_unused=True)
    expected = torch.autograd.grad(dnc_usage(usage, written, free, read).sum(), [usage, free, read])
    assert grads[1] is None or not grads[1].any()
    torch.testing.assert_close([grads[0], *grads[2:]], list(expected))


@door("dnc_allocation")
@pytest.mark.parametrize("mode", ["sort", "softmax"])
def test_allocation_prefers_what_is_least_used(dnc_allocation: Operator, mode: str) -> None:
    usage = uniform(7, 13)
    allocation, _ = dnc_allocation(usage, uniform(7, 1, seed=1), mode=mode, temperature=0.01)
    assert allocation.shape == (7, 1, 13)
    assert torch.equal(allocation[:, 0].argmax(-1), usage.argmin(-1))
    assert torch.equal(allocation[:, 0].argmin(-1), usage.argmax(-1))
    torch.testing.assert_close(allocation.sum(-1), torch.ones(7, 1, dtype=F64), rtol=0, atol=0.01)


@door("dnc_allocation")
def test_allocation_location_by_location(dnc_allocation: Operator) -> None:
    usage = uniform(2, 6)
    u = 1e-6 + (1 - 1e-6) * usage
    expected = torch.stack([torch.stack([(1 - u_i) * row[row < u_i].prod() for u_i in row]) for row in u])
    torch.testing.assert_close(dnc_allocation(usage, uniform(2, 1))[0][:, 0], expected)


@door("dnc_allocation")
@pytest.mark.parametrize("n", [1, 2, 33, 300])
def test_equally_used_locations_are_allocated_in_their_order(dnc_allocation: Operator, n: int) -> None:
    allocation, _ = dnc_allocation(torch.full((2, n), 0.5, dtype=F64), torch.ones(2, 1, dtype=F64))
    expected = (0.5 ** torch.arange(1, n + 1, dtype=F64)).expand(2, 1, n)
    torch.testing.assert_close(allocation, expected, rtol=1e-3, atol=0)


@door("dnc_allocation")
def test_heads_do_not_allocate_the_same_location(dnc_allocation: Operator) -> None:
    usage, gates = uniform(3, 23), uniform(3, 5, seed=1)
    gates[0] = torch.tensor([1.0, 0, 1, 0, 0])  # a closed gate uses nothing
    usage[1] = 0.1 + 0.9 * usage[1]
    usage[1, 4], usage[1, 3] = 0, 1e-4
    gates[1, :2] = 1
    allocation, used = dnc_allocation(usage, gates)
    assert 0 <= allocation.min()
    assert allocation.max() <= 1
    assert (allocation[0, 0] - allocation[0, 1]).abs().max() > 0.1
    assert torch.equal(allocation[0, 1], allocation[0, 2])
    assert (allocation[0, 2] - allocation[0, 3]).abs().max() > 0.1
    assert torch.equal(allocation[0, 3], allocation[0, 4])
    torch.testing.assert_close(allocation[1, 0], one_hot(23, 4), rtol=0, atol=1e-3)
    torch.testing.assert_close(allocation[1, 1], one_hot(23, 3), rtol=0, atol=1e-3)
    assert (used >= usage).all()
    assert (used <= 1).all()


@door("dnc_allocation")
def test_usage_grows_by_what_is_allocated(dnc_allocation: Operator) -> None:
    usage, gates = uniform(4, 9), uniform(4, 3, seed=1)
    before = usage.clone()
    allocation, used = dnc_allocation(usage, gates)
    assert torch.equal(usage, before)
    for gate, a in zip(gates.unbind(1), allocation.unbind(1), strict=True):
        usage = usage + (1 - usage) * gate.unsqueeze(-1) * a
    torch.testing.assert_close(used, usage)


@door("dnc_allocation")
def test_allocation_by_softmax(dnc_allocation: Operator) -> None:
    usage = uniform(4, 9)
    allocation, _ = dnc_allocation(usage, uniform(4, 1), mode="softmax", temperature=0.25)
    torch.testing.assert_close(allocation[:, 0], torch.softmax(-4 * usage, -1))


@door("dnc_allocation")
@pytest.mark.parametrize("mode", ["sort", "softmax"])
@pytest.mark.parametrize("level", [0.0, 1.0])
def test_allocation_of_an_empty_or_a_full_memory(dnc_allocation: Operator, mode: str, level: float) -> None:
    usage, gates = torch.full((2, 40), level, dtype=F64), torch.ones(2, 3, dtype=F64)
    assert_finite_with_gradients(lambda u, g: dnc_allocation(u, g, mode=mode), usage, gates)
    if mode == "sort" and level == 1:
        assert dnc_allocation(usage, gates)[0].abs().max() < 1e-9


@door("dnc_allocation")
def test_unknown_mode(dnc_allocation: Operator) -> None:
    with pytest.raises(ValueError, match=r'dnc_allocation: mode must be "sort" or "softmax", got \'topk\''):
        dnc_allocation(uniform(2, 3), uniform(2, 1), mode="topk")


# ---- link -------------------------------------------------------------------------------------------------------------------


@door("dnc_temporal_link")
def test_link(dnc_temporal_link: Operator) -> None:
    """Sample 0 writes with head 0 to location 0, then to 1; with head 1 to 3, then to 2."""
    b, v, r, n = 7, 5, 11, 4
    read = uniform(b, r, n, seed=9)
    read[0, 5], read[0, 6] = one_hot(n, 0), one_hot(n, 2)
    link, precedence = torch.zeros(b, v, n, n, dtype=F64), torch.zeros(b, v, n, dtype=F64)
    for step in range(5):
        written = weights(b, v, n, total=0.7, seed=step)
        if step >= 3:
            written[0, 0], written[0, 1] = one_hot(n, step - 3), one_hot(n, 6 - step)
        link, precedence, forward, backward = dnc_temporal_link(link, precedence, written, read)
    assert 0 <= link.min()
    assert link.max() <= 1
    assert not link.diagonal(dim1=-2, dim2=-1).any()
    assert link.sum(-1).max() <= 1 + 1e-12
    assert link.sum(-2).max() <= 1 + 1e-12
    assert torch.equal(link[0, 0, :, 0], one_hot(n, 1))
    assert torch.equal(link[0, 1, :, 3], one_hot(n, 2))
    assert forward.shape == backward.shape == (b, v, r, n)
    assert torch.equal(forward[0, 0, 5], one_hot(n, 1))  # after 0, head 0 wrote to 1
    assert torch.equal(backward[0, 1, 6], one_hot(n, 3))  # before 2, head 1 wrote to 3


@door("dnc_temporal_link")
def test_precedence(dnc_temporal_link: Operator) -> None:
    precedence, written = weights(7, 5, 3, total=0.8), weights(7, 5, 3, total=0.6, seed=1)
    written[0, 1] = 0
    written[1, 2] /= written[1, 2].sum()
    _, new, _, _ = dnc_temporal_link(torch.zeros(7, 5, 3, 3, dtype=F64), precedence, written, uniform(7, 1, 3))
    assert 0 <= new.min()
    assert new.max() <= 1
    torch.testing.assert_close(new[0, 1], precedence[0, 1])
    torch.testing.assert_close(new[1, 2], written[1, 2])


# ---- location, NTM ----------------------------------------------------------------------------------------------------------


def located(ntm_location: Operator, previous: Tensor, shift: Tensor, sharpness: float = 1.0, gate: float = 0.0) -> Tensor:
    n = previous.size(-1)
    gates, gammas = (torch.full((1, 1), value, dtype=previous.dtype) for value in (gate, sharpness))
    content = torch.full((1, 1, n), 1 / n, dtype=previous.dtype)
    result = ntm_location(content, gates, shift.view(1, 1, -1), gammas, previous.view(1, 1, n))
    assert isinstance(result, Tensor)
    return result[0, 0]


@door("ntm_location")
@pytest.mark.parametrize(
    ("size", "at", "expected"),
    [(3, 0, 4), (3, 1, 3), (3, 2, 2), (1, 0, 3), (5, 0, 0), (5, 4, 1), (2, 0, 4), (2, 1, 3), (4, 0, 0), (4, 3, 2)],
)
def test_shift_goes_around(ntm_location: Operator, size: int, at: int, expected: int) -> None:
    found = located(ntm_location, one_hot(5, 3), one_hot(size, at))
    torch.testing.assert_close(found, one_hot(5, expected))


@door("ntm_location")
@pytest.mark.parametrize("n", [1, 2])
def test_more_shifts_than_locations(ntm_location: Operator, n: int) -> None:
    shift = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25], dtype=F64)
    found = located(ntm_location, one_hot(n, 0), shift)
    expected = torch.ones(1, dtype=F64) if n == 1 else torch.tensor([0.65, 0.35], dtype=F64)
    torch.testing.assert_close(found, expected)


@door("ntm_location")
def test_gate_and_sharpness(ntm_location: Operator) -> None:
    previous, stay = weights(8), one_hot(3, 1)
    torch.testing.assert_close(located(ntm_location, previous, stay), previous)
    torch.testing.assert_close(located(ntm_location, previous, stay, gate=1.0), torch.full((8,), 1 / 8, dtype=F64))
    torch.testing.assert_close(located(ntm_location, previous, stay, 3.0), previous**3 / (previous**3).sum())


@door("ntm_location")
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("sharpness", [1.0, 30.0, 1e3])
def test_sharpening_is_finite_where_all_powers_vanish(ntm_location: Operator, dtype: torch.dtype, sharpness: float) -> None:
    n = 64
    blurred = torch.full((1, 1, n), 1 / n, dtype=dtype)
    blurred[0, 0, 7] *= 1.5
    one, gamma = torch.ones(1, 1, dtype=dtype), torch.full((1, 1), sharpness, dtype=dtype)
    for previous in (blurred, torch.zeros_like(blurred), torch.eye(n, dtype=dtype)[:1].unsqueeze(0)):
        inputs = [
            blurred.clone(),
            one * 0.25,
            torch.eye(3, dtype=dtype)[1].view(1, 1, 3).clone(),
            gamma.clone(),
            previous.clone(),
        ]
        assert_finite_with_gradients(ntm_location, *inputs)
        torch.testing.assert_close(ntm_location(*inputs).sum(-1), one)
    assert ntm_location(blurred, one, torch.eye(3, dtype=dtype)[1].view(1, 1, 3), gamma, blurred).argmax() == 7


# ---- write and read ---------------------------------------------------------------------------------------------------------


@door("memory_write")
def test_write(memory_write: Operator) -> None:
    memory, erase, add = signed(2, 6, 3), torch.ones(2, 2, 3, dtype=F64), signed(2, 2, 3, seed=1)
    where = torch.stack([one_hot(6, 1), one_hot(6, 4)]).expand(2, 2, 6).clone()
    written = memory_write(memory, where, erase, add)
    kept = [0, 2, 3, 5]
    assert torch.equal(written[:, kept], memory[:, kept])
    torch.testing.assert_close(written[:, [1, 4]], add)
    half = memory_write(memory, 0.5 * where, torch.zeros_like(erase), add)
    torch.testing.assert_close(half[:, [1, 4]], memory[:, [1, 4]] + 0.5 * add)


@door("memory_write")
def test_two_heads_that_erase_one_location(memory_write: Operator) -> None:
    memory, where = signed(1, 3, 2), one_hot(3, 2).expand(1, 2, 3).clone()
    erase = torch.tensor([[[0.5, 0.25], [0.5, 0.0]]], dtype=F64)
    written = memory_write(memory, where, erase, torch.zeros(1, 2, 2, dtype=F64))
    torch.testing.assert_close(written[0, 2], memory[0, 2] * torch.tensor([0.25, 0.75], dtype=F64))


@door("memory_read")
def test_read(memory_read: Operator) -> None:
    memory = signed(2, 6, 3)
    where = torch.stack([one_hot(6, 1), (one_hot(6, 0) + one_hot(6, 5)) / 2]).expand(2, 2, 6)
    expected = torch.stack([memory[:, 1], (memory[:, 0] + memory[:, 5]) / 2], 1)
    torch.testing.assert_close(memory_read(memory, where), expected)


# ---- whole steps ------------------------------------------------------------------------------------------------------------


def dnc_state(b: int, v: int, r: int, n: int, w: int, h: int = 1) -> DncState:
    """A state that a sequence could have led to."""
    link = uniform(b, v, n, n, seed=5) / n
    return DncState(
        memory=signed(b, n, w, seed=1),
        usage=uniform(b, n, seed=2),
        precedence=weights(b, v, n, total=0.9, seed=3),
        link=link * (1 - torch.eye(n, dtype=F64)),
        write_weights=weights(b, v, n, total=0.8, seed=4),
        read_weights=weights(b, r, n, total=0.9, seed=6),
        hidden=signed(b, h, seed=7),
        cell=signed(b, h, seed=8),
        read_vectors=signed(b, r, w, seed=9),
    )


def ntm_state(*sizes: int) -> NtmState:
    state = dnc_state(*sizes)
    return NtmState(*(getattr(state, field) for field in NtmState._fields))


def dnc_interface_size(v: int, r: int, w: int) -> int:
    return v * (3 * w + 3) + r * (w + 2 + 2 * v + 1)


def ntm_interface_size(v: int, r: int, w: int, s: int = 3) -> int:
    return v * (3 * w + 3 + s) + r * (w + 3 + s)


def sequence_weights(inputs: int, h: int, outputs: int, r: int, w: int, interface: list[int]) -> list[Tensor]:
    shapes = [(4 * h, inputs + r * w), (4 * h, h), (4 * h,), (4 * h,)]
    shapes += [shape for size in interface for shape in ((size, h), (size,))]
    shapes += [(outputs, h + r * w), (outputs,)]
    return [signed(*shape, seed=i) for i, shape in enumerate(shapes)]


@door("dnc_access")
def test_access_by_the_paper(dnc_access: Operator) -> None:
    """An allocation counts as used only as far as it will be written, only for other heads, and with a gradient only there."""
    sizes = v, r, w = 2, 2, 3
    state = dnc_state(2, v, r, 7, w)
    interface = signed(2, dnc_interface_size(*sizes))
    begin = v * w + v
    interface[:, begin : begin + v] = -100.0  # allocation gates are closed
    paper, ours = (dnc_access(interface, state, usage=usage) for usage in ("paper", "reference"))
    free = interface[:, v * (3 * w + 3) + r * w + r :][:, :r].sigmoid()
    in_use = reference.dnc_usage(state.usage, state.write_weights, free, state.read_weights)
    torch.testing.assert_close(paper.usage, in_use)
    assert (ours.usage > in_use).any()
    for field in ("memory", "link", "write_weights", "read_vectors"):  # nothing is written where it was allocated
        torch.testing.assert_close(getattr(paper, field), getattr(ours, field))
    for usage in ("paper", "reference"):
        written = state.write_weights.clone().requires_grad_()
        new = dnc_access(interface, state._replace(write_weights=written), usage=usage)
        gradient = torch.autograd.grad(new.usage.sum(), written, allow_unused=True)[0] if new.usage.requires_grad else None
        assert (gradient is not None and bool(gradient.any())) == (usage == "reference")


@door("dnc_access")
def test_unknown_usage(dnc_access: Operator) -> None:
    with pytest.raises(ValueError, match=r'dnc_access: usage must be "reference", "paper" or "package", got \'nature\''):
        dnc_access(signed(2, dnc_interface_size(1, 1, 2)), dnc_state(2, 1, 1, 3, 2), usage="nature")


EXTREMES = [0.0, 1e4, -1e4]


@door("dnc_access")
@pytest.mark.parametrize("value", EXTREMES)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("usage", ["reference", "paper"])
def test_dnc_access_under_extremes(dnc_access: Operator, value: float, dtype: torch.dtype, usage: str) -> None:
    """Great strengths, saturated gates, a memory that is all in use."""
    b, v, r, n, w = 2, 2, 3, 40, 5
    state = DncState(*(t.to(dtype) for t in dnc_state(b, v, r, n, w)._replace(usage=torch.ones(b, n, dtype=F64))))
    interface = (value * signed(b, dnc_interface_size(v, r, w)).sign()).to(dtype)
    assert_finite_with_gradients(lambda i, *s: dnc_access(i, DncState(*s), usage=usage), interface, *state)


@door("ntm_access")
@pytest.mark.parametrize("value", EXTREMES)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_ntm_access_under_extremes(ntm_access: Operator, value: float, dtype: torch.dtype) -> None:
    b, v, r, n, w = 2, 2, 3, 40, 5
    state = NtmState(*(t.to(dtype) for t in ntm_state(b, v, r, n, w)))
    interface = (value * signed(b, ntm_interface_size(v, r, w)).sign()).to(dtype)
    assert_finite_with_gradients(lambda i, *s: ntm_access(i, NtmState(*s)), interface, *state)


# ---- gradients --------------------------------------------------------------------------------------------------------------

V, R, N, W, H, INPUTS, OUTPUTS, T = 2, 1, 3, 2, 2, 1, 1, 2  # small: each input costs two runs
OF_DNC = [V * W, V, V, V, V * W, V * W, R * W, R, R, R * (2 * V + 1)]
OF_NTM = [V * W, V, V, 3 * V, V, V * W, V * W, R * W, R, R, 3 * R, R]
STATE, NTM_STATE = dnc_state(2, V, R, N, W, H), ntm_state(2, V, R, N, W, H)


def with_state(operator: Operator, kind: type[DncState] | type[NtmState], **options: Any) -> Operator:
    """The operator with flat arguments and results: first those before the state, then its fields."""
    count = len(kind._fields)

    def flat(*inputs: Any) -> list[Tensor]:
        results = operator(*inputs[:-count], kind(*inputs[-count:]), **options)
        return list(results) if isinstance(results, kind) else [results[0], *results[1]]

    return flat


def sequence_of(operator: Operator, kind: type[DncState] | type[NtmState]) -> Operator:
    flat, count = with_state(operator, kind), len(kind._fields)
    return lambda x, *inputs: flat(x, inputs[:-count], *inputs[-count:])


# An operator, how to call it, and inputs that all have a gradient.
GRADIENTS: list[tuple[str, Callable[[Operator], Operator], list[Tensor]]] = [
    ("content_weights", lambda f: f, [signed(2, R, W), uniform(2, R), STATE.memory]),
    ("dnc_usage", lambda f: f, [STATE.usage, STATE.write_weights, uniform(2, R), STATE.read_weights]),
    ("dnc_allocation", lambda f: f, [STATE.usage, uniform(2, V)]),
    ("dnc_allocation", lambda f: lambda u, g: f(u, g, mode="softmax", temperature=0.3), [STATE.usage, uniform(2, V)]),
    ("dnc_temporal_link", lambda f: f, [STATE.link, STATE.precedence, STATE.write_weights, STATE.read_weights]),
    (
        "ntm_location",
        lambda f: f,
        [weights(2, R, N), uniform(2, R), weights(2, R, 3), 1 + uniform(2, R), weights(2, R, N, seed=1)],
    ),
    ("memory_write", lambda f: f, [STATE.memory, STATE.write_weights, uniform(2, V, W), signed(2, V, W, seed=1)]),
    ("memory_read", lambda f: f, [STATE.memory, STATE.read_weights]),
    ("dnc_access", lambda f: with_state(f, DncState), [signed(2, sum(OF_DNC)), *STATE]),
    (
        "dnc_access",
        lambda f: lambda i, *s: with_state(f, DncState, usage="paper")(i, *s[:4], STATE.write_weights, *s[4:]),
        [signed(2, sum(OF_DNC)), *(t for t in STATE if t is not STATE.write_weights)],
    ),
    ("ntm_access", lambda f: with_state(f, NtmState), [signed(2, sum(OF_NTM)), *NTM_STATE]),
    (
        "dnc_sequence",
        lambda f: sequence_of(f, DncState),
        [signed(T, 2, INPUTS), *sequence_weights(INPUTS, H, OUTPUTS, R, W, OF_DNC), *STATE],
    ),
    (
        "ntm_sequence",
        lambda f: sequence_of(f, NtmState),
        [signed(T, 2, INPUTS), *sequence_weights(INPUTS, H, OUTPUTS, R, W, OF_NTM), *NTM_STATE],
    ),
]


@pytest.mark.parametrize(
    ("operator", "inputs"),
    [
        pytest.param(call(getattr(module, name)), inputs, id=f"{module.__name__.rpartition('.')[2]}-{name}-{i}")
        for module in (reference, ops)
        for i, (name, call, inputs) in enumerate(GRADIENTS)
        if hasattr(module, name)
    ],
)
def test_gradcheck(operator: Operator, inputs: list[Tensor]) -> None:
    def differentiable(*leaves: Tensor) -> tuple[Tensor, ...]:
        """The results but for those that are an input, unchanged."""
        return tuple(t for t in tensors(operator(*leaves)) if not t.is_leaf)

    assert gradcheck(differentiable, [t.clone().requires_grad_() for t in inputs])
