"""What is said of one metric: its significant layers, whether they hold, what is raw alone."""

from collections.abc import Sequence

from mlxroles.report.roles.findings import Finding
from mlxroles.report.roles.tracks import Track
from mlxroles.report.roles.wording import LABELS, listed, signed, ways, with_interval
from mlxroles.text import format_number

SHRUNK, AS_LARGE = 0.5, 0.9
"""Below the first share of the raw value an estimate has shrunk by length normalisation; from the
second on it has its size still."""


def claim(alike: Sequence[Finding]) -> str:
    """The significant layers of one metric: ``RFC is below 0 in layer 0 (-0.091 [...]), ...``.

    Args:
        alike: of one model or of the difference, or several of which the same is to be said
            (:func:`likeness`).
    """
    first = alike[0]
    verb = "" if first.is_difference else " is"
    layers = raw_alone(first)
    parts = []
    if first.normalised.significant:
        tracks = [each.normalised for each in alike]
        text = _where(first, tracks, first.normalised.significant)
        parts.append(f"{text}, {standing(first)}")
    if layers:
        where = _where(first, [each.raw for each in alike], layers)
        parts.append(f"on the raw scale alone {where}{_fate(alike, layers)}")
    turned = opposite(first)
    if turned:
        parts.append(f"the scales have opposite signs in {listed(turned)}")
    return f"{LABELS[first.metric]}{verb} {'; '.join(parts)}"


def standing(found: Finding) -> str:
    """How the significant layers stand among prompts of equal length and on the raw scale."""
    text = equal_lengths(found.normalised, found.normalised.significant)
    return text if found.raw.significant else f"{text}, not on the raw scale"


def is_told_by_standing(found: Finding) -> bool:
    """Whether nothing but :func:`standing` is to be said beside the normalised values."""
    return not raw_alone(found) and not opposite(found)


def likeness(found: Finding) -> object:
    """What two findings share if the same layers, and the same of each, are to be said of them."""
    tracks = [
        (track.up, track.down, track.same_length, track.reversed, track.is_tested_same_length)
        for track in (found.raw, found.normalised)
    ]
    kept = [layer for layer in raw_alone(found) if may_be_length(found, layer)]
    return found.metric, tuple(tracks), frozenset(kept)


def raw_alone(found: Finding) -> frozenset[int]:
    """Layers that are significant on the raw scale and not length-normalised."""
    return found.raw.significant - found.normalised.significant


def opposite(found: Finding) -> frozenset[int]:
    """Layers that are significant on both scales with opposite signs."""
    raw, normalised = found.raw, found.normalised
    return (raw.up & normalised.down) | (raw.down & normalised.up)


def kept_share(found: Finding, layer: int) -> float:
    """The normalised value of a layer as a share of its raw one; NaN where that is 0."""
    raw = found.raw.at(layer)[0]
    return found.normalised.at(layer)[0] / raw if raw else float("nan")


def may_be_length(found: Finding, layer: int) -> bool:
    """Whether length may be all that a layer shows: it shrinks by half, or the interval holds 0."""
    _, low, high = found.normalised.at(layer)
    return not kept_share(found, layer) >= SHRUNK or not (low > 0 or high < 0)


def equal_lengths(track: Track, layers: frozenset[int]) -> str:
    """What is left of significant layers among prompts of equal length."""
    if not track.is_tested_same_length:
        return "untested at equal lengths"
    kept, turned = track.same_length & layers, track.reversed & layers
    if len(layers) == 1:
        said = "also" if kept else "reversed" if turned else "not confirmed"
        return f"{said} at equal lengths"
    total = len(kept) == len(layers)
    text = "all also" if total else f"{len(kept)} also" if kept else "none confirmed"
    text += " at equal lengths"
    return f"{text} ({listed(turned)} reversed)" if turned else text


def _where(found: Finding, tracks: Sequence[Track], layers: frozenset[int]) -> str:
    """``below 0 in layer 0 (-0.091)``, or in how many layers and where the most."""
    words = ("rises", "falls") if found.is_difference else ("above 0", "below 0")
    track = tracks[0]
    layer = track.largest(layers)
    assert layer is not None
    if len(tracks) == 1 and layers <= found.normalised.significant:
        value = with_interval(*track.at(layer))
    else:
        value = " and ".join(signed(each.at(layer)[0]) for each in tracks)
    up, down = track.up & layers, track.down & layers
    if len(layers) == 1:
        return f"{words[not up]} in layer {layer} ({value})"
    text = f"{ways(len(up), len(down), words)} of {len(track.layers)} layers"
    return f"{text} (most in layer {layer}: {value})"


def _fate(alike: Sequence[Finding], layers: frozenset[int]) -> str:
    """What length normalisation leaves of layers that are significant without it."""
    first = alike[0]
    held = first.raw.same_length & layers
    length = frozenset(n for n in layers - held if may_be_length(first, n))
    turned = first.raw.reversed & layers
    if len(layers) == 1 and not length:
        (layer,) = layers
        q = first.normalised.q[first.normalised.layers.index(layer)]
        text = f", not significant after normalising (q {format_number(q)})"
        text += "" if may_be_length(first, layer) else f", though {_size(alike, layers)}"
        return f"{text}, {equal_lengths(first.raw, layers)}" if held or turned else text
    rest = layers - held - length
    parts = []
    if length:
        whole = "it" if len(layers) == 1 else "them"
        of = whole if length == layers else f"{len(length)} of them"
        parts.append(f"prompt length may be all there is to {of}")
    if rest:
        of = "these are" if rest == layers else f"{len(rest)} {'is' if len(rest) == 1 else 'are'}"
        parts.append(f"{of} not significant after normalising, though {_size(alike, rest)}")
    if held:
        parts.append(f"{len(held)} of them hold{'s' * (len(held) == 1)} at equal lengths")
    if turned:
        parts.append(f"{listed(turned)} reversed at equal lengths")
    return f": {', '.join(parts)}"


def _size(alike: Sequence[Finding], layers: frozenset[int]) -> str:
    """How much of the raw values is left, at least."""
    least = min(kept_share(each, layer) for each in alike for layer in layers)
    if least >= AS_LARGE:
        return "as large"
    at_least = "" if len(layers) * len(alike) == 1 else "at least "
    return f"{at_least}{100 * least:.0f} % as large"
