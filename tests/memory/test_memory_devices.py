"""Memory networks on each device: what they compute is what the CPU computes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from circuits import CIRCUITS, SIZES, inputs
from helpers import normal
from torch import Tensor

from routing_ext import memory, ops
from routing_ext.memory import Circuit
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


@pytest.mark.parametrize("kind", [memory.DNC, memory.NTM])
def test_a_layer_is_that_of_the_cpu(kind: Any, device: str) -> None:
    torch.manual_seed(0)
    layer = kind(3, 6, memory_size=7, word_size=5, read_heads=2, dtype=torch.float64)
    twin = copy.deepcopy(layer).to(device)
    outcomes = []
    for one, place in ((layer, "cpu"), (twin, device)):
        x = normal(5, 2, 3, seed=0).detach().to(place).requires_grad_()
        y, _ = one(x)
        assert y.device.type == place
        outcomes.append(with_gradients([y], [x, *one.parameters()]))
    assert_alike(outcomes[1], outcomes[0])
