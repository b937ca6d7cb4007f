"""States of runs and queues that never happened: a night in the middle, large maps, deaths."""

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from mlxroles import documents
from mlxroles.dashboard.state import RunState, empty_progress
from mlxroles.events import (
    BatchStarted,
    Cell,
    CellDone,
    CellFailed,
    Died,
    Event,
    Note,
    RunStarted,
    Slept,
    Stage,
    Vitals,
)

NOW = datetime(2026, 11, 22, 2, 47, tzinfo=UTC)
GB = 10**9


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Entry:
    """An experiment of a queue."""

    number: int
    name: str
    kind: str = "patch"
    status: str = "waiting"
    run: str | None = None
    cells: int | None = None
    done: int = 0
    failed: int = 0
    restored: int = 0
    seconds: float = 0.0
    estimate: float | None = None
    estimate_low: float | None = None
    estimate_high: float | None = None
    deaths: int = 0
    error: str | None = None
    sentence: str | None = None
    brief: str | None = None
    argv: list[str] = field(default_factory=list)
    priority: int = 0


@dataclass
class Queue:
    """The state of a queue, as a supervisor would write it."""

    name: str = "overnight"
    entries: list[Entry] = field(default_factory=list)
    started: str = "2026-11-21T22:00:00+00:00"
    until: str | None = "2026-11-22T07:00:00+00:00"
    finished: str | None = None
    current: int | None = None
    ranks: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    deaths: int = 0
    slept: float = 0.0


def night(*, finished: bool = False, ranks: int = 3) -> Queue:
    """Seven experiments at 02:47: three done, one failed, one running, two waiting."""
    told = "From layer 17 of 32 on, the patched stream carries the decision (half at 17, 16)."
    entries = [
        Entry(1, "tiny-all", status="done", cells=612, done=612, seconds=731, sentence=told),
        Entry(2, "llama-coarse", status="done", cells=420, done=417, failed=3, seconds=5130,
              sentence="Instruct into base: half of the effect at layer 19; base into instruct "
              "at 16; controls stay below 0.08.", deaths=2),
        Entry(3, "roles-entropy", "entropy", "done", cells=240, done=240, seconds=2400,
              sentence="RFC rises in 9 of 32 layers after correction, most at layer 12."),
        Entry(4, "qwen-heads", status="failed", cells=2304, done=12, seconds=88, deaths=3,
              error="stopped after 3 cells in a row failed alike (RuntimeError: out of memory)"),
        Entry(5, "llama-fine", status="running", cells=770, done=318, failed=2, seconds=4200,
              estimate=9400, estimate_low=8200, estimate_high=11800, deaths=1),
        Entry(6, "llama-positions", cells=2560, estimate=7600, estimate_low=6100,
              estimate_high=9900),
        Entry(7, "probe-everything-there-is-with-a-long-name", "probe", cells=96, estimate=420),
    ]  # fmt: skip
    events = [
        {"time": "2026-11-21T22:00:01+00:00", "text": "queue of 7 experiments begins"},
        {"time": "2026-11-21T23:12:40+00:00", "text": "llama-coarse: a worker ended (SIGKILL), "
         "probably for memory; started again with smaller batches"},
        {"time": "2026-11-22T00:58:11+00:00", "text": "roles-entropy: done, 240 cells"},
        {"time": "2026-11-22T01:01:02+00:00", "text": "qwen-heads failed: out of memory [/b]\x1b"},
        {"time": "2026-11-22T01:44:10+00:00", "text": "the machine slept 12 min 40 s"},
        {"time": "2026-11-22T02:31:59+00:00", "text": "machine 2 (mac-c) is gone; the others go "
         "on with its batch"},
    ]  # fmt: skip
    machines = [
        {"rank": 0, "host": "mac-a", "pid": 411, "alive": True, "cells": 140},
        {"rank": 1, "host": "mac-b", "pid": 972, "alive": True, "cells": 133},
        {"rank": 2, "host": "mac-c", "pid": 305, "alive": False, "cells": 45},
    ][:ranks]
    queue = Queue(entries=entries, events=events, ranks=machines, current=4, deaths=6, slept=760)
    if finished:
        entries[4].status, entries[4].sentence = "done", told
        entries[5].status, entries[5].done = "left", 700
        entries[6].status = "stopped"
        queue.finished, queue.current = "2026-11-22T07:00:04+00:00", None
    return queue


def odds(prob: float) -> float:
    return math.log(prob / (1 - prob))


def level(share: float, start: float, goal: float) -> dict[str, Any]:
    """The values of a cell that recovers this share of the log-odds."""
    value = odds(start) + share * (odds(goal) - odds(start))
    return {"tool_call_prob": 1 / (1 + math.exp(-value)), "log_odds": value}


BASELINES = {"instruct": 0.93, "base": 0.004}


