from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_identical, assert_same, choices, normal
from torch import Tensor, nn

from routing_ext.ops import dispatch_plan
from routing_ext.routing import LinearBank, Selection


class LinearWithRelu(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.relu(nn.Linear.forward(self, input))


each_kind = pytest.mark.parametrize(("bias", "activation"), [(True, None), (False, None), (True, "relu"), (False, "relu")])


def bank_of(bias: bool, activation: str | None, device: str = "cpu") -> LinearBank:
    torch.manual_seed(0)
    return LinearBank(4, 6, 5, bias=bias, activation=activation, device=device, dtype=torch.float64)


@each_kind
@pytest.mark.parametrize(("counts", "inactive"), [((3, 0, 2, 4), 0), ((3, 0, 2, 4), 3), ((0, 0, 0, 0), 5), ((0, 0, 0, 0), 0)])
def test_is_a_selection_of_its_modules(
    counts: tuple[int, ...], inactive: int, bias: bool, activation: str | None, device: str
) -> None:
    bank = bank_of(bias, activation, device)
    selection = Selection(*bank.to_modules())
    actions, mask = choices(counts, inactive, device)
    xs = [normal(len(actions), 6, seed=1, device=device) for _ in range(2)]
    y, (expected, _, _) = bank(xs[0], actions, mask), selection(xs[1], [None] * len(actions), actions, mask)
    assert_same(y, expected)
    for result in (y, expected):
        result.square().sum().backward()
    assert xs[0].grad is not None
    assert xs[1].grad is not None
    assert_same(xs[0].grad, xs[1].grad)
    linears = [next(m for m in module.modules() if isinstance(m, nn.Linear)) for module in selection._submodules]
    for name, stacked in bank.named_parameters():
        grads = [getattr(linear, name).grad for linear in linears]
        assert [g is None for g in grads] == [n == 0 for n in counts]
        assert stacked.grad is not None
        assert_same(stacked.grad, torch.stack([torch.zeros_like(stacked[0]) if g is None else g for g in grads]))


@each_kind
def test_round_trip(bias: bool, activation: str | None) -> None:
    bank = bank_of(bias, activation)
    modules = bank.to_modules()
    assert [type(m) for m in modules] == [nn.Linear if activation is None else nn.Sequential] * 4
    again = LinearBank.from_modules(modules)
    assert again.extra_repr() == bank.extra_repr()
    for p, q in zip(again.parameters(), bank.parameters(), strict=True):
        assert_identical(p, q)
        assert p is not q
    with torch.no_grad():  # copies: what happens to the bank does not reach the modules
        bank.weight.zero_()
    assert all(p.any() for m in modules for p in m.parameters())
    assert all(p.requires_grad for p in again.parameters())


@pytest.mark.parametrize("bias", [False, True])
def test_from_a_subclass_with_relu(bias: bool) -> None:
    modules = [LinearWithRelu(3, 2, bias=bias) for _ in range(3)]
    bank = LinearBank.from_modules(modules)
    assert bank.activation == "relu"
    x = normal(3, 3, seed=0, dtype=torch.float32)
    assert_same(bank(x, torch.arange(3)), torch.stack([m(row) for m, row in zip(modules, x, strict=True)]), 1e-6)


@pytest.mark.parametrize(
    "modules",
    [
        [],
        [nn.Linear(3, 2), nn.Linear(2, 3)],
        [nn.Linear(3, 2), nn.Linear(3, 2, bias=False)],
        [nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 2), nn.ReLU())],
        [nn.Linear(3, 2), nn.Identity()],
        [nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))] * 2,
        [nn.Sequential(nn.Linear(3, 2), nn.Tanh())] * 2,
        [nn.ReLU()],
    ],
    ids=str,
)
def test_from_other_modules(modules: list[nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"LinearBank: modules must be nn\.Linear"):
        LinearBank.from_modules(modules)


def test_one_plan_for_several_banks(device: str) -> None:
    first, second = bank_of(True, "relu", device), LinearBank(4, 5, 3, device=device, dtype=torch.float64)
    actions, mask = choices((3, 0, 2, 4), 2, device)
    plan, x = dispatch_plan(actions, 4, mask), normal(11, 6, seed=0, device=device)
    assert_identical(second(first(x, plan), plan), second(first(x, actions, mask), actions, mask))


def test_starts_like_linear_layers() -> None:
    torch.manual_seed(0)
    bank = LinearBank(30, 16, 40)
    assert isinstance(bank.weight, nn.Parameter)
    for p in bank.parameters():
        assert p.abs().max() <= 0.25
        assert p.abs().max() > 0.24
        assert abs(p.mean()) < 0.01
        assert abs(p.std() - 0.25 / 3**0.5) < 0.01
    before = bank.weight.clone()
    bank.reset_parameters()
    assert not torch.equal(bank.weight, before)


@pytest.mark.parametrize(("d", "o"), [(0, 3), (3, 0)])
def test_no_features(d: int, o: int) -> None:
    bank = LinearBank(2, d, o)
    assert_identical(bank(torch.zeros(3, d), torch.tensor([1, 0, 1])).detach(), bank.bias[[1, 0, 1]].detach())


@each_kind
def test_state_dict(bias: bool, activation: str | None) -> None:
    bank = bank_of(bias, activation)
    assert {name: tuple(p.shape) for name, p in bank.state_dict().items()} == {"weight": (4, 5, 6)} | (
        {"bias": (4, 5)} if bias else {}
    )
    other = LinearBank(4, 6, 5, bias=bias, activation=activation, dtype=torch.float64)
    other.load_state_dict(bank.state_dict())
    x, actions = normal(3, 6, seed=0), torch.tensor([3, 0, 3])
    assert_identical(other(x, actions), bank(x, actions))
    assert_identical(copy.deepcopy(bank)(x, actions), bank(x, actions))
    assert other.bias is None or bias


def test_repr() -> None:
    assert repr(bank_of(False, "relu")) == (
        "LinearBank(num_modules=4, in_features=6, out_features=5, bias=False, activation='relu')"
    )


X, ACTIONS = torch.zeros(3, 6, dtype=torch.float64), torch.tensor([0, 3, 1])


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (
            (X, dispatch_plan(ACTIONS, 4), torch.ones(3).bool()),
            ValueError,
            "LinearBank: mask must be None where actions is a plan",
        ),
        ((X, dispatch_plan(ACTIONS, 5)), ValueError, r"weights must have shape \[5, o, d\]"),
        ((X, ACTIONS[:2]), RuntimeError, "order must have one index for each of 3 samples"),
        ((X[:, 1:], ACTIONS), RuntimeError, "x must have . columns, as the weights have"),
        ((X.float(), ACTIONS), RuntimeError, "weights must have the dtype of the input"),
        ((X[None], ACTIONS), RuntimeError, "x must have 2 dimension"),
        ((X, ACTIONS + 1), RuntimeError, r"dispatch_plan: actions must be in \[0, 4\), got 4 for sample 1"),
        ((X, ACTIONS, torch.ones(2).bool()), RuntimeError, "mask must have the shape of actions"),
    ],
)
def test_wrong_arguments(args: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        bank_of(True, None)(*args)


def test_unknown_activation() -> None:
    with pytest.raises(ValueError, match="LinearBank: activation must be None or 'relu', got 'gelu'"):
        LinearBank(2, 3, 4, activation="gelu")


def test_autocast(device: str) -> None:
    bank = LinearBank(4, 6, 5, device=device)
    with torch.autocast(device, torch.bfloat16):
        y = bank(normal(3, 6, seed=0, dtype=torch.float32, device=device), ACTIONS.to(device))
    assert y.dtype is torch.bfloat16
    y.sum().backward()
    assert bank.weight.grad is not None
    assert bank.weight.grad.dtype is torch.float32


def test_compile(device: str) -> None:
    torch._dynamo.reset()
    bank = bank_of(True, "relu", device)
    compiled = torch.compile(bank, fullgraph=True, backend="aot_eager")
    actions, mask = choices((3, 0, 2, 4), 2, device)
    x = normal(11, 6, seed=0, device=device)
    results = []
    for f in (compiled, bank):
        y = f(x, actions, mask)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *bank.parameters()])])
    for got, want in zip(*results, strict=True):
        assert_same(got, want)
