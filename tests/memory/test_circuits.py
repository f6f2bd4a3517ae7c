"""The circuits as modules: their arguments, their state, and what autograd and Python may do to them."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from circuits import CIRCUITS, SIZES, Run, inputs
from helpers import normal
from torch import Tensor

from routing_ext import reference
from routing_ext.memory import Circuit, DNCCircuit, NTMCircuit


def gradients(circuit: Circuit, y: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(y.square().sum(), list(circuit.parameters())))


def steps(circuit: Circuit, x: Tensor) -> Tensor:
    return torch.cat([circuit(x_t) for x_t in x])


def attributes(circuit: Circuit) -> dict[str, Tensor]:
    """What users of the reference read, by the field of the state that it is."""
    accessor = circuit.accessor
    found = {
        "memory": accessor.memory.memory_vb,
        "write_weights": accessor.write_heads.wl_curr_vb,
        "read_weights": accessor.read_heads.wl_curr_vb,
        "hidden": circuit.controller.lstm_hidden_vb[0],
        "cell": circuit.controller.lstm_hidden_vb[1],
        "read_vectors": circuit.read_vec_vb,
    }
    if isinstance(circuit, DNCCircuit):
        found |= {"usage": accessor.usage_vb, "link": accessor.link_vb, "precedence": accessor.preced_vb}
    return found


# ---- arguments --------------------------------------------------------------------------------------------------------------


def reference_args(**more: Any) -> SimpleNamespace:
    """As the reference's options: nested, with sizes at the top only."""

    def params(**given: Any) -> SimpleNamespace:
        return SimpleNamespace(
            logger=None, use_cuda=False, dtype=torch.DoubleTensor, visualize=False, batch_size=None, **given
        )

    heads = {"num_heads": None, "hidden_dim": None, "mem_hei": None, "mem_wid": None, "num_allowed_shifts": 5}
    args = params(
        **SIZES,
        clip_value=10.0,
        controller_params=params(input_dim=None, hidden_dim=None),
        accessor_params=params(
            hidden_dim=None,
            write_head_params=params(**heads),
            read_head_params=params(**heads, num_read_modes=None),
            memory_params=params(mem_hei=None, mem_wid=None),
        ),
    )
    for name, value in more.items():
        setattr(args, name, value)
    return args


@pytest.mark.parametrize("kind", CIRCUITS)
def test_args_of_the_reference(kind: type[Circuit]) -> None:
    args = reference_args(batch_size=3)
    before = copy.deepcopy(args)
    circuit = kind(args)
    assert args == before
    assert circuit.batch_size == 3
    assert circuit.clip_value == circuit.controller.clip_value == 10
    assert circuit.read_vec_dim == 15
    assert all(p.dtype is torch.float64 for p in circuit.parameters())
    assert circuit.accessor.write_heads.num_allowed_shifts == 5
    assert circuit(inputs(1, 3)).shape == (1, 3, 3)


@pytest.mark.parametrize("kind", CIRCUITS)
def test_args_and_keywords_make_the_same_circuit(kind: type[Circuit]) -> None:
    torch.manual_seed(1)
    of_args = kind(reference_args())
    torch.manual_seed(1)
    of_keywords = kind(**SIZES, clip_value=10.0, num_allowed_shifts=5, dtype=torch.float64)
    assert repr(of_args) == repr(of_keywords)
    for name, value in of_args.state_dict().items():
        assert torch.equal(value, of_keywords.state_dict()[name])


def test_keywords_come_before_args() -> None:
    circuit = DNCCircuit(reference_args(), mem_hei=11, usage="paper")
    assert circuit.accessor.memory.mem_hei == 11
    assert circuit.accessor.usage == circuit.accessor.write_heads.usage == "paper"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mem_hei": None}, TypeError, "DNCCircuit: mem_hei must be given, in args or as a keyword; got neither"),
        ({"mem_height": 4}, TypeError, "DNCCircuit: arguments are .*mem_hei.*; got mem_height"),
        ({"hidden_dim": 0}, ValueError, "DNCCircuit: hidden_dim must be at least 1, got 0"),
        ({"mem_wid": 5.0}, TypeError, "DNCCircuit: mem_wid must be an integer, got 5.0"),
        ({"mem_wid": "5"}, TypeError, "DNCCircuit: mem_wid must be an integer, got '5'"),
        ({"clip_value": -1.0}, ValueError, "DNCCircuit: clip_value must be at least 0, got -1.0"),
        ({"clip_value": float("nan")}, ValueError, "DNCCircuit: clip_value must be at least 0, got nan"),
        ({"batch_size": 0}, ValueError, "DNCCircuit: batch_size must be at least 1, got 0"),
        ({"allocation": "topk"}, ValueError, 'DNCCircuit: allocation must be "sort" or "softmax", got \'topk\''),
        ({"usage": "nature"}, ValueError, 'DNCCircuit: usage must be "reference", "paper" or "package", got \'nature\''),
    ],
)
def test_wrong_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DNCCircuit(**(SIZES | options))


