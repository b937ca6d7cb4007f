"""From what is known about a machine to lines with a status and a cure. No MLX, no system."""

import shlex
import sys
from collections.abc import Callable, Iterator

from mlxroles.doctor import settings
from mlxroles.doctor.facts import Facts, Finding, Storage
from mlxroles.machine import power
from mlxroles.text import format_bytes, format_seconds, safe_text

WIRED_SHARE = 0.6
"""A model that takes more of the working set than this is faster when it stays in memory."""
WIRED_SPARE = 4 << 30
"""Bytes beside a model that may be wired with it; more has frozen small machines."""
LEFT_TO_SYSTEM = 6 << 30
"""Bytes that no limit may take from the system."""
SLOW_GFLOPS = 5.0
"""What the BLAS of MLX's wheel for Linux stays below, whatever the processor."""
FREE = 200 << 20, 5 << 30
"""Bytes of a disk below which nothing can be stored, and below which a night may be too long."""
SLOW_SYNC = 0.1
"""Seconds for one line of a journal from which on storing takes longer than computing."""
SWAPPED = 0.1
"""Share of the memory that may have been swapped out."""
AGREE = 1e-3, 5e-2
"""Differences of logits: rounding up to the first, a low-precision kernel up to the second."""
NARROW = 80
"""Columns that the live view needs."""


def findings(facts: Facts) -> list[Finding]:
    """Everything there is to say, in reading order."""
    topics: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
        _machine,
        _memory,
        _power,
        _backend,
        _limits,
        _wired,
        _answers,
        _blas,
        _storage,
        _caches,
        _terminal,
        settings.versions,
        settings.environment,
    )
    said = [finding for topic in topics for finding in topic(facts)]
    troubles = facts.troubles.items()
    return said + [
        Finding(topic, "fix", f"cannot be examined: {safe_text(text, limit=200)}")
        for topic, text in troubles
    ]


def _machine(facts: Facts) -> Iterator[Finding]:
    chip = facts.chip
    if chip is None:
        return
    cores = f"{chip.cores} core{'s' * (chip.cores != 1)}"
    if chip.fast_cores and chip.fast_cores != chip.cores:
        cores += f" ({chip.fast_cores} fast)"
    named = ", ".join(part for part in (chip.name, chip.model, cores, chip.system) if part)
    if chip.macos is not None and chip.macos < (15,):
        text = f"{named}: before macOS 15 a large model cannot be kept from being swapped out"
        yield Finding("machine", "warn", safe_text(text), "softwareupdate --list")
        return
    yield Finding("machine", "ok", safe_text(named))


def _memory(facts: Facts) -> Iterator[Finding]:
    memory = facts.memory
    if memory is None:
        return
    text = f"{format_bytes(memory.free)} free of {format_bytes(memory.total)}"
    if facts.level != "ok":
        text += ": close other programs before a long run"
        yield Finding("memory", "fix" if facts.level == "critical" else "warn", text)
    elif memory.swap_used is not None and memory.swap_used > SWAPPED * memory.total:
        text += f", {format_bytes(memory.swap_used)} are swapped out: close other programs"
        yield Finding("memory", "warn", text)
    else:
        text += f", {format_bytes(memory.swap_used)} swapped out" if memory.swap_used else ""
        yield Finding("memory", "ok", text)


def _power(facts: Facts) -> Iterator[Finding]:
    state = facts.power
    if state is None:
        return
    on_mac = facts.chip is not None and facts.chip.macos is not None
    said = power.warnings(state)
    for text in said:
        cure = "sudo pmset -a lowpowermode 0" if on_mac and text.startswith("Low Power") else None
        yield Finding("power", "warn", text.split("; switch it off with")[0], cure)
    if said:
        return
    text = {"ac": "mains", "battery": "battery", None: "no battery found"}[state.source]
    if state.percent is not None:
        text += f", battery at {state.percent} %"
    if on_mac:
        text += "; runs keep the machine awake"
        text += ", but only with the lid open" if state.is_laptop else ""
    yield Finding("power", "ok", text)


