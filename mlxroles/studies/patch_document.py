"""Sums a patch run up: cells of the journal into the summary document ``mlxroles/patch/1``.

Every derived number is worked out per prompt and then averaged, so that intervals come from
resampling prompts. Needs no model: a document can be made again from a run folder at any time.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mlxroles import documents, probes, stats
from mlxroles.documents import DIRECTIONS, donor, recipient
from mlxroles.errors import IntegrityError
from mlxroles.studies.patch import PatchGrid

SCHEMA = "mlxroles/patch/1"
RECOVERY_METRIC = "log_odds"
TESTED = ("effect", "effect_log_odds", "effect_logit_diff")
"""Changes whose mean over several prompts is tested against 0, by flipping signs."""
FLIPS = 10_000
_SHORT = {"instruct_to_base": "i2b", "base_to_instruct": "b2i"}

Values = Mapping[str, Any]
Cells = Mapping[str, tuple[Mapping[str, Any], Values, float]]
"""Cell id -> coordinates, values, seconds; stored cells only."""

_Cell = tuple[dict[str, Any], Sequence[Values | None]]
"""A cell of the document, and what each prompt had there."""


def document(
    grid: PatchGrid,
    cells: Cells,
    *,
    headline: str,
    strings: Mapping[str, Any],
    seed: int = 0,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """The summary document of a finished or interrupted run.

    Args:
        grid: What was asked for.
        cells: What is stored of it.
        headline: The string that the headline numbers are about.
        strings: Token ids per measured string.
        seed: Of the bootstrap.
        about: ``pair``, ``display``, ``d1_group``, ``n_layers``, ``run``, ``run_id``,
            ``versions``, ``timestamp`` and the like, taken over as they are.
    """
    summed = _Summed(grid, cells, seed)
    baselines = {side: summed.baseline(side) for side in ("instruct", "base")}
    doc: dict[str, Any] = {
        "schema": SCHEMA,
        **about,
        "n_tokens": grid.prompts[0].n_tokens,
        "n_tokens_per_prompt": [p.n_tokens for p in grid.prompts],
        "layers_tested": list(grid.layers.layers),
        "site": grid.site,
        "positions": grid.positions,
        "heads": grid.heads,
        "seed": seed,
        "prompts": [
            {"id": p.id, "n_tokens": p.n_tokens, "digest": p.digest, "category": p.category}
            for p in grid.prompts
        ],
        "headline": headline,
        "strings": dict(strings),
        "ids": {text: entry["ids"] for text, entry in strings.items()},
        "recovery_metric": RECOVERY_METRIC,
        "sign_flips": _flips(len(grid.prompts)),
        "baselines": baselines,
    }
    for direction in DIRECTIONS:
        doc[direction] = summed.direction(direction, None)
    doc["controls"] = {
        control: {d: summed.direction(d, control) for d in DIRECTIONS} for control in grid.controls
    }
    doc["summary"] = summary(doc)
    return doc


def _flips(prompts: int) -> dict[str, Any] | None:
    """How the p-values were made; None for one prompt, of which there are none."""
    if prompts < 2:
        return None
    return {
        "measures": list(TESTED),
        "prompts": prompts,
        "n": min(FLIPS, 2**prompts),
        "exact": 2**prompts <= FLIPS,
        "smallest_p": stats.smallest_flip_p(prompts, FLIPS),
    }


def summary(doc: Values) -> dict[str, Any]:
    """The study's summary fields, and per direction the ones that say more."""
    by_direction = {
        d: {int(layer): cell for layer, cell in doc[d].items()} for d in DIRECTIONS if doc[d]
    }

    def column(direction: str, name: str) -> dict[int, float] | None:
        cells = by_direction.get(direction)
        if not cells:
            return None
        return {layer: documents.number(c, name) for layer, c in sorted(cells.items())}

    study = probes.study_summary(
        instruct_to_base=column("instruct_to_base", "effect"),
        base_to_instruct=column("base_to_instruct", "effect"),
        n_layers=doc["n_layers"],
    )
    found: dict[str, Any] = dict(study)
    for direction in by_direction:
        recoveries, increments = column(direction, "recovery"), column(direction, "increment")
        in_prob = column(direction, "recovery_prob")
        assert recoveries is not None
        assert in_prob is not None
        assert increments is not None
        steepest = probes.peak(increments, doc["n_layers"])
        short = _SHORT[direction]
        found[direction] = {
            "peak_layer": study[f"{short}_peak_layer"],
            "peak_effect": study[f"{short}_peak_effect"],
            "peak_depth_pct": study[f"{short}_peak_depth_pct"],
            "first_half_recovery_layer": probes.first_half_layer(recoveries),
            "first_half_recovery_layer_prob": probes.first_half_layer(in_prob),
            "largest_increment_layer": steepest.layer,
            "largest_increment": steepest.effect,
            "max_control_recovery": _largest_control(doc, direction),
        }
    return found


