"""The numbers of a document of circuits as rows of strings, for the terminal and the page."""

from collections.abc import Mapping, Sequence
from typing import Any

from mlxroles.heads import head_name
from mlxroles.report.rows import Grid
from mlxroles.text import format_number, safe_text, show_token

Doc = Mapping[str, Any]

KINDS = {"q": "queries (Q)", "k": "keys (K)", "v": "values (V)"}
CIRCUITS = {"qk": "QK: query token → key token", "ov": "OV: token attended to → token pushed"}
SIGNS = {1: "copies", -1: "against", 0: ""}

COPYING_LEGEND = (
    "Copying: mean of W_E[t] W_V W_O W_U[t] over drawn ids t, less that of pairs t, t' of other "
    "ids, in standard deviations of such pairs; 'copies' and 'against' where it lies beyond what "
    "shifting the ids against each other gives (5 %, for all heads together). OV + and QK +: real "
    "parts of the circuit's eigenvalues over their absolute values, with the middle 95 % of heads "
    "of random numbers. Distance: which one a query likes best whatever the tokens, where it "
    "stands out, and by how much, in what tokens make of a score. All of it is of the direct path "
    "from the tokens: what a head reads in a run is more."
)
COMPOSITION_LEGEND = (
    "Score: |W1 W2| / (|W1| |W2|) of what the earlier head writes and the later one reads. Chance: "
    "the same pairs with the stream's elements shuffled and their signs drawn between them; "
    "beyond the bound none of them should lie by chance (5 %, for all pairs together). RoPE is "
    "left out."
)
PAIRS_LEGEND = (
    "The largest entries over all pairs of tokens; in brackets their distance from the mean of all "
    "pairs in standard deviations. 'same': the mean entry of a token with itself, likewise."
)


def copying_grid(doc: Doc, model: str, *, count: int | None = None) -> Grid:
    """Heads by their copying score, those furthest from 0 first where not all are shown."""
    of = doc["models"][model]
    heads = [
        (i, h)
        for i, row in enumerate(of["copying"]["excess"])
        for h, value in enumerate(row)
        if value is not None
    ]
    title = f"Copying and distance, {safe_text(of['name'], limit=40)}"
    if count is not None and len(heads) > count:
        table = of["copying"]["excess"]
        heads = sorted(heads, key=lambda at: -abs(table[at[0]][at[1]]))[:count]
        title += f": the {count} heads furthest from 0"
    head = ["head", "copying", "", "OV +", "random", "QK +", "distance", "peak"]
    return Grid(title, head, [_head_row(of, at) for at in heads])


def _head_row(of: Doc, at: tuple[int, int]) -> list[str]:
    i, h = at
    ov, qk, curves = of["ov_share"], of["qk_share"], of["curves"]
    return [
        head_name(i, h),
        _number(of["copying"]["excess"][i][h], "+.2f"),
        SIGNS[of["copying"]["sign"][i][h]],
        _number(ov["score"][i][h], "+.2f"),
        f"{_number(ov['random_low'][i], '+.2f')} to {_number(ov['random_high'][i], '+.2f')}",
        _number(qk["score"][i][h], "+.2f"),
        str(curves["peak_offset"][i][h]) if curves["clear"][i][h] else "–",
        _number(curves["peak"][i][h], ".2f"),
    ]


def composition_grid(doc: Doc, model: str, *, count: int) -> Grid | None:
    """The strongest compositions of every kind; None where there is no pair."""
    of, rows = doc["models"][model], []
    for kind, found in of["composition"].items():
        for row in found["top"][:count]:
            mark = "" if row["clear"] else "within chance"
            chance = f"{found['null_mean']:.3f}, at most {found['bound']:.3f}"
            score, z = f"{row['score']:.3f}", _number(row["z"], ".1f")
            rows.append([KINDS[kind], row["from"], row["to"], score, z, chance, mark])
    if not rows:
        return None
    title = f"What heads read of earlier ones, {safe_text(of['name'], limit=40)}"
    return Grid(title, ["reads with", "from", "to", "score", "z", "by chance", ""], rows)


def clear_line(doc: Doc, model: str) -> str:
    """How many pairs of heads lie beyond chance."""
    found = doc["models"][model]["composition"]
    told = [f"{KINDS[k]} {f['clear']} of {f['pairs']}" for k, f in found.items()]
    return f"Pairs beyond chance: {', '.join(told)}." if told else ""


def pairs_grids(doc: Doc, model: str, *, count: int) -> list[Grid]:
    """A table per circuit: the tokens that each listed head joins most."""
    of, grids = doc["models"][model], []
    for circuit, name in CIRCUITS.items():
        entries = [entry for entry in of["pairs"] if entry["circuit"] == circuit]
        if entries:
            head = ["head", "same", "largest entries"]
            rows = [
                [e["head"], _number(e["same_z"], "+.1f"), _joined(e["top"][:count])]
                for e in entries
            ]
            grids.append(Grid(f"{name}, {safe_text(of['name'], limit=40)}", head, rows))
    return grids


def pair_grid(entry: Doc, *, least: bool = False) -> Grid:
    """The list of one circuit of one head."""
    which = "smallest" if least else "largest"
    title = f"{entry['head']} {CIRCUITS[entry['circuit']]}, {which} entries"
    rows = [
        [
            show_token(row["left_text"], limit=24),
            show_token(row["right_text"], limit=24),
            f"{row['value']:.3g}",
            f"{row['z']:+.1f}",
        ]
        for row in entry["bottom" if least else "top"]
    ]
    return Grid(title, ["from", "to", "entry", "z"], rows)


def difference_grid(doc: Doc, *, count: int) -> Grid | None:
    """Heads whose copying differs most between the models of a pair; None without a pair."""
    found = (doc.get("difference") or {}).get("copying")
    if not found:
        return None
    heads = [
        (i, h)
        for i, row in enumerate(found["value"])
        for h, value in enumerate(row)
        if value is not None
    ]
    heads = sorted(heads, key=lambda at: -abs(found["value"][at[0]][at[1]]))[:count]
    rows = [
        [
            head_name(i, h),
            *(_number(found[name][i][h], "+.3f") for name in ("value", "low", "high")),
            "clear" if found["clear"][i][h] else "",
        ]
        for i, h in heads
    ]
    title = "Copying, instruct less base, the heads that differ most"
    return Grid(title, ["head", "difference", "low", "high", ""], rows)


def facts(doc: Doc) -> list[tuple[str, str]]:
    """What the run was."""
    settings, versions = doc["settings"], doc.get("versions") or {}
    folded = "folded into the matrices" if settings["fold_norms"] else "left out"
    found = [
        ("models", _text(doc.get("display"))),
        ("gains of norms", folded),
        ("ids drawn", str(settings["tokens"])),
        ("distances", f"0 to {settings['offsets'] - 1}"),
        ("seed", str(settings["seed"])),
        ("run", _text(doc.get("run_id"))),
        ("made", _text(doc.get("timestamp"))),
        ("versions", ", ".join(f"{_text(k)} {_text(v)}" for k, v in versions.items())),
    ]
    return [(name, value) for name, value in found if value]


def _joined(rows: Sequence[Doc]) -> str:
    return ", ".join(
        f"{show_token(r['left_text'], limit=12)}→{show_token(r['right_text'], limit=12)} "
        f"({r['z']:.1f})"
        for r in rows
    )


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format_number(value, form)


def _text(value: object) -> str:
    return "" if value is None else safe_text(str(value), limit=80)
