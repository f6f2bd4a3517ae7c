"""DNC and NTM under torch's own machinery: compilers, export, autocast, checkpoints, parallel training and the like."""

from __future__ import annotations

import functools
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
from torch.utils.checkpoint import checkpoint
from torch_cases import Doubled, check_two_processes_train_as_one

from routing_ext.memory import DNC, NTM, MemoryLayer

Layer = nn.Module
INPUT, HIDDEN = 4, 6


def dnc(**options: Any) -> Layer:
    return DNC(INPUT, HIDDEN, 2, memory_size=7, word_size=5, read_heads=2, **options)


def ntm(**options: Any) -> Layer:
    return NTM(INPUT, HIDDEN, 2, memory_size=7, word_size=5, read_heads=2, **options)


@pytest.fixture(params=[dnc, ntm], ids=["DNC", "NTM"])
def make(request: pytest.FixtureRequest) -> Callable[..., MemoryLayer[Any]]:
    """``make(**options)``: a layer of two layers, in float64 by default."""

    def made(**options: Any) -> MemoryLayer[Any]:
        torch.manual_seed(0)
        layer: MemoryLayer[Any] = request.param(**({"dtype": torch.float64} | options))
        return layer

    return made


def inputs(steps: int = 5, batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return normal(steps, batch, INPUT, seed=steps, dtype=dtype)


def results(layer: Layer, x: Tensor, forward: Callable[..., Any] | None = None) -> list[Tensor]:
    """Output, state, and the gradients of x and the parameters."""
    y, state = (layer if forward is None else forward)(x)
    wanted = [x, *layer.parameters()]
    return [y, *state, *torch.autograd.grad(y.square().sum() + state.memory.square().sum(), wanted)]


# ---- compilers --------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_once_for_all_lengths(make: Callable[..., MemoryLayer[Any]], backend: str) -> None:
    """Sequences of two lengths teach the compiler that T varies; no other length makes it compile again."""
    layer = make()
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    with torch._dynamo.config.patch(error_on_recompile=False):
        for steps in (5, 8):
            torch.testing.assert_close(results(layer, inputs(steps), compiled), results(layer, inputs(steps)))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for steps in (3, 70, 33, 2):
            torch.testing.assert_close(results(layer, inputs(steps), compiled), results(layer, inputs(steps)))


@pytest.mark.usefixtures("fresh_compiler")
def test_no_length_compiles_a_large_memory_again() -> None:
    """Of long sequences with large links a part is computed again in the backward pass; how large a part depends on T."""
    layer = DNC(INPUT, HIDDEN, memory_size=128, word_size=3, dtype=torch.float64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    torch.testing.assert_close(results(layer, inputs(40), compiled), results(layer, inputs(40)))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for steps in (35, 90, 2, 3):
            torch.testing.assert_close(results(layer, inputs(steps), compiled), results(layer, inputs(steps)))


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_with_a_state_and_by_steps(make: Callable[..., MemoryLayer[Any]]) -> None:
    layer, x = make(), inputs()
    _, state = layer(x)
    y, after = torch.compile(layer, fullgraph=True, backend="aot_eager")(x, state)
    expected, last = layer(x, state)
    torch.testing.assert_close([y, *after], [expected, *last])
    step = torch.compile(layer.step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(step(x[0], state)[0], expected[0])


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("options", [{}, {"initial_memory": "learned", "dropout": 0.0}, {"layer_norm": True}], ids=str)
def test_compiled_with_lengths_and_resets(make: Callable[..., MemoryLayer[Any]], options: dict[str, Any]) -> None:
    layer = make(**options)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)

    def masked(forward: Callable[..., Any], steps: int) -> list[Tensor]:
        lengths = torch.tensor([steps - 1, steps])
        return results(layer, inputs(steps), lambda x: forward(x, lengths=lengths, resets=x[..., 0] > 0))

    torch.testing.assert_close(masked(compiled, 5), masked(layer, 5))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for steps in (3, 20, 2):
            torch.testing.assert_close(masked(compiled, steps), masked(layer, steps))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    "options",
    [{"layer_norm": True}, {"bypass_dropout": 0.5}, {"link": False, "mask_min": 0.1}, {"sharpen_link": True}],
    ids=str,
)
def test_compiled_with_options(options: dict[str, Any]) -> None:
    layer, x = dnc(dtype=torch.float64, **options).eval(), inputs(3)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(results(layer, x, compiled), results(layer, x))


def test_exported_programs(make: Callable[..., MemoryLayer[Any]]) -> None:
    """With T and B free, saved and loaded."""
    layer, x = make().requires_grad_(False), inputs().detach()
    state = layer.initial_state(2)
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    of_state = type(state)(*({1: torch.export.Dim.DYNAMIC} for _ in state))
    program = torch.export.export(layer, (x, state), dynamic_shapes=(free, of_state))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for steps, batch in ((5, 2), (9, 3)):
        x, state = inputs(steps, batch).detach(), layer.initial_state(batch)
        y, after = loaded(x, state)
        expected, last = layer(x, state)
        torch.testing.assert_close([y, *after], [expected, *last])


# ---- precision and memory ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_autocast(make: Callable[..., MemoryLayer[Any]], layer_norm: bool, low: torch.dtype) -> None:
    """The memory computes in float32, the output layer in low precision."""
    layer, x = make(dtype=torch.float32, layer_norm=layer_norm), inputs(dtype=torch.float32)
    expected = layer(x)[0]
    with torch.autocast("cpu", low):
        y, state = layer(x)
    assert y.dtype is low
    assert all(t.dtype is torch.float32 for t in state)
    torch.testing.assert_close(y.float(), expected, rtol=0.02, atol=0.02)
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype is torch.float32 for p in layer.parameters())


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_autocast_under_a_controller_of_the_users(layer_norm: bool, kind: type[nn.RNNCellBase], low: torch.dtype) -> None:
    controllers = [kind(INPUT + 10, HIDDEN), kind(HIDDEN + 20, HIDDEN)]
    layer, x = dnc(controller=controllers, layer_norm=layer_norm), inputs(dtype=torch.float32)
    expected = layer(x)[0]
    with torch.autocast("cpu", low):
        y, state = layer(x)
        y, _ = layer(x, layer.initial_state(2), lengths=[3, 5])
    assert y.dtype is low
    assert state.memory.dtype is torch.float32
    torch.testing.assert_close(y[:3].float(), expected[:3], rtol=0.02, atol=0.02)
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype is torch.float32 for p in layer.parameters())


