"""Several modules for each sample, with a weight for each: as a mixture of experts combines them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import generator, normal
from torch import Tensor, nn

from routing_ext.ops import dispatch_plan
from routing_ext.routing import LinearBank, Selection

B, D, OUT, K = 13, 6, 5, 4

MODULES: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(D, OUT),
    "linear, relu": lambda: nn.Sequential(nn.Linear(D, OUT), nn.ReLU(), nn.Linear(OUT, OUT)),
    "others": lambda: nn.Sequential(nn.Linear(D, OUT), nn.Tanh()),
}


def chosen(n: int, device: str) -> tuple[Tensor, Tensor]:
    """``actions [B,n]``, of different modules, and ``weights [B,n]``."""
    scores = torch.rand(B, K, generator=generator(n), dtype=torch.float64)
    weights, actions = scores.softmax(1).topk(n)
    return actions.to(device), weights.to(device).requires_grad_()


def expected_of(modules: list[nn.Module], x: Tensor, actions: Tensor, weights: Tensor, mask: Tensor | None) -> Tensor:
    rows = []
    for b in range(B):
        terms = [weights[b, j] * modules[int(actions[b, j])](x[b : b + 1])[0] for j in range(actions.size(1))]
        active = mask is None or bool(mask[b])
        rows.append(sum(terms) if active else torch.zeros_like(terms[0]))
    return torch.stack(rows)  # type: ignore[arg-type]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("kind", MODULES)
def test_selection(kind: str, n: int, masked: bool, device: str) -> None:
    torch.manual_seed(0)
    layer = Selection(*[MODULES[kind]() for _ in range(K)]).double().to(device)
    x, (actions, weights) = normal(B, D, seed=1, device=device), chosen(n, device)
    mask = torch.arange(B, device=device) % 3 != 0 if masked else None
    ys, _, returned = layer(x, [None] * B, actions, mask, weights)
    assert returned is actions
    expected = expected_of(list(layer._submodules), x, actions, weights, mask)
    torch.testing.assert_close(ys, expected)
    leaves = [x, weights, *layer.parameters()]
    grad = normal(B, OUT, seed=2, device=device, grad=False)
    mine = torch.autograd.grad(ys, leaves, grad, allow_unused=True, materialize_grads=True)
    theirs = torch.autograd.grad(expected, leaves, grad, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("as_plan", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_linear_bank(n: int, masked: bool, as_plan: bool, device: str) -> None:
    torch.manual_seed(0)
    bank = LinearBank(K, D, OUT, activation="relu").double().to(device)
    x, (actions, weights) = normal(B, D, seed=1, device=device), chosen(n, device)
    mask = torch.arange(B, device=device) % 3 != 0 if masked else None
    expected = expected_of(bank.to_modules(), x, actions, weights, mask)
    if as_plan:
        of_all = None if mask is None else mask.repeat_interleave(n)
        found = bank(x, dispatch_plan(actions.flatten(), K, of_all), weights=weights)
    else:
        found = bank(x, actions, mask, weights)
    torch.testing.assert_close(found, expected)
    assert torch.autograd.gradcheck(lambda t, w: bank(t, actions, mask, w), (x, weights))


def test_one_weight_a_sample(device: str) -> None:
    bank = LinearBank(K, D, OUT).to(device)
    x, actions = torch.randn(B, D, device=device), torch.arange(B, device=device) % K
    weights = torch.rand(B, device=device)
    torch.testing.assert_close(bank(x, actions, weights=weights), weights[:, None] * bank(x, actions))


def test_pointers_of_all_choices(device: str) -> None:
    class Sample(list):  # type: ignore[type-arg]
        def append(self, name: str, module: nn.Module) -> None:  # type: ignore[override]
            super().append(module)

    modules = [nn.Linear(D, OUT).to(device) for _ in range(K)]
    mxs = [Sample(), Sample()]
    actions, weights = torch.tensor([[1, 3], [0, 2]], device=device), torch.ones(2, 2, device=device)
    Selection(*modules, store_module_pointers=True)(torch.randn(2, D, device=device), mxs, actions, None, weights)
    assert [[modules.index(m) for m in mx] for mx in mxs] == [[1, 3], [0, 2]]


def test_single_module(device: str) -> None:
    module = nn.Linear(D, OUT).to(device)
    x, weights = torch.randn(B, D, device=device), torch.rand(B, 2, device=device)
    ys, _, _ = Selection(module)(x, [None] * B, torch.zeros(B, 2, dtype=torch.int64, device=device), None, weights)
    torch.testing.assert_close(ys, weights.sum(1, keepdim=True) * module(x))


def test_autocast_and_compile(device: str) -> None:
    layer = Selection(*[nn.Linear(D, OUT) for _ in range(K)]).to(device)
    x, (actions, weights) = torch.randn(B, D, device=device), chosen(2, device)
    with torch.autocast(device, torch.bfloat16):
        assert layer(x, [None] * B, actions, None, weights.float())[0].dtype is torch.bfloat16
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    weights = weights.detach().float()
    torch.testing.assert_close(
        compiled(x, [None] * B, actions, None, weights)[0], layer(x, [None] * B, actions, None, weights)[0]
    )


def test_wrong_arguments(device: str) -> None:
    x, bank = torch.randn(B, D, device=device), LinearBank(K, D, OUT).to(device)
    layer = Selection(*[nn.Linear(D, OUT) for _ in range(K)]).to(device)
    actions, weights = torch.zeros(B, 2, dtype=torch.int64, device=device), torch.ones(B, 3, device=device)
    with pytest.raises(ValueError, match=rf"Selection: actions must have one element for each of the weights \[{B}, 3\], got"):
        layer(x, [None] * B, actions, None, weights)
    with pytest.raises(ValueError, match=rf"LinearBank: weights must be \[B, n\] for {B} samples, got \[2, 2\]"):
        bank(x, actions, weights=weights[:2, :2])
    with pytest.raises(ValueError, match=rf"Selection: actions must have one element for each of {B} samples"):
        layer(x, [None] * B, actions)
