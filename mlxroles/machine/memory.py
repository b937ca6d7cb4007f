"""Memory of the system and of this process, and when it is time to ask for less."""

import os
import re
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlxroles.machine import apple

Level = Literal["ok", "tight", "critical"]

TIGHT = 0.10, 256 << 20, 4 << 30
CRITICAL = 0.04, 128 << 20, 1 << 30
"""Share of the memory below which a system is that far gone; at least and at most so many bytes."""
LEAVE = 1.5
"""A level is left when there is this many times what it is entered with."""
EVERY = 1.0
"""Seconds between two looks at the system."""

_MAC_LEVELS: dict[int, Level] = {1: "ok", 2: "tight", 4: "critical"}
_SEVERITY = {"ok": 0, "tight": 1, "critical": 2}
_FREE_PAGES = ("Pages free", "Pages speculative", "Pages purgeable", "File-backed pages")


@dataclass(frozen=True)
class SystemMemory:
    """Bytes, as far as the system lets this process have them."""

    total: int
    """Of the machine, or what its container may take."""
    free: int
    """What can be had without swapping; caches of files count as free."""
    swap_used: int | None
    process: int | None
    """What this process takes now."""
    level: Level | None = None
    """How the system itself calls its state; None where it has no word for it."""


def system() -> SystemMemory | None:
    """What the system says now; None where it says nothing that is understood."""
    return of_mac() if sys.platform == "darwin" else of_linux()


def total() -> int:
    """Bytes of the machine, or what its container may take."""
    found = system()
    return found.total if found else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# --- Linux ------------------------------------------------------------------------------------


def of_linux(root: Path = Path("/")) -> SystemMemory | None:
    """From ``/proc`` and the limits of the control groups, below ``root``."""
    found = dict(re.findall(r"^(\w+):\s+(\d+)", _read(root / "proc/meminfo"), re.MULTILINE))
    if "MemTotal" not in found or "MemAvailable" not in found:
        return None
    kilo = {name: 1024 * int(value) for name, value in found.items()}
    total, free = kilo["MemTotal"], kilo["MemAvailable"]
    for limit, used in _groups(root):
        total, free = min(total, limit), min(free, max(0, limit - used))
    pages = _read(root / "proc/self/statm").split()
    return SystemMemory(
        total,
        free,
        max(0, kilo.get("SwapTotal", 0) - kilo.get("SwapFree", 0)),
        int(pages[1]) * os.sysconf("SC_PAGE_SIZE") if len(pages) > 1 else None,
    )


def _groups(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and use of every control group that this process is in; caches are no use."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        kinds, _, name = rest.partition(":")
        if "memory" in kinds.split(","):
            base, files = root / "sys/fs/cgroup/memory", _FILES_V1
        elif not kinds:
            base, files = root / "sys/fs/cgroup", _FILES_V2
        else:
            continue
        folder = base / name.strip("/")
        # in a container the name is that on the host, and the group itself is mounted at the base
        while folder != base.parent:
            found = _group(folder, *files)
            if found is not None:
                yield found
            folder = folder.parent


_FILES_V1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
_FILES_V2 = "memory.max", "memory.current", "inactive_file"


def _group(folder: Path, limit: str, usage: str, cached: str) -> tuple[int, int] | None:
    most, used = _read(folder / limit).strip(), _read(folder / usage).strip()
    if not most.isdigit() or not used.isdigit():
        return None
    spare = re.search(rf"^{cached} (\d+)", _read(folder / "memory.stat"), re.MULTILINE)
    return int(most), max(0, int(used) - (int(spare[1]) if spare else 0))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


# --- macOS ------------------------------------------------------------------------------------


def of_mac(
    sysctl: Callable[[str], bytes | None] = apple.sysctl,
    ask: Callable[..., str] = apple.ask,
) -> SystemMemory | None:
    """From the kernel's variables; ``vm_stat`` is asked where they do not say what is free."""
    total = apple.number(sysctl("hw.memsize"))
    if total is None:
        return None
    percent = apple.number(sysctl("kern.memorystatus_level"))
    free = vm_stat(ask("/usr/bin/vm_stat")) if percent is None else total * min(percent, 100) // 100
    swap = sysctl("vm.swapusage")  # total, available, used
    return SystemMemory(
        total,
        total if free is None else free,
        struct.unpack("=3Q", swap[:24])[2] if swap and len(swap) >= 24 else None,
        apple.footprint(os.getpid()),
        _MAC_LEVELS.get(apple.number(sysctl("kern.memorystatus_vm_pressure_level")) or 0),
    )


def vm_stat(text: str) -> int | None:
    """Bytes that can be had without swapping, from what ``vm_stat`` prints."""
    size = re.search(r"page size of (\d+) bytes", text)
    pages = dict(re.findall(r"^\"?([\w -]+)\"?:\s+(\d+)\.", text, re.MULTILINE))
    if size is None or "Pages free" not in pages:
        return None
    return int(size[1]) * sum(int(pages.get(name, 0)) for name in _FREE_PAGES)


# --- pressure ---------------------------------------------------------------------------------


class Pressure:
    """How near the system is to its end, cheap enough to be asked before every batch.

    What the system calls itself counts, and how much is left. A level that was reached is left
    only when there is clearly more, so that it does not change with every batch.

    Args:
        look: What the system says.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        look: Callable[[], SystemMemory | None] = system,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look, self._clock = look, clock
        self._level: Level = "ok"
        self._next = float("-inf")
        self.seen: SystemMemory | None = None
        """What the system said last."""
        self.looks = 0
        """How often it was asked."""

    def level(self) -> Level:
        """The level now; the system is asked at most once per second."""
        if self._clock() >= self._next:
            self._next = self._clock() + EVERY
            self.looks += 1
            self.seen = self._look()
            self._level = "ok" if self.seen is None else _judged(self.seen, self._level)
        return self._level


def _judged(memory: SystemMemory, before: Level) -> Level:
    level: Level = "ok"
    for name, (share, least, most) in (("tight", TIGHT), ("critical", CRITICAL)):
        line = min(max(share * memory.total, least), most)
        held = _SEVERITY[before] >= _SEVERITY[name]
        if memory.free < line * (LEAVE if held else 1.0):
            level = "tight" if name == "tight" else "critical"
    said = memory.level or "ok"
    return said if _SEVERITY[said] > _SEVERITY[level] else level
