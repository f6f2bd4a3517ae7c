"""Sequences of memory networks in one launch: against their definition, against the same by steps, and either's backward pass
on the tape of the other. The op tests take the way that is chosen by default, which is one launch at their sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_as_accurate, generator, normal
from torch import Tensor

from routing_ext import ops, reference
from routing_ext._memory_options import DncOptions
from routing_ext.memory import DncState, NtmState

F64 = torch.float64
# T, B, I, H, O, N, W, V, R; O 0: without an output layer.
Sizes = tuple[int, int, int, int, int, int, int, int, int]
ORDINARY: Sizes = (5, 3, 2, 9, 4, 11, 5, 2, 3)
SIZES: list[Sizes] = [
    ORDINARY,
    (1, 2, 1, 1, 1, 1, 1, 1, 1),
    (1, 3, 2, 5, 0, 8, 3, 1, 2),
    (0, 3, 2, 5, 2, 9, 4, 1, 2),
    (4, 0, 2, 5, 2, 9, 4, 1, 2),
    (5, 1, 3, 6, 2, 33, 4, 3, 1),
    (2, 2, 3, 70, 2, 65, 33, 1, 5),  # more weights than shared memory holds
]
MANY: Sizes = (2, 133, 1, 2, 1, 2, 1, 1, 1)  # more samples than multiprocessors
MASKS: dict[str, tuple[bool, bool, bool]] = {  # whether there are lengths, resets and a memory with which samples begin anew
    "lengths": (True, False, False),
    "resets": (False, True, False),
    "all": (True, True, True),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "paper": {"usage": "paper", "strengths": "oneplus", "words": "linear", "link_every": 2},
    "package": {"usage": "package", "cosine": "plain", "allocation": "softmax", "temperature": 0.2},
    "published": {"mask_min": 0.1, "erase_freed": True, "sharpen_link": True, "link_every": 3},
    "unlinked": {"link": False, "initial": "zeros", "output": "linear"},
}
# Of the forward and of the backward pass: by steps, or in one launch, with so many blocks for a sample.
WAYS = [("1", "1"), ("1", "steps"), ("steps", "1"), ("2", "8"), ("4", "2"), ("8", "steps")]

each_model = pytest.mark.parametrize("model", ["dnc", "ntm"])
each_size = pytest.mark.parametrize("sizes", SIZES, ids=str)
each_way = pytest.mark.parametrize("way", WAYS, ids="-".join)


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def chosen(way: str) -> None:
        if way in ("2", "4", "8") and torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0):
            pytest.skip("needs a GPU with clusters")
        monkeypatch.setenv("ROUTING_EXT_SEQUENCE", way)

    return chosen


def inputs(
    model: str, sizes: Sizes, device: str, dtype: torch.dtype = F64, **options: Any
) -> tuple[Tensor, list[Tensor], DncState | NtmState]:
    """``x, weights, state``; the state is one in the middle of a sequence."""
    t, b, i, h, o, n, w, v, r = sizes
    of_step = DncOptions(**{name: value for name, value in options.items() if name not in ("link_every", "initial", "output")})
    ntm = [v * w, v, v, 3 * v, v, v * w, v * w, r * w, r, r, 3 * r, r]
    parts = ntm if model == "ntm" else list(of_step.interface(v, r, w).values())
    shapes = [(4 * h, i + r * w), (4 * h, h), (4 * h,), (4 * h,), *(s for part in parts for s in ((part, h), (part,)))]
    shapes += [(o, h + r * w), (o,)] if o > 0 else []
    weights = [normal(*s, seed=k, grad=False) / h**0.5 for k, s in enumerate(shapes)]
    g = generator(1)
    linked = n if of_step.link else 0
    fields = {
        "memory": torch.rand(b, n, w, generator=g, dtype=F64) - 0.5,
        "usage": torch.rand(b, n, generator=g, dtype=F64),
        "precedence": 0.9 * torch.rand(b, v, linked, generator=g, dtype=F64).softmax(-1),
        "link": torch.rand(b, v, linked, linked, generator=g, dtype=F64) / n * (1 - torch.eye(linked, dtype=F64)),
        "write_weights": 0.8 * torch.rand(b, v, n, generator=g, dtype=F64).softmax(-1),
        "read_weights": 0.9 * torch.rand(b, r, n, generator=g, dtype=F64).softmax(-1),
        "hidden": torch.rand(b, h, generator=g, dtype=F64) - 0.5,
        "cell": torch.rand(b, h, generator=g, dtype=F64) - 0.5,
        "read_vectors": torch.rand(b, r, w, generator=g, dtype=F64) - 0.5,
    }

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype).requires_grad_()

    kind = DncState if model == "dnc" else NtmState
    x = leaf(normal(t, b, i, seed=0, grad=False))
    return x, [leaf(each) for each in weights], kind(*(leaf(fields[name]) for name in kind._fields))


def masks(sizes: Sizes, device: str, lengths: bool, resets: bool, memory: bool) -> dict[str, Tensor]:
    t, b, *_, n, w, _, _ = sizes
    g = generator(2)
    found = {}
    if lengths:
        found["lengths"] = torch.randint(t + 1, (b,), generator=g)
    if resets:
        found["resets"] = torch.rand(t, b, generator=g) < 0.4
    if memory:
        found["reset_memory"] = normal(b, n, w, seed=3, grad=False)
    return {name: each.to(device).requires_grad_(name == "reset_memory") for name, each in found.items()}


def run(
    model: str,
    given: tuple[Tensor, list[Tensor], DncState | NtmState],
    before_backward: Callable[[], None] = lambda: None,
    module: Any = ops,
    **options: Any,
) -> list[Tensor]:
    """Outputs, the final state, and the gradients of some sum of them."""
    x, weights, state = given
    y, final = getattr(module, f"{model}_sequence")(x, weights, state, **options)
    results, leaves = [y, *final], [x, *weights, *state]
    if "reset_memory" in options:
        leaves.append(options["reset_memory"])
    loss = sum((each * normal(*each.shape, seed=k, grad=False).to(each)).sum() for k, each in enumerate(results))
    before_backward()
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)  # type: ignore[arg-type]
    return results + [torch.zeros_like(t) if g is None else g for t, g in zip(leaves, grads, strict=True)]


def assert_agree(actual: list[Tensor], expected: list[Tensor]) -> None:
    for got, want in zip(actual, expected, strict=True):
        scale = max(1.0, float(want.detach().abs().max()) if want.numel() else 0.0)
        torch.testing.assert_close(got / scale, want / scale, rtol=1e-10, atol=1e-10)


def check(choose: Callable[[str], None], way: tuple[str, str], model: str, sizes: Sizes, device: str, **options: Any) -> None:
    """That a way does what both passes by steps do."""
    given = inputs(model, sizes, device, **{name: each for name, each in options.items() if not isinstance(each, Tensor)})
    choose("steps")
    expected = run(model, given, **options)
    choose(way[0])
    assert_agree(run(model, given, lambda: choose(way[1]), **options), expected)


@each_model
@each_size
@each_way
def test_the_same_as_by_steps(
    way: tuple[str, str], sizes: Sizes, model: str, device: str, choose: Callable[[str], None]
) -> None:
    check(choose, way, model, sizes, device)


@each_model
@pytest.mark.parametrize("way", [way for way in WAYS if "8" not in way], ids="-".join)
def test_more_samples_than_multiprocessors(
    way: tuple[str, str], model: str, device: str, choose: Callable[[str], None]
) -> None:
    check(choose, way, model, MANY, device)


@each_model
@pytest.mark.parametrize("which", MASKS.values(), ids=MASKS)
@each_way
def test_lengths_and_resets(
    way: tuple[str, str], which: tuple[bool, bool, bool], model: str, device: str, choose: Callable[[str], None]
) -> None:
    sizes = (7, 5, *ORDINARY[2:])
    options = {"link_every": 3} if model == "dnc" else {}
    check(choose, way, model, sizes, device, **masks(sizes, device, *which), **options)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@each_way
def test_options(way: tuple[str, str], options: dict[str, Any], device: str, choose: Callable[[str], None]) -> None:
    check(choose, way, "dnc", ORDINARY, device, **masks(ORDINARY, device, True, True, True), **options)


@each_model
@each_size
def test_agrees_with_reference(sizes: Sizes, model: str, device: str, choose: Callable[[str], None]) -> None:
    given = inputs(model, sizes, device)
    choose("1")
    assert_agree(run(model, given), run(model, given, module=reference))


@each_model
def test_float32(model: str, device: str, choose: Callable[[str], None]) -> None:
    given = inputs(model, ORDINARY, device, torch.float32)
    x, weights, state = given
    double = [t.detach().double().requires_grad_() for t in (x, *weights, *state)]
    exact = (double[0], double[1 : 1 + len(weights)], type(state)(*double[1 + len(weights) :]))
    choose("1")
    found, plain = (run(model, given, module=module) for module in (ops, reference))
    for results in zip(found, plain, run(model, exact, module=reference), strict=True):
        assert_as_accurate(*results)


@each_model
@pytest.mark.parametrize("which", [(False, False, False), *MASKS.values()], ids=["none", *MASKS])
def test_without_gradients(which: tuple[bool, bool, bool], model: str, device: str, choose: Callable[[str], None]) -> None:
    """Where two rows of the state take turns."""
    x, weights, state = inputs(model, ORDINARY, device)
    options = masks(ORDINARY, device, *which)
    found = []
    for way in ("1", "4", "steps"):
        choose(way)
        with torch.no_grad():
            y, final = getattr(ops, f"{model}_sequence")(x, weights, state, **options)
        found.append([y, *final])
    for each in found[:2]:
        assert_agree(each, found[2])


@pytest.mark.parametrize("way", ["1", "4", "steps"])
def test_memory_alone(way: str, device: str, choose: Callable[[str], None]) -> None:
    """Without a controller there is nothing but the accessor."""
    t, b, *_, w, v, r = ORDINARY
    _, _, state = inputs("dnc", ORDINARY, device)
    interface = normal(t, b, sum(DncOptions().interface(v, r, w).values()), seed=0).to(device)
    options = masks(ORDINARY, device, True, True, True)
    found = []
    for forward, backward in (("steps", "steps"), ("1", way)):
        choose(forward)
        y, final = ops.dnc_access_sequence(interface, state, link_every=2, **options)
        choose(backward)
        loss = y.square().sum() + sum(each.square().sum() for each in final)
        leaves = [interface, *(t for t in state if t.numel()), options["reset_memory"]]
        grads = torch.autograd.grad(loss, leaves, allow_unused=True)
        found.append([y, *final, *(torch.zeros_like(t) if g is None else g for t, g in zip(leaves, grads, strict=True))])
    assert_agree(*found)


# ---- the choice -------------------------------------------------------------------------------------------------------------


def outputs(model: str, given: tuple[Tensor, list[Tensor], DncState | NtmState]) -> Tensor:
    with torch.no_grad():
        y: Tensor = getattr(ops, f"{model}_sequence")(*given)[0]
    return y


def check_chosen(
    expected: str, model: str, sizes: Sizes, device: str, choose: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ways add up in different orders, so their results tell which it was."""
    given = inputs(model, sizes, device, torch.float32)
    found = {}
    for way in ("1", "8", "steps"):
        choose(way)
        found[way] = outputs(model, given)
    monkeypatch.delenv("ROUTING_EXT_SEQUENCE")
    chosen = outputs(model, given)
    assert [way for way, y in found.items() if torch.equal(y, chosen)] == [expected]


