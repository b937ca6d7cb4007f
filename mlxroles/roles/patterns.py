"""Attention weights in a file, checked before anything is computed from them.

A file of patterns is an ``.npz`` with the arrays ``pattern`` (layer, prompt, head, query, key),
``length`` (tokens per prompt) and ``category`` (one text per prompt). What lies beyond a prompt's
length is never read. Files that hold Python objects are refused, since loading one runs code.
"""

import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlxroles.errors import StoreError
from mlxroles.roles.table import NEAR, Entropies
from mlxroles.store.files import plain_errors, shown
from mlxroles.text import safe_text

# What numpy and zipfile raise for an array whose bytes are not what they should be.
_DAMAGE = (
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,
    SyntaxError,
    OverflowError,
    NotImplementedError,
    RuntimeError,
)
_ARRAYS = ("pattern", "length", "category")
_TOLERANCE = 1e-3
"""By how much a row's sum may miss 1, and the most weight on keys that a query cannot see."""

Weights = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Patterns:
    """Attention after softmax of one model on a set of prompts."""

    pattern: Weights
    """Weights [layer, prompt, head, query, key]; beyond a prompt's length anything."""
    length: NDArray[np.integer]
    """Tokens per prompt [prompt]."""
    category: tuple[str, ...]
    """Category of each prompt."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Numbers of the layers, counted from 0."""
        return tuple(range(self.pattern.shape[0]))

    @property
    def n_heads(self) -> int:
        """Length of the axis ``head``."""
        return self.pattern.shape[2]

    def of_prompt(self, prompt: int) -> Weights:
        """The weights of one prompt [layer, head, query, key], float64, cut to its length."""
        size = int(self.length[prompt])
        return self.pattern[:, prompt, :, :size, :size].astype(np.float64)

    def entropies(self, model: str = "model", *, epsilon: float = 0.0) -> Entropies:
        """The entropies and near keys of these weights, float64.

        Rows are brought to the sum 1 first. No prompt counts as having a begin token.

        Args:
            model: what the table calls the model.
            epsilon: added to each weight of the prompt's keys, unseen ones included, before the
                row is brought to the sum 1, for ``entropy`` alone; the original study's is 1e-8.
        """
        n_layers, n_prompts, n_heads, size, _ = self.pattern.shape
        shape = (n_prompts, n_layers, n_heads, size)
        entropy, no_first = np.full(shape, np.nan), np.full(shape, np.nan)
        first, recent = np.full((*shape, NEAR), np.nan), np.full((*shape, NEAR), np.nan)
        for prompt in range(n_prompts):
            weights = self.of_prompt(prompt)
            n_tokens = weights.shape[-1]
            entropy[prompt, ..., :n_tokens] = _entropy(weights + epsilon)
            no_first[prompt, ..., 1:n_tokens] = _entropy(weights[..., 1:, 1:])
            first[prompt, ..., :n_tokens, :] = _first(weights)
            recent[prompt, ..., :n_tokens, :] = _recent(weights)
        return Entropies(
            model=model,
            prompts=tuple(f"p{prompt:03d}" for prompt in range(n_prompts)),
            category=self.category,
            length=self.length,
            has_bos=np.zeros(n_prompts, dtype=np.bool_),
            layers=self.layers,
            entropy=entropy,
            entropy_no_first=no_first,
            first_keys=first,
            recent_keys=recent,
        )


def read(path: Path) -> Patterns:
    """The patterns in an ``.npz`` file.

    Raises:
        StoreError: it cannot be read, lacks an array, or holds what no causal attention is: rows
            that do not sum to 1, negative weights, NaN, or weight on later keys.
    """
    arrays = _arrays(path)
    pattern = _pattern(path, arrays["pattern"])
    n_prompts, size = pattern.shape[1], pattern.shape[3]
    patterns = Patterns(
        pattern=pattern,
        length=_lengths(path, arrays["length"], n_prompts, size),
        category=_categories(path, arrays["category"], n_prompts),
    )
    for prompt in range(n_prompts):
        if fault := _fault(patterns.of_prompt(prompt)):
            raise StoreError(f"{shown(path)}: prompt {prompt} (from 0) {fault}")
    return patterns


def _arrays(path: Path) -> Mapping[str, np.ndarray]:
    """The arrays of the file, none of them loaded by pickle."""
    try:
        # The file is opened here: np.load leaves it open when it is no archive.
        with plain_errors(path, verb="read"), path.open("rb") as handle:
            if not zipfile.is_zipfile(handle):
                raise zipfile.BadZipFile
            handle.seek(0)
            file = np.load(handle, allow_pickle=False)
            if lacking := [name for name in _ARRAYS if name not in file.files]:
                there = ", ".join(safe_text(name, limit=40) for name in file.files[:8]) or "nothing"
                raise StoreError(
                    f"{shown(path)} lacks {' and '.join(lacking)} (it holds {there}): {_expected()}"
                )
            return {name: _array(path, file, name) for name in _ARRAYS}
    except (ValueError, *_DAMAGE) as error:
        raise StoreError(f"{shown(path)} is not a complete .npz file: {_expected()}") from error