def test_all_heads_have_the_same_number_of_shifts() -> None:
    args = reference_args()
    args.accessor_params.read_head_params.num_allowed_shifts = 3
    with pytest.raises(ValueError, match="num_allowed_shifts must be the same for all heads, got 5 and 3"):
        NTMCircuit(args)


# ---- steps and sequences ----------------------------------------------------------------------------------------------------


def test_steps_and_unroll_agree(make: Callable[..., Circuit]) -> None:
    circuit, x = make(), inputs().requires_grad_()
    by_steps = steps(circuit, x)
    by_unroll, state = circuit.unroll(x)
    torch.testing.assert_close(by_steps, by_unroll)
    for field, value in state._asdict().items():
        torch.testing.assert_close(value, getattr(circuit.state, field))
    torch.testing.assert_close(gradients(circuit, by_steps), gradients(circuit, by_unroll))


@pytest.mark.parametrize(
    "sizes",
    [
        {"num_write_heads": 1, "num_read_heads": 1, "mem_hei": 1, "mem_wid": 1, "hidden_dim": 1, "output_dim": 1},
        {"num_write_heads": 4, "num_read_heads": 1, "mem_hei": 33},
        {"num_write_heads": 1, "num_read_heads": 8, "mem_wid": 17},
        {"num_write_heads": 3, "mem_hei": 2},
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sizes(make: Callable[..., Circuit], run: Run, sizes: dict[str, int], batch: int, dtype: torch.dtype) -> None:
    circuit, x = make(**sizes, dtype=dtype), inputs(3, batch, dtype)
    y = run(circuit, x)
    assert y.shape == (3, batch, circuit.output_dim)
    assert y.dtype is dtype
    assert all(g.isfinite().all() for g in gradients(circuit, y))


def test_input_that_is_not_contiguous(make: Callable[..., Circuit], run: Run) -> None:
    circuit, x = make(), inputs()
    assert torch.equal(run(circuit, x.transpose(0, 1).contiguous().transpose(0, 1)), run(circuit, x))
    assert torch.equal(run(circuit, x.repeat_interleave(2, -1)[..., ::2]), run(circuit, x))


def test_a_step_takes_a_row_or_a_sequence_of_one(make: Callable[..., Circuit]) -> None:
    circuit, x = make(), inputs(1)
    y = circuit(x[0])
    for other in (x, x[0].unsqueeze(1)):
        circuit._reset_states()
        assert torch.equal(circuit(other), y)


def test_no_steps_at_all(make: Callable[..., Circuit]) -> None:
    circuit = make()
    y, state = circuit.unroll(inputs(0, 5))
    assert y.shape == (0, 5, 3)
    torch.testing.assert_close(tuple(state), tuple(circuit.initial_state(5)))


def test_unroll_in_parts(make: Callable[..., Circuit]) -> None:
    circuit, x = make(), inputs()
    whole, last = circuit.unroll(x)
    first_y, middle = circuit.unroll(x[:2])
    second_y, end = circuit.unroll(x[2:], middle)
    torch.testing.assert_close(torch.cat([first_y, second_y]), whole)
    torch.testing.assert_close(tuple(end), tuple(last))
    torch.testing.assert_close(gradients(circuit, torch.cat([first_y, second_y])), gradients(circuit, whole))


def test_unroll_leaves_the_sequence_under_way(make: Callable[..., Circuit]) -> None:
    circuit, x = make(), inputs()
    expected = steps(circuit, x)
    circuit._reset_states()
    first = steps(circuit, x[:3])
    circuit.unroll(inputs(4, 5))
    torch.testing.assert_close(torch.cat([first, steps(circuit, x[3:])]), expected)


@pytest.mark.parametrize("options", [{"usage": "paper"}, {"allocation": "softmax"}, {"erase_freed": True}], ids=str)
def test_options_change_the_output(run: Run, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    plain = DNCCircuit(**SIZES, dtype=torch.float64)
    other = DNCCircuit(**SIZES, **options, dtype=torch.float64)
    other.load_state_dict(plain.state_dict())
    x = inputs(20)
    y = run(other, x)
    assert (run(plain, x) - y).abs().max() > 1e-9
    expected = reference.dnc_sequence(x, other._weights(), other.initial_state(2), **options)[0]
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(gradients(other, y), gradients(other, expected))


def test_hidden_state_and_output_are_clipped(make: Callable[..., Circuit], run: Run) -> None:
    circuit = make(clip_value=0.01)
    y = run(circuit, 50 * inputs())
    assert (y.logit().abs() <= 0.01 + 1e-12).all()
    assert (circuit.unroll(50 * inputs())[1].hidden.abs() <= 0.01).all()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 5), r"input_vb must be \[B, 4\], got \[2, 5\]"),
        ((), r"input_vb must be \[B, 4\], got \[\]"),
        ((3, 2, 4), r"input_vb must be \[B, 4\], got \[3, 2, 4\]"),
    ],
)
def test_wrong_step(make: Callable[..., Circuit], shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()(torch.zeros(shape, dtype=torch.float64))


def test_wrong_sequences(make: Callable[..., Circuit]) -> None:
    circuit = make()
    with pytest.raises(ValueError, match=r"unroll: x must be \[T, B, 4\], got \[2, 4\]"):
        circuit.unroll(inputs()[0])
    with pytest.raises(ValueError, match=r"unroll: state.memory must be \[2, 7, 5\], got \[3, 7, 5\]"):
        circuit.unroll(inputs(), circuit.initial_state(3))


# ---- state ------------------------------------------------------------------------------------------------------------------


def test_initial_state(make: Callable[..., Circuit]) -> None:
    for circuit, batch in ((make(), 1), (make(batch_size=4), 4)):
        found = attributes(circuit)
        assert set(found) == set(circuit.state._fields)
        for field, value in found.items():
            assert value.size(0) == batch
            assert torch.equal(value, getattr(circuit.initial_state(batch), field))
        assert (found["memory"] == 1e-6).all()
        assert (found["read_vectors"] == 1e-6).all()
        for field in ("write_weights", "read_weights"):
            assert (found[field][..., 0] == 1).all()
            assert not found[field][..., 1:].any()


def test_initial_state_in_another_dtype(make: Callable[..., Circuit]) -> None:
    assert all(t.dtype is torch.float32 for t in make().initial_state(2, dtype=torch.float32))
    assert all(t.is_meta for t in make().initial_state(2, device="meta"))


def test_attributes_show_the_state(make: Callable[..., Circuit]) -> None:
    circuit = make()
    _, state = circuit.unroll(inputs())
    steps(circuit, inputs())
    for field, value in attributes(circuit).items():
        torch.testing.assert_close(value, getattr(state, field))
    assert torch.equal(circuit.accessor.read_heads.wl_prev_vb, circuit.accessor.read_heads.wl_curr_vb)
    circuit._reset_states()
    assert torch.equal(circuit.read_vec_vb, circuit.initial_state(1).read_vectors)


def test_a_part_resets_its_part(make: Callable[..., Circuit]) -> None:
    circuit = make()
    steps(circuit, inputs())
    circuit.accessor.memory._reset_states()
    circuit.controller._reset_states()
    initial, state = circuit.initial_state(2), circuit.state
    reset = {field for field in state._fields if torch.equal(getattr(state, field), getattr(initial, field))}
    assert reset == {"memory", "hidden", "cell"}


def test_sequences_of_other_batches(make: Callable[..., Circuit]) -> None:
    circuit = make(batch_size=4)
    for batch in (4, 3, 1):
        circuit._reset_states()
        torch.testing.assert_close(steps(circuit, inputs(3, batch)), circuit.unroll(inputs(3, batch))[0])
    with pytest.raises(ValueError, match="batch must be that of the sequence under way, 1, got 4"):
        circuit(inputs(1, 4)[0])


def test_state_can_be_assigned(make: Callable[..., Circuit]) -> None:
    circuit, x = make(), inputs()
    _, state = circuit.unroll(x[:3])
    expected, _ = circuit.unroll(x[3:], state)
    circuit.state = state
    torch.testing.assert_close(steps(circuit, x[3:]), expected)


def test_attributes_can_be_assigned(make: Callable[..., Circuit]) -> None:
    """A user's initial memory and read vectors get their gradients."""
    circuit, x = make(), inputs()
    memory, read = normal(2, 7, 5, seed=1), normal(2, 15, seed=2)
    circuit._reset_states()
    circuit.accessor.memory.memory_vb = memory
    circuit.read_vec_vb = read  # in the shape that it has in the reference
    circuit.controller.lstm_hidden_vb = (circuit.initial_state(2).hidden + 0.5, circuit.initial_state(2).cell)
    found = torch.autograd.grad(steps(circuit, x).sum(), [memory, read])
    initial = circuit.initial_state(2)
    state = initial._replace(memory=memory, read_vectors=read.view(2, 3, 5), hidden=initial.hidden + 0.5)
    torch.testing.assert_close(found, torch.autograd.grad(circuit.unroll(x, state)[0].sum(), [memory, read]))
    assert all(g.any() for g in found)


def test_what_cannot_be_assigned(make: Callable[..., Circuit]) -> None:
    circuit = make()
    with pytest.raises(ValueError, match=r"External2DMemory: memory_vb must be \[B, 7, 5\], got \[2, 5, 7\]"):
        circuit.accessor.memory.memory_vb = torch.zeros(2, 5, 7)
    with pytest.raises(TypeError, match="read_vec_vb must be a tensor, got float"):
        circuit.read_vec_vb = 0.0
    kind, state = type(circuit).__name__, circuit.initial_state(2)
    other = NTMCircuit if kind == "DNCCircuit" else DNCCircuit
    with pytest.raises(TypeError, match=f"{kind}: state must be of type {type(state).__name__}, got tuple"):
        circuit.state = tuple(state)
    with pytest.raises(TypeError, match=f"{kind}: state must be of type {type(state).__name__}, got"):
        circuit.state = other(**SIZES).initial_state(2)
    with pytest.raises(ValueError, match=rf"{kind}: state.memory must be \[B, 7, 5\], got \[2, 5, 7\]"):
        circuit.state = state._replace(memory=state.memory.mT)
    with pytest.raises(TypeError, match=f"{kind}.unroll: state must be of type {type(state).__name__}, got list"):
        circuit.unroll(inputs(), list(state))
    with pytest.raises(TypeError, match=f"{kind}.unroll: state.cell must be a tensor, got NoneType"):
        circuit.unroll(inputs(), state._replace(cell=None))


def test_gradients_of_input_and_initial_state(make: Callable[..., Circuit]) -> None:
    circuit, x = make(), inputs().requires_grad_()
    state = type(circuit.state)(*(t.requires_grad_() for t in circuit.initial_state(2)))
    found = torch.autograd.grad(circuit.unroll(x, state)[0].sum(), [x, *state])
    circuit.state = state
    torch.testing.assert_close(found, torch.autograd.grad(steps(circuit, x).sum(), [x, *state]))


# ---- what autograd allows ---------------------------------------------------------------------------------------------------


def test_truncated_backpropagation(make: Callable[..., Circuit]) -> None:
    circuit, x = make(), inputs()
    _, state = circuit.unroll(x[:3])
    y, _ = circuit.unroll(x[3:], state.detach())
    expected = gradients(circuit, y)
    steps(circuit, x[:3])
    circuit.state = circuit.state.detach()
    torch.testing.assert_close(gradients(circuit, steps(circuit, x[3:])), expected)


def test_two_continuations_of_one_state(make: Callable[..., Circuit]) -> None:
    circuit, x, z = make(), inputs(), inputs(4)
    first, state = circuit.unroll(x)
    expected = gradients(circuit, torch.cat([first, circuit.unroll(z, state)[0], circuit.unroll(-z, state)[0]]))
    ys = [steps(circuit, x)]
    forked = circuit.state
    for continuation in (z, -z):
        circuit.state = forked
        ys.append(steps(circuit, continuation))
    torch.testing.assert_close(gradients(circuit, torch.cat(ys)), expected)


def test_two_sequences_before_backward(make: Callable[..., Circuit], run: Run) -> None:
    circuit, x, z = make(), inputs(), inputs(4, 3)
    expected = [gradients(circuit, run(circuit, t)) for t in (x, z)]
    ys = [run(circuit, t) for t in (x, z)]
    torch.testing.assert_close([gradients(circuit, y) for y in ys], expected)


def test_backward_of_some_steps(make: Callable[..., Circuit], run: Run) -> None:
    """The loss sees the second and the fourth of six steps only."""
    circuit, x = make(), inputs()
    expected = gradients(circuit, circuit.unroll(x[:4])[0][[1, 3]])
    torch.testing.assert_close(gradients(circuit, run(circuit, x)[[1, 3]]), expected)


def test_backward_twice(make: Callable[..., Circuit], run: Run) -> None:
    circuit = make()
    loss = run(circuit, inputs()).square().sum()
    first = torch.autograd.grad(loss, list(circuit.parameters()), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, list(circuit.parameters())), first)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.parametrize("name", ["controller.in_2_hid.weight_hh", "hid_to_out.weight"])
