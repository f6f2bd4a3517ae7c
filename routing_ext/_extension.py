"""Loads the compiled extension, and refuses one that does not fit."""

from __future__ import annotations

from typing import TypedDict

import torch

from ._version import __version__


class BuildInfo(TypedDict):
    """What :func:`build_info` tells."""

    version: str
    """Of routing_ext."""
    torch: str
    """The version of torch that the extension was compiled for."""
    compiler: str
    """The C++ compiler and its version."""
    debug: bool
    """Compiled with ROUTING_EXT_DEBUG=1."""
    sanitize: bool
    """Compiled with ROUTING_EXT_SANITIZE=1."""
    isa: str
    """The instruction set of the CPU kernels in use: baseline, avx2 or avx512. ROUTING_EXT_ISA chooses another."""
    cuda: str | None
    """Version of the CUDA toolkit, or None if there are no CUDA kernels."""
    cuda_archs: list[str] | None
    """What the CUDA kernels were compiled for, as in ``["8.0", "9.0+PTX"]``, or None."""


_REMEDY = (
    "Compile it for this environment: run `make build` in a checkout of routing_ext, or `pip install --no-build-isolation .` "
    "for an installed package."
)


def _load() -> BuildInfo:
    try:
        from . import _C
    except ImportError as error:
        raise ImportError(
            f"routing_ext: cannot load the compiled extension under torch {torch.__version__}: {error}\n{_REMEDY}"
        ) from error
    try:
        info = _C.build_info()
    except RuntimeError as error:
        raise ImportError(f"routing_ext: {error}") from None
    if info["version"] != __version__:
        raise ImportError(
            f"routing_ext: this is version {__version__}, its extension was compiled as {info['version']}\n{_REMEDY}"
        )
    if info["torch"].split(".")[:2] != torch.__version__.split(".")[:2]:
        raise ImportError(
            f"routing_ext: this is torch {torch.__version__}, the extension was compiled for torch {info['torch']}\n{_REMEDY}"
        )
    options = info["options"].split(",")
    return {
        "version": info["version"],
        "torch": info["torch"],
        "compiler": info["compiler"],
        "debug": "debug" in options,
        "sanitize": "sanitize" in options,
        "isa": info["isa"],
        "cuda": info["cuda"],
        "cuda_archs": info["cuda_archs"].split(";") if info["cuda_archs"] else None,
    }


_info = _load()


def build_info() -> BuildInfo:
    """How the extension was compiled, and which CPU kernels run on this machine."""
    return _info.copy()
