"""How much memory sequences take, at sizes of the benchmarks."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from routing_ext.memory import Circuit, DNCCircuit
from routing_ext.ops.memory_sequence import default_link_every


def circuit_of(hidden: int, locations: int, word: int) -> Circuit:
    sizes = {"num_write_heads": 1, "num_read_heads": 4, "mem_hei": locations, "mem_wid": word}
    return DNCCircuit(input_dim=6, output_dim=4, hidden_dim=hidden, **sizes)


def test_what_the_backward_pass_needs_of_a_step() -> None:
    batch, steps, locations = 8, 16, 512
    circuit = circuit_of(256, locations, 64)
    weights = [w.detach() for w in circuit._weights()]
    link_every = default_link_every(steps, batch * locations**2 * 4, torch.device("cpu"))
    args = ("dnc", [], torch.rand(steps, batch, 6), [], weights, None, None, None, [locations], 20.0, link_every, True)
    _, _, tape = torch.ops.routing_ext.memory_sequence(*args)
    assert sum(t.nbytes for t in tape) / steps <= 4e6


def train_a_long_sequence(by_steps: bool) -> None:
    """Prints the most memory that the process ever had, in bytes."""
    circuit, x = circuit_of(100, 128, 32), torch.rand(1000, 16, 6)
    for _ in range(2):
        circuit.zero_grad()
        if by_steps:
            circuit._reset_states()
            y = torch.cat([circuit(x_t) for x_t in x])
        else:
            y, _ = circuit.unroll(x)
        y.square().mean().backward()
    unit = 1 if sys.platform == "darwin" else 1024
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


@pytest.mark.slow
@pytest.mark.parametrize("by_steps", [False, True])
def test_a_thousand_steps_train_in_two_gigabytes(by_steps: bool) -> None:
    """All of the process, torch included."""
    command = [sys.executable, "-c", f"import test_memory_use; test_memory_use.train_a_long_sequence({by_steps})"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent, env=env)
    assert int(done.stdout) <= 2e9
