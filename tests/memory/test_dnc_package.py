"""The drop-in for the package `dnc`: what it computes, its state, and how its users call it."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import normal
from plain_dnc_package import FIELDS, initial_state, plain_network
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from routing_ext.memory.dnc_package import DNC, Memory
from routing_ext.reference import dnc_package_access

SIZES = {"input_size": 4, "hidden_size": 6, "nr_cells": 7, "cell_size": 5, "read_heads": 2}
Hidden = tuple[Any, Any, Any]


def make(**options: Any) -> DNC:
    """In float64, with parameters three times the usual ones."""
    torch.manual_seed(0)
    network = DNC(**(SIZES | {"num_hidden_layers": 1} | options)).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter *= 3
    return network


def inputs(batch: int = 3, steps: int = 5) -> Tensor:
    return normal(batch, steps, SIZES["input_size"], seed=steps)


def assert_same_hidden(actual: Hidden, expected: Hidden) -> None:
    torch.testing.assert_close(actual[0], expected[0])
    torch.testing.assert_close(actual[1], expected[1])
    torch.testing.assert_close(actual[2], expected[2])


# ---- what it computes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rnn_type": "gru", "num_hidden_layers": 2, "num_layers": 2},
        {"rnn_type": "rnn", "nonlinearity": "relu", "clip": 0.5, "independent_linears": True},
        {"num_layers": 3, "share_memory_between_layers": False, "bias": False},
        {"num_layers": 2, "share_memory_between_layers": False, "clip": 0, "independent_linears": True},
        {"nr_cells": 1, "cell_size": 1, "read_heads": 1},
        {"nr_cells": 24, "debug": True},
        {"clip": 0.5, "num_hidden_layers": 2},
        {"num_hidden_layers": 3, "num_layers": 2, "share_memory_between_layers": False},
        {"bias": False, "num_hidden_layers": 2, "clip": 1},
    ],
    ids=str,
)
def test_two_calls(options: dict[str, Any]) -> None:
    """Outputs, states and gradients of two sequences, the second of which goes on from the first."""
    network, x = make(**options), inputs()
    config = {**SIZES, **{name: getattr(network, name) for name in vars(network) if not name.startswith("_")}}
    controllers = network._new_controllers(3)
    parameters = dict(network.named_parameters())
    first, hidden, *_ = network(x[:, :2], (controllers, None, None))
    second, hidden, *_ = network(x[:, 2:], hidden)
    y = torch.cat([first, second], 1)

    states = [initial_state(config, 3, x.dtype)] * len(network.memories)
    first, controllers, states = plain_network(config, parameters, x[:, :2], controllers, states)
    second, controllers, states = plain_network(config, parameters, x[:, 2:], controllers, states)
    expected = torch.cat([first, second], 1)

    torch.testing.assert_close(y, expected)
    memories = [{name: getattr(s, field) for name, field in FIELDS.items()} for s in states]
    assert_same_hidden(hidden, (controllers, memories, states[-1].read_vectors.flatten(1)))
    found, wanted = (torch.autograd.grad(t.square().sum(), [x, *parameters.values()]) for t in (y, expected))
    torch.testing.assert_close(found, wanted)


def test_parameters_are_drawn_as_in_the_package() -> None:
    """In its order, from torch's generator: recurrent networks and memories in turn, then the output."""
    torch.manual_seed(0)
    network = DNC(4, 6, num_layers=2, share_memory_between_layers=False)
    parts = ["lstm_layer_0", "rnn_layer_memory_0", "lstm_layer_1", "rnn_layer_memory_1", "output"]
    assert list(dict.fromkeys(name.partition(".")[0] for name in network.state_dict())) == parts
    torch.manual_seed(0)
    lstm = nn.LSTM(24, 6, num_layers=2)
    linear = nn.Linear(6, 63)
    nn.init.kaiming_uniform_(linear.weight)
    assert torch.equal(network.lstm_layer_0.weight_hh_l1, lstm.weight_hh_l1)
    assert torch.equal(network.rnn_layer_memory_0.interface_weights.weight, linear.weight)
    assert torch.equal(network.rnn_layer_memory_0.interface_weights.bias, linear.bias)


