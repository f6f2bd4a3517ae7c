"""What only a GPU can show: other streams and devices, capture and replay of graphs, and that nothing waits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from routing_ext.memory import Circuit, DNCCircuit, NTMCircuit
from routing_ext.ops import (
    combine_rows,
    dispatch_plan,
    dnc_sequence,
    gather_rows,
    grouped_linear,
    ntm_sequence,
    scatter_rows,
)
from routing_ext.ops.policy_gradients import discounted_returns, preference_states, sample_by_inversion, taken, wpl_losses
from routing_ext.routing import WPL, Initialization, LinearBank, Loss, NegLossReward, Selection, fast_sampling

B, D, OUT, K = 257, 64, 48, 20


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float64], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = request.param
    return found


def inputs(dtype: torch.dtype = torch.float32, device: str = "cuda") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``x [B,D], actions [B], weights [K,OUT,D], biases [K,OUT]``."""
    g = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(s, generator=g).to(device, dtype).requires_grad_() for s in ((B, D), (K, OUT, D), (K, OUT)))
    return x, torch.randint(K, (B,), generator=g).to(device), w, b


def everything(dtype: torch.dtype, device: str = "cuda") -> dict[str, Callable[[], list[Tensor]]]:
    """A call of each operator, with its gradients."""
    x, actions, w, b = inputs(dtype, device)
    float_dtype = torch.float64 if dtype is torch.float64 else torch.float32
    rows = [torch.randn(9, K, 2, device=device, dtype=float_dtype).requires_grad_() for _ in range(2)]
    row_of = [actions % 9] * 2
    returns = [torch.randn(B, device=device, dtype=float_dtype) for _ in range(2)]

    def linear() -> list[Tensor]:
        y = grouped_linear(x, w, b, dispatch_plan(actions, K), "relu")
        return [y, *torch.autograd.grad(y.float().square().sum(), (x, w, b))]

    def moved() -> list[Tensor]:
        order = dispatch_plan(actions, K).order
        there = gather_rows(x, order)
        return [there, *torch.autograd.grad(scatter_rows(there, order, B).float().square().sum(), x)]

    def combined() -> list[Tensor]:
        weights = w[0, 0, 0] * torch.ones((B, 1), device=device, dtype=dtype)
        y = combine_rows(x, weights)
        return [y, *torch.autograd.grad(y.float().sum(), (x, w))]

    def decided() -> list[Tensor]:
        tables = [t[:1, :, 0] for t in rows]
        states, probs = preference_states(tables, tables)
        losses = wpl_losses(rows, row_of, [actions] * 2, returns)
        total = states.sum() + losses.sum() + sum(t.sum() for t in taken(rows, row_of, [actions] * 2))
        own, earned = discounted_returns(returns, returns[0], True, 0.9)
        drawn = sample_by_inversion(probs, actions % 2, None, [B], B)
        return [states, probs, losses, *own, *earned, *torch.autograd.grad(total, rows), drawn - drawn]

    remembered = sequences(float_dtype, device)
    return {"linear": linear, "moved": moved, "combined": combined, "decided": decided, "remembered": remembered}


