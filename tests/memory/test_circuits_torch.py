"""The circuits under torch's own machinery: low precision, modes, hooks, transforms, threads, processes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from circuits import Run, inputs
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from routing_ext.memory import Circuit

Make = Callable[..., Circuit]


def gradients(circuit: Circuit, y: Tensor, *more: Tensor, retain_graph: bool = False) -> list[Tensor]:
    wanted = [*more, *circuit.parameters()]
    return list(torch.autograd.grad(y.square().sum(), wanted, retain_graph=retain_graph))


def copied(circuit: Circuit, **options: Any) -> Circuit:
    """A circuit of its own with the same parameters."""
    sizes = ("input_dim", "output_dim", "hidden_dim", "num_write_heads", "num_read_heads", "mem_hei", "mem_wid")
    other = type(circuit)(**{name: getattr(circuit, name) for name in sizes}, dtype=torch.float64, **options)
    other.load_state_dict(circuit.state_dict())
    return other


# ---- precision and devices --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("parameters", ["float32", "low"])
def test_low_precision_under_autocast(make: Make, run: Run, low: torch.dtype, parameters: str) -> None:
    """All of it is computed in float32, the state included."""
    circuit, x = make(dtype=torch.float32), inputs(dtype=low).requires_grad_()
    if parameters == "low":
        circuit.to(low)
    with torch.autocast("cpu", torch.bfloat16):
        y = run(circuit, x)
        circuit._reset_states()
        circuit(x[0])
        assert all(t.dtype is torch.float32 for t in circuit.state)
        assert all(t.dtype is torch.float32 for t in circuit.unroll(x)[1])
    assert y.dtype is torch.float32
    found = gradients(circuit, y, x)
    assert [g.dtype for g in found] == [low, *(p.dtype for p in circuit.parameters())]
    circuit.float()
    circuit._reset_states()
    wide = x.detach().float().requires_grad_()
    expected = run(circuit, wide)
    assert torch.equal(y, expected)
    for mine, wanted in zip(found, gradients(circuit, expected, wide), strict=True):
        torch.testing.assert_close(mine.float(), wanted.float(), rtol=0.02, atol=0.01 * wanted.abs().max().item())


def test_low_precision_needs_autocast(make: Make) -> None:
    circuit, x = make(dtype=torch.bfloat16), inputs(dtype=torch.bfloat16)
    kind = type(circuit).__name__
    with pytest.raises(TypeError, match=f"{kind}: parameters must be float32 or float64, got torch.bfloat16"):
        circuit(x[0])
    with pytest.raises(RuntimeError, match="memory_sequence: x must be float32 or float64, got BFloat16"):
        circuit.unroll(x)
    with pytest.raises(RuntimeError, match="memory_step: x must have dtype Float, got BFloat16"):
        circuit.float()(x[0])


def test_to_another_device(make: Make) -> None:
    """In the middle of a sequence."""
    circuit, x = make(), inputs()
    circuit(x[0])
    circuit.to("meta")
    assert all(t.is_meta for t in circuit.state)
    assert circuit.accessor.memory.memory_vb.is_meta
    circuit._reset_states()
    assert circuit.accessor.memory.memory_vb.is_meta
    y, state = circuit.unroll(x.to("meta"))
    assert y.is_meta
    assert y.shape == (6, 2, 3)
    assert all(t.is_meta for t in state)


@pytest.mark.parametrize("batch", [0, 1])
def test_empty_batch_and_batch_of_one(make: Make, run: Run, batch: int) -> None:
    circuit, x = make(), inputs(3, batch).requires_grad_()
    y = run(circuit, x)
    assert y.shape == (3, batch, 3)
    of_x, *of_parameters = gradients(circuit, y, x)
    assert of_x.shape == x.shape
    assert any(g.any() for g in of_parameters) == (batch > 0)


# ---- modes ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_without_gradients(make: Make, run: Run, mode: Callable[[], Any]) -> None:
    circuit, x = make(), inputs()
    expected = run(circuit, x)
    with mode():
        assert torch.equal(run(circuit, x), expected)
    torch.testing.assert_close(gradients(circuit, run(circuit, x)), gradients(circuit, expected))


def test_gradients_for_some_of_the_steps(make: Make) -> None:
    """What is computed without gradients is a constant to what follows."""
    circuit, x = make(), inputs()
    with torch.no_grad():
        _, state = circuit.unroll(x[:3])
        for x_t in x[:3]:
            circuit(x_t)
    found = gradients(circuit, torch.cat([circuit(x_t) for x_t in x[3:]]))
    torch.testing.assert_close(found, gradients(circuit, circuit.unroll(x[3:], state)[0]))


@pytest.mark.parametrize("name", ["controller.in_2_hid.weight_ih", "accessor.write_heads.hid_2_key.bias"])
@pytest.mark.parametrize("frozen", [range(2), range(2, 6), range(2, 4)], ids=str)
def test_parameters_are_frozen_for_some_of_the_steps(make: Make, name: str, frozen: Sequence[int]) -> None:
    circuit, x = make(), inputs()
    parameter, state = circuit.get_parameter(name), circuit.initial_state(2)
    ys, expected = [], []
    for t, x_t in enumerate(x):
        parameter.requires_grad_(t not in frozen)
        ys.append(circuit(x_t))
        y, state = circuit.unroll(x_t.unsqueeze(0), state)
        expected.append(y)
    parameter.requires_grad_()
    torch.testing.assert_close(gradients(circuit, torch.cat(ys)), gradients(circuit, torch.cat(expected)))


def test_values_changed_without_autograd(make: Make, run: Run) -> None:
    """As old code does it. Autograd does not learn of it, the next sequence does."""
    circuit, x = make(), inputs()
    before = run(circuit, x)
    for change in (
        lambda t: t.data.neg_(),
        lambda t: t.data.mul_(1.5),
        lambda t: t.data[-1:].add_(1.0),
        lambda t: setattr(t, "data", t.data * 0.5),
    ):
        for parameter in circuit.parameters():
            change(parameter)
        y = run(circuit, x)
        assert not torch.equal(y, before)
        assert torch.equal(y, run(copied(circuit), x))
        before = y


# ---- what is saved for the backward pass ------------------------------------------------------------------------------------


def test_what_is_returned_may_be_changed(make: Make, run: Run) -> None:
    """In place: the backward pass does not need it."""
    circuit, x = make(), inputs()
    expected = gradients(circuit, run(circuit, x))
    loss = run(circuit, x).square().sum()
    _, state = circuit.unroll(x)
    y, last = circuit.unroll(x)
    with torch.no_grad():
        for t in (*state, *last):
            t.fill_(0.5)
    torch.testing.assert_close(gradients(circuit, y), expected)
    torch.testing.assert_close(list(torch.autograd.grad(loss, list(circuit.parameters()))), expected)


def test_input_changed_before_backward(make: Make) -> None:
    circuit, x = make(), inputs()
    expected = gradients(circuit, circuit.unroll(x)[0])
    changing = x.clone()
    y = torch.cat([circuit(x_t) for x_t in changing])  # steps have copied it
    whole = circuit.unroll(changing)[0].sum()
    changing.zero_()
    torch.testing.assert_close(gradients(circuit, y), expected)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        whole.backward()


def test_checkpoints_and_saved_tensors_elsewhere(make: Make, run: Run) -> None:
    circuit, x = make(), inputs().requires_grad_()
    expected = gradients(circuit, run(circuit, x), x)
    again = checkpoint(lambda t: run(circuit, t), x, use_reentrant=False)
    assert isinstance(again, Tensor)
    torch.testing.assert_close(gradients(circuit, again, x), expected)
    with torch.autograd.graph.save_on_cpu():
        y = run(circuit, x)
    torch.testing.assert_close(gradients(circuit, y, x), expected)


# ---- derivatives that there are not -----------------------------------------------------------------------------------------


def test_transforms_raise(make: Make, run: Run) -> None:
    """Rather than give no derivative, or a wrong one."""
    circuit, x = make(), inputs()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(run(circuit, x.requires_grad_()).sum(), x, create_graph=True)
    circuit._reset_states()
    with pytest.raises(RuntimeError, match=r"functorch|Batching rule"):
        torch.func.vmap(lambda t: run(circuit, t))(torch.stack([x, x]))
    circuit._reset_states()
    with pytest.raises(RuntimeError):
        torch.func.grad(lambda t: run(circuit, t).sum())(x.detach())
    circuit._reset_states()
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="jvp"):
        run(circuit, forward_ad.make_dual(x.detach(), torch.ones_like(x)))


# ---- parameters that are computed -------------------------------------------------------------------------------------------


def test_parametrized_weights(make: Make, run: Run) -> None:
    circuit, x = make(), inputs()
    expected = run(circuit, x)
    parametrizations.weight_norm(circuit.hid_to_out)
    parametrizations.weight_norm(circuit.accessor.read_heads.hid_2_key)
    y = run(circuit, x)
    torch.testing.assert_close(y, expected)
    assert all(g.any() for g in gradients(circuit, y))


def test_a_layer_without_bias(make: Make, run: Run) -> None:
    circuit = make()
    circuit.hid_to_out = torch.nn.Linear(21, 3, bias=False, dtype=torch.float64)
    with pytest.raises(TypeError, match=f"{type(circuit).__name__}: all linear maps must have a bias"):
        run(circuit, inputs())


# ---- threads and processes --------------------------------------------------------------------------------------------------


def in_threads(work: Callable[[], Any], count: int = 3) -> list[Any]:
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(work())) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == count
    return found


def test_sequences_on_several_threads(make: Make, run: Run) -> None:
    """Of one circuit by unroll; step by step each thread has its own, with the state of its sequence."""
    circuit, x = make(), inputs()
    expected = gradients(circuit, run(circuit, x))

    def work() -> bool:
        own = copied(circuit)
        for _ in range(20):
            mine = [*gradients(circuit, circuit.unroll(x)[0]), *gradients(own, run(own, x))]
            torch.testing.assert_close(mine, expected * 2)
        return True

    assert all(in_threads(work))


def test_backward_passes_on_several_threads(make: Make, run: Run) -> None:
    """Through one graph."""
    circuit, x = make(), inputs(40).requires_grad_()
    y = run(circuit, x)
    expected = gradients(circuit, y, x, retain_graph=True)
    for _ in range(5):
        for found in in_threads(lambda: gradients(circuit, y, x, retain_graph=True)):
            torch.testing.assert_close(found, expected)


def test_a_backward_pass_within_another(make: Make) -> None:
    """From a hook between two steps, through the same graph."""
    circuit, x = make(), inputs().requires_grad_()
    parameters = list(circuit.parameters())
    within: list[tuple[Tensor, ...]] = []
    ys = []
    for t, x_t in enumerate(x.unbind()):
        row = x_t.clone()
        if t == 3:
            row.register_hook(lambda _: within.append(torch.autograd.grad(last, parameters, retain_graph=True)))
        ys.append(circuit(row))
    last = ys[-1].square().sum()
    found = torch.autograd.grad(torch.cat(ys).square().sum(), [x, *parameters], retain_graph=True)
    y, _ = circuit.unroll(x)
    torch.testing.assert_close(within, [torch.autograd.grad(y[-1].square().sum(), parameters, retain_graph=True)])
    torch.testing.assert_close(list(found), gradients(circuit, y, x))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the workers of a DataLoader have it: a child that was forked has none of its parent's OpenMP threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_forked_processes(make: Make, run: Run, one_thread: None) -> None:
    circuit, x = make(), inputs()
    y = run(circuit, x)
    expected = gradients(circuit, y)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            again = run(circuit, x)
            same = torch.equal(again, y.detach()) and all(map(torch.equal, gradients(circuit, again), expected))
            code = 0 if same else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
