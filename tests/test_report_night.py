"""The morning report of a sweep: what it says of every end of a night, and what it refuses."""

import json
import shutil
from html.parser import HTMLParser
from urllib.parse import unquote

import made_nights
import patch_docs
import pytest
import role_docs
from click.testing import CliRunner
from made_nights import Made, at, done, history, make, started

from mlxroles.cli.report import command
from mlxroles.errors import StoreError
from mlxroles.events import Died, Note, Slept
from mlxroles.report import night
from mlxroles.store.lock import RunLock
from mlxroles.store.sweep_state import Entry

VOID = {"meta", "line", "rect", "path", "circle", "br", "img", "link"}


class Page(HTMLParser):
    """Reads a page: whether every element is closed in turn, its text, links and attributes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.names, self.said = [], [], set(), []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            assert name not in ("src", "srcset", "xlink:href", "action", "data"), (tag, name)
            if name == "href":
                self.links.append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.said.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.said).split())


def read(sweep):
    """The page of a sweep, checked, and its document."""
    page = night.write(sweep)
    assert page == sweep / "report.html"
    text = page.read_text(encoding="utf-8")
    found = Page(text)
    assert "script" not in found.names
    assert "default-src 'none'" in text
    for link in found.links:
        assert link.startswith(("#", "./")), link
        if link.startswith("./"):
            assert (sweep / unquote(link[2:])).is_file()
    assert not [p for p in sweep.iterdir() if p.suffix == ".tmp"]
    doc = json.loads((sweep / "summary.json").read_text())
    assert doc["schema"] == "mlxroles/night/1"
    return found, doc, (sweep / "summary.md").read_text(encoding="utf-8")


def patched(**more):
    return patch_docs.patch_doc(6, **more)


def nothing_to_recover():
    return patched(baselines=(0.5, 0.51))


@pytest.fixture
def results(tmp_path):
    return tmp_path / "home" / "results"


# --- the night as a whole


def test_a_night_in_which_everything_is_done(results):
    sweep = make(
        results,
        [
            Made(done(0, "layers"), patched(), history(0)),
            Made(
                done(1, "roles", ["entropy", "--family", "tiny"]), role_docs.role_doc(), history(20)
            ),
        ],
    )
    page, doc, text = read(sweep)
    assert doc["headline"] == "2 of 2 experiments done in 6 h 12 min."
    assert doc["counts"] == {"done": 2}
    assert doc["cells"] == {"done": 76, "failed": 0, "total": 76}
    assert doc["look_first"] == []
    assert doc["not_run"] == []
    assert "Everything ran to its end." in page.text
    assert "Nothing failed and nothing was lost." in page.text
    assert "9.00 GB of 24.0 GB allowed" in page.text
    assert "layer calls per second" in page.text
    assert doc["experiments"][0]["report"] == "../../patch_tiny/000000000000/report.html"
    assert [group["experiments"] for group in doc["groups"]] == [[0], [1]]
    assert text.startswith("# The night of night\n\n2 of 2 experiments done")


def test_a_night_with_every_kind_of_end(results):
    deaths = [
        (0, started()),
        (5, Died(["base_to_instruct/L03"], "SIGKILL")),
        (6, started()),
        (9, Slept(90.0)),
        (12, {"event": "finished", "done": 36, "failed": 2, "seconds": 1, "interrupted": None}),
    ]
    wrong = {"a/1": "FloatingPointError: not finite", "a/2": "FloatingPointError: not finite"}
    why = "the model is not there: run `mlxroles models pull llama8b` first"
    sweep = make(
        results,
        [
            Made(done(0, "layers", done=36, failed=2, deaths=1), patched(), deaths, wrong),
            Made(Entry(1, "missing", "patch", ["patch", "--plain"], status="failed", error=why)),
            Made(done(2, "late", status="left", done=7), None, [(20, started()), (30, started())]),
            Made(Entry(3, "never", "probe", ["probe"], status="left")),
        ],
        deaths=1,
        slept=90.0,
        sessions=2,
        until=at(370),
        interrupted="deadline",
        events=[
            {"time": at(0), "text": "began night", "kind": "note"},
            {"time": at(0), "text": "layers: begins", "kind": "progress"},
            {"time": at(15), "text": "goes on with night", "kind": "note"},
            {"time": at(16), "text": "late: begins", "kind": "progress"},
            {"time": at(17), "text": "the machine runs on its battery", "kind": "note"},
        ],
    )
    page, doc, text = read(sweep)
    assert doc["headline"] == (
        "1 of 4 experiments done in 20 min 00 s over 2 sessions; 1 failed, 2 left at the deadline, "
        "2 cells failed, 1 process died and was started again, the machine slept 1 min 30 s."
    )
    first = doc["look_first"]
    assert [one["what"] for one in first] == ["failed", "cells", "death", "power"]
    assert first[0]["command"] == "mlxroles models pull llama8b"
    assert "2 of: FloatingPointError: not finite (first a/1)" in first[1]["text"]
    assert first[1]["command"].endswith("mlxroles patch --pair tiny")
    assert "the last time at base_to_instruct/L03" in first[2]["text"]
    assert first[2]["log"] == "logs/00-layers.log"
    spans = [span["how"] for span in doc["hours"]["rows"][0]["spans"]]
    assert spans == ["died", "finished"]
    assert {m["kind"] for m in doc["hours"]["rows"][0]["marks"]} == {"died", "slept"}
    assert [m["kind"] for m in doc["hours"]["marks"]] == ["session", "until", "finished"]
    assert [span["how"] for span in doc["hours"]["rows"][2]["spans"]] == ["cut", "cut"]
    assert [one["name"] for one in doc["not_run"]] == ["missing", "late", "never"]
    assert doc["commands"]["continue"] == f"mlxroles resume {sweep}"
    assert "the deadline came first" in page.text
    assert f"    mlxroles resume {sweep}" in text


def test_where_all_that_is_left_has_failed_the_sweep_is_given_again(results):
    failed = Entry(0, "x", "patch", ["patch"], status="failed", error="no such folder")
    _, doc, _ = read(make(results, [Made(failed)]))
    assert doc["commands"]["continue"] == f"cd {results.parent} && mlxroles sweep night.toml"
    assert doc["look_first"][0]["command"] == f"cd {results.parent} && mlxroles patch"


def test_a_killed_sweep_says_so(results):
    made = [
        Made(done(0, "layers"), patched(), history(0)),
        Made(done(1, "heads", status="running", done=3), None, [(12, started())]),
        Made(Entry(2, "later", "probe", ["probe"])),
    ]
    page, doc, _ = read(make(results, made, finished=None))
    assert "1 of 3 experiments done" in doc["headline"]
    assert "1 not begun, 1 cut off" in doc["headline"]
    assert "did not come to its end" in doc["headline"]
    assert doc["look_first"][0]["what"] == "sweep"
    assert [one["why"] for one in doc["not_run"]] == [
        "the sweep ended in the middle of it",
        "the sweep ended before its turn",
    ]
    assert "mlxroles resume" in page.text


def test_a_sweep_that_goes_on_says_so(results):
    made = [Made(done(0, "layers", status="running", done=3), None, [(12, started())])]
    sweep = make(results, made, finished=None)
    lock = RunLock(sweep / "run.lock")
    try:
        _, doc, _ = read(sweep)
    finally:
        lock.release()
    assert doc["headline"].endswith("The sweep is still going on.")
    assert doc["look_first"] == []


def test_a_stopped_sweep(results):
    made = [Made(done(0, "layers", status="stopped", done=3))]
    _, doc, _ = read(make(results, made, interrupted="SIGINT"))
    assert doc["headline"].endswith("1 stopped. The sweep was stopped by SIGINT.")


def test_no_experiments(results):
    page, doc, _ = read(make(results, []))
    assert doc["headline"] == "No experiment is known after 6 h 12 min."
    assert "No experiment is known." in page.text


# --- what is damaged or gone


def test_a_folder_without_anything(tmp_path):
    sweep = tmp_path / "sweep_x" / "y"
    sweep.mkdir(parents=True)
    page, doc, _ = read(sweep)
    assert [one["what"] for one in doc["look_first"]] == ["damage", "damage"]
    assert "queue.json is missing or damaged" in page.text


@pytest.mark.parametrize("state", ["", "{", "[]", '{"schema": "other"}', '{"entries": [{}]}'])
def test_a_damaged_state_is_made_up_for_by_the_queue(results, state):
    sweep = make(results, [Made(done(0, "layers"), patched(), history(0))])
    (sweep / "state.json").write_text(state)
    page, doc, _ = read(sweep)
    assert "state.json is missing or damaged" in page.text
    [one] = doc["experiments"]
    assert (one["name"], one["done"], one["cells"]) == ("layers", 38, 38)
    assert one["sentence"].startswith("Patching instruct's residual stream")


def test_a_state_with_values_of_the_wrong_kind(results):
    sweep = make(results, [Made(done(0, "layers"), patched(), history(0))])
    state = json.loads((sweep / "state.json").read_text())
    state["entries"][0] |= {"cells": "many", "seconds": None, "status": ["x"], "argv": 3, "name": 7}
    state |= {"events": [1, {"time": 3, "text": None}], "until": 9, "slept": "long", "ranks": [0]}
    (sweep / "state.json").write_text(json.dumps(state))
    _, doc, _ = read(sweep)
    assert doc["experiments"][0]["name"] == "7"


DAMAGED = {
    "no JSON": "{",
    "no object": "[1, 2]",
    "no schema": "{}",
    "no patch": '{"schema": "mlxroles/patch/1", "instruct_to_base": [1], "controls": "x"}',
    "no layer": '{"schema": "mlxroles/patch/1", "instruct_to_base": {"first": {}}}',
    "no entropy": '{"schema": "mlxroles/entropy/1", "contrast": 3, "models": ["a"]}',
    "no attribution": '{"schema": "mlxroles/attribution/1", "instruct_to_base": {"sites": 1}}',
    "no probe": '{"schema": "mlxroles/probe/1", "rows": [1, {"tool_call_prob": "x"}]}',
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("summary", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_summary_costs_only_its_own_row(results, summary):
    made = [
        Made(done(0, "broken"), summary, history(0)),
        Made(done(1, "whole"), patched(), history(20)),
    ]
    _, doc, _ = read(make(results, made))
    assert doc["experiments"][1]["figure"] is not None
    assert doc["experiments"][0]["figure"] is None
    assert doc["experiments"][0]["cells"] == 38


def test_a_damaged_summary_is_named_first(results):
    _, doc, _ = read(make(results, [Made(done(0, "broken"), "{", history(0))]))
    [one] = doc["look_first"]
    assert one["what"] == "damage"
    assert one["text"] == "its summary.json is damaged"


def test_runs_that_are_gone_or_no_runs(results):
    made = [Made(done(n, f"r{n}"), patched(), history(n)) for n in range(3)]
    sweep = make(results, made)
    runs = sorted((results / "patch_tiny").iterdir())
    shutil.rmtree(runs[0])
    (runs[1] / "manifest.json").unlink()
    (runs[2] / "manifest.json").write_text("{")
    page, doc, _ = read(sweep)
    assert [one["what"] for one in doc["look_first"]] == ["damage"] * 3
    assert "is not there any more" in page.text
    assert "is not a run folder" in page.text


def test_results_that_were_moved_as_a_whole(results):
    make(results, [Made(done(0, "layers"), patched(), history(0))])
    moved = results.parent / "copy"
    results.rename(moved)
    _, doc, _ = read(moved / "sweep_night" / "0123abcd")
    assert doc["experiments"][0]["report"] == "../../patch_tiny/000000000000/report.html"
    assert doc["look_first"] == []


def test_lines_of_a_history_that_are_not_what_they_say_are_passed_over(results):
    sweep = make(results, [Made(done(0, "layers"), patched(), history(0))])
    path = results / "patch_tiny" / f"{0:012x}" / "events.jsonl"
    lines = [
        {"t": at(1), "rank": 0, "event": "died", "cells": 7, "cause": None},
        {"t": at(1), "rank": 0, "event": "slept", "seconds": "long"},
        {"t": at(1), "rank": 0, "event": "vitals", "active": "x"},
        {"t": at(1), "rank": 0, **started(), "cells": 10**30},
        {"t": 7, "rank": 0, "event": "note", "text": None},
    ]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    path.write_text(path.read_text() + text + '{"t": "torn')
    _, doc, _ = read(sweep)
    assert [span["how"] for span in doc["hours"]["rows"][0]["spans"]] == ["finished"]
    assert doc["look_first"] == []


def test_a_folder_that_cannot_be_written_is_an_error_of_one_line(tmp_path):
    with pytest.raises(StoreError):
        night.write(tmp_path / "nowhere")


# --- hostile text


@pytest.mark.parametrize("text", patch_docs.HOSTILE)
def test_hostile_text_stays_text(results, text):
    summary = patched(controls=(text, "random"), tokens=(text, *patch_docs.TOKENS[1:]))
    summary |= {"summary": {"sentence": f"A {text}"}, "notes": [text], "headline": text}
    entries = [
        done(0, f"layers {text}", ["patch", "--prompt", text], error=text),
        Entry(1, f"b{text}", text, [text], status="failed", error=text, sentence=text),
        done(2, f"layers {text}2", ["patch", "--prompt", f"{text}2"]),
    ]
    died = [(0, started()), (1, Died([text], text)), (2, Note(text))]
    manifest = {"versions": {text: text, "mlx": text}, "device": text}
    manifest["drift"] = [{"field": text, "was": text, "now": text}]
    made = [
        Made(entries[0], summary, died, {text: text}, manifest),
        Made(entries[1]),
        Made(entries[2], nothing_to_recover(), history(5)),
    ]
    more = {"host": text, "ranks": [{"rank": text, "host": text}], "interrupted": text}
    sweep = make(results, made, events=[{"time": at(1), "text": text}], until=text, **more)
    page, _, shown = read(sweep)
    raw = (sweep / "report.html").read_text(encoding="utf-8")
    for whole in (raw, shown):
        assert not [char for char in whole if not char.isprintable() and char != "\n"]
        assert "<script" not in whole.lower()
    assert page.names <= {
        *("html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "a", "ul", "li"),
        *("span", "div", "code", "article", "details", "summary", "figure", "figcaption", "svg"),
        *("line", "rect", "path", "circle", "dl", "dt", "dd"),
    }
    if "<script>" in text:
        assert text in page.text


def test_a_command_in_an_error_is_given_only_in_plain_words(results):
    error = "run `mlxroles models pull x; rm -rf ~` or `mlxroles $(id)`"
    failed = Entry(0, "x", "patch", ["patch"], status="failed", error=error)
    _, doc, _ = read(make(results, [Made(failed)]))
    assert doc["look_first"][0]["command"].endswith("mlxroles patch")


def test_names_with_spaces_and_signs_are_linked(results):
    run = results / "patch_tiny" / "a #b?c%20&d"
    sweep = make(results, [Made(done(0, "layers"), patched(), history(0))])
    (results / "patch_tiny" / f"{0:012x}").rename(run)
    state = json.loads((sweep / "state.json").read_text())
    state["entries"][0]["run"] = str(run)
    (sweep / "state.json").write_text(json.dumps(state))
    page, _, _ = read(sweep)
    assert "./../../patch_tiny/a%20%23b%3Fc%2520%26d/report.html" in page.links


# --- findings


def grid(*prompts, seed=("0",)):
    return [
        ["patch", "--plain", "--pair", "tiny", "--prompt", prompt, "--seed", s]
        for prompt in prompts
        for s in seed
    ]


def test_a_grid_is_told_as_one_and_its_disagreement_is_a_finding(results):
    words = grid("notepad", "prompts/animals.toml")
    made = [
        Made(done(0, "layers notepad", words[0]), patched(), history(0)),
        Made(done(1, "layers animals", words[1]), nothing_to_recover(), history(20)),
        Made(done(2, "other", words[0]), patched(), history(40)),
    ]
    page, doc, _ = read(make(results, made))
    assert doc["groups"][0]["name"] == "layers"
    assert doc["groups"][0]["varies"] == ["prompt"]
    assert doc["groups"][0]["labels"] == ["notepad", "animals"]
    assert [group["experiments"] for group in doc["groups"]] == [[0, 1], [2]]
    [found] = [one for one in doc["findings"] if one["what"] == "differs"]
    assert found["experiments"] == [0, 1]
    assert found["text"] == (
        "layers: the answer depends on the prompt. notepad: both ways half at layer 3 (R = 0.65, "
        "controls ≤ 0.08). animals: both ways nothing to recover. Numbers without "
        "brackets have no interval."
    )
    assert "by prompt" in page.text


def test_seeds_that_agree_are_no_finding(results):
    words = grid("notepad", seed=("0", "1"))
    made = [Made(done(n, f"layers {n}", words[n]), patched(), history(n)) for n in range(2)]
    _, doc, _ = read(make(results, made))
    assert doc["groups"][0]["labels"] == ["seed 0", "seed 1"]
    assert [one["what"] for one in doc["findings"]] == ["largest"]


def test_what_is_the_same_for_both_seeds_is_told_once(results):
    words = grid("notepad", "animals", seed=("0", "1"))
    summaries = [patched(), patched(), nothing_to_recover(), nothing_to_recover()]
    made = [Made(done(n, f"layers {n}", words[n]), summaries[n], history(n)) for n in range(4)]
    _, doc, _ = read(make(results, made))
    [found] = [one for one in doc["findings"] if one["what"] == "differs"]
    assert found["text"].startswith("layers, seed 0 and seed 1: the answer depends on the prompt.")
    assert found["text"].endswith("Numbers: seed 0.")
    assert found["experiments"] == [0, 2, 1, 3]


def test_many_deaths_are_told_together(results):
    deaths = [(0, started()), (1, Died([], "SIGKILL")), (2, started()), (3, Died([], "SIGKILL"))]
    made = [Made(done(n, f"e{n}", deaths=2), patched(), deaths) for n in range(5)]
    _, doc, _ = read(make(results, made, deaths=10))
    [one] = doc["look_first"]
    assert one["title"] == "10 processes died, in 5 experiments"
    assert one["text"].startswith("SIGKILL (10 times). Most: e0 (2), e1 (2), e2 (2).")


def test_no_number_stands_as_a_finding_without_interval_or_null(results):
    _, doc, _ = read(make(results, [Made(done(0, "layers"), patched(prompts=4), history(0))]))
    [found] = doc["findings"]
    assert found["what"] == "largest"
    assert "R = 0.65 [0.57, 0.73]; controls there at most 0.08 (other prompt)" in found["text"]


def test_without_controls_nothing_is_called_the_largest(results):
    _, doc, _ = read(make(results, [Made(done(0, "layers"), patched(controls=()), history(0))]))
    assert doc["findings"] == []
    assert "no controls were run" in doc["experiments"][0]["told"][0]["text"]


def test_what_a_control_explains_is_said_and_is_not_the_largest(results):
    summary = patched()
    summary["controls"]["random"] = {
        d: summary[d] for d in ("instruct_to_base", "base_to_instruct")
    }
    _, doc, _ = read(make(results, [Made(done(0, "layers"), summary, history(0))]))
    [found] = doc["findings"]
    assert found["what"] == "explained"
    assert (
        "nothing is specific to the patch: layers, instruct → base, half at layer 3 (R = 0.65, "
        in found["text"]
    )


def test_the_curve_shows_both_directions_with_their_controls(results):
    page, doc, _ = read(make(results, [Made(done(0, "layers"), patched(prompts=4), history(0))]))
    figure = doc["experiments"][0]["figure"]
    assert [curve["role"] for curve in figure["curves"]] == ["control"] * 4 + ["first", "second"]
    assert len(figure["curves"][4]["points"]) == 6
    assert figure["curves"][4]["points"][3][2] is not None
    assert "share of the gap" in page.text


def test_a_gap_in_the_numbers_is_a_gap_in_the_curve(results):
    summary = patched()
    for values in summary["instruct_to_base"].values():
        values["recovery"] = None
    summary["base_to_instruct"]["2"]["recovery"] = None
    summary["base_to_instruct"]["5"]["recovery"] = float("1e300")
    _, doc, _ = read(make(results, [Made(done(0, "layers"), summary, history(0))]))
    assert doc["experiments"][0]["figure"]["curves"][-1]["points"][2][1] is None


def test_estimates_that_were_off_are_told_once(results):
    made = [
        Made(done(n, f"e{n}", seconds=3600.0, estimate=600.0), patched(), history(n))
        for n in range(5)
    ]
    made.append(Made(done(5, "small", seconds=9.0, estimate=1.0), patched(), history(9)))
    stopped = [*history(6), (9, started())]
    made.append(Made(done(6, "again", seconds=9e3, estimate=9.0), patched(), stopped))
    _, doc, text = read(make(results, made))
    html = (results / "sweep_night/0123abcd/report.html").read_text(encoding="utf-8")
    [one] = [one for one in doc["look_first"] if one["what"] == "estimate"]
    for told in (text, html):
        assert told.index("Largest against") < told.index("5 estimates off")
    assert one["title"] == "5 estimates off by more than a factor of two"
    assert "10 min 00 s thought, 1 h 00 min taken" in one["text"]
    assert "and 2 more" in one["text"]


def test_drift_and_different_versions_are_told(results):
    drift = [{"field": "computed_by.mlx", "was": "0.32.3", "now": "0.32.4", "time": at(0)}]
    other = made_nights.VERSIONS | {"mlx": "0.33.0"}
    made = [
        Made(done(0, "first"), patched(), history(0), manifest={"drift": drift}),
        Made(done(1, "second"), patched(), history(20), manifest={"versions": other}),
    ]
    _, doc, _ = read(make(results, made))
    found = [one for one in doc["look_first"] if one["what"] == "drift"]
    assert "computed_by.mlx 0.32.3 → 0.32.4" in found[0]["text"]
    assert found[1]["title"] == "Runs were made with different mlx"


def test_memory_notes_are_told_once_with_the_runs_that_made_them(results):
    text = "the system is short of memory: batches are smaller"
    made = [
        Made(done(n, f"m{n}"), patched(notes=[text]), [*history(n), (n + 11, Note(text))])
        for n in range(2)
    ]
    _, doc, _ = read(make(results, made))
    [one] = doc["look_first"]
    assert (one["title"], one["text"]) == ("Memory: m0, m1", text)


def test_the_command_report_takes_a_sweep(results, monkeypatch):
    make(results, [Made(done(0, "layers"), patched(), history(0))])
    monkeypatch.chdir(results.parent)
    told = CliRunner().invoke(command, ["0123", "--json"], standalone_mode=False)
    assert json.loads(told.stdout)["schema"] == "mlxroles/night/1"
    told = CliRunner().invoke(command, ["results/sweep_night/0123abcd"], standalone_mode=False)
    assert told.stdout == "results/sweep_night/0123abcd/report.html\n"


def test_the_report_is_made_again_from_the_same_folder(results):
    sweep = make(results, [Made(done(0, "layers"), patched(), history(0))])
    first = read(sweep)[1]
    again = read(sweep)[1]
    assert first | {"timestamp": ""} == again | {"timestamp": ""}


def test_where_earlier_layers_have_no_number_half_is_at_or_before(results):
    summary = patched()
    _, doc, _ = read(make(results, [Made(done(0, "layers"), summary, history(0))]))
    first = doc["experiments"][0]["told"][0]["brief"]
    assert first.startswith("half at layer ")
    layer = int(first.split()[3])
    del summary["instruct_to_base"][str(layer - 1)]
    later = results.parent / "later"
    _, doc, _ = read(make(later, [Made(done(0, "layers"), summary, history(0))]))
    assert doc["experiments"][0]["told"][0]["brief"].startswith(f"half at or before layer {layer}")


def test_few_prompts_of_a_probe_are_named(results):
    values = {"notepad": 0.999, "animals": 0.5, "no_request": 0.0}
    rows = [
        {"model": "base", "variant": "default", "prompt": name, "tool_call_prob": value}
        for name, value in values.items()
    ]
    rows.append(rows[0] | {"variant": "no-tools", "tool_call_prob": 0.25})
    summary = {"schema": "mlxroles/probe/1", "headline": "X", "rows": rows}
    _, doc, _ = read(make(results, [Made(done(0, "p"), summary, history(0))]))
    assert doc["experiments"][0]["sentence"].endswith(
        "base notepad 0.999, animals 0.500, no_request 0.000, notepad (no-tools) 0.250."
    )
