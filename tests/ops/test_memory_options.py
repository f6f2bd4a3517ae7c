"""The options of a DNC's step, and lengths and resets of sequences, against their definitions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers import assert_as_accurate, assert_same, generator, normal
from torch import Tensor
from torch.autograd import gradcheck

from routing_ext import ops, reference
from routing_ext._memory_options import DncOptions, numbers
from routing_ext.memory import DncState, NtmState
from routing_ext.ops.memory_step import MemoryRun, Network, pack_weights

F64 = torch.float64
OPTIONS: dict[str, dict[str, Any]] = {
    "paper": {"usage": "paper", "strengths": "oneplus", "words": "linear"},
    "package": {"usage": "package", "cosine": "plain"},
    "softmax": {"allocation": "softmax", "temperature": 0.2},
    "masks": {"mask_min": 0.1},
    "whole-masks": {"mask_min": 0.0, "cosine": "plain"},
    "erase-freed": {"erase_freed": True},
    "sharpen": {"sharpen_link": True},
    "published": {"mask_min": 0.1, "erase_freed": True, "sharpen_link": True, "usage": "paper", "strengths": "oneplus"},
    "unlinked": {"link": False},
    "unlinked-all": {"link": False, "mask_min": 0.2, "erase_freed": True, "allocation": "softmax", "words": "linear"},
}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
# B, N, W, V, R
SIZES = [(2, 1, 1, 1, 1), (2, 5, 3, 1, 2), (1, 16, 16, 2, 4), (3, 33, 7, 3, 5), (0, 5, 3, 2, 2), (2, 70, 18, 4, 1)]
each_size = pytest.mark.parametrize("size", SIZES, ids=str)
Size = tuple[int, int, int, int, int]


def linked(options: dict[str, Any]) -> bool:
    return bool(options.get("link", True))


def state(size: Size, hidden: int = 1, link: bool = True, dtype: torch.dtype = F64) -> DncState:
    """A state in the middle of a sequence."""
    b, n, w, v, r = size
    g = generator(n)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=g, dtype=F64)

    made = DncState(
        memory=uniform(b, n, w) - 0.5,
        usage=uniform(b, n),
        precedence=0.9 * uniform(b, v, n).softmax(-1),
        link=uniform(b, v, n, n) / n * (1 - torch.eye(n, dtype=F64)),
        write_weights=0.8 * uniform(b, v, n).softmax(-1),
        read_weights=0.9 * uniform(b, r, n).softmax(-1),
        hidden=uniform(b, hidden) - 0.5,
        cell=uniform(b, hidden) - 0.5,
        read_vectors=uniform(b, r, w) - 0.5,
    )
    if not link:
        made = made._replace(precedence=made.precedence[..., :0], link=made.link[..., :0, :0])
    return DncState(*(t.to(dtype, copy=True).requires_grad_() for t in made))


def interface(size: Size, options: dict[str, Any], dtype: torch.dtype = F64) -> Tensor:
    b, _, w, v, r = size
    width = sum(DncOptions(**options).interface(v, r, w).values())
    return (1.5 * normal(b, width, seed=width, grad=False)).to(dtype).requires_grad_()


def weights(
    size: Size, inputs: int, hidden: int, outputs: int, options: dict[str, Any], dtype: torch.dtype = F64
) -> list[Tensor]:
    _, _, w, v, r = size
    parts = DncOptions(**options).interface(v, r, w).values()
    shapes = [(4 * hidden, inputs + r * w), (4 * hidden, hidden), (4 * hidden,), (4 * hidden,)]
    shapes += [shape for part in parts for shape in ((part, hidden), (part,))]
    shapes += [(outputs, hidden + r * w), (outputs,)]
    return [(normal(*s, seed=i, grad=False) / hidden**0.5).to(dtype).requires_grad_() for i, s in enumerate(shapes)]


def with_gradients(results: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Results, and the gradients of some sum of them."""
    parts = [(t * normal(*t.shape, seed=i, grad=False).to(t.dtype)).sum() for i, t in enumerate(results)]
    grads = torch.autograd.grad(sum(parts), inputs, allow_unused=True)  # type: ignore[arg-type]
    return [*results, *(torch.zeros_like(t) if g is None else g for t, g in zip(inputs, grads, strict=True))]


