"""recurrent: what torch's recurrent layers compute, opaque to compilers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import normal
from torch import Tensor, nn

from routing_ext.ops.recurrent import KINDS, recurrent

LAYERS: dict[str, Any] = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "rnn_tanh": nn.RNN,
    "rnn_relu": lambda *sizes, **options: nn.RNN(*sizes, nonlinearity="relu", **options),
}


@pytest.fixture(autouse=True)
def _not_on_emulated_kernels(emulated_cuda: bool) -> None:
    if emulated_cuda:
        pytest.skip("has no kernels of its own")


def case(kind: str, bias: bool = True) -> tuple[nn.RNNBase, Tensor, list[Tensor], list[Tensor]]:
    """A layer of torch's, x, the state before it and its weights."""
    torch.manual_seed(0)
    layer: nn.RNNBase = LAYERS[kind](3, 4, bias=bias, dtype=torch.float64)
    state = [normal(1, 2, 4, seed=i) for i in range(2 if kind == "lstm" else 1)]
    return layer, normal(5, 2, 3, seed=7), state, list(layer.parameters())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_computes_what_torch_does(kind: str, bias: bool) -> None:
    layer, x, state, weights = case(kind, bias)
    y, after = recurrent(kind, x, state, weights)
    expected, last = layer(x, tuple(state) if kind == "lstm" else state[0])
    last = list(last) if kind == "lstm" else [last]
    torch.testing.assert_close([y, *after], [expected, *last])
    wanted = [x, *state, *weights]
    found = torch.autograd.grad(y.square().sum() + after[-1].sum(), wanted)
    torch.testing.assert_close(found, torch.autograd.grad(expected.square().sum() + last[-1].sum(), wanted))


@pytest.mark.parametrize("kind", KINDS)
def test_as_a_custom_operator(kind: str) -> None:
    _, x, state, weights = case(kind)
    torch.library.opcheck(torch.ops.routing_ext.recurrent.default, (kind, x, state, weights))


def test_gradients() -> None:
    _, x, state, weights = case("lstm")

    def function(x: Tensor, h: Tensor, c: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        y, after = recurrent("lstm", x, [h, c], weights)
        return y, *after

    assert torch.autograd.gradcheck(function, (x, *state, *weights), fast_mode=True)


def test_no_such_kind() -> None:
    _, x, state, weights = case("gru")
    with pytest.raises(ValueError, match="recurrent: kind must be one of lstm, gru, rnn_tanh, rnn_relu, got 'cnn'"):
        recurrent("cnn", x, state, weights)
