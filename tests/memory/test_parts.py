"""Accessors, heads, controller and memory on their own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers import normal
from torch import Tensor

from routing_ext.memory import (
    Accessor,
    DNCCircuit,
    DynamicAccessor,
    DynamicHead,
    DynamicReadHead,
    DynamicWriteHead,
    External2DMemory,
    ExternalMemory,
    Head,
    LSTMController,
    NTMCircuit,
    StaticAccessor,
    StaticHead,
    StaticReadHead,
    StaticWriteHead,
)

SIZES = {"hidden_dim": 6, "num_write_heads": 2, "num_read_heads": 3, "mem_hei": 7, "mem_wid": 5}
ACCESSORS = [DynamicAccessor, StaticAccessor]


def accessor_of(kind: type[Accessor], **options: Any) -> Accessor:
    torch.manual_seed(0)
    accessor = kind(**SIZES, dtype=torch.float64, **options)
    with torch.no_grad():
        for parameter in accessor.parameters():
            parameter *= 3
    return accessor


def hidden_states(steps: int = 5, batch: int = 2) -> Tensor:
    return normal(steps, batch, SIZES["hidden_dim"], seed=steps)


def step_of_parts(accessor: Accessor, hidden: Tensor) -> Tensor:
    """The step as the reference's accessors compute it, head by head."""
    writes, reads, memory = accessor.write_heads, accessor.read_heads, accessor.memory
    if isinstance(accessor, DynamicAccessor):
        accessor.usage_vb = writes._update_usage(accessor.usage_vb)
        accessor.usage_vb = reads._update_usage(hidden, accessor.usage_vb)
        memory.memory_vb = writes(hidden, memory.memory_vb, accessor.usage_vb)
        accessor.link_vb, accessor.preced_vb = writes._temporal_link(accessor.link_vb, accessor.preced_vb)
        vectors = reads(hidden, memory.memory_vb, accessor.link_vb, writes.num_heads)
    else:
        memory.memory_vb = writes(hidden, memory.memory_vb)
        vectors = reads(hidden, memory.memory_vb)
    assert isinstance(vectors, Tensor)
    return vectors


@pytest.mark.parametrize("kind", ACCESSORS)
@pytest.mark.parametrize("options", [{}, {"usage": "paper"}, {"usage": "package"}, {"allocation": "softmax"}], ids=str)
def test_heads_one_by_one_are_the_accessor(kind: type[Accessor], options: dict[str, Any]) -> None:
    whole = accessor_of(kind, **options, batch_size=2)
    parts = copy.deepcopy(whole)
    hidden = hidden_states()
    expected = torch.stack([whole(h) for h in hidden])
    found = torch.stack([step_of_parts(parts, h) for h in hidden])
    torch.testing.assert_close(found, expected)
    for field in whole._owned:
        torch.testing.assert_close(parts._field(field), whole._field(field))
    ours, theirs = (torch.autograd.grad(t.sum(), [hidden, *a.parameters()]) for t, a in ((expected, whole), (found, parts)))
    torch.testing.assert_close(theirs, ours)


@pytest.mark.parametrize("kind", ACCESSORS)
def test_accessor_on_its_own(kind: type[Accessor]) -> None:
    """Any batch, also without batch_size."""
    accessor = accessor_of(kind)
    for batch in (3, 1):
        accessor._reset_states()
        vectors = accessor(hidden_states(1, batch)[0])
        assert vectors.shape == (batch, 3, 5)
        assert accessor.memory.memory_vb.shape == (batch, 7, 5)
        assert vectors.requires_grad


@pytest.mark.parametrize(("circuit_kind", "kind"), [(DNCCircuit, DynamicAccessor), (NTMCircuit, StaticAccessor)])
def test_controller_and_accessor_are_the_circuit(circuit_kind: type[Any], kind: type[Accessor]) -> None:
    torch.manual_seed(0)
    circuit = circuit_kind(**SIZES, input_dim=4, output_dim=3, dtype=torch.float64)
    controller = LSTMController(input_dim=4, read_vec_dim=15, hidden_dim=6, dtype=torch.float64)
    controller.load_state_dict(circuit.controller.state_dict())
    accessor = kind(**SIZES, dtype=torch.float64)
    accessor.load_state_dict(circuit.accessor.state_dict())
    vectors = torch.full((2, 15), 1e-6, dtype=torch.float64)
    for x in normal(4, 2, 4, seed=1):
        hidden = controller(x, vectors)
        vectors = accessor(hidden)
        y = circuit.hid_to_out(torch.cat([hidden, vectors.flatten(1)], 1)).clamp(-20, 20).sigmoid()
        torch.testing.assert_close(circuit(x)[0], y)
        torch.testing.assert_close(circuit.read_vec_vb, vectors)


def test_a_head_with_the_reference_usage_changes_it_in_place() -> None:
    for usage, changes in (("reference", True), ("paper", False)):
        head = DynamicWriteHead(num_heads=2, hidden_dim=6, mem_hei=7, mem_wid=5, usage=usage)
        in_use = torch.full((2, 7), 0.5)
        head(torch.zeros(2, 6), torch.zeros(2, 7, 5), in_use)
        assert bool((in_use > 0.5).any()) == changes


