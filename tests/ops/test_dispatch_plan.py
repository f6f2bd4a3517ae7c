from __future__ import annotations

import pytest
import torch
from helpers import VIEWS, assert_identical, choices, randomised
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from routing_ext import reference
from routing_ext.ops import DispatchPlan, dispatch_plan
from routing_ext.ops.dispatch_plan import rank_of_module

raw = torch.ops.routing_ext.dispatch_plan

# Samples of each module, and inactive ones.
CASES = [
    ([], 0),
    ([], 3),
    ([0], 0),
    ([1], 0),
    ([5], 4),
    ([0, 0, 0], 0),
    ([0, 0, 0], 7),
    ([0, 3, 0, 1, 0], 0),
    ([0, 3, 0, 1, 0], 2),
    ([31, 32, 33], 0),
    ([31, 32, 33], 31),
    ([255, 0, 256, 257, 1], 100),
    ([1, 0, 2] * 11, 3),
    ([1, 0] * 500, 33),
    ([3000, 0, 2999], 1),
]


def check(actions: Tensor, num_modules: int, mask: Tensor | None) -> DispatchPlan:
    plan = dispatch_plan(actions, num_modules, mask)
    order, offsets = reference.dispatch_plan(actions, num_modules, mask)
    assert_identical(plan.order, order)
    assert_identical(plan.offsets, offsets)
    assert_identical(plan.layout, torch.cat([offsets, offsets.new_tensor([-1])]))
    assert plan.order.device == plan.layout.device == actions.device
    return plan


@pytest.mark.parametrize(("counts", "inactive"), CASES)
def test_is_the_stable_sort(counts: list[int], inactive: int, device: str) -> None:
    actions, mask = choices(counts, inactive, device)
    plan = check(actions, len(counts), mask)
    assert plan.num_modules == len(counts)
    assert plan.host_offsets() == plan.offsets.tolist()
    assert plan.selected() == tuple(k for k, n in enumerate(counts) if n > 0)
    order, offsets = plan
    assert order is plan.order
    assert_identical(offsets, plan.offsets)


@randomised
@given(st.integers(1, 40), st.lists(st.tuples(st.integers(0, 39), st.booleans()), max_size=200), st.booleans())
def test_random(device: str, num_modules: int, samples: list[tuple[int, bool]], masked: bool) -> None:
    actions = torch.tensor([a % num_modules for a, _ in samples], dtype=torch.int64, device=device)
    mask = torch.tensor([active for _, active in samples], dtype=torch.bool, device=device) if masked else None
    check(actions, num_modules, mask)


@pytest.mark.parametrize("view", VIEWS)
def test_not_contiguous(view: str, device: str) -> None:
    actions, mask = choices([3, 0, 40, 7], 5, device)
    assert mask is not None
    check(VIEWS[view](actions), 4, VIEWS[view](mask))


def test_expanded(device: str) -> None:
    check(
        torch.ones(1, dtype=torch.int64, device=device).expand(9), 3, torch.ones((), dtype=torch.bool, device=device).expand(9)
    )


def test_all_true_mask_is_no_mask(device: str) -> None:
    actions, _ = choices([4, 0, 2], 0, device)
    assert_identical(dispatch_plan(actions, 3, actions >= 0).order, dispatch_plan(actions, 3).order)


def test_large(device: str) -> None:
    actions = torch.randint(0, 1000, (20_000,), generator=torch.Generator().manual_seed(0)).to(device)
    check(actions, 1000, actions % 7 != 0)


@pytest.mark.parametrize("action", [3, -1, 1 << 40, -(1 << 40)])
@pytest.mark.usefixtures("cpu_kernels")
def test_action_out_of_range_raises(action: int) -> None:
    actions = torch.tensor([0, 2, action, 1, action])
    with pytest.raises(RuntimeError, match=rf"dispatch_plan: actions must be in \[0, 3\), got {action} for sample 2"):
        dispatch_plan(actions, 3)
    check(actions, 3, torch.tensor([True, True, False, True, False]))


