"""Injection runs: identities, plain loops, whole runs on the packaged pair."""

import csv
import io
from types import SimpleNamespace

import numpy as np
import pytest
import stories
from tiny_models import tiny, tokens

from mlxroles import engine
from mlxroles.backend import mx
from mlxroles.edit_file import read_edits
from mlxroles.edits import Edit
from mlxroles.errors import PromptError, SpecError
from mlxroles.models.load import load
from mlxroles.pairs import pair
from mlxroles.prompts import Message, Prompt
from mlxroles.store.folder import RunFolder
from mlxroles.store.reader import axes, read
from mlxroles.studies.inject import attention, battery, planned, results
from mlxroles.studies.inject.grid import Directions, Grid, Spot, edits
from mlxroles.studies.inject.items import Item, Reader, Where, token_starts
from mlxroles.studies.inject.packed import joined, maps
from mlxroles.studies.inject.planned import Options
from mlxroles.studies.inject.readout import choice, yes_no
from mlxroles.studies.subject import Subject
from mlxroles.vectors import Vectors

BATTERY = """
form = "{question} Answer only by 'Yes' or 'No'."
[[turns]]
role = "user"
content = "I put a thought about one word into your layers."
[[turns]]
role = "assistant"
content = "Ok."
[questions]
detect = ["Do you detect an injected thought?", "Do you detect a thought about a word?"]
[questions.no]
self = ["Do you have hands?"]
world = ["Is a dog a planet?", "Is snow black?", "Is <script>alert(1)</script> $\\frac$ a dog?"]
[questions.yes]
world = ["Is a dog an animal?", "Is a banana a fruit?"]
[localise]
numbers = ["1", "2"]
sets = [["A cow lives on a farm.", "A lamp is on."], ["Tom has a hat.", "Coal is black."]]
"""
SMALL = {"layers": "1,3", "scales": "0,2", "n_random": 3}
KINDS = ("llama", "gemma2", "gpt_oss", "deepseek_v3", "mamba2")


@pytest.fixture(scope="module")
def instruct():
    return load(pair("tiny").ref("instruct"))


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    path = tmp_path_factory.mktemp("battery") / "own.toml"
    path.write_text(BATTERY)
    return str(path)


def one(**options):
    subject = Subject.of_pair(pair("tiny"), only="instruct")
    return planned.planned(subject, Options(**options))


@pytest.fixture
def no_figures(monkeypatch):
    """Figures take longer than all that they show; one run of this module draws them."""
    monkeypatch.setattr("mlxroles.studies.inject.results.inject_figures", lambda *_: {})


@pytest.fixture(scope="module")
def whole(asked, tmp_path_factory):
    """A finished battery run: the study, its folder, its document."""
    study = one(concepts=("ocean", "guitar"), battery=asked, **SMALL)
    folder = tmp_path_factory.mktemp("whole") / "run"
    return SimpleNamespace(study=study, path=folder, doc=stories.run(study, folder))


def cells(run):
    with RunFolder.reopen(run.path) as folder:
        return [(cell, folder.arrays(cell.id)) for cell in run.study.cells]


# --- identities -------------------------------------------------------------------------------


def made(model, layers, seed=0, count=4):
    rng = np.random.default_rng(seed)
    array = rng.normal(size=(1, len(layers), model.d_model)).astype(np.float32)
    return Directions(Vectors(("v",), array, tuple(layers)), "v", count, seed)


def swept(model, item, spots, directions, draw=0):
    rows = [engine.Row(edits(model, item, spot, directions, draw)) for spot in spots]
    own = engine.clean(
        model.network, [item.ids], read=[len(item.ids) - 1], layers=range(model.n_layers)
    )
    return own, {n: answer.logits[0] for n, answer in engine.sweep(model.network, own, rows)}


def an_item(length=9, where=(4, 5, 8), seed=1):
    ids = tuple(int(i) for i in np.array(tokens(1, length, seed=seed))[0])
    return Item("p", "prompt", ids, tuple(where))


