from __future__ import annotations

import copy
import io
import itertools
import json
import pathlib
import pickle
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_as_accurate, assert_identical, assert_same, choices, normal
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils import parametrizations

from routing_ext import reference
from routing_ext.routing import Selection

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "routing"


class LinearWithRelu(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.relu(nn.Linear.forward(self, input))


class Gated(nn.Module):
    """A user's module, with a width of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer, self.gate = nn.Linear(6, width), nn.Linear(width, 5), nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x).tanh()) * self.gate


class CountsCalls(nn.Linear):
    """With a state that shows how often it was called, and on what."""

    def __init__(self, d: int, o: int) -> None:
        super().__init__(d, o)
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        assert x.is_contiguous()
        return super().forward(x)


class Kind(NamedTuple):
    modules: Callable[[], list[nn.Module]]  # four of them
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def four(make: Callable[[], nn.Module]) -> Callable[[], list[nn.Module]]:
    return lambda: [make() for _ in range(4)]


def mlp(*widths: int) -> nn.Sequential:
    return nn.Sequential(*[m for d, o in itertools.pairwise(widths) for m in (nn.Linear(d, o), nn.ReLU())][:-1])


KINDS = {
    "linear": Kind(four(lambda: nn.Linear(6, 5)), (6,), (5,)),
    "linear without bias": Kind(four(lambda: nn.Linear(6, 5, bias=False)), (6,), (5,)),
    "linear with relu": Kind(four(lambda: LinearWithRelu(6, 5)), (6,), (5,)),
    "mlp": Kind(four(lambda: mlp(6, 7, 4, 5)), (6,), (5,)),
    "sequential ending in relu": Kind(four(lambda: nn.Sequential(mlp(6, 5), nn.ReLU(inplace=True))), (6,), (5,)),
    "mlps of several widths": Kind(lambda: [mlp(6, width, 5) for width in (3, 4, 4, 9)], (6,), (5,)),
    "with and without bias": Kind(lambda: [nn.Linear(6, 5, bias=k != 2) for k in range(4)], (6,), (5,)),
    "mixed": Kind(lambda: [nn.Linear(6, 5), LinearWithRelu(6, 5), mlp(6, 7, 5), Gated(8)], (6,), (5,)),
    "user's": Kind(lambda: [Gated(width) for width in (2, 3, 4, 5)], (6,), (5,)),
    "linear in 3-D": Kind(four(lambda: nn.Linear(6, 5)), (3, 6), (3, 5)),
    "without parameters": Kind(lambda: [nn.Identity(), nn.Tanh(), nn.ReLU(), nn.Softmax(-1)], (6,), (6,)),
    "changes its input": Kind(four(lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 5))), (6,), (5,)),
    "layer norm": Kind(four(lambda: nn.LayerNorm(6)), (6,), (6,)),
    "conv": Kind(four(lambda: nn.Conv2d(3, 4, 3)), (3, 6, 5), (4, 4, 3)),
    "conv, flat": Kind(
        four(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5))), (3, 6, 5), (5,)
    ),
    "to scalars": Kind(four(lambda: nn.Sequential(nn.Linear(6, 1), nn.Flatten(0))), (6,), ()),
    "weight norm": Kind(four(lambda: parametrizations.weight_norm(nn.Linear(6, 5))), (6,), (5,)),
    "batch norm": Kind(four(lambda: nn.BatchNorm1d(6)), (6,), (6,)),
    "conv and batch norm": Kind(four(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))), (3, 6, 5), (4, 4, 3)),
    "dropout": Kind(four(lambda: nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.4))), (6,), (5,)),
}
# Samples of each module, inactive ones. Batch norm needs two samples.
PATTERNS = {
    "all": ([3, 2, 4, 3], 0),
    "some": ([0, 2, 4, 0], 0),
    "one": ([0, 0, 5, 0], 0),
    "masked": ([2, 0, 4, 3], 3),
    "one, masked": ([0, 0, 5, 0], 2),
    "all masked": ([0, 0, 0, 0], 6),
}


def loop(kind: Kind, modules: Sequence[nn.Module]) -> reference.Selection:
    """The reference, without its trial run of module 0, which changes state."""
    selection = reference.Selection(*copy.deepcopy(modules))
    selection._output_shape = torch.Size(kind.outputs)
    return selection


def valid(pattern: str, device: str) -> tuple[Tensor, Tensor | None]:
    """Inactive samples have actions, too: the reference wants them in range."""
    actions, mask = choices(*PATTERNS[pattern], device)
    return actions.remainder(4), mask


def run(
    selection: nn.Module, xs: Tensor, actions: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor | None, dict[str, Tensor | None], dict[str, Tensor]]:
    xs = xs.detach().clone().requires_grad_()
    torch.manual_seed(7)
    ys, _, _ = selection(xs, [None] * len(xs), actions, mask)
    after = torch.rand(1)
    if ys.requires_grad:
        ys.backward(normal(*ys.shape, seed=5, dtype=ys.dtype, device=ys.device.type, grad=False))
    state = {name: b.clone() for name, b in selection.named_buffers()} | {"random numbers": after}
    return ys, xs.grad, {name: p.grad for name, p in selection.named_parameters()}, state


def check(selection: Selection, like: reference.Selection, xs: Tensor, actions: Tensor, mask: Tensor | None) -> Tensor:
    tolerance = 1e-12 if xs.dtype is torch.float64 else 2e-5
    ys, x_grad, grads, state = run(selection, xs, actions, mask)
    want_ys, want_x_grad, want_grads, want_state = run(like, xs, actions, mask)
    assert_same(ys, want_ys, tolerance)
    if want_x_grad is not None:
        assert x_grad is not None
        assert_same(x_grad, want_x_grad, tolerance)
    else:
        assert x_grad is None or not x_grad.any()
    assert [name for name, g in grads.items() if g is None] == [name for name, g in want_grads.items() if g is None]
    for name, want in want_grads.items():
        got = grads[name]
        if want is not None and got is not None:
            assert_same(got, want, tolerance)
    assert state.keys() == want_state.keys()
    for name, value in want_state.items():
        assert_same(state[name], value, tolerance)
    return ys


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_is_the_loop_over_modules(dtype: torch.dtype, name: str, pattern: str, device: str) -> None:
    kind = KINDS[name]
    torch.manual_seed(0)
    modules = [m.to(device, dtype) for m in kind.modules()]
    like = loop(kind, modules)
    actions, mask = valid(pattern, device)
    xs = normal(len(actions), *kind.inputs, seed=1, dtype=dtype, device=device)
    ys = check(Selection(*modules), like, xs, actions, mask)
    assert ys.shape == (len(actions), *kind.outputs)


def test_published_way_of_calling(device: str) -> None:
    """The reference with its trial run; in evaluation mode and without a gradient."""
    modules = [mlp(6, 7, 5).to(device) for _ in range(3)]
    xs, actions = (
        normal(8, 6, seed=0, dtype=torch.float32, device=device),
        torch.tensor([2, 0, 0, 2, 2, 0, 2, 2], device=device),
    )
    with torch.no_grad():
        expected, _, _ = reference.Selection(*modules).eval()(xs, [None] * 8, actions)
        ys, _, _ = Selection(*modules).eval()(xs, [None] * 8, actions)
        assert_same(ys, expected, 1e-6)
    with torch.inference_mode():
        ys, _, _ = Selection(*modules)(xs, [None] * 8, actions)
        assert_same(ys, expected, 1e-6)


def test_triplet() -> None:
    mxs, actions = [object() for _ in range(4)], torch.tensor([0, 1, 1, 0])
    for modules in ([nn.Linear(3, 2)], [nn.Linear(3, 2), nn.Linear(3, 2)]):
        _, same_mxs, same_actions = Selection(*modules)(torch.zeros(4, 3), mxs, actions)
        assert same_mxs is mxs
        assert same_actions is actions


def test_channels_last(device: str) -> None:
    kind = KINDS["conv"]
    modules = [m.to(device) for m in kind.modules()]
    actions, mask = valid("masked", device)
    xs = normal(len(actions), *kind.inputs, seed=1, dtype=torch.float32, device=device, grad=False)
    like = loop(kind, modules)
    check(Selection(*modules), like, xs.to(memory_format=torch.channels_last), actions, mask)


@pytest.mark.parametrize("name", ["linear", "conv"])
def test_not_contiguous(name: str, device: str) -> None:
    kind = KINDS[name]
    modules = [m.to(device) for m in kind.modules()]
    actions, _ = valid("all", device)
    xs = normal(*kind.inputs, 2 * len(actions), seed=1, dtype=torch.float32, device=device, grad=False).movedim(-1, 0)[::2]
    check(Selection(*modules), loop(kind, modules), xs, actions, None)


@pytest.mark.parametrize("name", ["linear", "conv"])
def test_kinds_of_masks_and_actions(name: str, device: str) -> None:
    kind = KINDS[name]
    modules = [m.to(device) for m in kind.modules()]
    actions, mask = valid("masked", device)
    assert mask is not None
    xs = normal(len(actions), *kind.inputs, seed=1, dtype=torch.float32, device=device)
    selection = Selection(*modules)
    expected, _, _ = selection(xs, [None] * len(xs), actions, mask)
    assert not expected[~mask].any()
    for a, m in ((actions[:, None], mask), (actions, mask.byte()), (actions[:, None], mask.byte())):
        ys, _, back = selection(xs, [None] * len(xs), a, m)
        assert_identical(ys, expected)
        assert back is a


@pytest.mark.parametrize("name", ["linear", "conv"])
def test_empty_batch(name: str, device: str) -> None:
    kind = KINDS[name]
    selection = Selection(*kind.modules()).to(device)
    for mask in (None, torch.ones(0, dtype=torch.bool, device=device)):
        ys, _, _ = selection(
            torch.zeros(0, *kind.inputs, device=device), [], torch.zeros(0, dtype=torch.int64, device=device), mask
        )
        assert ys.shape == (0, *kind.outputs)


# ---- calls, state and random numbers ----------------------------------------------------------------------------------------


def test_single_module_takes_the_whole_batch(device: str) -> None:
    module = CountsCalls(3, 2).to(device)
    xs = normal(5, 3, seed=0, dtype=torch.float32, device=device)
    for actions, mask in ((torch.tensor([9]), None), (torch.zeros(5, dtype=torch.int64), torch.zeros(5, dtype=torch.bool))):
        ys, _, _ = Selection(module)(xs, [None] * 5, actions, mask)
        assert_identical(ys, F.linear(xs, module.weight, module.bias))
    assert module.sizes == [5, 5]


def test_each_selected_module_is_called_once(device: str) -> None:
    modules = [CountsCalls(3, 2).to(device) for _ in range(4)]
    selection = Selection(*modules)
    xs = normal(12, 3, seed=0, dtype=torch.float32, device=device)
    for counts, inactive in (([0, 5, 0, 7], 0), ([3, 1, 0, 0], 8), ([0, 0, 12, 0], 0), ([0, 0, 0, 0], 12)):
        actions, mask = choices(counts, inactive, device)
        selection(xs, [None] * 12, actions, mask)
        assert [m.sizes for m in modules] == [[n] * (n > 0) for n in counts]
        for m in modules:
            m.sizes.clear()


def test_module_sees_its_samples_in_batch_order(device: str) -> None:
    seen = []
    modules = [nn.Linear(1, 1), nn.Linear(1, 1)]
    modules[1].register_forward_pre_hook(lambda module, args: seen.append(args[0].flatten().tolist()))
    xs = torch.arange(6.0)[:, None].to(device)
    Selection(*modules).to(device)(xs, [None] * 6, torch.tensor([1, 0, 1, 1, 0, 1], device=device))
    assert seen == [[0.0, 2.0, 3.0, 5.0]]


@pytest.mark.parametrize("mask", [None, [True, True, False]])
def test_input_is_not_changed(mask: list[bool] | None) -> None:
    """Not even where one module has it all."""
    xs = torch.tensor([[-1.0], [1.0], [-2.0]])
    before = xs.clone()
    for modules in (
        [nn.ReLU(inplace=True), nn.Identity()],
        [nn.Sequential(nn.ReLU(inplace=True), nn.Linear(1, 1)), nn.Identity()],
    ):
        for actions in ([0, 0, 0], [0, 1, 0]):
            ys, _, _ = Selection(*modules)(xs, [None] * 3, torch.tensor(actions), None if mask is None else torch.tensor(mask))
            ys.detach().add_(1)
            assert_identical(xs, before)


def test_module_that_no_sample_chose_keeps_its_state() -> None:
    selection = Selection(*[nn.BatchNorm1d(3) for _ in range(3)])
    before = copy.deepcopy(selection.state_dict())
    selection(normal(6, 3, seed=0, dtype=torch.float32), [None] * 6, torch.tensor([1] * 6))
    for name, value in selection.state_dict().items():
        assert torch.equal(value, before[name]) is not (
            name.startswith("_submodules.1.") and "weight" not in name and "bias" not in name
        )


@pytest.mark.parametrize(
    "name", ["conv and batch norm", "dropout", "conv, flat", "mixed", "weight norm", "user's", "to scalars"]
)
@pytest.mark.parametrize("training", [True, False])
def test_all_masked_at_the_first_call(name: str, training: bool, device: str) -> None:
    kind = KINDS[name]
    selection = Selection(*kind.modules()).to(device).train(training)
    before = copy.deepcopy(selection.state_dict())
    torch.manual_seed(3)
    ys, _, _ = selection(
        torch.ones(5, *kind.inputs, device=device),
        [None] * 5,
        torch.zeros(5, dtype=torch.int64, device=device),
        torch.zeros(5, dtype=torch.bool, device=device),
    )
    random_number = torch.rand(1)
    torch.manual_seed(3)
    assert_identical(torch.rand(1), random_number)
    assert_identical(ys, torch.zeros(5, *kind.outputs, device=device))
    for name, value in selection.state_dict().items():
        assert_identical(value, before[name])
    assert all(m.training is training for m in selection.modules())


def test_all_masked_after_another_shape_or_dtype() -> None:
    selection = Selection(nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 3))
    mixed, actions, nobody = [None] * 2, torch.tensor([0, 1]), torch.zeros(2, dtype=torch.bool)
    assert selection(torch.zeros(2, 1, 5, 5), mixed, actions)[0].shape == (2, 2, 3, 3)
    assert selection(torch.zeros(2, 1, 8, 7), mixed, actions, nobody)[0].shape == (2, 2, 6, 5)
    assert selection(torch.zeros(2, 1, 5, 5), mixed, actions, nobody)[0].shape == (2, 2, 3, 3)
    selection = Selection(nn.Embedding(9, 4), nn.Embedding(9, 4))
    indices = torch.tensor([8, 0])
    for mask in (nobody, ~nobody, nobody):
        ys = selection(indices, mixed, actions, mask)[0]
        assert ys.shape == (2, 4)
        assert ys.dtype is torch.float32


def test_inputs_of_integers() -> None:
    modules = [nn.Embedding(9, 4), nn.Embedding(9, 4)]
    indices, actions = torch.tensor([[8, 0], [1, 2], [3, 3]]), torch.tensor([0, 1, 0])
    ys, _, _ = Selection(*modules)(indices, [None] * 3, actions, torch.tensor([True, True, False]))
    assert_identical(ys, torch.stack([modules[0](indices[0]), modules[1](indices[1]), torch.zeros(2, 4)]))
    ys.sum().backward()
    assert_same(modules[0].weight.grad, torch.zeros(9, 4).index_fill(0, indices[0], 1))


def test_complex_numbers() -> None:
    modules = [nn.Linear(3, 2, dtype=torch.complex64), nn.Linear(3, 2, dtype=torch.complex64)]
    xs = torch.randn(3, 3, dtype=torch.complex64)
    ys, _, _ = Selection(*modules)(xs, [None] * 3, torch.tensor([0, 1, 0]))
    assert_same(ys, torch.stack([modules[k](x) for x, k in zip(xs, (0, 1, 0), strict=True)]), 1e-6)


def test_hooks_run() -> None:
    calls = []
    modules = [nn.Linear(3, 2) for _ in range(3)]
    modules[1].register_forward_hook(lambda module, args, y: calls.append(len(y)))
    selection = Selection(*modules)
    for actions in ([1, 0, 1], [0, 0, 2], [1, 1, 1]):
        selection(torch.zeros(3, 3), [None] * 3, torch.tensor(actions))
    assert calls == [2, 3]


def test_one_module_twice() -> None:
    module = nn.Linear(3, 2, dtype=torch.float64)
    xs, actions = normal(5, 3, seed=0), torch.tensor([0, 1, 1, 0, 1])
    ys, _, _ = Selection(module, module)(xs, [None] * 5, actions)
    ys.square().sum().backward()
    grad, module.weight.grad = module.weight.grad, None
    module(xs).square().sum().backward()
    assert_same(grad, module.weight.grad)


def test_exchanged_module_and_weight() -> None:
    selection = Selection(nn.Linear(3, 2), nn.Linear(3, 2))
    args = normal(4, 3, seed=0, dtype=torch.float32, grad=False), [None] * 4, torch.tensor([1, 0, 1, 1])
    selection(*args)
    selection._submodules[1] = nn.Sequential(nn.Linear(3, 2), nn.Tanh())
    assert_same(selection(*args)[0][2], selection._submodules[1](args[0][2]), 1e-6)
    selection._submodules[0].weight = nn.Parameter(torch.ones(2, 3))
    assert_same(selection(*args)[0][1], selection._submodules[0](args[0][1]), 1e-6)


def test_functional_call() -> None:
    selection = Selection(nn.Linear(3, 2), nn.Linear(3, 2))
    args = normal(4, 3, seed=0, dtype=torch.float32, grad=False), [None] * 4, torch.tensor([1, 0, 1, 1])
    parameters = {name: p.detach() * 2 for name, p in selection.named_parameters()}
    ys, _, _ = torch.func.functional_call(selection, parameters, args)
    assert_same(ys, selection(*args)[0] * 2, 1e-6)


# ---- dtypes, autocast, orders of derivatives --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["linear", "linear with relu", "mlp", "mlps of several widths", "mixed", "conv", "layer norm"]
)
@pytest.mark.parametrize("pattern", ["all", "masked", "one"])
def test_autocast(name: str, pattern: str, device: str) -> None:
    kind = KINDS[name]
    torch.manual_seed(0)
    modules = [m.to(device) for m in kind.modules()]
    actions, mask = valid(pattern, device)
    active = torch.ones_like(actions, dtype=torch.bool) if mask is None else mask
    xs = normal(len(actions), *kind.inputs, seed=1, dtype=torch.float32, device=device)

    def plain(modules: Sequence[nn.Module], xs: Tensor) -> Tensor:
        rows = {k: ((actions == k) & active).nonzero()[:, 0] for k in range(4)}
        outputs = {k: modules[k](xs[r]) for k, r in rows.items() if len(r) > 0}
        dtype = next(iter(outputs.values())).dtype
        ys = torch.zeros(len(xs), *kind.outputs, dtype=dtype, device=device)
        for k, y in outputs.items():
            ys = ys.index_copy(0, rows[k], y)
        return ys

    def results(ys: Tensor, xs: Tensor, modules: Sequence[nn.Module]) -> list[Tensor]:
        parameters = [p for k in actions[active].unique().tolist() for p in modules[k].parameters()]
        grad = normal(*ys.shape, seed=5, dtype=torch.bfloat16, device=device, grad=False).to(ys.dtype)
        return [ys, *torch.autograd.grad(ys, [xs, *parameters], grad)]

    with torch.autocast(device, torch.bfloat16):
        ys, _, _ = Selection(*modules)(xs, [None] * len(xs), actions, mask)
        expected = plain(modules, xs)
    assert ys.dtype is expected.dtype
    exact_modules, exact_xs = [copy.deepcopy(m).double() for m in modules], xs.detach().double().requires_grad_()
    exact = results(plain(exact_modules, exact_xs), exact_xs, exact_modules)
    for got, want, true in zip(results(ys, xs, modules), results(expected, xs, modules), exact, strict=True):
        assert_as_accurate(got, want, true)


@pytest.mark.parametrize("name", ["linear", "linear in 3-D"])
def test_autocast_leaves_float64_alone(name: str, device: str) -> None:
    kind = KINDS[name]
    modules = [m.to(device, torch.float64) for m in kind.modules()]
    actions, mask = valid("masked", device)
    with torch.autocast(device, torch.bfloat16):
        check(
            Selection(*modules), loop(kind, modules), normal(len(actions), *kind.inputs, seed=1, device=device), actions, mask
        )


@pytest.mark.parametrize("name", ["linear", "mlp", "user's"])
def test_derivatives_of_second_order(name: str, device: str) -> None:
    kind = KINDS[name]
    torch.manual_seed(1)
    selection = Selection(*kind.modules()).to(device, torch.float64)
    actions = torch.tensor([2, 0, 3], device=device)
    mask = torch.tensor([True, True, False], device=device)
    parameters = [p for k in (0, 2) for p in selection._submodules[k].parameters()][:4]

    def function(xs: Tensor, *_: Tensor) -> Tensor:
        ys: Tensor = selection(xs, [None] * 3, actions, mask)[0]
        return ys

    inputs = normal(3, *kind.inputs, seed=1, device=device), *parameters
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


# ---- wrong use --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modules", [[nn.Linear(3, 2), nn.Linear(3, 2)], [nn.Tanh(), nn.Identity()]], ids=["linear", "other"])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mxs": [None] * 3}, ValueError, "Selection: mxs must have one element for each of 4 samples, got 3"),
        (
            {"actions": torch.zeros(3).long()},
            ValueError,
            r"Selection: actions must have one element for each of 4 samples, got \[3\]",
        ),
        ({"actions": torch.zeros(4, 2).long()}, ValueError, r"Selection: actions must have one element .* got \[4, 2\]"),
        ({"actions": torch.zeros(4)}, RuntimeError, "actions must have dtype int64"),
        ({"actions": None}, TypeError, "Selection: actions must be the tensor that a decision gives, got NoneType"),
        ({"actions": [0] * 4}, TypeError, "Selection: actions must be the tensor that a decision gives, got list"),
        ({"mask": torch.ones(3).bool()}, RuntimeError, "mask must have the shape of actions"),
        ({"mask": torch.ones(4)}, RuntimeError, "mask must have dtype bool"),
    ],
)
def test_wrong_arguments(modules: list[nn.Module], change: dict[str, Any], error: type[Exception], message: str) -> None:
    args = {"xs": torch.zeros(4, 3), "mxs": [None] * 4, "actions": torch.zeros(4).long(), "mask": None}
    with pytest.raises(error, match=message):
        Selection(*modules)(**(args | change))


@pytest.mark.parametrize("action", [2, -1])
def test_action_out_of_range(action: int, device: str) -> None:
    selection = Selection(nn.Tanh(), nn.Identity()).to(device)
    with pytest.raises((RuntimeError, IndexError), match=r"dispatch_plan: actions must be in \[0, 2\)"):
        selection(torch.zeros(3, 2, device=device), [None] * 3, torch.tensor([0, action, 1], device=device))


def test_wrong_width_names_the_operator() -> None:
    with pytest.raises(RuntimeError, match=r"grouped_linear: x must have 3 columns, as the weights have, got \[2, 4\]"):
        Selection(nn.Linear(3, 2), nn.Linear(3, 2))(torch.zeros(2, 4), [None] * 2, torch.tensor([0, 1]))


# ---- what the published layer offers ----------------------------------------------------------------------------------------


def test_names() -> None:
    selection = Selection(nn.Linear(3, 2), LinearWithRelu(3, 2), name="second", store_module_pointers=False)
    assert selection.name == "second"
    assert "second" in repr(selection)
    assert list(selection.state_dict()) == [f"_submodules.{k}.{name}" for k in (0, 1) for name in ("weight", "bias")]
    reference.Selection(nn.Linear(3, 2), nn.Linear(3, 2)).load_state_dict(selection.state_dict())


def test_logging() -> None:
    selection = Selection(*[nn.Linear(3, 2) for _ in range(5)])

    def call(*actions: int) -> None:
        selection(torch.zeros(len(actions), 3), [None] * len(actions), torch.tensor(actions))

    call(0, 1)
    selection.start_logging_selections()
    call(4, 2, 4)
    call(2, 1)
    assert selection.stop_logging_and_get_selections() == [1, 2, 4]
    assert selection.last_selection_freeze == [1, 2, 4]
    call(3, 3)
    selection.start_logging_selections()
    call(0, 0)
    assert selection.stop_logging_and_get_selections(add_to_old=True) == [0, 1, 2, 4]
    selection.start_logging_selections()
    assert selection.stop_logging_and_get_selections() == []


def test_module_pointers() -> None:
    class Meta(list[Any]):
        def append(self, *items: Any) -> None:  # type: ignore[override]
            super().append(items)

    modules = [nn.Linear(3, 2), nn.Linear(3, 2)]
    mxs = [Meta(), Meta(), Meta()]
    Selection(*modules, store_module_pointers=True)(torch.zeros(3, 3), mxs, torch.tensor([1, 0, 1]))
    assert mxs == [[("selected_modules", modules[k])] for k in (1, 0, 1)]


def saved_and_loaded(selection: Selection) -> Selection:
    file = io.BytesIO()
    torch.save(selection, file)
    file.seek(0)
    loaded: Selection = torch.load(file, weights_only=False)
    return loaded


def with_state_dict(selection: Selection) -> Selection:
    file = io.BytesIO()
    torch.save(selection.state_dict(), file)
    file.seek(0)
    other = Selection(
        *[copy.deepcopy(m).apply(lambda m: getattr(m, "reset_parameters", int)()) for m in selection._submodules]
    )
    other.load_state_dict(torch.load(file))
    return other


@pytest.mark.parametrize("again", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s)), saved_and_loaded, with_state_dict])
@pytest.mark.parametrize("called_before", [False, True])
def test_copies(again: Callable[[Selection], Selection], called_before: bool) -> None:
    for modules in ([mlp(3, 4, 2) for _ in range(2)], [LinearWithRelu(3, 2) for _ in range(2)], [nn.LayerNorm(3), nn.Tanh()]):
        selection = Selection(*modules, name="again")
        args = normal(4, 3, seed=0, dtype=torch.float32, grad=False), [None] * 4, torch.tensor([1, 0, 1, 1])
        if called_before:
            selection(*args)
        twin = again(selection)
        assert_identical(twin(*args)[0], selection(*args)[0])
        assert all(p is not q for p, q in zip(twin.parameters(), selection.parameters(), strict=True))


# ---- torch.compile ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["linear", "linear with relu", "mlp"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(name: str, dynamic: bool, device: str) -> None:
    """In one graph. Which modules are idle is not known: zeros for them."""
    torch._dynamo.reset()
    kind = KINDS[name]
    selection = Selection(*kind.modules()).to(device, torch.float64)
    compiled = torch.compile(selection, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for pattern in ("all", "masked", "all masked"):
        actions, mask = valid(pattern, device)
        xs = normal(len(actions), *kind.inputs, seed=1, device=device)
        ys, _, _ = compiled(xs, [None] * len(xs), actions, mask)
        expected, _, _ = selection(xs, [None] * len(xs), actions, mask)
        assert_same(ys, expected)
        inputs = [xs, *selection.parameters()]
        grads = [torch.autograd.grad(y.square().sum(), inputs, allow_unused=True) for y in (ys, expected)]
        for got, want in zip(*grads, strict=True):
            assert got is not None
            assert_same(got, torch.zeros_like(got) if want is None else want)


def test_compile_of_a_class_not_seen_before() -> None:
    class Fresh(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(super().forward(x))

    torch._dynamo.reset()
    selection = Selection(Fresh(3, 2), Fresh(3, 2))
    args = normal(4, 3, seed=0, dtype=torch.float32), [None] * 4, torch.tensor([1, 0, 1, 1])
    ys = torch.compile(selection, fullgraph=True, backend="aot_eager")(*args)[0]
    assert_same(ys, selection(*args)[0])


# ---- recorded results of the published implementation -----------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.npz")), ids=lambda p: p.stem)
def test_golden(path: pathlib.Path, device: str) -> None:
    """Three layers with the recorded actions: results, module loss, its gradients and which of them are None."""
    with np.load(path) as file:
        meta = json.loads(str(file["meta"]))
        data = {name: torch.from_numpy(file[name]).to(device) for name in file.files if name != "meta"}

    def inner(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in data.items() if name.startswith(prefix)}

    layers = []
    for i, (d, o) in enumerate(zip(meta["dims"][:3], meta["dims"][1:], strict=True)):
        layers.append(Selection(*[nn.Linear(d, o) for _ in range(meta["K"])]).to(device))
        layers[i].load_state_dict(inner(f"param.selections.{i}."))

    def forward(x: Tensor, actions: str) -> Tensor:
        for i, layer in enumerate(layers):
            x, _, _ = layer(x if i == 0 else x.tanh(), [None] * len(x), data[f"{actions}.{i}"])
        return x

    x = data["x"].requires_grad_()
    y = forward(x, "actions")
    assert_same(y, data["y"], 1e-6)
    assert_same(forward(x, "eval_actions"), data["eval_y"], 1e-6)
    if meta["loss"] == "mse":
        loss = F.mse_loss(y, data["target"], reduction="none").sum(1)
    else:
        loss = F.cross_entropy(y, data["target"], reduction="none")
    assert_same(loss, data["module_loss"], 1e-6)
    loss.mean().backward()
    assert x.grad is not None
    assert_same(x.grad, data["grad_x"], 1e-6)
    for i, layer in enumerate(layers):
        grads = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
        want = inner(f"grad.selections.{i}.")
        assert grads.keys() == want.keys()
        for name, grad in grads.items():
            assert_same(grad, want[name], 1e-6)


def test_there_are_golden_cases() -> None:
    assert len(list(GOLDEN.glob("*.npz"))) == 74


def test_no_module() -> None:
    with pytest.raises(ValueError, match="Selection: modules must be at least one"):
        Selection()


def test_hooks_do_not_run_without_active_samples() -> None:
    modules = [nn.Sequential(nn.Linear(3, 4), nn.Tanh()) for _ in range(2)]
    modules[0].register_forward_hook(lambda *_: pytest.fail("the hook ran"))
    ys, _, _ = Selection(*modules)(torch.ones(2, 3), [None] * 2, torch.tensor([0, 1]), torch.tensor([False, False]))
    assert ys.shape == (2, 4)


def test_dtype_without_active_samples_follows_the_modules() -> None:
    selection = Selection(*[nn.Sequential(nn.Linear(3, 4), nn.Tanh()) for _ in range(2)])
    actions, none = torch.tensor([0, 1]), torch.tensor([False, False])
    selection(torch.ones(2, 3), [None] * 2, actions)
    with torch.autocast("cpu", torch.bfloat16):
        assert selection(torch.ones(2, 3), [None] * 2, actions, none)[0].dtype == torch.bfloat16
    assert selection(torch.ones(2, 3), [None] * 2, actions, none)[0].dtype == torch.float32
    selection.double()
    assert selection(torch.ones(2, 3).double(), [None] * 2, actions, none)[0].dtype == torch.float64


def test_patched_class_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Layer(nn.Linear):
        pass

    selection = Selection(Layer(3, 4), Layer(3, 4))
    args = torch.ones(2, 3), [None] * 2, torch.tensor([0, 1])
    before = selection(*args)[0]
    monkeypatch.setattr(Layer, "forward", lambda self, x: nn.functional.linear(x, self.weight, self.bias) + 50)
    torch.testing.assert_close(selection(*args)[0], before + 50)
