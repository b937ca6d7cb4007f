"""What a session prints and a notebook shows of results: names, shapes, and no mark-up of texts."""

import re

import numpy as np
import pytest
from tiny_models import tiny, tiny_llama

import mlxroles
from mlxroles import notebook
from mlxroles.backend import mx
from mlxroles.detectors import head_scores, repeated
from mlxroles.edits import DERIVED, SITES
from mlxroles.forward import Run
from mlxroles.models.load import wrap
from mlxroles.text import ranges

HOSTILE = "<script>alert(1)</script>\x1b[31m"


def cells(page):
    return re.findall(r"<td>(.*?)</td>", page)


def test_a_run_says_what_it_kept():
    model = tiny("llama")
    run = model.run([[1, 2, 3], [4, 5, 6]], keep=["z", "pattern"], layers=[0, 1, 3])
    shown = repr(run).splitlines()
    assert shown[0] == "Run: kept"
    assert " ".join(shown[1].split()) == "logits [2, 3, 128] batch position vocab, float32"
    assert "[2, 3, 4, 16]" in shown[2]
    assert shown[2].endswith("batch position head d_head, float32, layers 0-1, 3")
    assert "[2, 4, 3, 3]" in shown[3]
    page = run._repr_html_()
    assert cells(page)[:5] == ["logits", "[2, 3, 128]", "batch position vocab", "float32", ""]
    assert cells(page)[-1] == "0-1, 3"


@pytest.mark.parametrize("site", [*SITES, *DERIVED])
def test_every_site_has_its_axes_and_shape(site):
    run = tiny("llama").run([1, 2, 3], keep=[site], logits=False)
    line = repr(run).splitlines()[1]
    assert line.split()[0] == site
    assert (SITES | DERIVED)[site] in line
    assert str([*run[site, 0].shape]) in line
    axes = (SITES | DERIVED)[site].split()
    assert len(axes) == run[site, 0].ndim


def test_runs_of_other_kinds():
    model = tiny("llama")
    assert repr(Run({}, None)) == "Run: nothing was kept"
    after = model.run([5, 6], prefix=model.prefix([1, 2, 3, 4]))
    assert repr(after).startswith("Run after 4 positions: kept")
    assert "after 4 positions" in after._repr_html_()
    mixed = Run({"z": {0: mx.zeros((1, 2, 4, 8)), 2: mx.zeros((1, 2, 2, 8))}}, None)
    assert "[1, 2, 4, 8] or [1, 2, 2, 8]" in repr(mixed)


def test_ranges_of_layers():
    assert ranges([]) == ""
    assert ranges([3]) == "3"
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    rng = np.random.default_rng(0)
    for _ in range(20):
        layers = sorted({*rng.integers(0, 20, 8).tolist()})
        back = [range(int(a), int(b or a) + 1) for a, _, b in (
            part.partition("-") for part in ranges(layers).split(", ")
        )]  # fmt: skip
        assert [i for part in back for i in part] == layers


def test_a_model_says_its_sizes():
    model = tiny("llama")
    assert repr(model) == (
        "Model llama (llama): layers 4, heads 4 of 16 (2 kv), d_model 64, vocab 128, "
        f"stream float32, weights {repr(model).rsplit('weights ')[1]}"
    )
    assert "heads 0" in repr(tiny("mamba"))
    page = tiny("gemma3n")._repr_html_()
    assert "per-layer inputs of the tokens enter every block" in page


def test_scores_show_the_best_heads():
    model, rows = tiny("llama"), repeated(128, np.random.default_rng(0), n=2, length=8)
    scores = head_scores(model, rows)
    layer, head = scores.ranked("induction")[0]
    best = f"L{layer}H{head} {scores.means('induction')[layer, head]:.2f}"
    assert repr(scores).splitlines()[2].startswith(f"  induction  {best}, L")
    assert best in scores._repr_html_()


def test_no_text_becomes_markup():
    model = wrap(tiny_llama(1), name=HOSTILE)
    model.warnings = (HOSTILE,)
    for page in (model._repr_html_(), notebook.table(HOSTILE, [HOSTILE], [[HOSTILE]], HOSTILE)):
        assert "<script" not in page
        assert "\x1b" not in page
        assert "&lt;script&gt;" in page
    assert "\x1b" not in repr(model)


def test_the_package_offers_what_a_notebook_needs():
    for name in mlxroles.__all__:
        assert getattr(mlxroles, name) is not None
    assert {"load", "Edit", "zero", "project_out", "transplant"} <= {*mlxroles.__all__}
    assert {*mlxroles.__all__} <= {*dir(mlxroles)}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mlxroles.nothing