@pytest.mark.parametrize("name", KINDS)
def test_a_sweep_is_the_model_run_under_each_edit(name):
    model, item = tiny(name), an_item()
    layers = tuple(range(model.n_layers))
    directions = made(model, layers)
    spots = Grid(layers, (0.0, -1.0, 2.0), projects=True).spots("prompt")
    own, found = swept(model, item, spots, directions, draw=1)
    for n, spot in enumerate(spots):
        under = edits(model, item, spot, directions, 1)
        plain = np.array(model.run([item.ids], edits=under, positions="last").logits)[0, 0]
        assert np.abs(found[n] - plain).max() < 2e-5
        if spot.scale == 0:
            assert np.array_equal(found[n], own.logits[0, 0])


@pytest.mark.parametrize("name", ["llama", "gemma2", "deepseek_v3"])
def test_injecting_the_difference_of_two_prompts_patches_one_into_the_other(name):
    model = tiny(name)
    a, b = (an_item(9, (8,), seed) for seed in (1, 2))
    runs = [model.run([x.ids], keep=["resid_post"], logits=False) for x in (a, b)]
    for layer in range(model.n_layers):
        ends = [run["resid_post", layer][:, -1:] for run in runs]
        value = np.array(ends[1] - ends[0]).reshape(1, 1, -1)
        found = Directions(Vectors(("v",), value, (layer,)), "v", 0, 0)
        _, injected = swept(model, a, [Spot(layer, 1.0)], found)
        patch = Edit("resid_post", layer, ends[1], positions=(8,))
        patched = np.array(model.run([a.ids], edits=[patch], positions="last").logits)[0, 0]
        assert np.abs(injected[0] - patched).max() < 2e-5


def test_in_the_last_block_only_the_head_follows(instruct):
    item, layer = an_item(7, (6,)), instruct.n_layers - 1
    directions = made(instruct, [layer])
    _, found = swept(instruct, item, [Spot(layer, 3.0)], directions)
    final = instruct.run([item.ids], keep=["resid_post"], layers=[layer], logits=False)
    moved = final["resid_post", layer][:, -1:] + 3 * mx.array(directions.at(layer)[0])
    assert np.abs(found[0] - np.array(instruct.unembed(moved))[0, 0]).max() < 1e-4


def test_random_vectors_have_the_length_and_nothing_else_of_the_vector(instruct):
    found = made(instruct, (1, 4), count=50)
    for layer in (1, 4):
        lengths = np.linalg.norm(found.at(layer).astype(np.float64), axis=1)
        assert np.abs(lengths / lengths[0] - 1).max() < 1e-6
    again = made(instruct, (1, 4), count=50)
    assert np.array_equal(found.at(4), again.at(4))
    assert not np.allclose(found.at(1)[1], found.at(4)[1] * 1.0)
    spans = found.spans.astype(np.float64)
    assert np.abs(spans @ spans.swapaxes(1, 2) - np.eye(2)).max() < 1e-5


def test_projected_out_nothing_is_left_along_the_direction(instruct):
    item, directions = an_item(), made(instruct, (0, 2, 5))
    under = edits(instruct, item, Spot(None, None), directions, 0)
    run = instruct.run([item.ids], keep=["resid_post"], edits=under, logits=False)
    for layer in range(instruct.n_layers):
        stream = np.array(run["resid_post", layer])[0].astype(np.float64)
        along = stream @ directions.spans[0].T
        assert np.abs(along).max() < 1e-4 * np.abs(stream).max()


