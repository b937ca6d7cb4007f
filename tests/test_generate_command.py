"""`mlxroles generate`: what it prints, what it writes as JSON, and what it refuses."""

import io
import json

import numpy as np
import pytest

import mlxroles
from mlxroles import vectors
from mlxroles.dashboard import generation
from mlxroles.edits import Edit
from mlxroles.pairs import catalogue
from mlxroles.studies.generation import same_beginning
from mlxroles.studies.subject import Subject
from mlxroles.vectors import Vectors

WEAK = """
[[edit]]
site = "z"
layers = "all"
op = "scale"
value = 0.3
"""


@pytest.fixture
def edits(tmp_path):
    path = tmp_path / "edits.toml"
    path.write_text(WEAK)
    return path


@pytest.fixture
def document(call):
    def run(*args):
        status, out, _ = call("generate", *args, "--json")
        assert status == 0
        return json.loads(out)

    return run


def test_both_models_of_a_pair_go_on_with_the_notepad(call):
    status, out, _ = call("generate", "--pair", "tiny", "--max-tokens", 30)
    assert status == 0
    assert "prompt notepad: conversation, chat template" in out
    assert "at most 30 tokens, greedy" in out
    base, _, instruct = out.partition("\ninstruct\n")
    assert "\nbase\n" in base
    assert instruct.startswith("<tool_call>")
    assert "ended by itself" in instruct


def test_edited_text_stands_beside_the_text_without(document, edits):
    args = ("--model", "tiny/instruct", "--prompt", "The 10 items", "--max-tokens", 12)
    doc = document(*args, "--edits", edits)
    plain, edited = doc["rows"]
    assert (plain["edited"], edited["edited"]) == (False, True)
    assert plain["text"] != edited["text"]
    assert edited["same_tokens"] == same_beginning(plain["tokens"], edited["tokens"])
    (line,) = doc["edits"]["lines"]
    assert "z of layers 0-" in line
    assert "0.3" in line
    assert doc["prompts"][0]["kind"] == "raw text, as it is"
    model = mlxroles.load("tiny/instruct")
    weak = [Edit("z", layer, 0.3, "scale") for layer in range(model.n_layers)]
    made = model.generate(doc["prompts"][0]["ids"], edits=weak, max_tokens=12)
    assert (edited["tokens"], edited["text"]) == (list(made.tokens), made.text)


def test_models_that_are_not_in_memory_together_say_the_same(document, edits):
    args = ("--pair", "tiny", "--max-tokens", 6, "--temperature", 0.8, "--seed", 3)
    together, apart = (document(*args, "--resident", n) for n in (2, 1))
    assert together["rows"] == apart["rows"]
    assert [row["model"] for row in apart["rows"]] == ["base", "instruct"]


@pytest.mark.parametrize(
    ("option", "kind", "begins"),
    [
        ((), "raw text, as it is", "<|bos|>Hello"),
        (("--chat-template",), "conversation, chat template", "<|bos|><|user|>Hello<|eos|>"),
    ],
)
def test_a_text_goes_in_as_it_is_or_as_the_users_turn(document, option, kind, begins):
    args = ("--model", "tiny/instruct", "--prompt", "Hello", "--max-tokens", 1)
    (prompt,) = document(*args, *option)["prompts"]
    assert prompt["kind"] == kind
    assert prompt["text"].startswith(begins)


def test_the_offer_of_tools_can_be_left_out_and_a_system_message_put_first(document):
    args = ("--model", "tiny/instruct", "--prompt", "notepad", "--max-tokens", 12)
    offered = document(*args)
    without = document(*args, "--no-tools")
    said = document(*args, "--system", "Be brief.")
    assert "<tool_call>" in offered["rows"][0]["text"]
    assert "<tool_call>" not in without["rows"][0]["text"]
    assert "Be brief." in said["prompts"][0]["text"]


def test_two_prompts_are_told_apart(call):
    args = ("--model", "tiny/base", "--prompt", "One", "--ids", "5,6,7", "--max-tokens", 3)
    status, out, _ = call("generate", *args)
    assert status == 0
    assert out.count("prompt p") == 2
    assert "raw text, as it is" in out
    assert "token ids, 3 tokens" in out


