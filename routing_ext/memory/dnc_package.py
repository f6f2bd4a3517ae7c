"""A drop-in for the package `dnc` (github.com/ixaxaar/pytorch-dnc), versions 1 and 2."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .._memory_options import DncOptions, numbers
from .._states import DncState
from ..ops import dnc_access, dnc_access_sequence
from ..ops.memory_sequence import layer_sequence
from ..ops.recurrent import recurrent
from .packed import packed_like
from .places import Places

Controller = Tensor | tuple[Tensor, Tensor]
MemoryState = dict[str, Tensor]
Hidden = tuple[list[Controller], list[MemoryState] | MemoryState, Tensor]

# The state of a memory, by the package's names and in its order.
_FIELDS = {
    "memory": "memory",
    "link_matrix": "link",
    "precedence": "precedence",
    "read_weights": "read_weights",
    "write_weights": "write_weights",
    "usage_vector": "usage",
}
# The parts of the interface in the package's order, their numbers among those of the operators, and the other way round.
_PARTS = (
    "read_keys",
    "read_strengths",
    "write_key",
    "write_strength",
    "erase_vector",
    "write_vector",
    "free_gates",
    "allocation_gate",
    "write_gate",
    "read_modes",
)
_ORDER = [6, 7, 0, 1, 4, 5, 8, 2, 3, 9]
_PLACES = [_ORDER.index(part) for part in range(len(_ORDER))]
_OPTIONS: dict[str, Any] = {"usage": "package", "cosine": "plain"}
_NUMBERS = numbers(DncOptions(**_OPTIONS), output="linear", initial="zeros")


class Recurrent(nn.RNNBase):
    """``nn.LSTM``, ``nn.GRU`` or ``nn.RNN``, with their parameters, for sequences ``[T,B,I]``.

    Compilers refuse those. This takes its weights from its attributes, so that parametrized ones count, too.

    Args:
        mode: ``"LSTM"``, ``"GRU"``, ``"RNN_TANH"`` or ``"RNN_RELU"``.
        input_size: I.
        hidden_size: H.
        options: of ``nn.RNNBase``.
    """

    def forward(self, input: Tensor | PackedSequence, hx: Controller, num_layers: int | None = None) -> Any:
        """``(output, state)``, the state as of ``nn.LSTM`` if it is one, else a tensor; of the first `num_layers` layers."""
        num_layers = self.num_layers if num_layers is None else num_layers
        state = list(hx) if isinstance(hx, tuple) else [hx]
        of_layers = [self.weights(layer) for layer in range(num_layers)]
        if torch.compiler.is_compiling() and isinstance(input, Tensor):
            y, after = self._layer_by_layer(input, state, of_layers)
            return y, self._joined(after)
        function: Any = getattr(torch, self.mode.lower())
        weights = [w for ws in of_layers for w in ws]
        options = self.bias, num_layers, self.dropout, self.training, False
        if isinstance(input, Tensor):
            y, *after = function(input, self._joined(state), weights, *options, False)
            return y, self._joined(after)
        if input.sorted_indices is not None:
            state = [t.index_select(1, input.sorted_indices) for t in state]
        data, *after = function(input.data, input.batch_sizes, self._joined(state), weights, *options)
        if input.unsorted_indices is not None:
            after = [t.index_select(1, input.unsorted_indices) for t in after]
        return input._replace(data=data), self._joined(after)

    def weights(self, layer: int) -> list[Tensor]:
        """Of the input, of the hidden state, and the biases if there are any."""
        names = ["weight_ih", "weight_hh"] + (["bias_ih", "bias_hh"] if self.bias else [])
        return [getattr(self, f"{name}_l{layer}") for name in names]

    def _joined(self, state: list[Tensor]) -> Controller:
        return (state[0], state[1]) if self.mode == "LSTM" else state[0]

    def _layer_by_layer(self, x: Tensor, state: list[Tensor], of_layers: list[list[Tensor]]) -> tuple[Tensor, list[Tensor]]:
        after = []
        for layer, weights in enumerate(of_layers):
            x = F.dropout(x, self.dropout, self.training) if layer else x
            x, last = recurrent(self.mode.lower(), x, [t[layer : layer + 1] for t in state], weights)
            after.append(last)
        return x, [torch.cat(ts) for ts in zip(*after, strict=True)]


class Memory(nn.Module):
    """A memory's parameters; a drop-in for ``dnc.memory.Memory``.

    Args:
        input_size: H, of the controller's hidden state.
        nr_cells: N, locations.
        cell_size: W, elements of a location.
        read_heads: R.
        independent_linears: a linear layer for each part of the interface, or one for all.
        device: of the parameters.
    """

    def __init__(
        self,
        input_size: int,
        nr_cells: int = 512,
        cell_size: int = 32,
        read_heads: int = 4,
        independent_linears: bool = True,
        device: torch.device | str | int | None = None,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.nr_cells = nr_cells
        self.cell_size = cell_size
        self.read_heads = read_heads
        self.independent_linears = independent_linears
        w, r = cell_size, read_heads
        self.widths = [r * w, r, w, 1, w, w, r, 1, 1, 3 * r]
        if independent_linears:
            for part, width in zip(_PARTS, self.widths, strict=True):
                setattr(self, f"{part}_transform", nn.Linear(input_size, width, device=device))
        else:
            self.interface_size = sum(self.widths)
            self.interface_weights = nn.Linear(input_size, self.interface_size, device=device)
        self._draw()

    def _draw(self) -> None:
        for linear in self._linears():
            nn.init.kaiming_uniform_(linear.weight)

    def reset_parameters(self) -> None:
        """Draws all parameters anew."""
        for linear in self._linears():
            linear.reset_parameters()
        self._draw()

    def _linears(self) -> list[nn.Linear]:
        if self.independent_linears:
            return [getattr(self, f"{part}_transform") for part in _PARTS]
        return [self.interface_weights]

    def interface(self, hidden: Tensor) -> Tensor:
        """``[...,IF]``, as the operators want it, from hidden states ``[...,H]``."""
        of_parts = F.linear(hidden, *self.whole()).split(self.widths, -1)
        return torch.cat([of_parts[place] for place in _PLACES], -1)

    def whole(self) -> list[Tensor]:
        """Weight and bias of the interface, its parts in the package's order."""
        linears = self._linears()
        if not self.independent_linears:
            return [linears[0].weight, linears[0].bias]
        return [torch.cat([linear.weight for linear in linears]), torch.cat([linear.bias for linear in linears])]

    def new(self, batch_size: int = 1) -> MemoryState:
        """The state before the first step: all zero."""
        like = self._linears()[0].weight
        return {name: like.new_zeros(batch_size, *shape) for name, shape in self._shapes().items()}

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Of one sample's state."""
        n, w, r = self.nr_cells, self.cell_size, self.read_heads
        return dict(zip(_FIELDS, [(n, w), (1, n, n), (1, n), (r, n), (1, n), (n,)], strict=True))

    def reset(self, batch_size: int = 1, hidden: Mapping[str, Tensor] | None = None, erase: bool = True) -> MemoryState:
        """A state to begin with: `hidden` itself, or a new one where there is none, or if it is to be erased."""
        return self.new(batch_size) if hidden is None or erase else dict(hidden)

    def forward(self, ξ: Tensor, hidden: Mapping[str, Tensor]) -> tuple[Tensor, MemoryState]:
        """One step: read vectors ``[B,R,W]`` and the next state, from the controller's ``[B,H]``."""
        self.check(hidden)
        read = hidden["memory"].new_empty(hidden["memory"].size(0), self.read_heads, self.cell_size)
        state = dnc_access(self.interface(ξ), self._state(hidden, read), **_OPTIONS)
        return state.read_vectors, _dictionary(state)

    def check(self, hidden: Mapping[str, Tensor]) -> None:
        """Whether it is a state of such a memory.

        Raises:
            ValueError: it is not.
        """
        for name, expected in self._shapes().items():
            if name not in hidden or hidden[name].shape[1:] != expected:
                found = list(hidden[name].shape) if name in hidden else "none"
                shape = ", ".join(map(str, ["B", *expected]))
                raise ValueError(f"Memory: hidden[{name!r}] must be [{shape}], got {found}")

    def _state(self, hidden: Mapping[str, Tensor], read: Tensor) -> DncState:
        none = read.new_empty(read.size(0), 0)
        return DncState(**{ours: hidden[name] for name, ours in _FIELDS.items()}, hidden=none, cell=none, read_vectors=read)


