"""The drop-in for the package `dnc` under torch's own machinery."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import normal
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint
from torch_cases import Doubled, check_two_processes_train_as_one

from routing_ext.memory.dnc_package import DNC

INPUT, HIDDEN = 4, 6
OPTIONS: list[dict[str, Any]] = [
    {},
    {"rnn_type": "gru", "num_layers": 2, "share_memory_between_layers": False, "num_hidden_layers": 2},
    {"rnn_type": "rnn", "independent_linears": True, "bias": False},
]


def make(dtype: torch.dtype = torch.float64, **options: Any) -> DNC:
    torch.manual_seed(0)
    return DNC(INPUT, HIDDEN, **({"num_hidden_layers": 1, "nr_cells": 7, "cell_size": 5} | options)).to(dtype)


@pytest.fixture(params=OPTIONS, ids=str)
def network(request: pytest.FixtureRequest) -> DNC:
    return make(**request.param)


def inputs(steps: int = 5, batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return normal(batch, steps, INPUT, seed=steps, dtype=dtype)


def beginning(network: DNC, batch: int = 2) -> Any:
    """The same for each call, unlike the package's."""
    h = torch.full_like(network.output.weight, 0.1).new_full((network.num_hidden_layers, batch, HIDDEN), 0.1)
    return [(h, h) if network.rnn_type == "lstm" else h] * network.num_layers, None, None


def tensors(network: nn.Module, x: Tensor, hx: Any) -> list[Tensor]:
    """Output and state."""
    return pytree.tree_leaves(network(x, hx))  # type: ignore[no-any-return]


def results(network: DNC, x: Tensor, forward: Any = None) -> list[Tensor]:
    """Output, state, and the gradients of x and the parameters."""
    found = tensors(network if forward is None else forward, x, beginning(network, x.size(0)))
    loss = torch.stack([t.square().sum() for t in found]).sum()
    return [*found, *torch.autograd.grad(loss, [x, *network.parameters()])]


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_once_for_all_lengths(network: DNC, backend: str) -> None:
    compiled = torch.compile(network, fullgraph=True, backend=backend)
    with torch._dynamo.config.patch(error_on_recompile=False):
        for steps in (5, 8):
            torch.testing.assert_close(results(network, inputs(steps), compiled), results(network, inputs(steps)))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for steps in (3, 40, 33, 2):
            torch.testing.assert_close(results(network, inputs(steps), compiled), results(network, inputs(steps)))


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_with_a_state_and_dropout(network: DNC) -> None:
    x = inputs()
    _, hidden = network(x, beginning(network))
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(tensors(compiled, x, hidden), tensors(network, x, hidden))
    network.dropout = 0.5
    for rnn in network.rnns:
        rnn.dropout = 0.5
    y = compiled(x, hidden)[0]
    assert torch.equal(y, compiled(x, hidden)[0]) == (network.num_hidden_layers == 1)
    torch.testing.assert_close(tensors(compiled.eval(), x, hidden), tensors(network, x, hidden))


@pytest.mark.usefixtures("fresh_compiler")
def test_layers_that_share_a_memory_are_compiled_for_a_length() -> None:
    network, x = make(num_layers=2), inputs(3)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(results(network, x, compiled), results(network, x))


