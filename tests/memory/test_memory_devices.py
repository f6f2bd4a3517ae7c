"""Memory networks on each device: what they compute is what the CPU computes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from circuits import CIRCUITS, SIZES, inputs
from helpers import normal
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from routing_ext import memory, ops
from routing_ext.memory import Circuit, MemoryLayer, dnc_package
from routing_ext.ops import memory_sequence

LENGTHS = [6, 0, 3]


def _unrolled(circuit: Circuit, x: Tensor) -> list[Tensor]:
    y, state = circuit.unroll(x)
    return [y, *state]


def _by_steps(circuit: Circuit, x: Tensor) -> list[Tensor]:
    circuit._reset_states()
    return [torch.cat([circuit(x_t) for x_t in x]), *circuit.state]


def _masked(circuit: Circuit, x: Tensor, **more: Any) -> list[Tensor]:
    """With lengths and resets."""
    sequence: Callable[..., Any] = getattr(ops, f"{circuit._model}_sequence")
    lengths = torch.tensor(LENGTHS, device=x.device)
    resets = torch.tensor([[t == 2, False, t == 1] for t in range(len(x))], device=x.device)
    y, state = sequence(x, circuit._weights(), num_locations=circuit.mem_hei, lengths=lengths, resets=resets, **more)
    return [y, *state]


WAYS = {"unrolled": _unrolled, "by-steps": _by_steps, "masked": _masked}


def with_gradients(results: list[Tensor], wanted: list[Tensor]) -> list[Tensor]:
    """Both on the CPU, where the sum is made whose gradients these are."""
    there = [t.cpu() for t in results]
    loss = sum((t * normal(*t.shape, seed=i, grad=False)).sum() for i, t in enumerate(there))
    grads = torch.autograd.grad(loss, wanted)  # type: ignore[arg-type]
    return [t.detach().cpu() for t in (*there, *grads)]


def assert_alike(mine: list[Tensor], expected: list[Tensor]) -> None:
    for got, want in zip(mine, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


def check_circuit(kind: type[Circuit], way: Callable[[Circuit, Tensor], list[Tensor]], device: str) -> None:
    torch.manual_seed(0)
    circuit = kind(**SIZES, dtype=torch.float64)
    twin = copy.deepcopy(circuit).to(device)
    outcomes = []
    for one, place in ((circuit, "cpu"), (twin, device)):
        x = inputs(batch=3).to(place).requires_grad_()
        results = way(one, x)
        assert all(t.device.type == place for t in results)
        outcomes.append(with_gradients(results, [x, *one.parameters()]))
    assert_alike(outcomes[1], outcomes[0])


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("kind", CIRCUITS)
def test_a_circuit_is_that_of_the_cpu(
    kind: type[Circuit], way: Callable[[Circuit, Tensor], list[Tensor]], device: str
) -> None:
    check_circuit(kind, way, device)


@pytest.mark.parametrize("way", [_unrolled, _by_steps], ids=["unrolled", "by-steps"])
def test_links_that_are_computed_again(
    way: Callable[[Circuit, Tensor], list[Tensor]], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_sequence, "_FEW_LINK_BYTES", 1)
    check_circuit(memory.DNCCircuit, way, device)


@pytest.mark.parametrize("kind", CIRCUITS)
def test_without_gradients(kind: type[Circuit], device: str) -> None:
    torch.manual_seed(0)
    circuit = kind(**SIZES, dtype=torch.float64)
    x = inputs()
    with torch.no_grad():
        expected = [_unrolled(circuit, x), _by_steps(circuit, x)]
        circuit.to(device)
        circuit._reset_states()
        found = [way(circuit, x.to(device)) for way in (_unrolled, _by_steps)]
    for mine, theirs in zip(found, expected, strict=True):
        assert_alike([t.cpu() for t in mine], theirs)


class Gated(nn.Module):
    """A controller with two tensors as state. (``nn.LSTMCell`` is a kernel of torch's own, which a pretended device lacks.)"""

    def __init__(self, width: int, hidden: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.maps = nn.Linear(width + hidden, 2 * hidden, dtype=dtype)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        zeros = x.new_zeros(x.size(0), self.maps.out_features // 2)
        hidden, slow = (zeros, zeros) if state is None else state
        fast, gate = self.maps(torch.cat([x, hidden], 1)).chunk(2, 1)
        slow = torch.lerp(slow, fast.tanh(), gate.sigmoid())
        return slow.sin(), slow


LAYERS: list[tuple[Any, dict[str, Any]]] = [
    (memory.DNC, {}),
    (memory.NTM, {}),
    (memory.DNC, {"num_layers": 2, "layer_norm": True, "initial_memory": "learned"}),
    (memory.NTM, {"layer_norm": True, "num_shifts": 2, "output_size": 4}),
    (memory.DNC, {"mask_min": 0.1, "erase_freed": True, "sharpen_link": True, "write_heads": 2}),
    (memory.DNC, {"link": False, "allocation": "softmax", "bias": False}),
    (memory.DNC, {"controller": Gated}),
    (memory.NTM, {"controller": nn.RNNCell, "num_layers": 2}),
]
each_layer = pytest.mark.parametrize(("kind", "options"), LAYERS, ids=str)


def make_layer(kind: Any, options: dict[str, Any]) -> MemoryLayer[Any]:
    torch.manual_seed(0)
    if "controller" in options:
        widths = [3 + 10, 6 + 20][: options.get("num_layers", 1)]
        options = options | {"controller": [options["controller"](width, 6, dtype=torch.float64) for width in widths]}
    layer: MemoryLayer[Any] = kind(3, 6, **options, memory_size=7, word_size=5, read_heads=2, dtype=torch.float64)
    return layer


def on_both(layer: nn.Module, device: str, run: Callable[[Any, Tensor], list[Tensor]], shape: tuple[int, ...]) -> None:
    """What `run` makes of the layer and x there is what it makes here."""
    outcomes = []
    for one, place in ((layer, "cpu"), (copy.deepcopy(layer).to(device), device)):
        x = normal(*shape, seed=0).detach().to(place).requires_grad_()
        results = run(one, x)
        assert all(t.device.type == place for t in results)
        outcomes.append(with_gradients(results, [x, *one.parameters()]))
    assert_alike(outcomes[1], outcomes[0])


@each_layer
def test_a_layer_is_that_of_the_cpu(kind: Any, options: dict[str, Any], device: str) -> None:
    """A sequence, and behind it one with lengths and resets that goes on from the state."""

    def run(layer: MemoryLayer[Any], x: Tensor) -> list[Tensor]:
        first, state = layer(x[:2])
        resets = torch.tensor([[t == 1, False, t == 0] for t in range(6)], device=x.device)
        y, after = layer(x[2:], state, lengths=LENGTHS, resets=resets)
        return [first, y, *after]

    on_both(make_layer(kind, options), device, run, (8, 3, 3))


@each_layer
def test_steps_and_packed_sequences(kind: Any, options: dict[str, Any], device: str) -> None:
    def run(layer: MemoryLayer[Any], x: Tensor) -> list[Tensor]:
        y, state = layer(pack_padded_sequence(x, torch.tensor([2, 4, 1]), enforce_sorted=False))
        padded, lengths = pad_packed_sequence(y)
        assert lengths.tolist() == [2, 4, 1]
        over = torch.tensor([False, True, False], device=x.device)
        step, state = layer.step(x[0], state, resets=over)
        last, _ = layer.step(x[1], state.samples([2, 1, 0]))
        return [padded, step, last]

    on_both(make_layer(kind, options), device, run, (4, 3, 3))


@pytest.mark.parametrize("kind", [memory.DNC, memory.NTM])
def test_layers_and_states_move(kind: Any, device: str) -> None:
    """There and back; and a layer that is made there."""
    layer, x = make_layer(kind, {"layer_norm": True}), normal(4, 2, 3, seed=0).detach()
    with torch.no_grad():
        expected, last = layer(x)
        _, state = layer(x[:2])
        layer.to(device)
        y, after = layer(x[2:].to(device), state.to(device))
        assert_alike([t.cpu() for t in (y, *after)], [expected[2:], *last])
        assert all(t.device.type == device for t in layer.initial_state(2))
        made = kind(3, 6, memory_size=7, word_size=5, layer_norm=True, device=device, initial_memory="random")
        assert all(t.device.type == device for t in (made(x.to(device).float())[0], *made.parameters()))


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_autocast(low: torch.dtype, device: str) -> None:
    """The memory computes in float32, also there."""
    layer, x = make_layer(memory.DNC, {"layer_norm": True}).float().to(device), normal(4, 2, 3, seed=0).float().to(device)
    expected, last = layer(x)
    with torch.autocast(device, low):
        y, state = layer(x)
    assert y.dtype is low
    torch.testing.assert_close(y.float(), expected, rtol=0.02, atol=0.02)
    torch.testing.assert_close(state.memory, last.memory)


PACKAGE: list[dict[str, Any]] = [
    {},
    {"num_layers": 2, "share_memory_between_layers": False, "batch_first": False},
    {"rnn_type": "rnn", "num_hidden_layers": 2, "num_layers": 2, "debug": True},
]


@pytest.mark.parametrize("options", PACKAGE, ids=str)
def test_the_package_is_that_of_the_cpu(options: dict[str, Any], device: str) -> None:
    """Its state as it came, and with its experience reset."""
    torch.manual_seed(0)
    network = dnc_package.DNC(3, 6, **({"num_hidden_layers": 1} | options), nr_cells=7, cell_size=5, read_heads=2).double()

    def run(network: Any, x: Tensor) -> list[Tensor]:
        torch.manual_seed(1)  # its first state is drawn
        first, state, *_ = network(x)
        second, state, *_ = network(x, state)
        third, (_, memories, read_vectors), *_ = network(x, state, reset_experience=True)
        return [first, second, third, read_vectors, *memories[0].values()]

    on_both(network, device, run, (3, 4, 3))
