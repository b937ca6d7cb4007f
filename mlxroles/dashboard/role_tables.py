"""The tables of the commands that compare models, list candidates and correlate families."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from mlxroles.dashboard.adapt import Adaptive, Screen, grid_table, side_by_side
from mlxroles.report.roles import tracks
from mlxroles.report.roles.wording import LABELS, shown, signed, with_interval
from mlxroles.report.rows import Grid
from mlxroles.roles.metrics import METRICS
from mlxroles.text import format_number

Row = Mapping[str, Any]

_WIDEST = 100
_WIDE = 92
"""From so many columns on the comparison has room for the tests of each model."""


def comparison_table(rows: Sequence[Row], *, width: int | None = None) -> RenderableType:
    """RFC and RSI of base, instruct and their difference per layer, side by side if they fit.

    Takes the rows of a run, with p and length-normalised values, or those with the original
    study's 25 columns.
    """
    return Adaptive(lambda screen: _comparison(rows, screen), width)


def candidates_table(rows: Sequence[Row], *, width: int | None = None) -> RenderableType:
    """The candidates for patching in the order of their rank, and what the columns are.

    Takes those of a run, with p, or those with the original study's columns, without.
    """
    return Adaptive(
        lambda screen: Group(
            grid_table(candidate_rows(rows), screen), screen.text(candidate_legend(rows), "dim")
        ),
        width,
        _WIDEST,
    )


def candidate_rows(rows: Sequence[Row]) -> Grid:
    """The table of candidates, without p where the rows have none."""
    has_p = any("p" in row for row in rows)
    head = ["head", "DiD [nats]", "consist.", "H base", "score"]
    lines = []
    for row in rows:
        line = [f"{row.get('layer')}.{row.get('head')}"]
        line.append(with_interval(*(_at(row, f"did_{n}") for n in ("median", "low", "high"))))
        name = "consistency" if "consistency" in row else "did_consistency"
        for key in (name, "baseline_entropy", "composite_score"):
            line.append(format_number(_at(row, key), ".2f"))
        if has_p:
            line.append(format_number(_at(row, "z_null"), ".2f"))
            line += [_p(_at(row, "p")), _p(_at(row, "p_max"))]
        lines.append(line)
    return Grid(
        "Candidates for patching (layer.head)",
        [*head, *(["z", "p", "p max"] if has_p else [])],
        lines,
    )


def candidate_legend(rows: Sequence[Row], *, chance: float = math.nan) -> str:
    """What the columns of the candidates are."""
    by_chance = "same side of reference" if math.isnan(chance) else f"{chance:.2f} by chance"
    text = f"DiD: difference in differences; consist.: {by_chance}; H: entropy;\nscore: sum of 3 z"
    if any("p" in row for row in rows):
        text += "; z, p: shuffled labels; p max: the largest z of all heads"
    return text


def correlation_table(doc: Row, *, width: int | None = None) -> RenderableType:
    """Families, then how every two of them correlate over depth, with a verdict in words.

    Takes our document, or the original study's with ``summary_stats`` and ``correlations``.
    """
    parts = _study_correlation if "summary_stats" in doc else _correlation
    return Adaptive(lambda screen: Group(*parts(doc, screen)), width, 120)


def _comparison(rows: Sequence[Row], screen: Screen) -> RenderableType:
    has_p = any("rfc_diff_p" in row for row in rows)
    shown_metrics = [m for m in METRICS if any(_is_known(row, f"{m}_diff") for row in rows)]
    tables = [_metric(rows, metric, screen, has_p=has_p) for metric in shown_metrics]
    legend = (
        "brackets: 95 % intervals over prompts; q: of the number to its left, after "
        "Benjamini-Hochberg over layers; p =len: "
        "only prompts of equal length exchanged, uncorrected; norm: difference, "
        "length-normalised"
    )
    if not has_p:
        legend = "brackets: 95 % intervals over heads, as in the original study; no test"
    return Group(*side_by_side(tables, screen), screen.text(legend, "dim"))


def _metric(rows: Sequence[Row], metric: str, screen: Screen, *, has_p: bool) -> Table:
    has_q = screen.width >= _WIDE and any(f"{metric}_base_q" in row for row in rows)
    models = ("base", "instruct")
    head = ["layer", *(name for who in models for name in (who, *["q"] * has_q)), "instruct − base"]
    head += ["q", "p =len", "norm", *["q"] * has_q] if has_p else []
    lines = []
    for row in rows:
        infix = "" if f"{metric}_base" in row else "_mean"
        levels = []
        for who in models:
            levels.append(signed(_at(row, f"{metric}{infix}_{who}")))
            levels += [_p(_at(row, f"{metric}_{who}_q"))] if has_q else []
        diff, low, high = (_at(row, name) for name in _difference(row, metric))
        line = [str(row.get("layer")), *levels, with_interval(diff, low, high)]
        if has_p:
            line += [_p(_at(row, f"{metric}_diff_{n}")) for n in ("q", "p_same_length")]
            line.append(signed(_at(row, f"{metric}_normalised_diff")))
            line += [_p(_at(row, f"{metric}_normalised_diff_q"))] if has_q else []
        lines.append(line)
    null = next((_at(row, f"null_{metric}") for row in rows), float("nan"))
    title = LABELS[metric] + (f" (uniform attention: {signed(null)})" if null == null else "")
    return grid_table(Grid(title, head, lines), screen)


def _difference(row: Row, metric: str) -> list[str]:
    """The names of the difference and its interval: ours, or the study's."""
    ends = "_ci_low" if f"{metric}_diff_ci_low" in row else "_low"
    return [f"{metric}_diff", f"{metric}_diff{ends}", f"{metric}_diff{ends.replace('low', 'high')}"]


