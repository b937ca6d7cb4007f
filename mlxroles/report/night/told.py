"""What a run has found, from its document, in the few numbers that a night's page can show.

Nothing is claimed here that the documents do not say: what a finding is, and whether a control
does as much, is decided where the run's own report decides it.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from mlxroles import documents, report
from mlxroles.report.attribution import rows as attribution_rows
from mlxroles.report.night.reading import DAMAGED, Run, one_line
from mlxroles.report.roles import tracks
from mlxroles.report.roles.findings import findings
from mlxroles.report.roles.wording import LABELS, who_is

Doc = Mapping[str, Any]
MATCHED = "a control does as much"
"""The answer of a patch that is not specific."""
BARE = "Numbers without brackets have no interval."
_LARGE = 1e6
_SHORT = 60
"""Characters that say too little by themselves."""
_FEW = 6
"""Prompts of which each is told."""


class Curve(NamedTuple):
    """One line of a small figure: a value per layer, with what stands beside it."""

    name: str
    role: str
    """``first``, ``second`` or ``control``, which decides how it is drawn."""
    points: list[tuple[int, float | None, float | None, float | None]]
    """Layer, value and both ends of its interval."""


class Figure(NamedTuple):
    """The curves of a run and what they are curves of."""

    label: str
    low: float
    high: float
    lines: list[float]
    """Values at which a thin line is drawn."""
    curves: list[Curve]


class Told(NamedTuple):
    """One direction of a patch run, or the verdict of another: what grids are compared by."""

    question: str
    """``instruct → base`` or ``verdict``."""
    answer: str
    """Coarse, so that answers can be compared."""
    text: str
    """With numbers, intervals and the largest control."""
    brief: str = ""
    """The same for a list, which says once that numbers without brackets have no interval."""
    is_bare: bool = False
    """Whether there is a number without an interval."""
    layer: int | None = None
    n_layers: int = 0
    margin: float | None = None
    """Recovery less that of the strongest control in the same layer."""
    matched: bool = False
    """Whether a control explains it."""


def schema_of(doc: Doc) -> str:
    """``patch``, ``entropy``, ``attribution``, ``probe`` ...; empty where it does not say."""
    parts = str(doc.get("schema", "")).split("/")
    return parts[1] if len(parts) == 3 and parts[0] == "mlxroles" else ""


def figure_of(run: Run) -> Figure | None:
    """The curve of a run; None where it has none, or its document is damaged (then a problem)."""
    kind = schema_of(run.summary)
    makers = {"patch": _patch_figure, "entropy": _entropy_figure, "attribution": _estimates}
    make = makers.get(kind)
    if make is None:
        return None
    try:
        found = make(run.summary)
    except DAMAGED as error:
        _note(run, error)
        return None
    return found if found is not None and any(_has_points(c) for c in found.curves) else None


def told_by(run: Run) -> list[Told]:
    """What a run says, question by question; empty where it says nothing that can be compared."""
    kind = schema_of(run.summary)
    tell = {"patch": _patch, "entropy": _entropy, "attribution": _attribution}.get(kind)
    if tell is None:
        return []
    try:
        return list(tell(run.summary))
    except DAMAGED as error:
        _note(run, error)
        return []


def sentence_of(run: Run) -> str | None:
    """The finding of a run in words; None where it has none."""
    doc = run.summary
    inner = doc.get("summary")
    found = doc.get("sentence") or (inner.get("sentence") if isinstance(inner, Mapping) else None)
    if isinstance(found, str):
        return one_line(found, 2000)
    if schema_of(doc) == "probe":
        return _probe(doc)
    if schema_of(doc) not in ("patch", "entropy"):
        return None
    try:
        return one_line(report.sentence(doc), 2000)
    except DAMAGED as error:
        _note(run, error)
        return None


def _note(run: Run, error: Exception) -> None:
    text = f"its summary.json is not what it should be ({type(error).__name__})"
    if text not in run.problems:
        run.problems.append(text)


def _has_points(curve: Curve) -> bool:
    return any(value is not None for _, value, _, _ in curve.points)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) and abs(value) < _LARGE else None


# --- patching


def _patch_figure(doc: Doc) -> Figure | None:
    found = [documents.finding(doc, d) for d in documents.directions(doc)]
    if all(each.nothing_to_recover for each in found):
        return None
    curves = []
    for each in found:
        name = documents.arrow(each.direction)
        for control in documents.controls(doc):
            cells = documents.cells(doc, each.direction, control)
            text = f"{name}, {one_line(control, 40).replace('_', ' ')}"
            curves.append(Curve(text, "control", _points(cells)))
        role = "first" if each.direction == documents.DIRECTIONS[0] else "second"
        curves.append(Curve(name, role, _points(documents.cells(doc, each.direction))))
    curves.sort(key=lambda curve: curve.role != "control")
    values = [v for c in curves for _, v, _, _ in c.points if v is not None]
    low = max(-0.5, min([0.0, *values]))
    high = min(1.5, max([1.0, *values]))
    return Figure("share of the gap", low, high, [0.0, 0.5, 1.0], curves)


def _points(cells: Mapping[int, Doc]) -> list[tuple[int, float | None, float | None, float | None]]:
    found = []
    for layer, values in cells.items():
        low, high = documents.interval(values, "recovery") or (math.nan, math.nan)
        value = documents.number(values, "recovery")
        found.append((layer, _known(value), _known(low), _known(high)))
    return found


def _patch(doc: Doc) -> Iterator[Told]:
    layers = documents.layers(doc)
    for direction in documents.directions(doc):
        found = documents.finding(doc, direction)
        question = documents.arrow(direction)
        layer = found.deciding_layer
        if found.nothing_to_recover:
            yield _without(question, "nothing to recover")
            continue
        if layer is None:
            yield _without(question, "no numbers")
            continue
        values = documents.cells(doc, direction)[layer]
        recovery = documents.number(values, "recovery")
        shares = {
            name: documents.number(documents.cells(doc, direction, name).get(layer), "recovery")
            for name in documents.controls(doc)
        }
        known = {name: share for name, share in shares.items() if not math.isnan(share)}
        most = max(known, key=known.__getitem__, default=None)
        beside = (
            "no controls were run"
            if most is None
            else f"controls there at most {known[most]:.2f} ({one_line(most, 40)})"
        ).replace("_", " ")
        is_half = found.half_layer is not None
        # a run whose time was up has not measured every layer
        at = "at or before layer" if any(n < layer for n in found.unmeasured) else "at layer"
        at = at if is_half else "at layer"
        where = f"{'first half' if is_half else 'the most'} {at} {layer}"
        text = f"{where}, R = {recovery:.2f}{_interval(doc, values)}; {beside}"
        bounds = documents.interval(values, "recovery")
        own = "" if bounds is None else f" [{bounds[0]:.2f}, {bounds[1]:.2f}]"
        null = "no controls" if most is None else f"controls ≤ {known[most]:.2f}"
        brief = f"{'half' if is_half else 'most'} {at} {layer} (R = {recovery:.2f}{own}, {null})"
        is_trivial = layer == layers[-1] and (doc.get("site"), doc.get("positions")) == (
            "resid_post",
            "all",
        )
        yield Told(
            question,
            MATCHED if found.matched_by else "half" if is_half else "below half",
            text,
            brief,
            bounds is None,
            layer if is_half else None,
            int(documents.number(doc, "n_layers")) if doc.get("n_layers") else len(layers),
            None if most is None or is_trivial else recovery - known[most],
            found.matched_by is not None,
        )


def _without(question: str, text: str) -> Told:
    return Told(question, text, text, text)


def _interval(doc: Doc, values: Doc) -> str:
    bounds = documents.interval(values, "recovery")
    if bounds is not None:
        return f" [{bounds[0]:.2f}, {bounds[1]:.2f}]"
    return " (one prompt: no interval)" if documents.prompt_count(doc) == 1 else " (no interval)"


# --- role entropies


def _entropy_figure(doc: Doc) -> Figure | None:
    models = tracks.models(doc)
    curves = []
    for at, who in enumerate(models[:2]):
        track = tracks.track(doc, who, "rfc", scale="normalised")
        if track is None:
            continue
        rows = zip(track.layers, track.value, track.low, track.high, strict=True)
        points = [(layer, _known(v), _known(lo), _known(hi)) for layer, v, lo, hi in rows]
        curves.append(Curve(who_is(who), "second" if at else "first", points))
    ends = [abs(end) for c in curves for p in c.points for end in p[1:] if end is not None]
    size = max([0.02, *ends])
    return Figure("RFC, normalised", -size, size, [0.0], curves) if curves else None


def _entropy(doc: Doc) -> Iterator[Told]:
    text = report.sentence(doc)
    start = text.partition(":")[0].partition(".")[0]
    yield Told("verdict", one_line(start, 80), one_line(opening(text), 400), one_line(start, 80))
    for each in findings(doc):
        if each.standing == "length":
            which = f"{LABELS[each.metric]} of {who_is(each.who)}"
            words = "only without length normalisation: prompt length may be all there is to it"
            yield Told(which, "length", f"{which} differs from 0 {words}", matched=True)


# --- the others


def _estimates(doc: Doc) -> Figure | None:
    """What the layers' attention writes, as a share of the gap; else their whole output."""
    curves = []
    site = next(
        (site for site in ("attn_out", "resid_post", "mlp_out") if site in doc["sites"]), ""
    )
    for direction in attribution_rows.directions(doc):
        found = (doc[direction]["sites"].get(site) or {}).get("by_layer") or {}
        values = found.get("recovery") or []
        ends = found.get("recovery_ci") or [None] * len(values)
        points = []
        for layer, value, pair in zip(documents.layers(doc), values, ends, strict=False):
            low, high = pair or (None, None)
            value, low, high = (_known(tracks.number(one)) for one in (value, low, high))
            points.append((layer, value, low, high))
        role = "first" if direction == documents.DIRECTIONS[0] else "second"
        curves.append(Curve(documents.arrow(direction), role, points))
    known = [value for curve in curves for _, value, _, _ in curve.points if value is not None]
    if not known:
        return None
    low, high = max(-0.5, min([0.0, *known])), min(1.5, max([1.0, *known]))
    return Figure(f"estimated share, {site}", low, high, [0.0, 0.5, 1.0], curves)