def test_gradient_checkpointing(make: Callable[..., MemoryLayer[Any]]) -> None:
    layer, x = make(), inputs()
    expected = results(layer, x)
    y, state = checkpoint(layer, x, use_reentrant=False)
    (y.square().sum() + state.memory.square().sum()).backward()
    torch.testing.assert_close([y, *state, x.grad, *(p.grad for p in layer.parameters())], expected)


def test_deterministic_algorithms(make: Callable[..., MemoryLayer[Any]]) -> None:
    """Where nothing may be left unwritten: what is not, is NaN then."""
    layer, x = make(), inputs()
    expected = results(layer, x)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        first, second = results(layer, x), results(layer, x)
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b, wanted in zip(first, second, expected, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, wanted)


# ---- parameters -------------------------------------------------------------------------------------------------------------


def test_functional_call(make: Callable[..., MemoryLayer[Any]]) -> None:
    layer, other, x = make(), make(), inputs()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    given = {name: p.detach().clone().requires_grad_() for name, p in other.named_parameters()}
    y, _ = torch.func.functional_call(layer, given, (x,))
    expected, _ = other(x)
    torch.testing.assert_close(y, expected)
    found = torch.autograd.grad(y.sum(), list(given.values()))
    torch.testing.assert_close(found, torch.autograd.grad(expected.sum(), list(other.parameters())))


def test_parametrized_weights(make: Callable[..., MemoryLayer[Any]]) -> None:
    layer, x = make(), inputs()
    expected = layer(x)[0]
    for cell in layer.layers:
        parametrize.register_parametrization(cell.interface, "weight", Doubled())
        parametrize.register_parametrization(cell.controller, "weight_hh", Doubled())
    parametrize.register_parametrization(layer.output, "weight", Doubled())
    torch.testing.assert_close(layer(x)[0], expected)
    layer(x)[0].sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


@pytest.mark.parametrize("initial_memory", [1e-6, "learned"])
def test_made_on_the_meta_device(make: Callable[..., MemoryLayer[Any]], initial_memory: float | str) -> None:
    layer = make(device="meta", initial_memory=initial_memory)
    assert all(p.is_meta for p in layer.parameters())
    y, state = layer(inputs().detach().to("meta"))
    assert y.shape == (5, 2, HIDDEN)
    assert state.memory.shape == (2, 2, 7, 5)
    layer.to_empty(device="cpu")
    torch.manual_seed(0)
    layer.reset_parameters()
    assert layer(inputs())[0].isfinite().all()


# ---- parallel training ------------------------------------------------------------------------------------------------------


def trained(kind: str, rank: int | None) -> dict[str, Tensor]:
    """The parameters after a few steps; rank None: of one process with the whole batch."""
    torch.manual_seed(0)
    layer: Any = {"dnc": dnc, "ntm": ntm}[kind](dtype=torch.float64, initial_memory="learned")
    network = layer if rank is None else DistributedDataParallel(layer, find_unused_parameters=True)
    rows = slice(None) if rank is None else slice(2 * rank, 2 * rank + 2)
    optimiser = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9)
    for number in range(3):
        x = normal(5, 4, INPUT, seed=number)[:, rows]
        state = None
        for part in x.split([3, 2]):
            y, state = network(part, None if state is None else state.detach())
            optimiser.zero_grad()
            y.square().mean().backward()
            optimiser.step()
    return {name: p.detach() for name, p in layer.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dnc", "ntm"])
def test_two_processes_train_as_one(tmp_path: Path, kind: str) -> None:
    check_two_processes_train_as_one(functools.partial(trained, kind), tmp_path)