def _dictionary(state: DncState) -> MemoryState:
    return {name: getattr(state, ours) for name, ours in _FIELDS.items()}


class DNC(nn.Module):
    """A drop-in for ``dnc.DNC``: its constructor, its state, its parameters, so that its checkpoints load.

    A layer is a recurrent network of `num_hidden_layers` layers, and a memory. Within a call the first layer sees the input
    and the read vectors that came with the state, not those of the last step; each other layer the hidden state and read
    vectors of the one before it. Where a memory serves one layer, and without `debug`, a sequence is not taken step by step:
    the last hidden layer of an LSTM and the memory are one call, other recurrent networks and the memory are two.

    Args:
        input_size: I, also of the output.
        hidden_size: H.
        rnn_type: ``"lstm"``, ``"gru"`` or ``"rnn"``.
        num_layers: L.
        num_hidden_layers: of the recurrent network of each layer.
        bias: of the recurrent networks.
        batch_first: input and output are ``[B,T,I]``, else ``[T,B,I]``.
        dropout: between the hidden layers.
        nr_cells: N.
        read_heads: R.
        cell_size: W.
        nonlinearity: ``"tanh"`` or ``"relu"``, of ``"rnn"``.
        independent_linears: see :class:`Memory`.
        share_memory_between_layers: one memory for all layers.
        debug: :meth:`forward` also returns the states of the first sample.
        clip: the controllers' outputs are clipped to +-clip; 0: they are not.
        device: of the parameters.
        share_memory: what version 1 calls `share_memory_between_layers`.
        gpu_id: of version 1, in place of `device`; -1 for the CPU. With it, as in version 1, the state of a shared memory is a
            dictionary, not a list of one.
        bidirectional: must be False.

    Raises:
        TypeError: the arguments have version 1's places.
        ValueError: no such `rnn_type` or `nonlinearity`, a bidirectional one, or a size below 1.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        rnn_type: str = "lstm",
        num_layers: int = 1,
        num_hidden_layers: int = 2,
        bias: bool = True,
        batch_first: bool = True,
        dropout: float = 0,
        nr_cells: int = 5,
        read_heads: int = 2,
        cell_size: int = 10,
        nonlinearity: str = "tanh",
        independent_linears: bool = False,
        share_memory_between_layers: bool = True,
        debug: bool = False,
        clip: float = 20,
        device: torch.device | str | int | None = None,
        *,
        share_memory: bool | None = None,
        gpu_id: int | None = None,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(nr_cells, bool):
            raise TypeError(
                f"DNC: nr_cells must be a number, got {nr_cells}. In version 1 this is the place of bidirectional: give what "
                "follows dropout by name"
            )
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
        sizes |= {
            "num_hidden_layers": num_hidden_layers,
            "nr_cells": nr_cells,
            "read_heads": read_heads,
            "cell_size": cell_size,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"DNC: {name} must be at least 1, got {size}")
        kind = rnn_type.lower()
        if kind not in ("lstm", "gru", "rnn"):
            raise ValueError(f'DNC: rnn_type must be "lstm", "gru" or "rnn", got {rnn_type!r}')
        if kind == "rnn" and nonlinearity not in ("tanh", "relu"):
            raise ValueError(f'DNC: nonlinearity must be "tanh" or "relu", got {nonlinearity!r}')
        if bidirectional:
            raise ValueError("DNC: bidirectional must be False, got True")
        if gpu_id is not None:
            device = f"cuda:{gpu_id}" if gpu_id >= 0 else "cpu"
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.rnn_type = kind
        self.num_layers = num_layers
        self.num_hidden_layers = num_hidden_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = dropout
        self.nr_cells = nr_cells
        self.read_heads = read_heads
        self.cell_size = cell_size
        self.nonlinearity = nonlinearity
        self.independent_linears = independent_linears
        self.share_memory_between_layers = share_memory_between_layers if share_memory is None else share_memory
        self._bare = gpu_id is not None and self.share_memory_between_layers
        self.debug = debug
        self.clip = clip
        self.read_vectors_size = read_heads * cell_size
        self.output_size = hidden_size
        self.nn_input_size = input_size + self.read_vectors_size
        self.nn_output_size = hidden_size + self.read_vectors_size

        mode = f"RNN_{nonlinearity.upper()}" if kind == "rnn" else kind.upper()
        options: dict[str, Any] = {"bias": bias, "dropout": dropout, "num_layers": num_hidden_layers, "device": device}
        for layer in range(num_layers):
            width = self.nn_output_size if layer else self.nn_input_size
            self.add_module(f"{kind}_layer_{layer}", Recurrent(mode, width, hidden_size, **options))
            if not self.share_memory_between_layers:
                self.add_module(f"rnn_layer_memory_{layer}", self._make_memory(device))
        if self.share_memory_between_layers:
            self.rnn_layer_memory_shared = self._make_memory(device)
        self.output = nn.Linear(self.nn_output_size, input_size, device=device)
        nn.init.kaiming_uniform_(self.output.weight)
        self._places = [Places() for _ in range(num_layers)]

    def _make_memory(self, device: Any) -> Memory:
        return Memory(
            self.hidden_size, self.nr_cells, self.cell_size, self.read_heads, self.independent_linears, device=device
        )

    @property
    def rnns(self) -> list[Recurrent]:
        """The recurrent network of each layer."""
        return [getattr(self, f"{self.rnn_type}_layer_{layer}") for layer in range(self.num_layers)]

    @property
    def memories(self) -> list[Memory]:
        """That of each layer, or the one that they share."""
        if self.share_memory_between_layers:
            return [self.rnn_layer_memory_shared]
        return [getattr(self, f"rnn_layer_memory_{layer}") for layer in range(self.num_layers)]

    def extra_repr(self) -> str:
        shown = (
            "input_size hidden_size rnn_type num_layers num_hidden_layers nr_cells read_heads cell_size batch_first".split()
        )
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)

    def forward(
        self,
        input_data: Tensor | PackedSequence,
        hx: tuple[Any, Any, Any] | None = None,
        reset_experience: bool = False,
        pass_through_memory: bool = True,
    ) -> Any:
        """A sequence.

        Args:
            input_data: ``[B,T,I]``, or ``[T,B,I]`` unless `batch_first`, or a :class:`PackedSequence`.
            hx: ``(controllers, memories, read vectors)`` as :meth:`forward` returns them; None, or each of them None, for the
                initial ones. The initial state of the controllers is drawn anew at each call. It stays as it is.
            reset_experience: forget what is in the memories that came with `hx`.
            pass_through_memory: if not, the memories stay as they are, and the read vectors are zero.

        Returns:
            ``(output, (controllers, memories, read vectors [B,R*W]))``, and if `debug` a dictionary of what is in the state
            of each memory, for the first sample, a list of arrays over steps and layers. Controllers: of each layer
            ``(h, c)`` or ``h``, ``[hidden layers,B,H]``. Memories: of each, or of the shared one, a dictionary of memory
            ``[B,N,W]``, link_matrix ``[B,1,N,N]``, precedence ``[B,1,N]``, read_weights ``[B,R,N]``, write_weights ``[B,1,N]``
            and usage_vector ``[B,N]``.

        Raises:
            TypeError: no tensor and no :class:`PackedSequence`.
            ValueError: input or state of another shape.
        """
        lengths = None
        if isinstance(input_data, PackedSequence):
            x, lengths = pad_packed_sequence(input_data)
        elif isinstance(input_data, Tensor):
            if input_data.dim() != 3 or input_data.size(-1) != self.input_size:
                shape = "B, T" if self.batch_first else "T, B"
                got = list(input_data.shape)
                raise ValueError(f"DNC: input_data must be [{shape}, {self.input_size}], got {got}")
            x = input_data.transpose(0, 1) if self.batch_first else input_data
        else:
            raise TypeError(f"DNC: input_data must be a tensor or a PackedSequence, got {type(input_data).__name__}")

        hx = (None, None, None) if hx is None else hx
        self._check(hx, x.size(1))
        controllers, memories, last_read = hx
        bare = isinstance(memories, Mapping) or (memories is None and self._bare)
        controllers = self._new_controllers(x.size(1)) if controllers is None else list(controllers)
        states = self._states(x.size(1), memories, last_read, reset_experience)
        seen: dict[str, list[Any]] = {name: [] for name in _FIELDS}
        if self.debug or len(self.memories) < self.num_layers:
            y = self.output(self._step_by_step(x, lengths, controllers, states, pass_through_memory, seen))
        else:
            y = self._layer_by_layer(x, lengths, controllers, states, pass_through_memory)
        output: Tensor | PackedSequence = y.transpose(0, 1) if self.batch_first else y
        if isinstance(input_data, PackedSequence) and lengths is not None:
            output = packed_like(input_data, y, lengths)
        last_read = states[-1].read_vectors.flatten(1)
        found = [_dictionary(state) for state in states]
        after = controllers, found[0] if bare else found, last_read if pass_through_memory else torch.zeros_like(last_read)
        return (output, after, seen) if self.debug else (output, after)

    def _check(self, hx: Any, batch: int) -> None:
        """All but the memories, which check themselves."""
        if not isinstance(hx, (tuple, list)) or len(hx) != 3 or isinstance(hx[1], Tensor):
            raise ValueError(f"DNC: hx must be (controllers, memories, read vectors), got {_shapes(hx)}")
        controllers, _, last_read = hx
        expected: Any = [self.num_hidden_layers, batch, self.hidden_size]
        expected = [[expected, expected] if self.rnn_type == "lstm" else expected] * self.num_layers
        if controllers is not None and _shapes(controllers) != expected:
            raise ValueError(f"DNC: the controllers in hx must have the shapes {expected}, got {_shapes(controllers)}")
        size = self.read_vectors_size
        if last_read is not None and (not isinstance(last_read, Tensor) or last_read.numel() != batch * size):
            raise ValueError(f"DNC: the read vectors in hx must be [{batch}, {size}], got {_shapes(last_read)}")

    def _new_controllers(self, batch: int) -> list[Controller]:
        h = self.output.weight.new_zeros(self.num_hidden_layers, batch, self.hidden_size)
        nn.init.xavier_uniform_(h)
        return [(h, h) if self.rnn_type == "lstm" else h for _ in range(self.num_layers)]

    def _states(self, batch: int, memories: Any, last_read: Tensor | None, erase: bool) -> list[DncState]:
        """Of each memory, from what the caller gave. What there is none of, is None, and stands for zeros."""
        n = len(self.memories)
        given = [memories] if memories is None or isinstance(memories, Mapping) else list(memories)
        given = given * n if given == [None] else given
        if len(given) != n:
            raise ValueError(f"DNC: hx must have {n} memories, got {len(given)}")
        read = None if last_read is None else last_read.view(batch, self.read_heads, self.cell_size)
        none: dict[str, Any] = dict.fromkeys(DncState._fields)
        states = []
        for memory, state in zip(self.memories, given, strict=True):
            if state is not None:
                memory.check(state)
            fields = none if state is None or erase else {ours: state[name] for name, ours in _FIELDS.items()}
            states.append(DncState(**{**none, **fields, "read_vectors": read}))
        return states

    def _whole(self, states: list[DncState], batch: int) -> None:
        """Puts zeros where there is None."""
        read = self.output.weight.new_zeros(batch, self.read_heads, self.cell_size)
        for i, (memory, state) in enumerate(zip(self.memories, states, strict=True)):
            hidden = memory.new(batch) if state.memory is None else _dictionary(state)
            states[i] = memory._state(hidden, read if state.read_vectors is None else state.read_vectors)

    def _control(self, layer: int, x: Tensor, lengths: Tensor | None, state: Controller) -> tuple[Tensor, Controller]:
        """The clipped outputs ``[T,B,H]`` of a layer's recurrent network, and its state."""
        y, state = self._recurrent(self.rnns[layer], x, lengths, state, self.num_hidden_layers)
        return (y.clamp(-self.clip, self.clip) if self.clip else y), state

    def _recurrent(
        self, rnn: Recurrent, x: Tensor, lengths: Tensor | None, state: Controller, num_layers: int
    ) -> tuple[Tensor, Any]:
        """Output ``[T,B,H]`` and state of its first layers."""
        if x.size(0) == 0:
            return x.new_empty(0, x.size(1), self.hidden_size), state
        with _in_full_precision(x.device.type):
            x = x.to(self.output.weight.dtype)
            if lengths is None:
                return rnn(x, state, num_layers)  # type: ignore[no-any-return]
            packed, state = rnn(pack_padded_sequence(x, lengths, enforce_sorted=False), state, num_layers)
            return pad_packed_sequence(packed, total_length=x.size(0))[0], state

    def _layer_by_layer(
        self,
        x: Tensor,
        lengths: Tensor | None,
        controllers: list[Controller],
        states: list[DncState],
        through: bool,
    ) -> Tensor:
        """The output ``[T,B,I]``; the states after it replace those in the lists."""
        last, fused = self.num_layers - 1, through and self._is_one_operator()
        if not fused:
            self._whole(states, x.size(1))
        first = states[-1].read_vectors
        if first is not None:
            x = _with(x, first.expand(x.size(0), -1, -1, -1))
        elif self.num_hidden_layers > 1:
            x = F.pad(x, (0, self.read_vectors_size))
        for layer in range(self.num_layers):
            if fused:
                ends = layer == last and self._has_plain_output(x)
                x, controllers[layer], states[layer] = self._sequence(
                    layer, x, lengths, controllers[layer], states[layer], ends
                )
                if ends:
                    return x
                continue
            hidden, controllers[layer] = self._control(layer, x, lengths, controllers[layer])
            if through:
                interface = self.memories[layer].interface(hidden)
                reads, states[layer] = dnc_access_sequence(interface, states[layer], lengths=_at(lengths, x), **_OPTIONS)
            else:
                reads = hidden.new_zeros(*hidden.shape[:2], self.read_heads, self.cell_size)
            x = _with(hidden, reads)
        return self.output(x)  # type: ignore[no-any-return]

    def _is_one_operator(self) -> bool:
        """Whether of each layer the last hidden layer and the memory are: an LSTM whose outputs, below 1, are not clipped."""
        return self.rnn_type == "lstm" and (self.clip == 0 or self.clip >= 1)

    def _has_plain_output(self, x: Tensor) -> bool:
        """Whether the output layer can be a part of the operator. Under autocast it has an output in low precision."""
        is_autocast = not x.is_meta and torch.is_autocast_enabled(x.device.type)
        return isinstance(self.output, nn.Linear) and self.output.bias is not None and not is_autocast

    def _sequence(
        self, layer: int, x: Tensor, lengths: Tensor | None, controller: Controller, state: DncState, ends: bool
    ) -> tuple[Tensor, Controller, DncState]:
        """A layer, the last hidden layer and the memory in one call, and if it `ends` the output layer, too.

        Its controller does not hear what was read at the last step. x may be without the read vectors that the first layer
        hears, if they are zero.
        """
        (h, c), below, memory = controller, self.num_hidden_layers - 1, self.memories[layer]
        if below:
            rnn = self.rnns[layer]
            x, (h_below, c_below) = self._recurrent(rnn, x, lengths, (h[:below], c[:below]), below)
            x = F.dropout(x, rnn.dropout, rnn.training)
        w_ih, *weights = self._places[layer].tensors(self, lambda: self._weights(layer))
        y, after = layer_sequence(
            DncState,
            "dnc",
            _NUMBERS,
            x,
            state._replace(hidden=h[below], cell=c[below]),
            [w_ih if w_ih.size(1) == x.size(2) else w_ih[:, : x.size(2)], *(weights if ends else weights[:5])],
            [self.nr_cells, self.cell_size, 1, self.read_heads, 0],
            memory.widths,
            _ORDER,
            lengths=_at(lengths, x),
        )
        h, c = after.hidden.unsqueeze(0), after.cell.unsqueeze(0)
        return y, (torch.cat([h_below, h]), torch.cat([c_below, c])) if below else (h, c), after

    def _weights(self, layer: int) -> list[Tensor]:
        """Of the last hidden layer and the interface, and behind the last layer of a plain output."""
        w_ih, w_hh, *biases = self.rnns[layer].weights(self.num_hidden_layers - 1)
        if not biases:
            biases = [w_ih.new_zeros(w_ih.size(0))] * 2
        weights = [w_ih, w_hh, *biases, *self.memories[layer].whole()]
        if layer == self.num_layers - 1 and isinstance(self.output, nn.Linear) and self.output.bias is not None:
            weights += [self.output.weight, self.output.bias]
        return weights

    def _step_by_step(
        self,
        x: Tensor,
        lengths: Tensor | None,
        controllers: list[Controller],
        states: list[DncState],
        through: bool,
        seen: dict[str, list[Any]],
    ) -> Tensor:
        """As :meth:`_layer_by_layer`, where layers take turns at a memory, or where each step is to be seen."""
        self._whole(states, x.size(1))
        features = _with(x, states[-1].read_vectors.expand(x.size(0), -1, -1, -1))
        first, controllers[0] = self._control(0, features, lengths, controllers[0])
        outputs = [first.new_empty(0, first.size(1), self.nn_output_size)]
        for t, hidden in enumerate(first):
            ended = None if lengths is None else (t >= lengths).to(x.device)
            for layer in range(self.num_layers):
                if layer:
                    h, after = self._control(layer, features.unsqueeze(0), None, controllers[layer])
                    hidden, controllers[layer] = h[0], _kept(ended, controllers[layer], after, 1)
                memory = 0 if self.share_memory_between_layers else layer
                reads = torch.zeros_like(states[memory].read_vectors)
                if through:
                    interface = self.memories[memory].interface(hidden)
                    before, state = states[memory], dnc_access(interface, states[memory], **_OPTIONS)
                    reads, states[memory] = state.read_vectors, _kept(ended, before, state, 0)
                if self.debug:
                    _record(states[memory], seen)
                features = _with(hidden, reads)
            outputs.append(features.unsqueeze(0))
        return torch.cat(outputs)


