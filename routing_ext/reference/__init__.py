"""What the operators and layers compute, in plain PyTorch: the oracle of the tests and the baseline of the benchmarks.

Slow on purpose: read these to know what the fast versions mean.
"""

from .combine_rows import combine_rows
from .dispatch_plan import dispatch_plan
from .dnc import dnc_access, dnc_access_sequence, dnc_allocation, dnc_sequence, dnc_temporal_link, dnc_usage
from .dnc_package import dnc_package_access
from .grouped_linear import grouped_linear
from .memory_ops import content_weights, memory_read, memory_write
from .move_rows import gather_rows, scatter_rows
from .ntm import ntm_access, ntm_location, ntm_sequence
from .selection import Selection

__all__ = [
    "Selection",
    "combine_rows",
    "content_weights",
    "dispatch_plan",
    "dnc_access",
    "dnc_access_sequence",
    "dnc_allocation",
    "dnc_package_access",
    "dnc_sequence",
    "dnc_temporal_link",
    "dnc_usage",
    "gather_rows",
    "grouped_linear",
    "memory_read",
    "memory_write",
    "ntm_access",
    "ntm_location",
    "ntm_sequence",
    "scatter_rows",
]