def test_dropout_between_hidden_layers() -> None:
    network, x = make(num_hidden_layers=2, dropout=0.5), inputs()
    hidden = (network._new_controllers(3), None, None)
    assert not torch.equal(network(x, hidden)[0], network(x, hidden)[0])
    network.eval()
    assert torch.equal(network(x, hidden)[0], network(x, hidden)[0])


def test_a_step_of_the_memory_alone() -> None:
    memory, h = make().memories[0], normal(3, 6, seed=1)
    read, state = memory(h, memory.new(3))
    expected = dnc_package_access(memory.interface_weights(h), initial_state(SIZES, 3, h.dtype))
    torch.testing.assert_close(read, expected.read_vectors)
    torch.testing.assert_close(state, {name: getattr(expected, field) for name, field in FIELDS.items()})


# ---- arguments of a call ----------------------------------------------------------------------------------------------------


def test_time_first() -> None:
    x, hidden = inputs(), (make()._new_controllers(3), None, None)
    y, after = make()(x, hidden)
    y_first, after_first = make(batch_first=False)(x.transpose(0, 1), hidden)
    assert torch.equal(y_first.transpose(0, 1), y)
    assert_same_hidden(after_first, after)


def test_the_controllers_begin_at_random() -> None:
    network, x = make(), inputs()
    torch.manual_seed(1)
    y = network(x)[0]
    assert not torch.equal(network(x, (None, None, None))[0], y)
    torch.manual_seed(1)
    h = torch.zeros(1, 3, 6, dtype=torch.float64)
    nn.init.xavier_uniform_(h)
    assert torch.equal(network(x, ([(h, h)], None, None))[0], y)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"num_layers": 2, "share_memory_between_layers": False}], ids=str)
def test_reset_experience(options: dict[str, Any]) -> None:
    network, x = make(**options), inputs()
    _, (controllers, memories, read) = network(x)
    before = copy.deepcopy([{name: t.detach() for name, t in m.items()} for m in memories])
    torch.testing.assert_close(
        network(x, (controllers, memories, read), reset_experience=True)[0], network(x, (controllers, None, read))[0]
    )
    torch.testing.assert_close([{name: t.detach() for name, t in m.items()} for m in memories], before)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"debug": True}], ids=str)
def test_pass_through_memory(options: dict[str, Any]) -> None:
    network, x = make(**options), inputs()
    _, hidden, *_ = network(x)
    y, (_, memories, read), *_ = network(x, hidden, pass_through_memory=False)
    torch.testing.assert_close(memories, hidden[1])
    assert not read.any()
    if network.num_layers == 1:
        features = torch.cat([x, hidden[2].unsqueeze(1).expand(-1, 5, -1)], -1).transpose(0, 1)
        h, _ = network.rnns[0](features, hidden[0][0])
        torch.testing.assert_close(y.transpose(0, 1), network.output(torch.cat([h, torch.zeros(5, 3, 10)], -1)))


@pytest.mark.parametrize("num_layers", [1, 2])
def test_debug(num_layers: int) -> None:
    x, hidden = inputs(), (make(num_layers=num_layers)._new_controllers(3), None, None)
    y, after = make(num_layers=num_layers)(x, hidden)
    y_seen, after_seen, seen = make(num_layers=num_layers, debug=True)(x, hidden)
    torch.testing.assert_close(y_seen, y)
    assert_same_hidden(after_seen, after)
    shapes = {"memory": (7, 5), "link_matrix": (7, 7), "precedence": (1, 7), "read_weights": (2, 7)}
    shapes |= {"write_weights": (1, 7), "usage_vector": (1, 7)}
    assert {name: [a.shape for a in arrays] for name, arrays in seen.items()} == {
        name: [shape] * (5 * num_layers) for name, shape in shapes.items()
    }
    torch.testing.assert_close(torch.from_numpy(seen["memory"][-1]), after[1][0]["memory"][0].detach())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_hidden_layers": 2},
        {"num_layers": 2},
        {"num_layers": 2, "share_memory_between_layers": False},
        {"rnn_type": "gru", "num_layers": 2},
    ],
    ids=str,
)
def test_packed_sequences(options: dict[str, Any]) -> None:
    """As each sample on its own."""
    network, x = make(**options), inputs(3, 6)
    lengths = [4, 6, 1]
    controllers = network._new_controllers(3)
    packed = pack_sequence([x[i, :n] for i, n in enumerate(lengths)], enforce_sorted=False)
    y, after = network(packed, (controllers, None, None))
    padded, found = pad_packed_sequence(y, batch_first=True)
    assert found.tolist() == lengths

    def of_sample(hidden: Any, i: int) -> Any:
        if isinstance(hidden, Tensor):
            return hidden[:, i : i + 1]
        return type(hidden)(of_sample(part, i) for part in hidden)

    for i, n in enumerate(lengths):
        expected, (c, m, read) = network(x[i : i + 1, :n], (of_sample(controllers, i), None, None))
        torch.testing.assert_close(padded[i : i + 1, :n], expected)
        assert not padded[i, n:].any()
        torch.testing.assert_close(of_sample(after[0], i), c)
        torch.testing.assert_close([{name: t[i : i + 1] for name, t in state.items()} for state in after[1]], m)
        torch.testing.assert_close(after[2][i : i + 1], read)


