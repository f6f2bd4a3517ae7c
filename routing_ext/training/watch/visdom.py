"""For a Visdom server on this machine: curves while a network is trained, heat maps of its memory when it is tested."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .sink import Kind, Sink

if TYPE_CHECKING:
    from torch import Tensor

    from ..figures.trace import Trace

PORT = 8097  # Visdom's own
_TIMEOUT = 2.0
_CURVES = {"loss": "loss", "bits": "bits a sequence", "accuracy": "accuracy"}
_SIGNED = [[0, "#7a3a00"], [0.25, "#e08214"], [0.5, "#ffffff"], [0.75, "#4a78c2"], [1, "#16335f"]]


class VisdomServer:
    """Draws into windows of one environment of the server at 127.0.0.1.

    It speaks to the server itself, so that the package visdom is needed where the server runs, not where networks are trained.

    Args:
        env: name of the environment.
        port: of the server.
    """

    def __init__(self, env: str, port: int = PORT) -> None:
        self.env, self.url = env, f"http://127.0.0.1:{port}"
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy is elsewhere

    @property
    def page(self) -> str:
        """Where a browser shows the environment."""
        return f"{self.url}/env/{self.env}"

    def draw(self, window: str, traces: Sequence[Mapping[str, Any]], layout: Mapping[str, Any]) -> None:
        """Makes, or draws anew, a window.

        Args:
            window: its name, which is its title.
            traces, layout: as plotly.js has them.

        Raises:
            OSError: the server does not answer.
        """
        message = {
            "win": window,
            "eid": self.env,
            "data": traces,
            "layout": {"title": {"text": window}, "margin": {"l": 60, "r": 60, "t": 60, "b": 60}, **layout},
            "opts": {"title": window},
        }
        request = urllib.request.Request(f"{self.url}/events", json.dumps(message).encode())
        with self._opener.open(request, timeout=_TIMEOUT) as answer:
            answer.read()

    def heatmap(self, window: str, picture: Tensor, low: float, high: float) -> None:
        """Draws ``picture [rows, columns]``, row 0 at the bottom as in pytorch-dnc; the colours range from low to high."""
        colours = {"colorscale": _SIGNED if low < 0 else "Viridis", "zmin": low, "zmax": high}
        rows: list[list[float]] = picture.tolist()
        self.draw(window, [{"type": "heatmap", "z": rows, **colours}], {})


class Visdom(Sink):
    """Curves of what is reported, against sequences. Without a server it says so once, and tries again at the next report.

    Args:
        server: whose environment has the name of the run.
        batch_size: sequences a step.
        say: how it tells that there is no server.
        history: earlier reports of the run, lines of metrics.jsonl.
    """

    def __init__(
        self,
        server: VisdomServer,
        batch_size: int,
        say: Callable[[str], None],
        history: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._server, self._batch_size, self._say = server, batch_size, say
        self._curves: dict[str, dict[Kind, tuple[list[int], list[float]]]] = {name: {} for name in _CURVES}
        self._has_complained = False
        for line in history:
            self._add(line["kind"], line["sequences"], line)

    def _add(self, kind: Kind, sequences: int, values: Mapping[str, Any]) -> None:
        for name, curve in self._curves.items():
            if values.get(name) is not None:
                xs, ys = curve.setdefault(kind, ([], []))
                xs.append(sequences)
                ys.append(values[name])

    def report(self, kind: Kind, step: int, values: Mapping[str, float]) -> None:
        self._add(kind, step * self._batch_size, values)
        try:
            for name, curve in self._curves.items():
                if curve:
                    traces = [{"type": "scatter", "name": kind, "x": xs, "y": ys} for kind, (xs, ys) in curve.items()]
                    axes = {"xaxis": {"title": {"text": "sequences"}}, "yaxis": {"title": {"text": _CURVES[name]}}}
                    self._server.draw(name, traces, axes)
        except OSError as error:
            if not self._has_complained:
                self._say(f"{no_server(self._server, error)} The training goes on.")
            self._has_complained = True


def no_server(server: VisdomServer, error: OSError) -> str:
    reason = getattr(error, "reason", error)
    return f"No Visdom server answers at {server.url} ({reason}). To start one: python -m visdom.server -bind_local"


def play(server: VisdomServer, trace: Trace, seconds_a_step: float = 0.5) -> None:
    """Shows a sequence step by step, in windows that have the names that pytorch-dnc gives them in its test mode.

    Raises:
        OSError: the server does not answer.
    """
    series = {"input": trace.input, "target": trace.target, "output": trace.output}
    for window, values in series.items():
        server.heatmap(window, values.T, 0, 1)
    heads = {"write_head": trace.write_weights, "read_head": trace.read_weights}
    for step in range(trace.num_steps):
        for window, weights in heads.items():
            if weights is not None:
                server.heatmap(window, weights[step].T, 0, 1)
        if trace.memory is not None:
            server.heatmap("memory", trace.memory[step], -trace.memory_range, trace.memory_range)
        if trace.usage is not None:
            server.heatmap("usage", trace.usage[step].unsqueeze(1), 0, 1)
        if trace.link is not None:
            server.heatmap("link", trace.link[step].sum(0), 0, 1)
        time.sleep(seconds_a_step)
