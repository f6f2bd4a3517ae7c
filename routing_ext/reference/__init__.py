"""What the operators and layers compute, in plain PyTorch: the oracle of the tests and the baseline of the benchmarks.

Slow on purpose: read these to know what the fast versions mean.
"""

from .dispatch_plan import dispatch_plan
from .grouped_linear import grouped_linear
from .move_rows import gather_rows, scatter_rows
from .selection import Selection

__all__ = ["Selection", "dispatch_plan", "gather_rows", "grouped_linear", "scatter_rows"]