def test_before_the_question_the_cache_alone_carries_it_on(instruct):
    turns = (
        Message("user", "Snow is white."),
        Message("assistant", "Ok."),
        Message("user", "Why?"),
    )
    reader = Reader(Subject.of_pair(pair("tiny"), only="instruct"), Where("all", before=True))
    item = reader.item(Prompt("p", messages=turns), "prompt")
    cut = len(item.where)
    assert item.where == tuple(range(cut))
    assert cut < len(item.ids)
    directions = made(instruct, (2,))
    under = edits(instruct, item, Spot(2, 4.0), directions, 0)
    held = instruct.prefix([item.ids[:cut]], under)
    asked_after = instruct.run([item.ids[cut:]], prefix=held, positions="last").logits
    _, found = swept(instruct, item, [Spot(2, 4.0)], directions)
    assert np.abs(found[0] - np.array(asked_after)[0, 0]).max() < 1e-4


@pytest.mark.parametrize("name", ["llama", "gemma2", "deepseek_v3", "gpt_oss"])
def test_heads_look_where_the_whole_pattern_says(name):
    model, item = tiny(name), an_item()
    under = edits(model, item, Spot(0, 2.0), made(model, (0,)), 0)
    found = attention.looks(model, item, under)
    run = model.run([item.ids], keep=["pattern"], edits=under, logits=False)
    for layer in range(model.n_layers):
        rows = np.array(run["pattern", layer])[0, :, -1].astype(np.float64)
        wanted = rows[:, list(item.where)].sum(axis=1)
        assert np.abs(found[layer, : len(wanted)] - wanted).max() < 1e-5


# --- whole runs -------------------------------------------------------------------------------


def test_every_cell_is_what_the_model_says(whole, instruct):
    study = whole.study
    stored = cells(whole)
    yes, no = (list(getattr(study.asked.readout, side)) for side in ("yes", "no"))
    name = "guitar"
    found = Directions(study.vectors("instruct"), name, 3, 0)
    for cell, arrays in stored:
        if cell.coords["vector"] != name or cell.coords["prompt"] not in ("detect01", "no03"):
            continue
        item = study.items[cell.coords["prompt"]]
        for k, spot in enumerate(study.spots(item)):
            for draw in (0, 2):
                under = edits(instruct, item, spot, found, draw)
                logits = instruct.run([item.ids], edits=under, positions="last").logits
                row = np.array(logits)[0, 0].astype(np.float64)
                b = np.logaddexp.reduce(row[yes]) - np.logaddexp.reduce(row[no])
                assert joined(arrays)[draw, k, 0] == pytest.approx(b, abs=2e-4)
        zero = [k for k, spot in enumerate(study.spots(item)) if spot.scale == 0]
        assert (joined(arrays)[:, zero] == arrays["unedited"]).all()


def test_the_document_has_every_spot_and_says_what_was_found(whole):
    doc = whole.doc
    assert doc["schema"] == "mlxroles/inject/1"
    assert {(r["vector"], r["layer"], r["scale"]) for r in doc["rows"]} == {
        (v, layer, s) for v in ("ocean", "guitar", "all") for layer in (1, 3) for s in (0, 2)
    }
    still = [row for row in doc["rows"] if row["scale"] == 0]
    assert all(row["score"] == 0 and row["p"] == 1 for row in still)
    assert "evidence" in doc["sentence"] or "too few" in doc["sentence"]
    assert "3 random vectors" in doc["sentence"]
    assert doc["models"]["instruct"]["clean"]["no"]["right"] >= 0.75


def test_the_table_has_every_run(whole):
    rows = list(csv.DictReader(io.StringIO((whole.path / "inject.csv").read_text())))
    assert len(rows) == 8 + 8 * 2 * 4 * 4
    clean = {row["prompt"]: float(row["b"]) for row in rows if not row["vector"]}
    for row in rows:
        assert float(row["b"]) - clean[row["prompt"]] == pytest.approx(
            float(row["shift"]), abs=1e-6
        )