def assert_agree(actual: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float = 1e-10) -> None:
    for got, want in zip(actual, expected, strict=True):
        scale = max(1.0, float(want.detach().abs().max()) if want.numel() else 0.0)
        assert_same(got / scale, want / scale, tolerance)


# ---- a step -----------------------------------------------------------------------------------------------------------------


def access(module: Any, inputs: Sequence[Tensor], options: dict[str, Any]) -> list[Tensor]:
    return list(module.dnc_access(inputs[0], DncState(*inputs[1:]), **options))


@each_option
@each_size
def test_access(size: Size, options: dict[str, Any]) -> None:
    inputs = [interface(size, options), *state(size, link=linked(options))]
    assert_agree(*(with_gradients(access(module, inputs, options), inputs) for module in (ops, reference)))


@each_option
@pytest.mark.parametrize("size", SIZES[2:4], ids=str)
def test_access_in_float32(size: Size, options: dict[str, Any]) -> None:
    single = [interface(size, options, torch.float32), *state(size, link=linked(options), dtype=torch.float32)]
    double = [t.detach().double().requires_grad_() for t in single]
    found, plain = (with_gradients(access(module, single, options), single) for module in (ops, reference))
    for results in zip(found, plain, with_gradients(access(reference, double, options), double), strict=True):
        assert_as_accurate(*results)


@each_option
@pytest.mark.parametrize("module", [ops, reference], ids=["ops", "reference"])
def test_gradcheck(module: Any, options: dict[str, Any]) -> None:
    size = (2, 4, 2, 2, 1)
    inputs = [interface(size, options), *state(size, link=linked(options))]
    if options.get("usage") == "paper":  # where usage has no gradient to them
        inputs[5] = inputs[5].detach()

    def differentiable(*leaves: Tensor) -> tuple[Tensor, ...]:
        return tuple(t for t in access(module, leaves, options) if not t.is_leaf and t.numel())

    assert gradcheck(differentiable, [t for t in inputs if t.numel()] if linked(options) else inputs)


