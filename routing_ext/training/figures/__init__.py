"""Figures of what networks do, and of how they learned it. They need matplotlib."""

from .animation import animate_trace
from .curves import draw_curves
from .routes import Routes, draw_routes, follow_routes
from .trace import Trace, trace
from .trace_figure import draw_trace

__all__ = ["Routes", "Trace", "animate_trace", "draw_curves", "draw_routes", "draw_trace", "follow_routes", "trace"]
