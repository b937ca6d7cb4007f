"""Tables as CSV, the original study's and our own: their columns, and reading them with checks.

Columns may stand in any order and others may stand beside them. A number that is none is an error
which names line and column; a spread or an interval bound may be empty, which becomes NaN.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mlxroles.errors import StoreError
from mlxroles.store.files import MIB, plain_errors, shown
from mlxroles.text import safe_text

Row = dict[str, Any]
Kind = Literal["comparison", "candidates", "changes"]

SIDES = ("base", "instruct")
METRICS = ("rfc", "rsi")

COMPARISON_COLUMNS: tuple[str, ...] = (
    "layer",
    *(
        column
        for side in SIDES
        for column in (
            *(
                f"{metric}_{what}_{side}"
                for metric in METRICS
                for what in ("mean", "std", "ci_low", "ci_high")
            ),
            f"n_heads_{side}",
        )
    ),
    *(f"{metric}_diff" for metric in METRICS),
    *(f"{metric}_diff_ci_{end}" for metric in METRICS for end in ("low", "high")),
)
"""The 25 columns of a base/instruct comparison, one row per layer."""

CANDIDATE_COLUMNS: tuple[str, ...] = (
    "layer", "head", "model_family", "self_base_median", "self_instruct_median",
    "neutral_base_median", "neutral_instruct_median", "self_diff_median", "neutral_diff_median",
    "did_median", "log_ratio_median", "did_log_ratio_median", "self_consistency",
    "did_consistency", "self_diff_iqr", "did_iqr", "log_ratio_iqr", "baseline_entropy", "n_self",
    "n_neutral", "magnitude_score", "consistency_score", "baseline_score", "composite_score",
    "rank", "layer_head",
)  # fmt: skip
"""The columns of a table of patching candidates, one row per head."""

CHANGE_COLUMNS: tuple[str, ...] = (
    "layer",
    *(f"{metric}_diff{end}" for metric in METRICS for end in ("", "_low", "_high")),
)
"""The columns that are read of this program's own comparison."""

_COLUMNS: Mapping[Kind, tuple[str, ...]] = {
    "comparison": COMPARISON_COLUMNS,
    "candidates": CANDIDATE_COLUMNS,
    "changes": CHANGE_COLUMNS,
}
_NAMES: Mapping[Kind, str] = {
    "comparison": "detailed comparison",
    "candidates": "table of candidates",
    "changes": "comparison of this program",
}
_WHOLE = {"layer": 0, "head": 0, "rank": 1, "n_self": 1, "n_neutral": 1}
_WHOLE |= {f"n_heads_{side}": 1 for side in SIDES}
_TEXTS = ("model_family", "layer_head")
_OPTIONAL: Mapping[Kind, tuple[str, ...]] = {
    "comparison": (),
    "candidates": ("layer_head",),
    "changes": CHANGE_COLUMNS[2:],
}
"""What a table may lack: an earlier step of the study's program does not write ``layer_head`` yet,
and of changes the change of RFC is enough."""
_LARGEST = 16 * MIB
_SHOWN = 4


def layer_head(layer: int, head: int) -> str:
    """The study's name of a head: ``27_5``."""
    return f"{layer}_{head}"


def read(path: Path) -> tuple[Kind, list[Row]]:
    """Which table of the study a file is, and its rows in the order of layers or ranks.

    Raises:
        StoreError: it cannot be read, lacks columns or rows, or a value is not what its column
            holds; the message names the first fault.
    """
    header, lines = _lines(path)
    lacking = {kind: _lacking(kind, header) for kind in _COLUMNS}
    kind: Kind = min(("comparison", "candidates"), key=lambda name: len(lacking[name]))
    if len(lacking[kind]) > len(_COLUMNS[kind]) / 2 and not lacking["changes"]:
        kind = "changes"
    if lacking[kind]:
        _refuse_columns(path, kind, lacking[kind], header)
    if not lines:
        raise StoreError(f"{shown(path)} has a header and no rows: nothing to read")
    columns = [column for column in _COLUMNS[kind] if column in header]
    rows = [_row(path, number, cells, header, columns) for number, cells in lines]
    _refuse_repeated(path, rows, ("layer", "head") if kind == "candidates" else ("layer",))
    if kind != "candidates":
        return kind, sorted(rows, key=lambda row: row["layer"])
    named = [row | {"layer_head": layer_head(row["layer"], row["head"])} for row in rows]
    return kind, sorted(named, key=lambda row: row["rank"])