@pytest.mark.parametrize("options", [{}, {"num_hidden_layers": 2}, {"rnn_type": "gru"}, {"debug": True}], ids=str)
def test_no_steps(options: dict[str, Any]) -> None:
    network = make(**options)
    y, (_, memories, read), *_ = network(inputs(3, 0))
    assert y.shape == (3, 0, 4)
    torch.testing.assert_close(memories, [network.memories[0].new(3)])
    assert not read.any()
    _, hidden, *_ = network(inputs(3, 2))
    _, after, *_ = network(inputs(3, 0), hidden)
    assert_same_hidden(after, hidden)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: DNC(4, 6, rnn_type="cnn"), ValueError, 'rnn_type must be "lstm", "gru" or "rnn", got \'cnn\''),
        (lambda: DNC(4, 6, "rnn", nonlinearity="elu"), ValueError, 'nonlinearity must be "tanh" or "relu", got \'elu\''),
        (lambda: DNC(4, 6, bidirectional=True), ValueError, "bidirectional must be False, got True"),
        (lambda: make()([1.0]), TypeError, "input_data must be a tensor or a PackedSequence, got list"),
        (lambda: make()(inputs()[0]), ValueError, r"input_data must be \[B, T, 4\], got \[5, 4\]"),
        (lambda: make()(inputs(), (None, [None] * 2, None)), ValueError, "hx must have 1 memories, got 2"),
        (
            lambda: make()(inputs(), (None, Memory(6, 8, 5, 2).double().new(3), None)),
            ValueError,
            r"hidden\['memory'\] must be \[B, 7, 5\], got \[3, 8, 5\]",
        ),
    ],
)
def test_wrong_arguments(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# ---- its users --------------------------------------------------------------------------------------------------------------

KEYS = ["memory", "link_matrix", "precedence", "read_weights", "write_weights", "usage_vector"]


def test_as_reinforcement_learning_packs_it() -> None:
    """The state as a list of nine tensors with the batch in front, as version 1 has it."""
    network = DNC(4, 6, num_hidden_layers=1, nr_cells=7, cell_size=5, read_heads=2, nonlinearity="tanh", gpu_id=-1).double()
    network.output = nn.Linear(network.output.in_features, 9).double()
    x, state = inputs(), None
    outputs = []
    for part in x.split([2, 3], 1):
        hidden: Any = (None, None, None)
        if state is not None:
            controllers = [tuple(t.permute(1, 0, 2).contiguous() for t in state[:2])]
            hidden = controllers, OrderedDict(zip(KEYS, state[3:], strict=True)), state[2]
        y, ((controller,), memory, read) = network(part, hidden)
        assert list(memory) == KEYS
        state = [*(t.permute(1, 0, 2) for t in controller), read, *memory.values()]
        assert [tuple(t.shape[1:]) for t in state] == [(1, 6), (1, 6), (10,), (7, 5), (1, 7, 7), (1, 7), (2, 7), (1, 7), (7,)]
        outputs.append(y)
    assert torch.cat(outputs, 1).shape == (3, 5, 9)


def test_a_dictionary_comes_back_as_one() -> None:
    network, x = make(), inputs()
    _, (controllers, memories, read) = network(x)
    assert isinstance(memories, list)
    _, (_, memory, _) = network(x, (controllers, memories[0], read))
    assert list(memory) == KEYS


def test_names_of_version_one() -> None:
    shared, own = DNC(6, 10, gpu_id=-1), DNC(6, 10, num_layers=2, share_memory=False, gpu_id=-1)
    x = torch.randn(2, 3, 6)
    assert isinstance(shared(x)[1][1], dict)
    _, after = own(x)
    assert [list(memory) for memory in after[1]] == [KEYS, KEYS]
    own(x, after)
    with pytest.raises(
        TypeError, match=r"DNC: nr_cells must be a number, got False\. In version 1 this is the place of bidirect"
    ):
        DNC(6, 10, "lstm", 1, 1, True, True, 0, False, 7, 2, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c, m, r: (c[0][0], c[0][1]),
            r"hx must be \(controllers, memories, read vectors\), got \[\[2, 2, 9\], \[2, 2, 9\]\]",
        ),
        (lambda c, m, r: (c, r, m), r"hx must be \(controllers, memories, read vectors\), got \["),
        (lambda c, m, r: (c[0], m, r), r"controllers in hx must have the shapes \[\[\[2, 2, 9\], \[2, 2, 9\]\]\], got"),
        (lambda c, m, r: ([(c[0][0], c[0][1][:, :1])], m, r), r"controllers in hx must have the shapes .*\[2, 1, 9\]\]\]$"),
        (lambda c, m, r: (c, m, r[:1]), r"the read vectors in hx must be \[2, 12\], got \[1, 12\]"),
    ],
)
def test_a_wrong_state(change: Callable[[Any, Any, Any], Any], message: str) -> None:
    network, x = DNC(6, 9, read_heads=3, cell_size=4), torch.randn(2, 3, 6)
    _, hx = network(x)
    with pytest.raises(ValueError, match=f"DNC: {message}" if message.startswith("hx") else message):
        network(x, change(*hx))
    network(x, [[list(hx[0][0])], *hx[1:]])


