from typing import TypedDict

class _BuildInfo(TypedDict):
    version: str
    torch: str
    compiler: str
    options: str
    isa: str
    cuda: str | None
    cuda_archs: str | None

def build_info() -> _BuildInfo: ...