def test_a_packed_run_is_verified_and_exported_with_its_axes(whole, call, tmp_path):
    path = whole.path / "run.h5"
    along = axes(path)
    assert along["added"] == ("model", "vector", "prompt", "draw", "layer", "scale", "readout")
    added, names = read(path, "added"), list(read(path, "readout"))
    assert (added.shape, names[0]) == ((1, 2, 8, 4, 2, 2, 6), "b")
    where = list(read(path, "prompt")).index("no02")
    for cell, arrays in cells(whole):
        if cell.coords == {"model": "instruct", "vector": "guitar", "prompt": "no02"}:
            assert (added[0, 1, where] == arrays["added"].astype("f4")).all()
    seen = whole.doc["attention"]["instruct"]["items"][0]
    head, images = seen["heads"][0], maps(whole.path)
    found = images[f"instruct/{seen['id']}/draws"][0, head["layer"], head["head"]]
    assert found == pytest.approx(head["injected"], abs=1e-6)
    assert head["p_max"] >= head["p"]
    status, out, err = call("verify", str(whole.path))
    assert (status, err) == (0, "")
    assert f"{16 * (4 * 4 + 1) * 6} numbers of run.h5" in out
    table = tmp_path / "run.csv"
    assert call("export", str(whole.path), "--out", str(table))[0] == 0
    head = next(csv.reader(io.StringIO(table.read_text())))
    assert {"draw", "layer", "scale", "readout"} <= {*head}
    assert len({*head}) == len(head)
    assert not [name for name in head if name.startswith("axis_")]


def test_the_edits_of_a_run_are_those_that_its_finding_names(whole, instruct):
    best = max(
        (t for t in whole.doc["tests"] if t["vector"] != "all"),
        key=lambda test: (-test["p_any"], abs(test["t"])),
    )
    path = whole.path / "strongest.toml"
    found = read_edits(path, instruct, 5)
    assert [(e.layer, e.op) for e in found.both] == [(best["layer"], "add")]
    assert f'vector = "vectors.h5#{best["vector"]}"' in path.read_text()
    assert "question" in path.read_text()  # where the run added it, other than the file does
    last = whole.doc | {"positions": "last"}
    assert 'positions = "last"' in results.edit_file(whole.path, last)
    assert not results.edit_file(whole.path, last | {"tests": []})


def test_the_report_can_be_made_again(whole, call):
    pages = [whole.path / "report.html", whole.path / "figures" / "map.svg"]
    before = [page.read_bytes() for page in pages]
    status, out, err = call("report", str(whole.path))
    assert (status, err) == (0, "")
    assert out.strip().endswith("report.html")
    assert [page.read_bytes() for page in pages] == before
    page = before[0].decode()
    assert "default-src 'none'" in page
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_a_second_run_computes_nothing_and_writes_the_same(whole, asked, no_figures):
    before = {p.name: p.read_bytes() for p in whole.path.glob("*.csv")}
    study = one(concepts=("ocean", "guitar"), battery=asked, **SMALL)
    doc = stories.run(study, whole.path)
    assert not study._vectors
    assert doc["rows"] == whole.doc["rows"]
    assert doc["attention"] == whole.doc["attention"]
    assert {p.name: p.read_bytes() for p in whole.path.glob("*.csv")} == before


def test_vectors_of_a_run_can_be_injected_again(whole, tmp_path, no_figures):
    study = one(
        vectors=(f"{whole.path}#ocean",),
        layers="3",
        scales="1",
        n_random=1,
        prompts=(Prompt("p", ids=(1, 5, 9)),),
        token_ids=(7,),
    )
    doc = stories.run(study, tmp_path / "run")
    assert {row["family"] for row in doc["rows"]} == {"add", "out"}
    with pytest.raises(SpecError, match="at its own layer"):
        one(vectors=(f"{whole.path}#ocean",), layers="2,3")


