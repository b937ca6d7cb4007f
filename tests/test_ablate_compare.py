"""The comparison: its numbers against plain runs, its page against token text that means harm."""

import base64
import csv
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from stories import run as run_study

import mlxroles
from mlxroles.edits import zero
from mlxroles.models.load import load
from mlxroles.prompts import Prompt, load_prompts
from mlxroles.report.ablate import compare_page
from mlxroles.runs.cells import source
from mlxroles.studies.ablate import position_results, position_tests
from mlxroles.studies.ablate.compare import BASELINES, HEADS, RANDOM_HEADS, UNEDITED, Comparison
from mlxroles.studies.subject import Subject

FOLDER = Path(mlxroles.__file__).parent / "data" / "tiny" / "instruct"
IDS = (0, 400, 31, 77, 512, 400, 31, 9)
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style><b>",
    "&amp;\u202e\x1b[31m",
    "' onmouseover='x",
)


@pytest.fixture(scope="module")
def model():
    return load(FOLDER)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run over two prompts, with its reports."""
    path = tmp_path_factory.mktemp("compare") / "run"
    prompts = [Prompt("first", ids=IDS), Prompt("=second", text="The cat sat on the mat.")]
    study = position_tests.planned(
        "compare", Subject.of_model(str(FOLDER)), prompts, [(1, 4), (2, 5)], n_random=3
    )
    position_results.write(path, run_study(study, path))
    return path


@pytest.fixture
def doc(folder):
    return json.loads((folder / "summary.json").read_text())


def test_the_crafted_prompts_are_forty_of_eight_kinds():
    prompts = load_prompts("crafted")
    assert len({p.id for p in prompts}) == len({p.text for p in prompts}) == len(prompts) == 40
    kinds = [p.category for p in prompts]
    assert {kinds.count(kind) for kind in kinds} == {5}
    assert all(p.text and p.text == p.text.strip() and len(p.text) < 100 for p in prompts)


def test_every_condition_is_a_plain_run(model):
    heads, t = ((1, 4), (2, 5)), len(IDS) - 1
    random = ((1, 0), (2, 3))
    test = Comparison(heads, 6, (random,))
    _, arrays = test.measure(model, IDS)

    def of(at, layers, **where):
        return [zero("z", layer, heads=[h], **where) for layer, h in at if layer in layers]

    at_t, both = {"positions": [t]}, (1, 2)
    edits = {
        UNEDITED: [],
        HEADS: of(heads, both, **at_t),
        "heads everywhere": of(heads, both),
        "values at t-1": [zero("v", layer, positions=[t - 1]) for layer in both],
        "their values at t-1": [
            zero("v", layer, positions=[t - 1], heads=[h // 2]) for layer, h in heads
        ],
        "values at t-1, t-2": [zero("v", layer, positions=[t - 1, t - 2]) for layer in both],
        "all values, these layers": [zero("v", layer) for layer in both],
        "all values, all layers": [zero("v", layer) for layer in range(6)],
        "heads and values at t-1": [
            *of(heads, both, **at_t),
            *(zero("v", layer, positions=[t - 1]) for layer in both),
        ],
        RANDOM_HEADS: of(random, both, **at_t),
    }
    assert list(edits) == list(test.baselines)
    logits = {
        name: np.array(model.run([IDS], (), own, "last").logits)[0, 0].astype(np.float64)
        for name, own in edits.items()
    }
    for n, (name, base) in enumerate(test.baselines.items()):
        row, before = logits[name], logits[base or UNEDITED]
        change = row - before
        assert arrays["predicted"][n] == row.argmax()
        p = np.exp(row - np.logaddexp.reduce(row))
        q = np.exp(before - np.logaddexp.reduce(before))
        kl = (q * np.log(q / p)).sum()
        want = (p.max(), change[before.argmax()], kl)
        found = [arrays[what][n] for what in ("p", "change", "kl")]
        assert found == pytest.approx(want, rel=1e-3, abs=2e-4)
        for side, ordered in (("up", np.sort(change)[::-1]), ("down", np.sort(change))):
            assert np.abs(arrays[side][n] - ordered[:6]).max() <= 1e-4
            ids = arrays[f"{side}_ids"][n]
            assert np.abs(change[ids] - arrays[side][n]).max() <= 1e-4
            assert len({*ids.tolist()}) == 6
    assert arrays["random_kl"].shape == arrays["random_changed"].shape == (1,)


def test_baselines_come_before_what_is_held_against_them():
    names = list(BASELINES)
    for name, base in BASELINES.items():
        assert (base is None) == (name == UNEDITED)
        assert base is None or names.index(base) < names.index(name)


def test_the_document_counts_what_changed(doc):
    assert (doc["test"], doc["positions"][0]) == ("compare", [7])
    assert len(doc["rows"]) == 2 * len(doc["baselines"])
    for mean in doc["means"]:
        ours = [r for r in doc["rows"] if r["condition"] == mean["condition"]]
        changed = np.mean([r["predicted"] != r["before"] for r in ours])
        assert mean["changed"]["mean"] == pytest.approx(changed)
        assert mean["kl"]["mean"] == pytest.approx(np.mean([r["kl"] for r in ours]))
    heads = next(m for m in doc["means"] if m["condition"] == HEADS)
    assert heads["kl"]["random"]["n"] == 3
    assert f"in {round(heads['changed']['mean'] * 2)} of 2 cases" in doc["sentence"]
    both = [r for r in doc["rows"] if r["condition"] == "heads and values at t-1"]
    assert {r["baseline"] for r in both} == {HEADS}
    used = {str(i) for r in doc["rows"] for side in ("up", "down") for i, _ in r[side]}
    assert used <= doc["texts"].keys()


def test_an_export_names_what_stands_along_the_axes(folder):
    rows = list(source(folder).rows())
    arrays = {array.name: array for array in rows[0].arrays()}
    assert arrays["up"].axes == ("condition", "rank")
    assert list(arrays["kl"].labels[0]) == [*BASELINES, RANDOM_HEADS]
    assert arrays["random_kl"].axes == ("set",)


def test_the_command_writes_a_page_that_report_makes_again(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ["ablate", "--model", FOLDER, "--heads", "L1H4", "--test", "compare", "--random", 2]
    status, out, _ = call(*line, "--prompt-ids", "5,6,7", "--out", "run", "--json")
    doc = json.loads(out)
    assert (status, doc["test"], len(doc["rows"])) == (0, "compare", len(doc["baselines"]))
    page = (tmp_path / "run" / "report.html").read_bytes()
    (tmp_path / "run" / "report.html").unlink()
    status, out, _ = call("report", "run")
    assert (status, out.strip()) == (0, "run/report.html")
    assert (tmp_path / "run" / "report.html").read_bytes() == page
    status, out, _ = call(*line, "--prompt-ids", "5", "--dry-run")
    assert status == 1


class Elements(HTMLParser):
    """Elements of a page with their attributes, and the text of scripts."""

    def __init__(self, page):
        super().__init__()
        self.found, self.scripts, self.inside = [], [], None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self.inside = tag

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts.append(data)

    def handle_endtag(self, tag):
        self.inside = None


def page_of(folder):
    return (folder / "report.html").read_text()


def test_one_script_is_allowed_by_its_hash_and_nothing_else(folder):
    page = page_of(folder)
    elements = Elements(page)
    assert elements.scripts == [compare_page.SCRIPT]
    digest = base64.b64encode(hashlib.sha256(compare_page.SCRIPT.encode()).digest()).decode()
    policy = next(a["content"] for t, a in elements.found if a.get("http-equiv"))
    kept = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src"
    assert policy == f"{kept} 'sha256-{digest}'"
    assert not re.search(r"https?://", page)


def test_hostile_token_text_stays_text(folder, doc):
    plain = Elements(compare_page.html(doc, {}))
    for n, key in enumerate(doc["texts"]):
        doc["texts"][key] = HOSTILE[n % len(HOSTILE)]
    doc["prompts"][0]["id"] = HOSTILE[0]
    doc["sentence"] = HOSTILE[1]
    doc["display"] = HOSTILE[2]
    page = compare_page.html(doc, {})
    hostile = Elements(page)
    assert hostile.found == plain.found
    assert hostile.scripts == plain.scripts
    assert "\u202e" not in page
    assert "\x1b" not in page
    assert "\\u202e" in page


def test_every_row_can_be_filtered(folder, doc):
    elements = Elements(page_of(folder)).found
    rows = [a for t, a in elements if t == "tr" and "data-condition" in a]
    assert len(rows) == len(doc["rows"])
    assert {a["data-condition"] for a in rows} == {str(n) for n in range(len(doc["baselines"]))}
    others = sum(r["baseline"] is not None and r["predicted"] != r["before"] for r in doc["rows"])
    assert sum(a["data-other"] == "1" for a in rows) == others
    assert sum(t == "section" for t, _ in elements) == 2
    chips = [a["class"] for t, a in elements if a.get("class", "").startswith("chip")]
    assert chips.count("chip t") == chips.count("chip before") == 2
    assert len([c for c in chips if c != "chips"]) == sum(len(ids) for ids in doc["token_ids"])
    form = next(a for t, a in elements if t == "form")
    assert "hidden" in form  # nothing to click where scripts do not run


def test_the_table_has_every_number_and_no_formula(folder, doc):
    with (folder / "compare.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    kls = [line for line in lines if line["measure"] == "kl" and line["prompt"]]
    assert len(kls) == len(doc["rows"])
    assert {line["prompt"] for line in kls} == {"first", "'=second"}
    means = [line for line in lines if line["measure"] == "kl" and not line["prompt"]]
    assert len(means) == len(doc["means"])
    assert all(line["low"] and line["high"] for line in means)
