"""Writes the data sheet of the tiny pair from its measured figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Figures = dict[str, Any]


def write(pair: Path, figures: Figures) -> None:
    """Writes DATASHEET.md and figures.json next to the two models."""
    template = (Path(__file__).parent / "datasheet.md").read_text()
    text = template.format(
        sizes=_sizes(pair),
        log=_log(json.loads((pair / "training.json").read_text())),
        targets=_targets(figures),
        decisions=_decisions(figures),
        sweeps=_sweeps(figures["sweep"]),
        heads=_heads(figures),
        answers=_answers(figures),
        losses=_losses(figures),
    )
    (pair / "DATASHEET.md").write_text(text)
    (pair / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _sizes(pair: Path) -> str:
    rows = []
    for name in ("base", "instruct"):
        files = sorted((pair / name).iterdir())
        rows.append([name, f"{sum(file.stat().st_size for file in files):,}"])
    total = sum(
        file.stat().st_size for name in ("base", "instruct") for file in (pair / name).iterdir()
    )
    return _table(["model", "bytes"], [*rows, ["both", f"{total:,}"]])


def _log(phases: list[Figures]) -> str:
    header = ["model", "phase", "steps", "rows x tokens", "tokens", "last loss", "minutes"]
    rows = [
        [
            phase["model"],
            phase["phase"],
            str(phase["steps"]),
            f"{phase['rows']} x {phase['length']}",
            f"{phase['steps'] * phase['rows'] * phase['length']:,}",
            f"{phase['loss']:.3f}",
            f"{phase['minutes']:.1f}",
        ]
        for phase in phases
    ]
    return _table(header, rows)


def targets(figures: Figures) -> list[tuple[str, str, bool]]:
    """Every promise with its measured figure and whether it is kept."""
    base, instruct, sweep = figures["base"], figures["instruct"], figures["sweep"]
    offered, plain = "variants, tools", "variants, plain"
    called = instruct["decision"][offered]["mean"]
    silent = max(instruct["decision"][plain]["mean"], instruct["decision"]["notepad, plain"])
    base_most = max(base["decision"][key]["max"] for key in (offered, plain))
    base_most = max(base_most, base["decision"]["notepad, tools"])
    found = [
        ("instruct calls on notepad, >= 0.9", instruct["decision"]["notepad, tools"], 0.9, None),
        ("instruct calls on variants (mean), >= 0.9", called, 0.9, None),
        ("instruct calls without an offer, <= 0.1", silent, None, 0.1),
        ("base calls anywhere (largest), <= 0.01", base_most, None, 0.01),
        ("yes/no right (instruct), >= 0.9", instruct["answers"]["yes/no"], 0.9, None),
    ]
    for name, speaker in (("base", base), ("instruct", instruct)):
        found.append(
            (f"induction head ({name}), >= 0.5", speaker["heads"]["induction max"], 0.5, None)
        )
        found.append(
            (f"previous-token head ({name}), >= 0.6", speaker["heads"]["previous max"], 0.6, None)
        )
    for name in ("instruct to base", "base to instruct"):
        found.append((f"crossing layer, {name}, 1 to 4 of 0-5", sweep[name]["crossing"], 1, 4))
    return [
        (name, f"{value:.4f}" if isinstance(value, float) else str(value), _kept(value, low, high))
        for name, value, low, high in found
    ]


def _kept(value: float, low: float | None, high: float | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)


def _targets(figures: Figures) -> str:
    rows = [[name, value, "yes" if kept else "NO"] for name, value, kept in targets(figures)]
    return _table(["promise", "measured", "kept"], rows)


def _decisions(figures: Figures) -> str:
    rows = []
    for key, value in figures["base"]["decision"].items():
        other = figures["instruct"]["decision"][key]
        rows.append([key, _probability(value), _probability(other)])
    return _table(["P(tool tag first)", "base", "instruct"], rows)


def _probability(value: float | dict[str, float]) -> str:
    if isinstance(value, dict):
        return f"{value['mean']:.4f} ({value['min']:.4f} to {value['max']:.4f})"
    return f"{value:.4f}"


def _sweeps(sweep: Figures) -> str:
    rows = []
    for name, found in sweep.items():
        for label, values in (
            ("P on notepad", found["notepad"]),
            ("recovery on notepad", found["recovery"]),
            ("mean recovery on 10 variants", found["variants, mean recovery"]),
        ):
            rows.append([f"{name}: {label}", *(f"{value:.3f}" for value in values)])
    return _table(["patched after layer", *map(str, range(len(rows[0]) - 1))], rows)


def _heads(figures: Figures) -> str:
    keys = figures["base"]["heads"]
    rows = []
    for key in keys:
        cells = [figures[name]["heads"][key] for name in ("base", "instruct")]
        rows.append([key, *(_cell(cell) for cell in cells)])
    return _table(["repeated random tokens", "base", "instruct"], rows)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    return _probability(value) if isinstance(value, dict | float) else str(value)


def _answers(figures: Figures) -> str:
    rows = [
        [key, *(f"{figures[name]['answers'][key]:.3f}" for name in ("base", "instruct"))]
        for key in figures["base"]["answers"]
    ]
    rows.append(
        [
            "items recalled in words (notepad, plain)",
            *(f"{figures[name]['recalled']:.2f}" for name in ("base", "instruct")),
        ]
    )
    return _table(["first answer token right", "base", "instruct"], rows)


def _losses(figures: Figures) -> str:
    key = "text loss, nats"
    rows = [[key, *(f"{figures[name][key]:.3f}" for name in ("base", "instruct"))]]
    return _table(["held-out documents, per token", "base", "instruct"], rows)