def _attribution(doc: Doc) -> Iterator[Told]:
    for direction in attribution_rows.directions(doc):
        for site, entry in attribution_rows.verified(doc, direction):
            tested = entry if entry.get("complete") else entry.get("random") or {}
            share, count = documents.number(tested, "sign_agreement"), tested.get("n") or 0
            if count >= 10 and share < 0.75:
                where = f"{one_line(site, 20)}, {documents.arrow(direction)}"
                text = (
                    f"estimates for {where}: only {100 * share:.0f} % of {count} cells that were "
                    "run exactly have the sign of the estimate, so that the estimates mislead there"
                )
                yield Told(where, "mislead", text, matched=True)


def _probe(doc: Doc) -> str | None:
    """The unpatched probabilities per model, by prompt where they are few."""
    found: dict[str, dict[str, float]] = {}
    for row in doc.get("rows") or []:
        if isinstance(row, Mapping):
            value = documents.number(row, "tool_call_prob")
            if not math.isnan(value):
                variant = row.get("variant", "default")
                name = one_line(row.get("prompt"), 30)
                name += "" if variant == "default" else f" ({one_line(variant, 30)})"
                found.setdefault(one_line(row.get("model"), 40), {})[name] = value
    parts = [f"{who} {_probabilities(values)}" for who, values in found.items()]
    if not parts:
        return None
    count = max(map(len, found.values()))
    text = f"Probability of {one_line(doc.get('headline') or 'the string', 40)}, unpatched"
    over = f"over {count} prompts or variants of one" if count > 1 else "on one prompt"
    return f"{text}, {over}: {'; '.join(parts)}."


def _probabilities(values: Mapping[str, float]) -> str:
    """The one value; several with their prompts; the range of many."""
    if len(values) == 1:
        return f"{next(iter(values.values())):.3f}"
    if len(values) <= _FEW:
        return ", ".join(f"{name} {value:.3f}" for name, value in values.items())
    return f"{min(values.values()):.3f} to {max(values.values()):.3f}"


def opening(text: str) -> str:
    """The first sentence of a text, and further ones while that is short."""
    for at in range(_SHORT, len(text) - 2):
        if text[at] == "." and text[at + 1] == " " and text[at + 2].isupper():
            return text[: at + 1]
    return text