@pytest.mark.skipif(torch.cuda.is_available(), reason="of the GPU that is emulated")
@each_model
def test_many_weights_are_shared_by_samples(
    model: str, device: str, choose: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_chosen("1", model, (2, 2, 3, 70, 0, 70, 33, 1, 3), device, choose, monkeypatch)
    check_chosen("steps", model, (1, 1, 3, 700, 0, 70, 33, 1, 1), device, choose, monkeypatch)


@pytest.mark.skipif(torch.cuda.is_available(), reason="of the GPU that is emulated")
def test_a_large_link_is_shared_by_blocks(device: str, choose: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    check_chosen("8", "dnc", (1, 1, 2, 4, 0, 500, 33, 1, 1), device, choose, monkeypatch)


def test_does_not_fit(device: str, choose: Callable[[str], None]) -> None:
    message = "memory_sequence: ROUTING_EXT_SEQUENCE must be steps where the vectors of a sample do not fit"
    choose("1")
    with pytest.raises(RuntimeError, match=f"{message}.*, got 1"):
        outputs("dnc", inputs("dnc", (1, 1, 1, 1, 1, 1200, 1, 1, 7), device))
    choose("2")
    with pytest.raises(RuntimeError, match=f"{message}.*, or so many blocks do not run at once, got 2"):
        outputs("ntm", inputs("ntm", (1, 200, 1, 1, 1, 700, 1, 1, 7), device))


@pytest.mark.parametrize("way", ["launch", "0", "3", "16"])
def test_unknown_way(way: str, device: str, choose: Callable[[str], None]) -> None:
    choose(way)
    with pytest.raises(RuntimeError, match=f"memory_sequence: ROUTING_EXT_SEQUENCE must be steps, 1, 2, 4 or 8, got {way}"):
        outputs("ntm", inputs("ntm", ORDINARY, device))
