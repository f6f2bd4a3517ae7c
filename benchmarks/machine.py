"""Which machine this is."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

import routing_ext


def _cpuinfo() -> dict[str, str]:
    """Of the first core, from Linux; empty elsewhere."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text().split("\n\n")[0]
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _zen(cpuinfo: dict[str, str]) -> str:
    """AMD's virtual machines often tell no more of the model than its family."""
    if cpuinfo.get("vendor_id") != "AuthenticAMD":
        return ""
    family, model = int(cpuinfo["cpu family"]), int(cpuinfo["model"])
    if family == 0x17:
        return "zen2" if model >= 0x30 else "zen"
    if family == 0x19:
        return "zen4" if 0x10 <= model <= 0x1F or model >= 0x60 else "zen3"
    return "zen5" if family == 0x1A else ""


def _memory_gib() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)


def describe_machine() -> dict[str, Any]:
    cpuinfo = _cpuinfo()
    name = cpuinfo.get("model name") or platform.processor() or platform.machine()
    zen = _zen(cpuinfo)
    build = routing_ext.build_info()
    return {
        "cpu": f"{name} ({zen.replace('zen', 'Zen ').strip()})" if zen else name,
        "cores": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "os": f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {platform.system()} {platform.machine()}"
        if platform.system() == "Linux"
        else platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "build": dict(build),
    }


def machine_slug() -> str:
    """A file name for this kind of machine: ``amd-epyc-zen4-2c``."""
    cpuinfo = _cpuinfo()
    name = cpuinfo.get("model name") or platform.processor() or platform.machine()
    name = re.sub(r"\((r|tm)\)|\bcpu\b|@.*|\d+-core|\bprocessor\b", " ", name.lower())
    words = [*re.findall(r"[a-z0-9]+", name), _zen(cpuinfo), f"{os.cpu_count()}c"]
    return "-".join(word for word in words if word)