@each_option
@pytest.mark.parametrize("value", [0.0, 1e4, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_extremes(value: float, dtype: torch.dtype, options: dict[str, Any]) -> None:
    """Great strengths, saturated gates, a memory that is all in use, or empty."""
    size = (2, 40, 5, 2, 3)
    for usage, memory in ((1.0, 1.0), (0.0, 0.0)):
        given = interface(size, options, dtype).detach().sign() * value
        before = state(size, link=linked(options), dtype=dtype)
        before = before._replace(usage=torch.full_like(before.usage, usage), memory=(before.memory * memory).detach())
        inputs = [t.detach().requires_grad_() for t in (given, *before)]
        assert all(t.isfinite().all() for t in with_gradients(access(ops, inputs, options), inputs))


@each_option
def test_what_is_given_is_not_changed(options: dict[str, Any]) -> None:
    size = (2, 16, 4, 2, 2)
    inputs = [interface(size, options), *state(size, link=linked(options))]
    before = [t.detach().clone() for t in inputs]
    with_gradients(access(ops, inputs, options), inputs)
    assert all(torch.equal(t, b) for t, b in zip(inputs, before, strict=True))


# ---- what they are for ------------------------------------------------------------------------------------------------------


def parts_of(size: Size, options: dict[str, Any], **values: float) -> Tensor:
    """An interface that is random but for these parts."""
    b, _, w, v, r = size
    sizes = DncOptions(**options).interface(v, r, w)
    given = [
        torch.full((b, n), values[name], dtype=F64) if name in values else normal(b, n, seed=n, grad=False)
        for name, n in sizes.items()
    ]
    return torch.cat(given, 1)


@pytest.mark.parametrize("module", [ops, reference], ids=["ops", "reference"])
def test_what_a_mask_hides_does_not_matter(module: Any) -> None:
    size, options = (2, 9, 4, 1, 1), {"mask_min": 0.0, "link": False}
    given = parts_of(size, options)
    masks = torch.tensor([1e3, 1e3, -1e3, -1e3], dtype=F64)
    given[:, -8:-4] = given[:, -4:] = masks
    before = DncState(*(t.detach() for t in state(size, link=False)))
    noise = torch.cat([torch.zeros(2, 9, 2, dtype=F64), normal(2, 9, 2, seed=5, grad=False)], 2)
    first, second = (
        module.dnc_access(given, before._replace(memory=m), **options) for m in (before.memory, before.memory + noise)
    )
    torch.testing.assert_close(first.write_weights, second.write_weights)
    unmasked = module.dnc_access(given[:, :-8], before._replace(memory=before.memory + noise), link=False)
    assert (unmasked.write_weights - first.write_weights).abs().max() > 1e-3


@pytest.mark.parametrize("module", [ops, reference], ids=["ops", "reference"])
def test_a_freed_location_is_empty(module: Any) -> None:
    size, options = (1, 6, 3, 1, 1), {"erase_freed": True}
    before = DncState(*(t.detach() for t in state(size)))
    before = before._replace(read_weights=torch.eye(6, dtype=F64)[2].view(1, 1, 6))
    given = parts_of(size, options, free_gates=1e3, write_gates=-1e3)
    memory = module.dnc_access(given, before, **options).memory
    assert memory[0, 2].abs().max() < 1e-300
    kept = [0, 1, 3, 4, 5]
    torch.testing.assert_close(memory[:, kept], before.memory[:, kept])


@pytest.mark.parametrize("module", [ops, reference], ids=["ops", "reference"])
def test_sharpened_reads_along_the_link(module: Any) -> None:
    size, options = (1, 6, 3, 1, 1), {"sharpen_link": True}
    before = DncState(*(t.detach() for t in state(size)))
    given = parts_of(size, options, write_gates=-1e3, sharpness=60.0)
    given[:, -5:-2] = torch.tensor([-1e3, 1e3, -1e3], dtype=F64)  # modes: forward only
    forward = (before.link[0, 0] @ before.read_weights[0, 0]) + 1e-6
    expected = forward.pow(61) / forward.pow(61).sum()
    torch.testing.assert_close(module.dnc_access(given, before, **options).read_weights[0, 0], expected)


@pytest.mark.parametrize("module", [ops, reference], ids=["ops", "reference"])
def test_without_a_link_heads_read_by_content(module: Any) -> None:
    size = (2, 9, 4, 2, 3)
    without, before = state(size, link=False), state(size)
    given = parts_of(size, {}, modes=-1e3)
    modes = given[:, -15:].view(2, 3, 5)
    modes[..., -1] = 1e3  # content only
    for ours, theirs in zip(
        module.dnc_access(given[:, :-15], without, link=False), module.dnc_access(given, before), strict=True
    ):
        if ours.numel():
            torch.testing.assert_close(ours, theirs)


# ---- sequences --------------------------------------------------------------------------------------------------------------

SEQUENCE = (3, 11, 5, 2, 3)


def check_sequence(options: dict[str, Any], given: bool, steps: int = 7, size: Size = SEQUENCE, **more: Any) -> None:
    of_step = {name: value for name, value in options.items() if name in DncOptions._fields}
    x, w = normal(steps, size[0], 2, seed=0), weights(size, 2, 9, 4, of_step)
    before = state(size, 9, linked(options))
    if not given:
        zeros = DncState(*(torch.zeros_like(t, requires_grad=False) for t in before))
        before = (
            zeros
            if options.get("initial") == "zeros"
            else DncState.initial(dict(zip("BNWVR", size, strict=True)) | {"H": 9}, F64)
        )
        before = before if linked(options) else before._replace(precedence=zeros.precedence, link=zeros.link)
    inputs = [x, *w, *(before if given else ())]

    y, final = ops.dnc_sequence(x, w, before if given else None, num_locations=size[1], **options, **more)
    expected, expected_final = reference.dnc_sequence(x, w, before, **options)
    assert [t.shape for t in final] == [t.shape for t in expected_final]
    # Locations that were never written are alike: which of them is used first is a matter of rounding.
    states = (final, expected_final) if given else ((), ())
    assert_agree(with_gradients([y, *states[0]], inputs), with_gradients([expected, *states[1]], inputs))


@each_option
@pytest.mark.parametrize("given", [True, False], ids=["state", "no-state"])
def test_sequence(given: bool, options: dict[str, Any]) -> None:
    check_sequence(options, given)
    check_sequence(options, given, link_every=3)


@pytest.mark.parametrize("given", [True, False], ids=["state", "no-state"])
@pytest.mark.parametrize("options", [{"output": "linear"}, {"initial": "zeros"}], ids=str)
def test_options_of_a_sequence(given: bool, options: dict[str, Any]) -> None:
    check_sequence(options, given)


@each_option
def test_step_by_step(options: dict[str, Any]) -> None:
    size, steps = SEQUENCE, 5
    b, n, width, v, r = size
    x, w, before = normal(steps, b, 2, seed=0), weights(size, 2, 9, 4, options), state(size, 9, linked(options))
    sizes = {"B": b, "I": 2, "H": 9, "O": 4, "N": n, "W": width, "V": v, "R": r, "S": 0}
    network = Network("dnc", numbers(DncOptions(**options)), sizes, F64, x.device, 20.0)
    run = MemoryRun(network, pack_weights(network, w), before)
    y = torch.cat([run.step(x_t, w) for x_t in x])
    inputs = [x, *w, *before]
    expected, final = reference.dnc_sequence(x, w, before, **options)
    assert_agree(with_gradients([y, *run.state()], inputs), with_gradients([expected, *final], inputs))


@each_option
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool, options: dict[str, Any]) -> None:
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=dynamic)
    def compiled(x: Tensor, w: list[Tensor], before: DncState, lengths: Tensor) -> tuple[Tensor, DncState]:
        return ops.dnc_sequence(x, w, before, lengths=lengths, **options)

    for steps in (3, 4):
        x, w, before = normal(steps, 3, 2, seed=0), weights(SEQUENCE, 2, 9, 4, options), state(SEQUENCE, 9, linked(options))
        lengths = torch.tensor([2, steps, 0])
        inputs = [x, *w, *before]
        y, final = compiled(x, w, before, lengths)
        expected, expected_final = reference.dnc_sequence(x, w, before, lengths=lengths, **options)
        assert_agree(with_gradients([y, *final], inputs), with_gradients([expected, *expected_final], inputs))


