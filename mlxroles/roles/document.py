"""All numbers of a run of attention entropies, as one document of plain lists and numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from mlxroles.errors import SpecError
from mlxroles.roles import candidates, compare, null
from mlxroles.roles.contrast import Contrast, contrast_of
from mlxroles.roles.heads import HeadResults, head_results, labels_of
from mlxroles.roles.sampling import FEWEST, Draws
from mlxroles.roles.scales import Averages, scale
from mlxroles.roles.table import Entropies, Reading
from mlxroles.text import format_number, safe_text

__all__ = ["Contrast", "build", "build_with_heads", "contrast_of", "ordered"]

_ORDER = ("base", "instruct")


def build(
    tables: Mapping[str, Entropies],
    *,
    reading: Reading,
    contrast: Contrast | None,
    seed: int = 0,
    n_resamples: int = 10_000,
    n_permutations: int = 10_000,
    heads: bool = True,
) -> dict[str, Any]:
    """Every statistic of one model, or of a base and an instruct model and their difference.

    Intervals are 95 % percentile bootstraps over prompts within categories, with the same
    resamples for both models; what rests on a category of fewer than ``sampling.FEWEST`` prompts
    has none, which a note says. Tests permute the categories of prompts. The same tables and seed
    give the same document to the last bit. Numbers that do not exist are NaN.

    Args:
        tables: by model: ``base`` and ``instruct``, or one of any name.
        reading: which queries and keys count.
        contrast: what RFC and RSI compare; None for entropies alone.
        seed: of every resample and permutation; not negative.
        n_resamples: bootstrap resamples.
        n_permutations: permutations per test.
        heads: whether single heads are described, which takes most of the time. Otherwise
            ``heads`` and ``candidates`` are None.

    Raises:
        SpecError: the models were not asked the same prompts, or no prompt has a category of the
            contrast.
    """
    found, _ = build_with_heads(
        tables,
        reading=reading,
        contrast=contrast,
        seed=seed,
        n_resamples=n_resamples,
        n_permutations=n_permutations,
        heads=heads,
    )
    return found


def build_with_heads(
    tables: Mapping[str, Entropies],
    *,
    reading: Reading,
    contrast: Contrast | None,
    seed: int = 0,
    n_resamples: int = 10_000,
    n_permutations: int = 10_000,
    heads: bool = True,
) -> tuple[dict[str, Any], HeadResults]:
    """As :func:`build`, with the statistics of every head beside the document.

    Without ``heads`` there are none, so no rows.
    """
    models = ordered(tables)
    table = next(iter(models.values()))
    for name in contrast.names if contrast else ():
        table.members(name)
    draws = Draws.of(table, seed=seed, n_resamples=n_resamples, n_permutations=n_permutations)
    averages = Averages.by_scale(models, reading)
    scales = {name: scale(by_model, contrast, draws) for name, by_model in averages.items()}
    labels = labels_of(table.layers, averages["raw"], contrast)
    by_head, ranking = HeadResults(labels, {}), None
    if heads:
        by_head = head_results(labels, averages, contrast, draws)
        ranking = candidates.find(table.layers, averages["raw"], contrast, draws)
    document = {
        "models": list(models),
        "layers": list(table.layers),
        "n_heads": table.n_heads,
        "prompts": _prompts(table),
        "categories": list(table.categories),
        "contrast": contrast.document() if contrast else None,
        "reading": asdict(reading),
        "seed": seed,
        "n_resamples": n_resamples,
        "n_permutations": n_permutations,
        "lengths": {name: _lengths(table, name) for name in table.categories},
        "null": null.uniform(table, reading, contrast),
        **scales,
        "heads": by_head.document() if heads else None,
        "candidates": ranking,
        "difference_summary": compare.difference_summary(table.layers, scales["raw"]),
    }
    notes = [
        *_prompt_notes(document["lengths"], next(iter(averages["raw"].values()))),
        *_first_key_notes(models, reading),
        *_flagged_note(labels),
    ]
    if contrast is not None:
        notes += _length_note(document["lengths"], document["null"]["raw"], contrast)
    return document | {"notes": notes}, by_head


def ordered(tables: Mapping[str, Entropies]) -> dict[str, Entropies]:
    """The tables, base first, checked against each other.

    Raises:
        SpecError: there is none, two have other names than ``base`` and ``instruct``, or they are
            not of the same prompts, tokens, layers and heads.
    """
    if not tables:
        raise SpecError("there is no model to describe; give one table, or base and instruct")
    if len(tables) == 1:
        return dict(tables)
    if set(tables) != set(_ORDER):
        names = ", ".join(map(safe_text, tables))
        raise SpecError(f"two models must be named base and instruct; these are {names}")
    base, instruct = (tables[name] for name in _ORDER)
    for what, one, other in (
        ("prompts", base.prompts, instruct.prompts),
        ("categories", base.category, instruct.category),
        ("tokens per prompt", base.length.tolist(), instruct.length.tolist()),
        ("begin tokens", base.has_bos.tolist(), instruct.has_bos.tolist()),
        ("layers with attention", base.layers, instruct.layers),
        ("numbers of heads", base.n_heads, instruct.n_heads),
    ):
        if one != other:
            raise SpecError(
                f"base and instruct have different {what}; compare runs of the same prompts on "
                "two models of one architecture with one tokenizer"
            )
    return {"base": base, "instruct": instruct}


def _prompts(table: Entropies) -> list[dict[str, Any]]:
    columns = (table.prompts, table.category, table.length.tolist(), table.has_bos.tolist())
    names = ("id", "category", "n_tokens", "has_bos")
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _lengths(table: Entropies, category: str) -> dict[str, Any]:
    tokens = table.length[table.members(category)].astype(np.float64)
    return {
        "n": len(tokens),
        "mean": float(tokens.mean()),
        "sd": float(tokens.std(ddof=1)) if len(tokens) > 1 else float("nan"),
        "min": int(tokens.min()),
        "max": int(tokens.max()),
    }


def _prompt_notes(lengths: Mapping[str, Any], one: Averages) -> list[str]:
    notes = []
    for name, members in one.members.items():
        n_prompts, counted = lengths[name]["n"], len(members)
        if counted < n_prompts:
            notes.append(
                f"category {safe_text(name)}: {n_prompts - counted} of {n_prompts} prompts have no "
                "query that counts and are left out"
            )
    few = {name: len(members) for name, members in one.members.items() if len(members) < FEWEST}
    if few:
        shown = ", ".join(f"{safe_text(name)} {n}" for name, n in few.items())
        notes.append(
            f"fewer than {FEWEST} prompts in a category ({shown}): no intervals of what rests on "
            "it, and no layer is called significant there"
        )
    return notes


def _first_key_notes(tables: Mapping[str, Entropies], reading: Reading) -> list[str]:
    """Queries that lose all of their weight with the begin token, and so have no entropy."""
    notes = []
    for name, table in tables.items():
        asked = np.where(table.counted(reading)[:, None, None], table.entropy, np.nan)
        n_asked = int((~np.isnan(asked)).sum())
        lost = n_asked - int((~np.isnan(table.queries(reading))).sum())
        if lost:
            notes.append(
                f"{safe_text(name)}: {lost} of {n_asked} queries, counted in every head, have all "
                "of their weight on the begin token and no entropy without it; they are left out"
            )
    return notes


def _flagged_note(labels: Sequence[Mapping[str, Any]]) -> list[str]:
    flagged, n_heads = (sum(one[what] for one in labels) for what in ("flagged", "exists"))
    if not flagged:
        return []
    return [
        f"{flagged} of {n_heads} heads have a reference entropy below .01 nat, where ratios "
        "explode: read the medians and log ratios beside the means of ratios"
    ]


def _length_note(
    lengths: Mapping[str, Any], null_raw: Mapping[str, Any], contrast: Contrast
) -> list[str]:
    means = [lengths[name]["mean"] for name in contrast.names]
    if max(means) - min(means) < 1e-9:
        return []
    shown = ", ".join(
        f"{safe_text(name)} {mean:.2f}" for name, mean in zip(contrast.names, means, strict=True)
    )
    bound = f"RFC {format_number(null_raw['rfc'], '+.3f')}"
    if null_raw["rsi"] is not None:
        bound += f" and RSI {format_number(null_raw['rsi'], '+.3f')}"
    return [
        f"the categories differ in length (mean tokens: {shown}): uniform attention, which knows "
        f"nothing, has {bound} on these prompts"
    ]
