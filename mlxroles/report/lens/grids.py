"""Token grids, layers by positions, as plain texts and numbers: what every view of them draws."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxroles.text import safe_text

Doc = Mapping[str, Any]


class TokenGrid(NamedTuple):
    """What the lens reads of one prompt in one run."""

    model: str
    variant: str
    prompt: str
    run: str
    lens: str
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    tokens: tuple[str, ...]
    """[position], the prompt's own tokens."""
    end: tuple[str, ...]
    """[position], the likeliest token of the run's own answer."""
    top: tuple[tuple[tuple[str, ...], ...], ...]
    """[layer][position][k], the likeliest tokens of the lens."""
    probs: NDArray[np.float64]
    """[layer, position, k]"""
    end_rank: NDArray[np.int64]
    """[layer, position], rank of the run's own answer."""
    headline_rank: NDArray[np.int64]
    kl: NDArray[np.float64]
    """[layer, position], nats."""

    @property
    def name(self) -> str:
        """Which run this is, in words that differ from those of the others of its document."""
        return ", ".join(part for part in words(self) if part)


def words(grid: Any) -> list[str]:
    """Model, variant, run and lens of a grid or row; empty where it is the usual one."""
    get = grid.get if isinstance(grid, Mapping) else lambda name: getattr(grid, name)
    variant, run, lens = get("variant"), get("run"), get("lens")
    return [
        safe_text(str(get("model")), limit=40),
        "" if variant == "default" else safe_text(str(variant), limit=40),
        "" if run == "clean" else safe_text(str(run), limit=40),
        "tuned lens" if lens == "tuned" else "",
    ]


def token_grid(doc: Doc, row: Doc, found: Mapping[str, np.ndarray]) -> TokenGrid:
    """The grid of one row of the document, from the arrays of its cell."""
    texts = doc.get("texts") or {}

    def text(token: int) -> str:
        return str(texts.get(str(int(token)), int(token)))

    return TokenGrid(
        *(str(row[name]) for name in ("model", "variant", "prompt", "run", "lens")),
        tuple(int(layer) for layer in doc["layers"]),
        tuple(int(p) for p in found["position"]),
        tuple(text(t) for t in found["token"]),
        tuple(text(t) for t in found["end_ids"]),
        tuple(tuple(tuple(text(t) for t in cell) for cell in layer) for layer in found["top_ids"]),
        found["top_p"].astype(np.float64),
        found["end_rank"].astype(np.int64),
        found["headline_rank"].astype(np.int64),
        found["kl"].astype(np.float64),
    )


def chosen_grids(grids: Sequence[TokenGrid], most: int) -> list[TokenGrid]:
    """Those shown where there is room for so many: the first prompt's, a model after the other.

    The tuned lens goes before the plain one, a clean run before an edited one.
    """
    prompts, variants = (
        list(dict.fromkeys(getattr(grid, name) for grid in grids)) for name in ("prompt", "variant")
    )

    def place(grid: TokenGrid) -> tuple[int, int, bool, bool]:
        is_edited, is_plain = grid.run != "clean", grid.lens == "plain"
        return prompts.index(grid.prompt), variants.index(grid.variant), is_plain, is_edited

    return sorted(grids, key=place)[:most]