# ---- lengths and resets -----------------------------------------------------------------------------------------------------

LENGTHS = {"none": None, "mixed": [3, 7, 0, 7, 1], "sorted": [7, 5, 5, 2, 0], "short": [2, 4, 4, 1, 3], "zero": [0] * 5}
RESETS = {"none": None, "some": 0.2, "all": 1.0, "first": 0.0}
Case = dict[str, Any]


def masks(lengths: list[int] | None, resets: float | None, steps: int = 7, memory: Tensor | None = None) -> dict[str, Tensor]:
    given = {} if memory is None else {"reset_memory": memory}
    if lengths is not None:
        given["lengths"] = torch.tensor(lengths)
    if resets is not None:
        given["resets"] = torch.rand(steps, 5, generator=generator(1)) < resets
        given["resets"][0] |= resets == 0
    return given


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("resets", RESETS.values(), ids=RESETS)
@pytest.mark.parametrize("link_every", [1, 2, 3, 10])
@pytest.mark.parametrize("given", [True, False], ids=["state", "no-state"])
def test_lengths_and_resets(lengths: list[int] | None, resets: float | None, link_every: int, given: bool) -> None:
    check_sequence(dict(masks(lengths, resets)), given, size=(5, 11, 5, 2, 3), link_every=link_every)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("resets", RESETS.values(), ids=RESETS)
@pytest.mark.parametrize("options", [{"link": False}, {"initial": "zeros"}, {"output": "linear", "mask_min": 0.1}], ids=str)
def test_lengths_and_resets_with_options(lengths: list[int] | None, resets: float | None, options: dict[str, Any]) -> None:
    check_sequence({**options, **masks(lengths, resets)}, True, size=(5, 11, 5, 2, 3))


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("resets", RESETS.values(), ids=RESETS)
def test_lengths_and_resets_of_an_ntm(lengths: list[int] | None, resets: float | None) -> None:
    h, r, w, v = 9, 2, 4, 1
    before = NtmState(*(getattr(state((5, 8, w, v, r), h), field) for field in NtmState._fields))
    parts = [v * w, v, v, 3 * v, v, v * w, v * w, r * w, r, r, 3 * r, r]
    shapes = [(4 * h, 2 + r * w), (4 * h, h), (4 * h,), (4 * h,)]
    shapes += [shape for part in parts for shape in ((part, h), (part,))] + [(3, h + r * w), (3,)]
    ws = [normal(*s, seed=i) for i, s in enumerate(shapes)]
    x = normal(7, 5, 2, seed=0)
    memory = normal(5, 8, w, seed=3)
    inputs = [x, *ws, *before, memory]
    given = {"output": "linear", "words": "linear", **masks(lengths, resets, memory=memory)}
    y, final = ops.ntm_sequence(x, ws, before, **given)
    expected, expected_final = reference.ntm_sequence(x, ws, before, **given)
    assert_agree(with_gradients([y, *final], inputs), with_gradients([expected, *expected_final], inputs))