def test_parameters_changed_before_backward(make: Callable[..., Circuit], run: Run, name: str) -> None:
    circuit = make()
    loss = run(circuit, inputs()).sum()
    with torch.no_grad():
        circuit.get_parameter(name).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_hooks(make: Callable[..., Circuit]) -> None:
    """On the outputs of steps and, between steps, on the state."""
    circuit, x = make(), inputs(3)
    first = circuit(x[0])
    memory = circuit.accessor.memory.memory_vb
    second = circuit(x[1])
    seen: list[Tensor] = []
    memory.register_hook(seen.append)
    second.register_hook(lambda grad: 2 * grad)
    found = torch.autograd.grad(first.sum() + second.sum(), list(circuit.parameters()))
    assert len(seen) == 1
    assert seen[0].any()
    y, _ = circuit.unroll(x[:2])
    torch.testing.assert_close(found, torch.autograd.grad(y[0].sum() + 2 * y[1].sum(), list(circuit.parameters())))


def test_without_gradients(make: Callable[..., Circuit], run: Run) -> None:
    circuit, x = make(), inputs()
    expected = run(circuit, x)
    with torch.no_grad():
        y = run(circuit, x)
    assert not y.requires_grad
    torch.testing.assert_close(y, expected.detach())
    for parameter in circuit.parameters():
        parameter.requires_grad_(False)
    assert not run(circuit, x).requires_grad


