"""Which modules Selection takes for linear layers. One that is wrongly recognised would compute something else, silently."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same, normal
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from routing_ext.routing import Selection
from routing_ext.routing.linear_stages import linear_stages


def shapes(*modules: nn.Module) -> list[tuple[int, ...]] | None:
    """(out_features, in_features, bias, relu) of each stage."""
    stages = linear_stages(modules)
    return None if stages is None else [(*s.weights[0].shape, s.biases is not None, s.relu) for s in stages]


class InitOnly(nn.Linear):
    def __init__(self, d: int, o: int, gain: float = 2.0) -> None:
        super().__init__(d, o)
        self.gain = gain

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)


class LinearWithRelu(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        """The spelling of the published examples."""
        return F.relu(nn.Linear.forward(self, input))


class SuperThenRelu(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(super().forward(x))


class OldSuperThenRelu(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super(OldSuperThenRelu, self).forward(x), inplace=True)  # noqa: UP008


class Spelled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        return y.relu()


class FullNames(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.relu(super().forward(x))


class Inherits(Spelled):
    pass


def local_class() -> type[nn.Linear]:
    class Local(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu_(super(Local, self).forward(x))  # noqa: UP008

    return Local


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("cls", "relu"),
    [
        (nn.Linear, False),
        (LinearWithRelu, True),
        (SuperThenRelu, True),
        (OldSuperThenRelu, True),
        (Spelled, True),
        (FullNames, True),
        (Inherits, True),
        (local_class(), True),
    ],
)
def test_linear_with_or_without_relu(cls: type[nn.Linear], relu: bool, bias: bool) -> None:
    module = cls(3, 2, bias=bias)
    assert shapes(module, cls(3, 2, bias=bias)) == [(2, 3, bias, relu)]
    (stage,) = linear_stages([module]) or []
    assert stage.weights[0] is module.weight
    x = normal(4, 3, seed=0, dtype=torch.float32)
    y = F.linear(x, stage.weights[0], stage.biases[0] if stage.biases else None)
    assert_same(y.relu() if stage.relu else y, module(x), 1e-6)


@pytest.mark.parametrize("order", [(False, True), (True, False)])
def test_bias_of_the_first_instance_does_not_decide(order: tuple[bool, bool]) -> None:
    class Fresh(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(super().forward(x))

    for bias in order:
        assert shapes(Fresh(3, 2, bias=bias)) == [(2, 3, bias, True)]


def test_subclass_that_changes_nothing() -> None:
    assert shapes(InitOnly(3, 2)) == [(2, 3, True, False)]


def linear(d: int = 3, o: int = 3) -> nn.Linear:
    return nn.Linear(d, o)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Sequential(linear()), [(3, 3, True, False)]),
        (nn.Sequential(linear(), nn.ReLU()), [(3, 3, True, True)]),
        (nn.Sequential(linear(), nn.ReLU(inplace=True), nn.ReLU()), [(3, 3, True, True)]),
        (nn.Sequential(linear(3, 5), nn.ReLU(), linear(5, 2)), [(5, 3, True, True), (2, 5, True, False)]),
        (nn.Sequential(linear(3, 5), linear(5, 2), nn.ReLU()), [(5, 3, True, False), (2, 5, True, True)]),
        (nn.Sequential(LinearWithRelu(3, 5), linear(5, 2)), [(5, 3, True, True), (2, 5, True, False)]),
    ],
    ids=str,
)
def test_sequential(module: nn.Module, expected: list[tuple[int, ...]]) -> None:
    assert shapes(module, copy.deepcopy(module)) == expected


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Sequential(linear(), nn.ReLU()), linear()),
        nn.Sequential(linear(), nn.Sequential()),
        nn.Sequential(linear(), nn.Sequential(nn.ReLU())),
        nn.Sequential(linear(), nn.Sequential(nn.Sequential())),
    ],
    ids=str,
)
def test_nested_sequential(module: nn.Module) -> None:
    """May be recognised or not, but not as something else."""
    check_same_result([module, copy.deepcopy(module)])


@pytest.mark.parametrize(
    "modules",
    [
        [linear(3, 2), linear(3, 4)],
        [linear(3, 2), linear(4, 2)],
        [linear(), nn.Linear(3, 3, bias=False)],
        [linear(), LinearWithRelu(3, 3)],
        [linear(), nn.Sequential(linear(), linear())],
        [nn.Sequential(linear(3, 4), linear(4, 3)), nn.Sequential(linear(3, 5), linear(5, 3))],
        [linear(), nn.Identity()],
        [],
    ],
    ids=str,
)
def test_modules_must_be_alike(modules: list[nn.Module]) -> None:
    assert linear_stages(modules) is None


# ---- what must not be recognised --------------------------------------------------------------------------------------------

SCALE = 2.0


def relu(x: Tensor) -> Tensor:
    """Not what its name says."""
    return torch.relu(x) * SCALE if SCALE else x


class ReadsTraining(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return F.relu(y) if self.training else y


class ReadsGlobal(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return F.relu(y) if SCALE else y


class ReadsBias(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x)) if self.bias is None else F.linear(x, self.weight)


class ReadsLambda(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return (lambda y: F.relu(y) if SCALE else y)(super().forward(x))


class CallsGlobalRelu(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return relu(super().forward(x))


class DefaultArgument(nn.Linear):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return F.relu(super().forward(x) * scale)


class UnusedDefaultArgument(nn.Linear):
    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.relu(F.linear(x, self.weight, self.bias if bias is None else bias))


class Scales(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x)) * 2


class ScalesInput(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x * 2))


class Residual(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x)) + x


class Relu6(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(super().forward(x))


class LeakyRelu(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(super().forward(x))


class ReluFirst(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.relu(x))


class WithoutBias(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.linear(x, self.weight, None))


class Transposed(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.linear(x, self.weight.T, self.bias))


class OwnActivation(nn.Linear):
    """An attribute that is called relu, and may be anything."""

    def __init__(self, d: int, o: int) -> None:
        super().__init__(d, o)
        self.relu = nn.LeakyReLU(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(super().forward(x))


class OwnFunction(nn.Linear):
    """As above, and looking like a ReLU at the first instance."""

    def __init__(self, d: int, o: int) -> None:
        super().__init__(d, o)
        self.relu = F.relu

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(super().forward(x))


class OwnLinearMethod(nn.Linear):
    def linear(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias if self.training else None)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.linear(x))


class BranchingParent(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 if self.training else 3)


class ReluOfBranchingParent(BranchingParent):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class ScalingMixin(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 3


class ReluOfMixin(ScalingMixin, nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class CallOverride(nn.Linear):
    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) * 2


class CallOverrideWithRelu(LinearWithRelu):
    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) * 2


class CallImplOverride(nn.Linear):
    def _call_impl(self, x: Tensor) -> Tensor:
        return super()._call_impl(x) * 2


class PropertyWeight(nn.Linear):
    @property
    def weight(self) -> Tensor:
        if "weight" not in self._parameters:
            raise AttributeError
        return self._parameters["weight"] * 2


class PropertyWeightWithRelu(PropertyWeight):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class GetattrOverride(nn.Linear):
    def __getattr__(self, name: str) -> object:
        value = super().__getattr__(name)
        return value * 2 if name == "weight" else value


class Counts(nn.Linear):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return F.relu(super().forward(x))


class NoGrad(nn.Linear):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class Variadic(nn.Linear):
    def forward(self, *xs: Tensor) -> Tensor:
        return F.relu(super().forward(*xs))


class Prints(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        print(end="")
        return F.relu(super().forward(x))


class SubclassOfRelu(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x) * 2


class SubclassOfSequential(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x


def closure_over(flag: list[int]) -> type[nn.Linear]:
    class Closure(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return F.relu(y) if flag else y

    return Closure


ADVERSARIAL: list[Callable[[int, int], nn.Module]] = [
    ReadsTraining,
    ReadsGlobal,
    ReadsBias,
    ReadsLambda,
    CallsGlobalRelu,
    DefaultArgument,
    UnusedDefaultArgument,
    Scales,
    ScalesInput,
    Residual,
    Relu6,
    LeakyRelu,
    ReluFirst,
    WithoutBias,
    Transposed,
    OwnActivation,
    OwnFunction,
    OwnLinearMethod,
    BranchingParent,
    ReluOfBranchingParent,
    ReluOfMixin,
    CallOverride,
    CallOverrideWithRelu,
    CallImplOverride,
    PropertyWeight,
    PropertyWeightWithRelu,
    GetattrOverride,
    Counts,
    NoGrad,
    Variadic,
    Prints,
    closure_over([1]),
    lambda d, o: nn.Identity(),
    lambda d, o: nn.ReLU(),
    lambda d, o: nn.Sequential(),
    lambda d, o: nn.Sequential(nn.ReLU()),
    lambda d, o: nn.Sequential(nn.ReLU(), nn.Linear(d, o)),
    lambda d, o: nn.Sequential(nn.Linear(d, o), nn.ReLU6()),
    lambda d, o: nn.Sequential(nn.Linear(d, o), SubclassOfRelu()),
    lambda d, o: nn.Sequential(nn.Linear(d, o), nn.Dropout(0)),
    lambda d, o: SubclassOfSequential(nn.Linear(d, o)),
    lambda d, o: nn.Sequential(Scales(d, o), nn.ReLU()),
]


def check_same_result(modules: list[nn.Module]) -> None:
    """Selection computes what the modules do, in training mode and out of it."""
    x, actions = normal(6, 3, seed=0, dtype=torch.float32), torch.tensor([1, 0, 1, 1, 0, 1])
    for training in (True, False):
        for m in modules:
            m.train(training)
        expected = torch.stack([modules[int(a)](row) for row, a in zip(x, actions, strict=True)])
        ys, _, _ = Selection(*modules).train(training)(x, [None] * 6, actions)
        assert_same(ys, expected, 1e-6)


@pytest.mark.parametrize("make", ADVERSARIAL)
def test_not_recognised(make: Callable[..., nn.Module]) -> None:
    modules = [make(3, 3) for _ in range(2)]
    assert linear_stages(modules) is None
    check_same_result(modules)


def test_instances_of_one_class_that_differ() -> None:
    modules = [OwnFunction(3, 3), OwnFunction(3, 3)]
    modules[1].relu = torch.tanh
    check_same_result(modules)


def test_forward_set_on_an_instance() -> None:
    modules = [nn.Linear(3, 3), nn.Linear(3, 3)]
    assert linear_stages(modules) is not None
    plain = modules[1].forward
    modules[1].forward = lambda x: plain(x) * 2  # type: ignore[method-assign]
    assert linear_stages(modules) is None
    check_same_result(modules)


@pytest.mark.parametrize("inside_sequential", [False, True])
@pytest.mark.parametrize(
    "register",
    [
        lambda m: m.register_forward_hook(lambda module, args, y: y * 2),
        lambda m: m.register_forward_hook(lambda module, args, kwargs, y: y * 2, with_kwargs=True),
        lambda m: m.register_forward_pre_hook(lambda module, args: (args[0] * 2,)),
        lambda m: m.register_full_backward_hook(lambda module, grad_input, grad_output: None),
        lambda m: m.register_full_backward_pre_hook(lambda module, grad_output: None),
    ],
    ids=["forward", "forward with kwargs", "forward_pre", "backward", "backward_pre"],
)
def test_hooks(register: Callable[[nn.Module], torch.utils.hooks.RemovableHandle], inside_sequential: bool) -> None:
    modules: list[nn.Module] = [nn.Linear(3, 3), nn.Linear(3, 3)]
    handle = register(modules[1])
    if inside_sequential:
        modules = [nn.Sequential(m, nn.ReLU()) for m in modules]
    assert linear_stages(modules) is None
    check_same_result(modules)
    handle.remove()
    assert linear_stages(modules) is not None


@pytest.mark.parametrize("relu", [nn.ReLU(), nn.Sequential(nn.Linear(3, 3), nn.ReLU())[1]])
def test_hook_on_a_relu(relu: nn.Module) -> None:
    with relu.register_forward_hook(lambda module, args, y: y * 2):
        assert linear_stages([nn.Sequential(nn.Linear(3, 3), relu)]) is None


def test_global_hook() -> None:
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, y: y)
    try:
        assert linear_stages([nn.Linear(3, 3)]) is None
    finally:
        handle.remove()
    assert linear_stages([nn.Linear(3, 3)]) is not None


@pytest.mark.parametrize(
    "change",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        lambda m: nn.utils.weight_norm(m),
        lambda m: nn.utils.spectral_norm(m),
        lambda m: prune.l1_unstructured(m, "weight", 0.5),
        lambda m: prune.l1_unstructured(m, "bias", 0.5),
    ],
    ids=["weight_norm", "spectral_norm", "old weight_norm", "old spectral_norm", "prune weight", "prune bias"],
)
@pytest.mark.parametrize("cls", [nn.Linear, LinearWithRelu])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_parametrisations(cls: type[nn.Linear], change: Callable[[nn.Module], nn.Module]) -> None:
    modules = [cls(3, 3), cls(3, 3)]
    for m in modules:
        change(m)
        m.eval()  # spectral_norm changes its state in training mode
    assert linear_stages(modules) is None
    x, actions = normal(3, 3, seed=0, dtype=torch.float32), torch.tensor([1, 0, 1])
    expected = torch.cat([modules[int(a)](x[i : i + 1]) for i, a in enumerate(actions)])
    ys, _, _ = Selection(*modules).eval()(x, [None] * 3, actions)
    assert_same(ys, expected, 1e-6)


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_parameter_replaced_by_a_tensor(name: str) -> None:
    modules = [nn.Linear(3, 3), nn.Linear(3, 3)]
    for m in modules:
        value = getattr(m, name).detach() * 2
        delattr(m, name)
        setattr(m, name, value)
    assert linear_stages(modules) is None
    check_same_result(list(modules))


def test_tensor_subclass_as_weight() -> None:
    class Doubled(Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            y = super().__torch_function__(func, types, args, kwargs or {})
            return y.as_subclass(Tensor) * 2 if func is F.linear else y

    modules = [nn.Linear(3, 3) for _ in range(2)]
    for m in modules:
        m.weight = nn.Parameter(m.weight.detach().as_subclass(Doubled))
    assert linear_stages(modules) is None
    check_same_result(list(modules))


def test_unused_modules_do_not_matter() -> None:
    """Only the modules that run have to be alike."""
    modules = [nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)), nn.Linear(3, 2)]
    x = normal(4, 3, seed=0, dtype=torch.float32)
    for actions in ([0, 2, 0, 0], [0, 1, 2, 2], [1, 1, 1, 1]):
        ys, _, _ = Selection(*modules)(x, [None] * 4, torch.tensor(actions))
        assert_same(ys, torch.stack([modules[a](row) for row, a in zip(x, actions, strict=True)]), 1e-6)


def test_recognition_leaves_the_module_alone() -> None:
    class Odd(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(F.linear(x, self.weight * 2, self.bias))

    module = Odd(3, 2)
    before = dict(vars(module))
    assert linear_stages([module]) is None
    assert vars(module) == before


def test_lazy_linear() -> None:
    modules = [nn.LazyLinear(3), nn.LazyLinear(3)]
    assert linear_stages(modules) is None
    x = normal(4, 3, seed=0, dtype=torch.float32)
    Selection(*modules)(x, [None] * 4, torch.tensor([0, 1, 0, 1]))
    assert shapes(*modules) == [(3, 3, True, False)]
    check_same_result(list(modules))