@pytest.mark.parametrize("keep", [True, False], ids=["grad", "no-grad"])
def test_samples_with_lengths_are_those_of_sequences_of_their_own(keep: bool) -> None:
    size: Size = (5, 11, 5, 2, 3)
    x, w, before = normal(7, 5, 2, seed=0), weights(size, 2, 9, 4, {}), state(size, 9)
    lengths = torch.tensor([3, 7, 0, 5, 1])
    with torch.set_grad_enabled(keep):
        y, final = ops.dnc_sequence(x, w, before, lengths=lengths)
        for b, n in enumerate(lengths.tolist()):
            own_y, own = ops.dnc_sequence(x[:n, b : b + 1], w, DncState(*(t[b : b + 1] for t in before)))
            torch.testing.assert_close(y[:n, b : b + 1], own_y)
            assert not y[n:, b].any()
            for got, want in zip(final, own, strict=True):
                torch.testing.assert_close(got[b : b + 1], want)


def test_what_is_behind_the_end_does_not_matter() -> None:
    x, w = normal(7, 5, 2, seed=0, grad=False), weights((5, 11, 5, 2, 3), 2, 9, 4, {})
    lengths = torch.tensor([3, 7, 0, 5, 1])
    padding = torch.arange(7).unsqueeze(1) >= lengths
    x[padding] = torch.nan
    x.requires_grad_()
    y, _ = ops.dnc_sequence(x, w, num_locations=11, lengths=lengths)
    grads = torch.autograd.grad(y.sum(), [x, *w])
    assert all(t.isfinite().all() for t in (y, *grads))
    assert not grads[0][padding].any()


@pytest.mark.parametrize("size", [(7, 64, 8, 1, 2), (2, 260, 4, 2, 1)], ids=str)
def test_number_of_threads_with_lengths(size: Size, cpu_kernels: None) -> None:
    x, w, before = normal(6, size[0], 2, seed=0), weights(size, 2, 9, 4, {}), state(size, 9)
    lengths = torch.randint(7, (size[0],), generator=generator(0))
    resets = torch.rand(6, size[0], generator=generator(1)) < 0.2
    threads, outcomes = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            y, final = ops.dnc_sequence(x, w, before, lengths=lengths, resets=resets, link_every=2)
            torch.set_num_threads(6 - count)
            outcomes.append(with_gradients([y, *final], [x, *w, *before]))
    finally:
        torch.set_num_threads(threads)
    for other in outcomes[1:]:
        assert_agree(other, outcomes[0], 1e-11)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("resets", RESETS.values(), ids=RESETS)
def test_memory_after_resets(lengths: list[int] | None, resets: float | None) -> None:
    size: Size = (5, 11, 5, 2, 3)
    x, w, before, memory = normal(7, 5, 2, seed=0), weights(size, 2, 9, 4, {}), state(size, 9), normal(11, 5, seed=3)
    given = {"initial": "zeros", **masks(lengths, resets, memory=memory.expand(5, 11, 5))}
    inputs = [x, *w, *before, memory]
    y, final = ops.dnc_sequence(x, w, before, link_every=3, **given)
    expected, expected_final = reference.dnc_sequence(x, w, before, **given)
    assert_agree(with_gradients([y, *final], inputs), with_gradients([expected, *expected_final], inputs))


def test_resets_cut_the_gradient() -> None:
    size: Size = (2, 11, 5, 2, 3)
    x, w, before = normal(6, 2, 2, seed=0), weights(size, 2, 9, 4, {}), state(size, 9)
    resets = torch.zeros(6, 2, dtype=torch.bool)
    resets[3, 1] = True
    y, _ = ops.dnc_sequence(x, w, before, resets=resets)
    of_x, of_memory = torch.autograd.grad(y[4:].sum(), [x, before.memory])
    assert of_x[:3, 0].any()
    assert not of_x[:3, 1].any()
    assert of_x[3:, 1].any()
    assert of_memory[0].any()
    assert not of_memory[1].any()


