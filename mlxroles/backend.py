"""The one door to MLX: every module of the package takes ``mx`` and ``nn`` from here.

On Linux the wheel of MLX links a reference BLAS of about 1 GFLOP/s. A faster one that is loaded
with global symbols *before* ``mlx.core`` takes its place, which is worth a factor of 50; that is
why nothing else in the package imports MLX directly.
"""

import ctypes
import sys
from typing import NamedTuple

FAST_BLAS = ("libopenblas.so.0", "libopenblas.so", "libblis.so.4", "libmkl_rt.so.2")


def _preload_blas() -> str | None:
    """Name of the fast BLAS that was loaded, or None where none is needed or installed."""
    if sys.platform != "linux" or "mlx.core" in sys.modules:
        return None
    for name in FAST_BLAS:
        try:
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return name
    return None


BLAS = _preload_blas()

import mlx.core as mx  # noqa: E402  (the BLAS must come first)
import mlx.nn as nn  # noqa: E402

__all__ = ["BLAS", "Memory", "device_name", "memory", "mx", "nn", "number", "on_gpu"]


class Memory(NamedTuple):
    """Bytes that MLX holds: in use, highest so far, and what the device recommends at most."""

    active: int
    peak: int
    limit: int | None


def on_gpu() -> bool:
    """Whether arrays are computed on a GPU by default."""
    return mx.default_device() == mx.Device(mx.gpu)


def device_name() -> str:
    """Name of the default device, e.g. ``Apple M3 Max`` or ``cpu``."""
    if not on_gpu():
        return "cpu"
    return str(mx.device_info().get("device_name", "gpu"))


def memory() -> Memory:
    """Memory figures for gauges and notes; ``limit`` is None where the device names none."""
    info = mx.device_info()
    limit = info.get("max_recommended_working_set_size") or info.get("memory_size")
    return Memory(mx.get_active_memory(), mx.get_peak_memory(), int(limit) if limit else None)


def number(array: mx.array) -> float:
    """The value of a real array of one element, evaluated."""
    value = array.item()
    assert not isinstance(value, complex)
    return float(value)
