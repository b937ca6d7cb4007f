"""What the doctor knows about a machine, and what it says: plain data, no MLX."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mlxroles.machine.chip import Chip
from mlxroles.machine.disk import Place
from mlxroles.machine.memory import Level, SystemMemory
from mlxroles.machine.power import Power

Status = Literal["ok", "warn", "fix"]
STATUSES: tuple[Status, ...] = ("ok", "warn", "fix")


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's answer."""

    topic: str
    status: Status
    """``warn``: works, but slower or at a risk; ``fix``: does not work, or gives wrong numbers."""
    text: str
    command: str | None = None
    """What to type to put it right."""


@dataclass(frozen=True)
class Backend:
    """What MLX computes on."""

    name: Literal["metal", "cuda", "cpu"]
    device: str
    """E.g. ``Apple M3 Max``."""
    memory: int | None = None
    """Bytes of the device."""
    working_set: int | None = None
    """Bytes that a process had better not exceed."""
    share: float = 0.75
    """Of that, what a run takes where nothing else is asked for."""
    wired_mb: int | None = None
    """The system's limit for memory that stays wired, if somebody set one; 0 for its default."""
    blas: str | None = None
    """The fast BLAS that was found; None for MLX's own."""
    gflops: float | None = None
    """Measured on the CPU, in float32; None where the CPU does not compute."""


@dataclass(frozen=True)
class Answers:
    """Largest absolute differences between logits of the embedded model."""

    cpu: float
    """Between the CPU's and those that are known."""
    gpu: float | None = None
    """Between the GPU's and the CPU's; None where there is no GPU."""


@dataclass(frozen=True)
class Storage:
    """The disk that results go to."""

    path: Path
    place: Place
    free: int | None = None
    """Bytes."""
    speed: float | None = None
    """Bytes per second, synced."""
    sync: float | None = None
    """Seconds until a line of a journal is safe."""
    locks: Literal["work", "fail", "unsupported"] | None = None
    error: str | None = None
    """Why nothing can be written there."""


@dataclass(frozen=True)
class Caches:
    """What is kept between runs."""

    folder: Path
    error: str | None
    """Why nothing can be kept there."""
    hub: Path
    hub_models: int
    hub_bytes: int | None
    """None where counting would take long."""
    models: Mapping[str, int] = field(default_factory=dict)
    """Models of the catalogue that are here: bytes of weights."""


@dataclass(frozen=True)
class Terminal:
    """What standard output is shown on."""

    is_terminal: bool
    width: int
    colours: str | None
    """``standard``, ``256``, ``truecolor`` or None."""
    encoding: str
    term: str
    no_color: bool = False
    inside: str | None = None
    """``tmux`` or ``screen``."""


@dataclass(frozen=True)
class Facts:
    """Everything the doctor found out; None for what could not be."""

    chip: Chip | None = None
    memory: SystemMemory | None = None
    level: Level = "ok"
    """How short of memory the system is."""
    power: Power | None = None
    backend: Backend | None = None
    answers: Answers | None = None
    storage: Storage | None = None
    caches: Caches | None = None
    terminal: Terminal | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    """Package -> version, with ``python`` and ``hdf5``."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of ``settings.KNOBS`` that are set."""
    troubles: Mapping[str, str] = field(default_factory=dict)
    """Topic -> why it could not be examined."""