# ---- parts of a network -----------------------------------------------------------------------------------------------------


@each_option
@pytest.mark.parametrize("lengths", [None, [3, 7, 0, 5, 1]], ids=["all", "lengths"])
def test_without_an_output_layer(options: dict[str, Any], lengths: list[int] | None) -> None:
    size: Size = (5, 11, 5, 2, 3)
    x, w, before = normal(7, 5, 2, seed=0), weights(size, 2, 9, 4, options)[:-2], state(size, 9, linked(options))
    inputs, given = [x, *w, *before], {**options, **masks(lengths, None)}
    y, final = ops.dnc_sequence(x, w, before, **given)
    assert y.shape == (7, 5, 9 + 15)
    expected, expected_final = reference.dnc_sequence(x, w, before, **given)
    assert_agree(with_gradients([y, *final], inputs), with_gradients([expected, *expected_final], inputs))


@each_option
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("resets", [None, 0.2], ids=["no-resets", "resets"])
def test_memory_alone(options: dict[str, Any], lengths: list[int] | None, resets: float | None) -> None:
    size: Size = (5, 11, 5, 2, 3)
    interfaces = torch.stack([interface(size, options).detach() * (1 + t / 7) for t in range(7)]).requires_grad_()
    before, memory = state(size, 9, linked(options)), normal(5, 11, 5, seed=3)
    inputs, given = [interfaces, *before, memory], {**options, **masks(lengths, resets, memory=memory)}
    reads, final = ops.dnc_access_sequence(interfaces, before, link_every=2, **given)
    expected, expected_final = reference.dnc_access_sequence(interfaces, before, **given)
    assert final.hidden is before.hidden
    assert final.cell is before.cell
    assert_agree(with_gradients([reads, *final], inputs), with_gradients([expected, *expected_final], inputs))


def test_memory_alone_is_the_access_step_by_step() -> None:
    size: Size = (3, 20, 6, 1, 2)
    interfaces, before = torch.stack([interface(size, {}), -interface(size, {})]), state(size, 1)
    reads, final = ops.dnc_access_sequence(interfaces, before)
    first = ops.dnc_access(interfaces[0], before)
    second = ops.dnc_access(interfaces[1], first)
    torch.testing.assert_close(reads, torch.stack([first.read_vectors, second.read_vectors]))
    torch.testing.assert_close(tuple(final), tuple(second))


@pytest.mark.parametrize("n", [16, 11])
@pytest.mark.parametrize("initial", ["reference", "zeros"])
@pytest.mark.parametrize("given", ["memory", "hidden", "memory usage read_vectors", "link", "precedence link"])
def test_parts_of_a_state(given: str, initial: str, n: int) -> None:
    size: Size = (3, n, 5, 2, 3)
    x, w, whole = normal(4, 3, 2, seed=0), weights(size, 2, 9, 4, {}), state(size, 9)
    parts = {name: t for name, t in whole._asdict().items() if name in given.split()}
    zeros = DncState(*(torch.zeros_like(t, requires_grad=False) for t in whole))
    sizes = dict(zip("BNWVR", size, strict=True)) | {"H": 9}
    default = zeros if initial == "zeros" else DncState.initial(sizes, F64)
    before: Any = DncState(*(parts.get(name) for name in DncState._fields))  # type: ignore[arg-type]
    y, _ = ops.dnc_sequence(x, w, before, num_locations=n, initial=initial)
    expected, _ = reference.dnc_sequence(x, w, default._replace(**parts), initial=initial)
    inputs = [x, *w, *parts.values()]
    assert_agree(with_gradients([y], inputs), with_gradients([expected], inputs))


def test_a_precedence_needs_its_link() -> None:
    size: Size = (3, 11, 5, 2, 3)
    before: Any = state(size, 9)._replace(link=None)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="memory_sequence: state must have the link that its precedence belongs to"):
        ops.dnc_sequence(normal(4, 3, 2, seed=0), weights(size, 2, 9, 4, {}), before)


