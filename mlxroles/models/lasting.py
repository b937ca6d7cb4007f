"""Which edits hold when while a text grows, and which of them a cache cannot carry out.

What a generation says must be what runs of the whole text say, token after token. An edit for
which that cannot hold is refused here, before anything is computed.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlxroles.edits import STREAM_SITES, Edit, LowRank
from mlxroles.errors import ModelError
from mlxroles.forward.steps import CACHED, Lasting, is_linear, key_count, numbers, value_count
from mlxroles.models.model import Model

CHUNK = 2048
"""Tokens of a prompt that mlx_lm runs at a time; the last token of a prompt runs alone."""

WHEN = {"edits": "", "prompt_edits": " while the prompt is read", "generated_edits": " afterwards"}


def of(n_prompt: int, max_tokens: int, **groups: Sequence[Edit]) -> list[Lasting]:
    """The edits with the positions at which they hold, those of a group in their order.

    Args:
        n_prompt: Tokens of the prompt.
        max_tokens: Most tokens that are generated.
        groups: ``edits``, ``prompt_edits`` and ``generated_edits``.

    Raises:
        ValueError: a position outside those of its group, or values that fit no position.
    """
    total = n_prompt + max_tokens
    spans = {
        "edits": (0, total),
        "prompt_edits": (0, n_prompt),
        "generated_edits": (n_prompt, total),
    }
    found = []
    for name, (first, end) in spans.items():
        for edit in groups.get(name, ()):
            _check_positions(edit, name, first, end)
            found.append(Lasting(edit, first, end))
    return found


def _check_positions(edit: Edit, name: str, first: int, end: int) -> None:
    count, named = value_count(edit), edit.positions
    for position in named or ():
        if not first <= position < end:
            raise ValueError(
                f"position {position} of {words(edit)} is outside {first}..{end - 1}, where "
                f"{name} hold"
            )
    expected = end if named is None and name == "prompt_edits" else len(named or ())
    if count > 1 and count != expected:
        told = "names none" if named is None else f"names {len(named)}"
        raise ValueError(
            f"{words(edit)} has values for {count} positions and {told}; name them with positions="
        )


def check(model: Model, spans: Sequence[Lasting], caches: Sequence[Any], n_prompt: int) -> None:
    """Refuses what cannot be done with a cache.

    Raises:
        ModelError: naming the edit and why.
    """
    for one in spans:
        if one.edit.site == "pattern":
            _check_pattern(model, one, caches)
        elif model.network.anatomy.shortest > 1 and one.edit.site in ("q", "k", "v", "z"):
            _check_latent(model, one, n_prompt)


def _check_latent(model: Model, one: Lasting, n_prompt: int) -> None:
    """Latent attention shows q and z of a single token in another space, and never k and v."""
    edit = one.edit
    if edit.site in CACHED:
        raise ModelError(
            f"{words(edit)} cannot hold while {model.architecture} generates: its cache keeps "
            "latents in place of keys and values; edit z, the pattern or the stream instead"
        )
    alone = _run_alone(n_prompt)
    acts = range(one.first, one.end) if edit.positions is None else edit.positions
    if any(p in alone or p >= n_prompt for p in acts) and not (
        edit.site == "z" and is_linear(edit)
    ):
        raise ModelError(
            f"{words(edit)} cannot hold while {model.architecture} generates: it runs the prompt's "
            "last token and those after it one by one and then attends in its latent space; scale "
            "or zero z, or edit the stream instead"
        )


def _run_alone(n_prompt: int) -> set[int]:
    """Positions of the prompt that are run by a call of their own."""
    alone = {n_prompt - 1}
    return alone | ({n_prompt - 2} if (n_prompt - 1) % CHUNK == 1 else set())


def _check_pattern(model: Model, one: Lasting, caches: Sequence[Any]) -> None:
    """Refuses weights on keys that are not there yet, or no longer."""
    edit = one.edit
    if key_count(edit) > 1:
        whole = len(caches) == model.n_layers
        kind = type(caches[edit.layer]).__name__ if whole else "another"
        if kind != "KVCache":
            raise ModelError(
                f"{words(edit)} names keys, which cannot be found in the cache of layer "
                f"{edit.layer} ({kind}) while {model.architecture} generates; scale or zero whole "
                "rows instead"
            )
    if edit.op == "scale" or edit.positions == ():
        return
    value = numbers(edit)
    keys = value.shape[-1] if value.ndim else 1
    if keys == 1:
        later = value
    else:
        queries = np.arange(one.first, one.end) if edit.positions is None else edit.positions
        rows = np.asarray(queries)[:, None]
        if value_count(edit) == 1:
            rows = rows.min(axis=0, keepdims=True)
        later = np.where(np.arange(keys) > rows, value, 0.0)
    if np.any(later):
        raise ModelError(
            f"{words(edit)} gives weight to keys after the query, which are not there yet when it "
            "is generated; name the keys up to the query only"
        )


def in_words(**groups: Sequence[Edit]) -> tuple[str, ...]:
    """Every edit in words, with when it holds."""
    return tuple(f"{words(e)}{WHEN[name]}" for name, edits in groups.items() for e in edits)


def words(edit: Edit) -> str:
    """An edit in words: what is done, at which site, layer, heads and positions."""
    if isinstance(edit.value, LowRank):
        low = edit.value
        what = low.name or f"add a map of rank {low.V.shape[1]} to {low.leaf} of layer {edit.layer}"
        return what + _at(edit)
    shape = tuple(getattr(edit.value, "shape", ()))
    number = f"{float(numbers(edit)):g}" if not shape else None
    what = number or f"an array of shape {'x'.join(map(str, shape))}"
    done = {
        "replace": f"replace {{}} by {what}",
        "add": f"add {what} to {{}}",
        "scale": f"scale {{}} by {what}",
        "project": "take a direction out of {}",
    }[edit.op]
    if edit.op == "replace" and number == "0":
        done = "zero {}"
    where = f"{edit.site} of layer {edit.layer}"
    if edit.heads is not None and edit.site not in STREAM_SITES:
        where += f", head{'s' if len(edit.heads) > 1 else ''} {_listed(edit.heads)}"
    return done.format(where + _at(edit))


def _at(edit: Edit) -> str:
    if edit.positions is None:
        return ""
    return f", position{'s' if len(edit.positions) > 1 else ''} {_listed(edit.positions)}"


def _listed(items: Sequence[int]) -> str:
    shown = ", ".join(str(int(i)) for i in items[:8])
    return f"{shown} and {len(items) - 8} more" if len(items) > 8 else shown