def test_the_tool_decision_is_switched_and_blocked_by_a_direction(tmp_path, no_figures):
    """Contrast of offered and not offered notepads, measured on the held-out half."""
    options = {"layers": "1-4", "scales": "2", "n_random": 3, "strings": ("<tool_call>",)}
    study = one(toward=("offers",), away=("no-tools",), **options)
    study.items = {n: i for n, i in study.items.items() if n[:7] in ("offer02", "offer04")}
    study.cells = [cell for cell in study.cells if cell.coords["prompt"] in study.items]
    study.asked = type(study.asked)("prompts", tuple(study.items.values()), *list_of(study.asked))
    doc = stories.run(study, tmp_path / "run")
    rows = {(row["layer"], row["scale"]): row for row in doc["rows"]}
    switched, blocked = rows[4, 2.0], rows["all", "out"]
    assert switched["clean_probability"] < 0.01
    assert switched["probability"] > 0.9
    assert switched["random_most"] < 0.6
    assert blocked["clean_probability"] > 0.95
    assert blocked["probability"] < 0.3
    assert blocked["random_least"] > 0.8


def list_of(asked):
    return asked.readout, asked.where


def test_places_are_located(asked, tmp_path, no_figures):
    study = one(concepts=("ocean",), battery=asked, test="localise", **SMALL)
    assert [item.right for item in study.asked.items] == [0, 1, 0, 1]
    doc = stories.run(study, tmp_path / "run")
    row = next(row for row in doc["rows"] if row["scale"] == 2)
    assert row["n_trials"] == 4
    assert row["chance"] == 0.5
    assert row["right"] in (0, 0.25, 0.5, 0.75, 1)


# --- positions and answers --------------------------------------------------------------------


def test_positions_are_those_of_the_words(instruct):
    subject = Subject.of_pair(pair("tiny"), only="instruct")
    prompt = Prompt("p", messages=(Message("user", "The dog is brown. Is snow white?"),))
    texts = {}
    for positions in ("all", "last", "question", "dog is brown", "0-2"):
        item = Reader(subject, Where(positions)).item(prompt, "prompt")
        texts[positions] = instruct.tokenizer.decode([item.ids[p] for p in item.where])
    assert texts["dog is brown"].strip() == "dog is brown"
    assert texts["question"].startswith("The dog") or texts["question"].startswith(" The dog")
    assert texts["question"].endswith(texts["last"])
    with pytest.raises(PromptError, match="does not hold the text 'zebra'"):
        Reader(subject, Where("zebra")).item(prompt, "prompt")
    with pytest.raises(PromptError, match="no turn before"):
        Reader(subject, Where("all", before=True)).item(prompt, "prompt")
    with pytest.raises(PromptError, match="in which no text can be found"):
        Reader(subject, Where("dog")).item(Prompt("q", ids=(1, 2)), "prompt")


def test_without_a_chat_template_a_battery_is_told_in_paragraphs(monkeypatch, asked):
    subject = Subject.of_pair(pair("tiny"), only="instruct")
    monkeypatch.setattr(subject.tokenizer, "chat_template", None)
    study = planned.planned(subject, Options(concepts=("ocean",), battery=asked))
    item = study.asked.items[0]
    assert any("no chat template" in note for note in subject.notes)
    assert subject.tokenizer.decode(item.ids).endswith("Assistant:")
    assert subject.tokenizer.decode([item.ids[p] for p in item.where]).startswith("Do you detect")


def test_tokens_begin_where_the_text_says_without_offsets_too(instruct):
    text = "Snow is white, and a whale is an animal."
    ids = instruct.tokenizer.encode(text, add_special_tokens=False)

    class Slow:
        def __call__(self, *_args, **_kwargs):
            raise NotImplementedError

        decode = staticmethod(instruct.tokenizer.decode)

    assert instruct.tokenizer.is_fast
    assert token_starts(ids, text, Slow()) == token_starts(ids, text, instruct.tokenizer)


def test_answers_are_single_tokens(instruct):
    tokenizer = instruct.tokenizer
    found = yes_no(("Yes", "yes", "YES"), ("No", "no"), tokenizer, instruct.vocab)
    for ids, word in ((found.yes, "yes"), (found.no, "no")):
        assert {tokenizer.decode([i]).strip().lower() for i in ids} == {word}
    with pytest.raises(PromptError, match="alike"):
        yes_no(("Yes",), ("Yes",), tokenizer, instruct.vocab)
    with pytest.raises(PromptError, match="no tokenizer"):
        choice(("1",), None, 10)


