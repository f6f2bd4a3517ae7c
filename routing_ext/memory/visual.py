"""Heat maps on a visdom server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor


class Heatmap:
    """One window; nothing at all unless the option `visualize` is true.

    Args:
        title: of the window.
        options: visualize; vis, a client of visdom; refs, the environment of visdom.
    """

    OPTIONS: ClassVar[Mapping[str, Any]] = {"visualize": False, "vis": None, "refs": None}

    def __init__(self, title: str, options: Mapping[str, Any]) -> None:
        self._title = title
        self._visualize, self._vis, self._refs = (options[name] for name in self.OPTIONS)
        self._window: Any = f"win_{title}"

    def draw(self, image: Tensor) -> None:
        if self._visualize:
            numbers = image.detach().cpu().numpy()
            self._window = self._vis.heatmap(numbers, env=self._refs, win=self._window, opts={"title": self._title})
