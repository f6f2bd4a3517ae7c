"""One sequence, step by step."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image
from torch import Tensor

from .style import BITS, FAINT, OURS, SIGNED, SOFT, STYLE, WEIGHTS
from .trace import Trace

SIZE, DPI = (11.0, 6.2), 90
SECONDS_A_STEP, SECONDS = 0.6, 30.0  # at most, of a step and of all
SECONDS_AT_END = 2.0


def animate_trace(trace: Trace, path: Path, title: str = "") -> None:
    """Writes what heads and memory look like after each step, under the sequence of bits; an endless loop.

    Args:
        trace: the sequence.
        path: of the file: .gif, or .png for an animated PNG.
        title: above all.

    Raises:
        ValueError: a path that ends otherwise.
    """
    if path.suffix not in (".gif", ".png"):
        raise ValueError(f"animate_trace: path must end with .gif or .png, got {path}")
    with matplotlib.rc_context(STYLE):
        scene = _Scene(trace.of_used_locations(), title)
        frames = [scene.frame(step) for step in range(trace.num_steps)]
    if path.suffix == ".gif":
        palette = _palette()
        frames = [_in_palette(frame, palette) for frame in frames]
    milliseconds = int(1000 * min(SECONDS_A_STEP, SECONDS / trace.num_steps))
    durations = [milliseconds] * (len(frames) - 1) + [int(1000 * SECONDS_AT_END)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)


def _palette() -> Image.Image:
    """One for all frames, so that nothing flickers, and white stays white: what the figure is drawn with."""
    shades = [colours(np.linspace(0, 1, amount)) for colours, amount in ((BITS, 64), (WEIGHTS, 64), (SIGNED, 127))]
    image = Image.new("P", (1, 1))
    image.putpalette((255 * np.concatenate([*shades, [to_rgba(OURS)]])[:, :3]).round().astype(np.uint8).tobytes())
    return image


def _in_palette(frame: Image.Image, palette: Image.Image) -> Image.Image:
    """With the nearest colours, as far as pillow finds them; it misses white, which is the first."""
    nearest = frame.quantize(palette=palette, dither=Image.Dither.NONE)
    pixels = np.array(nearest)
    pixels[(np.asarray(frame) == 255).all(-1)] = 0
    image = Image.fromarray(pixels)
    image.putpalette(nearest.getpalette() or ())
    return image


class _Scene:
    """A figure that is drawn once for each step."""

    def __init__(self, trace: Trace, title: str) -> None:
        self.trace = trace
        self.figure = Figure(figsize=SIZE, dpi=DPI, facecolor="white")
        self.canvas = FigureCanvasAgg(self.figure)
        self.figure.text(0.02, 0.945, title, fontsize=13, weight="bold")
        self.step_text = self.figure.text(0.98, 0.945, "", fontsize=11, color=SOFT, ha="right")
        self.moving: list[tuple[AxesImage, Tensor]] = []
        self.timelines = [
            self._draw_bits(name, values, place)
            for name, values, place in (
                ("input", trace.input, 0.77),
                ("target", trace.target, 0.63),
                ("output", trace.output, 0.49),
            )
        ]
        self._draw_states()

    def _draw_bits(self, name: str, values: Tensor, bottom: float) -> Axes:
        has_memory = self.trace.memory is not None
        height = 0.12 if has_memory else 0.24
        ax = self.figure.add_axes((0.09, bottom if has_memory else 2 * bottom - 0.9, 0.89, height))
        _show(ax, values.T, BITS, Normalize(0, 1))
        if name == "output":
            for step in (~self.trace.counts).nonzero()[:, 0].tolist():
                ax.axvspan(step - 0.5, step + 0.5, color="white", alpha=0.75, linewidth=0)
        ax.text(-0.01, 0.5, name, transform=ax.transAxes, ha="right", va="center", fontsize=10, weight="bold")
        return ax

    def _draw_states(self) -> None:
        trace = self.trace
        one, signed = Normalize(0, 1), Normalize(-trace.memory_range, trace.memory_range)
        panels: list[tuple[str, Tensor, Colormap, Normalize, float]] = []
        if trace.memory is not None and trace.write_weights is not None and trace.read_weights is not None:
            panels += [
                ("writes", trace.write_weights.mT, WEIGHTS, one, 1.0),
                ("reads", trace.read_weights.mT, WEIGHTS, one, 1.6),
            ]
            if trace.usage is not None:
                panels.append(("usage", trace.usage.unsqueeze(2), WEIGHTS, one, 1.0))
            panels.append(("memory", trace.memory, SIGNED, signed, 3.2))
            if trace.link is not None:
                panels.append(("link: row after column", trace.link.sum(1), WEIGHTS, one, 2.6))
        left, gap = 0.09, 0.022
        unit = (0.98 - left - gap * (len(panels) - 1)) / max(1.0, sum(panel[-1] for panel in panels))
        for name, pictures, colours, scale, width in panels:
            ax = self.figure.add_axes((left, 0.05, unit * width, 0.345))
            self.moving.append((_show(ax, pictures[0], colours, scale), pictures))
            heads = f", {pictures.size(2)} heads" if name in ("writes", "reads") and pictures.size(2) > 1 else ""
            ax.set_title(name + heads, fontsize=10, weight="bold", pad=5)
            if name == "writes":
                shown, there = pictures.size(1), trace.num_locations
                locations = f"{shown} locations" + (f" used, of {there}" if shown != there else "")
                ax.text(
                    -0.12,
                    0.5,
                    locations,
                    transform=ax.transAxes,
                    rotation=90,
                    ha="right",
                    va="center",
                    fontsize=9,
                    color=SOFT,
                )
            left += unit * width + gap

    def frame(self, step: int) -> Image.Image:
        marks: list[Artist] = []
        for ax in self.timelines:
            hidden = 1.0 if ax is self.timelines[-1] else 0.82  # it has not said yet what it will say
            future = ax.axvspan(step + 0.5, self.trace.num_steps - 0.5, color="white", alpha=hidden, linewidth=0)
            now = ax.axvspan(step - 0.5, step + 0.5, fill=False, edgecolor=OURS, linewidth=2)
            marks += [future, now]
        for image, pictures in self.moving:
            image.set_data(pictures[step].numpy())
        what = "it answers" if self.trace.counts[step] else "it listens"
        self.step_text.set_text(f"step {step + 1} of {self.trace.num_steps}: {what}")
        self.canvas.draw()  # type: ignore[no-untyped-call]
        for mark in marks:
            mark.remove()
        pixels = np.asarray(self.canvas.buffer_rgba())  # type: ignore[no-untyped-call]
        return Image.fromarray(pixels[..., :3].copy())


def _show(ax: Axes, picture: Tensor, colours: Colormap, scale: Normalize) -> AxesImage:
    image = ax.imshow(picture.numpy(), cmap=colours, norm=scale, aspect="auto", interpolation="nearest")
    ax.set(xticks=(), yticks=())
    ax.spines[:].set(visible=True, color=FAINT)
    return image
