"""The numbers of an attribution document as rows of strings, the same for every kind of report."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlxroles import documents
from mlxroles.report.rows import Grid
from mlxroles.text import safe_text, show_token

Values = Mapping[str, Any]

_MISSES = 5


def directions(doc: Values) -> list[str]:
    """The directions that the document holds estimates of."""
    return [d for d in documents.DIRECTIONS if (doc.get(d) or {}).get("sites")]


def signed(value: float) -> str:
    """A number with its sign and three digits or so; a dash for none."""
    if math.isnan(value):
        return "–"
    size = abs(value)
    if size and size < 0.0005:
        return f"{value:+.0e}"
    return f"{value:+.2f}" if size >= 0.1 or not size else f"{value:+.3f}"


def metric_name(name: object) -> str:
    """A metric's name as it is shown: ``log-odds``, ``p first token``."""
    shown = safe_text(str(name), limit=20).replace("_", " ")
    return shown.replace(" ", "-", 1) if shown.startswith("log ") else shown


def by_one_gradient(doc: Values) -> list[str]:
    """Sites whose estimates come from the gradient at the recipient alone."""
    several = doc.get("integrated") or (doc["sites"] if int(doc.get("ig") or 1) > 1 else [])
    return [site for site in doc["sites"] if site not in several]


def p_value(value: float) -> str:
    """A probability with two digits; a dash for none."""
    if math.isnan(value):
        return "–"
    return "<.001" if value < 0.001 else f"{value:.3f}".lstrip("0") if value < 1 else "1"


def interval(values: Values, name: str) -> str:
    """The 95 % interval in brackets; nothing where there is none."""
    bounds = documents.interval(values, name)
    return "" if bounds is None else f" [{signed(bounds[0])}, {signed(bounds[1])}]"


def place(site: str, row: Values, *, token_limit: int = 12) -> str:
    """A cell's name within its site: ``L3H5``, ``L4 kv1``, ``L4 at 199 ␣the``."""
    text = f"L{row['layer']}"
    if "head" in row:
        text += f" kv{row['head']}" if site in ("k", "v") else f"H{row['head']}"
    if "position" in row:
        text += f" at {row['position']}"
        if row.get("token") is not None:
            text += f" {show_token(row['token'], limit=token_limit)}"
    return text


def edge(row: Values) -> str:
    """An edge's name: ``L3H5 → L7H2.q``."""
    return f"{safe_text(str(row['source']))} → {safe_text(str(row['target']))}"


def exact_of(doc: Values, direction: str, site: str, row: Values) -> float:
    """The exact effect of a listed cell; NaN where it was not run."""
    verified = ((doc[direction].get("verify") or {}).get(site) or {}).get("rows") or []
    key = [row.get(name) for name in _COORDS]
    for one in verified:
        if [one.get(name) for name in _COORDS] == key:
            return documents.number(one, "exact")
    return math.nan


_COORDS = ("layer", "head", "position")


def top(doc: Values, direction: str, *, per_site: int) -> Iterator[tuple[str, Values]]:
    """The largest cells of every site: (site, row)."""
    for site, entry in doc[direction]["sites"].items():
        for row in entry["top"][:per_site]:
            yield site, row


def top_grid(doc: Values, direction: str, *, per_site: int) -> Grid:
    """The largest cells of every site, with what is known of their certainty."""
    several = any("q" in row for _, row in top(doc, direction, per_site=1))
    exact = bool(doc[direction].get("verify"))
    shares = has_shares(doc, direction)
    head = ["site", "cell", *_heads(shares=shares, tested=several, exact=exact)]
    rows = []
    for site, row in top(doc, direction, per_site=per_site):
        line = [site, place(site, row), *_numbers(row, shares=shares)]
        if several:
            line.append(p_value(documents.number(row, "q")))
        if exact:
            line.append(signed(exact_of(doc, direction, site, row)))
        rows.append(line)
    return Grid(title(doc, direction), head, rows)


def has_shares(doc: Values, direction: str) -> bool:
    """Whether there is a gap between the models that an effect can be a share of."""
    return not doc[direction].get("nothing_to_recover")


def _heads(*, shares: bool, tested: bool, exact: bool) -> list[str]:
    return [
        "estimate",
        *["R est."] * shares,
        *["q value"] * tested,
        *["exact"] * exact,
    ]


def _numbers(row: Values, *, shares: bool) -> list[str]:
    found = [signed(documents.number(row, "estimate")) + interval(row, "estimate")]
    return [*found, *[signed(documents.number(row, "recovery"))] * shares]


def title(doc: Values, direction: str) -> str:
    """Which model's activations go into which, and the metric there before."""
    level = documents.number(doc[direction], "recipient")
    return f"{documents.arrow(direction)}   unpatched {metric_name(doc['metric'])} {signed(level)}"


