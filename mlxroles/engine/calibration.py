"""Measures how fast this machine is, in about a second and with small arrays of its own.

Every rate is the best of several short measurements, so that other work on the machine does not
count. Made when a plan first needs it; a run of a model never waits for it.
"""

import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mlxroles import cache
from mlxroles.backend import mx, nn, on_gpu
from mlxroles.models.dense_on_cpu import DenseOnCPU
from mlxroles.store.files import sync
from mlxroles.timing import Kind, Rates, forget, keep, kept
from mlxroles.timing.rates import best, machine, times_busy

Piece = Callable[[], None]
"""Something whose time is taken."""

SHARE = 0.05
"""Seconds that a product with few rows may take."""
ROUNDS, LONGEST, BUSY = 64, 0.8, 2.5
"""Rounds of measurements at most, and seconds after which no further one begins: on a machine that
has more to do than it has cores for, a free moment takes longer to meet."""
FEW, MANY = 8, 256
"""Rows of a product that shows what its weights take, and of one that shows what its rows take."""
MOST_BUSY = 4
"""Measurements on a busy machine that are tried."""
CHAIN = 64
"""Operations that are timed together."""
ARRAY = 1 << 21
"""Numbers of an array that does not fit into small caches."""
QUERIES, HEADS, D_HEAD = 128, 8, 64
"""Sizes of the attention that is timed."""
FILE = 1 << 24
"""Bytes of a file that is loaded."""
DISK = 3e9
"""Bytes per second that weights come with at most: they are rarely in memory already."""
PYTHON = 1.45e-3
"""Seconds of ``_python`` where the constants of ``timing.prediction`` were measured."""
LEAST = 64
"""Outputs of the matrix that is tried first."""
WITHOUT_DISK = 5e-3
"""Seconds of a sync where no file can be written; and ``FILE`` in a second to load."""


def rates(kind: Kind) -> Rates | None:
    """The rates of this machine for models of a kind, measured unless they are known.

    What was measured on a busy machine is measured again a few times, until it is not busy.
    None where this machine cannot compute such a model, or has no memory for the measurement.
    """
    known, busy = kept(kind), times_busy(kind)
    if known is not None and not 0 < busy < MOST_BUSY:
        return known
    is_busy = _is_busy()
    try:
        found = measure(kind)
    except (RuntimeError, ValueError, TypeError, MemoryError):
        return known
    if known is not None:
        found = best(known, found)
        forget(machine(kind.device))
    keep(kind, found, busy=busy + 1 if is_busy else 0)
    return found


def measure(kind: Kind) -> Rates:
    """The rates of this machine, measured now."""
    dtype = getattr(mx, kind.dtype, mx.float32)
    outputs, rows = _extent(kind, dtype)
    with ExitStack() as files:
        pieces = _products(kind, dtype, outputs, rows)
        pieces |= {"attend": _attention(dtype), "chain": _chain(dtype), "python": _python}
        large = _numbers(ARRAY, dtype=dtype)
        pieces["array"] = lambda: mx.eval(large + 1)
        pieces |= _disk(dtype, files)
        found = _measured(pieces)
    weights, pairs = kind.width * outputs, QUERIES * (QUERIES + 1) / 2
    few, many = found["few"], found["many"]
    per_row = max((many - few) / (rows - FEW), 0.2 * many / rows)
    return Rates(
        multiply=per_row / weights,
        read=max(0.0, few - FEW * per_row) / weights,
        attend=found["attend"] / (2 * pairs * HEADS * D_HEAD),
        dispatch=found["chain"] / CHAIN,
        bandwidth=2 * large.nbytes / found["array"],
        load=min(DISK, FILE / found["load"]) if "load" in found else float(FILE),
        sync=found.get("sync", WITHOUT_DISK),
        pace=found["python"] / PYTHON,
    )


def _measured(pieces: Mapping[str, Piece]) -> dict[str, float]:
    """Seconds of the fastest run of each piece, in rounds over all of them; never 0.

    A busy machine is slow for moments: what comes back again and again meets a free one.
    """
    found: dict[str, float] = {}
    ends = time.perf_counter() + (BUSY if _is_busy() else LONGEST)
    for n in range(ROUNDS):
        for name, work in pieces.items():
            if n == 0:
                work()  # warms up
            begun = time.perf_counter()
            work()
            seconds = max(1e-9, time.perf_counter() - begun)
            found[name] = min(seconds, found.get(name, seconds))
        if time.perf_counter() > ends:
            break
    return found


