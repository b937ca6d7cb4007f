"""The result of a bench as plain data: the machine, the models, and one entry per work."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from mlxroles.backend import device_name, on_gpu
from mlxroles.bench.ground import Ground
from mlxroles.bench.work import Work
from mlxroles.models.model import Model
from mlxroles.versions import now, versions

SCHEMA = "mlxroles/bench/1"

SHAPE = (
    "a Llama of 12 layers, d_model 512, 8 heads, 4 kv heads, ffn 1376, vocabulary 32000, "
    "untied, float32, 512 tokens, on a CPU"
)
"""What the goals were set for; other models and devices have other ratios."""

_SHAPE = {
    "architecture": "llama",
    "layers": 12,
    "d_model": 512,
    "heads": 8,
    "kv_heads": 4,
    "vocab": 32000,
    "dtype": "float32",
    "quantization": None,
}

EMPTY = {
    "seconds": None,
    "cpu_seconds": None,
    "ratio": None,
    "wall_ratio": None,
    "twin_ratio": None,
    "twin_seconds": None,
    "twin_cpu_seconds": None,
    "twin_peak_memory": None,
    "reference_seconds": None,
    "reference_cpu_seconds": None,
    "error": None,
    "layer_calls": None,
    "peak_memory": None,
}
"""The measured keys of a work that this architecture forbids."""


def item(work: Work, found: dict[str, Any], refused: str | None = None) -> dict[str, Any]:
    """One entry: what the work is, what was measured, what it has to be.

    ``ratio`` is to ``reference``, ``twin_ratio`` that of one plain forward per cell; both of CPU
    seconds, on a GPU of seconds. ``layer_calls`` count one layer over one whole prompt as 1,
    ``peak_memory`` are bytes above the weights. The twin ran ``twin_cells`` of ``cells``, spread
    evenly; its figures are scaled to all of them, ``error`` is over those it ran.
    """
    return (
        {"work": work.name, "what": work.what, "tokens": work.length}
        | EMPTY
        | found
        | {
            "least_layer_calls": work.least(),
            "cells": work.n_cells,
            "twin_cells": len(work.sample),
            "error_unit": work.unit,
            "goal": work.goal,
            "reference": work.reference,
            "note": (refused if refused is not None else work.note()) or None,
            "possible": refused is None,
        }
    )


def document(ground: Ground, items: list[dict[str, Any]], notes: list[str]) -> dict[str, Any]:
    """The whole result."""
    recipient = _model(ground.recipient)
    as_set = {name: recipient[name] for name in _SHAPE} == _SHAPE
    return {
        "schema": SCHEMA,
        "date": now(),
        "machine": machine(),
        "versions": versions(),
        "models": {
            "recipient": recipient,
            "donor": None if ground.alone else _model(ground.donor),
        },
        "tokens": ground.tokens,
        "ratios_of": "seconds" if on_gpu() else "cpu_seconds",
        "goals_for": SHAPE,
        "goals_apply": as_set and ground.tokens == 512 and not on_gpu(),
        "notes": notes,
        "items": items,
    }


def machine() -> dict[str, Any]:
    """Chip, device that MLX computes on, cores, bytes of memory, operating system."""
    return {
        "chip": _chip(),
        "device": device_name(),
        "cores": os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "os": platform.platform(),
    }


def _chip() -> str:
    if platform.system() == "Darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        try:
            found = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
            return found.stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _model(model: Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "architecture": model.architecture,
        "layers": model.n_layers,
        "d_model": model.d_model,
        "heads": model.n_heads,
        "kv_heads": model.n_kv_heads,
        "vocab": model.vocab,
        "dtype": str(model.dtype).removeprefix("mlx.core."),
        "quantization": model.config.get("quantization"),
        "weights_bytes": sum(a.nbytes for _, a in _parameters(model)),
    }


def _parameters(model: Model) -> Any:
    from mlx.utils import tree_flatten

    return tree_flatten(model.module.parameters())
