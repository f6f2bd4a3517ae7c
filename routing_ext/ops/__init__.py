"""Operators that dispatch each sample of a batch to its own module, and operators of memory networks; differentiable."""

from .combine_rows import combine_rows
from .dispatch_plan import DispatchPlan, dispatch_plan
from .dnc import dnc_access, dnc_allocation, dnc_temporal_link, dnc_usage
from .grouped_linear import grouped_linear
from .memory_ops import content_weights, memory_read, memory_write
from .memory_sequence import dnc_access_sequence, dnc_sequence, ntm_sequence
from .move_rows import gather_rows, scatter_rows
from .ntm import ntm_access, ntm_location

__all__ = [
    "DispatchPlan",
    "combine_rows",
    "content_weights",
    "dispatch_plan",
    "dnc_access",
    "dnc_access_sequence",
    "dnc_allocation",
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
