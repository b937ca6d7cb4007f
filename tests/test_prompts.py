"""Prompts from names, files and literal texts, and the ids they become."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from told import refusal
from toy_tokenizers import TEMPLATE, toy

from mlxroles.prompts import (
    Message,
    Prompt,
    digest,
    encode,
    load_ids,
    load_prompts,
    packaged,
    parse_ids,
    render,
)

HOSTILE = ["a\0b", "\x1b[2J", "\u202eevil", "<b>&amp;</b>", "[red]x [/red]", "日本語🙂", "$\\frac$"]


@pytest.fixture
def write(tmp_path):
    def write(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


class TestSources:
    @pytest.mark.parametrize("name", packaged())
    def test_every_packaged_prompt_loads_and_encodes(self, name):
        for prompt in load_prompts(name):
            assert encode(prompt, toy(TEMPLATE), vocab_size=320).size > 4

    def test_the_default_conversation_offers_its_tools_or_not(self):
        (prompt,) = load_prompts("notepad")
        assert prompt.id == "notepad"
        assert prompt.headline in prompt.strings
        with_tools = render(prompt, toy(TEMPLATE))
        without = render(prompt, toy(TEMPLATE), tools=False)
        first = prompt.messages[0].content
        assert f"{prompt.tools_text}\n{prompt.separator}\n{first}" in with_tools
        assert f"{prompt.plain_text}\n{prompt.separator}\n{first}" in without
        assert with_tools.endswith("[assistant]")

    @pytest.mark.parametrize("text", ["hello", "one two.", "a\n/b.txt\n", "x</s>y", " ", *HOSTILE])
    def test_any_other_text_is_one_raw_prompt(self, text):
        assert load_prompts(text) == [Prompt(id="p000", text=text)]

    @pytest.mark.parametrize(
        ("source", "says"),
        [
            ("", "empty"),
            ("missing.json", "no such file: missing.json"),
            ("my prompts.TXT", "no such file"),
            ("missing/file", "no such file"),
            ("ids.npy", "no such file"),
            ("notpad", "did you mean 'notepad'"),
            ("Notepad", "did you mean 'notepad'"),
        ],
    )
    def test_what_looks_like_a_mistake_is_not_taken_as_text(self, source, says):
        assert says in refusal(load_prompts, source)

    def test_a_text_too_long_for_a_file_name_is_text(self):
        text = "why? " * 5000
        assert load_prompts(text)[0].text == text

    def test_folders_and_unknown_kinds_of_files_are_refused(self, tmp_path, write):
        assert "is a folder" in refusal(load_prompts, str(tmp_path))
        assert "must end in one of .json, .toml" in refusal(load_prompts, write("a.yaml", "x"))

    def test_a_text_file_is_one_prompt_to_the_last_byte(self, write):
        assert load_prompts(write("my story.txt", "one\ntwo\r\n")) == [
            Prompt(id="my story", text="one\ntwo\r\n")
        ]

    def test_a_long_file_name_gives_a_short_id(self, write):
        (prompt,) = load_prompts(write("x" * 200 + ".txt", "hello"))
        assert len(prompt.id) == 80

    def test_the_published_prompts_load_as_they_are(self, shared):
        prompts = load_prompts(str(shared / "data/self-referent-study/prompts_120.json"))
        assert len(prompts) == 120
        categories = {prompt.category for prompt in prompts}
        assert len(categories) == 4
        assert (prompts[0].id, prompts[0].category) == ("p000", "self_referent")


class TestFormats:
    EXPECTED = (("p000", "one", None), ("x", "two", "c"))

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("a.json", '["one", {"id": "x", "text": "two", "category": "c"}]'),
            ("a.json", '{"prompts": ["one", {"id": "x", "prompt": "two", "category": "c"}]}'),
            (
                "a.toml",
                '[[prompts]]\ntext="one"\n[[prompts]]\nid="x"\ntext="two"\ncategory="c"\n',
            ),
            ("a.csv", "Text, id ,category,more\none,,,1\ntwo,x,c,2\n"),
            ("a.csv", "\ufeffid,prompt,category\r\n,one,\r\nx,two,c\r\n"),
        ],
    )
    def test_sets(self, write, name, content):
        found = load_prompts(write(name, content))
        assert tuple((p.id, p.text, p.category) for p in found) == self.EXPECTED

    def test_categories(self, write):
        expected = [("p000", "one", "a"), ("y", "two", "a"), ("p002", "three", "b")]
        mapping = {"a": ["one", {"id": "y", "text": "two"}], "b": ["three"]}
        for document in (mapping, {"categories": mapping, "source": "somewhere"}):
            found = load_prompts(write("a.json", json.dumps(document)))
            assert [(p.id, p.text, p.category) for p in found] == expected

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            (
                "a.json",
                '[{"ids": [1, 5], "category": "a"}, {"id": "y", "ids": [7], "category": "b"}]',
            ),
            ("a.json", '{"a": [[1, 5]], "b": [{"id": "y", "ids": [7]}]}'),
            ("a.json", '{"categories": {"a": [[1, 5]], "b": [{"id": "y", "ids": [7]}]}}'),
            (
                "a.toml",
                '[[prompts]]\nids=[1, 5]\ncategory="a"\n'
                '[[prompts]]\nid="y"\nids=[7]\ncategory="b"\n',
            ),
        ],
    )
    def test_token_ids_in_place_of_texts(self, write, name, content):
        found = load_prompts(write(name, content))
        assert found == [
            Prompt(id="p000", ids=(1, 5), category="a"),
            Prompt(id="y", ids=(7,), category="b"),
        ]
        assert [encode(prompt, None, vocab_size=8).tolist() for prompt in found] == [[1, 5], [7]]

    def test_texts_and_token_ids_in_one_set(self, write):
        found = load_prompts(write("a.json", '{"a": ["one", [1, 2]], "b": [[3]]}'))
        assert [(p.id, p.text, p.ids) for p in found] == [
            ("p000", "one", None),
            ("p001", None, (1, 2)),
            ("p002", None, (3,)),
        ]

    def test_a_column_of_ids_is_left_alone(self, write):
        (found,) = load_prompts(write("a.csv", "text,ids\none,1 2\n"))
        assert found == Prompt(id="p000", text="one")

    def test_conversations(self, write):
        turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
        messages = (Message("user", "hi"), Message("assistant", "yes"))
        assert load_prompts(write("talk.json", json.dumps(turns))) == [
            Prompt(id="talk", messages=messages)
        ]
        full = {
            "name": "n", "messages": turns, "tools_text": "T", "plain_text": "P",
            "separator": "", "tools": [{"name": "f"}], "strings": ["x"], "headline": "x",
            "description": "d", "category": "c",
        }  # fmt: skip
        (found,) = load_prompts(write("talk.json", json.dumps(full)))
        expected = {key: value for key, value in full.items() if key != "name"}
        expected |= {"messages": messages, "strings": ("x",), "tools": ({"name": "f"},)}
        assert found == Prompt(id="n", **expected)

    def test_strings_of_a_set_hold_for_every_prompt(self, write):
        document = {"prompts": ["a", "b"], "strings": ["s", "t"], "headline": "t"}
        for prompt in load_prompts(write("a.json", json.dumps(document))):
            assert (prompt.strings, prompt.headline) == (("s", "t"), "t")

    def test_repeated_texts_are_kept(self, write):
        assert [p.id for p in load_prompts(write("a.json", '["x", "x"]'))] == ["p000", "p001"]

    @pytest.mark.parametrize(
        ("name", "content", "says"),
        [
            ("a.json", "{", "is not JSON: "),
            ("a.json", "3", "holds a number"),
            ("a.json", "[]", "holds no prompt"),
            ("a.json", "{}", "holds the keys nothing; expected a conversation"),
            ("a.json", '{"a": "b"}', "holds the keys a"),
            ("a.json", '{"a": [1]}', "category 'a': prompt 0 is a number"),
            ("a.json", '{"a": ["x"], "a": ["y"]}', "the key 'a' stands twice"),
            ("a.json", "[" * 100_000, "nested too deeply"),
            ("a.json", '[{"text": "a", "categry": "b"}]', "did you mean 'category'?"),
            ("a.json", '[{"id": "a"}]', "prompt 0 is empty"),
            ("a.json", '["a", ""]', "prompt 1 is empty"),
            ("a.json", '[{"text": "a", "prompt": "b"}]', "both 'text' and 'prompt'"),
            ("a.json", '[{"text": 3}]', "text is a number"),
            ("a.json", '[{"id": 3, "text": "a"}, {"id": "3", "text": "b"}]', "same id '3'"),
            ("a.json", '[{"id": "a/b", "text": "a"}]', "no slash"),
            ("a.json", '["\\ud800"]', "lone surrogate \\ud800"),
            ("a.json", '{"messages": []}', "no messages"),
            ("a.json", '{"messages": [{"role": "user"}]}', "message 0 must be {role, content}"),
            ("a.json", '[{"role": "usr", "content": "a"}]', "did you mean 'user'?"),
            ("a.json", '[{"role": "user", "content": ["a"]}]', "must be texts"),
            ("a.json", '[{"text": "a", "messages": [{"role": "user", "content": "b"}]}]', "one of"),
            ("a.json", '{"prompts": {"a": "b"}}', "expected a list"),
            ("a.json", '[{"ids": []}]', "has no ids"),
            ("a.json", '{"a": [[]]}', "has no ids"),
            ("a.json", '[{"ids": [1], "text": "a"}]', "needs one of text, messages and ids"),
            ("a.json", '[{"ids": "1,2"}]', "prompt 0: ids is a text; expected a list"),
            ("a.json", '[{"ids": null}]', "ids is null; expected a list"),
            ("a.json", '[{"ids": [1, true]}]', "ids hold true or false at position 1; expected"),
            ("a.json", '[{"ids": [1.0]}]', "ids hold 1.0 at position 0; expected whole numbers"),
            ("a.json", '[{"ids": [NaN]}]', "ids hold nan at position 0"),
            ("a.json", '{"a": ["x", [3, "4"]]}', "prompt 1: ids hold a text at position 1"),
            ("a.json", '{"a": [[3, [4]]]}', "ids hold a list at position 1"),
            ("a.json", '[{"ids": [1, -2]}]', "token id -2 at position 1 is negative"),
            ("a.json", '[{"ids": [2147483648]}]', "is outside what 32 bits hold"),
            ("a.json", '[{"ids": [' + "9" * 40 + "]}]", "is outside what 32 bits hold"),
            ("a.json", "[[1, 2]]", "prompt 0 is a list; expected a text"),
            ("a.toml", "[[prompts]]\nids=[1979-05-27]\n", "ids hold 1979-05-27 at position 0"),
            ("a.json", '{"prompts": ["a"], "strings": [""]}', "none of them empty"),
            (
                "a.json",
                '{"messages": [{"role": "assistant", "content": "a"}], "tools_text": "b"}',
                "no user message",
            ),
            ("a.toml", "x = ", "is not TOML"),
            ("a.toml", "x = 1", "needs [[messages]]"),
            ("a.csv", "", "found no header"),
            ("a.csv", "a,b\n1,2\n", "found a, b"),
            ("a.csv", "text,prompt\na,b\n", "one column 'text' or 'prompt'"),
            ("a.csv", "text,text\na,b\n", "same name"),
            ("a.csv", "text\n", "holds no prompt"),
            ("a.csv", "text,id\na\n", "line 2: the row does not have 2 columns"),
            ("a.csv", "text\na,b\n", "line 2: the row does not have 1 columns"),
            ("a.csv", 'text\n"a\n', "line "),
            ("a.csv", "text,id\n,a\n", "line 2: prompt 0 is empty"),
            ("a.txt", b"\xff\xfe", "is not UTF-8: byte 0"),
            ("a.txt", "", "is empty"),
        ],
    )
    def test_malformed_files_are_refused_in_one_line(self, write, name, content, says):
        assert says in refusal(load_prompts, write(name, content))

    @given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1))
    def test_json_texts_come_back_exactly(self, tmp_path_factory, texts):
        path = tmp_path_factory.getbasetemp() / "texts.json"
        path.write_text(json.dumps(texts), encoding="utf-8")
        assert [prompt.text for prompt in load_prompts(str(path))] == texts


class TestIds:
    def test_vector_is_one_prompt_and_matrix_one_per_row(self, tmp_path):
        path = tmp_path / "ids.npy"
        np.save(path, np.array([3, 1, 2], dtype=np.uint16))
        assert load_ids(path) == [Prompt(id="p000", ids=(3, 1, 2))]
        np.save(path, np.arange(6).reshape(2, 3))
        expected = [Prompt(id="p000", ids=(0, 1, 2)), Prompt(id="p001", ids=(3, 4, 5))]
        assert load_ids(path) == expected
        assert load_prompts(str(path)) == expected

    @pytest.mark.parametrize(
        ("array", "says"),
        [
            (np.arange(3.0), "holds float64, not integers"),
            (np.array([True]), "holds bool"),
            (np.array([1, -2]), "token id -2 at position 1 is negative"),
            (np.array([2**31]), "token id 2147483648 at position 0 is outside"),
            (np.zeros(0, int), "shape (0,)"),
            (np.zeros((2, 0), int), "shape (2, 0)"),
            (np.zeros((1, 1, 1), int), "shape (1, 1, 1)"),
            (np.array(1), "shape ()"),
            (np.array([None], dtype=object), "pickled objects and archives are refused"),
        ],
    )
    def test_other_arrays_are_refused(self, tmp_path, array, says):
        path = tmp_path / "ids.npy"
        np.save(path, array, allow_pickle=True)
        assert says in refusal(load_ids, path)

    def test_damaged_files_are_refused(self, tmp_path):
        path = tmp_path / "ids.npy"
        np.save(path, np.arange(5))
        whole = path.read_bytes()
        huge = whole.replace(b"(5,), }" + b" " * 14, b"(999999999999999,), }")
        assert len(huge) == len(whole)
        for content in (
            b"",
            whole[:-3],
            whole[:40],
            huge,
            b"hello",
            b"\x80\x04K\x01.",
            b"PK\x03\x04",
        ):
            path.write_bytes(content)
            assert "not an undamaged .npy" in refusal(load_ids, path)
        np.savez(tmp_path / "ids.npz", a=np.arange(3))
        assert "archives are refused" in refusal(load_ids, tmp_path / "ids.npz")
        assert "no such file" in refusal(load_ids, tmp_path / "none.npy")

    @pytest.mark.parametrize("text", ["1,410,471", "1 410 471", " 1, 410,\n471,"])
    def test_lists_of_ids(self, text):
        assert parse_ids(text) == [Prompt(id="p000", ids=(1, 410, 471))]

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("", "no token ids"),
            (" , ", "no token ids"),
            ("1,x", "'x' at position 1"),
            ("1.0", "'1.0' at position 0"),
            ("1_0", "'1_0'"),
            ("١", "'١'"),
            ("1,-3", "token id -3 at position 1 is negative"),
            ("9" * 50, "is not a token id"),
        ],
    )
    def test_other_lists_are_refused(self, text, says):
        assert says in refusal(parse_ids, text)

    def test_ids_need_no_tokenizer_but_a_vocabulary(self):
        (prompt,) = parse_ids("1,5,9")
        ids = encode(prompt, None, vocab_size=10)
        assert ids.dtype == np.int32
        assert ids.tolist() == [1, 5, 9]
        message = refusal(encode, prompt, None, vocab_size=9)
        assert message.endswith("token id 9 at position 2 is outside the model's vocabulary: 0..8")

    def test_digest_is_of_little_endian_int32(self):
        expected = hashlib.sha256(bytes([1, 0, 0, 0, 0, 2, 0, 0])).hexdigest()
        assert digest([1, 512]) == expected
        assert digest(np.array([1, 512], dtype=">i8")) == expected
