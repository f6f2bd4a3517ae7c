"""Memory networks over sequences, in circuits of whoever implements them: ours, the reference, plain PyTorch."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from routing_ext import reference
from routing_ext.memory import Circuit, DNCCircuit, NTMCircuit, dnc_package
from routing_ext.reference.memory_sequence import memory_sequence

from .measure import Kind, Side
from .rates import Work
from .workloads import Case

Apply = Callable[[Tensor], Tensor]

CIRCUITS: dict[str, type[Circuit[Any]]] = {"dnc": DNCCircuit, "ntm": NTMCircuit}
PLAIN: dict[str, Callable[..., tuple[Tensor, Any]]] = {"dnc": reference.dnc_sequence, "ntm": reference.ntm_sequence}
SHIFTS = 3
MAX_PLAIN_BYTES = 2 * 2**30


@dataclass(frozen=True)
class MemoryCase(Case):
    """T steps of B sequences, I inputs, O outputs; H hidden units, V write heads, R read heads, N locations of W elements."""

    name: str
    model: str
    B: int
    H: int
    R: int
    N: int
    W: int
    T: int
    I: int = 6  # noqa: E741
    O: int = 5  # noqa: E741
    V: int = 1

    @property
    def id(self) -> str:
        return f"{self.name}-{self.model}-B{self.B}-H{self.H}-R{self.R}-N{self.N}-W{self.W}-T{self.T}"

    @property
    def headline(self) -> bool:
        return True  # how threads share the work matters at every size

    @property
    def sizes(self) -> dict[str, Any]:
        """As the circuits name them."""
        return {
            "batch_size": self.B,
            "input_dim": self.I,
            "output_dim": self.O,
            "hidden_dim": self.H,
            "num_write_heads": self.V,
            "num_read_heads": self.R,
            "mem_hei": self.N,
            "mem_wid": self.W,
            "clip_value": 20.0,
        }

    @property
    def plain_fits(self) -> bool:
        """Whether plain PyTorch gets by with MAX_PLAIN_BYTES, roughly: it keeps two links and four memories of each step."""
        links = 2.5 * self.V * self.N**2 if self.model == "dnc" else 0
        return 4 * self.T * self.B * (links + 4 * self.N * self.W) < MAX_PLAIN_BYTES


def memory_work(case: MemoryCase) -> Work:
    """Forward and backward to all parameters, float32. Only what grows with a product of two sizes counts.

    Of each element of a link, ``12 + 6R`` multiplications: 3 to update it and 2R to read forward and backward; in the backward
    pass 3 to have the new link, 4R for the gradients of those reads, 6 for that of the update. Of each element of the memory,
    ``12V + 6R + 3``: to find by content (the norms, and of each head the products, their two gradients), to write, to read.
    The state is read and written in the forward pass, and with its gradient, once more read and written, in the backward pass.
    """
    read = case.R * case.W
    if case.model == "dnc":
        interface = case.V * (3 * case.W + 3) + case.R * (case.W + 3 + 2 * case.V)
        link = case.V * case.N**2
    else:
        interface = case.V * (3 * case.W + 3 + SHIFTS) + case.R * (case.W + 3 + SHIFTS)
        link = 0
    weights = 4 * case.H * (case.I + read + case.H) + case.H * interface + case.O * (case.H + read)
    products = 3 * weights - 4 * case.H * case.I  # the input wants no gradient
    memory = case.N * case.W
    multiplications = products + link * (12 + 6 * case.R) + memory * (12 * case.V + 6 * case.R + 3)
    state = link + memory
    return Work(
        flop=2.0 * case.T * case.B * multiplications,
        bytes=4.0 * (3 * weights + 5 * case.T * case.B * state + 3 * case.T * case.B * (case.I + case.O)),
        working_set=4.0 * 2 * state,
    )


class Training:
    """A batch of random sequences, on which networks are trained: forward, binary cross entropy or another loss, backward."""

    def __init__(self, case: MemoryCase, loss: Callable[[Tensor, Tensor], Tensor] = F.binary_cross_entropy) -> None:
        self.loss = loss
        self.x = torch.randint(2, (case.T, case.B, case.I)).float()
        self.targets = torch.randint(2, (case.T, case.B, case.O)).float()

    def side(self, name: str, kind: Kind, apply: Apply, circuit: nn.Module) -> Side:
        """``apply(x)``, computed with the parameters of the circuit."""
        parameters = list(circuit.parameters())

        def prepare() -> None:
            for p in parameters:
                p.grad = None

        def call() -> Tensor:
            y = apply(self.x)
            self.loss(y, self.targets[: y.size(0)]).backward()
            return y

        def results(y: object) -> list[Tensor]:
            """Gradients of the sum of the losses: those of the mean are so small that they would all seem to agree."""
            assert isinstance(y, Tensor)
            vectors = [torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in parameters]
            return [y, torch.cat(vectors) * self.targets.numel()]

        return Side(name, kind, call, prepare, results, parameters)


def our_circuit(case: MemoryCase) -> Circuit[Any]:
    return CIRCUITS[case.model](**case.sizes)


def unrolled(circuit: Circuit[Any]) -> Apply:
    return lambda x: circuit.unroll(x)[0]


def step_by_step(circuit: nn.Module) -> Apply:
    """The reference's loop, for its circuits and for ours."""
    stepped: Any = circuit

    def apply(x: Tensor) -> Tensor:
        stepped._reset_states()
        return torch.cat([stepped(x_t) for x_t in x])

    return apply


# ---- plain PyTorch ------------------------------------------------------------------------------------------------------


