"""The tape behind single steps: its pieces, the links it does not keep, what it leaves behind."""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from circuits import inputs
from torch import Tensor

from routing_ext.memory import Circuit, DNCCircuit
from routing_ext.ops import memory_sequence, memory_step


def gradients(circuit: Circuit, y: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(
        (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum(), list(circuit.parameters())
    )


def steps(circuit: Circuit, x: Tensor) -> Tensor:
    circuit._reset_states()
    return torch.cat([circuit(x_t) for x_t in x])


@pytest.mark.parametrize("first", [1, 3, 16])
def test_a_tape_of_several_pieces(make: Callable[..., Circuit], monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    monkeypatch.setattr(memory_step, "_FIRST_STEPS", first)
    circuit, x = make(), inputs(24)
    expected_y = circuit.unroll(x)[0]
    expected = gradients(circuit, expected_y)
    for _ in range(2):  # the second time on one piece, as long as the last sequence was
        y = steps(circuit, x)
        torch.testing.assert_close(y, expected_y)
        torch.testing.assert_close(gradients(circuit, y), expected)


@pytest.mark.parametrize("first", [1, 4, 16])
def test_links_that_are_computed_again(make: Callable[..., Circuit], monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    monkeypatch.setattr(memory_sequence, "_FEW_LINK_BYTES", 1)
    monkeypatch.setattr(memory_step, "_FIRST_STEPS", first)
    circuit, x = make(), inputs(11)
    expected = gradients(circuit, circuit.unroll(x)[0])
    for _ in range(2):
        torch.testing.assert_close(gradients(circuit, steps(circuit, x)), expected)
    state = circuit.unroll(x[:3])[1].detach()
    circuit.state = state
    y = torch.cat([circuit(x_t) for x_t in x[3:]])
    torch.testing.assert_close(gradients(circuit, y), gradients(circuit, circuit.unroll(x[3:], state)[0]))


def test_gradients_of_some_inputs_only(make: Callable[..., Circuit]) -> None:
    """Backward passes that stop before the first step, in any order, do not disturb each other."""
    circuit, x = make(), inputs(6).requires_grad_()
    y, expected = steps(circuit, x), circuit.unroll(x)[0]
    for last in (5, 2, 4):
        (found,) = torch.autograd.grad(y[last].sum(), x, retain_graph=True)
        (wanted,) = torch.autograd.grad(expected[last].sum(), x, retain_graph=True)
        torch.testing.assert_close(found, wanted)
    rows = [x[t].detach().requires_grad_() for t in range(6)]
    circuit._reset_states()
    outputs = [circuit(row) for row in rows]
    (late,) = torch.autograd.grad(outputs[5].sum(), rows[4], retain_graph=True)
    (early,) = torch.autograd.grad(outputs[3].sum(), rows[1], retain_graph=True)
    assert late.any()
    torch.testing.assert_close(early, torch.autograd.grad(expected[3].sum(), x)[0][1])


def test_a_look_at_the_state_between_steps(make: Callable[..., Circuit]) -> None:
    """What is done to the tensors is done to the sequence."""
    circuit, x = make(), inputs(4)
    circuit._reset_states()
    with torch.no_grad():
        circuit(x[0])
        circuit.accessor.memory.memory_vb.mul_(0.5)
    halved = circuit.state
    y = torch.cat([circuit(x_t) for x_t in x[1:]])
    torch.testing.assert_close(y, circuit.unroll(x[1:], halved)[0])


def train_and_count() -> None:
    """Trains with the garbage collector off, and prints how many page faults and objects more a step leaves behind."""
    circuit = DNCCircuit(input_dim=6, output_dim=4, hidden_dim=32, num_write_heads=1, num_read_heads=2, mem_hei=64, mem_wid=16)
    x = torch.rand(12, 8, 6)

    def counts() -> tuple[int, int]:
        for _ in range(50):
            circuit.zero_grad()
            steps(circuit, x).sum().backward()
            circuit.unroll(x)[0].sum().backward()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt, len(gc.get_objects())

    gc.collect()
    gc.disable()
    before, after = counts(), counts()
    print((after[0] - before[0]) / 50, (after[1] - before[1]) / 50)


def test_nothing_is_left_behind() -> None:
    """In a process of its own, whose memory nothing else has used."""
    command = [sys.executable, "-c", "import test_steps; test_steps.train_and_count()"]
    path = os.pathsep.join(sys.path)
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent, env=env)
    faults, objects = map(float, done.stdout.split())
    assert faults < 30  # a tape that is not used again would add some hundred
    assert objects < 1