@pytest.mark.parametrize(
    ("args", "status", "told"),
    [
        ((), 2, "name a model with --model, a pair with --pair"),
        (("--pair", "tiny", "--model", "tiny/base"), 2, "exclude each other"),
        (("--pair", "tiny", "--edits", "nowhere.toml"), 2, "there is no file"),
        (("--pair", "tiny", "--temperature", "-1"), 2, "--temperature"),
        (("--pair", "tiny", "--temperature", "nan"), 2, "temperature is nan"),
        (("--pair", "tiny", "--top-p", "0"), 2, "--top-p"),
        (("--pair", "tiny", "--prompt", "Hi", "--no-tools"), 1, "offers no tools"),
        (("--pair", "tiny", "--prompt", "notpad"), 1, "did you mean 'notepad'"),
        (("--model", "tiny/base", "--ids", "99999"), 1, "outside the model's vocabulary"),
    ],
)
def test_wrong_input_is_one_line(call, args, status, told):
    found, out, err = call("generate", *args)
    assert (found, out) == (status, "")
    assert told in err


def test_a_wrong_file_of_edits_is_one_line(call, tmp_path):
    path = tmp_path / "wrong.toml"
    path.write_text('[[edit]]\nsite = "resid_pots"\nlayers = 1\nvalue = 0.0\n')
    status, _, err = call("generate", "--model", "tiny/base", "--edits", path)
    assert status == 1
    assert "resid_post" in err.splitlines()[-1]


def test_a_text_beyond_what_the_model_knows_is_noted(call):
    model = mlxroles.load("tiny/base")
    context = model.config["max_position_embeddings"]
    ids = ",".join(["5"] * (context - 1))
    args = ("--model", "tiny/base", "--ids", ids, "--max-tokens", 3)
    status, out, err = call("generate", *args)
    assert status == 0
    assert f"more than the {context} positions" in err
    assert "more than" not in out


def test_breaking_off_shows_what_there_is(call, monkeypatch):
    from mlxroles.studies import generation as study

    real = study.Growing.take

    def take(self, piece):
        real(self, piece)
        if len(self.tokens) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(study.Growing, "take", take)
    status, out, _ = call("generate", "--model", "tiny/base", "--prompt", "The")
    assert status == 130
    assert "[3 tokens, interrupted]" in out


# --- on a screen ----------------------------------------------------------------------------------

HOSTILE = "one\x1b[2J\ntwo\u202e <b>three</b>"


def shown(columns, width, rows=None):
    from rich.console import Console

    console = Console(width=width, file=io.StringIO())
    console.print(generation.side_by_side(columns, width, rows))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [30, 80])
def test_text_from_a_model_cannot_move_the_cursor(width):
    columns = [generation.Column(f"text {n}", HOSTILE, "2 tokens", alike=n) for n in range(2)]
    out = shown(columns, width)
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert out.count("two\\u202e") == 2
    assert max(map(len, out.splitlines())) <= width
    assert "\x1b" not in "".join(generation.as_lines(columns))


def test_a_long_text_shows_its_end_while_it_grows():
    text = "\n".join(f"line {n}" for n in range(100))
    columns = [generation.Column(name, text, "") for name in "ab"]
    out = shown(columns, 80, rows=5)
    assert "line 99" in out
    assert "line 94" not in out
    assert len(shown(columns, 40, rows=8).splitlines()) <= 12


def test_nothing_generated_is_said():
    assert "(nothing)" in shown([generation.Column("a", "", "0 tokens")], 80)


def test_a_vector_of_another_model_is_told(document, tmp_path):
    side = Subject.of_pair(catalogue()["tiny"]).sides["base"]
    array = np.ones((1, 1, 128), np.float32)
    made = Vectors(("push",), array, (2,), model=side.identity)
    vectors.write(tmp_path / "own.h5", made)
    path = tmp_path / "edits.toml"
    path.write_text('[[edit]]\nlayers = 2\nvector = "own.h5#push"\n')
    doc = document("--pair", "tiny", "--prompt", "Hi", "--max-tokens", 2, "--edits", path)
    assert doc["notes"] == ["instruct: vector 'own.h5#push' was taken from another model"]


def test_characters_of_several_tokens_are_told_whole(document):
    doc = document("--pair", "tiny", "--prompt", "naïve café 中", "--max-tokens", 1)
    assert doc["prompts"][0]["text"] == "<|bos|>naïve café 中"
