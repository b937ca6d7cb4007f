"""Versions and environment variables that matter, and what is wrong with them. No MLX."""

import re
from collections.abc import Iterator, Mapping

from mlxroles.doctor.facts import Facts, Finding
from mlxroles.text import safe_text

MINIMUM = {
    "mlx": "0.32.2",
    "mlx-lm": "0.32.2",
    "numpy": "2.1",
    "h5py": "3.12.1",
}
"""Oldest versions that were tried, as ``pyproject.toml`` asks for."""
PYTHON = (3, 11), (3, 13)
"""First and last version of Python."""

KNOBS = (
    "MLX_MAX_OPS_PER_BUFFER",
    "MLX_MAX_MB_PER_BUFFER",
    "MLX_METAL_FAST_SYNCH",
    "MLX_ENABLE_TF32",
    "MLX_DISABLE_COMPILE",
    "AGX_RELAX_CDM_CTXSTORE_TIMEOUT",
    "MTL_DEBUG_LAYER",
    "MTL_SHADER_VALIDATION",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "HDF5_USE_FILE_LOCKING",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HF_ENDPOINT",
    "MLXROLES_CACHE",
    "MLXROLES_PAIRS",
)
"""Variables that change speed, numbers or places; no other one is looked at."""

_OFF = {"", "0", "false", "no", "off"}


def versions(facts: Facts) -> Iterator[Finding]:
    """One line with all versions, and one for each that is missing, too old or too new."""
    found = facts.versions
    if not found:
        return
    wrong = list(_wrong_versions(found))
    if not wrong:
        listed = ", ".join(f"{name} {version}" for name, version in found.items())
        yield Finding("versions", "ok", safe_text(listed))
    yield from wrong


def _wrong_versions(found: Mapping[str, str]) -> Iterator[Finding]:
    first, last = (".".join(map(str, version)) for version in PYTHON)
    python = found.get("python")
    if python is not None and not PYTHON[0] <= numbers(python)[:2] <= PYTHON[1]:
        yield Finding(
            "versions",
            "fix",
            f"Python {safe_text(python)}, needed is {first} to {last}",
            f"python{last} -m venv .venv && source .venv/bin/activate && pip install mlxroles",
        )
    for name, least in MINIMUM.items():
        version = found.get(name)
        if version is None:
            text = f"{name} is not installed"
        elif numbers(version) < numbers(least):
            text = f"{name} {safe_text(version)} is too old, needed is {least} or newer"
        else:
            continue
        yield Finding("versions", "fix", text, f"pip install -U '{name}>={least}'")


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: ``0.32.4.dev1`` is (0, 32, 4)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def environment(facts: Facts) -> Iterator[Finding]:
    """What is set, and what of it had better not be."""
    found = facts.environment
    wrong = list(_wrong_settings(facts))
    yield from wrong
    named = {finding.text.split("=")[0] for finding in wrong}
    rest = [f"{name}={value}" for name, value in found.items() if name not in named]
    if rest or not wrong:
        yield Finding(
            "settings",
            "ok",
            safe_text(", ".join(rest), limit=300) or "no variable that matters is set",
        )


def _wrong_settings(facts: Facts) -> Iterator[Finding]:
    found = facts.environment
    locking = found.get("HDF5_USE_FILE_LOCKING")
    if locking is not None and locking.lower() in _OFF:
        yield Finding(
            "settings",
            "warn",
            f"HDF5_USE_FILE_LOCKING={safe_text(locking)}: two processes may overwrite one capture",
            "unset HDF5_USE_FILE_LOCKING",
        )
    for name in ("MTL_DEBUG_LAYER", "MTL_SHADER_VALIDATION", "MLX_DISABLE_COMPILE"):
        value = found.get(name)
        if value is not None and value.lower() not in _OFF:
            text = f"{name}={safe_text(value)}: made for finding errors, everything takes longer"
            yield Finding("settings", "warn", text, f"unset {name}")
    cores = facts.chip.cores if facts.chip else 1
    if facts.backend is None or facts.backend.name != "cpu":
        return
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        value = found.get(name)
        if value is not None and value.isdigit() and 0 < int(value) < cores:
            text = f"{name}={value}: {cores} cores are there to compute"
            yield Finding("settings", "warn", text, f"unset {name}")
