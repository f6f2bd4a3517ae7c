"""Recorded results of the published memory networks, and how to compare with them."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

FOLDER = pathlib.Path(__file__).parent.parent / "golden"


class Case:
    """The arrays of one file, as tensors."""

    def __init__(self, path: pathlib.Path) -> None:
        with np.load(path) as archive:
            self.meta: dict[str, Any] = json.loads(str(archive["meta"]))
            self._arrays = {name: archive[name] for name in archive.files if name != "meta"}
        self.dtype: torch.dtype = getattr(torch, self.meta.get("dtype", "float32"))
        self.tolerance = 1e-4 if self.dtype is torch.float32 else 1e-9

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self._arrays[name].copy())

    def starting_with(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): self[name] for name in self._arrays if name.startswith(prefix)}

    def assert_close(self, actual: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(actual, expected, rtol=self.tolerance, atol=self.tolerance)

    def assert_gradient_close(self, actual: Tensor | None, expected: Tensor) -> None:
        assert actual is not None
        torch.testing.assert_close(
            actual, expected, rtol=self.tolerance, atol=self.tolerance * max(1.0, expected.abs().max().item())
        )

    def assert_same_up_to_order(
        self, actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], location_dimensions: Mapping[str, list[int]]
    ) -> None:
        """One sample's states. Where locations are equally free, a reference allocates any of them.

        Args:
            actual: tensors by name.
            expected: likewise; of these names.
            location_dimensions: of each name, its dimensions that run over locations: one, or two for links.
        """

        def by_location(states: Mapping[str, Tensor]) -> Tensor:  # [N,...]: all that the states tell of each location
            names = [name for name, dims in location_dimensions.items() if name in expected and len(dims) == 1]
            columns = [states[name].movedim(location_dimensions[name][0], 0) for name in names]
            return torch.cat([column.reshape(len(column), -1) for column in columns], 1)

        order = _matching(by_location(actual), by_location(expected))
        for name, wanted in expected.items():
            value = actual[name]
            for dimension in location_dimensions.get(name, []):
                value = value.index_select(dimension, order)
            self.assert_close(value, wanted)


def _matching(mine: Tensor, theirs: Tensor) -> Tensor:
    """For each of their locations the one of mine, not taken yet, that is most like it."""
    distances = torch.cdist(theirs, mine, compute_mode="donot_use_mm_for_euclid_dist")
    order = []
    for row in distances:
        order.append(int(row.argmin()))
        distances[:, order[-1]] = torch.inf
    return torch.tensor(order)
