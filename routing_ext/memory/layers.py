"""Memory networks in the manner of ``nn.LSTM``: the differentiable neural computer and the neural Turing machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from .._memory_options import DncOptions, check_choice, numbers
from .._states import SHAPES, DncState, NtmState, State, choose, initial_like
from ..ops import dnc_access, ntm_access
from ..ops.memory_sequence import layer_sequence
from .packed import packed_like
from .places import Places

Input = TypeVar("Input", Tensor, PackedSequence)


class Cell(nn.Module):
    """A layer's weights: a controller, and the linear interface from its hidden state to the memory.

    Args:
        controller: None for an LSTM, whose steps then are part of the fused operator; else the user's.
        input_size: of the controller, with the read vectors.
        hidden_size: H.
        parts: widths of the parts of the interface, in the order of the operators.
        bias: of an LSTM and the interface.
        layer_norm: of the whole interface, before its activations.
        factory: device and dtype.
    """

    def __init__(
        self,
        controller: Callable[..., Any] | None,
        input_size: int,
        hidden_size: int,
        parts: Sequence[int],
        bias: bool,
        layer_norm: bool,
        factory: dict[str, Any],
    ) -> None:
        super().__init__()
        self.is_fused = controller is None
        self.controller: Any = nn.LSTMCell(input_size, hidden_size, bias, **factory) if controller is None else controller
        self.interface = nn.Linear(hidden_size, sum(parts), bias, **factory)
        self.norm = nn.LayerNorm(sum(parts), eps=1e-6, **factory) if layer_norm else None
        self.parts = list(parts)

    def weights(self) -> list[Tensor]:
        """Of the LSTM, of the interface, and of its normalisation if there is one."""
        controller, interface = self.controller, self.interface
        weights: list[Tensor] = [controller.weight_ih, controller.weight_hh]
        if controller.bias:
            weights += [controller.bias_ih, controller.bias_hh, interface.weight, interface.bias]
        else:
            of_lstm, bias = weights[0].new_zeros(weights[0].size(0)), weights[0].new_zeros(interface.weight.size(0))
            weights += [of_lstm, of_lstm, interface.weight, bias]
        return weights if self.norm is None else [*weights, self.norm.weight, self.norm.bias]

    def signals(self, hidden: Tensor) -> Tensor:
        """The interface ``[B,IF]``."""
        interface: Tensor = self.interface(hidden)
        return interface if self.norm is None else self.norm(interface)

    def control(self, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """A step of the user's controller: ``(hidden, cell)``; the cell is [B,0] where its state is one tensor."""
        if state is not None and state[1].size(-1) == 0:
            after = self.controller(x, state[0])
        else:
            after = self.controller(x, state)
        return (after, after.new_empty(after.size(0), 0)) if isinstance(after, Tensor) else after


class Masks(NamedTuple):
    """Which steps of a sequence there are, and where samples begin anew."""

    lengths: Tensor | None = None  # int64 [B]
    resets: Tensor | None = None  # bool [T,B]

    def there(self, steps: int) -> Tensor | None:
        """Bool ``[T,B]``; None: all."""
        if self.lengths is None:
            return None
        return torch.arange(steps, device=self.lengths.device).unsqueeze(1) < self.lengths

    def known_lengths(self, steps: int) -> list[int] | None:
        """Where the host has them: not those of a compiler, nor those on a GPU, for which it would wait.

        Raises:
            RuntimeError: one of them is below 0 or above `steps`, as from the operators.
        """
        if self.lengths is None or self.lengths.device.type != "cpu" or torch.compiler.is_compiling():
            return None
        lengths: list[int] = self.lengths.tolist()
        for length in sorted(lengths, reverse=True):
            if not 0 <= length <= steps:
                raise RuntimeError(f"memory_sequence: lengths must be from 0 to {steps}, got {length}")
        return lengths