def _largest_control(doc: Values, direction: str) -> float | None:
    found = [
        documents.number(cell, "recovery")
        for control in doc["controls"].values()
        for cell in control[direction].values()
    ]
    known = [value for value in found if not math.isnan(value)]
    return max(known, default=None)


class _Summed:
    """Means over prompts of what the cells hold, with intervals where there are several."""

    def __init__(self, grid: PatchGrid, cells: Cells, seed: int) -> None:
        self.grid, self.seed = grid, seed
        self.prompts = range(len(grid.prompts))
        self.base: dict[tuple[str, int], Values] = {}
        self.table: dict[tuple, dict[tuple[int, int], tuple[Values, float]]] = {}
        for coords, values, seconds in cells.values():
            p = int(coords["prompt"])
            if "baseline" in coords:
                self.base[str(coords["baseline"]), p] = values
                continue
            part = coords.get("head", coords["position"] if grid.positions == "each" else None)
            key = (coords["direction"], coords.get("control"), part)
            self.table.setdefault(key, {})[p, int(coords["layer"])] = (values, seconds)

    def baseline(self, side: str) -> dict[str, Any]:
        """The unpatched model's measures."""
        return self._mean([self.base.get((side, p)) for p in self.prompts], f"baseline {side}")

    def direction(self, direction: str, control: str | None) -> dict[str, Any]:
        """Layer (as text) -> measures and effects, with one entry per head or position if swept."""
        parts = sorted(
            (k[2] for k in self.table if k[:2] == (direction, control)),
            key=lambda x: (x is not None, x),
        )
        made = {part: self._layers(direction, control, part) for part in parts or [None]}
        self._test([cell for layers in made.values() for cell in layers.values()], direction)
        found: dict[str, Any] = {}
        axis = "by_head" if self.grid.heads == "each" else "by_position"
        for part, layers in made.items():
            for layer, (cell, _) in layers.items():
                if part is None:
                    found[layer] = cell
                    continue
                cell["increment"] = None  # a head or position has none below it to compare with
                found.setdefault(layer, {axis: {}})[axis][str(part)] = cell
        if None in made:
            return found
        return {layer: _strongest(found[layer][axis]) | found[layer] for layer in found}

    def _layers(self, direction: str, control: str | None, part: object) -> dict[str, _Cell]:
        stored = self.table.get((direction, control, part), {})
        if not stored:
            return {}
        layers = sorted({layer for _, layer in stored})
        derived = {p: self._derived(direction, p, stored, layers) for p in self.prompts}
        found = {}
        for layer in layers:
            rows = []
            for p in self.prompts:
                values, _ = stored.get((p, layer), (None, 0.0))
                rows.append(None if values is None else {**values, **derived[p][layer]})
            cell = self._mean(rows, f"{direction} {control} {part} {layer}")
            cell["time_s"] = sum(s for (_, at), (_, s) in stored.items() if at == layer)
            found[str(layer)] = (cell, rows)
        return found

    def _test(self, cells: Sequence[_Cell], direction: str) -> None:
        """Adds p by sign flips, and q over these cells, of each change that is tested."""
        if len(self.prompts) == 1 or not cells:
            return
        for name in TESTED:
            values = [[documents.number(row, name) for row in rows] for _, rows in cells]
            rng = np.random.default_rng([self.seed, *f"{direction} {name}".encode()])
            p = stats.sign_flip_test(np.array(values).T, rng, n=FLIPS)
            q = stats.benjamini_hochberg(p)
            for (cell, _), own, corrected in zip(cells, p, q, strict=True):
                cell |= {f"{name}_p": float(own), f"{name}_q": float(corrected)}

    def _derived(
        self,
        direction: str,
        p: int,
        stored: Mapping[tuple[int, int], tuple[Values, float]],
        layers: Sequence[int],
    ) -> Mapping[int, Values]:
        target = self.base.get((recipient(direction), p))
        source = self.base.get((donor(direction), p))
        if target is None or source is None:
            return {layer: {} for layer in layers}
        cells = {layer: stored.get((p, layer), (None, 0.0))[0] for layer in layers}
        found = probes.effects(cells, recipient=target, donor=source, metric=RECOVERY_METRIC)
        own = documents.number(target, "logit_diff")
        changed = {i: documents.number(cell, "logit_diff") - own for i, cell in cells.items()}
        return {i: {**found[i], "effect_logit_diff": changed[i]} for i in found}

    def _mean(self, rows: Sequence[Values | None], where: str) -> dict[str, Any]:
        """The mean of every number over the prompts; the first prompt's top tokens."""
        known = [row for row in rows if row is not None]
        if not known:
            return {}
        if len(self.prompts) == 1:
            return dict(known[0])
        found: dict[str, Any] = {}
        seed = [self.seed, *where.encode()]
        for name in known[0]:
            values = [row[name] for row in known]
            found |= _averaged(name, values, lambda: np.random.default_rng(seed))
        return found