@pytest.mark.parametrize("size", ["num_layers", "num_hidden_layers", "nr_cells", "read_heads", "cell_size"])
def test_sizes_are_at_least_one(size: str) -> None:
    with pytest.raises(ValueError, match=f"DNC: {size} must be at least 1, got 0"):
        DNC(6, 9, **{size: 0})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"rnn_type": "gru"}], ids=str)
def test_extremes_are_finite(options: dict[str, Any], dtype: torch.dtype) -> None:
    """Interfaces that no training should lead to, from empty memories on."""
    network, x = make(**options).to(dtype), inputs(3, 12).to(dtype)
    for value in (1e4, -1e4, 0.0):
        bias = network.memories[0].interface_weights.bias
        with torch.no_grad():
            bias.copy_(value * (torch.randint(2, bias.shape) * 2 - 1))
        y, hidden = network(x)
        found = torch.autograd.grad(y.square().sum(), list(network.parameters()))
        assert all(t.isfinite().all() for t in (y, hidden[2], *hidden[1][0].values(), *found))


def test_precisions() -> None:
    network, x = make().float(), inputs().float()
    y, (_, memories, _) = network(x)
    assert y.dtype is memories[0]["memory"].dtype is torch.float32
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            y, hidden = network(x)
            again, _ = network(x, hidden)
        assert y.dtype is again.dtype is dtype
        again.float().sum().backward()


def test_copies_and_pickles() -> None:
    network, x = make(num_layers=2), inputs()
    hidden = (network._new_controllers(3), None, None)
    expected = network(x, hidden)[0]
    for copied in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(copied(x, hidden)[0], expected)
        with torch.no_grad():
            copied.rnns[0].weight_ih_l0.zero_()
            copied.memories[0].interface_weights.weight.zero_()
        assert not torch.equal(copied(x, hidden)[0], expected)
    assert torch.equal(network(x, hidden)[0], expected)


def test_on_the_meta_device() -> None:
    network = DNC(**SIZES, device="meta")
    assert all(p.is_meta for p in network.parameters())
    y, (_, memories, _) = network(torch.empty(3, 5, 4, device="meta"))
    assert y.shape == (3, 5, 4)
    assert memories[0]["link_matrix"].shape == (3, 1, 7, 7)
