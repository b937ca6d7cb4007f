"""All numbers of a run of attention entropies, as one document of plain lists and numbers."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from mlxroles.errors import SpecError
from mlxroles.roles import candidates, compare, null
from mlxroles.roles.contrast import Contrast, contrast_of
from mlxroles.roles.heads import HeadResults, head_results
from mlxroles.roles.sampling import Draws
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
) -> dict[str, Any]:
    """Every statistic of one model, or of a base and an instruct model and their difference.

    Intervals are 95 % percentile bootstraps over prompts within categories, with the same
    resamples for both models; tests permute the categories of prompts. The same tables and seed
    give the same document to the last bit. Numbers that do not exist are NaN.

    Args:
        tables: by model: ``base`` and ``instruct``, or one of any name.
        reading: which queries and keys count.
        contrast: what RFC and RSI compare; None for entropies alone.
        seed: of every resample and permutation; not negative.
        n_resamples: bootstrap resamples.
        n_permutations: permutations per test.

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
) -> tuple[dict[str, Any], HeadResults]:
    """As :func:`build`, with the statistics of every head beside the document."""
    models = ordered(tables)
    table = next(iter(models.values()))
    for name in contrast.names if contrast else ():
        table.members(name)
    draws = Draws.of(table, seed=seed, n_resamples=n_resamples, n_permutations=n_permutations)
    averages = Averages.by_scale(models, reading)
    scales = {name: scale(by_model, contrast, draws) for name, by_model in averages.items()}
    heads = head_results(table.layers, averages, contrast, draws)
    found = candidates.find(table.layers, averages["raw"], contrast, draws)
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
        "heads": heads.document(),
        "candidates": found,
        "difference_summary": compare.difference_summary(table.layers, scales["raw"]),
    }
    return document | {"notes": _notes(document, averages["raw"], contrast)}, heads


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


def _notes(
    document: Mapping[str, Any], raw: Mapping[str, Averages], contrast: Contrast | None
) -> list[str]:
    notes = []
    one = next(iter(raw.values()))
    for name, members in one.members.items():
        n_prompts, counted = document["lengths"][name]["n"], len(members)
        if counted < n_prompts:
            notes.append(
                f"category {safe_text(name)}: {n_prompts - counted} of {n_prompts} prompts have no "
                "query that counts and are left out"
            )
        if counted == 1:
            notes.append(f"category {safe_text(name)} has one prompt: no intervals")
    flagged, n_heads = len(document["heads"]["flagged"]), document["heads"]["n"]
    if flagged:
        notes.append(
            f"{flagged} of {n_heads} heads have a reference entropy below .01 nat, where ratios "
            "explode: read the medians and log ratios beside the means of ratios"
        )
    if contrast is not None:
        notes += _length_note(document["lengths"], document["null"]["raw"], contrast)
    return notes


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
