"""Operators for dispatching each sample of a batch to its own module, differentiable and compilable."""

from .dispatch_plan import DispatchPlan, dispatch_plan
from .grouped_linear import grouped_linear
from .move_rows import gather_rows, scatter_rows

__all__ = ["DispatchPlan", "dispatch_plan", "gather_rows", "grouped_linear", "scatter_rows"]