def test_some_parameters_are_frozen(make: Callable[..., Circuit], run: Run) -> None:
    circuit, x = make(), inputs()
    expected = dict(zip(dict(circuit.named_parameters()), gradients(circuit, run(circuit, x)), strict=True))
    circuit.controller.requires_grad_(False)
    run(circuit, x).square().sum().backward()
    for name, parameter in circuit.named_parameters():
        if name.startswith("controller."):
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, expected[name])


# ---- what Python allows -----------------------------------------------------------------------------------------------------


def pickled(circuit: Circuit) -> Circuit:
    copied: Circuit = pickle.loads(pickle.dumps(circuit))
    return copied


def saved(circuit: Circuit) -> Circuit:
    file = io.BytesIO()
    torch.save(circuit, file)
    file.seek(0)
    loaded: Circuit = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved])
def test_copies(make: Callable[..., Circuit], copied: Callable[[Circuit], Circuit]) -> None:
    """In the middle of a sequence, which the copy goes on with, without a gradient to what was before."""
    circuit, x = make(), inputs()
    steps(circuit, x[:3])
    other = copied(circuit)
    assert not any(t.requires_grad for t in other.state)
    torch.testing.assert_close(steps(other, x[3:]), steps(circuit, x[3:]))
    other._reset_states()
    assert not torch.equal(circuit.read_vec_vb, other.read_vec_vb)
    assert torch.equal(other.accessor.memory.memory_vb, other.initial_state(1).memory)
    torch.testing.assert_close(steps(other, x), circuit.unroll(x)[0])


