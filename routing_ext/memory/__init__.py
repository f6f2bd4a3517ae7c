"""Networks with an external memory: the neural Turing machine and the differentiable neural computer."""

from .._memory_options import DncOptions
from .._states import DncState, NtmState
from . import dnc_package
from .accessors import Accessor, DynamicAccessor, StaticAccessor
from .circuits import Circuit, DNCCircuit, NTMCircuit
from .controllers import Controller, LSTMController
from .external_memory import External2DMemory, ExternalMemory
from .heads import DynamicHead, DynamicReadHead, DynamicWriteHead, Head, StaticHead, StaticReadHead, StaticWriteHead
from .layers import DNC, NTM, MemoryLayer

__all__ = [
    "DNC",
    "NTM",
    "Accessor",
    "Circuit",
    "Controller",
    "DNCCircuit",
    "DncOptions",
    "DncState",
    "DynamicAccessor",
    "DynamicHead",
    "DynamicReadHead",
    "DynamicWriteHead",
    "External2DMemory",
    "ExternalMemory",
    "Head",
    "LSTMController",
    "MemoryLayer",
    "NTMCircuit",
    "NtmState",
    "StaticAccessor",
    "StaticHead",
    "StaticReadHead",
    "StaticWriteHead",
    "dnc_package",
]
