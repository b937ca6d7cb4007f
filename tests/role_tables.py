"""Entropies of made-up attention: two related models on four categories of prompts, no model."""

import math

import numpy as np

from mlxroles.roles import document
from mlxroles.roles.contrast import Contrast
from mlxroles.roles.table import Entropies, Reading

CATEGORIES = ("self_referent", "confounder", "neutral", "third_person")
LENGTHS = (4, 10)
NEAR = 3


def rows_of(scores):
    """Causal attention weights [layer, head, query, key] of scores of that shape."""
    size = scores.shape[-1]
    seen = np.tril(np.ones((size, size), dtype=bool))
    weights = np.where(seen, np.exp(scores - scores.max(axis=-1, keepdims=True)), 0.0)
    return weights / weights.sum(axis=-1, keepdims=True)


def entropies_of(model, patterns, category, *, has_bos=True, layers=None, prompts=None):
    """The table of one model's patterns, one array [layer, head, query, key] per prompt."""
    n_layers, n_heads = patterns[0].shape[:2]
    length = np.array([pattern.shape[-1] for pattern in patterns])
    shape = (len(patterns), n_layers, n_heads, int(length.max()))
    entropy, no_first = np.full(shape, np.nan), np.full(shape, np.nan)
    first, recent = np.full((*shape, NEAR), np.nan), np.full((*shape, NEAR), np.nan)
    for i, pattern in enumerate(patterns):
        size = pattern.shape[-1]
        entropy[i, ..., :size] = _entropy(pattern)
        rest = pattern[..., 1:, 1:]
        no_first[i, ..., 1:size] = _entropy(rest / rest.sum(axis=-1, keepdims=True))
        first[i, ..., :size, :] = recent[i, ..., :size, :] = 0.0
        for query in range(size):
            for near in range(min(NEAR, query + 1)):
                first[i, ..., query, near] = pattern[..., query, near]
                recent[i, ..., query, near] = pattern[..., query, query - near]
    return Entropies(
        model=model,
        prompts=tuple(prompts or (f"p{i:03d}" for i in range(len(patterns)))),
        category=tuple(category),
        length=length,
        has_bos=np.full(len(patterns), has_bos),
        layers=tuple(layers or range(n_layers)),
        entropy=entropy.astype(np.float32),
        entropy_no_first=no_first.astype(np.float32),
        first_keys=first.astype(np.float32),
        recent_keys=recent.astype(np.float32),
    )


def random_tables(
    seed, layers=4, heads=6, per_category=8, effect=0.0, *, has_bos=True, categories=CATEGORIES
):
    """Base and instruct of the same random prompts, 4 to 9 tokens long.

    The instruct model's scores are those of base plus noise. ``effect`` sharpens its attention on
    the prompts of the first category, in every head: scores times 1 + ``effect``.
    """
    rng = np.random.default_rng(seed)
    category = [name for name in categories for _ in range(per_category)]
    base, instruct = [], []
    sharpness = rng.uniform(0.5, 2.0, size=(layers, heads, 1, 1))
    for name in category:
        size = int(rng.integers(*LENGTHS))
        scores = sharpness * rng.normal(size=(layers, heads, size, size))
        moved = scores + 0.3 * rng.normal(size=scores.shape)
        base.append(rows_of(scores))
        instruct.append(rows_of(moved * (1 + effect) if name == categories[0] else moved))
    return {
        "base": entropies_of("base", base, category, has_bos=has_bos),
        "instruct": entropies_of("instruct", instruct, category, has_bos=has_bos),
    }


def loop_entropies(table, reading, *, normalised=False):
    """Entropies that count by (prompt, layer, head), read value by value."""
    found = {}
    for i, length in enumerate(table.length):
        drop = reading.keys == "no-bos" and table.has_bos[i]
        source = table.entropy_no_first if drop else table.entropy
        for layer, head in np.ndindex(table.entropy.shape[1:3]):
            kept = []
            for query in range(length):
                if query == 0 and (drop or reading.queries == "no-first"):
                    continue
                if reading.queries == "last" and query != length - 1:
                    continue
                value = float(source[i, layer, head, query])
                keys = query if drop else query + 1
                if normalised:
                    if keys == 1:
                        continue
                    value /= math.log(keys)
                if not np.isnan(value):
                    kept.append(value)
            found[i, layer, head] = kept
    return found


def _entropy(rows):
    terms = np.where(rows > 0, rows * np.log(np.where(rows > 0, rows, 1.0)), 0.0)
    return 0.0 - terms.sum(axis=-1)


def all_rows(doc, tables):
    """Every head's row, from the settings of a document."""
    _, results = document.build_with_heads(
        tables,
        reading=Reading(**doc["reading"]),
        contrast=None if doc["contrast"] is None else Contrast(**doc["contrast"]),
        seed=doc["seed"],
        n_resamples=doc["n_resamples"],
        n_permutations=doc["n_permutations"],
    )
    return results.rows()