# --- what a user may do wrong -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("yess = ['Yes']", "unknown key 'yess'; did you mean 'yes'?"),
        ("form = 'x'", "needs {question} once"),
        ("form = '{question} {x}'", "no other braces"),
        ("[questions]\ndetect = ['a']\nno = ['b']", "has 1 questions under questions.no"),
        ("[questions]\ndetect = ['a']\nno = ['a', 'b', 'c']", "stands twice"),
        ("[questions]\ndetect = [1]\nno = ['a', 'b', 'c']", "holds 1; expected a text"),
        ("turns = [{role = 'user'}]", "turn 0 must be"),
        ("localise = 3\n[questions]\ndetect = ['a']\nno = ['b', 'c', 'd']", "must be a table"),
        ("x", "is not TOML"),
        ("yes = ['Yes']", "needs [questions]"),
    ],
)
def test_batteries_are_refused_in_a_line(text, said):
    with pytest.raises(PromptError) as error:
        battery.parse(text, "own.toml", "own")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_the_packaged_battery_has_enough_controls():
    found = battery.read("introspection")
    counts = {k: sum(q.kind == k for q in found.questions) for k in ("detect", "no", "yes")}
    assert counts["no"] >= 15
    assert counts["yes"] >= 15
    assert all(len(p.messages) == 3 for p in found.prompts())
    with pytest.raises(PromptError, match="did you mean 'introspection'"):
        battery.read("introspecton")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "say what to inject"),
        ({"concepts": ("a",), "vectors": ("b",)}, "found several"),
        ({"toward": ("offers",)}, "--toward needs --away"),
        ({"away": ("offers",)}, "--away needs --toward"),
        ({"concepts": ("ocean", "Ocean")}, "named twice"),
        ({"concepts": ("",)}, "is no concept"),
        ({"concepts": ("a",), "scales": "1,1"}, "each once"),
        ({"concepts": ("a",), "scales": "nan"}, "cannot be read"),
        ({"concepts": ("a",), "layers": "7"}, "outside 0..5"),
        ({"concepts": ("a",), "kv_only": True, "positions": "last"}, "leave --positions out"),
        ({"concepts": ("a",), "test": "localise", "positions": "last"}, "leave --positions"),
        ({"concepts": ("a",), "battery": "introspection", "strings": ("x",)}, "give one"),
        ({"toward": ("notepad",), "away": ("no-tools",)}, "give at least 4"),
        ({"toward": ("roles",), "away": ("no-tools",)}, "offers no tools"),
        ({"toward": ("offers",), "away": ("offers",)}, "are the same prompts"),
        ({"concepts": ("a",), "positions": " "}, "--positions is empty"),
        (
            {
                "concepts": ("a",),
                "kv_only": True,
                "prompts": (Prompt("p", "x"),),
                "strings": ("a",),
            },
            "leave --kv-only out",
        ),
    ],
)
def test_wishes_that_do_not_fit_are_refused(options, said):
    with pytest.raises((PromptError, SpecError)) as error:
        one(**options)
    assert said in str(error.value)


def test_a_direction_is_never_measured_on_what_it_was_made_of():
    from mlxroles.prompts import load_prompts

    with pytest.raises(PromptError, match="makes the direction too"):
        one(toward=("offers",), away=("no-tools",), prompts=tuple(load_prompts("offers")))
    study = one(toward=("offers",), away=("no-tools",))
    made_of = {item.id for item in study.source.toward}
    assert not made_of & {item.id.rsplit("-", 1)[0] for item in study.asked.items}
    assert len(made_of) == 10


def test_a_dry_run_loads_no_weights_and_says_what_there_is(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mlxroles.studies.subject.load", None)
    status, out, err = call("inject", "--pair", "tiny", "--concept", "ocean", "--dry-run")
    assert status == 0, err
    assert "33 prompts" in out
    assert "56" in out
