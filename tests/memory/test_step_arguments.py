"""What the operators of single steps, behind circuits, refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from routing_ext.memory import NTM, NtmState
from routing_ext.ops import ntm_sequence

OPS: Any = torch.ops.routing_ext
B, I, H, O, N, W, V, R, S = 2, 3, 4, 2, 5, 2, 1, 1, 3  # noqa: E741
SIZES = [I, H, O, N, W, V, R, S]


def weights() -> list[Tensor]:
    parts = [V * W, V, V, V * S, V, V * W, V * W, R * W, R, R, R * S, R]
    shapes: list[tuple[int, ...]] = [(4 * H, I + R * W), (4 * H, H), (4 * H,), (4 * H,)]
    shapes += [shape for n in parts for shape in ((n, H), (n,))] + [(O, H + R * W), (O,)]
    return [torch.randn(shape) for shape in shapes]


@pytest.fixture
def tape() -> Tensor:
    return torch.zeros(3, B, OPS.memory_step_layout("ntm", [], SIZES, torch.float32)[0])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(2, 1, 1), r"inputs must be contiguous of shape \[2, 2, 3\], got \[2, 1, 1\]"),
        (torch.zeros(2, I, B).mT, r"inputs must be contiguous of shape \[2, 2, 3\]"),
        (torch.zeros(2, B), r"inputs must have 3 dimension\(s\), got \[2, 2\]"),
        (torch.zeros(2, B, I, dtype=torch.float64), "inputs must have dtype Float, got Double"),
    ],
)
def test_inputs_that_cannot_be_kept(inputs: Tensor, message: str, tape: Tensor) -> None:
    x, before = torch.randn(B, I), tape.clone()
    packed = OPS.memory_pack("ntm", [], x[None], weights(), N, False)
    with pytest.raises(RuntimeError, match=f"^memory_step: {message}"):
        OPS.memory_step("ntm", [], SIZES, 20.0, packed, x, tape, inputs, None, None, 0, 1)
    assert torch.equal(tape, before)


def test_packed_weights_of_another_dtype(tape: Tensor) -> None:
    x = torch.randn(B, I)
    packed = OPS.memory_pack("ntm", [], x[None], weights(), N, False).view(torch.int32)
    with pytest.raises(RuntimeError, match=r"^memory_step: packed must have dtype Float, got Int"):
        OPS.memory_step("ntm", [], SIZES, 20.0, packed, x, tape, torch.zeros(2, B, I), None, None, 0, 1)


def test_no_link_to_compute_again(tape: Tensor) -> None:
    with pytest.raises(RuntimeError, match=r"^memory_step_relink: model must be a dnc with a link, got ntm"):
        OPS.memory_step_relink("ntm", [], SIZES, tape, None, torch.zeros(0), 0)


def test_memory_of_resets_under_autocast() -> None:
    x, resets = torch.randn(4, B, I, dtype=torch.bfloat16), torch.ones(4, B, dtype=torch.bool)
    memory = torch.zeros(B, N, W, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = ntm_sequence(x, weights(), num_locations=N, resets=resets, reset_memory=memory)
    assert y.dtype == torch.float32
    assert isinstance(state, NtmState)


def test_parts_of_an_interface_tell_that_the_whole_was_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the operator wants the parts one by one, as on a GPU."""
    layer, x = NTM(I, H, memory_size=N, word_size=W), torch.randn(4, B, I)
    monkeypatch.setattr(Tensor, "is_cpu", False)
    y, _ = layer(x)
    with torch.no_grad():
        layer.layers[0].interface.weight.mul_(2)  # type: ignore[union-attr,operator]
    with pytest.raises(RuntimeError, match="has been modified inplace"):
        y.sum().backward()