class MemoryLayer(nn.Module, Generic[State]):
    """What :class:`DNC` and :class:`NTM` share."""

    _State: type[State]
    _model: ClassVar[str]
    _beginning: ClassVar[str]  # the operators' name for the initial state, but for the memory

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        sizes: dict[str, int],
        parts: Sequence[int],
        *,
        output_size: int | None,
        bias: bool,
        batch_first: bool,
        dropout: float,
        initial_memory: float | str,
        controller: Callable[..., Any] | Sequence[Callable[..., Any]] | None,
        factory: dict[str, Any],
        layer_norm: bool = False,
        bypass_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        named = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers, **sizes}
        for size, value in {**named, "output_size": 1 if output_size is None else output_size}.items():
            if value < 1:
                raise ValueError(f"{name}: {size} must be at least 1, got {value}")
        for share, probability in {"dropout": dropout, "bypass_dropout": bypass_dropout}.items():
            if not 0 <= probability <= 1:
                raise ValueError(f"{name}: {share} must be in [0, 1], got {probability}")
        if isinstance(initial_memory, str) and initial_memory not in ("learned", "random"):
            raise ValueError(f'{name}: initial_memory must be a number, "learned" or "random", got {initial_memory!r}')
        controllers: list[Any] = list(controller) if isinstance(controller, (Sequence, nn.ModuleList)) else [controller]
        if controller is None:
            controllers *= num_layers
        elif isinstance(controller, str) or not all(callable(c) for c in controllers):
            raise TypeError(f"{name}: controller must be callable, or a list of what is, got {controller!r}")
        if len(controllers) != num_layers:
            raise ValueError(f"{name}: controller must be one for each of {num_layers} layers, got {len(controllers)}")
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.memory_size = sizes["memory_size"]
        self.word_size = sizes["word_size"]
        self.read_heads = sizes["read_heads"]
        self.write_heads = sizes["write_heads"]
        self.output_size = hidden_size if output_size is None else output_size
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = dropout
        self.layer_norm = layer_norm
        self.bypass_dropout = bypass_dropout
        self.initial_memory = initial_memory
        self.layers = nn.ModuleList(
            Cell(controllers[i], self._width(i), hidden_size, parts, bias, layer_norm, factory) for i in range(num_layers)
        )
        self.output = nn.Linear(hidden_size + self.read_heads * self.word_size, self.output_size, bias, **factory)
        self.memories = nn.ParameterList()
        if initial_memory == "learned":
            shape = self.memory_size, self.word_size
            self.memories.extend(nn.Parameter(torch.empty(shape, **factory)) for _ in range(num_layers))
            self._draw_memories()
        self._sizes = {
            "H": hidden_size,
            "V": self.write_heads,
            "R": self.read_heads,
            "N": self.memory_size,
            "W": self.word_size,
        }
        self._places = [Places() for _ in range(num_layers)]

    def reset_parameters(self) -> None:
        """Draws all parameters anew, for example after ``to_empty``; those of users' controllers if they can."""
        for module in self.modules():
            draw = getattr(module, "reset_parameters", None)
            if module is not self and draw is not None:
                draw()
        self._draw_memories()

    def _draw_memories(self) -> None:
        for memory in self.memories:
            nn.init.normal_(memory, std=self.word_size**-0.5)

    def extra_repr(self) -> str:
        shown = ["input_size", "hidden_size", "num_layers", "memory_size", "word_size", "read_heads", "write_heads"]
        shown += ["output_size", "bias", "batch_first", "dropout", "initial_memory"]
        shown += [name for name in ("layer_norm", "bypass_dropout") if getattr(self, name)]
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)

    # ---- state --------------------------------------------------------------------------------------------------------------

    def initial_state(self, batch: int) -> State:
        """The state before the first step of `batch` samples, as :meth:`forward` begins with where none is given."""
        return self._join([self._initial(i, batch) for i in range(self.num_layers)])

    def _initial(self, layer: int, batch: int) -> State:
        cell, state = self._cell(layer), self._fresh(layer, batch)
        if cell.is_fused:
            return state
        with torch.no_grad():  # how large the state of the user's controller is, only it can say
            _, memory = cell.control(state.hidden.new_zeros(batch, self._width(layer)), None)
        return state._replace(cell=torch.zeros_like(memory))

    def _fresh(self, layer: int, batch: int) -> State:
        """:meth:`_initial` with an LSTM as controller."""
        weight = self._cell(layer).interface.weight
        zeros = self._State(**{field: weight.new_zeros(self._shape(field, batch)) for field in self._State._fields})
        return initial_like(zeros, self._beginning)._replace(memory=self._initial_memory(layer, batch))

    def _cell(self, layer: int) -> Cell:
        cell: Cell = self.layers[layer]  # type: ignore[assignment]
        return cell

    def _width(self, layer: int) -> int:
        """Of what the controller of a layer sees."""
        read_size = self.read_heads * self.word_size
        return (self.hidden_size + read_size if layer else self.input_size) + read_size

    def _initial_memory(self, layer: int, batch: int) -> Tensor:
        weight: Tensor = self._cell(layer).interface.weight
        shape = batch, self.memory_size, self.word_size
        if self.initial_memory == "learned":
            memory: Tensor = self.memories[layer]
            return memory.expand(shape)
        if self.initial_memory == "random":
            return torch.randn(shape, dtype=weight.dtype, device=weight.device) / math.sqrt(self.word_size)
        return weight.new_full(shape, float(self.initial_memory))

    def _shape(self, field: str, batch: int) -> list[int]:
        return [batch if dimension == "B" else self._sizes[dimension] for dimension in SHAPES[field]]

    def _join(self, states: Sequence[State]) -> State:
        return self._State(*(torch.stack(ts) if len(ts) > 1 else ts[0].unsqueeze(0) for ts in zip(*states, strict=True)))

    def _check_inputs(self, input: Input, state: State | None) -> None:
        name = type(self).__name__
        if not isinstance(state, (self._State, type(None))):
            expected, got = self._State.__name__, type(state).__name__
            raise TypeError(f"{name}: state must be a {expected}, as the layer returns it, got {got}")
        x, cell = input if isinstance(input, Tensor) else input.data, self._cell(0)
        dtype = cell.interface.weight.dtype
        is_given = x.dtype == dtype or not cell.is_fused or (not x.is_meta and torch.is_autocast_enabled(x.device.type))
        if not is_given:
            raise TypeError(f"{name}: input must be {dtype}, as the parameters are, got {x.dtype}")

    def _split(self, state: State, batch: int) -> list[State]:
        for field, value in state._asdict().items():
            expected = [self.num_layers] + self._shape(field, batch)
            if list(value.shape) != expected and not (field == "cell" and value.size(-1) == 0):
                raise ValueError(f"{type(self).__name__}: state.{field} must be {expected}, got {list(value.shape)}")
        return [self._State(*(t[i] for t in state)) for i in range(self.num_layers)]

    # ---- steps and sequences ------------------------------------------------------------------------------------------------

    def forward(
        self,
        input: Input,
        state: State | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        resets: Tensor | PackedSequence | None = None,
    ) -> tuple[Input, State]:
        """A sequence, or a part of one.

        Args:
            input: ``[T,B,I]``, with `batch_first` ``[B,T,I]``, of one sample ``[T,I]``, or a :class:`PackedSequence`.
            state: before the first step, as it was after the last one, perhaps detached; None: the initial one.
            lengths: ``[B]``, from 0 to T: how many steps of each sample there are. The others take no time; there the output
                is zero, and the state stays as it is. A :class:`PackedSequence` has its own.
            resets: bool, of the shape of the input without its last dimension, or packed like the input: whether a sample
                begins anew at this step, with the initial state. Of a random memory, each sample has one to begin with, and
                one for all its resets in this call.

        Returns:
            Output ``[T,B,O]``, ``[B,T,O]``, ``[T,O]`` or a :class:`PackedSequence`, and the state after each sample's last
            step.

        Raises:
            TypeError: input of another dtype, or no state of such a layer.
            ValueError: input, state, lengths or resets of another shape.
            RuntimeError: a length below 0 or above T.
        """
        self._check_inputs(input, state)
        if isinstance(input, PackedSequence):
            return self._packed(input, state, lengths, resets)
        name, alone = type(self).__name__, input.dim() == 2
        if input.dim() not in (2, 3) or input.size(-1) != self.input_size:
            shape = "B, T" if self.batch_first else "T, B"
            raise ValueError(f"{name}: input must be [{shape}, {self.input_size}], got {list(input.shape)}")
        if resets is not None and (not isinstance(resets, Tensor) or resets.shape != input.shape[:-1]):
            got = list(resets.shape) if isinstance(resets, Tensor) else type(resets).__name__
            raise ValueError(f"{name}: resets must be bool {list(input.shape[:-1])}, got {got}")
        if alone:
            x, resets = input.unsqueeze(1), None if resets is None else resets.unsqueeze(1)
            lengths = None if lengths is None else torch.as_tensor(lengths).reshape(1)
            state = None if state is None else state.map(lambda t: t.unsqueeze(1))
        elif self.batch_first:
            x, resets = input.transpose(0, 1), None if resets is None else resets.transpose(0, 1)
        else:
            x = input
        y, after = self._run(x, state, self._masks(x, lengths, resets))
        if alone:
            return y.squeeze(1), after.map(lambda t: t.squeeze(1))
        return y.transpose(0, 1) if self.batch_first else y, after

    def step(self, x: Tensor, state: State | None = None, *, resets: Tensor | None = None) -> tuple[Tensor, State]:
        """One step: ``(y [B,O], state)`` from ``x [B,I]``, for who acts and looks, such as an agent.

        Args:
            x: ``[B,I]``.
            state: before it; None: the initial one.
            resets: bool ``[B]``: which samples begin anew, for example because their episode was over.

        Raises:
            TypeError: x of another dtype, or no state of such a layer.
            ValueError: x, state or resets of another shape.
        """
        self._check_inputs(x, state)
        if x.dim() != 2 or x.size(1) != self.input_size:
            raise ValueError(f"{type(self).__name__}.step: x must be [B, {self.input_size}], got {list(x.shape)}")
        if resets is not None and resets.shape != x.shape[:1]:
            raise ValueError(f"{type(self).__name__}.step: resets must be bool [{x.size(0)}], got {list(resets.shape)}")
        x = x.unsqueeze(0)
        y, after = self._run(x, state, self._masks(x, None, None if resets is None else resets.unsqueeze(0)))
        return y.squeeze(0), after

    def _packed(
        self, input: PackedSequence, state: State | None, lengths: Any, resets: Tensor | PackedSequence | None
    ) -> tuple[PackedSequence, State]:
        if lengths is not None:
            raise ValueError(f"{type(self).__name__}: lengths must be None for a PackedSequence, got {lengths}")
        x, of_samples = pad_packed_sequence(input)
        if isinstance(resets, PackedSequence):
            resets, _ = pad_packed_sequence(resets)
        elif resets is not None:
            shape = list(x.shape[1::-1] if self.batch_first else x.shape[:2])
            if list(resets.shape) != shape:
                raise ValueError(f"{type(self).__name__}: resets must be bool {shape}, got {list(resets.shape)}")
            resets = resets.transpose(0, 1) if self.batch_first else resets
        y, after = self._run(x, state, self._masks(x, of_samples, resets))
        return packed_like(input, y, of_samples), after

    def _masks(self, x: Tensor, lengths: Tensor | Sequence[int] | None, resets: Tensor | None) -> Masks:
        """As the operators want them, on the device of x, ``[T,B,I]``."""
        name = type(self).__name__
        if lengths is not None:
            lengths = torch.as_tensor(lengths, device=x.device)
            if lengths.shape != x.shape[1:2] or lengths.dtype not in (torch.int32, torch.int64):
                raise ValueError(
                    f"{name}: lengths must be integers [{x.size(1)}], got {lengths.dtype} of {list(lengths.shape)}"
                )
            lengths = lengths.to(torch.int64)
        if resets is not None:
            if resets.dtype != torch.bool:
                raise ValueError(f"{name}: resets must be bool, got {resets.dtype}")
            resets = resets.to(x.device)
        return Masks(lengths, resets)

    def _run(self, x: Tensor, state: State | None, masks: Masks) -> tuple[Tensor, State]:
        before = [None] * self.num_layers if state is None else self._split(state, x.size(1))
        after = []
        bypasses = self.training and self.bypass_dropout > 0
        ends = False
        for i in range(self.num_layers):
            cell = self._cell(i)
            if i:
                x = F.dropout(x, self.dropout, self.training)
            if cell.is_fused:
                ends = i == self.num_layers - 1 and not bypasses and self._has_plain_output(x)
                x, last = self._sequence(i, x, before[i], masks, ends)
            else:
                x, last = self._steps(i, x, before[i], masks)
            if bypasses:
                hidden, read_vectors = x.split([self.hidden_size, x.size(2) - self.hidden_size], 2)
                x = torch.cat([F.dropout(hidden, self.bypass_dropout), read_vectors], 2)
            after.append(last)
        if not ends:
            x = self.output(x)
            there = masks.there(x.size(0))
            x = x if there is None else torch.where(there.unsqueeze(2), x, 0)
        return x, self._join(after)

    def _has_plain_output(self, x: Tensor) -> bool:
        """Whether the output layer can be a part of the operator. Under autocast it has an output in low precision."""
        is_autocast = not x.is_meta and torch.is_autocast_enabled(x.device.type)
        return isinstance(self.output, nn.Linear) and not is_autocast

    def _weights(self, layer: int) -> list[Tensor]:
        """Of a layer, and behind the last one of a plain output."""
        weights = self._cell(layer).weights()
        if layer == self.num_layers - 1 and isinstance(self.output, nn.Linear):
            weight, bias = self.output.weight, self.output.bias
            weights += [weight, weight.new_zeros(weight.size(0)) if bias is None else bias]
        return weights

    def _sequence(self, layer: int, x: Tensor, state: State | None, masks: Masks, ends: bool) -> tuple[Tensor, State]:
        """``([T,B,O], state)`` if the layer `ends` with the output, else ``[T,B,H+R*W]``: hidden state and read vectors."""
        if state is None:
            initial: dict[str, Any] = dict.fromkeys(self._State._fields)  # None: the operators know it
            state = self._State(**{**initial, "memory": self._initial_memory(layer, x.size(1))})
        reset_memory = None if masks.resets is None else self._initial_memory(layer, x.size(1))
        cell = self._cell(layer)
        weights = self._places[layer].tensors(self, lambda: self._weights(layer))
        norm_eps = None if cell.norm is None else cell.norm.eps
        return layer_sequence(
            self._State,
            self._model,
            numbers(self._step_options(), output="linear", initial=self._beginning, norm_eps=norm_eps),
            x,
            state,
            weights if ends else weights[: 6 if cell.norm is None else 8],
            [self.memory_size, self.word_size, self.write_heads, self.read_heads, self._num_shifts()],
            cell.parts,
            lengths=masks.lengths,
            resets=masks.resets,
            reset_memory=reset_memory,
        )

    def _steps(self, layer: int, x: Tensor, given: State | None, masks: Masks) -> tuple[Tensor, State]:
        """What :meth:`_sequence` does without an output, step by step, under a controller of the user's.

        Where the host knows the lengths, a step is taken by those samples only that are still there.
        """
        (steps, batch), resets = x.shape[:2], masks.resets
        fresh = None if resets is None else self._fresh(layer, batch)
        lengths = masks.known_lengths(steps)
        if lengths is None:
            return self._steps_of_all(layer, x, given, fresh, resets, masks.there(steps))
        if min(lengths, default=steps) == steps:
            return self._steps_of_all(layer, x, given, fresh, resets)

        # By their lengths, so that those still there are the first ones: a number that changes where some of them end.
        order = torch.tensor(sorted(range(batch), key=lengths.__getitem__, reverse=True))
        x, resets = x.index_select(1, order), None if resets is None else resets.index_select(1, order)
        state, fresh = (s if s is None else s.map(lambda t: t.index_select(0, order)) for s in (given, fresh))
        features: list[Tensor] = []
        ended: list[State] = []
        begin, left = 0, batch
        for end in sorted(set(lengths)):
            there = sum(length >= end for length in lengths)
            if there < left:
                assert state is not None
                parts = zip(*(t.split([there, left - there]) for t in state), strict=True)
                state, over = (self._State(*tensors) for tensors in parts)
                ended.insert(0, over)
                state = None if begin == 0 and given is None else state
            part, state = self._steps_of_all(
                layer,
                x[begin:end, :there],
                state,
                fresh and fresh.samples(slice(there)),
                None if resets is None else resets[begin:end, :there],
            )
            features.append(F.pad(part, (0, 0, 0, batch - there)))
            begin, left = end, there
        assert state is not None
        y, back = F.pad(torch.cat(features), (0, 0, 0, 0, 0, steps - begin)), order.argsort()
        last = [torch.cat(ts).index_select(0, back) for ts in zip(state, *ended, strict=True)]
        return y.index_select(1, back), self._State(*last)

    def _steps_of_all(
        self,
        layer: int,
        x: Tensor,
        given: State | None,
        fresh: State | None,
        resets: Tensor | None,
        there: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """The same with all samples in each step. A controller of the user's begins without a state.

        Args:
            layer: its number.
            x: ``[T,B,I]``.
            given: the state before; None: the initial one.
            fresh: with which samples begin anew where they do.
            resets: bool ``[T,B]``.
            there: bool ``[T,B]``: what a sample does in other steps is computed, and not used.
        """
        cell = self._cell(layer)
        if x.size(0) == 0:
            empty = x.new_empty(0, x.size(1), self.hidden_size + self.read_heads * self.word_size)
            return empty, self._initial(layer, x.size(1)) if given is None else given
        if there is not None:  # whatever is there instead, even NaN, must not reach a gradient
            x = torch.where(there.unsqueeze(2), x, 0)
        state = self._fresh(layer, x.size(1)) if given is None else given
        features = []
        for t, x_t in enumerate(x):
            begins = given is None and t == 0
            if resets is not None and fresh is not None and not begins:
                anew = resets[t] if there is None else resets[t] & there[t]
                state = choose(anew, fresh._replace(cell=torch.zeros_like(state.cell)), state)
            seen = torch.cat([x_t, state.read_vectors.flatten(1)], 1)
            hidden, rest = cell.control(seen, None if begins else (state.hidden, state.cell))
            if begins:
                state = state._replace(cell=torch.zeros_like(rest))
            after = self._access(cell.signals(hidden), state._replace(hidden=hidden, cell=rest))
            features.append(torch.cat([hidden, after.read_vectors.flatten(1)], 1).unsqueeze(0))
            state = after if there is None else choose(there[t], after, state)
        return torch.cat(features), state

    def _step_options(self) -> DncOptions:
        raise NotImplementedError

    def _num_shifts(self) -> int:
        return 0

    def _access(self, interface: Tensor, state: State) -> State:
        raise NotImplementedError


class DNC(MemoryLayer[DncState]):
    """A differentiable neural computer (Graves et al., 2016) with the manners of ``nn.LSTM``.

    Each layer is a controller, an LSTM, with a memory of its own. The controller sees the layer's input and what its read
    heads read at the last step; hidden state and read vectors are the input of the next layer, and of the output layer behind
    the last one. A layer's whole sequence is one operator, :func:`routing_ext.ops.dnc_sequence`.

    Args:
        input_size: I.
        hidden_size: H, of the controllers.
        num_layers: L.
        memory_size: N, locations of each memory.
        word_size: W, elements of a location.
        read_heads: R.
        write_heads: V.
        output_size: O; None: `hidden_size`.
        bias: of all linear maps.
        batch_first: input and output are ``[B,T,...]``. States are always ``[L,B,...]``.
        dropout: of what a layer gives to the next one.
        initial_memory: a number that all memories are filled with; ``"learned"``: a parameter ``[N,W]`` of each layer;
            ``"random"``: drawn anew for each sequence, normal with variance 1/W (all three: Collier and Beel, 2018).
        layer_norm: normalise the interface, all that the controller tells the memory, ``LayerNorm(Linear(hidden))`` (Franke et
            al., 2018, and their program).
        bypass_dropout: of the hidden state on its way past the memory, to the output and to the next layer, so that what
            was read counts (Franke et al., 2018, who take 0.1).
        controller: instead of an LSTM a callable, mostly a module, or one for each layer, with the contract of
            ``nn.LSTMCell`` or of ``nn.GRUCell``: from ``[B,I+R*W]``, behind the first layer ``[B,H+2*R*W]``, and its state,
            None at first, to its state, a tensor ``[B,H]`` or that and another one.
        device: of the parameters.
        dtype: of the parameters, float32 or float64.
        options: of :class:`DncOptions`. By default those of the paper: ``usage="paper"``, ``strengths="oneplus"``,
            ``words="linear"``.

    Raises:
        TypeError: an unknown option.
        ValueError: a size below 1, or another value that is none.
    """

    _State = DncState
    _model = "dnc"
    _beginning = "zeros"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        memory_size: int,
        word_size: int,
        read_heads: int = 1,
        write_heads: int = 1,
        output_size: int | None = None,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        initial_memory: float | str = 1e-6,
        layer_norm: bool = False,
        bypass_dropout: float = 0.0,
        controller: Callable[..., Any] | Sequence[Callable[..., Any]] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        read = DncOptions.read("DNC", {"usage": "paper", "strengths": "oneplus", "words": "linear", **options})
        v, r, w = write_heads, read_heads, word_size
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            {"memory_size": memory_size, "word_size": w, "read_heads": r, "write_heads": v},
            list(read.interface(v, r, w).values()),
            output_size=output_size,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            initial_memory=initial_memory,
            controller=controller,
            factory={"device": device, "dtype": dtype},
            layer_norm=layer_norm,
            bypass_dropout=bypass_dropout,
        )
        self.options = read

    def extra_repr(self) -> str:
        changed = {name: value for name, value in self.options._asdict().items() if value != DncOptions._field_defaults[name]}
        return ", ".join([super().extra_repr(), *(f"{name}={value!r}" for name, value in changed.items())])

    def _shape(self, field: str, batch: int) -> list[int]:
        shape = super()._shape(field, batch)
        if field in ("precedence", "link") and not self.options.link:
            return shape[:2] + [0] * len(shape[2:])
        return shape

    def _step_options(self) -> DncOptions:
        return self.options

    def _access(self, interface: Tensor, state: DncState) -> DncState:
        return dnc_access(interface, state, **self.options._asdict())