def _is_busy() -> bool:
    try:
        return os.getloadavg()[0] > (os.cpu_count() or 1)
    except OSError:
        return False


def _numbers(*shape: int, dtype: mx.Dtype) -> mx.array:
    """Numbers that are in memory one by one; an array of ones is a single number to MLX."""
    found = (mx.arange(math.prod(shape)) % 7 - 3).astype(dtype).reshape(shape)
    mx.eval(found)
    return found


def _extent(kind: Kind, dtype: mx.Dtype) -> tuple[int, int]:
    """Outputs and rows of the product that is measured: fewer where the kernels are slow.

    Quantised kernels of a CPU are a thousand times slower than others.
    """
    layer, few = _layer(kind, LEAST, dtype), _numbers(FEW, kind.width, dtype=dtype)
    mx.eval(layer(few))
    begun = time.perf_counter()
    mx.eval(layer(few))
    per_output = (time.perf_counter() - begun) / LEAST
    outputs, rows = kind.hidden, MANY
    while outputs > LEAST and per_output * outputs > SHARE:
        outputs //= 2
    while rows > 4 * FEW and per_output * outputs * rows / FEW > 4 * SHARE:
        rows //= 2
    return outputs, rows


def _products(kind: Kind, dtype: mx.Dtype, outputs: int, rows: int) -> dict[str, Piece]:
    """A product with few rows, and one with many."""
    layer = _layer(kind, outputs, dtype)
    few, many = (_numbers(n, kind.width, dtype=dtype) for n in (FEW, rows))
    return {"few": lambda: mx.eval(layer(few)), "many": lambda: mx.eval(layer(many))}


def _layer(kind: Kind, outputs: int, dtype: mx.Dtype) -> nn.Module:
    """A matrix as a model of this kind has it, with random weights."""
    layer: nn.Module = nn.Linear(kind.width, outputs, bias=False)
    layer.set_dtype(dtype)
    if kind.bits is not None:
        how: dict[str, Any] = {"group_size": kind.group or 64, "bits": kind.bits}
        layer = nn.QuantizedLinear.from_linear(layer, **how, mode=kind.mode or "affine")
        if kind.widened:
            object.__setattr__(layer, "__class__", DenseOnCPU)
    mx.eval(layer.parameters())
    return layer


def _attention(dtype: mx.Dtype) -> Piece:
    q = _numbers(1, HEADS, QUERIES, D_HEAD, dtype=dtype)
    how: dict[str, Any] = {"scale": D_HEAD**-0.5, "mask": "causal"}
    return lambda: mx.eval(mx.fast.scaled_dot_product_attention(q, q, q, **how))


def _chain(dtype: mx.Dtype) -> Piece:
    """Operations on next to nothing, one after the other."""
    small = _numbers(16, dtype=dtype)

    def once() -> None:
        x = small
        for _ in range(CHAIN):
            x = x + 1
        mx.eval(x)

    return once


def _python() -> None:
    """A piece of plain Python: names, numbers, strings."""
    found: dict[str, int] = {}
    for n in range(10_000):
        found[str(n % 97)] = found.get(str(n % 89), 0) + n


def _disk(dtype: mx.Dtype, files: ExitStack) -> dict[str, Piece]:
    """Loading of a file and syncing of a line; nothing where no file can be written."""
    place = cache.folder()
    try:
        place.mkdir(parents=True, exist_ok=True)
        folder = Path(files.enter_context(tempfile.TemporaryDirectory(dir=place)))
        path = folder / "x.safetensors"
        mx.save_safetensors(str(path), {"x": _numbers(FILE // dtype.size, dtype=dtype)})
        handle = os.open(folder / "x", os.O_CREAT | os.O_WRONLY, 0o600)
    except (OSError, RuntimeError):
        return {}
    files.callback(os.close, handle)

    def load() -> None:
        mx.clear_cache()  # as for a model, memory is new
        mx.eval(mx.load(str(path)))

    def line() -> None:
        os.write(handle, b"x" * 512)
        sync(handle)

    return {"load": load, "sync": line}


def is_widened(bits: int | None, mode: str | None, dtype: str, large: bool) -> bool:
    """Whether a model of this kind has its quantised matrices multiplied in float32 here."""
    return bits is not None and large and mode == "affine" and dtype != "float32" and not on_gpu()
