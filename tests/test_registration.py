"""Every operator of csrc/schema.cpp has its kernels, and none of them loses a gradient in silence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

import routing_ext

SCHEMA = Path(__file__).resolve().parent.parent / "csrc" / "schema.cpp"
PAGE = SCHEMA.parents[1] / "docs" / "gpu.md"
OPERATORS = re.findall(r'm\.def\(\s*"(\w+)\(', SCHEMA.read_text())

# What each operator that can be asked for a gradient is called with; x, [3, 2], is what requires it.
ORDER = torch.tensor([0, 2, 1])
LAYOUT = torch.tensor([0, 2, 3, -1])
WEIGHTS = [torch.ones(2, 2), torch.ones(2, 2)]
raw = torch.ops.routing_ext


def ones(*shape: int) -> Tensor:
    return torch.ones(3, *shape)


def dnc_state(x: Tensor) -> tuple[Tensor, ...]:
    return ones(2, 2), x, ones(1, 2), ones(1, 2, 2), ones(1, 2), ones(1, 2)


def ntm_state(x: Tensor) -> tuple[Tensor, ...]:
    return ones(2, 2), x[:, None], ones(1, 2)


CALLS = {
    "gather_rows": lambda x: (x, ORDER),
    "scatter_rows": lambda x: (x, ORDER, 3),
    "combine_rows": lambda x: (x, ones(1)),
    "combine_rows_backward": lambda x: (x, ones(2), ones(1), (True, True)),
    "grouped_linear": lambda x: (x, ORDER, LAYOUT, WEIGHTS, [], [0, 1], 2, False),
    "grouped_linear_backward": lambda x: (x, None, x, ORDER, LAYOUT, WEIGHTS, [0, 1], 2, (True, True, True)),
    "discounted_returns": lambda x: ([x[:, 0]], ones(), False, 1.0),
    "preference_states_forward": lambda x: ([x], [x]),
    "preference_states_backward": lambda x: (x[:, :, None].expand(3, 2, 2), [ones(2)]),
    "taken_forward": lambda x: ([x], [], [ORDER[:2] // 2]),
    "taken_backward": lambda x: ([x[:2, 0]], None, [ones(2)], [], [ORDER[:2] // 2]),
    "wpl_losses_forward": lambda x: ([x[:, :, None].expand(3, 2, 2)], [], [ORDER[:2] // 2], [torch.ones(2)]),
    "content_weights": lambda x: (x[:, None], ones(1), ones(2, 2)),
    "content_weights_backward": lambda x: (x[:, None], x[:, None], ones(1), ones(2, 2)),
    "dnc_usage": lambda x: (x, ones(1, 2), ones(1), ones(1, 2)),
    "dnc_usage_backward": lambda x: (x, x, ones(1, 2), ones(1), ones(1, 2)),
    "dnc_allocation": lambda x: (x, ones(1), 0.0),
    "dnc_allocation_backward": lambda x: (None, x, x, ones(1), ones(1, 2), 0.0),
    "dnc_temporal_link": lambda x: (ones(1, 2, 2), x[:, None], ones(1, 2), ones(1, 2)),
    "dnc_temporal_link_backward": lambda x: (*[None] * 4, ones(1, 2, 2), x[:, None], ones(1, 2), ones(1, 2)),
    "ntm_location": lambda x: (x[:, None], ones(1), ones(1, 3), ones(1), ones(1, 2)),
    "ntm_location_backward": lambda x: (x[:, None], x[:, None], ones(1), ones(1, 3), ones(1), ones(1, 2)),
    "memory_write": lambda x: (ones(2, 2), x[:, None], ones(1, 2), ones(1, 2)),
    "memory_write_backward": lambda x: (ones(2, 2), ones(2, 2), x[:, None], ones(1, 2), ones(1, 2)),
    "memory_read": lambda x: (ones(2, 2), x[:, None]),
    "memory_read_backward": lambda x: (x[:, None], ones(2, 2), ones(1, 2)),
    "dnc_access": lambda x: (ones(16), *dnc_state(x), []),
    "dnc_access_backward": lambda x: (
        *[None] * 7,
        ones(16),
        *dnc_state(x),
        raw.dnc_access(ones(16), *dnc_state(x), [])[-1],
        [],
    ),
    "ntm_access": lambda x: (ones(20), *ntm_state(x), []),
    "ntm_access_backward": lambda x: (
        *[None] * 4,
        ones(20),
        *ntm_state(x),
        raw.ntm_access(ones(20), *ntm_state(x), [])[-1],
        [],
    ),
}
# Of or to integers: without a gradient.
INTEGER = {"dispatch_plan", "rank_of_module", "collaboration_rewards", "latest_actions"}
INTEGER |= {"sample_by_inversion", "sample_categorical"}
# With a gradient, above the devices' kernels.
DOORS = {"grouped_linear_node", "memory_sequence_node", "preference_states", "taken", "wpl_losses"}
LAYOUTS = {"memory_row_size", "memory_step_layout"}  # numbers, on any device
# A sequence as a whole, and what single steps do to their tape: tests/ops/test_memory_sequence.py and tests/memory hold these.
SEQUENCES = {"memory_sequence", "memory_sequence_backward", "pooled_empty", "memory_pack"}
SEQUENCES |= {op for op in OPERATORS if op.startswith("memory_step")} - LAYOUTS
# Without a CUDA kernel; docs/gpu.md says what a call with CUDA tensors does instead.
CPU_ONLY = {"grouped_linear_node"}


def has_kernel(op: str, key: str) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(f"routing_ext::{op}", key))


def test_schema_lists_operators() -> None:
    assert len(OPERATORS) == len(set(OPERATORS)) >= len(CALLS)
    assert set(OPERATORS) == set(CALLS) | INTEGER | DOORS | LAYOUTS | SEQUENCES


@pytest.mark.parametrize("op", sorted(set(OPERATORS) - DOORS - LAYOUTS))
def test_has_kernels(op: str) -> None:
    assert has_kernel(op, "CPU")
    assert has_kernel(op, "CUDA") == (routing_ext.build_info()["cuda"] is not None)


@pytest.mark.parametrize("op", sorted(DOORS))
def test_doors_lead_to_every_device(op: str) -> None:
    """By raw operators; what is for the CPU alone says so."""
    assert has_kernel(op, "CompositeImplicitAutograd")
    assert not has_kernel(op, "CPU")


def test_the_page_lists_what_is_for_the_cpu_alone() -> None:
    section = PAGE.read_text().partition("\n## Operators for the CPU alone\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == CPU_ONLY
    x, order, layout = torch.ones(3, 2, device="meta"), ORDER.to("meta"), LAYOUT.to("meta")
    with pytest.raises(RuntimeError, match=r"grouped_linear_node: x must be on the CPU, .* got meta"):
        raw.grouped_linear_node(x, order, layout, [w.to("meta") for w in WEIGHTS], [], [0, 1], 2, False)


@pytest.mark.parametrize("op", CALLS)
def test_raw_operator_refuses_to_lose_a_gradient(op: str) -> None:
    call = getattr(torch.ops.routing_ext, op)
    x = torch.ones(3, 2, requires_grad=True)
    with torch.no_grad():
        call(*CALLS[op](x))
    result = call(*CALLS[op](x))
    y = result
    while not isinstance(y, torch.Tensor):
        y = y[0]
    assert y.requires_grad
    with pytest.raises(RuntimeError, match=f"derivative for routing_ext::{op} is not implemented"):
        y.sum().backward()
