"""Weights as layers keep them: an interface of one matrix, a controller that does not hear, and where they are found."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import normal
from torch import Tensor, nn

from routing_ext import reference
from routing_ext._memory_options import numbers
from routing_ext.memory import DNC, NTM, DncOptions, DncState, NtmState
from routing_ext.memory.places import Places
from routing_ext.ops.memory_sequence import layer_sequence

T, B, I, H, O, N, W, V, R, S = 4, 3, 4, 6, 3, 7, 5, 2, 3, 3  # noqa: E741
PARTS = {
    "dnc": list(DncOptions().interface(V, R, W).values()),
    "ntm": [V * W, V, V, V * S, V, V * W, V * W, R * W, R, R, R * S, R],
}
STATES: dict[str, Any] = {"dnc": DncState, "ntm": NtmState}
DEFINITIONS: dict[str, Any] = {"dnc": reference.dnc_sequence, "ntm": reference.ntm_sequence}
MODELS = pytest.mark.parametrize("model", ["dnc", "ntm"])


def weights_of(model: str, *, deaf: bool, output: bool) -> list[Tensor]:
    """Of the LSTM, the interface and perhaps the output."""
    interface = sum(PARTS[model])
    shapes = [(4 * H, I if deaf else I + R * W), (4 * H, H), (4 * H,), (4 * H,), (interface, H), (interface,)]
    shapes += [(O, H + R * W), (O,)] if output else []
    return [normal(*shape, seed=i) for i, shape in enumerate(shapes)]


def ours(model: str, x: Tensor, weights: Sequence[Tensor], order: Sequence[int] = ()) -> tuple[Tensor, Any]:
    parts = [PARTS[model][part] for part in order or range(len(PARTS[model]))]
    sizes = [N, W, V, R, S if model == "ntm" else 0]
    none = [None] * len(STATES[model]._fields)
    return layer_sequence(STATES[model], model, numbers(output="linear"), x, none, weights, sizes, parts, order)


def by_parts(model: str, x: Tensor, weights: Sequence[Tensor], order: Sequence[int] = ()) -> tuple[Tensor, Any]:
    """The same by the definition, whose controller hears with weights that are zero."""
    first, *lstm = weights[:4]
    if first.size(1) == I:
        first = F.pad(first, (0, R * W))
    order = order or range(len(PARTS[model]))
    ends = list(accumulate(PARTS[model][part] for part in order))
    place = {part: (end - PARTS[model][part], end) for part, end in zip(order, ends, strict=True)}
    interface = [t[slice(*place[part])] for part in range(len(ends)) for t in weights[4:6]]
    given = [first, *lstm, *interface, *weights[6:]]
    sizes = {"B": B, "H": H, "V": V, "R": R, "N": N, "W": W}
    state = STATES[model].initial(sizes, torch.float64)
    result: tuple[Tensor, Any] = DEFINITIONS[model](x, given, state, clip_value=math.inf, output="linear")
    return result


def gradients(result: tuple[Tensor, Any], inputs: Sequence[Tensor]) -> list[Tensor]:
    y, state = result
    total = sum((normal(*t.shape, seed=40 + i, grad=False) * t).sum() for i, t in enumerate([y, *state]))
    assert isinstance(total, Tensor)
    return list(torch.autograd.grad(total, inputs))


@MODELS
@pytest.mark.parametrize("deaf", [False, True], ids=["hears", "deaf"])
@pytest.mark.parametrize("output", [False, True], ids=["features", "output"])
@pytest.mark.parametrize("reverse", [False, True], ids=["in order", "reverse"])
def test_results_and_gradients(model: str, deaf: bool, output: bool, reverse: bool) -> None:
    x, weights = normal(T, B, I, seed=30), weights_of(model, deaf=deaf, output=output)
    order = list(range(len(PARTS[model])))[::-1] if reverse else []
    found, expected = ours(model, x, weights, order), by_parts(model, x, weights, order)
    for a, b in zip([found[0], *found[1]], [expected[0], *expected[1]], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    inputs = [x, *weights]
    for a, b in zip(gradients(found, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@MODELS
@pytest.mark.parametrize("deaf", [False, True], ids=["hears", "deaf"])
def test_shapes_on_other_devices(model: str, deaf: bool) -> None:
    """There the parts are split."""
    weights = [w.detach().to("meta") for w in weights_of(model, deaf=deaf, output=True)]
    order = list(range(len(PARTS[model])))[::-1]
    y, state = ours(model, torch.empty(T, B, I, dtype=torch.float64, device="meta"), weights, order)
    assert list(y.shape) == [T, B, O]
    assert list(state.memory.shape) == [B, N, W]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([N, W], "sizes must be N, W, V, R and S"),
        ([N, W, 0, R, 0], "sizes must be at least 1"),
        ([N, W, V, R, 0, 1, 2], "sizes must have 10 parts"),
        ([N, W, V, R, 0, *[0] * 10], "sizes must have each part once"),
        ([N, W, V, R, 0, *range(1, 11)], "sizes must have each part once"),
        ([N, W, V, R + 1, 0], "weights must have shape"),
    ],
)
def test_wrong_sizes(sizes: list[int], message: str) -> None:
    weights = [w.detach() for w in weights_of("dnc", deaf=False, output=True)]
    x = normal(T, B, I, seed=30, grad=False)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.routing_ext.memory_sequence("dnc", [], x, [], weights, None, None, None, sizes, 20.0, 1, False)


# ---- where weights are found ------------------------------------------------------------------------------------------------


class _Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 3), nn.Linear(2, 3)
        self.places, self.looked_up = Places(), 0

    def by_name(self) -> list[Tensor]:
        self.looked_up += 1
        return [self.first.weight, self.second.weight, self.second.bias]

    def tensors(self) -> list[Tensor]:
        return self.places.tensors(self, self.by_name)

    def check(self, looked_up: int) -> None:
        assert all(a is b for a, b in zip(self.tensors(), self.by_name(), strict=True))
        self.looked_up -= 1
        assert self.looked_up == looked_up


def test_parameters_are_looked_up_once() -> None:
    pair = _Pair()
    pair.check(1)
    pair.check(1)
    pair.first.weight = nn.Parameter(torch.ones(3, 2))
    pair.check(1)


def test_what_has_been_replaced_is_looked_up_again() -> None:
    pair = _Pair()
    pair.check(1)
    pair.first = nn.Linear(2, 3)
    pair.check(2)
    nn.utils.parametrizations.orthogonal(pair.second)  # computed, that is, at each call
    for looked_up in (3, 4):
        assert torch.equal(pair.tensors()[1], pair.second.weight)
        assert pair.looked_up == looked_up


def test_a_parameter_that_is_gone_is_looked_up_again() -> None:
    pair = _Pair()
    pair.check(1)
    pair.second.bias = None  # type: ignore[assignment]
    assert pair.tensors()[2] is None
    assert pair.looked_up == 2


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_find_their_own(copied: Any) -> None:
    pair = _Pair()
    pair.check(1)
    other = copied(pair)
    other._modules = dict(other._modules)  # as the copies of nn.DataParallel have them
    other.first = nn.Linear(2, 3)
    assert other.tensors()[0] is other.first.weight
    assert pair.tensors()[0] is pair.first.weight


@pytest.mark.parametrize("kind", [DNC, NTM])
def test_layers_see_changed_modules(kind: type[DNC] | type[NTM]) -> None:
    torch.manual_seed(0)
    layer = kind(I, H, memory_size=N, word_size=W, dtype=torch.float64)
    x = normal(T, B, I, seed=30, grad=False)
    layer(x)
    layer.output.bias = None  # type: ignore[assignment]
    y = layer(x)[0]
    layer.output.bias = nn.Parameter(torch.ones(H, dtype=torch.float64))
    torch.testing.assert_close(layer(x)[0], y + 1, rtol=0, atol=1e-12)
    weights = {"output.weight": torch.zeros(H, H + W, dtype=torch.float64)}
    assert torch.equal(torch.func.functional_call(layer, weights, (x,))[0], torch.ones(T, B, H, dtype=torch.float64))