def view(n_layers: int, **more: Any) -> dict[str, Any]:
    return {
        "kind": "patch",
        "n_layers": n_layers,
        "layers": list(range(n_layers)),
        "directions": list(documents.DIRECTIONS),
        "headline": "<tool_call>",
        "prompts": ["notepad"],
        "site": "resid_post",
        "positions": "all",
    } | more


def patch_cells(n_layers: int, **axis: int) -> list[Cell]:
    """Baselines, then every layer of both directions with its controls, or with its parts."""
    cells = [Cell(f"baseline/{m}", {"baseline": m, "prompt": 0}) for m in ("instruct", "base")]
    parts = [{name: at} for name, count in axis.items() for at in range(count)] or [{}]
    controls = (None,) if axis else (None, "other_prompt", "random")
    for direction in documents.DIRECTIONS[::-1]:
        for layer in range(n_layers):
            for control in controls:
                for part in parts:
                    name = "/".join(f"{k}={v}" for k, v in part.items()) or control or "all"
                    coords = {"direction": direction, "layer": layer, "prompt": 0}
                    coords |= {"control": control, **part}
                    cells.append(Cell(f"{direction}/resid_post/L{layer:02d}/{name}", coords))
    return cells


def share_of(coords: dict[str, Any], n_layers: int) -> float:
    layer, at = coords["layer"], coords.get("position", coords.get("head"))
    rise = 1 / (1 + math.exp(-(14 / n_layers) * (layer - 0.55 * n_layers)))
    if at is not None:
        wave = math.exp(-((at - 4 - layer) ** 2) / 18) - 0.5 * math.exp(-((at - 30) ** 2) / 8)
        return rise * wave
    strength = {None: 1.0, "other_prompt": 0.12, "random": 0.03}[coords["control"]]
    return strength * rise


def run_events(
    n_layers: int = 32, part_done: float = 0.6, *, trouble: bool = True, **axis: int
) -> list[Event]:
    """The events of a patch run up to some part of its cells."""
    cells = patch_cells(n_layers, **axis)
    about = view(n_layers, n_tokens=[40], n_heads=32)
    estimate = {"likely": 400.0, "low": 320.0, "high": 560.0, "basis": "measured"}
    title = f"patch Llama 3.1 8B ({n_layers} layers): resid_post, notepad"
    events: list[Event] = [
        RunStarted(title, "results/patch/0123abcd", cells, 0, about, 0, estimate),
        Stage("loading base"),
    ]
    if trouble:
        events.append(Note("the machine runs on its battery: plug it in for the night"))
    for n, cell in enumerate(cells[: round(len(cells) * part_done)]):
        if "baseline" in cell.coords:
            prob = BASELINES[cell.coords["baseline"]]
            events.append(CellDone(cell, {"tool_call_prob": prob, "log_odds": odds(prob)}, 1.0))
            continue
        if trouble and n % 61 == 40:
            events.append(CellFailed(cell, "FloatingPointError: the logits are not finite"))
            continue
        direction = cell.coords["direction"]
        ends = [BASELINES[who(direction)] for who in (documents.recipient, documents.donor)]
        values = level(share_of(dict(cell.coords), n_layers), *ends)
        seconds = (n_layers - cell.coords["layer"]) * (1.2 + 0.3 * (n % 3)) + 0.001 * n
        events.append(CellDone(cell, values, seconds, tokens=40))
    if trouble:
        events += [
            Died([cells[-1].id], "SIGKILL, probably for memory"),
            Slept(760.0),
            BatchStarted(cells[-2:]),
        ]
    return events


def vitals(calls: float, tokens: int) -> Vitals:
    return Vitals(9 * GB, 13 * GB, 24 * GB, 8 * GB, calls, tokens)


def run_state(n_layers: int = 32, part_done: float = 0.6, **axis: int) -> RunState:
    """A patch run in the middle, with memory and speed; ``position=40`` makes it a map."""
    clock = Clock()
    state = RunState(empty_progress(clock), wall=lambda: datetime(2026, 11, 22, 2, 41))
    for event in run_events(n_layers, part_done, **axis):
        state.fold(event)
    for calls in (1000.0, 1900.0, 2800.0):
        clock.now += 5
        state.fold(vitals(calls, int(calls * 3)))
    clock.now += 300
    return state


def grid_state(kind: str = "entropy") -> RunState:
    """A run without layers: two models by forty prompts, half of them done."""
    clock = Clock()
    state = RunState(empty_progress(clock), wall=lambda: datetime(2026, 11, 22, 2, 41))
    cells = [
        Cell(f"model={m}/prompt={p}", {"model": m, "prompt": p})
        for m in ("base", "instruct")
        for p in range(40)
    ]
    about = {"kind": kind, "prompts": [str(p) for p in range(40)]}
    state.fold(RunStarted(f"{kind} tiny: 40 prompts", "results/x", cells, 0, about))
    for at, cell in enumerate(cells[:57]):
        if at == 12:
            state.fold(CellFailed(cell, "prompt too long"))
        else:
            state.fold(CellDone(cell, {"entropy": 2.1 + at / 99, "rank": at}, 0.5, 30))
    return state
