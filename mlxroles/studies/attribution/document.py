"""Sums an attribution run up: stored estimates into the document ``mlxroles/attribution/1``.

Every derived number is worked out per prompt and then averaged; intervals come from resampling
prompts, p-values from flipping the signs of whole prompts, corrected within each site and
direction (Benjamini and Hochberg 1995). Needs no model.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxroles import stats
from mlxroles.documents import DIRECTIONS, SMALL_GAP, SMALL_LEVEL, donor, recipient
from mlxroles.studies.attribution import edges
from mlxroles.studies.attribution.grid import STREAM_SITES, UNITS, AttributionGrid, Numbers
from mlxroles.studies.attribution.stored import Stored
from mlxroles.studies.attribution.verify import agreement

SCHEMA = "mlxroles/attribution/1"
TOP = 40
"""Cells of a site, and edges, that the document lists with everything known of them."""
MOST_INTERVALS = 4096
"""Cells of a site that all get an interval; of more, those that are listed."""

MOST_EDGES = 200_000
"""Edges that are all tested; the p of some edges alone could not be corrected for the rest."""
GRADIENT = 3
"""Forward passes that a gradient counts for: its own, and two for the way back."""

Values = Mapping[str, Any]


def document(
    stored: Stored,
    *,
    metric: str,
    ig: int,
    tokens: Sequence[str | None],
    seed: int = 0,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """The summary document of a finished or interrupted run.

    Args:
        stored: The finished cells.
        metric: What the effects are effects on.
        ig: Points on the way from recipient to donor at which gradients were taken.
        tokens: Text of the token at each position, None where prompts differ there; empty where
            their lengths do.
        seed: Of bootstrap, permutations and the choice of cells.
        about: Fields taken over as they are, ``n_layers``, ``run_id``, ``headline`` among them.
    """
    grid = stored.grid
    found = _Summed(stored, list(tokens), seed, metric)
    by_direction = {d: found.direction(d) for d in DIRECTIONS}
    rows = [r for entry in by_direction.values() for r in _verified(entry)]
    return {
        "schema": SCHEMA,
        **about,
        "method": "attribution",
        "verified_cells": len(rows),
        "metric": metric,
        "unit": UNITS.get(metric, "1"),
        "ig": ig,
        "integrated": list(grid.integrated),
        "sites": [
            site
            for site in grid.sites
            if any(site in entry.get("sites", ()) for entry in by_direction.values())
        ],
        "positions": {site: grid.positions(site) for site in grid.sites},
        "layers_tested": list(grid.layers.layers),
        "verify": stored.verified,
        "prompts": [
            {"id": p.id, "n_tokens": p.n_tokens, "digest": p.digest, "category": p.category}
            for p in grid.prompts
        ],
        "tokens": list(tokens),
        "correction": "Benjamini-Hochberg within each site and direction",
        **by_direction,
    }


def _verified(entry: Values) -> list[Values]:
    rows = [row for site in (entry.get("verify") or {}).values() for row in site["rows"]]
    return rows + ((entry.get("edges") or {}).get("verify") or {}).get("rows", [])


class _Summed:
    """Means over prompts of what the cells hold, with intervals where there are several."""

    def __init__(self, stored: Stored, tokens: list[str | None], seed: int, metric: str) -> None:
        self.stored, self.grid, self.tokens, self.seed = stored, stored.grid, tokens, seed
        self.metric = metric

    def direction(self, direction: str) -> dict[str, Any]:
        """Levels, sites, edges and verification of a direction; empty where nothing is stored."""
        ours = self.stored.prompts(direction)
        if not ours:
            return {}
        levels = self.stored.levels(direction)
        gradients = sum(self.stored.gradients(direction, p) for p in ours)
        found: dict[str, Any] = {
            **self._mean("recipient", levels.recipient, direction),
            **self._mean("donor", levels.donor, direction),
            **self._mean("gap", levels.donor - levels.recipient, direction),
            "n_prompts": len(ours),
            "gradients": gradients,
            "passes": GRADIENT * gradients,
            "models": {
                model: self._measures([self.stored.values(direction, p)[key] for p in ours])
                for model, key in (
                    (recipient(direction), "recipient_measures"),
                    (donor(direction), "donor_measures"),
                )
            },
        }
        found["nothing_to_recover"] = self._nothing(found["models"])
        gap = np.full(len(ours), np.nan) if found["nothing_to_recover"] else levels.gap
        found["sites"] = {
            site: self._site(direction, site, values, gap)
            for site, values in self.stored.estimates(direction).items()
        }
        verified = self._verify(direction, found["sites"])
        if verified:
            found["verify"] = verified
        if self.stored.prompts(direction, "edges"):
            found["edges"] = self._edges(direction, dict(zip(ours, gap, strict=True)))
        return found

    def _nothing(self, models: Mapping[str, Values]) -> bool:
        """Whether the models agree too well on the string for shares of their gap, as in a sweep.

        Metrics that are not about the string are about something else.
        """
        if self.metric in ("entropy", "kl"):
            return False
        odds = [measures["log_odds"] for measures in models.values()]
        level = max(measures["p_first_token"] for measures in models.values())
        return not (abs(odds[0] - odds[1]) >= SMALL_GAP and level >= SMALL_LEVEL)

    def _rng(self, *where: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, *" ".join(where).encode()])

    def _mean(self, name: str, values: Numbers, *where: str) -> dict[str, Any]:
        """The mean over prompts [prompt], with its interval where there are several."""
        found: dict[str, Any] = {name: float(stats.nan_mean(values))}
        if len(values) > 1:
            low, high = stats.bootstrap_mean_ci(values, self._rng(*where, name))
            found[f"{name}_ci"] = [float(low), float(high)]
        return found

    @staticmethod
    def _measures(rows: Sequence[Values]) -> dict[str, float]:
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}

    # --- sites --------------------------------------------------------------------------------

    def _site(self, direction: str, site: str, values: Numbers, gap: Numbers) -> dict[str, Any]:
        axes = self.grid.axes(site)
        entry: dict[str, Any] = {"axes": list(axes)}
        per_layer = "position" in axes and site in STREAM_SITES
        shown = self.stored.over_positions(direction, site) if "position" in axes else values
        tested = self._tested(shown, gap, direction, site, "sum")
        entry["by_layer" if per_layer else "grid"] = {n: a.tolist() for n, a in tested.items()}
        if "position" in axes:
            tested = self._tested(values, gap, direction, site)
        entry["cells"] = int(np.isfinite(tested["estimate"]).sum())
        entry["top"] = self._top(direction, site, values, gap, tested)
        if "p" in tested:
            entry["significant"] = int(np.nansum(tested["q"] < 0.05))
        return entry

    def _tested(self, values: Numbers, gap: Numbers, *where: str) -> dict[str, Numbers]:
        """Means over prompts of values [prompt, ...], with intervals and p where there are several.

        ``q`` is p after correction for all cells here.
        """
        shares = values / gap.reshape(-1, *[1] * (values.ndim - 1))
        found = {"estimate": stats.nan_mean(values), "recovery": stats.nan_mean(shares)}
        if len(values) < 2:
            return found
        if values[0].size <= MOST_INTERVALS:
            low, high = stats.bootstrap_mean_ci(values, self._rng(*where, "bootstrap"))
            found |= {"low": low, "high": high}
        found["p"] = stats.sign_flip_test(values, self._rng(*where, "signs"))
        found["q"] = stats.benjamini_hochberg(found["p"])
        return found

    def _top(
        self,
        direction: str,
        site: str,
        values: Numbers,
        gap: Numbers,
        tested: Mapping[str, Numbers],
    ) -> list[dict[str, Any]]:
        """The largest cells by absolute mean, each with its coordinates and all that is known."""
        best = edges.ranked(tested["estimate"], TOP)
        columns = values[(slice(None), *np.array(best, dtype=int).reshape(-1, values.ndim - 1).T)]
        known = self._listed(columns, gap, direction, site, "top")
        rows = []
        for at, numbers in zip(best, known, strict=True):
            row = self._coords(site, at) | numbers
            if "low" in tested:
                row["estimate_ci"] = [float(tested[name][at]) for name in ("low", "high")]
            row |= {name: float(tested[name][at]) for name in ("p", "q") if name in tested}
            rows.append(row)
        return rows

    def _listed(self, columns: Numbers, gap: Numbers, *where: str) -> list[dict[str, Any]]:
        """Means of estimate and recovery of each cell [prompt, cell], with their intervals."""
        both = np.stack([columns, columns / gap[:, None]])
        means = stats.nan_mean(both, axis=1)
        rows: list[dict[str, Any]] = [
            {"estimate": float(estimate), "recovery": float(recovery)}
            for estimate, recovery in means.T
        ]
        if columns.shape[0] < 2 or not rows:
            return rows
        flat = np.concatenate(list(both), axis=1)
        bounds = np.stack(stats.bootstrap_mean_ci(flat, self._rng(*where))).T
        for n, row in enumerate(rows):
            for name, at in (("estimate", n), ("recovery", len(rows) + n)):
                row[f"{name}_ci"] = [float(bound) for bound in bounds[at]]
        return rows

    def _coords(self, site: str, at: Sequence[int]) -> dict[str, Any]:
        found: dict[str, Any] = dict(zip(self.grid.axes(site), at, strict=True))
        found["layer"] = self.grid.layers.layers[found["layer"]]
        if "position" in found and found["position"] < len(self.tokens):
            found["token"] = self.tokens[found["position"]]
        return found

    # --- verification -------------------------------------------------------------------------

    def _verify(self, direction: str, sites: Mapping[str, Values]) -> dict[str, Any]:
        found = {}
        for site in sites:
            rows = self._exact(direction, "verify", site)
            if rows:
                for row in rows:
                    if row.get("position", len(self.tokens)) < len(self.tokens):
                        row["token"] = self.tokens[row["position"]]
                rng = self._rng(direction, site, "rank")
                found[site] = {"rows": rows, **agreement(rows, rng, sites[site]["cells"])}
        return found

    def _exact(self, direction: str, step: str, site: str | None = None) -> list[dict[str, Any]]:
        """Verified cells with the means over prompts of estimate and exact effect."""
        found = []
        for rows in self.stored.exact(direction, step, site):
            one = {n: v for n, v in rows[0].items() if n not in ("estimate", "exact")}
            estimate, exact = (
                np.array([row[n] for row in rows], dtype=np.float64) for n in ("estimate", "exact")
            )
            one["estimate"] = float(stats.nan_mean(estimate))
            one |= self._mean("exact", exact, direction, step, str(one))
            one["difference"] = one["estimate"] - one["exact"]
            found.append(one)
        return found

    # --- edges --------------------------------------------------------------------------------

    def _edges(self, direction: str, gaps: Mapping[int, float]) -> dict[str, Any]:
        sources, targets = self.stored.edge_ends(direction)
        mean = self.stored.mean_edges(direction)
        best = edges.ranked(mean, TOP)
        ours = self.stored.prompts(direction, "edges")
        listed = tuple(np.array(best, dtype=int).reshape(-1, 2).T)
        scores = np.stack([self.stored.edge_scores(direction, p)[listed] for p in ours])
        gap = np.array([gaps.get(p, np.nan) for p in ours])
        tested = self._tested_edges(direction, np.isfinite(mean))
        rows = [
            self._ends(sources[source], targets[target])
            | numbers
            | {name: float(values[source, target]) for name, values in tested.items()}
            for (source, target), numbers in zip(
                best, self._listed(scores.astype(np.float64), gap, direction, "edges"), strict=True
            )
        ]
        entry: dict[str, Any] = {"cells": int(np.isfinite(mean).sum()), "top": rows}
        verified = self._exact(direction, "verify_edges")
        if verified:
            rng = self._rng(direction, "edges", "rank")
            entry["verify"] = {"rows": verified, **agreement(verified, rng, entry["cells"])}
        return entry

    def _tested_edges(self, direction: str, known: NDArray[np.bool_]) -> dict[str, Numbers]:
        """P and q of all edges [source, target] by sign flips; nothing where there are too many.

        Args:
            direction: Which way.
            known: The edges there are [source, target].
        """
        ours = self.stored.prompts(direction, "edges")
        if len(ours) < 2 or known.sum() > MOST_EDGES:
            return {}
        scores = np.stack([self.stored.edge_scores(direction, p)[known] for p in ours])
        p = stats.sign_flip_test(scores.astype(np.float64), self._rng(direction, "edges", "signs"))
        found = {}
        for name, values in (("p", p), ("q", stats.benjamini_hochberg(p))):
            found[name] = np.full(known.shape, np.nan)
            found[name][known] = values
        return found

    @staticmethod
    def _ends(source: Sequence[Any], target: Sequence[Any]) -> dict[str, Any]:
        return {
            "source": edges.name(source),
            "target": edges.name(target),
            "source_end": list(source),
            "target_end": list(target),
        }


def same_tokens(texts: Sequence[Sequence[str]], grid: AttributionGrid) -> list[str | None]:
    """Text at each position, None where prompts differ; empty where their lengths do."""
    if len({prompt.n_tokens for prompt in grid.prompts}) > 1:
        return []
    return [row[0] if len(set(row)) == 1 else None for row in zip(*texts, strict=True)]
