"""DNC and NTM in the manner of nn.LSTM: what they compute, their arguments, and the life of their state."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import normal
from layer_cases import HIDDEN, INPUT, SIZES, Make, assert_same_states, inputs, make_layer, own_controller
from plain_layers import plain
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from routing_ext.memory import DNC, NTM, DncState, NtmState


@pytest.fixture(params=[DNC, NTM], ids=lambda kind: kind.__name__)
def make(request: pytest.FixtureRequest) -> Make:
    """``make(num_layers, **options)``."""
    return lambda *args, **options: make_layer(request.param, *args, **options)


# ---- what they compute ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 3},
        {"write_heads": 1, "read_heads": 1, "memory_size": 1, "word_size": 1},
        {"memory_size": 33, "write_heads": 1},
        {"bias": False, "num_layers": 2},
        {"output_size": 11, "initial_memory": 0.5},
        {"initial_memory": "learned", "num_layers": 2},
        {"layer_norm": True, "num_layers": 2, "write_heads": 1},
    ],
    ids=str,
)
def test_outputs_states_and_gradients(make: Make, options: dict[str, Any]) -> None:
    layer, x = make(**options), inputs()
    y, state = layer(x)
    expected, last = plain(layer, x)
    torch.testing.assert_close(y, expected)
    assert_same_states(state, last)
    wanted = [x, *layer.parameters()]
    weights = [torch.randn_like(t) for t in (y, *state)]

    def loss(tensors: tuple[Tensor, ...]) -> Tensor:
        return torch.stack([(t * w).sum() for t, w in zip(tensors, weights, strict=True)]).sum()

    found = torch.autograd.grad(loss((y, *state)), wanted)
    torch.testing.assert_close(found, torch.autograd.grad(loss((expected, *last)), wanted))


OPTIONS: list[dict[str, Any]] = [
    {"usage": "reference", "strengths": "softplus", "words": "tanh"},
    {"allocation": "softmax", "temperature": 0.3},
    {"usage": "package", "cosine": "plain"},
    {"mask_min": 0.1},
    {"erase_freed": True},
    {"sharpen_link": True},
    {"link": False},
    {"mask_min": 0.1, "erase_freed": True, "sharpen_link": True, "write_heads": 1},
    {"layer_norm": True},
    {"layer_norm": True, "link": False, "mask_min": 0.0},
]


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options(options: dict[str, Any], num_layers: int) -> None:
    layer, x = make_layer(DNC, num_layers, **options), inputs()
    y, state = layer(x)
    expected, last = plain(layer, x)
    torch.testing.assert_close(y, expected)
    assert_same_states(state, last)
    wanted = [x, *layer.parameters()]
    found = torch.autograd.grad(y.square().sum() + state.memory.sum(), wanted)
    torch.testing.assert_close(found, torch.autograd.grad(expected.square().sum() + last.memory.sum(), wanted))
    again, _ = layer(x, state.detach())
    torch.testing.assert_close(again, plain(layer, x, last)[0])


def test_the_papers_equations_are_the_default() -> None:
    options = DNC(INPUT, HIDDEN, **SIZES).options
    assert (options.usage, options.strengths, options.words) == ("paper", "oneplus", "linear")
    assert "words='linear'" in repr(NTM(INPUT, HIDDEN, **SIZES))
    for words in ("linear", "tanh"):
        layer = make_layer(NTM, words=words)
        torch.testing.assert_close(layer(inputs())[0], plain(layer, inputs())[0])


def test_the_whole_interface_is_normalised(make: Make) -> None:
    """LayerNorm(Linear(hidden)), so that the scale of the linear layer does not count."""
    layer, x = make(layer_norm=True), inputs()
    cell = layer._cell(0)
    hidden = normal(3, HIDDEN, seed=2)
    linear = F.linear(hidden, cell.interface.weight, cell.interface.bias)
    assert cell.norm is not None
    expected = F.layer_norm(linear, linear.shape[1:], cell.norm.weight, cell.norm.bias, 1e-6)
    torch.testing.assert_close(cell.signals(hidden), expected)
    y = layer(x)[0]
    with torch.no_grad():
        cell.interface.weight *= 5
        cell.interface.bias *= 5
    torch.testing.assert_close(layer(x)[0], y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_shifts", [1, 2, 4, 5, 9])
def test_numbers_of_shifts(num_shifts: int) -> None:
    """Of 7 locations, and back to where a head began."""
    layer, x = make_layer(NTM, num_shifts=num_shifts), inputs()
    y, state = layer(x)
    expected, last = plain(layer, x)
    torch.testing.assert_close(y, expected)
    assert_same_states(state, last)


def test_with_two_shifts_a_head_stays_or_goes_on() -> None:
    layer = make_layer(NTM, num_shifts=2)
    cell, parts = layer._cell(0), [10, 2, 2, 4, 2, 10, 10, 15, 3, 3, 6, 3]
    with torch.no_grad():
        cell.interface.weight.zero_()
        _, _, gates, shifts, sharpness, *_ = cell.interface.bias.split(parts)
        gates.fill_(-100)  # from where it was
        sharpness.fill_(10)
        shifts.copy_(torch.tensor([50.0, -50, -50, 50]))  # head 0 goes on, head 1 stays
        _, state = layer(inputs(3))
    assert state.write_weights[0].argmax(-1).tolist() == [[3, 0], [3, 0]]


@pytest.mark.parametrize("num_layers", [1, 2])
def test_bypass_dropout(num_layers: int) -> None:
    """Of the hidden state on its way past the memory, in training. What the memory does, does not depend on it."""
    layer, x = make_layer(DNC, num_layers, bypass_dropout=1.0), inputs()
    y, state = layer(x)
    read_vectors = state.read_vectors[-1].flatten(1)
    torch.testing.assert_close(y[-1], layer.output(F.pad(read_vectors, (HIDDEN, 0))))
    assert state.hidden.any()
    if num_layers == 1:
        assert_same_states(state, make_layer(DNC)(x)[1])
    half = make_layer(DNC, bypass_dropout=0.5)
    torch.manual_seed(1)
    first = half(x)[0]
    assert not torch.equal(first, half(x)[0])
    torch.manual_seed(1)
    assert torch.equal(first, half(x)[0])
    layer.eval()
    torch.testing.assert_close(layer(x)[0], plain(layer, x)[0])


def test_another_output_layer(make: Make) -> None:
    layer, x = make(), inputs()
    expected = torch.tanh(layer(x)[0])
    layer.output = nn.Sequential(layer.output, nn.Tanh())  # type: ignore[assignment]
    torch.testing.assert_close(layer(x)[0], expected)


def test_no_steps_and_no_samples(make: Make) -> None:
    layer = make(2)
    y, state = layer(inputs(0))
    assert y.shape == (0, 2, HIDDEN)
    assert_same_states(state, layer.initial_state(2))
    y, state = layer(inputs(3, 0))
    assert y.shape == (3, 0, HIDDEN)
    assert state.memory.shape == (2, 0, 7, 5)


def test_dropout_between_layers(make: Make) -> None:
    layer, x = make(2, dropout=0.5), inputs()
    torch.manual_seed(1)
    dropped = layer(x)[0]
    assert not torch.equal(dropped, layer(x)[0])
    layer.eval()
    torch.testing.assert_close(layer(x)[0], plain(layer, x)[0])
    assert torch.equal(make(dropout=0.5)(x)[0], make()(x)[0])


# ---- manners of nn.LSTM -----------------------------------------------------------------------------------------------------


def test_batch_first(make: Make) -> None:
    x = inputs()
    y, state = make()(x)
    y_first, state_first = make(batch_first=True)(x.transpose(0, 1))
    assert torch.equal(y_first.transpose(0, 1), y)
    assert_same_states(state_first, state)


@pytest.mark.parametrize("batch_first", [False, True])
def test_one_sample_without_a_batch(make: Make, batch_first: bool) -> None:
    layer, x = make(2, batch_first=batch_first), inputs(5, 1)
    y, state = make(2)(x)
    alone, state_alone = layer(x[:, 0])
    torch.testing.assert_close(alone, y[:, 0])
    assert_same_states(state_alone, state.samples(0))
    again, _ = layer(x[:, 0], state_alone)
    torch.testing.assert_close(again, make(2)(x, state)[0][:, 0])


def test_input_that_is_not_contiguous(make: Make) -> None:
    layer, x = make(), inputs()
    expected = layer(x)[0]
    assert torch.equal(layer(x.transpose(0, 1).contiguous().transpose(0, 1))[0], expected)
    assert torch.equal(layer(x.repeat_interleave(2, -1)[..., ::2])[0], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory_size": 0}, "memory_size must be at least 1, got 0"),
        ({"read_heads": 0}, "read_heads must be at least 1, got 0"),
        ({"output_size": 0}, "output_size must be at least 1, got 0"),
        ({"initial_memory": "zero"}, 'initial_memory must be a number, "learned" or "random", got \'zero\''),
        ({"controller": [nn.GRUCell(1, 1)] * 2}, "controller must be one for each of 1 layers, got 2"),
        ({"dropout": 1.5}, r"dropout must be in \[0, 1\], got 1.5"),
    ],
)
def test_wrong_arguments(make: Make, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_wrong_options() -> None:
    with pytest.raises(TypeError, match=r"DNC: options are usage, .*; got usages"):
        DNC(INPUT, HIDDEN, **SIZES, usages="paper")
    with pytest.raises(ValueError, match=r"DNC: bypass_dropout must be in \[0, 1\], got -1"):
        DNC(INPUT, HIDDEN, **SIZES, bypass_dropout=-1)
    with pytest.raises(ValueError, match="DNC: sharpen_link needs a link, got link=False"):
        DNC(INPUT, HIDDEN, **SIZES, sharpen_link=True, link=False)
    with pytest.raises(ValueError, match='NTM: words must be "tanh" or "linear", got \'relu\''):
        NTM(INPUT, HIDDEN, **SIZES, words="relu")
    with pytest.raises(ValueError, match="NTM: num_shifts must be at least 1, got 0"):
        NTM(INPUT, HIDDEN, **SIZES, num_shifts=0)
    with pytest.raises(TypeError, match="DNC: erase_freed must be True or False, got 'yes'"):
        DNC(INPUT, HIDDEN, **SIZES, erase_freed="yes")
    with pytest.raises(TypeError, match="DNC: mask_min must be a number, got 'a'"):
        DNC(INPUT, HIDDEN, **SIZES, mask_min="a")
    with pytest.raises(TypeError, match="DNC: controller must be callable, or a list of what is, got 'lstm'"):
        DNC(INPUT, HIDDEN, **SIZES, controller="lstm")


def test_wrong_inputs_and_states(make: Make) -> None:
    layer = make(2)
    with pytest.raises(ValueError, match=r"input must be \[T, B, 4\], got \[5, 2, 3\]"):
        layer(inputs()[..., :3])
    with pytest.raises(ValueError, match=r"step: x must be \[B, 4\], got \[5, 2, 4\]"):
        layer.step(inputs())
    with pytest.raises(ValueError, match=r"state.memory must be \[2, 2, 7, 5\], got \[2, 3, 7, 5\]"):
        layer(inputs(), layer.initial_state(3))
    with pytest.raises(ValueError, match=r"state.memory must be \[2, 2, 7, 5\], got \[1, 2, 7, 5\]"):
        layer(inputs(), make().initial_state(2))
    name, state = type(layer).__name__, type(layer.initial_state(1)).__name__
    h = torch.zeros(2, 2, HIDDEN)
    for x in (inputs(), inputs()[:, 0], pack_padded_sequence(inputs(), torch.tensor([5, 3]))):
        with pytest.raises(TypeError, match=f"{name}: state must be a {state}, as the layer returns it, got tuple"):
            layer(x, (h, h))
    with pytest.raises(TypeError, match=f"{name}: input must be torch.float64, as the parameters are, got torch.float32"):
        layer(inputs().float())
    with pytest.raises(TypeError, match=f"{name}: input must be torch.float64, as the parameters are, got torch.int64"):
        layer.step(inputs()[0].long())


def test_repr_names_what_was_given() -> None:
    layer = DNC(INPUT, HIDDEN, **SIZES, allocation="softmax")
    assert "input_size=4, hidden_size=6, num_layers=1, memory_size=7" in repr(layer)
    assert "usage='paper', allocation='softmax'" in repr(layer)
    normalised = repr(DNC(INPUT, HIDDEN, **SIZES, layer_norm=True, bypass_dropout=0.1))
    assert "layer_norm=True, bypass_dropout=0.1" in normalised
    assert "num_shifts=5" in repr(NTM(INPUT, HIDDEN, **SIZES, num_shifts=5))


# ---- state ------------------------------------------------------------------------------------------------------------------


def test_initial_states() -> None:
    dnc = DNC(INPUT, HIDDEN, 2, **SIZES).initial_state(3)
    assert isinstance(dnc, DncState)
    assert (dnc.memory == 1e-6).all()
    assert not any(t.any() for field, t in dnc._asdict().items() if field != "memory")
    ntm = NTM(INPUT, HIDDEN, **SIZES).initial_state(3)
    assert isinstance(ntm, NtmState)
    assert (ntm.read_weights[..., 0] == 1).all()
    assert (ntm.read_vectors == 1e-6).all()
    assert not ntm.read_weights[..., 1:].any()


def test_a_sequence_in_parts(make: Make) -> None:
    layer, x = make(2), inputs(6)
    whole, last = layer(x)
    first, state = layer(x[:2])
    second, end = layer(x[2:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    assert_same_states(end, last)
    parameters = list(layer.parameters())
    found = torch.autograd.grad(torch.cat([first, second]).sum(), parameters)
    torch.testing.assert_close(found, torch.autograd.grad(whole.sum(), parameters))


def test_a_detached_state_has_no_history(make: Make) -> None:
    layer, x = make(), inputs(4)
    _, state = layer(x[:2])
    assert state.memory.requires_grad
    detached = state.detach()
    assert not any(t.requires_grad for t in detached)
    layer(x[2:], detached)[0].sum().backward()
    assert x.grad is not None
    assert not x.grad[:2].any()


def test_steps(make: Make) -> None:
    layer, x = make(2), inputs()
    expected, last = layer(x)
    state, ys = None, []
    for x_t in x:
        y, state = layer.step(x_t, state)
        ys.append(y)
    torch.testing.assert_close(torch.stack(ys), expected)
    assert_same_states(state, last)
    with torch.no_grad():
        torch.testing.assert_close(layer.step(x[0])[0], expected[0])


def test_samples_of_a_state(make: Make) -> None:
    layer, x = make(2), inputs(4, 3)
    _, state = layer(x)
    chosen = torch.tensor([2, 0])
    y, after = layer(x[:, chosen], state.samples(chosen))
    expected, last = layer(x, state)
    torch.testing.assert_close(y, expected[:, chosen])
    assert_same_states(after, last.samples(chosen))
    assert state.samples(slice(1, 2)).hidden.shape == (2, 1, HIDDEN)
    assert_same_states(state.samples([True, False, True]), state.samples(torch.tensor([0, 2])))
    assert_same_states(state.samples([0, 2]), state.samples(torch.tensor([True, False, True])))
    assert state.samples(1).memory.shape == (2, 7, 5)


def test_states_move_and_are_saved(make: Make) -> None:
    _, state = make()(inputs())
    state = state.detach()
    assert all(t.dtype is torch.float32 for t in state.to(torch.float32))
    assert all(t.is_meta for t in state.to("meta"))
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    assert_same_states(torch.load(file), state)
    assert_same_states(pickle.loads(pickle.dumps(state)), state)
    assert_same_states(copy.deepcopy(state), state)


def test_learned_memory(make: Make) -> None:
    layer = make(2, initial_memory="learned")
    assert [m.shape for m in layer.memories] == [(7, 5)] * 2
    state = layer.initial_state(3)
    assert torch.equal(state.memory[1, 2], layer.memories[1])
    layer(inputs())[0].sum().backward()
    assert all(m.grad is not None and m.grad.any() for m in layer.memories)


def test_random_memory(make: Make) -> None:
    layer, x = make(initial_memory="random"), inputs()
    torch.manual_seed(1)
    first = layer(x)[0]
    assert not torch.equal(layer(x)[0], first)
    torch.manual_seed(1)
    assert torch.equal(layer(x)[0], first)
    spread = DNC(INPUT, HIDDEN, memory_size=100, word_size=25, initial_memory="random").initial_state(100).memory
    assert abs(spread.std().item() - 0.2) < 0.01


# ---- controllers of users ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_layers", [1, 2])
def test_an_lstm_of_the_users_is_the_built_in_one(make: Make, num_layers: int) -> None:
    built_in = make(num_layers)
    layer = make(num_layers, controller=own_controller(built_in, nn.LSTMCell))
    layer.load_state_dict(built_in.state_dict())
    x = inputs()
    y, state = layer(x)
    expected, last = built_in(x)
    torch.testing.assert_close(y, expected)
    assert_same_states(state, last)
    assert_same_states(layer.initial_state(2), built_in.initial_state(2))
    torch.testing.assert_close(layer(x, last)[0], built_in(x, last)[0])
    found = torch.autograd.grad(y.sum(), list(layer.parameters()))
    names = [name for name, _ in layer.named_parameters()]
    wanted = torch.autograd.grad(expected.sum(), [built_in.get_parameter(name) for name in names])
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("kind", [nn.GRUCell, nn.RNNCell])
def test_controllers_with_one_tensor_as_state(make: Make, kind: type[nn.RNNCellBase]) -> None:
    cell = own_controller(make(), kind)[0]
    layer, x = make(controller=cell), inputs()
    y, state = layer(x)
    assert state.cell.shape == (1, 2, 0)
    parts, middle = [], None
    for x_t in x:
        y_t, middle = layer.step(x_t, middle)
        parts.append(y_t)
    torch.testing.assert_close(torch.stack(parts), y)
    torch.testing.assert_close(layer(x, layer.initial_state(2))[0], y)
    y.sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_any_callable_controls(make: Make) -> None:
    """A feedforward controller, which keeps no state."""
    weight = normal(HIDDEN, INPUT + 15, seed=1)
    layer, x = make(controller=lambda x, state: torch.tanh(x @ weight.T)), inputs()
    y, _ = layer(x)
    y.sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(torch.cat([layer(x[:3])[0], layer(x[3:], layer(x[:3])[1])[0]]), y)


# ---- copies -----------------------------------------------------------------------------------------------------------------


def test_copies_and_pickles(make: Make) -> None:
    layer, x = make(2, initial_memory="learned"), inputs()
    expected = layer(x)[0]
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(copied(x)[0], expected)
        with torch.no_grad():
            copied.output.weight.zero_()
    assert torch.equal(layer(x)[0], expected)


def test_another_memory_size_with_the_same_weights(make: Make) -> None:
    layer, x = make(2), inputs()
    larger = make(2, memory_size=40)
    larger.load_state_dict(make(2).state_dict(), strict=True)
    _, state = larger(x)
    assert state.memory.shape == (2, 2, 40, 5)
    assert not torch.equal(larger(x)[0], layer(x)[0])
    torch.testing.assert_close(larger(x)[0], plain(larger, x)[0])


@pytest.mark.parametrize("options", [{}, *OPTIONS], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extremes_are_finite(options: dict[str, Any], dtype: torch.dtype) -> None:
    """Interfaces that no training should lead to, from empty memories on."""
    layer = make_layer(DNC, **options | {"initial_memory": 0.0, "dtype": dtype})
    x = inputs(12, dtype=dtype)
    for value in (1e4, -1e4, 0.0):
        with torch.no_grad():
            signs = torch.randint(2, layer._cell(0).interface.bias.shape) * 2 - 1
            layer._cell(0).interface.bias.copy_(value * signs)
        y, state = layer(x)
        assert all(t.isfinite().all() for t in (y, *state))
        found = torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])
        assert all(g.isfinite().all() for g in found)


def test_checkpoints(make: Make) -> None:
    layer, other = make(2), make(2)
    other.reset_parameters()
    assert not torch.equal(other(inputs())[0], layer(inputs())[0])
    other.load_state_dict(layer.state_dict(), strict=True)
    assert torch.equal(other(inputs())[0], layer(inputs())[0])