def _correlation(doc: Row, screen: Screen) -> Iterator[RenderableType]:
    yield grid_table(_families(doc), screen, left=(0, 6))
    for pair in doc.get("pairs") or []:
        yield screen.text("")
        yield grid_table(_pair(pair), screen, left=(0, 3))
        yield screen.text(shown(pair.get("verdict") or "", 400))


def _study_correlation(doc: Row, screen: Screen) -> Iterator[RenderableType]:
    """The original study's figures: layers as if independent, a threshold for a test."""
    lines = []
    for name, stats in (doc.get("summary_stats") or {}).items():
        line = [shown(name, 20), str(stats.get("total_layers"))]
        spread = format_number(_at(stats, "std"), ".3f")
        line += [signed(_at(stats, "mean")), spread]
        line += [signed(_at(stats, key)) for key in ("min", "max")]
        counts = ("significant_positive", "near_zero", "significant_negative")
        lines.append([*line, *(str(stats.get(key)) for key in counts)])
    head = ["family", "layers", "mean", "sd", "min", "max", "> .01", "between", "< -.01"]
    yield grid_table(Grid("instruct − base per layer", head, lines), screen, left=(0,))
    lines = []
    for name, pair in (doc.get("correlations") or {}).items():
        line = [shown(name, 44).replace("_vs_", " and "), str(pair.get("layers_compared"))]
        for stem in ("pearson", "spearman"):
            line += _both(pair, stem)
        lines.append(line)
    if lines:
        yield screen.text("")
        head = ["families", "layers", "Pearson r", "p", "Spearman r", "p"]
        yield grid_table(Grid("Correlation over layers", head, lines), screen, left=(0,))
    yield screen.text(
        "as in the original study: layers taken for independent, so p is too small; a change "
        "beyond .01 is no test",
        "dim",
    )


def _families(doc: Row) -> Grid:
    lines = []
    for name, family in (doc.get("families") or {}).items():
        low, high = (tracks.number(end) for end in family.get("mean_ci") or (None, None))
        spread = format_number(_at(family, "sd"), ".3f")
        line = [shown(name, 20), str(family.get("n_layers"))]
        line += [with_interval(_at(family, "mean"), low, high), signed(_at(family, "median"))]
        without: Row = family.get("without") or {}
        left_out = f"{without['layer']}: {signed(_at(without, 'mean'))}" if without else "–"
        decides = "decides" if family.get("decided_by_one_layer") else ""
        lines.append([*line, spread, left_out, decides])
    head = ["family", "layers", "mean", "median", "sd", "mean without", "layer"]
    title = f"{LABELS.get(str(doc.get('metric')), 'Metric')}, instruct − base"
    return Grid(title, head, lines)


def _pair(pair: Row) -> Grid:
    """One correlation, every way of testing it in a row."""
    lines = [
        ["Pearson", *_both(pair, "pearson"), "layers as if independent"],
        ["", _r(pair, "pearson_r"), _p(_at(pair, "n_eff_p")), _effective(pair)],
        ["", "", _p(_at(pair, "shift_p")), "circular shifts"],
        ["detrended", *_both(pair, "detrended"), "quadratic in depth removed"],
        ["Spearman", *_both(pair, "spearman"), "ranks"],
    ]
    if pair.get("most_influential_layer") is not None:
        left_out = f"without layer {pair['most_influential_layer']}"
        lines.append(["Pearson", signed(_at(pair, "r_without_it")), "", left_out])
    names = f"{shown(pair.get('a'), 20)} and {shown(pair.get('b'), 20)}"
    aligned = shown(pair.get("aligned") or "layer", 20)
    title = f"{names}: {pair.get('n_layers')} layers by {aligned}"
    return Grid(title, ["", "r", "p", "taken as"], lines)


def _r(pair: Row, name: str) -> str:
    stem = name.removesuffix("_r")
    ends = (_at(pair, f"{stem}_low"), _at(pair, f"{stem}_high"))
    return with_interval(_at(pair, name), *ends)


def _both(pair: Row, stem: str) -> tuple[str, str]:
    return signed(_at(pair, f"{stem}_r")), _p(_at(pair, f"{stem}_p"))


def _effective(pair: Row) -> str:
    return f"{format_number(_at(pair, 'n_eff'), '.1f')} effective layers"


def _at(row: Row, name: str) -> float:
    return tracks.number(row.get(name))


def _is_known(row: Row, name: str) -> bool:
    return not math.isnan(_at(row, name))


def _p(value: float) -> str:
    return format_number(value, ".3f")
