"""Files of edits: what each table becomes, in edits and in words, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from tiny_models import off, tiny, to_numpy

from mlxroles import vectors
from mlxroles.edit_file import EditSet, read_edits
from mlxroles.errors import MlxrolesError, SpecError, VectorError
from mlxroles.heads import by_layer, parse_heads
from mlxroles.vectors import Vectors

N = 10
"""Tokens of the prompt."""
MODEL = tiny("llama")
TOKENS = [list(range(1, N + 1))]
STEER = Vectors(
    ("ocean", "chess"),
    np.random.default_rng(0).standard_normal((2, 4, MODEL.d_model), dtype=np.float32),
    (0, 1, 2, 3),
)


@pytest.fixture
def read(tmp_path):
    """Reads one table, or a whole file, beside which there are vectors."""
    vectors.write(tmp_path / "steer.h5", STEER)
    np.save(tmp_path / "one.npy", STEER.at("chess", 2))

    def reader(text: str, model=MODEL, *, whole: bool = False) -> EditSet:
        path = tmp_path / "edits.toml"
        path.write_text(text if whole else f"[[edit]]\n{text}")
        return read_edits(path, model, N)

    return reader


def told(edits) -> list[tuple]:
    return [(e.site, e.layer, e.op, e.positions, e.heads) for e in edits]


# --- heads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["L5H8,L16H23", "l5h8, l16h23", "5.8,16.23", " L5H8  16.23 ,"])
def test_heads_by_name(text):
    assert parse_heads(text) == [(5, 8), (16, 23)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("L5", "'L5' names no head; write heads as L5H8,L6H1"),
        ("", "an empty list names no head"),
        ("L5H8;L6H1", "'L5H8;L6H1' names no head"),
        ("L5H-1", "names no head"),
        ("L1H2,1.2", "head L1H2 is named twice"),
        ("L4H0", r"L4H0: layer 4 is outside 0\.\.3"),
        ("L3H4", r"L3H4: head 4 is outside 0\.\.3"),
        ("L2H0", "L2H0: layer 2 has no heads"),
        ("L1H\x1b", r"'L1H\\x1b' names no head"),
    ],
)
def test_heads_that_are_none(text, said):
    with pytest.raises(SpecError, match=said):
        parse_heads(text, n_layers=4, n_heads=[4, 4, 0, 4])


def test_heads_by_layer():
    assert by_layer([(5, 3), (2, 1), (5, 0)]) == {2: (1,), 5: (0, 3)}


# --- what a table becomes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected", "line"),
    [
        (
            'site="z"\nheads="L3H1,L1H0,L1H2"\nvalue=0',
            [("z", 1, "replace", None, (0, 2)), ("z", 3, "replace", None, (1,))],
            "set z of heads L1H0, L1H2, L3H1 to 0, everywhere",
        ),
        (
            'site="k"\nlayers=[2, 0]\nheads=[1]\nvalue=0.5\nop="scale"\npositions=[0, -1]',
            [("k", 0, "scale", (0, 9), (1,)), ("k", 2, "scale", (0, 9), (1,))],
            "multiply k of kv heads L0H1, L2H1 by 0.5, at positions 0, 9 of the prompt",
        ),
        (
            'site="mlp_out"\nlayers="0,2-3"\nvalue=1.5\nop="add"\non="generated"',
            [("mlp_out", n, "add", None, None) for n in (0, 2, 3)],
            "add 1.5 to mlp_out of layers 0, 2-3, in what is generated",
        ),
        (
            'layers="all"\nvector="steer.h5#ocean"\nscale=4\non="prompt"',
            [("resid_post", n, "add", None, None) for n in range(4)],
            "add 4 x 'ocean' to resid_post of layers 0-3, in the prompt",
        ),
        (
            'layers=2\nvector="one.npy"\npositions="last"',
            [("resid_post", 2, "add", (9,), None)],
            "add 'one' to resid_post of layer 2, at position 9 of the prompt",
        ),
        (
            'site="attn_out"\nlayers="1-2"\nvector="steer.h5#chess"\nop="project"\nvector_layer=3',
            [("attn_out", n, "project", None, None) for n in (1, 2)],
            "take 'chess' of layer 3 out of attn_out of layers 1-2, everywhere",
        ),
        (
            'layers=1\nvector="steer.h5#chess"\nop="replace"\npositions="3-5"',
            [("resid_post", 1, "replace", (3, 4, 5), None)],
            "put 'chess' in place of resid_post of layer 1, at positions 3-5 of the prompt",
        ),
    ],
)
def test_a_table_in_edits_and_in_words(read, text, expected, line):
    found = read(text)
    assert told([*found.both, *found.prompt, *found.generated]) == expected
    assert found.lines == (line,)


def test_at_each_layer_the_vector_of_that_layer(read):
    found = read('layers="1-3"\nvector="steer.h5#ocean"\nscale=-2.5').both
    for edit, layer in zip(found, (1, 2, 3), strict=True):
        assert np.allclose(to_numpy(edit.value), -2.5 * STEER.at("ocean", layer), rtol=1e-6)
    found = read('layers="1-3"\nvector="one.npy"\nvector_layer=2').both
    assert all(np.array_equal(to_numpy(e.value), STEER.at("chess", 2)) for e in found)


def test_the_words_are_what_happens(read):
    text = """
        edit = [
          {site = "z", heads = "L1H2", value = 0},
          {layers = 2, vector = "steer.h5#ocean", scale = 3, positions = "first"},
          {site = "mlp_out", layers = 3, value = 0.25, op = "scale", positions = "8-9"},
        ]
    """
    found = read(text, whole=True)
    clean = MODEL.run(TOKENS, keep=["resid_pre", "z"])
    assert len(found.lines) == 3
    first = MODEL.run(TOKENS, keep=["z", "resid_post", "mlp_out"], edits=found.in_prompt)
    without = MODEL.run(TOKENS, keep=["resid_post", "mlp_out"], edits=found.both)
    z = to_numpy(clean["z", 1]).copy()
    z[:, :, 2] = 0
    assert off(first["z", 1], z) < 1e-6
    stream = to_numpy(without["resid_post", 2]).copy()
    stream[:, 0] += 3 * STEER.at("ocean", 2)
    assert off(first["resid_post", 2], stream) < 1e-5
    again = MODEL.run(TOKENS, keep=["mlp_out"], edits=[*found.both, found.prompt[0]])
    mlp = to_numpy(again["mlp_out", 3]).copy()
    mlp[:, 8:] *= 0.25
    assert off(first["mlp_out", 3], mlp) < 1e-6


def test_edits_by_where_they_hold(read):
    one = '[[edit]]\nsite="z"\nlayers={}\nvalue=0\n'
    text = "".join(
        one.format(n) + on
        for n, on in enumerate(['on="prompt"\n', 'on="generated"\n', "", 'positions="first"\n'])
    )
    found = read(text, whole=True)
    assert [[e.layer for e in part] for part in (found.both, found.prompt, found.generated)] == [
        [2],
        [0, 3],
        [1],
    ]
    assert [e.layer for e in found.in_prompt] == [2, 0, 3]
    assert len(found.lines) == 4


def test_all_layers_are_those_that_have_the_site(read):
    mixed = tiny("qwen3_next")
    there = [n for n in range(mixed.n_layers) if "z" not in mixed.network.block(n).missing]
    assert 0 < len(there) < mixed.n_layers
    found = read('site="z"\nlayers="all"\nvalue=0', mixed)
    assert [e.layer for e in found.both] == there
    absent = min({*range(mixed.n_layers)} - {*there})
    with pytest.raises(SpecError, match=f"z of layer {absent} cannot be edited in qwen3_next"):
        read(f'site="z"\nlayers={absent}\nvalue=0', mixed)
    with pytest.raises(SpecError, match=f"L{absent}H0: layer {absent} has no heads"):
        read(f'site="z"\nheads="L{absent}H0"\nvalue=0', mixed)


def test_the_digest_tells_edits_apart_and_nothing_else(read, tmp_path):
    texts = [
        'layers=2\nvector="steer.h5#ocean"',
        'layers=2\nvector="steer.h5#chess"',
        'layers=2\nvector="steer.h5#ocean"\nscale=2',
        'layers=2\nvector="steer.h5#ocean"\non="prompt"',
        'layers=2\nvector="steer.h5#ocean"\npositions="last"',
        'layers=1\nvector="steer.h5#ocean"\nvector_layer=2',
        'layers=2\nvector="steer.h5#ocean"\nsite="mlp_out"',
        'layers=2\nvector="steer.h5#ocean"\nop="project"',
    ]
    assert len({read(text).digest for text in texts}) == len(texts)
    alike = f'# why\nlayers=[2]\nop="add"\nscale=1\nvector="{tmp_path}/steer.h5#ocean"\non="both"'
    assert read(alike).digest == read(texts[0]).digest


# --- what is refused ------------------------------------------------------------------------------

ZERO = 'site="z"\nvalue=0\nlayers=1\n'
OCEAN = 'vector="steer.h5#ocean"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("value=0\nlayers=1", r'there is no site; write site = "z"'),
        ('site="zz"\nvalue=0\nlayers=1', "site cannot be 'zz'; did you mean 'z'"),
        ('site="entropy"\nvalue=0\nlayers=1', "site cannot be 'entropy'; it is one of"),
        ('site="z"\nlayers=1', "neither value nor vector"),
        (ZERO + OCEAN, "both value and vector"),
        (ZERO + 'opp="add"', "unknown key 'opp'; did you mean 'op'"),
        (ZERO + 'weird="add"', "unknown key 'weird'; known are site, layers"),
        (ZERO + 'op="ad"', "op cannot be 'ad'; did you mean 'add'"),
        (ZERO + 'op="project"', "name it with vector, not value"),
        (ZERO + "scale=2", 'write op = "scale" and value'),
        (ZERO + "vector_layer=2", "there is no vector"),
        (ZERO + 'on="answer"', "on cannot be 'answer'; it is one of both, prompt, generated"),
        (ZERO + "heads=[4]", r"L1H4: head 4 is outside 0\.\.3"),
        (ZERO + "heads=[1, 1]", "each once"),
        (ZERO + "heads=[]", 'heads must be "L5H8,L6H1"'),
        (ZERO + 'heads="L1H1"', "leave layers out"),
        ('site="k"\nvalue=0\nheads="L0H2"', r"L0H2: kv head 2 is outside 0\.\.1"),
        ('site="z"\nvalue=0\nheads="L9H0"', r"L9H0: layer 9 is outside 0\.\.3"),
        ('site="mlp_out"\nvalue=0\nheads="L1H0"', "mlp_out has no heads"),
        ('site="z"\nvalue=0', "there are no layers; write layers = 3"),
        ('site="z"\nvalue=0\nlayers=4', r"layer 4 is outside 0\.\.3"),
        ('site="z"\nvalue=0\nlayers=-1', r"layer -1 is outside 0\.\.3"),
        ('site="z"\nvalue=0\nlayers=[1, 1]', "layer 1 is named twice"),
        ('site="z"\nvalue=0\nlayers="3-1"', "runs from 3 to 1"),
        ('site="z"\nvalue=0\nlayers="0-999999999"', "runs from 0 to 999999999"),
        ('site="z"\nvalue=0\nlayers="last"', "is none of"),
        ('site="z"\nvalue=0\nlayers=true', "layers must be a number"),
        ('site="z"\nvalue=0\nlayers=[1.5]', "layers must be a number"),
        ('site="z"\nlayers=1\nvalue="0"', "value must be a finite number"),
        ('site="z"\nlayers=1\nvalue=inf', "value must be a finite number"),
        ('site="z"\nlayers=1\nvalue=true', "value must be a finite number"),
        ('site="z"\nlayers=1\nvalue=1e39', "value must be a finite number that float32 holds"),
        (ZERO + 'positions="end"', 'positions = \'end\' is none of "all", "last", "first"'),
        (ZERO + "positions=[10]", r"position 10 is outside the prompt: 0\.\.9"),
        (ZERO + "positions=[-11]", "position -11 is outside the prompt"),
        (ZERO + "positions=[9, -1]", "position 9 is named twice"),
        (ZERO + 'positions="5-12"', r"position 10 is outside 0\.\.9"),
        (ZERO + 'positions="first"\non="both"', "positions are those of the prompt"),
        (ZERO + 'positions="first"\non="generated"', "positions are those of the prompt"),
        (OCEAN, "there are no layers"),
        (OCEAN + 'site="z"\nlayers=1', "z is not; use resid_post"),
        (OCEAN + 'site="resid_pre"\nlayers=1', "which is not resid_pre of the same layer"),
        (OCEAN + 'op="scale"\nlayers=1', "name it with value, not vector"),
        (OCEAN + 'op="project"\nscale=2\nlayers=1', "a direction is taken out whole"),
        (OCEAN + 'scale="4"\nlayers=1', "scale must be a finite number"),
        (OCEAN + 'vector_layer="1"\nlayers=1', "vector_layer must be a layer"),
        ('vector=""\nlayers=1', "vector must be a file"),
    ],
)
def test_what_cannot_be_meant_is_one_line(read, text, said):
    with pytest.raises(SpecError, match=said) as caught:
        read(text)
    assert str(caught.value).count("edit 1") == 1
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('vector="steer.h5"\nlayers=1', r"2 vectors \(ocean, chess\) where one is wanted"),
        ('vector="steer.h5#oceans"\nlayers=1', "did you mean 'ocean'"),
        ('vector="ster.h5#ocean"\nlayers=1', "there is no file ster.h5"),
        ('vector="one.npy"\nlayers="1-2"', "does not say its layer; name the one"),
        ('vector="steer.h5#ocean"\nlayers=1\nvector_layer=7', r"layer 7 is outside 0\.\.3"),
        ('vector="zero.npy"\nlayers=1\nop="project"', "length 0: no direction"),
        ('vector="steer.pt"\nlayers=1', "may hold a pickle"),
    ],
)
def test_vectors_that_cannot_be_used_are_one_line(read, tmp_path, text, said):
    np.save(tmp_path / "zero.npy", np.zeros(MODEL.d_model))
    (tmp_path / "steer.pt").write_bytes(b"")
    with pytest.raises(VectorError, match=said) as caught:
        read(text)
    assert "edit 1: " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"has no \[\[edit\]\] table"),
        ("edit = 3", r"has no \[\[edit\]\] table"),
        ("edit = [3]", "edit 1 is no table"),
        ("[[edits]]\nvalue=0", "unknown key 'edits'; did you mean 'edit'"),
        ("[[edit]\n", "line 1: Expected"),
        ("x = 1", r"unknown key 'x'; a file of edits has \[\[edit\]\] tables only"),
    ],
)
def test_files_that_hold_no_edits(read, text, said):
    with pytest.raises(SpecError, match=said):
        read(text, whole=True)


def test_a_file_that_is_not_there(tmp_path):
    (tmp_path / "edits.toml").write_text("")
    with pytest.raises(SpecError, match=r"no edit file .*; did you mean 'edits.toml'"):
        read_edits(tmp_path / "edit.toml", MODEL, N)
    with pytest.raises(SpecError, match="is a folder; name an edit file in it"):
        read_edits(tmp_path, MODEL, N)


@pytest.mark.parametrize("name", ["llama", "gemma2", "deepseek_v3", "gpt_oss", "mamba2", "rwkv7"])
def test_edits_run_on_any_architecture_or_are_refused_in_one_line(read, name):
    model = tiny(name)
    ran, refused = 0, []
    for site in ("resid_pre", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z", "pattern"):
        try:
            found = read(f'site="{site}"\nlayers="all"\nvalue=0.5\nop="scale"', model)
        except MlxrolesError as error:
            refused.append(str(error))
            continue
        model.run(TOKENS, edits=found.both)
        ran += 1
    assert ran >= 2
    assert not any("\n" in line for line in refused)


def test_the_path_of_a_vector_is_taken_from_the_file(read, tmp_path, monkeypatch):
    monkeypatch.chdir(Path("/"))
    assert read('layers=1\nvector="steer.h5#ocean"').both


def test_vectors_say_which_model_they_were_taken_from(read, tmp_path):
    assert read('layers=1\nvector="steer.h5#ocean"').origins == ()
    known = Vectors(STEER.names, STEER.array, STEER.layers, model={"sha256": "abc"})
    vectors.write(tmp_path / "known.h5", known)
    found = read('layers="0-3"\nvector="known.h5#ocean"')
    assert found.origins == (("known.h5#ocean", "abc"),)


def test_a_wrong_key_is_refused_before_a_model_is_loaded(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mlxroles.studies.subject.load", None)
    (tmp_path / "e.toml").write_text('[[edit]]\nsit = "z"\n')
    for command in ("generate", "lens"):
        status, _, err = call(command, "--model", "tiny/instruct", "--edits", "e.toml")
        assert (status, "unknown key 'sit'; did you mean 'site'?" in err) == (1, True)
        assert not (tmp_path / "results").exists()
