"""routing-ext info: what a report of a bug should name."""

from __future__ import annotations

import dataclasses
import importlib.metadata

import torch

from ..training.run import describe_environment

PACKAGES = ("tyro", "pyyaml", "tqdm", "tensorboard", "matplotlib", "pillow", "visdom", "numpy", "scikit-learn", "mlxtend")


@dataclasses.dataclass(frozen=True)
class Options:
    """routing-ext info shows versions, build and machine."""


def run(options: Options) -> None:
    """Prints a line for each."""
    found = describe_environment()
    build = found["build"]
    archs = f" for {', '.join(build['cuda_archs'])}" if build["cuda_archs"] else ""
    made = [word for word in ("debug", "sanitize") if build[word]]
    rows = {
        "routing_ext": found["routing_ext"],
        "compiled by": f"{build['compiler']}, for torch {build['torch']}{' '.join(['', *made])}",
        "CPU kernels": f"{build['isa']} (ROUTING_EXT_ISA chooses another)",
        "CUDA kernels": f"CUDA {build['cuda']}{archs}" if build["cuda"] else "none in this build",
        "torch": f"{found['torch']}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        "GPU": found["gpu"] or "none that torch can use",
        "Python": found["python"],
        "machine": f"{found['machine']}, {found['cpus']} CPUs",
        "system": found["system"],
        "packages": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
    }
    for name, text in rows.items():
        print(f"{name:14}{text}")


def version(package: str) -> str:
    """Of an installed package, or "missing"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"
