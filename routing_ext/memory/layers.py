"""Memory networks in the manner of ``nn.LSTM``: the differentiable neural computer and the neural Turing machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from .._memory_options import DncOptions
from .._states import SHAPES, DncState, NtmState, State
from ..ops import dnc_access, dnc_sequence, ntm_access, ntm_sequence
from .packed import packed_like

Input = TypeVar("Input", Tensor, PackedSequence)


class Cell(nn.Module):
    """A layer's weights: a controller, and the linear interface from its hidden state to the memory.

    Args:
        controller: None for an LSTM, whose steps then are part of the fused operator; else the user's.
        input_size: of the controller, with the read vectors.
        hidden_size: H.
        parts: widths of the parts of the interface, in the order of the operators.
        bias: of an LSTM and the interface.
        factory: device and dtype.
    """

    def __init__(
        self,
        controller: Callable[..., Any] | None,
        input_size: int,
        hidden_size: int,
        parts: Sequence[int],
        bias: bool,
        factory: dict[str, Any],
    ) -> None:
        super().__init__()
        self.is_fused = controller is None
        self.controller: Any = nn.LSTMCell(input_size, hidden_size, bias, **factory) if controller is None else controller
        self.interface = nn.Linear(hidden_size, sum(parts), bias, **factory)
        self._parts = list(parts)

    def weights(self) -> list[Tensor]:
        """In the order of the operators, without an output layer."""
        assert isinstance(self.controller, nn.LSTMCell)
        controller, interface = self.controller, self.interface
        of_controller: list[Tensor] = [controller.weight_ih, controller.weight_hh, controller.bias_ih, controller.bias_hh]
        bias: Tensor = interface.bias
        if not controller.bias:
            zeros = interface.weight.new_zeros(max(controller.weight_ih.size(0), interface.out_features))
            of_controller[2:] = [zeros[: controller.weight_ih.size(0)]] * 2
            bias = zeros[: interface.out_features]
        of_interface = zip(interface.weight.split(self._parts), bias.split(self._parts), strict=True)
        return [*of_controller, *(t for part in of_interface for t in part)]

    def control(self, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """A step of the user's controller: ``(hidden, cell)``; the cell is [B,0] where its state is one tensor."""
        if state is not None and state[1].size(-1) == 0:
            after = self.controller(x, state[0])
        else:
            after = self.controller(x, state)
        return (after, after.new_empty(after.size(0), 0)) if isinstance(after, Tensor) else after


