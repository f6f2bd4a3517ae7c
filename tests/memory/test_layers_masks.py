"""Sequences of several lengths, and samples that begin anew within one: as each part of each sample on its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import normal
from layer_cases import INPUT, Layer, Make, assert_same_states, inputs, make_layer, own_controller
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from routing_ext.memory import DNC, NTM

STEPS, LENGTHS = 6, [4, 6, 0, 1]
RESETS = torch.zeros(STEPS, 4, dtype=torch.bool)
RESETS[2, 0] = RESETS[0, 1] = RESETS[3, 1] = RESETS[4, 1] = RESETS[3, 2] = RESETS[0, 3] = RESETS[5, 0] = True


@pytest.fixture(params=[DNC, NTM], ids=lambda kind: kind.__name__)
def make(request: pytest.FixtureRequest) -> Make:
    """``make(num_layers, **options)``."""
    return lambda *args, **options: make_layer(request.param, *args, **options)


def with_controller(make: Make, num_layers: int, kind: type[nn.RNNCellBase]) -> Layer:
    cells = own_controller(make(num_layers), kind)
    return make(num_layers, controller=cells)


def alone(layer: Layer, x: Tensor, state: Any, lengths: list[int], resets: Tensor | None) -> tuple[Tensor, Any]:
    """Sample by sample, and, between two beginnings, part by part."""
    ys, after = [], []
    for b, length in enumerate(lengths):
        own = layer.initial_state(1) if state is None else state.samples([b])
        y = x.new_zeros(STEPS, 1, layer.output_size)
        begins = [t for t in range(length) if resets is not None and resets[t, b]]
        for first, end in zip([0, *begins], [*begins, length], strict=True):
            if first in begins:
                own = layer.initial_state(1)
            part, own = layer(x[first:end, b : b + 1], own)
            y = torch.cat([y[:first], part, y[end:]])
        ys.append(y)
        after.append(own)
    return torch.cat(ys, 1), type(after[0])(*(torch.cat(ts, 1) for ts in zip(*after, strict=True)))


def check(layer: Layer, lengths: list[int] | None, resets: Tensor | None, *, with_state: bool) -> None:
    """Outputs, states and all gradients."""
    x, state = inputs(STEPS, 4), None
    if with_state:
        _, state = layer(normal(2, 4, INPUT, seed=9))
        state = state.map(lambda t: t.detach().requires_grad_())
    y, after = layer(x, state, lengths=lengths, resets=resets)
    expected, last = alone(layer, x, state, lengths or [STEPS] * 4, resets)
    torch.testing.assert_close(y, expected)
    assert_same_states(after, last)
    wanted = [x, *layer.parameters(), *(state or ())]
    weights = [torch.randn_like(t) for t in (y, *after)]

    def gradients(tensors: tuple[Tensor, ...]) -> list[Tensor]:
        loss = torch.stack([(t * w).sum() for t, w in zip(tensors, weights, strict=True)]).sum()
        return list(torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True))

    torch.testing.assert_close(gradients((y, *after)), gradients((expected, *last)))


CASES: list[dict[str, Any]] = [
    {},
    {"num_layers": 2, "initial_memory": "learned"},
    {"num_layers": 2, "output_size": 3, "bias": False, "memory_size": 33},
]


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("masks", ["lengths", "resets", "both"])
@pytest.mark.parametrize("options", CASES, ids=str)
def test_each_part_on_its_own(make: Make, options: dict[str, Any], masks: str, with_state: bool) -> None:
    lengths, resets = (None if masks == "resets" else LENGTHS), (None if masks == "lengths" else RESETS)
    check(make(**options), lengths, resets, with_state=with_state)


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell])
def test_under_a_controller_of_the_users(make: Make, kind: type[nn.RNNCellBase], with_state: bool) -> None:
    check(with_controller(make, 2, kind), LENGTHS, RESETS, with_state=with_state)


@pytest.mark.parametrize(
    "options", [{"layer_norm": True}, {"link": False, "mask_min": 0.1}, {"erase_freed": True, "sharpen_link": True}], ids=str
)
def test_with_options(options: dict[str, Any]) -> None:
    check(make_layer(DNC, 2, **options), LENGTHS, RESETS, with_state=True)


def test_with_a_normalised_interface(make: Make) -> None:
    check(make(2, layer_norm=True, output_size=3), LENGTHS, RESETS, with_state=True)


@pytest.mark.parametrize("lengths", [[6, 6, 6, 6], [0, 0, 0, 0], [3, 3, 2, 2], [0, 2, 2, 0]], ids=str)
@pytest.mark.parametrize("resets", [None, RESETS], ids=["no-resets", "resets"])
def test_lengths_under_a_controller_of_the_users(make: Make, lengths: list[int], resets: Tensor | None) -> None:
    check(with_controller(make, 2, nn.GRUCell), lengths, resets, with_state=False)


def test_a_controller_of_the_users_takes_no_step_behind_an_end(make: Make) -> None:
    """It is called for the samples that are still there, in the order of their lengths."""
    calls: list[int] = []

    def count(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        calls.append(args[0].size(0))

    cells = own_controller(make(), nn.LSTMCell)
    cells[0].register_forward_pre_hook(count)
    layer = make(controller=cells)
    layer(inputs(STEPS, 4), layer.initial_state(4), lengths=[2, 4, 0, 4])
    assert calls[1:] == [3, 3, 2, 2]  # the first one was for the initial state
    calls.clear()
    layer(pack_padded_sequence(inputs(STEPS, 3), torch.tensor([3, 2, 2])))
    assert calls == [3, 3, 1]


def test_bypass_dropout_leaves_zeros_behind_the_end() -> None:
    y, _ = make_layer(DNC, bypass_dropout=0.5)(inputs(STEPS, 4), lengths=LENGTHS)
    assert not y[4:, 0].any()
    assert not y[:, 2].any()


def test_batch_first(make: Make) -> None:
    x = inputs(STEPS, 4)
    expected, last = make(2)(x, lengths=LENGTHS, resets=RESETS)
    y, state = make(2, batch_first=True)(x.transpose(0, 1), lengths=torch.tensor(LENGTHS).int(), resets=RESETS.T)
    torch.testing.assert_close(y.transpose(0, 1), expected)
    assert_same_states(state, last)


def test_one_sample_without_a_batch(make: Make) -> None:
    layer, x = make(), inputs(STEPS, 4)
    expected, last = layer(x, lengths=LENGTHS, resets=RESETS)
    y, state = layer(x[:, 0], lengths=torch.tensor(LENGTHS[0]), resets=RESETS[:, 0])
    torch.testing.assert_close(y, expected[:, 0])
    assert_same_states(state, last.samples(0))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("is_sorted", [False, True])
def test_packed_sequences(make: Make, is_sorted: bool, batch_first: bool) -> None:
    """With states and resets in the order of the samples, as ``pad_packed_sequence`` gives them."""
    layer, x = make(2, batch_first=batch_first), inputs(STEPS, 3)
    lengths, resets = torch.tensor([6, 4, 1] if is_sorted else [4, 6, 1]), RESETS[:, :3]
    _, state = make(2)(normal(2, 3, INPUT, seed=9))
    expected, last = make(2)(x, state, lengths=lengths, resets=resets)

    def pack(t: Tensor) -> PackedSequence:
        return pack_padded_sequence(t, lengths, enforce_sorted=is_sorted)

    packed = pack(x)
    for given in (pack(resets), resets.T if batch_first else resets):
        y, after = layer(packed, state, resets=given)
        padded, found = pad_packed_sequence(y)
        torch.testing.assert_close(padded, expected)
        assert_same_states(after, last)
        assert found.tolist() == lengths.tolist()
        assert torch.equal(y.batch_sizes, packed.batch_sizes)


def test_what_is_behind_the_end_does_not_matter(make: Make) -> None:
    for layer in (make(2), with_controller(make, 2, nn.GRUCell)):
        x = inputs(STEPS, 4).detach()
        expected, last = layer(x, lengths=LENGTHS)
        for b, length in enumerate(LENGTHS):
            x[length:, b] = torch.nan
        x.requires_grad_()
        y, state = layer(x, lengths=LENGTHS)
        assert torch.equal(y, expected)
        assert_same_states(state, last)
        found = torch.autograd.grad(y.sum(), [x, *layer.parameters()])
        assert all(g.isfinite().all() for g in found)
        assert not any(found[0][length:, b].any() for b, length in enumerate(LENGTHS))


def test_random_memories_are_drawn_once_a_sample(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = make(initial_memory="random"), inputs(STEPS, 4)
    drawn = [layer.initial_state(4).memory[0] for _ in range(2)]
    of_call = iter(drawn)
    monkeypatch.setattr(layer, "_initial_memory", lambda number, batch: next(of_call))
    y, _ = layer(x, resets=RESETS)
    monkeypatch.setattr(layer, "_initial_memory", lambda number, batch: drawn[1])
    for begin in (3, 4):  # of sample 1
        expected, _ = layer(x[begin:])
        torch.testing.assert_close(y[begin, 1], expected[0, 1])


def test_steps_of_an_agent(make: Make) -> None:
    layer, x = make(2), inputs(STEPS, 4)
    expected, last = layer(x, resets=RESETS)
    state, ys = None, []
    for x_t, resets in zip(x, RESETS, strict=True):
        y, state = layer.step(x_t, state, resets=resets)
        ys.append(y)
    torch.testing.assert_close(torch.stack(ys), expected)
    assert_same_states(state, last)


def test_no_gradient_passes_a_reset(make: Make) -> None:
    layer, x = make(2), inputs(STEPS, 4)
    resets = torch.zeros(STEPS, 4, dtype=torch.bool)
    resets[3] = True
    layer(x, resets=resets)[0][3:].sum().backward()
    assert x.grad is not None
    assert not x.grad[:3].any()
    assert x.grad[3:].any()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lengths": [1, 2]}, ValueError, r"lengths must be integers \[4\], got torch.int64 of \[2\]"),
        ({"lengths": [1.0] * 4}, ValueError, r"lengths must be integers \[4\], got torch.float32 of \[4\]"),
        ({"lengths": [1, 2, 7, 3]}, RuntimeError, "lengths must be from 0 to 6, got 7"),
        ({"resets": RESETS.T}, ValueError, r"resets must be bool \[6, 4\], got \[4, 6\]"),
        ({"resets": RESETS.int()}, ValueError, "resets must be bool, got torch.int32"),
        ({"resets": [True]}, ValueError, r"resets must be bool \[6, 4\], got list"),
    ],
)
def test_wrong_arguments(make: Make, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()(inputs(STEPS, 4), **arguments)


@pytest.mark.parametrize("lengths", [[1, 2, 7, 3], [1, -1, 6, 3]])
def test_wrong_lengths_under_a_controller_of_the_users(make: Make, lengths: list[int]) -> None:
    """The error is that of the operator."""
    messages = []
    for layer in (make(), with_controller(make, 1, nn.GRUCell)):
        with pytest.raises(RuntimeError) as raised:
            layer(inputs(STEPS, 4), lengths=lengths)
        messages.append(str(raised.value).splitlines()[0])
    assert messages[0] == messages[1]


def test_wrong_arguments_of_packed_sequences_and_steps(make: Make) -> None:
    packed = pack_padded_sequence(inputs(STEPS, 4), torch.tensor([6, 4, 2, 1]))
    with pytest.raises(ValueError, match=r"lengths must be None for a PackedSequence, got \[6, 4, 2, 1\]"):
        make()(packed, lengths=[6, 4, 2, 1])
    with pytest.raises(ValueError, match=r"resets must be bool \[6, 4\], got \[4, 6\]"):
        make()(packed, resets=RESETS.T)
    with pytest.raises(ValueError, match=r"step: resets must be bool \[4\], got \[6, 4\]"):
        make().step(inputs(STEPS, 4)[0], resets=RESETS)