def _backend(facts: Facts) -> Iterator[Finding]:
    backend = facts.backend
    if backend is None:
        return
    if backend.name == "cpu" and facts.chip is not None and facts.chip.macos is not None:
        text = "MLX finds no GPU and computes on the CPU, many times slower"
        yield Finding("backend", "fix", text, "pip install --force-reinstall mlx")
        return
    name = {"metal": "Metal", "cuda": "CUDA", "cpu": "CPU"}[backend.name]
    none = "; there is no GPU for MLX here" if backend.name == "cpu" else ""
    yield Finding("backend", "ok", f"{name} on {safe_text(backend.device)}{none}")


def _limits(facts: Facts) -> Iterator[Finding]:
    backend = facts.backend
    whole = None if backend is None else backend.working_set or backend.memory
    if backend is None:
        return
    if whole is None and facts.memory is not None:
        whole = facts.memory.total
    if whole is None:
        return
    most = format_bytes(backend.share * whole)
    said = f" of the {format_bytes(whole)} that the GPU recommends" if backend.working_set else ""
    yield Finding("limits", "ok", f"a run takes up to {most}{said}; --memory changes that")


def _wired(facts: Facts) -> Iterator[Finding]:
    """Whether large models should be wired: as a rule not, which is what macOS does by itself."""
    backend, chip = facts.backend, facts.chip
    if backend is None or chip is None or chip.macos is None or not backend.working_set:
        return
    line = WIRED_SHARE * backend.working_set
    models = facts.caches.models if facts.caches else {}
    largest = max(models, key=lambda name: models[name], default=None)
    needed = models[largest] + WIRED_SPARE if largest else 0
    if largest is None or models[largest] <= line:
        text = (
            "leave the wired limit alone: only models over "
            f"{format_bytes(line)} gain by it, and none here is so large"
        )
        if backend.wired_mb:
            set_to = format_bytes(backend.wired_mb * 2**20)
            text = f"set to {set_to}, until the next start; no model here needs it"
        yield Finding("wired", "ok", text)
        return
    named = f"{safe_text(largest)} takes {format_bytes(models[largest])}"
    total = backend.memory or (facts.memory.total if facts.memory else 0)
    if chip.macos < (15,):
        text = f"{named}, more than 60 % of what the GPU recommends: macOS 15 could keep it there"
        yield Finding("wired", "warn", text)
    elif needed > total - LEFT_TO_SYSTEM:
        text = f"{named}: too large to be kept in memory here; --resident 1 or a smaller model"
        yield Finding("wired", "warn", text)
    elif needed > max(backend.working_set, (backend.wired_mb or 0) * 2**20):
        text = f"{named}, more than the GPU keeps; this raises the limit until the next start"
        megabytes = -(-needed // 2**20)
        yield Finding("wired", "warn", text, f"sudo sysctl iogpu.wired_limit_mb={megabytes}")
    else:
        yield Finding("wired", "ok", f"{named}, which the GPU keeps in memory")


def _answers(facts: Facts) -> Iterator[Finding]:
    answers = facts.answers
    if answers is None:
        return
    cure = "pip install -U mlx mlx-lm"
    if not answers.cpu <= AGREE[0]:
        text = f"the CPU's logits are off by {answers.cpu:.2g}: do not trust its numbers"
        yield Finding("answers", "fix", text, cure)
    elif answers.gpu is None:
        text = f"the CPU's logits are as they should be (off by {answers.cpu:.1e})"
        yield Finding("answers", "ok", text)
    elif not answers.gpu <= AGREE[1]:
        text = f"GPU and CPU differ by {answers.gpu:.2g} in logits: do not trust the GPU's numbers"
        yield Finding("answers", "fix", text, cure)
    elif answers.gpu > AGREE[0]:
        text = f"GPU and CPU differ by {answers.gpu:.1e} in logits: it multiplies in low precision"
        tf32 = facts.backend is not None and facts.backend.name == "cuda"
        yield Finding("answers", "warn", text, "export MLX_ENABLE_TF32=0" if tf32 else None)
    else:
        yield Finding("answers", "ok", f"GPU and CPU agree (logits differ by {answers.gpu:.1e})")


def _blas(facts: Facts) -> Iterator[Finding]:
    backend = facts.backend
    if backend is None or backend.gflops is None:
        return
    speed = f"{backend.gflops:.3g} GFLOP/s"
    if backend.gflops >= SLOW_GFLOPS:
        yield Finding("BLAS", "ok", f"{safe_text(backend.blas or 'built in')}, {speed}")
    elif backend.blas is None:
        text = f"the slow one of MLX's wheel, {speed}: everything takes tens of times longer"
        yield Finding("BLAS", "warn", text, "sudo apt install libopenblas0")
    else:
        text = f"{safe_text(backend.blas)}, {speed}: slow; is something else running?"
        yield Finding("BLAS", "warn", text, "top")


def _storage(facts: Facts) -> Iterator[Finding]:
    storage = facts.storage
    if storage is None:
        return
    path = safe_text(str(storage.path))
    if storage.error is not None:
        text = f"{path} cannot be written ({safe_text(storage.error)}): choose another place"
        yield Finding("results", "fix", text, "mlxroles doctor --out FOLDER")
        return
    yield _space(storage, path)
    if (said := storage.place.warning()) is not None:
        yield Finding("results", "warn", f"{path} {said}")
    if storage.speed is not None and storage.sync is not None:
        each = f"{format_bytes(storage.speed)}/s, a stored cell is safe after "
        text = each + _shown(storage.sync)
        slow = storage.sync > SLOW_SYNC
        more = ": slow; put results on a disk of this machine" if slow else ""
        yield Finding("writing", "warn" if slow else "ok", text + more)
    if storage.locks == "work":
        yield Finding("locks", "ok", "one writer per run is enforced")
    elif storage.locks is not None:
        why = {"fail": "does not keep them", "unsupported": "has none"}[storage.locks]
        text = f"the file system {why}: see yourself that only one process writes a run"
        yield Finding("locks", "warn", text)


def _shown(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 0.1 else format_seconds(seconds)


def _largest(storage: Storage) -> str:
    """The command that shows what takes the room."""
    return f"du -sh {shlex.quote(str(storage.path))}/*/*"


def _space(storage: Storage, path: str) -> Finding:
    if storage.free is None:
        return Finding("results", "ok", path)
    text = f"{path}, {format_bytes(storage.free)} free"
    if storage.free < FREE[0]:
        return Finding("results", "fix", f"{text}: nothing can be stored", _largest(storage))
    if storage.free < FREE[1]:
        return Finding("results", "warn", f"{text}: little for a night", _largest(storage))
    return Finding("results", "ok", text)


def _caches(facts: Facts) -> Iterator[Finding]:
    caches = facts.caches
    if caches is None:
        return
    folder = safe_text(str(caches.folder))
    if caches.error is None:
        yield Finding("cache", "ok", folder)
    else:
        text = f"{folder}: {safe_text(caches.error)}; hashes and checks are made again each time"
        yield Finding("cache", "warn", text, "export MLXROLES_CACHE=FOLDER")
    size = "" if caches.hub_bytes is None else f", {format_bytes(caches.hub_bytes)}"
    models = f"{caches.hub_models} model{'s' * (caches.hub_models != 1)}"
    yield Finding("Hub", "ok", f"{safe_text(str(caches.hub))}: {models}{size}")


def _terminal(facts: Facts) -> Iterator[Finding]:
    terminal = facts.terminal
    if terminal is None:
        return
    if not terminal.is_terminal:
        yield Finding("terminal", "ok", "none: plain lines, no colour")
        return
    colours = {"standard": "16", "256": "256", "truecolor": "16 million"}
    shown = f"{terminal.width} columns, {colours.get(terminal.colours or '', 'no')} colours"
    shown += f", {safe_text(terminal.encoding)}"
    shown += f", in {terminal.inside}" if terminal.inside else ""
    shown += ", NO_COLOR is set: plain lines" if terminal.no_color else ""
    if not terminal.encoding.lower().replace("-", "").startswith("utf8"):
        language = "en_US.UTF-8" if sys.platform == "darwin" else "C.UTF-8"
        text = f"{shown}: no bars and marks"
        yield Finding("terminal", "warn", text, f"export LC_ALL={language}")
    elif terminal.term in ("", "dumb", "unknown"):
        yield Finding("terminal", "warn", f"{shown}: TERM says that it can do nothing; plain lines")
    elif terminal.width < NARROW:
        yield Finding("terminal", "warn", f"{shown}: the live view wants {NARROW} columns")
    else:
        yield Finding("terminal", "ok", shown)
