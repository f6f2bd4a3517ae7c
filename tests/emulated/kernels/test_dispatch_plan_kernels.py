"""dispatch_plan's CUDA kernels at the sizes where they change their way: one tile or several, counters shared or global."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import routing_ext

op = torch.ops.routing_ext.dispatch_plan


def expected(actions: Tensor, num_modules: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    active = torch.ones_like(actions, dtype=torch.bool) if mask is None else mask
    valid = (actions >= 0) & (actions < num_modules)
    bucket = torch.where(active & valid, actions, num_modules)
    invalid = (active & ~valid).nonzero()
    status = invalid[0, 0] if len(invalid) else torch.tensor(-1, device=actions.device)
    ends = torch.bincount(bucket, minlength=num_modules + 1)[:num_modules].cumsum(0)
    return torch.argsort(bucket, stable=True), torch.cat([ends.new_zeros(1), ends, status[None]])


def check(actions: Tensor, num_modules: int, mask: Tensor | None = None) -> None:
    order, layout = op(actions, num_modules, mask)
    want_order, want_layout = expected(actions, num_modules, mask)
    assert torch.equal(layout, want_layout)
    assert torch.equal(order, want_order)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("num_modules", [1, 5, 33, 600, 2000])
@pytest.mark.parametrize("batch", [0, 1, 31, 33, 513, 8192, 8193, 100_000])
def test_sizes(batch: int, num_modules: int, masked: bool, device: str) -> None:
    generator = torch.Generator().manual_seed(batch)
    actions = torch.randint(num_modules, (batch,), generator=generator).to(device)
    mask = (torch.rand(batch, generator=generator) < 0.8).to(device) if masked else None
    check(actions, num_modules, mask)


@pytest.mark.parametrize("batch", [100, 9000])
def test_actions_out_of_range_count_as_inactive_and_the_first_is_reported(batch: int, device: str) -> None:
    actions = torch.arange(batch, device=device) % 4
    actions[[70, 40, 95]] = torch.tensor([-1, 4, 1 << 40], device=device)
    check(actions, 4)
    mask = torch.arange(batch, device=device) != 40  # of an inactive sample the action does not matter
    check(actions, 4, mask)
    assert op(actions, 4, None)[1][-1] == 40
    assert op(actions, 4, mask)[1][-1] == 70
    actions[0] = 7
    assert op(actions, 4, None)[1][-1] == 0


@pytest.mark.parametrize("batch", [0, 3, 9000])
def test_no_modules(batch: int, device: str) -> None:
    check(torch.zeros(batch, dtype=torch.int64, device=device), 0)
    check(torch.zeros(batch, dtype=torch.int64, device=device), 0, torch.zeros(batch, dtype=torch.bool, device=device))


@pytest.mark.parametrize("batch", [77, 8500])
def test_one_module_gets_everything(batch: int, device: str) -> None:
    check(torch.full((batch,), 1500, device=device), 1501)


def test_strided_arguments(device: str) -> None:
    actions = (torch.arange(400, device=device) * 7 % 5)[::2]
    mask = torch.arange(600, device=device).remainder(4).bool()[::3]
    check(actions, 5, mask)


def test_the_host_learns_of_an_action_out_of_range(device: str) -> None:
    plan = routing_ext.ops.dispatch_plan(torch.tensor([0, 1, 3, 2], device=device), 3)
    with pytest.raises(IndexError, match=r"dispatch_plan: actions must be in \[0, 3\).*sample 2"):
        plan.host_offsets()