def _averaged(
    name: str, values: Sequence[Any], rng: Callable[[], np.random.Generator]
) -> dict[str, Any]:
    if all(isinstance(v, int | float) for v in values):
        column = np.array(values, dtype=np.float64)
        low, high = stats.bootstrap_mean_ci(column, rng())
        return {name: float(stats.nan_mean(column)), f"{name}_ci": [float(low), float(high)]}
    if all(isinstance(v, Mapping) for v in values):
        inner: dict[str, Any] = {}
        for key in values[0]:
            inner |= _averaged(key, [v.get(key) for v in values], rng)
        return {name: inner}
    if name.startswith("top"):
        return {name: _mean_top([v for v in values if v], len(values))}
    numbers = [v for v in values if isinstance(v, int | float)]
    return {name: float(np.mean(numbers)) if numbers else None}


def _mean_top(lists: Sequence[Sequence[Values]], count: int) -> list[dict[str, Any]]:
    """The tokens with the largest mean probability; one outside a prompt's list counts as 0."""
    total: dict[int, dict[str, Any]] = {}
    for listed in lists:
        for entry in listed:
            kept = total.setdefault(entry["id"], {**entry, "prob": 0.0})
            kept["prob"] += entry["prob"] / count
    length = max((len(listed) for listed in lists), default=0)
    return sorted(total.values(), key=lambda e: -e["prob"])[:length]


def _strongest(parts: Mapping[str, Values]) -> dict[str, Any]:
    """The head or position with the largest recovery: it stands for the layer in tables."""
    known = {k: documents.number(v, "recovery") for k, v in parts.items()}
    known = {k: v for k, v in known.items() if not math.isnan(v)}
    best = max(known, key=lambda k: abs(known[k])) if known else next(iter(parts))
    return {**parts[best], "strongest": int(best)}


def stored_cells(records: Iterable[Any]) -> dict[str, tuple[Any, Any, float]]:
    """Coordinates, values and seconds of the finished cells among a run folder's records.

    Raises:
        IntegrityError: a record lacks the coordinates of its cell.
    """
    found = {}
    for record in records:
        if record.status != "ok":
            continue
        if "prompt" not in record.coords:
            raise IntegrityError(f"the stored cell {record.id} has no coordinates")
        found[record.id] = (record.coords, record.values, record.seconds)
    return found
