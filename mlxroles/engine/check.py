"""Refuses rows that MLX would answer with nonsense: it checks no index."""

from collections.abc import Iterable, Sequence

from mlxroles.edits import LINEAR, STREAM_SITES, Edit
from mlxroles.engine.clean import Clean
from mlxroles.engine.rows import Row
from mlxroles.errors import ModelError
from mlxroles.forward import Network
from mlxroles.forward.leaves import check_map


def check(network: Network, own: Clean, rows: Sequence[Row]) -> None:
    """Checks rows before any of them runs.

    Raises:
        ModelError: a site that a layer does not have, and why.
        ValueError: a row without edits, or a prompt, layer, position, head or value that does not
            fit, with what was found and what would.
    """
    prompts, layers, length = own.tokens.shape[0], len(network.layers), own.shape.length
    for row in rows:
        if not row.edits:
            raise ValueError("a row of a sweep needs an edit; the clean run has the rest")
        _within("prompt", [row.prompt], prompts)
        for edit in row.edits:
            _within("layer", [edit.layer], layers)
            _within("position", edit.positions or (), length)
            if edit.site == LINEAR:
                check_map(network, edit)
                continue
            block = network.block(edit.layer)
            if edit.site in block.missing:
                raise ModelError(
                    f"{edit.site} cannot be captured from {network.architecture}: "
                    f"{block.missing[edit.site]}"
                )
            heads = block.kv_heads if edit.site in ("k", "v") else block.heads
            _within("head", edit.heads or (), heads)
            _fits(edit, _wanted(edit, length, network.anatomy.d_model, heads, block.d_head))


def _within(what: str, given: Iterable[int], size: int) -> None:
    for n in given:
        if not 0 <= n < size:
            raise ValueError(f"{what} {n} is outside 0..{size - 1}")


def _wanted(
    edit: Edit, length: int, d_model: int, heads: int, d_head: int
) -> tuple[int | None, ...]:
    """Shape of the part that an edit selects; None for a size that is not known beforehand."""
    positions = length if edit.positions is None else len(edit.positions)
    if edit.site in STREAM_SITES:
        return (1, positions, d_model)
    chosen = heads if edit.heads is None else len(edit.heads)
    if edit.site == "pattern":
        return (1, chosen, positions, length)
    return (1, positions, chosen, d_head if edit.site == "z" else None)


def _fits(edit: Edit, wanted: tuple[int | None, ...]) -> None:
    found = tuple(getattr(edit.value, "shape", ()))
    pairs = list(zip(reversed(found), reversed(wanted), strict=False))
    if len(found) <= len(wanted) and all(f in (1, w) or w is None for f, w in pairs):
        return
    shown = tuple("any" if w is None else w for w in wanted)
    raise ValueError(
        f"the value for {edit.site} of layer {edit.layer} has shape {found}; the part that is "
        f"edited has {shown}"
    )
