"""No NaN and no infinity: under interfaces that no training should lead to, and in a long training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from circuits import CIRCUITS, Run, inputs
from helpers import generator
from torch import Tensor

from routing_ext.memory import Circuit, DNCCircuit, NTMCircuit
from routing_ext.tasks import Copy

OPTIONS: dict[str, dict[str, Any]] = {
    "reference": {},
    "paper": {"usage": "paper"},
    "softmax": {"allocation": "softmax", "temperature": 0.01},
}
# Parts of the interface and what is added to them. "vast": to each element with a random sign.
EXTREMES = {
    "strengths": {"beta": 1e4},
    "sharpness": {"gamma": 1e3},
    "shut": {"alloc_gate": -1e4, "write_gate": -1e4, "free_gate": -1e4, "gate": -1e4},
    "open": {"alloc_gate": 1e4, "write_gate": 1e4, "free_gate": 1e4, "gate": 1e4},
    "by-content": {"alloc_gate": -1e4, "write_gate": 1e4, "beta": 1e4, "erase": 1e4},
    "vast": dict.fromkeys(("key", "beta", "alloc_gate", "write_gate", "free_gate", "read_mode", "erase", "add"), 1e4)
    | dict.fromkeys(("gate", "shift", "gamma"), 1e3),
}


def inject(circuit: Circuit, extremes: str) -> None:
    with torch.no_grad():
        for heads in (circuit.accessor.write_heads, circuit.accessor.read_heads):
            for part, value in EXTREMES[extremes].items():
                linear = getattr(heads, f"hid_2_{part}", None)
                if linear is not None:
                    signs = torch.randint(2, linear.bias.shape, generator=generator(len(part))) * 2 - 1
                    linear.bias += value * (signs if extremes == "vast" else 1)


def assert_finite(circuit: Circuit, y: Tensor, *more: Tensor) -> None:
    assert y.isfinite().all()
    wanted = [*circuit.parameters(), *more]
    grads = torch.autograd.grad(y.square().sum(), wanted, allow_unused=True)
    assert all(g is None or g.isfinite().all() for g in grads)


@pytest.mark.parametrize("extremes", EXTREMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extremes(make: Callable[..., Circuit], run: Run, extremes: str, dtype: torch.dtype) -> None:
    circuit = make(dtype=dtype)
    inject(circuit, extremes)
    assert_finite(circuit, run(circuit, inputs(12, dtype=dtype)))


@pytest.mark.parametrize("extremes", EXTREMES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extremes_in_a_memory_all_in_use(extremes: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    sizes = {"num_write_heads": 2, "num_read_heads": 3, "mem_hei": 40, "mem_wid": 5}
    circuit = DNCCircuit(input_dim=4, output_dim=3, hidden_dim=6, **sizes, **options, dtype=dtype)
    inject(circuit, extremes)
    x = inputs(12, dtype=dtype)
    state = circuit.initial_state(2)
    n = state.link.size(-1)
    chain = torch.diag(torch.ones(n - 1, dtype=dtype), -1).expand_as(state.link)  # each location was written after the last
    state = state._replace(usage=torch.ones_like(state.usage), link=chain, precedence=torch.ones_like(state.precedence) / n)
    state = state._replace(**{name: t.clone().requires_grad_() for name, t in state._asdict().items()})
    assert_finite(circuit, circuit.unroll(x, state)[0], *state)
    circuit.state = state
    assert_finite(circuit, torch.cat([circuit(x_t) for x_t in x]), *state)


@pytest.mark.parametrize("kind", CIRCUITS)
def test_nothing_but_zeros(kind: type[Circuit], run: Run) -> None:
    circuit = kind(input_dim=4, output_dim=3, hidden_dim=6, num_write_heads=1, num_read_heads=1, mem_hei=5, mem_wid=3)
    with torch.no_grad():
        for parameter in circuit.parameters():
            parameter.zero_()
    assert_finite(circuit, run(circuit, torch.zeros(9, 2, 4)))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "options"), [(NTMCircuit, {}), *((DNCCircuit, options) for options in OPTIONS.values())])
def test_ten_thousand_steps_of_training(kind: type[Circuit], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    task = Copy(len_word=3, min_num_words=1, max_num_words=3)
    sizes = {"num_write_heads": 1, "num_read_heads": 1, "mem_hei": 8, "mem_wid": 6}
    circuit = kind(input_dim=task.input_dim, output_dim=task.output_dim, hidden_dim=16, **sizes, **options)
    optimizer = torch.optim.Adam(circuit.parameters(), 3e-3)
    draws = generator(0)
    batches = [task.batch(4, draws) for _ in range(500)]
    losses = []
    for step in range(10_000):
        batch = batches[step % len(batches)]
        loss = F.binary_cross_entropy(circuit.unroll(batch.input)[0], batch.target, batch.mask.expand_as(batch.target))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    found = torch.stack(losses)
    assert found.isfinite().all()
    assert all(p.isfinite().all() for p in circuit.parameters())
    assert found[-500:].mean() < 0.5 * found[:500].mean()
