from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from circuits import CIRCUITS, SIZES, Run
from helpers import device
from torch import Tensor

from routing_ext.memory import Circuit

__all__ = ["device"]


def _by_steps(circuit: Circuit, x: Tensor) -> Tensor:
    circuit._reset_states()
    return torch.cat([circuit(x_t) for x_t in x])


def _by_unroll(circuit: Circuit, x: Tensor) -> Tensor:
    return circuit.unroll(x)[0]


@pytest.fixture(params=[_by_steps, _by_unroll], ids=["steps", "unroll"])
def run(request: pytest.FixtureRequest) -> Run:
    """``run(circuit, x [T,B,I]) -> y [T,B,O]``: a sequence from the initial state, in each way that there is."""
    way: Run = request.param
    return way


@pytest.fixture(params=CIRCUITS, ids=lambda kind: kind.__name__)
def make(request: pytest.FixtureRequest) -> Callable[..., Circuit]:
    """``make(**options)``: a circuit in float64 whose parameters are three times the usual ones."""

    def made(**options: Any) -> Circuit:
        torch.manual_seed(0)
        circuit: Circuit = request.param(**(SIZES | {"dtype": torch.float64} | options))
        with torch.no_grad():
            for parameter in circuit.parameters():
                parameter *= 3
        return circuit

    return made


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()
