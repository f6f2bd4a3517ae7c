"""Loads the compiled extension, and refuses one that does not fit."""

from __future__ import annotations

from typing import TypedDict

import torch

from ._version import __version__


class BuildInfo(TypedDict):
    version: str
    """Of routing_ext, when the extension was compiled."""
    compiler: str
    debug: bool
    torch: str
    """The torch that the extension was compiled against."""
    isa: str
    """The instruction set of the CPU kernels in use: baseline, avx2 or avx512."""
    cuda: str | None
    """Version of the CUDA toolkit, or None where no CUDA kernels were compiled."""
    cuda_archs: list[str] | None
    """What the CUDA kernels were compiled for, such as ["8.0", "9.0+PTX"]."""


_REMEDY = (
    "Compile it for the torch of this environment with `pip install --no-build-isolation .` in the source folder of routing_ext "
    "(`make build` in a checkout)."
)


def _major_minor(version: str) -> list[str]:
    return version.split(".")[:2]


def _load() -> BuildInfo:
    try:
        from . import _C
    except ImportError as error:
        raise ImportError(
            f"routing_ext cannot load its compiled extension under torch {torch.__version__}: {error}. {_REMEDY}"
        ) from error
    try:
        info = _C.build_info()
    except RuntimeError as error:
        raise ImportError(f"routing_ext: {error}") from None
    if info["version"] != __version__:
        raise ImportError(f"routing_ext is version {__version__}, but its compiled extension {info['version']}. {_REMEDY}")
    if _major_minor(info["torch"]) != _major_minor(torch.__version__):
        raise ImportError(
            f"routing_ext's extension was compiled for torch {info['torch']}, but this is torch {torch.__version__}. {_REMEDY}"
        )
    archs = info["cuda_archs"]
    return {**info, "cuda_archs": archs.split(";") if archs else None}


_info = _load()


def build_info() -> BuildInfo:
    """How the extension was compiled, and what it uses on this machine."""
    return _info.copy()
