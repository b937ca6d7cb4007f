"""What the machine is: its chip, its cores, its operating system."""

import os
import platform
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlxroles.machine import apple


@dataclass(frozen=True)
class Chip:
    """The machine in words and numbers; None for what it does not say."""

    name: str
    """E.g. ``Apple M3 Max``."""
    cores: int
    """That this process may use."""
    model: str | None = None
    """Of the machine, e.g. ``Mac15,9``."""
    fast_cores: int | None = None
    """Performance cores, where there are two kinds."""
    system: str = ""
    """E.g. ``macOS 15.2`` or ``Ubuntu 24.04 LTS``."""
    macos: tuple[int, ...] | None = None
    """Version of macOS; None elsewhere."""


def chip() -> Chip:
    """What the system says."""
    return of_mac() if sys.platform == "darwin" else of_linux()


def of_mac(sysctl: Callable[[str], bytes | None] = apple.sysctl) -> Chip:
    """From the kernel's variables."""
    version = apple.text(sysctl("kern.osproductversion")) or platform.mac_ver()[0]
    return Chip(
        apple.text(sysctl("machdep.cpu.brand_string")) or platform.machine(),
        apple.number(sysctl("hw.logicalcpu")) or os.cpu_count() or 1,
        apple.text(sysctl("hw.model")),
        apple.number(sysctl("hw.perflevel0.logicalcpu")),
        f"macOS {version}".strip(),
        tuple(int(part) for part in re.findall(r"\d+", version)),
    )


def of_linux(root: Path = Path("/")) -> Chip:
    """From ``/proc`` and ``/etc`` below ``root``."""
    name = re.search(r"^model name\s*:\s*(.+)$", _read(root / "proc/cpuinfo"), re.MULTILINE)
    release = re.search(r'^PRETTY_NAME="?([^"\n]+)', _read(root / "etc/os-release"), re.MULTILINE)
    try:
        cores = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        cores = os.cpu_count() or 1
    return Chip(
        name[1].strip() if name else platform.machine(),
        cores,
        system=release[1] if release else f"Linux {platform.release()}",
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
