"""Recognises modules that are nothing but linear layers and ReLUs, so that grouped_linear can stand in for them."""

from __future__ import annotations

import builtins
import dis
import enum
import types
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from .._C import parameters_of, select_linear
from .mlp import MLP


class Stage(NamedTuple):
    """One linear layer of each module: ``y = act(W x + b)``."""

    weights: list[Tensor]
    biases: list[Tensor] | None
    relu: bool


class _Kind(enum.Enum):
    LINEAR = enum.auto()
    LINEAR_RELU = enum.auto()
    RELU = enum.auto()
    SEQUENTIAL = enum.auto()
    MLP = enum.auto()
    OTHER = enum.auto()


_PLAIN = (nn.Parameter, Tensor)
# By class, with the forward that was looked at: a class may get another.
_kinds: dict[type, tuple[Any, _Kind]] = {
    nn.Linear: (nn.Linear.forward, _Kind.LINEAR),
    nn.ReLU: (nn.ReLU.forward, _Kind.RELU),
    nn.Sequential: (nn.Sequential.forward, _Kind.SEQUENTIAL),
    MLP: (MLP.forward, _Kind.MLP),
}
_linear_forward = nn.Linear.forward


def linear_stages(modules: Iterable[nn.Module]) -> list[Stage] | None:
    """What the modules compute, as a chain of stages; None if they are not alike in all but their values, or something else.

    Recognised are :class:`~torch.nn.Linear`, its subclasses that compute the same or only add a ReLU, and
    :class:`~torch.nn.Sequential` of these and :class:`~torch.nn.ReLU`. A hook or a parametrisation anywhere, or a ``forward``
    set on an instance, makes a module something else.
    """
    if _has_any_global_hook() or nn.Linear.forward is not _linear_forward:
        return None
    modules = list(modules)
    if not torch.compiler.is_compiling():  # which cannot look into parameters_of
        stage = _stage_of_one_class(modules)
        if stage is not None:
            return [stage]
    chains = []
    for module in modules:
        chain = _chain(module)
        if not chain:
            return None
        chains.append(chain)
    if len({len(chain) for chain in chains}) != 1:
        return None
    stages = []
    for links in zip(*chains, strict=True):
        parameters, relus = [link[0] for link in links], {link[1] for link in links}
        weights = [p["weight"] for p in parameters]
        biases = [p["bias"] for p in parameters]
        without_bias = sum([b is None for b in biases])
        shape = weights[0].shape
        if len(relus) > 1 or 0 < without_bias < len(biases) or not _are_plain(weights, shape):
            return None
        if not without_bias and not _are_plain(biases, shape[:1]):
            return None
        stages.append(Stage(weights, None if without_bias else biases, links[0][1]))
    return stages


def _stage_of_one_class(modules: list[nn.Module]) -> Stage | None:
    """The only stage of modules that are linear layers of one class, the common case."""
    kind = _linear_kind(modules[0].__class__) if modules else None
    if kind is None:
        return None
    found = parameters_of(modules, modules[0].__class__, ("weight", "bias"))
    if found is None:
        return None
    weights, biases = found
    if weights is None or (biases is not None and biases[0].shape != weights[0].shape[:1]):
        return None
    return Stage(weights, biases, kind is _Kind.LINEAR_RELU)


def _linear_kind(cls: type[nn.Module]) -> _Kind | None:
    """LINEAR or LINEAR_RELU, if the class is known as that."""
    forward, kind = _kinds.get(cls, (None, None))
    return kind if forward is cls.forward and kind in (_Kind.LINEAR, _Kind.LINEAR_RELU) else None


def select_linear_layers(xs: Tensor, actions: Tensor, mask: Tensor | None, modules: list[nn.Module]) -> Tensor | None:
    """What :func:`~.apply_modules.apply_modules` computes, for linear layers of one class on the CPU; None: ask that.

    Args:
        xs: ``[B, d]``.
        actions: int64 ``[B]``.
        mask: bool ``[B]``, or None.
    """
    cls = modules[0].__class__
    kind = _linear_kind(cls)
    if kind is None or torch.compiler.is_compiling() or _has_any_global_hook() or nn.Linear.forward is not _linear_forward:
        return None
    return select_linear(xs, actions, mask, modules, cls, kind is _Kind.LINEAR_RELU)


def _are_plain(tensors: list[Tensor], shape: torch.Size) -> bool:
    """Whether all have the shape. A tensor subclass, as of quantised weights, brings a linear() of its own."""
    for t in tensors:  # a loop costs less than all()
        if t.shape != shape or type(t) not in _PLAIN:
            return False
    return True


def calls_forward_alone(module: nn.Module) -> bool:
    """Whether calling it is its class's ``forward`` and nothing else, but for global hooks."""
    own = module.__dict__
    return not (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
    )


