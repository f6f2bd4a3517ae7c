"""The multi-layer perceptron of the reference."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from routing_ext.routing import MLP

X = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("hidden", [(), (4,), [4, 7]])
def test_forward(hidden: tuple[int, ...]) -> None:
    mlp = MLP(6, 2, hidden)
    widths = [6, *hidden, 2]
    assert {name: tuple(p.shape) for name, p in mlp.state_dict().items()} == {
        f"_layers.{i}.{name}": shape
        for i, (d, o) in enumerate(zip(widths, widths[1:], strict=False))
        for name, shape in (("weight", (o, d)), ("bias", (o,)))
    }
    modules: list[nn.Module] = [m for layer in mlp._layers for m in (layer, nn.ReLU())][:-1]
    torch.testing.assert_close(mlp(X), nn.Sequential(*modules)(X))


def test_nonlinearity() -> None:
    mlp = MLP(6, 2, (4,), nonlin=torch.tanh)
    torch.testing.assert_close(mlp(X), mlp._layers[1](mlp._layers[0](X).tanh()))


def test_input_of_several_dimensions() -> None:
    assert MLP((2, 3), 2, ())(X).shape == (3, 2)


def test_other_arguments_are_ignored() -> None:
    mlp = MLP(6, 2, (4,))
    assert torch.equal(mlp(X, None, 3), mlp(X))


def test_names_of_the_widths() -> None:
    """The reference's code has `layers`, its README `hidden`."""
    for made in (MLP(4, 2, (3, 5)), MLP(4, 2, hidden=(3, 5)), MLP(4, 2, layers=(3, 5))):
        assert [layer.out_features for layer in made._layers] == [3, 5, 2]
    assert len(MLP(4, 2, hidden=())._layers) == 1
    with pytest.raises(TypeError, match="MLP: layers or hidden must be given, got neither"):
        MLP(4, 2)
    with pytest.raises(TypeError, match="MLP: layers or hidden must be given, got both"):
        MLP(4, 2, (3,), hidden=(3,))