def _array(path: Path, file: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    try:
        return file[name]
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise StoreError(
                f"{shown(path)}: {name} holds Python objects, which are not loaded because that"
                " runs code; store one plain array, padded to the longest prompt"
            ) from error
        raise StoreError(f"{shown(path)}: {name} is damaged; write the file again") from error
    except _DAMAGE as error:
        raise StoreError(f"{shown(path)}: {name} is damaged; write the file again") from error
    except MemoryError as error:
        raise StoreError(f"{shown(path)}: {name} does not fit into memory") from error


def _expected() -> str:
    return (
        "expected are the arrays pattern (layer, prompt, head, query, key), length (prompt) and"
        " category (prompt)"
    )


def _pattern(path: Path, array: np.ndarray) -> Weights:
    if array.ndim != 5 or array.shape[3] != array.shape[4] or 0 in array.shape:
        raise StoreError(
            f"{shown(path)}: pattern has the shape {array.shape}, expected is (layer, prompt,"
            " head, query, key) with as many keys as queries"
        )
    if array.dtype.kind != "f":
        raise StoreError(f"{shown(path)}: pattern is {array.dtype}, expected are floating numbers")
    return array


def _lengths(path: Path, array: np.ndarray, n_prompts: int, size: int) -> NDArray[np.integer]:
    if array.dtype.kind not in "iu" or array.shape != (n_prompts,):
        raise StoreError(
            f"{shown(path)}: length is {array.dtype} of shape {array.shape}, expected is one whole"
            f" number for each of {n_prompts} prompts"
        )
    wrong = np.flatnonzero((array < 1) | (array > size))
    if wrong.size:
        raise StoreError(
            f"{shown(path)}: length of prompt {wrong[0]} (from 0) is {array[wrong[0]]}, expected"
            f" is 1 to {size}"
        )
    return array.astype(np.int64)


def _categories(path: Path, array: np.ndarray, n_prompts: int) -> tuple[str, ...]:
    if array.dtype.kind not in "US" or array.shape != (n_prompts,):
        raise StoreError(
            f"{shown(path)}: category is {array.dtype} of shape {array.shape}, expected is one"
            f" text for each of {n_prompts} prompts"
        )
    return categories(path, array.tolist())


def categories(path: Path, given: Sequence[object]) -> tuple[str, ...]:
    """Category names as text.

    Raises:
        StoreError: one is empty.
    """
    texts = [
        name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else str(name)
        for name in given
    ]
    if "" in texts:
        raise StoreError(
            f"{shown(path)}: prompt {texts.index('')} (from 0) has no category; give it one"
        )
    return tuple(texts)


def _fault(weights: Weights) -> str | None:
    """What keeps the weights [layer, head, query, key] from being causal attention."""
    if not np.isfinite(weights).all():
        return "has weights that are not finite numbers"
    if weights.min() < -_TOLERANCE:
        return f"has the weight {weights.min():.3g}; weights are not negative"
    total = weights.sum(axis=-1)
    worst = float(total.flat[np.abs(total - 1).argmax()])
    if abs(worst - 1) > _TOLERANCE:
        return f"has a row that sums to {worst:.4g}, expected is 1: these are no softmax weights"
    ahead = np.triu(weights, k=1).max()
    if ahead > _TOLERANCE:
        return f"puts the weight {ahead:.3g} on a later key; causal attention is expected"
    return None


def _entropy(weights: Weights) -> Weights:
    """Entropy of each row in nats after it is brought to the sum 1; NaN for a row of zeros."""
    kept = np.maximum(weights, 0.0)
    total = kept.sum(axis=-1, keepdims=True)
    share = kept / np.where(total > 0, total, 1.0)
    terms = share * np.log(np.where(share > 0, share, 1.0))
    return np.where(total[..., 0] > 0, 0.0 - terms.sum(axis=-1), np.nan)


def _first(weights: Weights) -> Weights:
    """Weight on keys 0, 1, 2; 0 where a query does not have them."""
    near = np.zeros((*weights.shape[:-1], NEAR))
    kept = weights[..., :NEAR]
    near[..., : kept.shape[-1]] = kept
    return near


def _recent(weights: Weights) -> Weights:
    """Weight on the query's own key and the two before it; 0 where they are not there."""
    near = np.zeros((*weights.shape[:-1], NEAR))
    for back in range(min(NEAR, weights.shape[-1])):
        near[..., back:, back] = np.diagonal(weights, offset=-back, axis1=-2, axis2=-1)
    return near