@pytest.mark.parametrize("action", [3, -1, 1 << 40, -(1 << 40)])
@pytest.mark.usefixtures("cuda_kernels")
def test_action_out_of_range_is_inactive_and_raises_later(action: int, device: str) -> None:
    actions = torch.tensor([0, 2, action, 1, action], device=device)
    plan = dispatch_plan(actions, 3)
    assert plan.order.tolist() == [0, 3, 1, 2, 4]
    assert plan.layout.tolist() == [0, 1, 2, 3, 2]
    for read in (plan.host_offsets, plan.selected):
        with pytest.raises(IndexError, match=r"dispatch_plan: actions must be in \[0, 3\), got another value for sample 2"):
            read()
    check(actions, 3, torch.tensor([True, True, False, True, False], device=device))


ACTIONS = torch.tensor([0, 1, 0, 2])
MASK = torch.ones(4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("actions", "num_modules", "mask", "argument"),
    [
        (ACTIONS[None], 3, None, "actions must have 1 dimension"),
        (ACTIONS[0], 3, None, "actions must have 1 dimension"),
        (ACTIONS.int(), 3, None, "actions must have dtype int64"),
        (ACTIONS.double(), 3, None, "actions must have dtype int64"),
        (ACTIONS, -1, None, "num_modules must be in"),
        (ACTIONS, 3, MASK[:3], "mask must have the shape of actions"),
        (ACTIONS, 3, MASK[None], "mask must have the shape of actions"),
        (ACTIONS, 3, MASK.byte(), "mask must have dtype bool"),
        (ACTIONS, 3, MASK.to("meta"), "mask must be on"),
        (ACTIONS.to("meta"), 3, MASK, "mask must be on"),
    ],
)
def test_wrong_arguments(actions: Tensor, num_modules: int, mask: Tensor | None, argument: str, device: str) -> None:
    actions, mask = (t if t is None or t.is_meta else t.to(device) for t in (actions, mask))
    with pytest.raises(RuntimeError, match=f"dispatch_plan: {argument}"):
        dispatch_plan(actions, num_modules, mask)


def test_repr(device: str) -> None:
    assert repr(dispatch_plan(ACTIONS.to(device), 3)).startswith(f"DispatchPlan(4 samples, 3 modules, on {device}")


def test_meta() -> None:
    plan = dispatch_plan(ACTIONS.to("meta"), 3, MASK.to("meta"))
    assert plan.order.shape == (4,)
    assert plan.offsets.shape == (4,)
    assert not plan.known_on_host


@pytest.mark.parametrize(("counts", "inactive"), [([3, 0, 2], 0), ([3, 0, 2], 2), ([0], 0)])
def test_opcheck(counts: list[int], inactive: int, device: str) -> None:
    actions, mask = choices(counts, inactive, device)
    torch.library.opcheck(raw.default, (actions, len(counts), mask))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool, device: str) -> None:
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=dynamic)
    def sort(actions: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        order, offsets = dispatch_plan(actions, 5, mask)
        return order, offsets

    for counts in ([3, 0, 2, 4, 1], [0, 9, 0, 0, 0]):
        actions, mask = choices(counts, 3, device)
        for got, want in zip(sort(actions, mask), reference.dispatch_plan(actions, 5, mask), strict=True):
            assert_identical(got, want)


@pytest.mark.parametrize("mask", [None, torch.tensor([True, False, True, True, True])])
def test_rank_of_module(mask: Tensor | None) -> None:
    actions = torch.tensor([5, 9, 2, 5, 0])
    plan = dispatch_plan(actions, 10, mask)
    active = torch.ones(5, dtype=torch.bool) if mask is None else mask
    expected = torch.searchsorted(torch.unique(actions[active]), actions)
    assert torch.equal(rank_of_module(actions, plan)[active], expected[active])