def test_compile_once_for_all_lengths_of_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where links are not all kept."""
    monkeypatch.setattr("routing_ext.ops.memory_sequence._FEW_LINK_BYTES", 1000)
    torch._dynamo.reset()
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    size: Size = (3, 11, 5, 2, 3)
    w, before = weights(size, 2, 9, 4, {}), state(size, 9)
    compiled = torch.compile(lambda x: ops.dnc_sequence(x, w, before)[0], fullgraph=True, backend=backend, dynamic=True)
    for steps in (7, 10, 26, 4):
        x = normal(steps, 3, 2, seed=0)
        torch.testing.assert_close(compiled(x), ops.dnc_sequence(x, w, before)[0])
    assert len(graphs) == 1


# ---- wrong use --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"usage": "nature"}, ValueError, 'usage must be "reference", "paper" or "package", got \'nature\''),
        ({"strengths": "exp"}, ValueError, 'strengths must be "softplus" or "oneplus", got \'exp\''),
        ({"words": "relu"}, ValueError, 'words must be "tanh" or "linear", got \'relu\''),
        ({"cosine": "dot"}, ValueError, 'cosine must be "reference" or "plain", got \'dot\''),
        ({"mask_min": 1.0}, ValueError, r"mask_min must be in \[0, 1\), got 1.0"),
        ({"sharpen_link": True, "link": False}, ValueError, "sharpen_link needs a link, got link=False"),
        ({"masks": True}, TypeError, r"options are usage, .*, link; got masks"),
        ({"link": False}, RuntimeError, "precedence must have shape|link must be empty"),
        ({"sharpen_link": True}, RuntimeError, "interface must have 66 elements, got 54"),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    size = (2, 6, 3, 2, 3)
    with pytest.raises(error, match=f"^dnc_access: {message}"):
        ops.dnc_access(interface(size, {}), state(size), **options)


@pytest.mark.parametrize(
    ("masks", "error", "message"),
    [
        ({"lengths": torch.tensor([1, 2])}, RuntimeError, r"memory_sequence: lengths must be int64 of shape \[3\]"),
        ({"lengths": torch.ones(3)}, RuntimeError, r"memory_sequence: lengths must be int64 of shape \[3\], got Float"),
        ({"resets": torch.ones(3, 4) > 0}, RuntimeError, r"memory_sequence: resets must be bool of shape \[4, 3\]"),
        ({"resets": torch.ones(4, 3)}, RuntimeError, "memory_sequence: resets must be bool of shape .*, got Float"),
        ({"output": "tanh"}, ValueError, 'dnc_sequence: output must be "sigmoid" or "linear", got \'tanh\''),
        ({"initial": "ones"}, ValueError, 'dnc_sequence: initial must be "reference" or "zeros", got \'ones\''),
    ],
)
def test_wrong_masks(masks: dict[str, Any], error: type[Exception], message: str) -> None:
    size = (3, 6, 3, 1, 1)
    with pytest.raises(error, match=f"^{message}"):
        ops.dnc_sequence(normal(4, 3, 2, seed=0), weights(size, 2, 9, 4, {}), num_locations=6, **masks)


@pytest.mark.parametrize("length", [5, -1])
def test_lengths_out_of_range(length: int, cpu_kernels: None) -> None:
    with pytest.raises(RuntimeError, match=f"^memory_sequence: lengths must be from 0 to 4, got {length}"):
        ops.dnc_sequence(
            normal(4, 3, 2, seed=0),
            weights((3, 6, 3, 1, 1), 2, 9, 4, {}),
            num_locations=6,
            lengths=torch.tensor([1, length, 0]),
        )


def test_lengths_out_of_range_on_cuda(cuda_kernels: None) -> None:
    """The host does not look at them: they are taken for the nearest that there can be."""
    x, w = normal(4, 3, 2, seed=0), weights((3, 6, 3, 1, 1), 2, 9, 4, {})
    runs = []
    for lengths in ([9, -1, 2], [4, 0, 2]):
        y, final = ops.dnc_sequence(x, w, num_locations=6, lengths=torch.tensor(lengths))
        runs.append(with_gradients([y, *final], [x, *w]))
    for got, want in zip(*runs, strict=True):
        assert torch.equal(got, want)


def test_no_numbers_where_nothing_differs() -> None:
    assert numbers() == numbers(DncOptions()) == []
    assert len(numbers(DncOptions(link=False))) == len(numbers(output="linear")) == len(numbers(initial="zeros"))
