"""The circuits: controller, accessor and output layer, step by step or over whole sequences."""

from __future__ import annotations

from typing import Any, ClassVar, Generic

import torch
from torch import Tensor, nn

from .._memory_options import numbers
from .._states import DncState, NtmState, State
from ..ops.memory_sequence import at_least_float, sequence
from ..ops.memory_step import MemoryRun, Network, pack_weights
from .accessors import Accessor, DynamicAccessor, StaticAccessor
from .controllers import LSTMController
from .options import OF_STEP, dnc_options, read_options
from .places import Places
from .sequence_state import PartModule, SequenceState, StateTensor, check_shape


class Circuit(PartModule, Generic[State]):
    """What circuits share: :class:`DNCCircuit` and :class:`NTMCircuit` explain it."""

    read_vec_vb = StateTensor("read_vectors")

    _State: type[State]
    _model: ClassVar[str]
    _Accessor: ClassVar[type[Accessor]]

    def __init__(self, args: Any = None, **options: Any) -> None:
        super().__init__()
        of_memory: tuple[str, ...] = ("num_write_heads", "num_read_heads", "mem_hei", "mem_wid")
        read = read_options(
            type(self).__name__,
            args,
            options,
            ("input_dim", "output_dim", "hidden_dim", *of_memory),
            {"batch_size": None, "clip_value": 20.0, "num_allowed_shifts": None, "dtype": None, **OF_STEP},
        )
        self.batch_size: int | None = read["batch_size"]
        self.input_dim: int = read["input_dim"]
        self.output_dim: int = read["output_dim"]
        self.hidden_dim: int = read["hidden_dim"]
        self.num_write_heads: int = read["num_write_heads"]
        self.num_read_heads: int = read["num_read_heads"]
        self.mem_hei: int = read["mem_hei"]
        self.mem_wid: int = read["mem_wid"]
        self.clip_value: float = read["clip_value"]
        self.options = dnc_options(type(self).__name__, read)
        self.usage: str = self.options.usage
        self.read_vec_dim = self.num_read_heads * self.mem_wid
        common = {name: read[name] for name in ("batch_size", "hidden_dim", "dtype")}
        self.controller = LSTMController(
            None, input_dim=self.input_dim, read_vec_dim=self.read_vec_dim, clip_value=self.clip_value, **common
        )
        self.accessor = self._Accessor(
            getattr(args, "accessor_params", None),
            **common,
            **{name: read[name] for name in (*of_memory, "num_allowed_shifts", *OF_STEP)},
        )
        self.hid_to_out = nn.Linear(self.hidden_dim + self.read_vec_dim, self.output_dim)
        self._sizes = self.accessor._sizes
        self._owned = self._State._fields
        self._state = self.controller._state = SequenceState()
        self.accessor._share(self._state)
        self._packed: Any = None
        self._places = Places()
        self._cast(read["dtype"])

    def extra_repr(self) -> str:
        return f"usage={self.usage!r}, allocation={self.options.allocation!r}, clip_value={self.clip_value}"

    @property
    def state(self) -> State:
        """The state of the sequence under way; assignable, for example from its own ``detach()``."""
        return self._State(*(self._field(field) for field in self._State._fields))

    @state.setter
    def state(self, value: State) -> None:
        self._check_state(value, f"{type(self).__name__}: state", -1)
        self._state.update(value._asdict())

    def _check_state(self, state: State, what: str, batch: int) -> None:
        """-1: a batch of any size."""
        if not isinstance(state, self._State):
            raise TypeError(f"{what} must be of type {self._State.__name__}, got {type(state).__name__}")
        for field, value in state._asdict().items():
            check_shape(f"{what}.{field}", value, self._shape(field, batch))

    def initial_state(
        self, batch: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> State:
        """The state before the first step of `batch` samples; dtype and device are the parameters' by default."""
        own_dtype, own_device = self._place()
        place = dtype or own_dtype, own_device if device is None else torch.device(device)
        return self._State.initial({"B": batch, **self._sizes}, *place)

    def forward(self, input_vb: Tensor) -> Tensor:
        """The next step of the sequence under way, which ``_reset_states()`` begins.

        Args:
            input_vb: ``[B,I]``, or with more dimensions of size 1 as in ``[1,B,I]``.

        Returns:
            ``[1,B,O]``.

        Raises:
            TypeError: the parameters are neither float32 nor float64.
            ValueError: the input has another width or is a sequence, or within a sequence it has another batch.
        """
        *batch, width = input_vb.shape or (0,)
        if width != self.input_dim or (len(batch) > 1 and sum(n != 1 for n in batch) > 1):
            raise ValueError(f"{type(self).__name__}: input_vb must be [B, {self.input_dim}], got {list(input_vb.shape)}")
        x = input_vb if len(batch) == 1 else input_vb.reshape(-1, width)
        weights, run = self._weights(), self._state.run
        if not x.is_meta and torch.is_autocast_enabled(x.device.type):
            x, weights = at_least_float(x), [at_least_float(w) for w in weights]
        y: Tensor | None = None
        if run is not None:
            self._check_batch(run.network.sizes["B"], x.size(0))
            y = run.step(x, weights)
        if y is None:
            y = self._begin(x.size(0), weights).step(x, weights)
            assert y is not None  # a run takes steps with the weights it begins with
        return y

    def _begin(self, batch: int, weights: list[Tensor]) -> MemoryRun:
        """A run that goes on from the present state."""
        if weights[0].dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{type(self).__name__}: parameters must be float32 or float64, got {weights[0].dtype}")
        state = None if self._state.is_initial() else self._current(self._State, batch)
        network = self._network(batch, weights[0])
        if self._packed is None or not self._packed.have_values_of(weights):
            self._packed = pack_weights(network, weights)
        run = self._state.run = MemoryRun(network, self._packed, state, expected_steps=self._state.steps)
        return run

    def unroll(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """A whole sequence in one call. The sequence under way, which ``circuit(x_t)`` continues, stays as it is.

        Args:
            x: ``[T,B,I]``, T from 0.
            state: before the first step; the initial one by default.

        Returns:
            ``(y [T,B,O], state)``; the state is that after the last step.

        Raises:
            TypeError: the state is none of such a circuit.
            ValueError: x is of another shape, or the state of another batch.
        """
        name = f"{type(self).__name__}.unroll"
        if x.dim() != 3 or x.size(-1) != self.input_dim:
            raise ValueError(f"{name}: x must be [T, B, {self.input_dim}], got {list(x.shape)}")
        if state is not None:
            self._check_state(state, f"{name}: state", x.size(1))
        return sequence(
            self._State,
            self._model,
            numbers(self.options),
            x,
            state,
            self._weights(),
            [self.mem_hei],
            writes=self.num_write_heads,
            clip_value=self.clip_value,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}

    def _weights(self) -> list[Tensor]:
        """All parameters, in the order of the operators."""
        return self._places.tensors(self, self._named_weights)

    def _named_weights(self) -> list[Tensor]:
        """The same by the names of the modules, which takes longer than a step of a small network."""
        linears = [*self.accessor._linears(), self.hid_to_out]
        weights = self.controller._weights() + [t for linear in linears for t in (linear.weight, linear.bias)]
        if any(t is None for t in weights):
            raise TypeError(f"{type(self).__name__}: all linear maps must have a bias, got one without")
        return weights

    def _network(self, batch: int, like: Tensor) -> Network:
        """What :class:`MemoryRun` is told of this circuit. `like`: a parameter."""
        shifts = self.accessor.write_heads.num_allowed_shifts if self._model == "ntm" else 0
        sizes = {**self._sizes, "B": batch, "I": self.input_dim, "O": self.output_dim, "S": shifts}
        return Network(self._model, numbers(self.options), sizes, like.dtype, like.device, self.clip_value)


class DNCCircuit(Circuit[DncState]):
    """A differentiable neural computer (Graves et al., 2016); a drop-in for ``core.circuits.dnc_circuit.DNCCircuit``.

    ``circuit(x_t)`` is one step, ``circuit.unroll(x)`` a sequence. Submodules are not called, and hooks on them do not run:
    one operator computes the whole step with their parameters. The names of the ``state_dict`` are the reference's.

    The state of the sequence under way is in ``accessor.memory.memory_vb``, ``accessor.usage_vb``, ``accessor.link_vb``,
    ``accessor.preced_vb``, ``accessor.write_heads.wl_curr_vb`` and ``accessor.read_heads.wl_curr_vb`` (``wl_prev_vb`` is the
    same), ``read_vec_vb`` and ``controller.lstm_hidden_vb``, all of which can be assigned, and in `state`, a
    :class:`DncState`. Copies and pickles of a circuit have the numbers of the state, without their history.

    Args:
        args: an object with the attributes below, and perhaps, as in the reference, accessor_params with write_head_params,
            read_head_params and memory_params; or None. It stays as it is.
        input_dim: I.
        output_dim: O.
        hidden_dim: H, of the controller.
        num_write_heads: V.
        num_read_heads: R.
        mem_hei: N, locations of the memory.
        mem_wid: W, elements of a location.
        batch_size: of the state that the attributes show before the first step. Sequences can have any batch.
        clip_value: hidden state and output, before its logistic function, are clipped to +-clip_value; 20 by default.
        usage, allocation, temperature, erase_freed: see :class:`DncOptions`.
        dtype: a dtype, or a tensor type such as ``torch.DoubleTensor``.
    """

    _State = DncState
    _model = "dnc"
    _Accessor = DynamicAccessor


class NTMCircuit(Circuit[NtmState]):
    """A neural Turing machine (Graves et al., 2014); a drop-in for ``core.circuits.ntm_circuit.NTMCircuit``.

    As :class:`DNCCircuit`, with the same arguments (`usage`, `allocation` and `erase_freed` have no meaning) and
    num_allowed_shifts (S), 3 by default. Its state, an :class:`NtmState`, has no usage, link and precedence.
    """

    _State = NtmState
    _model = "ntm"
    _Accessor = StaticAccessor