def test_exported_programs(network: DNC) -> None:
    """With T and B free, saved and loaded."""
    network = network.requires_grad_(False)
    x = inputs().detach()
    _, hidden = network(x, beginning(network))
    free = torch.export.Dim.DYNAMIC
    controllers, memories, _ = hidden
    of_state = pytree.tree_map(lambda t: {1: free}, controllers), pytree.tree_map(lambda t: {0: free}, memories), {0: free}
    program = torch.export.export(network, (x, hidden), dynamic_shapes=({0: free, 1: free}, of_state))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for steps, batch in ((5, 2), (9, 3)):
        x = inputs(steps, batch).detach()
        _, hidden = network(x, beginning(network, batch))
        torch.testing.assert_close(tensors(loaded, x, hidden), tensors(network, x, hidden))


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_autocast(network: DNC, low: torch.dtype) -> None:
    """Recurrent networks and memory compute in float32, the output layer in low precision."""
    network, x = network.float(), inputs(dtype=torch.float32)
    expected = network(x, beginning(network))[0]
    with torch.autocast("cpu", low):
        y, hidden = network(x, beginning(network))
    assert y.dtype is low
    assert all(t.dtype is torch.float32 for t in pytree.tree_leaves(hidden[:2]))
    torch.testing.assert_close(y.float(), expected, rtol=0.02, atol=0.02)
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype is torch.float32 for p in network.parameters())


def test_gradient_checkpointing(network: DNC) -> None:
    x = inputs()
    expected = results(network, x)
    found = pytree.tree_leaves(checkpoint(network, x, beginning(network), use_reentrant=False))
    torch.stack([t.square().sum() for t in found]).sum().backward()
    torch.testing.assert_close([*found, x.grad, *(p.grad for p in network.parameters())], expected)


def test_deterministic_algorithms(network: DNC) -> None:
    x = inputs()
    expected = results(network, x)
    torch.use_deterministic_algorithms(True)
    try:
        found = results(network, x)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_functional_call(network: DNC) -> None:
    x = inputs()
    given = {name: (2 * p).detach().requires_grad_() for name, p in network.named_parameters()}
    y, _ = torch.func.functional_call(network, given, (x, beginning(network)))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2)
    expected, _ = network(x, beginning(network))
    torch.testing.assert_close(y, expected)
    found = torch.autograd.grad(y.sum(), list(given.values()))
    torch.testing.assert_close(found, torch.autograd.grad(expected.sum(), list(network.parameters())))


def test_parametrized_weights(network: DNC) -> None:
    x = inputs()
    expected = network(x, beginning(network))[0]
    for rnn in network.rnns:
        parametrize.register_parametrization(rnn, "weight_hh_l0", Doubled())
        with torch.no_grad():
            rnn.parametrizations.weight_hh_l0.original *= 3  # what is computed of it counts, not what there was
            rnn.parametrizations.weight_hh_l0.original /= 3
    for memory in network.memories:
        for linear in memory._linears():
            parametrize.register_parametrization(linear, "weight", Doubled())
    parametrize.register_parametrization(network.output, "weight", Doubled())
    torch.testing.assert_close(network(x, beginning(network))[0], expected)
    with torch.no_grad():
        network.rnns[0].parametrizations.weight_hh_l0.original *= 3
    assert not torch.equal(network(x, beginning(network))[0], expected)
    network(x, beginning(network))[0].sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_made_on_the_meta_device() -> None:
    network = make(device="meta", num_hidden_layers=2)
    assert all(p.is_meta for p in network.parameters())
    network.to_empty(device="cpu")
    for module in network.modules():
        if module is not network and hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert network(inputs(), beginning(network))[0].isfinite().all()


# ---- parallel training ------------------------------------------------------------------------------------------------------


def trained(rank: int | None) -> dict[str, Tensor]:
    """The parameters after a few steps; rank None: of one process with the whole batch."""
    network = make(num_layers=2)
    parallel: Callable[..., Any] = network if rank is None else DistributedDataParallel(network)
    rows = slice(None) if rank is None else slice(2 * rank, 2 * rank + 2)
    optimiser = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    for number in range(3):
        x = normal(4, 5, INPUT, seed=number)[rows]
        hidden = beginning(network, x.size(0))
        for part in x.split([3, 2], 1):
            y, hidden = parallel(part, hidden)
            hidden = pytree.tree_map(Tensor.detach, hidden)
            optimiser.zero_grad()
            y.square().mean().backward()
            optimiser.step()
    return {name: p.detach() for name, p in network.named_parameters()}


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    check_two_processes_train_as_one(trained, tmp_path)