def _chain(module: nn.Module) -> list[tuple[dict[str, Any], bool]] | None:
    """The parameters of the module's linear layers, each with whether a ReLU follows; empty for a ReLU alone."""
    if not calls_forward_alone(module):
        return None
    own = module.__dict__
    cls = module.__class__
    forward, kind = _kinds.get(cls) or _recognise(module)
    if forward is not cls.forward:
        _, kind = _recognise(module)
    if kind is _Kind.LINEAR or kind is _Kind.LINEAR_RELU:
        parameters = own["_parameters"]
        if parameters.get("weight") is None or "bias" not in parameters:
            return None  # put elsewhere by the user, as hypernetworks do
        return [(parameters, kind is _Kind.LINEAR_RELU)]
    if kind is _Kind.RELU:
        return []
    if kind is _Kind.OTHER:
        return None
    if kind is _Kind.MLP:
        return _chain_of_mlp(own)
    links: list[tuple[dict[str, Any], bool]] = []
    for child in own["_modules"].values():
        inner = _chain(child)
        if inner is None:
            return None
        if inner:
            links += inner
        elif links:
            links[-1] = (links[-1][0], True)
        else:
            return None  # a ReLU before the first layer
    return links or None


def _chain_of_mlp(own: dict[str, Any]) -> list[tuple[dict[str, Any], bool]] | None:
    if own["_nonlin"] is not F.relu:
        return None
    links: list[tuple[dict[str, Any], bool]] = []
    layers = own["_modules"]["_layers"]
    for layer in layers:
        inner = _chain(layer)
        if inner is None or len(inner) != 1 or inner[0][1]:
            return None
        links.append((inner[0][0], len(links) < len(layers) - 1))
    return links


def _recognise(module: nn.Module) -> tuple[Any, _Kind]:
    cls = module.__class__
    kind = _kind_of_subclass(module) if isinstance(module, nn.Linear) else _Kind.OTHER
    _kinds[cls] = cls.forward, kind
    return _kinds[cls]


# All that a forward which only adds a ReLU may name, and what of it may be a global.
_NAMES = {"torch", "nn", "functional", "F", "Linear", "forward", "super", "linear", "relu", "relu_", "weight", "bias"}
_GLOBALS = (torch, nn, F, nn.Linear, super, F.linear, F.relu, torch.relu, torch.relu_)
# What else a subclass must leave as it is.
_INHERITED = _NAMES - {"forward"} | {"__call__", "_call_impl", "_wrapped_call_impl", "__getattr__", "__getattribute__"}


def _kind_of_subclass(module: nn.Linear) -> _Kind:
    """Decides for all instances of the class, so it accepts only what cannot depend on anything but weight and bias."""
    cls = module.__class__
    own = cls.__mro__[: cls.__mro__.index(nn.Linear)]
    if any(not _INHERITED.isdisjoint(vars(c)) for c in own):
        return _Kind.OTHER
    forwards = [vars(c)["forward"] for c in own if "forward" in vars(c)]
    if not forwards:
        return _Kind.LINEAR
    is_straight = len(forwards) == 1 and isinstance(forwards[0], types.FunctionType) and _is_straight(forwards[0], own)
    return _Kind.LINEAR_RELU if is_straight and _traces_to_relu_of_linear(module) else _Kind.OTHER


def _is_straight(forward: types.FunctionType, own: tuple[type, ...]) -> bool:
    """Whether each call does the same: no branch, no assignment to attributes, no name but the known ones."""
    code = forward.__code__
    instructions = list(dis.get_instructions(code))
    constants_hold_code = any(isinstance(c, types.CodeType) for c in code.co_consts)
    if constants_hold_code or any("JUMP" in i.opname or i.opname == "STORE_ATTR" for i in instructions):
        return False
    global_names = {i.argval for i in instructions if i.opname == "LOAD_GLOBAL"}
    named = [forward.__globals__.get(name, getattr(builtins, name, None)) for name in global_names]
    named += [cell.cell_contents for cell in forward.__closure__ or ()]
    known = (*_GLOBALS, *own)
    return set(code.co_names) <= _NAMES | global_names and all(any(value is k for k in known) for value in named)


def _traces_to_relu_of_linear(module: nn.Linear) -> bool:
    cls: Any = module.__class__
    read = set()
    try:

        class Probe(cls):  # type: ignore[misc]
            def __getattribute__(self, name: str) -> Any:
                read.add(name)
                return super().__getattribute__(name)

        probe = Probe.__new__(Probe)
        probe.__dict__.update(module.__dict__)
        nodes = list(torch.fx.Tracer().trace(probe).nodes)
    except Exception:  # what cannot be traced is not that simple
        return False
    # Nothing but the parameters: each instance may have a self.relu of its own.
    if not {"weight", "bias"} <= read or read & set(cls.forward.__code__.co_names) - {"forward", "weight", "bias"}:
        return False
    attributes = {node.target: node for node in nodes if node.op == "get_attr"}
    inputs = [node for node in nodes if node.op == "placeholder"]
    calls = [node for node in nodes if node.op not in ("get_attr", "placeholder", "output")]
    if [node.op for node in calls] not in (["call_function"] * 2, ["call_function", "call_method"]) or len(inputs) != 1:
        return False
    linear, relu = calls
    given = (*linear.args, *linear.kwargs.values())
    is_linear = linear.target is F.linear and given == (inputs[0], attributes.get("weight"), attributes.get("bias"))
    is_relu = relu.target in (F.relu, torch.relu, torch.relu_, "relu", "relu_") and relu.args == (linear,)
    options = {name: value for name, value in relu.kwargs.items() if name != "inplace"}
    return is_linear and is_relu and not options and nodes[-1].args == (relu,)
