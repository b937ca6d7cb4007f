"""The finding of a patch run in plain words, with its uncertainty and what speaks against it."""

from collections.abc import Mapping, Sequence
from typing import Any

from mlxroles import documents
from mlxroles.documents import Finding
from mlxroles.errors import PairError
from mlxroles.pairs import catalogue
from mlxroles.text import safe_text

_WORTHWHILE = 0.1
"""Recovery from which on a part of a layer is worth a closer look."""
_USUAL = "notepad"
"""The prompt of a command that names none."""

_PLACES = {
    "resid_pre": ("residual stream", "the input of layer {}"),
    "resid_mid": ("residual stream", "the middle of layer {} (after attention)"),
    "resid_post": ("residual stream", "the output of layer {}"),
    "attn_out": ("attention output", "layer {}"),
    "mlp_out": ("MLP output", "layer {}"),
    "z": ("head outputs", "layer {}"),
}
"""What a site is called, and how one of its layers is."""


def sentence(doc: Mapping[str, Any]) -> str:
    """What the run found, one to two sentences per direction and one on how far to trust it."""
    found = [documents.finding(doc, direction) for direction in documents.directions(doc)]
    if not found:
        return "No layer was measured."
    if all(each.nothing_to_recover for each in found):
        levels = [documents.number(documents.baseline(doc, m), "log_odds") for m in _MODELS]
        return nothing(headline(doc), *levels)
    parts = [_direction(doc, each) for each in found]
    trust = " ".join(part for part in (_scope(doc), _missing(found), _failed(doc)) if part)
    return " ".join([*parts, trust]).strip()


def brief(doc: Mapping[str, Any]) -> str:
    """The same in half a line, for lists of many runs: ``i→b half at layer 3 (R 0.82, ...)``."""
    found = [documents.finding(doc, direction) for direction in documents.directions(doc)]
    if found and all(each.nothing_to_recover for each in found):
        is_small = abs(found[0].gap) >= documents.SMALL_GAP
        return "no decision to trace" if is_small else "nothing to recover: the models agree"
    return " · ".join(filter(None, (_brief(doc, each) for each in found)))


def _brief(doc: Mapping[str, Any], found: Finding) -> str:
    """One direction of :func:`brief`; nothing where no layer has a number."""
    layer = found.deciding_layer
    if layer is None:
        return ""
    way = f"{documents.donor(found.direction)[0]}→{documents.recipient(found.direction)[0]}"
    share = documents.number(documents.cells(doc, found.direction)[layer], "recovery")
    most = "half" if found.half_layer is not None else "never half, most"
    control = found.matched_by or (found.strongest_control or ())[::2]
    against = f", control {control[1]:.2f}" if control else ""
    same = ", not specific" if found.matched_by else ""
    where = f"at layer {layer}"
    if found.unmeasured and found.unmeasured[0] < layer:
        where = f"by layer {layer}, some before it not run"
    return f"{way} {most} {where} (R {share:.2f}{against}{same})"


def next_step(doc: Mapping[str, Any]) -> list[str]:
    """The command that looks closer at a decision that was found; nothing where there is none.

    From the stream to the attention output of the layers that decide, from there to their heads.
    """
    found = [documents.finding(doc, direction) for direction in documents.directions(doc)]
    is_stream = documents.accumulates(doc) and doc.get("positions") == "all"
    if (
        doc.get("interrupted")
        or documents.part_axis(doc)
        or not (is_stream or doc.get("site") == "attn_out")
    ):
        return []
    layers = set()
    for each in found:
        layer = each.half_layer if is_stream else each.best_layer
        if layer is None or each.nothing_to_recover or each.matched_by:
            continue
        share = documents.number(documents.cells(doc, each.direction)[layer], "recovery")
        if share >= _WORTHWHILE:
            layers.add(layer)
    if not layers:
        return []
    options = "--site attn_out" if is_stream else "--site z --heads each"
    options += f" --layers {','.join(str(layer) for layer in sorted(layers))}"
    return [f"Next: {_command(doc)} {options}"]


def _command(doc: Mapping[str, Any]) -> str:
    """The command of the run as far as it is known; its other options are the reader's."""
    prompts = [str(prompt.get("id")) for prompt in doc.get("prompts") or []]
    is_plain = prompts == [_USUAL] and "tool_call" in headline(doc) and not doc.get("seed")
    if is_plain and _is_named(doc.get("pair")):
        return f"mlxroles patch --pair {safe_text(str(doc['pair']), limit=60)}"
    return "the same command with"


def _is_named(pair: object) -> bool:
    """Whether a command knows a pair by this name."""
    try:
        return pair in catalogue()
    except PairError:
        return False


def caution(doc: Mapping[str, Any]) -> str:
    """What a reader must know about this kind of patch, or an empty string."""
    if doc.get("site") != "resid_post" or doc.get("positions") != "all":
        return ""
    return (
        "A patch of the whole residual stream replaces everything the recipient has computed so "
        "far, so recovery tends to 1 at the last layer by construction: read the first layer that "
        "restores half and the increments rather than the largest effect."
    )


def headline(doc: Mapping[str, Any]) -> str:
    """The measured string, safe to show."""
    return safe_text(str(doc.get("headline") or "the headline string"), limit=60)


def nothing(string: str, base: float, instruct: float) -> str:
    """That there is nothing to recover, and why.

    Args:
        string: What was measured, safe to show.
        base: Its log-odds in the unpatched base model.
        instruct: The same in the instruct model.
    """
    if any(level != level for level in (base, instruct)):  # NaN
        return "Recovery is undefined: a baseline has no number."
    shown = f"log-odds {base:+.2f} and {instruct:+.2f} nats"
    if abs(instruct - base) >= documents.SMALL_GAP:
        return (
            f"There is no decision to trace: unpatched, neither base nor instruct gives "
            f"{string} a probability of {documents.SMALL_LEVEL} ({shown})."
        )
    return (
        f"There is nothing to recover: unpatched, base and instruct already agree on "
        f"{string} ({shown})."
    )