def _lines(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and each further line that is not blank with its number."""
    with plain_errors(path, verb="read"):
        if path.stat().st_size > _LARGEST:
            raise StoreError(f"{shown(path)} is far larger than any table of the study")
        data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise StoreError(f"{shown(path)} is not UTF-8 text: expected is a CSV file") from error
    first = text.lstrip().split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        lines = [(reader.line_num, cells) for cells in reader if any(map(str.strip, cells))]
    except csv.Error as error:
        raise StoreError(
            f"{shown(path)}, line {reader.line_num}: not CSV ({safe_text(str(error))})"
        ) from error
    if not lines:
        raise StoreError(f"{shown(path)} is empty: expected is a CSV table of the study")
    header = [name.strip() for name in lines[0][1]]
    known = {column for columns in _COLUMNS.values() for column in columns}
    if twice := [name for name in header if name in known and header.count(name) > 1]:
        raise StoreError(f"{shown(path)} has the column {twice[0]} twice; leave one of them out")
    return header, lines[1:]


def _lacking(kind: Kind, header: Sequence[str]) -> list[str]:
    return [name for name in _needed(kind) if name not in header]


def _needed(kind: Kind) -> list[str]:
    return [name for name in _COLUMNS[kind] if name not in _OPTIONAL[kind]]


def _refuse_columns(path: Path, kind: Kind, lacking: Sequence[str], header: Sequence[str]) -> None:
    columns = _needed(kind)
    if len(lacking) > len(columns) / 2:
        there = safe_text(", ".join(header[:_SHOWN]), limit=80)
        raise StoreError(
            f"{shown(path)} is no table of the study (its columns begin {there}): expected is a"
            " detailed comparison (layer, rfc_mean_base, …) or a table of candidates (layer, head,"
            " did_median, …)"
        )
    more = f" and {len(lacking) - _SHOWN} more" if len(lacking) > _SHOWN else ""
    raise StoreError(
        f"{shown(path)} lacks the column{'s' if len(lacking) > 1 else ''}"
        f" {', '.join(lacking[:_SHOWN])}{more} of a {_NAMES[kind]} ({len(columns)} columns)"
    )


def _row(
    path: Path, line: int, cells: Sequence[str], header: Sequence[str], columns: Sequence[str]
) -> Row:
    if len(cells) != len(header):
        raise StoreError(
            f"{shown(path)}, line {line}: {len(cells)} values for {len(header)} columns; is the"
            " file cut off?"
        )
    texts = dict(zip(header, map(str.strip, cells), strict=True))
    return {name: _value(f"{shown(path)}, line {line}", name, texts[name]) for name in columns}


def _value(where: str, column: str, text: str) -> int | float | str:
    if column in _TEXTS:
        return text
    may_lack = "_std" in column or "_ci_" in column or column.endswith(("_low", "_high"))
    may_lack |= column == "rsi_diff"
    if may_lack and text.lower() in ("", "nan"):
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    least = _WHOLE.get(column)
    if not math.isfinite(value) or "_" in text:
        expected = "a number"
    elif least is not None and (value < least or value % 1):
        expected = f"a whole number from {least}"
    elif "_std" in column and value < 0:
        expected = "0 or more"
    else:
        return value if least is None else int(value)
    raise StoreError(f"{where}: {column} is {safe_text(text, limit=40)!r}, expected is {expected}")


def _refuse_repeated(path: Path, rows: Sequence[Row], keys: Sequence[str]) -> None:
    seen = set()
    for row in rows:
        place = tuple(row[key] for key in keys)
        if place in seen:
            named = ", ".join(f"{key} {row[key]}" for key in keys)
            raise StoreError(f"{shown(path)} has {named} twice; expected is one row for each")
        seen.add(place)
