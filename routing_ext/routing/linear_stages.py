"""Recognises modules that are nothing but linear layers and ReLUs, so that grouped_linear can stand in for them."""

from __future__ import annotations

import enum
import weakref
from typing import NamedTuple

import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook


class Stage(NamedTuple):
    """``y = act(weight x + bias)``."""

    weight: Tensor
    bias: Tensor | None
    relu: bool


class _Kind(enum.Enum):
    LINEAR = enum.auto()
    LINEAR_RELU = enum.auto()
    RELU = enum.auto()
    SEQUENTIAL = enum.auto()
    OTHER = enum.auto()


_kinds: weakref.WeakKeyDictionary[type, _Kind] = weakref.WeakKeyDictionary(
    {nn.Linear: _Kind.LINEAR, nn.ReLU: _Kind.RELU, nn.Sequential: _Kind.SEQUENTIAL}
)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def linear_stages(module: nn.Module) -> list[Stage] | None:
    """What the module computes, as a chain of stages; None if it is, or might be, anything else.

    Recognised are :class:`~torch.nn.Linear`, its subclasses that only add a ReLU, and :class:`~torch.nn.Sequential` of these and
    :class:`~torch.nn.ReLU`. A hook or a parametrisation anywhere, or a ``forward`` set on an instance, makes a module something
    else.
    """
    kind = _kinds.get(module.__class__) or _recognise(module)
    own = module.__dict__
    if kind is _Kind.OTHER or "forward" in own or any(own[hooks] for hooks in _HOOKS):
        return None
    if kind is _Kind.LINEAR or kind is _Kind.LINEAR_RELU:
        parameters = own["_parameters"]
        weight = parameters.get("weight")
        return None if weight is None else [Stage(weight, parameters["bias"], kind is _Kind.LINEAR_RELU)]
    if kind is _Kind.RELU:
        return []  # an empty chain asks the caller, a Sequential, to add it to the stage before
    stages: list[Stage] = []
    for child in own["_modules"].values():
        inner = linear_stages(child)
        if inner is None or child.__class__ is nn.Sequential:
            return None
        if inner:
            stages += inner
        elif stages:
            stages[-1] = stages[-1]._replace(relu=True)
        else:
            return None
    return stages or None


def grouped_stages(modules: list[nn.Module]) -> list[list[Stage]] | None:
    """The stages of all modules, ``[stage][module]``, if these are alike in everything but their values; else None."""
    if _has_any_global_hook():
        return None
    chains = []
    for module in modules:
        chain = linear_stages(module)
        if not chain:
            return None
        chains.append(chain)
    first = chains[0]
    for chain in chains:
        if len(chain) != len(first):
            return None
        for stage, like in zip(chain, first, strict=True):
            if (
                stage.weight.shape != like.weight.shape
                or stage.relu is not like.relu
                or (stage.bias is None) is not (like.bias is None)
            ):
                return None
    return [list(stage) for stage in zip(*chains, strict=True)]


def _recognise(module: nn.Module) -> _Kind:
    cls = module.__class__
    kind = _Kind.LINEAR_RELU if isinstance(module, nn.Linear) and _only_adds_relu(module) else _Kind.OTHER
    _kinds[cls] = kind
    return kind


# What a forward that only adds a ReLU may name: nothing there can depend on the instance's state.
_HARMLESS_NAMES = {"nn", "torch", "F", "functional", "Linear", "forward", "relu", "super", "linear", "weight", "bias", "ReLU"}


def _only_adds_relu(module: nn.Linear) -> bool:
    cls = module.__class__
    code = getattr(cls.forward, "__code__", None)
    if code is None or cls.__call__ is not nn.Module.__call__ or not set(code.co_names) <= _HARMLESS_NAMES:
        return False
    try:
        nodes = list(torch.fx.Tracer().trace(module).nodes)
    except Exception:  # what cannot be traced is not that simple
        return False
    attributes = {node.target: node for node in nodes if node.op == "get_attr"}
    calls = [node for node in nodes if node.op.startswith("call_")]
    inputs = [node for node in nodes if node.op == "placeholder"]
    if len(inputs) != 1 or len(calls) != 2 or calls[0].target is not F.linear:
        return False
    linear, relu = calls
    given = (*linear.args, *linear.kwargs.values())
    expected = (inputs[0], attributes.get("weight"), attributes.get("bias"))
    is_relu = relu.target in (F.relu, torch.relu, torch.relu_, "relu", "relu_") and relu.args == (linear,)
    options = {name: value for name, value in relu.kwargs.items() if name != "inplace"}
    return given == expected and is_relu and not options and nodes[-1].args == (relu,)
