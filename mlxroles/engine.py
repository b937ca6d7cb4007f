"""The sweep engine: clean runs that leave their states, patched runs that start where they differ.

What precedes an edit is known from the recipient's clean run and is not computed again: a patched
run begins at the edited layer, and the final norm and head see only the positions that are read.
Architectures that cannot start from their stream alone run whole, with the same numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mlxroles.backend import mx
from mlxroles.edits import Edit, apply, selected
from mlxroles.forward import Network, Run, Start, forward


@dataclass(frozen=True)
class Place:
    """Where a patch goes in: a site of a layer, its positions and heads (None: all of them)."""

    site: str
    layer: int
    positions: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class States:
    """What one clean run of one prompt left behind."""

    site: dict[int, mx.array] = field(default_factory=dict)
    """Layer -> array at the site that is patched [1, position, ...]."""
    inputs: dict[int, mx.array] = field(default_factory=dict)
    """Layer -> stream that enters it [1, position, d_model], for patched runs that start there."""
    logits: np.ndarray | None = None
    """Logits at the positions that are read [n, vocab], float32."""


def clean(
    network: Network,
    tokens: Sequence[int],
    *,
    site: str,
    layers: Sequence[int],
    read: Sequence[int],
    inputs: bool = True,
) -> States:
    """One unpatched run of a prompt: states at the layers, logits at the positions read.

    Args:
        network: The model's network.
        tokens: One prompt.
        site: Site whose arrays are kept.
        layers: Layers at which they are kept.
        read: Positions of which logits are kept.
        inputs: Whether the model will be a recipient, so that what enters the layers is needed.

    Raises:
        ModelError: the site cannot be captured from this architecture.
        PromptError: an empty prompt or a token id that the model does not have.
        ValueError: a layer or position that does not exist.
    """
    keep = [site]
    if inputs and site not in ("resid_pre", "resid_post") and network.anatomy.resumable:
        keep.append("resid_pre")
    run = forward(network, mx.array([list(tokens)]), keep=keep, layers=layers, read=list(read))
    entered = "resid_pre" if "resid_pre" in keep else None
    return States(
        site={i: run[site, i] for i in layers},
        inputs={i: run[entered, i] for i in layers} if entered else {},
        logits=_rows(run),
    )


def mixed(own: mx.array, donor: mx.array, place: Place) -> mx.array:
    """The recipient's array at the site with the donor's at the place [1, position, ...].

    In the recipient's dtype, wherever the donor's numbers come from.

    Raises:
        ValueError: arrays of different shapes, or a position or head that they do not have.
    """
    if own.shape != donor.shape:
        raise ValueError(
            f"the donor's {place.site} has shape {donor.shape}, here it is {own.shape}"
        )
    where = Edit(place.site, place.layer, 0.0, positions=place.positions, heads=place.heads)
    return apply(replace(where, value=selected(where, donor)), own)


@dataclass(frozen=True, eq=False)
class Patched:
    """Patched runs of one prompt, one row per place."""

    logits: np.ndarray
    """[row, n, vocab] at the positions read, float32."""
    final: mx.array
    """Final residual stream at the positions read [row, n, d_model]."""


def patched(  # noqa: PLR0917  (what is run, what is known of it, what is put in, where)
    network: Network,
    tokens: Sequence[int],
    own: States,
    donor: mx.array,
    places: Sequence[Place],
    read: Sequence[int],
) -> Patched:
    """Runs the recipient once with a row per place, each patched with the donor's array there.

    All places share one site and layer; rows differ in positions or heads.

    Args:
        network: The recipient.
        tokens: The prompt.
        own: The recipient's clean states of it.
        donor: Array put in at the places [1, position, ...], of the site's layout.
        places: What each row patches.
        read: Positions of which logits are returned.

    Raises:
        ModelError: the site cannot be edited in this architecture.
        ValueError: places at several sites or layers or at none, a position or head that does not
            exist, a donor of another shape, or clean states that lack the layer.
    """
    if len({(place.site, place.layer) for place in places}) != 1:
        raise ValueError("the places of one batch share one site and one layer")
    site, layer, n = places[0].site, places[0].layer, len(network.layers)
    if layer not in own.site:
        raise ValueError(f"the clean states hold layers {sorted(own.site)}, not {layer}")
    value = mx.concatenate([mixed(own.site[layer], donor, place) for place in places])
    start, edits = _enter(network, own, site, layer, value)
    after_all = start is not None and start.layer == n
    batch, wanted = mx.array([list(tokens)] * len(places)), list(read)
    run = forward(
        network,
        batch,
        keep=[] if after_all else ["resid_post"],
        layers=[n - 1],
        edits=edits,
        start=start,
        read=wanted,
    )
    final = value if after_all else run["resid_post", n - 1]
    return Patched(_all_rows(run), mx.take(final, mx.array(wanted), axis=1))


def _enter(
    network: Network, own: States, site: str, layer: int, value: mx.array
) -> tuple[Start | None, list[Edit]]:
    """Where a run with ``value`` at the site begins, and the edits that are left to make."""
    edits = [Edit(site, layer, value)]
    if not network.anatomy.resumable:
        return None, edits
    if site == "resid_post":
        return Start(layer + 1, value), []
    if site == "resid_pre":
        return Start(layer, value), []
    if layer not in own.inputs:
        raise ValueError(f"the clean states lack what enters layer {layer}; run with inputs=True")
    rows, entered = value.shape[0], own.inputs[layer]
    return Start(layer, mx.broadcast_to(entered, (rows, *entered.shape[1:]))), edits


def matched_noise(donor: mx.array, rng: np.random.Generator) -> mx.array:
    """Random normal vectors with the norm of the donor's at every position (and head).

    The control for a patch: what any stream of that size does, whatever it says. Shape and dtype
    are the donor's [1, position, ...].
    """
    noise = mx.array(rng.standard_normal(donor.shape, dtype=np.float32))
    norms = mx.linalg.norm(donor.astype(mx.float32), axis=-1, keepdims=True)
    return (noise / mx.linalg.norm(noise, axis=-1, keepdims=True) * norms).astype(donor.dtype)


def _all_rows(run: Run) -> np.ndarray:
    assert run.logits is not None
    return np.array(run.logits.astype(mx.float32))


def _rows(run: Run) -> np.ndarray:
    return _all_rows(run)[0]