def sequences(dtype: torch.dtype, device: str = "cuda") -> Callable[[], list[Tensor]]:
    """Of memory networks, with lengths and resets."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn((5, 7, 3), generator=g).to(device, dtype).requires_grad_()
    masks = {"lengths": torch.randint(6, (7,), generator=g), "resets": torch.rand((5, 7), generator=g) < 0.2}
    masks = {name: t.to(device) for name, t in masks.items()}
    sizes = {"input_dim": 3, "output_dim": 2, "hidden_dim": 20, "num_write_heads": 2, "num_read_heads": 3}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        circuits: list[Circuit] = [
            kind(**sizes, mem_hei=40, mem_wid=9, dtype=dtype).to(device) for kind in (DNCCircuit, NTMCircuit)
        ]

    def remembered() -> list[Tensor]:
        results: list[Tensor] = []
        for circuit, sequence in zip(circuits, (dnc_sequence, ntm_sequence), strict=True):
            y, state = sequence(x, circuit._weights(), num_locations=40, **masks)
            loss = y.square().sum() + state.memory.sum()
            results += [y, *state, *torch.autograd.grad(loss, [x, *circuit.parameters()])]
        return results

    return remembered


NAMES = ["linear", "moved", "combined", "decided", "remembered"]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_bits_each_time(name: str, dtype: torch.dtype) -> None:
    call = everything(dtype)[name]
    first = call()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(call(), first, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_on_another_stream(name: str, dtype: torch.dtype) -> None:
    """Behind work that is still running there: a kernel on the default stream would not wait for it."""
    call = everything(dtype)[name]
    expected = call()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    x, *_ = inputs(dtype)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        source = torch.zeros_like(x)
        source.copy_(x)
        found = call()
        late = gather_rows(source, torch.arange(B, device="cuda"))
    stream.synchronize()
    assert torch.equal(late, x)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", NAMES)
def test_on_another_device(name: str, dtype: torch.dtype) -> None:
    assert torch.cuda.current_device() == 0
    found = everything(dtype, "cuda:1")[name]()
    assert all(t.device == torch.device("cuda", 1) for t in found)
    assert torch.cuda.current_device() == 0
    assert all(torch.isfinite(t).all() for t in found)


def captured(call: Callable[[], list[Tensor]]) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    return graph, results


@pytest.mark.parametrize("name", NAMES)
def test_replayed(name: str, dtype: torch.dtype) -> None:
    call = everything(dtype)[name]
    expected = call()
    graph, results = captured(call)
    for _ in range(2):
        for t in results:
            t.detach().zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_replayed_with_other_actions() -> None:
    x, actions, *_ = inputs()
    bank = LinearBank(K, D, OUT, device="cuda")

    def call() -> list[Tensor]:
        plan = dispatch_plan(actions, K)
        y = bank(x, plan)
        return [y, *torch.autograd.grad(y.square().sum(), [x, *bank.parameters()]), plan.layout]

    graph, results = captured(call)
    for seed in range(3):
        actions.copy_(torch.randint(K, (B,), generator=torch.Generator().manual_seed(seed)))
        graph.replay()
        replayed = [t.clone() for t in results]
        assert all(torch.equal(a, b) for a, b in zip(replayed, call(), strict=True))
    actions[3] = K
    graph.replay()
    assert results[-1][-1].item() == 3


@contextlib.contextmanager
def waiting_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_forward_of_linear_modules_waits_for_nothing() -> None:
    selection = Selection(*(nn.Linear(D, OUT).cuda() for _ in range(K)))
    bank = LinearBank(K, D, OUT, device="cuda")
    x, actions = torch.randn(B, D).cuda(), torch.zeros(B, dtype=torch.int64, device="cuda")
    with waiting_is_an_error():
        selection(x, [None] * B, actions)
        bank(x, actions).sum().backward()


def test_step_of_one_agent_waits_for_nothing() -> None:
    decision, loss = WPL(K, D, policy_storage_type="tabular").cuda(), Loss(nn.CrossEntropyLoss(), NegLossReward())
    x = torch.zeros(B, D, device="cuda", requires_grad=True)
    targets = F.one_hot(torch.zeros(B, dtype=torch.int64, device="cuda"), D).float()
    with waiting_is_an_error():
        with fast_sampling():
            ys, mxs, _ = decision(x, Initialization()(x)[1])
        sum(loss(ys, mxs, targets)).backward()  # type: ignore[union-attr]


def test_sequence_waits_for_nothing() -> None:
    call = sequences(torch.float32)
    with waiting_is_an_error():
        call()


def test_an_action_out_of_range_is_told_later() -> None:
    x, actions, *_ = inputs()
    actions[7] = K
    plan = dispatch_plan(actions, K)
    y = LinearBank(K, D, OUT, device="cuda")(x, plan)
    assert not y[7].any()
    with pytest.raises(IndexError, match="sample 7"):
        plan.host_offsets()
