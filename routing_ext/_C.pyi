from collections.abc import Sequence
from typing import Any, TypedDict

from torch import Tensor, nn

class _BuildInfo(TypedDict):
    version: str
    torch: str
    compiler: str
    options: str
    isa: str
    cuda: str | None
    cuda_archs: str | None

def build_info() -> _BuildInfo: ...
def parameters_of(
    modules: list[nn.Module], cls: type, names: tuple[str, ...], /
) -> tuple[list[Tensor] | None, ...] | None: ...
def select_linear(
    x: Tensor, actions: Tensor, mask: Tensor | None, modules: list[nn.Module], cls: type, relu: bool, /
) -> Tensor | None: ...
def memory_sequence(
    model: str,
    options: Sequence[float],
    x: Tensor,
    state: Sequence[Tensor | None],
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    resets: Tensor | None,
    reset_memory: Tensor | None,
    sizes: Sequence[int],
    clip_value: float,
    link_every: int,
    /,
) -> tuple[Tensor, tuple[Tensor, ...]] | None: ...
def memory_stepper(address: int, /) -> Any: ...
def memory_step(stepper: Any, x: Tensor, weights: Sequence[Tensor], /) -> Any: ...
def values_at(
    expected: list[tuple[dict[str, Any], str, Any]], wanted: list[tuple[dict[str, Any], str]], /
) -> list[Any] | None: ...