class MemoryLayer(nn.Module, Generic[State]):
    """What :class:`DNC` and :class:`NTM` share."""

    _State: type[State]

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
    ) -> None:
        super().__init__()
        name = type(self).__name__
        named = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers, **sizes}
        for size, value in {**named, "output_size": 1 if output_size is None else output_size}.items():
            if value < 1:
                raise ValueError(f"{name}: {size} must be at least 1, got {value}")
        if isinstance(initial_memory, str) and initial_memory not in ("learned", "random"):
            raise ValueError(f'{name}: initial_memory must be a number, "learned" or "random", got {initial_memory!r}')
        controllers: list[Any] = list(controller) if isinstance(controller, (Sequence, nn.ModuleList)) else [controller]
        if controller is None:
            controllers *= num_layers
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
        self.initial_memory = initial_memory
        self.layers = nn.ModuleList(
            Cell(controllers[i], self._width(i), hidden_size, parts, bias, factory) for i in range(num_layers)
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
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)

    # ---- state --------------------------------------------------------------------------------------------------------------

    def initial_state(self, batch: int) -> State:
        """The state before the first step of `batch` samples, as :meth:`forward` begins with where none is given."""
        states = [self._initial(i, batch) for i in range(self.num_layers)]
        for i, cell in enumerate(self._cells()):
            if not cell.is_fused:
                with torch.no_grad():
                    x = states[i].hidden.new_zeros(batch, self._width(i))
                    _, memory = cell.control(x, None)
                states[i] = states[i]._replace(cell=torch.zeros_like(memory))
        return self._join(states)

    def _initial(self, layer: int, batch: int) -> State:
        raise NotImplementedError

    def _cells(self) -> Iterator[Cell]:
        return iter(self.layers)  # type: ignore[arg-type]

    def _width(self, layer: int) -> int:
        """Of what the controller of a layer sees."""
        read_size = self.read_heads * self.word_size
        return (self.hidden_size + read_size if layer else self.input_size) + read_size

    def _fresh(self, layer: int, batch: int) -> dict[str, Tensor]:
        """Memory as `initial_memory` says, and the rest zero."""
        weight, shape = self.output.weight, self._shape("memory", batch)
        if self.initial_memory == "learned":
            memory = self.memories[layer].expand(shape)
        elif self.initial_memory == "random":
            memory = torch.randn(shape, dtype=weight.dtype, device=weight.device) * self.word_size**-0.5
        else:
            memory = weight.new_full(shape, float(self.initial_memory))
        zero = {field: weight.new_zeros(self._shape(field, batch)) for field in self._State._fields if field != "memory"}
        return {"memory": memory, **zero}

    def _shape(self, field: str, batch: int) -> list[int]:
        return [batch if dimension == "B" else self._sizes[dimension] for dimension in SHAPES[field]]

    def _join(self, states: Sequence[State]) -> State:
        return self._State(*(torch.stack(ts) if len(ts) > 1 else ts[0].unsqueeze(0) for ts in zip(*states, strict=True)))

    def _split(self, state: State, batch: int) -> list[State]:
        for field, value in state._asdict().items():
            expected = [self.num_layers] + self._shape(field, batch)
            if list(value.shape) != expected and not (field == "cell" and value.size(-1) == 0):
                raise ValueError(f"{type(self).__name__}: state.{field} must be {expected}, got {list(value.shape)}")
        return [self._State(*(t[i] for t in state)) for i in range(self.num_layers)]

    # ---- steps and sequences ------------------------------------------------------------------------------------------------

    def forward(self, input: Input, state: State | None = None) -> tuple[Input, State]:
        """A sequence, or a part of one.

        Args:
            input: ``[T,B,I]``, with `batch_first` ``[B,T,I]``, of one sample ``[T,I]``, or a :class:`PackedSequence`.
            state: before the first step, as it was after the last one, perhaps detached; None: the initial one.

        Returns:
            Output ``[T,B,O]``, ``[B,T,O]``, ``[T,O]`` or a :class:`PackedSequence`, and the state after the last step.

        Raises:
            ValueError: input or state of another shape.
        """
        if isinstance(input, PackedSequence):
            return self._packed(input, state)
        name, alone = type(self).__name__, input.dim() == 2
        if input.dim() not in (2, 3) or input.size(-1) != self.input_size:
            shape = "B, T" if self.batch_first else "T, B"
            raise ValueError(f"{name}: input must be [{shape}, {self.input_size}], got {list(input.shape)}")
        x = input.unsqueeze(1) if alone else input.transpose(0, 1) if self.batch_first else input
        if alone and state is not None:
            state = state.map(lambda t: t.unsqueeze(1))
        y, after = self._run(x, state)
        if alone:
            return y.squeeze(1), after.map(lambda t: t.squeeze(1))
        return y.transpose(0, 1) if self.batch_first else y, after

    def step(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """One step: ``(y [B,O], state)`` from ``x [B,I]``, for who acts and looks, such as an agent.

        Raises:
            ValueError: x or state of another shape.
        """
        if x.dim() != 2 or x.size(1) != self.input_size:
            raise ValueError(f"{type(self).__name__}.step: x must be [B, {self.input_size}], got {list(x.shape)}")
        y, after = self._run(x.unsqueeze(0), state)
        return y.squeeze(0), after

    def _packed(self, input: PackedSequence, state: State | None) -> tuple[PackedSequence, State]:
        x, lengths = pad_packed_sequence(input)
        y, after = self._run(x, state)
        return packed_like(input, y, lengths), after

    def _run(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        batch = x.size(1)
        before = [self._initial(i, batch) for i in range(self.num_layers)] if state is None else self._split(state, batch)
        after = []
        for i, cell in enumerate(self._cells()):
            if i:
                x = F.dropout(x, self.dropout, self.training)
            if cell.is_fused:
                x, last = self._sequence(cell.weights(), x, before[i])
            else:
                x, last = self._steps(cell, x, before[i], begins=state is None)
            after.append(last)
        return self.output(x), self._join(after)

    def _steps(self, cell: Cell, x: Tensor, state: State, *, begins: bool) -> tuple[Tensor, State]:
        """With the user's controller, which begins without a state."""
        features = [x.new_empty(0, x.size(1), self.output.in_features)]
        for x_t in x:
            seen = torch.cat([x_t, state.read_vectors.flatten(1)], 1)
            hidden, rest = cell.control(seen, None if begins and len(features) == 1 else (state.hidden, state.cell))
            state = self._access(cell.interface(hidden), state._replace(hidden=hidden, cell=rest))
            features.append(torch.cat([hidden, state.read_vectors.flatten(1)], 1).unsqueeze(0))
        return torch.cat(features), state

    def _sequence(self, weights: list[Tensor], x: Tensor, state: State) -> tuple[Tensor, State]:
        """``([T,B,H+R*W], state)``: hidden state and read vectors after each step."""
        raise NotImplementedError

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
        controller: instead of an LSTM a callable, mostly a module, or one for each layer, with the contract of
            ``nn.LSTMCell`` or of ``nn.GRUCell``: from ``[B,I+R*W]``, behind the first layer ``[B,H+2*R*W]``, and its state,
            None at first, to its state, a tensor ``[B,H]`` or that and another one.
        device: of the parameters.
        dtype: of the parameters, float32 or float64.
        options: of :class:`DncOptions`; ``usage="paper"`` by default.

    Raises:
        TypeError: an unknown option.
        ValueError: a size below 1, or another value that is none.
    """

    _State = DncState

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
        controller: Callable[..., Any] | Sequence[Callable[..., Any]] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        read = DncOptions.read("DNC", {"usage": "paper", **options})
        v, r, w = write_heads, read_heads, word_size
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            {"memory_size": memory_size, "word_size": w, "read_heads": r, "write_heads": v},
            [v * w, v, v, v, v * w, v * w, r * w, r, r, r * (2 * v + 1)],
            output_size=output_size,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            initial_memory=initial_memory,
            controller=controller,
            factory={"device": device, "dtype": dtype},
        )
        self.options = read

    def extra_repr(self) -> str:
        changed = {name: value for name, value in self.options._asdict().items() if value != DncOptions._field_defaults[name]}
        return ", ".join([super().extra_repr(), *(f"{name}={value!r}" for name, value in changed.items())])

    def _initial(self, layer: int, batch: int) -> DncState:
        return DncState(**self._fresh(layer, batch))

    def _sequence(self, weights: list[Tensor], x: Tensor, state: DncState) -> tuple[Tensor, DncState]:
        return dnc_sequence(x, weights, state, clip_value=math.inf, **self.options._asdict())

    def _access(self, interface: Tensor, state: DncState) -> DncState:
        return dnc_access(interface, state, **self.options._asdict())


class NTM(MemoryLayer[NtmState]):
    """A neural Turing machine (Graves et al., 2014) with the manners of ``nn.LSTM``. Arguments as of :class:`DNC`, and:

    Args:
        num_shifts: S, odd: how many neighbouring locations, its own among them, a head can move to at a step.

    At the beginning all weight of all heads is on location 0.
    """

    _State = NtmState

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
        output_size: int | None = None,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        initial_memory: float | str = 1e-6,
        controller: Callable[..., Any] | Sequence[Callable[..., Any]] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if num_shifts < 1 or num_shifts % 2 == 0:
            raise ValueError(f"NTM: num_shifts must be odd and at least 1, got {num_shifts}")
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
        )
        self.num_shifts = num_shifts

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_shifts={self.num_shifts}"

    def _initial(self, layer: int, batch: int) -> NtmState:
        state = NtmState(**self._fresh(layer, batch))
        for weights in (state.write_weights, state.read_weights):
            weights[..., 0] = 1.0
        return state

    def _sequence(self, weights: list[Tensor], x: Tensor, state: NtmState) -> tuple[Tensor, NtmState]:
        return ntm_sequence(x, weights, state, clip_value=math.inf)

    def _access(self, interface: Tensor, state: NtmState) -> NtmState:
        return ntm_access(interface, state)