@pytest.mark.parametrize("kind", [DynamicWriteHead, DynamicReadHead, StaticWriteHead, StaticReadHead])
def test_heads(kind: type[Head]) -> None:
    head = kind(num_heads=2, hidden_dim=6, mem_hei=7, mem_wid=5, batch_size=3)
    assert isinstance(head, DynamicHead if kind.__name__.startswith("Dynamic") else StaticHead)
    assert head.wl_prev_vb.shape == (3, 2, 7)
    assert torch.equal(head.wl_prev_vb, torch.eye(7)[0].expand(3, 2, 7))
    head.wl_prev_vb = torch.full((3, 2, 7), 0.125)
    assert (head.wl_curr_vb == 0.125).all()
    head._reset_states()
    assert (head.wl_prev_vb[..., 0] == 1).all()
    with pytest.raises(TypeError, match=f"{kind.__name__}: num_heads must be given"):
        kind(hidden_dim=6, mem_hei=7, mem_wid=5)


def test_controller() -> None:
    controller = LSTMController(input_dim=4, read_vec_dim=15, hidden_dim=6, clip_value=0.01)
    hidden = controller(torch.ones(1, 2, 4), torch.ones(2, 3, 5))
    assert hidden.shape == (2, 6)
    assert (hidden.abs() <= 0.01).all()
    assert controller.lstm_hidden_vb[0] is hidden
    assert controller.lstm_hidden_vb[1].abs().max() > 0.01
    controller._reset_states()
    assert not any(t.any() for t in controller.lstm_hidden_vb)


@pytest.mark.parametrize("dtype", [None, torch.float64, torch.DoubleTensor])
def test_memory(dtype: Any) -> None:
    memory = External2DMemory(mem_hei=7, mem_wid=5, batch_size=2, dtype=dtype)
    assert isinstance(memory, ExternalMemory)
    expected = torch.full((2, 7, 5), 1e-6, dtype=torch.float32 if dtype is None else torch.float64)
    torch.testing.assert_close(memory.memory_vb, expected, rtol=0, atol=0)
    memory.memory_vb = torch.ones(3, 7, 5)
    assert memory.memory_vb.shape == (3, 7, 5)
    memory._reset_states()
    assert torch.equal(memory.memory_vb, expected)


def test_wrong_arguments() -> None:
    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64)

    dynamic, static = (accessor_of(kind) for kind in ACCESSORS)
    hidden, memory, link = zeros(2, 6), zeros(2, 7, 5), zeros(2, 2, 7, 7)
    for call, message in (
        (lambda: dynamic(zeros(3, 4)), r"DynamicAccessor: hidden_vb must be \[B, 6\], got \[3, 4\]"),
        (
            lambda: dynamic.write_heads(hidden, memory, zeros(2, 6)),
            r"DynamicWriteHead: usage_vb must be \[2, 7\], got \[2, 6\]",
        ),
        (
            lambda: dynamic.read_heads(hidden, memory[:1], link),
            r"DynamicReadHead: memory_vb must be \[2, 7, 5\], got \[1, 7, 5\]",
        ),
        (lambda: dynamic.read_heads(hidden, memory, link[:, :1]), r"link_vb must be \[2, 2, 7, 7\], got \[2, 1, 7, 7\]"),
        (lambda: static.write_heads(zeros(6), memory), r"StaticWriteHead: hidden_vb must be \[B, 6\], got \[6\]"),
        (lambda: static.read_heads(hidden, memory[0]), r"StaticReadHead: memory_vb must be \[2, 7, 5\], got \[7, 5\]"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    controller = LSTMController(input_dim=4, read_vec_dim=15, hidden_dim=6)
    with pytest.raises(ValueError, match=r"LSTMController: input_vb must be \[B, 4\], got \[2, 3\]"):
        controller(torch.zeros(2, 3), torch.zeros(2, 15))
    with pytest.raises(ValueError, match=r"LSTMController: read_vec_vb must be \[2, 15\], got \[3, 15\]"):
        controller(torch.zeros(2, 4), torch.zeros(3, 3, 5))


class FakeVisdom:
    def __init__(self) -> None:
        self.drawn: dict[str, tuple[int, ...]] = {}

    def heatmap(self, image: Any, env: str, win: str, opts: dict[str, str]) -> str:
        assert env == "run"
        assert win in (f"win_{opts['title']}", "window")
        self.drawn[opts["title"]] = image.shape
        return "window"


@pytest.mark.parametrize("kind", ACCESSORS)
def test_visual(kind: type[Accessor]) -> None:
    """As the reference draws: weights as ``[N,heads]`` and the memory of the first sample."""
    vis = FakeVisdom()
    shown = {"visualize": True, "vis": vis, "refs": "run"}

    class Args:
        write_head_params = read_head_params = memory_params = type("Params", (), shown)()

    accessor = kind(Args(), **SIZES)
    accessor(torch.zeros(2, 6))
    for _ in range(2):
        accessor.visual()
    assert vis.drawn == {"write_head": (7, 2), "read_head": (7, 3), "memory": (7, 5)}
    quiet = kind(**SIZES)
    quiet.visual()