def _in_full_precision(device_type: str) -> AbstractContextManager[Any]:
    """Not under autocast: on CPUs torch does not have all recurrent networks in low precision."""
    is_autocast = device_type != "meta" and torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if is_autocast else nullcontext()


def _shapes(x: Any) -> Any:
    """Of all tensors in nested lists and tuples, as lists; of anything else the type."""
    if isinstance(x, Tensor):
        return list(x.shape)
    return [_shapes(part) for part in x] if isinstance(x, (tuple, list)) else type(x).__name__


def _at(lengths: Tensor | None, x: Tensor) -> Tensor | None:
    return None if lengths is None else lengths.to(x.device)


def _with(x: Tensor, read_vectors: Tensor) -> Tensor:
    return torch.cat([x, read_vectors.flatten(-2)], -1)


def _kept(ended: Tensor | None, before: Any, after: Any, batch: int) -> Any:
    """The state `before` of the samples that have ended, `after` of the others; dimension `batch` is that of the samples."""
    if ended is None:
        return after
    if isinstance(after, Tensor):
        shape = [1] * after.dim()
        shape[batch] = -1
        return torch.where(ended.view(shape), before, after)
    kept = [_kept(ended, b, a, batch) for b, a in zip(before, after, strict=True)]
    return DncState(*kept) if isinstance(after, DncState) else tuple(kept)


def _record(state: DncState, seen: dict[str, list[Any]]) -> None:
    for name, tensor in _dictionary(state).items():
        rows = tensor[0].detach()
        rows = rows[0] if name == "link_matrix" else rows.unsqueeze(0) if name == "usage_vector" else rows
        seen[name].append(rows.cpu().numpy())
