"""Heads by name: ``L5H8`` is head 8 of layer 5, both counted from 0."""

import re
from collections.abc import Iterable, Sequence

from mlxroles.errors import SpecError
from mlxroles.text import safe_text

_NAME = re.compile(r"[Ll](\d{1,6})[Hh](\d{1,6})")
_PAIR = re.compile(r"(\d{1,6})\.(\d{1,6})")


def head_name(layer: int, head: int) -> str:
    """The name of a head."""
    return f"L{layer}H{head}"


def parse_heads(
    text: str,
    *,
    n_layers: int | None = None,
    n_heads: int | Sequence[int] | None = None,
    kind: str = "head",
) -> list[tuple[int, int]]:
    """The heads that a list names, in its order: ``L5H8,L16H23`` or ``5.8,16.23``.

    Args:
        text: Names with commas or spaces between them.
        n_layers: Number of layers of the model, where it is known.
        n_heads: Number of heads of every layer, or of each layer.
        kind: As in ``check_head``.

    Raises:
        SpecError: a name that is none, a head that the model does not have or that is named
            twice, or no head at all.
    """
    found: list[tuple[int, int]] = []
    for part in re.split(r"[\s,]+", text.strip(" ,\t\n")):
        match = _NAME.fullmatch(part) or _PAIR.fullmatch(part)
        if match is None:
            shown = f"'{safe_text(part, limit=40)}'" if part else "an empty list"
            raise SpecError(f"{shown} names no head; write heads as L5H8,L6H1 (layer 5, head 8)")
        layer, head = int(match[1]), int(match[2])
        if (layer, head) in found:
            raise SpecError(f"head {head_name(layer, head)} is named twice")
        check_head(layer, head, n_layers=n_layers, n_heads=n_heads, kind=kind)
        found.append((layer, head))
    return found


def check_head(
    layer: int,
    head: int,
    *,
    n_layers: int | None = None,
    n_heads: int | Sequence[int] | None = None,
    kind: str = "head",
) -> None:
    """Refuses a head that the model does not have.

    Args:
        layer: Layer.
        head: Head.
        n_layers: Number of layers of the model, where it is known.
        n_heads: Number of heads of every layer, or of each layer.
        kind: What messages call it: ``kv head`` at the sites of keys and values.

    Raises:
        SpecError: with the numbers that there are.
    """
    if n_layers is not None and layer >= n_layers:
        raise SpecError(f"{head_name(layer, head)}: layer {layer} is outside 0..{n_layers - 1}")
    if n_heads is None:
        return
    count = n_heads if isinstance(n_heads, int) else n_heads[layer]
    if not count:
        raise SpecError(f"{head_name(layer, head)}: layer {layer} has no {kind}s")
    if head >= count:
        raise SpecError(f"{head_name(layer, head)}: {kind} {head} is outside 0..{count - 1}")


def by_layer(heads: Iterable[tuple[int, int]]) -> dict[int, tuple[int, ...]]:
    """Layer -> its heads, both ascending: one edit per layer."""
    found: dict[int, list[int]] = {}
    for layer, head in sorted(heads):
        found.setdefault(layer, []).append(head)
    return {layer: tuple(rows) for layer, rows in found.items()}