def _few_weights(circuit: Circuit[Any]) -> list[Tensor]:
    """Its weights, with one linear map to the whole interface."""
    *lstm, output_weight, output_bias = circuit._weights()
    lstm, interface = lstm[:4], lstm[4:]
    return [*lstm, torch.cat(interface[::2]), torch.cat(interface[1::2]), output_weight, output_bias]


def plain(model: str, circuit: Circuit[Any]) -> Apply:
    """Vectorised over the batch, the heads and the locations."""
    return lambda x: PLAIN[model](x, circuit._weights(), circuit.initial_state(x.size(1)))[0]


def compiled_step(model: str, circuit: Circuit[Any]) -> Apply:
    """:func:`plain`, a step at a time under torch.compile. Whole sequences take minutes to compile, and are no faster."""

    access: Callable[[Tensor, Any], Any] = {"dnc": reference.dnc_access, "ntm": reference.ntm_access}[model]

    def step(x: Tensor, weights: Sequence[Tensor], state: Any) -> tuple[Tensor, Any]:
        return memory_sequence(x, weights, state, access, num_parts=1)

    compiled = torch.compile(step, dynamic=False, fullgraph=True)

    def apply(x: Tensor) -> Tensor:
        weights, state, ys = _few_weights(circuit), circuit.initial_state(x.size(1)), []
        for x_t in x.split(1):
            y, state = compiled(x_t, weights, state)
            ys.append(y)
        return torch.cat(ys)

    return apply


# ---- the reference ------------------------------------------------------------------------------------------------------


def reference_circuit(folder: str | Path, case: MemoryCase, like: nn.Module) -> nn.Module:
    """That of a checkout of pytorch-dnc, with the parameters of ours.

    Raises:
        FileNotFoundError: there is none.
    """
    module = import_reference(folder, f"core.circuits.{case.model}_circuit")
    circuit: nn.Module = getattr(module, f"{case.model.upper()}Circuit")(reference_arguments(case.sizes))
    circuit.load_state_dict(like.state_dict())
    return circuit


def import_reference(folder: str | Path, module: str) -> Any:
    """A module of a checkout of pytorch-dnc.

    Raises:
        FileNotFoundError: there is none.
    """
    if not (Path(folder) / "core" / "circuits").is_dir():
        raise FileNotFoundError(f"--reference-dnc: must be a checkout of pytorch-dnc, found no core/circuits in {folder}")
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(module)
    finally:
        sys.path.remove(str(folder))


def reference_arguments(sizes: dict[str, Any]) -> SimpleNamespace:
    """What the circuits of pytorch-dnc ask for, with sizes that are named as there."""
    logger = logging.getLogger("pytorch-dnc")
    logger.disabled = True

    def arguments(**others: Any) -> SimpleNamespace:
        shared = {"logger": logger, "use_cuda": False, "dtype": torch.FloatTensor, "visualize": False}
        return SimpleNamespace(**shared, num_allowed_shifts=SHIFTS, **others)

    parts = {f"{part}_params": arguments() for part in ("write_head", "read_head", "memory")}
    return arguments(**sizes, controller_params=arguments(), accessor_params=arguments(**parts))


# ---- the package dnc ----------------------------------------------------------------------------------------------------


def package_network(case: MemoryCase) -> dnc_package.DNC:
    return dnc_package.DNC(**_package_sizes(case))


def _package_sizes(case: MemoryCase) -> dict[str, Any]:
    sizes = {"input_size": case.I, "hidden_size": case.H, "nr_cells": case.N, "cell_size": case.W, "read_heads": case.R}
    return {**sizes, "num_hidden_layers": 1, "batch_first": True}


def package_applied(network: Any) -> Apply:
    """``[T,B,I]`` from ``[T,B,I]``, whichever comes first in what the network returns; its controller begins with zeros."""

    def apply(x: Tensor) -> Tensor:
        h = x.new_zeros(1, x.size(1), network.hidden_size)
        y: Tensor = network(x.transpose(0, 1), ([(h, h)], None, None))[0]
        return y if y.shape[:2] == x.shape[:2] else y.transpose(0, 1)

    return apply


def plain_package(network: dnc_package.DNC) -> Apply:
    """The same in plain PyTorch, vectorised over the batch, the heads and the locations."""
    rnn, memory = network.rnns[0], network.memories[0]

    def apply(x: Tensor) -> Tensor:
        h = x.new_zeros(1, x.size(1), network.hidden_size)
        read = x.new_zeros(x.size(1), network.read_heads, network.cell_size)
        hidden, _ = rnn(F.pad(x, (0, read[0].numel())), (h, h))
        state, features = memory._state(memory.new(x.size(1)), read), []
        for h_t in hidden:
            state = reference.dnc_package_access(memory.interface_weights(h_t), state)
            features.append(torch.cat([h_t, state.read_vectors.flatten(1)], 1))
        return network.output(torch.stack(features))  # type: ignore[no-any-return]

    return apply


def published_package(folder: str | Path, case: MemoryCase, like: nn.Module) -> nn.Module:
    """The network of a checkout of the package dnc, with the parameters of ours.

    Raises:
        FileNotFoundError: there is none.
    """
    if not (Path(folder) / "dnc" / "dnc.py").is_file():
        raise FileNotFoundError(f"--reference-dnc-package: must be a checkout of dnc, found no dnc/dnc.py in {folder}")
    sys.path.insert(0, str(folder))
    try:
        network: nn.Module = importlib.import_module("dnc").DNC(**_package_sizes(case))
    finally:
        sys.path.remove(str(folder))
    network.load_state_dict(like.state_dict())
    return network
