"""Tables, figures and texts of a direct attribution: sums that agree, and any token text."""

import io
import json

import numpy as np
import pytest
from rich.console import Console
from tiny_models import tiny

from mlxroles.dashboard.direct_tables import direct_tables
from mlxroles.direct import attribute, attribute_positions
from mlxroles.plots import canvas
from mlxroles.plots import direct as plots
from mlxroles.report import direct

IDS = [3, 1, 4, 1, 5, 9, 2, 6]
HOSTILE = "<script>alert(1)</script>\x1b[31m$\\frac$[bold]"


def document(name="llama", plus=5, minus=7, **options):
    found = attribute(tiny(name), IDS, -1, plus, minus, **options)
    return json.loads(json.dumps(found.document(lambda i: f"{HOSTILE}{i}")))


def printed(docs, width=80):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(direct_tables(docs))
    return console.export_text()


def test_a_document_holds_all_of_it():
    parts = attribute(tiny("gemma2"), IDS, -1, [5, 6], 7)
    doc = json.loads(json.dumps(parts.document()))
    assert np.array_equal(doc["values"], parts.values)
    assert (doc["cap"], doc["plus"], doc["minus"]) == (30, ["id 5", "id 6"], ["id 7"])
    assert "before the soft-cap of 30" in doc["sentence"]
    assert direct.subject(doc) == "logit of id␣5 and 1 more (mean) less id␣7, position 7"


@pytest.mark.parametrize("name", ["llama", "gpt2", "jamba", "mamba"])
def test_sums_by_layer_add_up(name):
    doc = document(name)
    found = direct.by_layer(doc)
    whole = found.before + np.nansum(found.values) + found.after
    assert abs(whole - doc["total"]) <= 1e-9
    grid, layers = direct.head_grid(doc)
    heads = found.values[:, 0]
    assert layers == found.layers
    if grid.size:
        assert np.allclose(np.nansum(grid, axis=1), np.nan_to_num(heads))
    last = direct.layers_grid(doc).rows[-1][-1]
    assert last == direct.signed(doc["total"])


def test_the_largest_parts_and_the_rest_are_the_sum():
    doc = document()
    rows = direct.parts_grid(doc, count=3).rows
    order = sorted(doc["values"], key=abs, reverse=True)
    assert [r[1] for r in rows[:3]] == [direct.signed(v) for v in order[:3]]
    assert rows[3][0] == f"{len(order) - 3} others"
    assert rows[3][1] == direct.signed(sum(order[3:]))
    assert rows[4] == ["all parts", direct.signed(doc["total"])]


@pytest.mark.parametrize("name", ["llama", "mamba", "gemma2"])
def test_tables_fit_80_columns_and_show_no_escapes(name):
    text = printed({"tiny": document(name), f"[red]{HOSTILE}": document("gpt2")})
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b[31m" not in text
    assert "[red]<script>" in text
    assert "all parts" in text


def test_of_several_positions_the_mean_is_shown():
    parts = attribute_positions(tiny("llama"), IDS, [1, 2, 7], 5)
    doc = parts.document()
    assert np.allclose(direct.means(doc), parts.values.mean(axis=1))
    assert "3 positions" in direct.subject(doc)
    assert parts.largest(1)[0][0] == parts.names[direct.ranked(doc, 1)[0]]


def test_figures_of_any_model_and_text(tmp_path):
    about = {"display": HOSTILE, "run_id": "0123", "versions": {"mlxroles": "0.1.0"}}
    with canvas.style():
        figure = plots.parts(about, {HOSTILE + n: document(n) for n in ("jamba", "mamba")})
        canvas.save(figure, tmp_path / "a.png", tmp_path / "a.svg")
        found = attribute_positions(tiny("llama"), IDS, None, 5).document()
        assert plots.positions(about, found, [HOSTILE] * len(IDS)) is not None
        assert plots.positions(about, document()) is None
    assert "<script" not in (tmp_path / "a.svg").read_text(encoding="utf-8")


def test_bars_and_map_hold_the_parts():
    doc = document("gpt2")
    with canvas.style():
        figure = plots.parts({}, {"tiny": doc})
    bars, heat, *_ = figure.axes
    lengths = [bar.get_width() for bar in bars.containers[0]]
    order = sorted(doc["values"], key=abs, reverse=True)
    assert np.allclose(lengths[:-1], order[: len(lengths) - 1])
    assert np.isclose(sum(lengths), doc["total"])
    shown = np.asarray(heat.images[0].get_array())
    assert shown.shape == (4, 5)  # four heads and the MLP
    values = zip(doc["values"], doc["kinds"], strict=True)
    assert np.isclose(shown.sum(), sum(v for v, kind in values if kind in ("head", "mlp")))


def test_reprs_say_what_it_is():
    parts = attribute(tiny("llama"), IDS, -1, 5, 7)
    assert repr(parts).startswith("Parts: 21 parts at position 7, sum ")
    page = parts._repr_html_()
    assert page.count("<tr>") == 11
    assert "logit difference" in page
