from typing import TypedDict

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