_MODELS = ("base", "instruct")


def _direction(doc: Mapping[str, Any], found: Finding) -> str:
    what, where = _PLACES.get(str(doc.get("site")), (safe_text(str(doc.get("site"))), "layer {}"))
    giver, target = documents.donor(found.direction), documents.recipient(found.direction)
    start = f"Patching {giver}'s {what} into {target}"
    layer = found.deciding_layer
    if layer is None:
        return _parts(doc, found, start)
    share = _share(doc, found.direction, layer)
    place, part = where.format(layer), _part(doc, found.direction, layer)
    goal = "the tool decision" if "tool" in headline(doc) else f"the decision for {headline(doc)}"
    verb = "restores" if found.gap > 0 else "removes"
    if found.half_layer is None:
        how = f"{verb} less than half of {goal} so far" if found.unmeasured else ""
        how = how or f"never {verb} half of {goal}"
        text = f"{start} {how}: the most is {share} at {place}{part}"
    else:
        text = f"{start} first {verb} half of {goal} at {place} of {_tested(doc)}{part} ({share})"
        if layer == documents.layers(doc)[0] > 0:
            text += ", with no earlier layer tested"
        if found.unmeasured and found.unmeasured[0] < layer:
            text += ", though an earlier layer has no number"
    return f"{text}{_controls(doc, found)}{_edge(doc, found)}"


def _part(doc: Mapping[str, Any], direction: str, layer: int) -> str:
    """Which head or position stands for the layer, where each was patched alone."""
    values = documents.cells(doc, direction)[layer]
    if values.get("strongest") is None:
        return ""
    return f", {'head' if values.get('by_head') else 'position'} {values['strongest']}"


def _edge(doc: Mapping[str, Any], found: Finding) -> str:
    """Full stop, and that the interval does not settle the layer where that is so."""
    layer = found.half_layer
    if layer is None:
        return "."
    bounds = documents.interval(documents.cells(doc, found.direction)[layer], "recovery")
    if bounds is not None and bounds[0] < documents.HALF:
        return "; the interval reaches below one half, so the layer is not settled."
    return "."


def _controls(doc: Mapping[str, Any], found: Finding) -> str:
    names = documents.controls(doc)
    if not names:
        return "; no controls were run"
    if found.matched_by is not None:
        name, share = found.matched_by
        return (
            f", but the control '{_name(name)}' recovers as much there (R = {share:.2f}): "
            "the effect is not specific to this patch"
        )
    if found.strongest_control is None:
        return "; the controls have no numbers"
    name, _, share = found.strongest_control
    which = "the control reaches" if len(names) == 1 else "the controls reach"
    return f"; up to there {which} at most R = {share:.2f} ({_name(name)})"


def _parts(doc: Mapping[str, Any], found: Finding, start: str) -> str:
    """For runs over heads or positions: the single part with the largest recovery or effect."""
    for axis in ("by_head", "by_position"):
        for name, letter in (("recovery", "R"), ("effect", "effect")):
            best = max(
                (
                    (abs(number), layer, part, number)
                    for layer, part, values in documents.parts(doc, found.direction, axis)
                    if (number := documents.number(values, name)) == number  # not NaN
                ),
                default=None,
            )
            if best is not None:
                _, layer, part, number = best
                what = axis.removeprefix("by_")
                return (
                    f"{start} one {what} at a time does most at layer {layer}, {what} {part} "
                    f"({letter} = {number:+.2f})."
                )
    return f"{start} yielded no numbers."


def _share(doc: Mapping[str, Any], direction: str, layer: int) -> str:
    values = documents.cells(doc, direction)[layer]
    bounds = documents.interval(values, "recovery")
    text = f"R = {documents.number(values, 'recovery'):.2f}"
    return text if bounds is None else f"{text} [{bounds[0]:.2f}, {bounds[1]:.2f}]"


def _tested(doc: Mapping[str, Any]) -> str:
    layers = documents.layers(doc)
    if len(layers) == 1:
        return "the one tested"
    if layers == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}..{layers[-1]}"
    return f"the {len(layers)} tested"


def _scope(doc: Mapping[str, Any]) -> str:
    count = documents.prompt_count(doc)
    if count == 1:
        return "One prompt: no interval."
    has_interval = any(
        documents.interval(values, "recovery")
        for direction in documents.directions(doc)
        for values in documents.cells(doc, direction).values()
    )
    kind = "brackets are 95 % bootstrap intervals over prompts" if has_interval else "no interval"
    return f"Means over {count} prompts; {kind}."


def _missing(found: Sequence[Finding]) -> str:
    """How many layers have no number; nothing for runs over heads or positions."""
    counts = {each.direction: len(each.unmeasured) for each in found if each.best_layer is not None}
    parts = [
        f"{count} from {documents.donor(direction)} to {documents.recipient(direction)}"
        for direction, count in counts.items()
        if count
    ]
    return f"Layers without a number: {', '.join(parts)}." if parts else ""


def _failed(doc: Mapping[str, Any]) -> str:
    count = len(doc.get("failed_cells") or [])
    if not count:
        return ""
    return f"{count} cell{'s' * (count > 1)} failed and {'are' if count > 1 else 'is'} left out."


def _name(control: str) -> str:
    return safe_text(control, limit=40).replace("_", " ")
