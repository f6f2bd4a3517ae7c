"""What the modules of pytorch-dnc offer, ours in place of it. Its package has the name `core`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import memory as m

MODULES: Mapping[str, tuple[Any, ...]] = {
    "": (),
    "accessor": (m.Accessor,),
    "accessors": (),
    "accessors.dynamic_accessor": (m.DynamicAccessor,),
    "accessors.static_accessor": (m.StaticAccessor,),
    "circuit": (m.Circuit,),
    "circuits": (),
    "circuits.dnc_circuit": (m.DNCCircuit,),
    "circuits.ntm_circuit": (m.NTMCircuit,),
    "controller": (m.Controller,),
    "controllers": (),
    "controllers.lstm_controller": (m.LSTMController,),
    "head": (m.Head,),
    "heads": (),
    "heads.dynamic_head": (m.DynamicHead,),
    "heads.dynamic_read_head": (m.DynamicReadHead,),
    "heads.dynamic_write_head": (m.DynamicWriteHead,),
    "heads.static_head": (m.StaticHead,),
    "heads.static_read_head": (m.StaticReadHead,),
    "heads.static_write_head": (m.StaticWriteHead,),
    "memory": (m.ExternalMemory, m.External2DMemory),
}
