"""How fast this machine is, for models of one kind: kept in the user's cache, never trusted.

The rates are measured by ``engine.calibration``. They hold for one device, host, version of MLX,
type of numbers, quantisation and size of matrices; anything else is measured anew.
"""

import math
import platform
from dataclasses import asdict, dataclass, fields
from typing import Any

from mlxroles import cache
from mlxroles.versions import versions

SUBJECT = "rates"
"""Name of the cache's file."""

FORM = 1
"""Part of every key: raised when rates mean something else."""

LEAST, MOST = 64, 2048
"""Sizes of matrices that are measured; larger ones are no faster or slower per multiply-add."""


@dataclass(frozen=True)
class Kind:
    """What rates depend on."""

    device: str
    """Name of the device, e.g. ``Apple M3 Max`` or ``cpu``."""
    dtype: str
    """Of the stream: ``float32``, ``bfloat16`` or ``float16``."""
    bits: int | None = None
    """Of quantised weights."""
    group: int | None = None
    """Weights that share a scale."""
    mode: str | None = None
    """Of the quantisation: ``affine``, ``mxfp4`` ..."""
    widened: bool = False
    """Whether quantised matrices are multiplied in float32, block by block."""
    width: int = 1024
    """Numbers of a stream, about."""
    hidden: int = 2048
    """Outputs of a matrix of an MLP, about."""

    @property
    def size(self) -> str:
        """The kind of model, whatever the machine."""
        packed = "" if self.bits is None else f" {self.bits} bits"
        return f"{self.width}x{self.hidden} {self.dtype}{packed}"

    @property
    def key(self) -> str:
        """Everything, with host and version of MLX."""
        quantised = f"{self.bits} {self.group} {self.mode} {self.widened}"
        return f"{FORM} {machine(self.device)} {self.dtype} {quantised} {self.width}x{self.hidden}"


def machine(device: str) -> str:
    """Device, host and version of MLX."""
    return f"{device} {platform.node()} mlx {versions().get('mlx')}"


def near(size: int) -> int:
    """The power of two next to a size, within what is measured."""
    return min(MOST, max(LEAST, 2 ** round(math.log2(max(1, size)))))


@dataclass(frozen=True)
class Rates:
    """Seconds per piece of work, and bytes per second."""

    multiply: float
    """Seconds per multiply-add of a matrix product with many rows."""
    read: float
    """Seconds per weight of a product that come on top whatever the rows: reading, unpacking."""
    attend: float
    """Seconds per multiply-add of attention."""
    dispatch: float
    """Seconds per operation on next to nothing."""
    bandwidth: float
    """Bytes per second of an operation on every number of an array."""
    load: float
    """Bytes per second of weights from a file that the system holds in memory."""
    sync: float
    """Seconds until a line is safe on the disk."""
    pace: float
    """Seconds that a piece of plain Python takes here, as a multiple of those where the constants
    of ``prediction`` were measured."""

    def document(self) -> dict[str, float]:
        """As plain data."""
        return asdict(self)

    @classmethod
    def read_from(cls, found: object) -> "Rates | None":
        """Rates from plain data; None unless every one is a number that makes sense."""
        if not isinstance(found, dict):
            return None
        values: list[float] = []
        for field in fields(cls):
            value: Any = found.get(field.name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not math.isfinite(value) or value < 0:
                return None
            if value == 0 and field.name != "read":
                return None
            values.append(float(value))
        return cls(*values)


def kept(kind: Kind) -> Rates | None:
    """The rates that were measured for a kind; None where none were, or none that can be read."""
    return Rates.read_from(cache.read(SUBJECT).get(kind.key))


def keep(kind: Kind, rates: Rates, *, busy: int = 0) -> None:
    """Keeps rates for later; ``busy`` says how often they were measured, always under load."""
    cache.remember(SUBJECT, kind.key, rates.document() | {"busy": busy})


def times_busy(kind: Kind) -> int:
    """How often rates that are kept were measured, if the machine was busy each time; else 0."""
    found = cache.read(SUBJECT).get(kind.key)
    count = found.get("busy") if isinstance(found, dict) else 0
    return count if isinstance(count, int) else 0


def best(some: Rates, others: Rates) -> Rates:
    """The faster of each."""
    a, b = some.document(), others.document()
    faster = {name: (max if name in ("bandwidth", "load") else min)(a[name], b[name]) for name in a}
    return Rates(**faster)
