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
    modules: list[nn.Module], cls: type, names: tuple[str, ...], types: tuple[type, ...], /
) -> tuple[list[Tensor] | None, ...] | None: ...