def legend(doc: Values) -> str:
    """What the columns of the tables mean, of those that there are."""
    shown = directions(doc)
    unit = ", in nats" if doc.get("unit") == "nat" else ""
    parts = [f"estimate: effect on {metric_name(doc['metric'])}{unit}"]
    if any(has_shares(doc, d) for d in shown):
        mean = ", the mean of the prompts' shares" if documents.prompt_count(doc) > 1 else ""
        parts.append(f"R est.: the estimate as a share of the gap between the models{mean}")
    if any("q" in row for d in shown for _, row in top(doc, d, per_site=1)):
        parts.append(
            "q value: sign-flip p over prompts, corrected within a site (Benjamini-Hochberg)"
        )
    if doc.get("verified_cells"):
        parts += [
            "exact: the cell was run",
            "difference: estimate - exact",
            "farthest off: the largest difference",
            "sign: how often the estimate has the exact effect's",
            "ρ: Spearman's rank correlation with exact effects, with its bootstrap interval",
        ]
    points, alone = int(doc.get("ig") or 1), by_one_gradient(doc)
    if points > 1:
        parts.append(
            f"gradients at {points} points" + (f", of {', '.join(alone)} at one" if alone else "")
        )
    return " · ".join(parts)


def edge_grid(doc: Values, direction: str, *, count: int) -> Grid | None:
    """The largest edges; None where none were estimated."""
    entry = doc[direction].get("edges")
    if not entry:
        return None
    exact = {edge(row): row for row in (entry.get("verify") or {}).get("rows", [])}
    shares, tested = has_shares(doc, direction), any("q" in row for row in entry["top"])
    head = ["edge", *_heads(shares=shares, tested=tested, exact=bool(exact))]
    rows = []
    for row in entry["top"][:count]:
        line = [edge(row), *_numbers(row, shares=shares)]
        if tested:
            line.append(p_value(documents.number(row, "q")))
        if exact:
            line.append(signed(documents.number(exact.get(edge(row)), "exact")))
        rows.append(line)
    return Grid(f"{documents.arrow(direction)}   largest of {entry['cells']} edges", head, rows)


def verified(doc: Values, direction: str) -> Iterator[tuple[str, Values]]:
    """What was run exactly: (site or ``edges``, its rows and how well they agree)."""
    yield from (doc[direction].get("verify") or {}).items()
    edges = (doc[direction].get("edges") or {}).get("verify")
    if edges:
        yield "edges", edges


def agreement_grid(doc: Values, direction: str) -> Grid | None:
    """How estimates and exact effects agree, per site; None where nothing was run exactly."""
    rows = []
    for site, found in verified(doc, direction):
        rows.append(
            [
                site,
                f"all {found['n']}" if found.get("complete") else str(found["n"]),
                _correlation(found["random"]),
                _correlation(found),
                _share(found),
                signed(documents.number(found, "largest_difference")),
            ]
        )
    if not rows:
        return None
    head = ["site", "cells", "ρ random", "ρ all", "sign", "farthest off"]
    return Grid(f"{documents.arrow(direction)}   estimate against exact", head, rows)


def _correlation(found: Values) -> str:
    value = documents.number(found, "spearman")
    bounds = documents.interval(found, "spearman")
    text = "–" if math.isnan(value) else f"{value:.2f}"
    return text if bounds is None else f"{text} [{bounds[0]:.2f}, {bounds[1]:.2f}]"


def _share(found: Values) -> str:
    value = documents.number(found, "sign_agreement")
    return "–" if math.isnan(value) else f"{100 * value:.0f} %"


def miss_grid(doc: Values, direction: str, *, count: int = _MISSES) -> Grid | None:
    """The cells that are farthest off; None where nothing was run exactly."""
    found = [
        (site, entry["rows"][at])
        for site, entry in verified(doc, direction)
        for at in entry["misses"]
    ]
    found.sort(key=lambda item: -abs(documents.number(item[1], "difference")))
    if not found:
        return None
    return _exact_grid(f"{documents.arrow(direction)}   largest misses", found[:count])


def exact_grid(doc: Values, direction: str, site: str) -> Grid:
    """Every verified cell of a site."""
    rows = dict(verified(doc, direction))[site]["rows"]
    return _exact_grid(f"{documents.arrow(direction)}, {site}", [(site, row) for row in rows])


def _exact_grid(name: str, found: Sequence[tuple[str, Values]]) -> Grid:
    rows = [
        [
            site,
            edge(row) if site == "edges" else place(site, row),
            str(row["kind"]),
            signed(documents.number(row, "estimate")),
            signed(documents.number(row, "exact")),
            signed(documents.number(row, "difference")),
        ]
        for site, row in found
    ]
    return Grid(name, ["site", "cell", "chosen", "estimate", "exact", "difference"], rows)