def test_conversion_between_steps(make: Callable[..., Circuit]) -> None:
    circuit, x = make(dtype=torch.float32), inputs()
    steps(circuit, x[:3].float())
    circuit.double()
    assert all(t.dtype is torch.float64 for t in circuit.state)
    assert all(t.dtype is torch.float64 for t in attributes(circuit).values())
    steps(circuit, x[3:])
    circuit._reset_states()
    assert all(t.dtype is torch.float64 for t in attributes(circuit).values())


def test_functional_call(make: Callable[..., Circuit]) -> None:
    circuit, x = make(), inputs(1)
    other = {name: 0.5 * p for name, p in circuit.named_parameters()}
    y = torch.func.functional_call(circuit, other, x[0])
    circuit._reset_states()
    circuit.load_state_dict(other)
    torch.testing.assert_close(circuit(x[0]), y)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_unroll(make: Callable[..., Circuit], backend: str) -> None:
    """Without a state, and going on from one."""
    torch.compiler.reset()
    circuit = make()
    compiled = torch.compile(circuit.unroll, fullgraph=True, backend=backend)
    for x, before in ((inputs(1), None), (inputs(), circuit.initial_state(2))):
        y, state = compiled(x, before)
        expected, last = circuit.unroll(x, before)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(tuple(state), tuple(last))
        torch.testing.assert_close(gradients(circuit, y), gradients(circuit, expected))
