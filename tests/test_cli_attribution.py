"""`patch --method attribution` as a command: output, refusals, terminals, hostile text."""

import io
import json

import numpy as np
import pytest
from rich.console import Console
from stories import TEXT

from mlxroles.dashboard.attribution_tables import attribution_tables
from mlxroles.documents import DIRECTIONS
from mlxroles.plots import canvas
from mlxroles.plots.attribution import maps
from mlxroles.plots.attribution.edges import flow
from mlxroles.report import attribution as report
from mlxroles.studies.attribution import results as attribution_results

HOSTILE = "<script>alert(1)</script>\x1b[2J\u202e|$\\frac$[b]"


@pytest.fixture
def models(shared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return shared / "models"


@pytest.fixture(autouse=True)
def no_figures(request, monkeypatch):
    """Figures have tests of their own and take longer than everything here."""
    if "tiny" not in request.node.name:
        monkeypatch.setattr(attribution_results, "attribution_figures", lambda doc, grids, f: {})


def pair(models):
    return ["--base", models / "stories260K", "--instruct", models / "stories260K-chat"]


def command(models, *args):
    measured = [] if "--token-ids" in args or "--tokens" in args else ["--token-ids", "508"]
    prompt = [] if {"--prompt", "--prompt-ids"} & {*args} else ["--prompt", TEXT]
    return ["patch", *pair(models), "--method", "attribution", *prompt, *measured, *args]


def refused(result):
    """The one line of a refusal; nothing on standard output."""
    status, out, err = result
    assert (status, out) == (1, ""), err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    return lines[0]


# --- what comes out -------------------------------------------------------------------------------


@pytest.mark.slow
def test_tiny_is_one_document_with_every_file(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ["patch", "--pair", "tiny", "--method", "attribution", "--verify", "3", "--json"]
    status, out, err = call(*line)
    doc = json.loads(out)
    assert (status, out.count("\n")) == (0, 1)
    assert doc["schema"] == "mlxroles/attribution/1"
    assert (doc["pair"], doc["headline"], doc["metric"]) == ("tiny", "<tool_call>", "log_odds")
    folder = tmp_path / "results"
    assert json.loads(next(folder.glob("*/*/summary.json")).read_text()) == doc
    for name in ("run.h5", "report.html", "summary.md", "cells.jsonl", "manifest.json"):
        assert next(folder.glob(f"*/*/{name}")).is_file()
    for path in doc["figures"].values():
        assert (tmp_path / path).is_file()
    for direction in DIRECTIONS:
        largest = [row for row in doc[direction]["verify"]["z"]["rows"] if row["kind"] == "largest"]
        assert all(np.sign(row["estimate"]) == np.sign(row["exact"]) for row in largest)
    assert "estimate" in err


def test_the_terminal_says_what_is_not_verified_and_lists_every_site(call, models):
    status, out, err = call(*command(models))
    assert status == 0
    assert "First-order estimate, not verified" in out
    assert "One prompt: no interval." in " ".join(out.split())
    for site in ("resid_post", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern"):
        assert f"\n{site} " in out
    assert "exact" not in out.splitlines()[1]
    assert "2 cells" in err


def test_verified_cells_stand_beside_their_estimates(call, models):
    status, out, _ = call(*command(models, "--verify", "4", "--edges", "--plain"))
    assert status == 0
    assert "not verified" not in out
    assert "cells run exactly" in out
    for words in ("ρ random", "largest misses", "estimate against exact", "of 1701 edges"):
        assert words in out
    assert "\x1b" not in out


def test_a_plan_sets_the_passes_against_the_exact_sweep(call, models, tmp_path):
    status, out, _ = call(*command(models, "--dry-run"))
    assert status == 0
    assert "the exact sweep of these cells" in out
    assert "first-order estimates" in out
    status, out, _ = call(*command(models, "--dry-run", "--json", "--verify", "5"))
    plan = json.loads(out)
    assert plan["layer_calls"] * 20 < plan["layer_calls_of_the_exact_sweep"]
    assert plan["exact_runs"] == 2 * 5 * 2 * 8
    assert list(tmp_path.iterdir()) == []


MANY = ["--verify", "3", "--edges", "--prompt", "a", "--prompt", "b c d", "--prompt", "e"]


@pytest.mark.parametrize("args", [[], MANY, ["--positions", "each"]], ids=lambda a: len(a))
def test_eighty_columns_are_enough(call, models, args):
    status, out, _ = call(*command(models, "--json", *args))
    assert status == 0
    doc = json.loads(out)
    for width in (80, 200):
        file = io.StringIO()
        Console(file=file, width=width, force_terminal=False).print(attribution_tables(doc))
        lines = file.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        if width == 80:  # nothing but a token's text is cut
            assert not any("…" in line.replace("<|", "") for line in lines)


def test_several_prompts_come_with_intervals(call, models):
    args = ["--prompt-ids", "1,403,407", "--prompt", "a", "--prompt", "b c"]
    status, out, _ = call(*command(models, *args, "--site", "z"))
    assert status == 0
    assert "Means over 3 prompts" in " ".join(out.split())
    assert " q value " in out.splitlines()[1]
    assert "[" in out


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--controls", "none"], "--controls does not go with --method attribution"),
        (["--heads", "each"], "--heads does not go with --method attribution"),
        (["--read", "donor-head"], "--read does not go with --method attribution"),
        (["--site", "resid_pre"], "resid_post of the layer before"),
        (["--metric", "kl"], "--ig 5"),
        (["--layers", "9"], "0..4"),
        (["--positions", "99"], "position 99 is outside"),
        (["--positions", "1-2", "--edges"], "--edges"),
        (["--token-ids", "512"], "0..511"),
    ],
)
def test_what_means_nothing_here_is_refused_in_one_line(call, models, tmp_path, args, words):
    assert words in refused(call(*command(models, *args)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "args", [["--ig", "2"], ["--edges"], ["--verify", "3"], ["--metric", "kl"]], ids=" ".join
)
def test_options_of_attribution_need_the_method(call, models, args):
    line = refused(call("patch", *pair(models), "--prompt", "x", "--token-ids", "508", *args))
    assert f"{args[0]} goes with --method attribution" in line


# --- hostile text ---------------------------------------------------------------------------------


def test_hostile_text_is_never_obeyed(call, models, tmp_path):
    args = ["--prompt", f"{HOSTILE} ", "--tokens", HOSTILE, "--out", "run"]
    status, out, err = call(*command(models, *args))
    assert status == 0
    page = (tmp_path / "run" / "report.html").read_text()
    doc = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert doc["headline"] == HOSTILE
    for where in (out, err, page):
        assert not any(c in where for c in "\x1b\x07\0\u202e")
    assert "<script>alert" not in page


def entry(estimate, **more):
    row = {"layer": 1, "estimate": estimate, "recovery": 0.5, **more}
    return {"axes": [n for n in row if n in ("layer", "head")], "cells": 4, "top": [row]}


def document(**more):
    """A document of two layers and two heads whose names are hostile."""
    grid = {"estimate": [[1.0, None], [-2.0, 0.5]], "recovery": [[0.1, None], [-0.2, 0.05]]}
    edge = {"source": "L0H1", "target": "L1 kv0.v", "estimate": -1.5, "recovery": 0.2}
    edge |= {"source_end": [0, "head", 1], "target_end": [1, "v", 0]}
    direction = {
        "recipient": -3.0,
        "donor": 2.0,
        "gap": 5.0,
        "n_prompts": 1,
        "passes": 2.0,
        "sites": {"z": entry(-2.0, head=0) | {"grid": grid}},
        "edges": {"cells": 9, "top": [edge]},
    }
    return {
        "schema": "mlxroles/attribution/1",
        "display": HOSTILE,
        "n_layers": 2,
        "layers_tested": [0, 1],
        "metric": "log_odds",
        "unit": "nat",
        "ig": 1,
        "sites": ["z"],
        "positions": {"z": "all"},
        "headline": HOSTILE,
        "prompts": [{"id": HOSTILE, "n_tokens": 2}],
        "tokens": [HOSTILE, HOSTILE],
        "verified_cells": 0,
        **dict.fromkeys(DIRECTIONS, direction),
        **more,
    }


def test_hostile_names_in_figures_and_reports_are_only_text():
    doc = document()
    page = report.html(doc, {})
    assert "<script>alert" not in page
    assert "\u202e" not in page
    assert "\\<script" in report.markdown(doc) or "&lt;script" in report.markdown(doc)
    grids = {"attn_out": np.array([[1.0, np.nan], [0.0, -2.0]])}
    with canvas.style():
        for figure in (
            maps.positions(doc, DIRECTIONS[0], grids),
            maps.heads(doc, ("z",)),
            flow(doc, DIRECTIONS[0]),
        ):
            assert figure is not None
            canvas.FigureCanvasAgg(figure).draw()


def test_a_run_without_estimates_has_no_figures_and_says_so():
    doc = document(**{d: {} for d in DIRECTIONS})
    assert report.sentence(doc) == "No estimate was finished."
    with canvas.style():
        assert maps.layers(doc) is None
        assert maps.heads(doc, ("z",)) is None


def test_long_prompts_name_the_tokens_that_stand_out_and_short_ones_all():
    doc = document(tokens=[f"t{i}" for i in range(300)], prompts=[{"id": "p", "n_tokens": 300}])
    values = np.zeros((2, 300))
    values[1, [7, 150, 299]] = (1.0, -0.8, 2.0)
    with canvas.style():
        figure = maps.positions(doc, DIRECTIONS[0], {"attn_out": values})
        short = maps.positions(doc, DIRECTIONS[0], {"attn_out": values[:, :20]})
    texts = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert texts == ["t7 7", "t150 150", "t299 299"]
    assert len(short.axes[0].get_xticklabels()) == 20
