"""Two states of a memory whose locations are in different orders."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

# Of each field of a sample's state, its dimensions over locations.
LOCATION_DIMENSIONS = {
    "memory": [0],
    "usage": [0],
    "precedence": [1],
    "write_weights": [1],
    "read_weights": [1],
    "link": [1, 2],
}


def same_locations(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """My states, ``[T, ...]`` of one sample, with the locations in their order."""
    order = _matching(_histories(mine), _histories(theirs))
    found = {}
    for name, value in mine.items():
        for dimension in LOCATION_DIMENSIONS.get(name, []):
            value = value.index_select(dimension + 1, order)
        found[name] = value
    return found


def _histories(states: Mapping[str, Tensor]) -> Tensor:
    """``[N,...]``: all that the states tell of each location."""
    per_location = [
        states[name].movedim(dimensions[0] + 1, 0).flatten(1)
        for name, dimensions in LOCATION_DIMENSIONS.items()
        if name in states and name != "link"
    ]
    return torch.cat(per_location, 1)


def _matching(mine: Tensor, theirs: Tensor) -> Tensor:
    """For each of their locations the one of mine, not taken yet, that is most like it."""
    distances = torch.cdist(theirs, mine, compute_mode="donot_use_mm_for_euclid_dist")
    order = []
    for row in distances:
        order.append(int(row.argmin()))
        distances[:, order[-1]] = torch.inf
    return torch.tensor(order)