class NTM(MemoryLayer[NtmState]):
    """A neural Turing machine (Graves et al., 2014) with the manners of ``nn.LSTM``. Arguments as of :class:`DNC`, and:

    Args:
        num_shifts: S: how many neighbouring locations, its own among them, a head can move to at a step, as many on each side.
            If S is even, one more of them comes after its own than before it: with 2, a head stays or goes on.
        words: ``"linear"``: keys and what is added to the memory are as the controller gives them; ``"tanh"``: between -1
            and 1.

    At the beginning all weight of all heads is on location 0, and read vectors are 1e-6.
    """

    _State = NtmState
    _model = "ntm"
    _beginning = "reference"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        memory_size: int,
        word_size: int,
        read_heads: int = 1,
        write_heads: int = 1,
        num_shifts: int = 3,
        words: str = "linear",
        output_size: int | None = None,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        initial_memory: float | str = 1e-6,
        layer_norm: bool = False,
        bypass_dropout: float = 0.0,
        controller: Callable[..., Any] | Sequence[Callable[..., Any]] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if num_shifts < 1:
            raise ValueError(f"NTM: num_shifts must be at least 1, got {num_shifts}")
        check_choice("NTM", "words", words)
        v, r, w, s = write_heads, read_heads, word_size, num_shifts
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            {"memory_size": memory_size, "word_size": w, "read_heads": r, "write_heads": v},
            [v * w, v, v, v * s, v, v * w, v * w, r * w, r, r, r * s, r],
            output_size=output_size,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            initial_memory=initial_memory,
            controller=controller,
            factory={"device": device, "dtype": dtype},
            layer_norm=layer_norm,
            bypass_dropout=bypass_dropout,
        )
        self.num_shifts = num_shifts
        self.words = words

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_shifts={self.num_shifts}, words={self.words!r}"

    def _step_options(self) -> DncOptions:
        return DncOptions(words=self.words)

    def _num_shifts(self) -> int:
        return self.num_shifts

    def _access(self, interface: Tensor, state: NtmState) -> NtmState:
        return ntm_access(interface, state, words=self.words)
