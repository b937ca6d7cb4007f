"""Prompts, places and strings at the edge of what there is: a defined value or one clear line."""

import json

import h5py
import numpy as np
import pytest
from run_contents import one_line

from mlxroles.studies import patch_sweep, role_results


@pytest.fixture
def tiny(call, tmp_path, monkeypatch):
    """Calls a command on the embedded pair in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(patch_sweep, "patch_figures", lambda doc, folder: {})
    monkeypatch.setattr(patch_sweep, "svg", lambda doc, path, *, title: None)
    monkeypatch.setattr(role_results, "role_figures", lambda doc, tables, folder: {})

    def go(command, *args):
        pair = "--family" if command == "entropy" else "--pair"
        status, out, err = call(command, pair, "tiny", *args, "--plain", "--json")
        # one document of standard JSON, or nothing at all
        doc = json.loads(out, parse_constant=lambda text: pytest.fail(text)) if out else None
        return status, doc, err

    return go


QUICK = ("--token-ids", "5", "--layers", "2")


def test_a_prompt_of_the_begin_token_alone_is_patched_and_measured(tiny):
    status, doc, _ = tiny("patch", "--prompt-ids", "0", *QUICK)
    assert (status, doc["n_tokens"]) == (0, 1)
    assert np.isfinite(doc["base_to_instruct"]["2"]["log_odds"])
    status, doc, _ = tiny("probe", "--prompt-ids", "0", "--token-ids", "5")
    assert status == 0
    assert [row["n_tokens"] for row in doc["rows"]] == [1, 1]


def test_a_hundred_thousand_tokens_are_refused_with_what_they_would_take(tiny, tmp_path):
    ids = np.random.default_rng(0).integers(7, 1000, size=(1, 100_000))
    np.save(tmp_path / "long.npy", ids)
    for command in (["patch", *QUICK], ["probe", "--token-ids", "5"]):
        status, doc, err = tiny(*command, "--prompt-ids", "long.npy")
        assert (status, doc) == (1, None)
        line = one_line(err)
        assert "100000 tokens: the attention of one layer would take" in line
        assert line.endswith("shorten it")


def test_the_same_prompt_twice_is_two_prompts_with_one_answer(tiny):
    twice = ["--prompt-ids", "0,5,6", "--prompt-ids", "0,5,6"]
    status, doc, _ = tiny("probe", *twice, "--token-ids", "7")
    assert status == 0
    rows = [row for row in doc["rows"] if row["model"] == "base"]
    assert len(rows) == 2
    assert rows[0]["log_odds"] == rows[1]["log_odds"]
    (mean,) = [m for m in doc["means"] if m["model"] == "base"]
    assert mean["log_odds_ci"] == [rows[0]["log_odds"]] * 2
    status, doc, _ = tiny("patch", *twice, *QUICK, "--controls", "none")
    assert status == 0
    low, high = doc["base_to_instruct"]["2"]["log_odds_ci"]
    assert low == pytest.approx(high, rel=1e-5)  # two rows of one batch may round otherwise


def test_prompts_without_entropy_divide_nothing_by_zero(tiny, tmp_path):
    """One token attends to itself: entropy 0 in the denominator of RFC and RSI."""
    sets = {name: [[0], [5]] for name in ("self_referent", "neutral", "confounder")}
    (tmp_path / "ids.json").write_text(json.dumps(sets))
    status, doc, err = tiny("entropy", "--prompts", "ids.json", "--variant", "base", "--out", "run")
    assert status == 0, err
    text = json.dumps(doc)
    assert "Infinity" not in text
    assert "NaN" not in text
    with h5py.File(tmp_path / "run" / "run.h5") as file:
        entropies = [file[name][()] for name in file if name.startswith("entropy")]
    assert entropies
    assert all((array[np.isfinite(array)] == 0).all() for array in entropies)


WRONG = {
    "an empty text": (["--prompt", ""], "the prompt is empty"),
    "an empty file": (["--prompt", "empty.txt"], "empty"),
    "no ids": (["--prompt-ids", ""], "no token ids"),
    "an id too large": (["--prompt-ids", "0,1024"], "0..1023"),
    "a negative id": (["--prompt-ids", "0,-1"], "negative"),
    "a lone surrogate": (["--prompt", "a\ud800"], "surrogate"),
    "a layer beyond": (["--layers", "6"], "layer 6 is outside 0..5"),
    "a negative layer": (["--layers=-1"], "cannot be read: write '25-31', '2,4' or '7'"),
    "layers reversed": (["--layers", "4-2"], "layers 4-2 are reversed: write 2-4"),
    "layers with a step": (["--layers", "0:6:2"], "cannot be read"),
    "a layer twice": (["--layers", "2,2"], "named twice"),
    "a head beyond": (["--site", "z", "--heads", "99"], "head 99 is outside 0.."),
    "heads reversed": (["--site", "z", "--heads", "3-1"], "reversed"),
    "a position beyond": (["--positions", "9999"], "position 9999 is outside"),
    "a negative position": (["--positions=-1"], "cannot be read"),
    "a measured id beyond": (["--token-ids", "1024"], "0..1023"),
    "no such prompt": (["--prompt", "notepod.txt"], "no such file"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_there_is_refused_with_what_is(tiny, tmp_path, name):
    (tmp_path / "empty.txt").write_text("")
    args, words = WRONG[name]
    defaults = [] if "--token-ids" in args else ["--token-ids", "5"]
    status, doc, err = tiny("patch", *args, *defaults, "--out", "run")
    assert (status, doc) == (1, None)
    assert words in one_line(err)
    assert not (tmp_path / "run").exists()


def test_a_string_of_several_tokens_is_said_to_be(tiny):
    status, doc, err = tiny("probe", "--prompt-ids", "0,5", "--tokens", "tool_callx")
    assert status == 0
    assert "tokens here" in err
    row = doc["rows"][0]
    assert row["p_chain"] <= row["p_first_token"]


HOSTILE = {
    "unicode": "日本語 🙂 naïve",
    "nul": "a\0b",
    "escape": "a\x1b]0;x\x07b\x1b[2J",
    "right to left": "\u202eabc",
    "markup": "[b]x[/b] [/] $\\frac$ `x` | <script>alert(1)</script>&amp;",
    "formula": "=1+1",
    "a long line": "word " * 300,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_kept_exactly_and_shown_safely(tiny, call, tmp_path, name):
    text = HOSTILE[name]
    args = ["--prompt", text, "--tokens", text[:40], "--layers", "2", "--controls", "none"]
    status, doc, err = tiny("patch", *args, "--out", "run")
    assert status == 0, err
    assert doc["headline"] == text[:40]
    _, shown, more = call("patch", "--pair", "tiny", *args, "--plain", "--out", "run")
    files = [p for p in (tmp_path / "run").iterdir() if p.suffix in (".html", ".md")]
    pages = [path.read_text() for path in files]
    for where in (err, shown, more, *pages):
        assert not any(c in where for c in "\x1b\x07\0\u202e")
    assert not any("<script>alert" in page for page in pages)
