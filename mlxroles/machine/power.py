"""Where the power comes from, what it costs in speed, and how to stay awake."""

import re
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlxroles.machine import apple

CAFFEINATE = "/usr/bin/caffeinate"
LOW = 20
"""Percent of a battery from which on it deserves its own words."""


@dataclass(frozen=True)
class Power:
    """What the system says about power; None for what it does not say."""

    source: Literal["ac", "battery"] | None = None
    percent: int | None = None
    """Charge of the battery; None where there is none."""
    low_power: bool | None = None
    lid: Literal["open", "closed"] | None = None

    @property
    def is_laptop(self) -> bool:
        """Whether there is a lid or a battery of its own."""
        return self.lid is not None or self.percent is not None


def state() -> Power:
    """What the system says now."""
    return of_mac() if sys.platform == "darwin" else of_linux()


def of_mac(ask: Callable[..., str] = apple.ask) -> Power:
    """From what ``pmset`` and the lid's entry in ``ioreg`` print."""
    battery = ask("/usr/bin/pmset", "-g", "batt")
    source = re.search(r"drawing from '([^']*)'", battery)
    internal = re.search(r"InternalBattery.*?(\d+)%", battery)
    mode = re.search(r"^\s*(?:lowpowermode|powermode)\s+(\d+)", ask("/usr/bin/pmset", "-g"), re.M)
    lid = re.search(
        r'"AppleClamshellState" = (Yes|No)',
        ask("/usr/sbin/ioreg", "-r", "-k", "AppleClamshellState", "-d", "1"),
    )
    return Power(
        None if source is None else "ac" if source[1].startswith("AC") else "battery",
        None if internal is None else int(internal[1]),
        None if mode is None else mode[1] == "1",  # 2 is High Power Mode
        None if lid is None else "closed" if lid[1] == "Yes" else "open",
    )


def of_linux(root: Path = Path("/")) -> Power:
    """From ``/sys`` and ``/proc`` below ``root``."""
    mains: list[bool] = []
    percent, draining = None, False
    for supply in sorted((root / "sys/class/power_supply").glob("*")):
        kind = _word(supply / "type")
        if kind in ("Mains", "USB") and _word(supply / "online"):
            mains.append(_word(supply / "online") != "0")
        # the batteries of mice and keyboards are batteries of a device
        if kind == "Battery" and _word(supply / "scope") != "Device":
            charge = _word(supply / "capacity")
            percent = int(charge) if charge.isdigit() else percent
            draining = draining or _word(supply / "status") == "Discharging"
    source: Literal["ac", "battery"] | None = None
    if mains or percent is not None:
        source = "battery" if draining and not any(mains) else "ac"
    profile = _word(root / "sys/firmware/acpi/platform_profile")
    lids = [_word(path) for path in (root / "proc/acpi/button/lid").glob("*/state")]
    lid: Literal["open", "closed"] | None = None
    if lids:
        lid = "closed" if "closed" in lids[0] else "open"
    return Power(source, percent, profile == "low-power" if profile else None, lid)


def _word(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def warnings(power: Power | None = None) -> list[str]:
    """What may end or slow down a long run, one line each, with what to do.

    Args:
        power: What the system says; None to ask it.
    """
    power = state() if power is None else power
    found = []
    if power.source == "battery":
        left = "" if power.percent is None else f" ({power.percent} %)"
        low = power.percent is not None and power.percent <= LOW
        what = "it will not last" if low else "the run ends with it"
        found.append(f"on battery{left}: {what}; plug the machine in")
    if power.low_power:
        how = "; switch it off with `sudo pmset -a lowpowermode 0`" * (sys.platform == "darwin")
        found.append(f"Low Power Mode is on: everything takes longer{how}")
    if power.lid == "closed":
        found.append(
            "the lid is closed: the machine sleeps unless it has power and an external display;"
            " open it"
        )
    return found


@contextmanager
def awake(pid: int) -> Generator[bool]:
    """Keeps a Mac from sleeping while the block runs and the process lives; nothing elsewhere.

    The display may sleep: one that is lit is what makes the system's watchdog end long work on
    the GPU. Yields whether it will stay awake; a closed lid is stronger.
    """
    holder = None
    if sys.platform == "darwin":
        with suppress(OSError):
            holder = subprocess.Popen(
                [CAFFEINATE, "-i", "-s", "-w", str(pid)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C ends the run after its batch, not this
            )
    try:
        yield holder is not None
    finally:
        if holder is not None:
            holder.terminate()
            holder.wait()
