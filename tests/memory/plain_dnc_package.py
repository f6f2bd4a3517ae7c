"""The network of the package `dnc`, a loop over steps and layers around the definition of its memory's step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from routing_ext.memory import DncState
from routing_ext.reference import dnc_package_access

INTERFACE = (
    "read_keys read_strengths write_key write_strength erase_vector write_vector free_gates "
    "allocation_gate write_gate read_modes"
).split()
FIELDS = {  # of the state, by the package's names
    "memory": "memory",
    "link_matrix": "link",
    "precedence": "precedence",
    "read_weights": "read_weights",
    "write_weights": "write_weights",
    "usage_vector": "usage",
}


def initial_state(config: Mapping[str, Any], batch: int, dtype: torch.dtype) -> DncState:
    """All zero."""
    n, w, r = config["nr_cells"], config["cell_size"], config["read_heads"]
    shapes = {"memory": (n, w), "usage": (n,), "precedence": (1, n), "link": (1, n, n), "write_weights": (1, n)}
    shapes |= {"read_weights": (r, n), "hidden": (0,), "cell": (0,), "read_vectors": (r, w)}
    return DncState(**{field: torch.zeros(batch, *shape, dtype=dtype) for field, shape in shapes.items()})


def plain_network(
    config: Mapping[str, Any], parameters: Mapping[str, Tensor], x: Tensor, controllers: Sequence[Any], states: list[DncState]
) -> tuple[Tensor, list[Any], list[DncState]]:
    """``(y [B,T,O], controllers, states)``.

    Args:
        config: of the network's constructor, with all sizes.
        parameters: by their names in it.
        x: ``[B,T,I]``.
        controllers: of each layer, the state as of ``nn.LSTM``, ``nn.GRU`` or ``nn.RNN``.
        states: of each memory; the controllers see the read vectors of the last one, the same ones at every step.
    """
    kind, shared = config["rnn_type"], config["share_memory_between_layers"]
    clip = config.get("clip", 20)

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): p for name, p in parameters.items() if name.startswith(prefix)}

    def interface(h: Tensor, prefix: str) -> Tensor:
        p = part(prefix)
        if not config["independent_linears"]:
            return F.linear(h, p["interface_weights.weight"], p["interface_weights.bias"])
        return torch.cat([F.linear(h, p[f"{n}_transform.weight"], p[f"{n}_transform.bias"]) for n in INTERFACE], 1)

    controllers, states, ys = list(controllers), list(states), []
    last_read = states[-1].read_vectors.flatten(1)
    for x_t in x.unbind(1):
        features = torch.cat([x_t, last_read], 1)
        for layer in range(config["num_layers"]):
            more = {"nonlinearity": config["nonlinearity"]} if kind == "rnn" and "nonlinearity" in config else {}
            rnn = getattr(nn, kind.upper())(
                features.size(1),
                config["hidden_size"],
                config["num_hidden_layers"],
                bias=config.get("bias", True),
                dtype=x.dtype,
                **more,
            )
            h, controllers[layer] = torch.func.functional_call(
                rnn, part(f"{kind}_layer_{layer}."), (features.unsqueeze(0), controllers[layer])
            )
            h = h.squeeze(0).clamp(-clip, clip) if clip else h.squeeze(0)
            memory = 0 if shared else layer
            prefix = f"rnn_layer_memory_{'shared' if shared else layer}."
            states[memory] = dnc_package_access(interface(h, prefix), states[memory])
            features = torch.cat([h, states[memory].read_vectors.flatten(1)], 1)
        ys.append(F.linear(features, parameters["output.weight"], parameters["output.bias"]))
    return torch.stack(ys, 1), controllers, states
