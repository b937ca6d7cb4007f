"""Conversations and texts as a model sees them, and whether two models see the same."""

import copy
import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from told import refusal
from toy_tokenizers import SYSTEM_TEMPLATE, TEMPLATE, TOOLS_TEMPLATE, toy

from mlxroles.prompts import (
    Message,
    Prompt,
    encode,
    render,
    same_tokenizer,
    token_texts,
    tokenizer_digest,
)

TALK = Prompt(
    id="talk",
    messages=(Message("user", "one"), Message("assistant", "two"), Message("user", "three")),
    tools_text="TOOLS",
    plain_text="PLAIN",
)


class TestRendering:
    def test_tools_or_plain_text_open_the_first_user_message(self):
        rest = "[assistant]two\n[user]three\n[assistant]"
        assert render(TALK, toy(TEMPLATE)) == f"<s>[user]TOOLS\n---\none\n{rest}"
        assert render(TALK, toy(TEMPLATE), tools=False) == f"<s>[user]PLAIN\n---\none\n{rest}"

    def test_schemas_go_through_the_template(self):
        prompt = Prompt(id="p", messages=TALK.messages, tools_text="T", tools=({"name": "f"},))
        text = render(prompt, toy(TOOLS_TEMPLATE), tools="schemas")
        assert text.startswith("TOOL f\n<s>[user]one\n")
        assert "takes no tool schemas" in refusal(render, prompt, toy(TEMPLATE), tools="schemas")
        assert "has no tool schemas" in refusal(render, TALK, toy(TOOLS_TEMPLATE), tools="schemas")
        assert "raw" in refusal(render, prompt, toy(TOOLS_TEMPLATE), tools="schemas", raw=True)

    def test_a_system_message_comes_first(self):
        notes = []
        text = render(TALK, toy(SYSTEM_TEMPLATE), system="Be kind.", note=notes.append)
        assert text.startswith("<s>[system]Be kind.\n[user]TOOLS\n")
        assert notes == []
        own = Prompt(id="p", messages=(Message("system", "old"), *TALK.messages))
        assert "old" not in render(own, toy(SYSTEM_TEMPLATE), system="new")

    @pytest.mark.parametrize(
        "template", [TEMPLATE, SYSTEM_TEMPLATE.replace("in messages", "in messages[1:]")]
    )
    def test_a_refused_or_dropped_system_message_is_moved_and_said(self, template):
        notes = []
        prompt = Prompt(id="p", messages=(Message("user", "u"), Message("user", "one")))
        text = render(prompt, toy(template), system="Be kind.", note=notes.append)
        assert "system" not in text
        assert len(notes) == 1
        assert "takes no system message" in notes[0]
        if template == TEMPLATE:
            assert text == "<s>[user]Be kind.\n\nu\n[user]one\n[assistant]"

    def test_raw_writes_paragraphs_without_a_tokenizer(self):
        assert render(TALK, None, raw=True, system="S") == (
            "System: S\n\nUser: TOOLS\n---\none\n\nAssistant: two\n\nUser: three\n\nAssistant:"
        )

    def test_what_cannot_be_rendered_is_refused(self):
        assert "no chat template" in refusal(render, TALK, toy())
        assert "--prompt-ids" in refusal(render, TALK, None)
        assert "--prompt-ids" in refusal(encode, Prompt(id="p", text="a"), None, vocab_size=9)
        assert "no system message" in refusal(render, Prompt(id="p", text="a"), toy(), system="s")
        assert "have no text" in refusal(render, Prompt(id="p", ids=(1,)), toy())
        broken = toy("{{ raise_exception('roles must\n alternate') }}")
        assert "roles must\\n alternate" in refusal(render, TALK, broken)


class TestEncoding:
    @pytest.mark.parametrize("text", ["hello", "<s>hello"])
    def test_raw_text_begins_with_bos_once(self, text):
        ids = encode(Prompt(id="p", text=text), toy(), vocab_size=320).tolist()
        assert ids == [0, *toy().encode("hello", add_special_tokens=False)]

    @pytest.mark.parametrize("bos", [True, False])
    def test_a_template_that_prints_bos_gives_one(self, bos):
        ids = encode(TALK, toy(TEMPLATE, bos=bos), vocab_size=320)
        assert np.flatnonzero(ids == 0).tolist() == [0]

    def test_a_template_after_a_blank_line_gives_one_bos(self):
        ids = encode(TALK, toy("\n" + TEMPLATE.replace("{{ bos", "{{ '\n' + bos")), vocab_size=320)
        assert np.count_nonzero(ids == 0) == 1

    def test_a_template_without_bos_gets_the_tokenizers_own(self):
        bare = TEMPLATE.replace("{{ bos_token }}", "")
        assert encode(TALK, toy(bare), vocab_size=320)[0] == 0
        assert encode(TALK, toy(bare, bos=False), vocab_size=320)[0] != 0

    def test_two_bos_in_the_text_are_refused(self):
        prompt = Prompt(id="p", text="<s><s>hello")
        assert "<s> (id 0) twice" in refusal(encode, prompt, toy(), vocab_size=320)

    def test_an_end_token_of_the_tokenizer_is_cut(self):
        plain = encode(Prompt(id="p", text="hello"), toy(), vocab_size=320)
        framed = encode(Prompt(id="p", text="hello"), toy(eos=True), vocab_size=320)
        assert framed.tolist() == plain.tolist()
        written = encode(Prompt(id="p", text="hello</s>"), toy(), vocab_size=320)
        assert written.tolist() == [*plain.tolist(), 1]

    def test_ids_beyond_the_vocabulary_are_refused(self):
        prompt = Prompt(id="p", text="hello")
        assert "outside the model's vocabulary: 0..3" in refusal(
            encode, prompt, toy(), vocab_size=4
        )

    def test_a_text_without_tokens_is_refused(self):
        class Empty:
            def encode(self, text, *, add_special_tokens):
                return []

        assert "has no token" in refusal(encode, Prompt(id="p", text="x"), Empty(), vocab_size=4)

    @given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30))
    def test_any_text_comes_back_from_its_ids(self, text):
        ids = encode(Prompt(id="p", text="x" + text), toy(), vocab_size=320)
        assert toy().decode(ids[1:].tolist()) == "x" + text

    @pytest.mark.parametrize("wrapped", [False, True])
    def test_real_model(self, shared, wrapped):
        tokenizer = real(shared / "models/stories260K", wrapped=wrapped)
        for bos in ("<s>", ""):
            prompt = Prompt(id="p", text=f"{bos}User: Where is the puppy?\nAssistant: ")
            ids = encode(prompt, tokenizer, vocab_size=512)
            assert np.flatnonzero(ids == 1).tolist() == [0]
            assert ids[-1] == 410
            assert len(ids) == 28
        texts = token_texts(ids, tokenizer)
        assert texts[:5] == ["<s>", " ", "U", "s", "er"]
        assert (texts[18], texts[-1]) == ("\n", " ")
        chat = real(shared / "models/stories260K-chat", wrapped=wrapped)
        ids = encode(Prompt(id="p", messages=(Message("user", "hi"),)), chat, vocab_size=512)
        assert np.flatnonzero(ids == 1).tolist() == [0]
        assert "".join(token_texts(ids, chat)) == "<s> User: hi\nAssistant:"
        assert "no chat template" in refusal(encode, TALK, tokenizer, vocab_size=512)
        assert same_tokenizer(tokenizer, chat) == []


def real(folder: Path, *, wrapped: bool):
    from transformers import AutoTokenizer

    if wrapped:
        from mlx_lm.tokenizer_utils import load

        import mlxroles.backend  # noqa: F401 - before anything of MLX

        return load(folder)
    return AutoTokenizer.from_pretrained(str(folder))


class TestTokenizers:
    def test_token_texts_keep_spaces(self):
        ids = toy().encode("the tool\n🙂", add_special_tokens=False)
        texts = token_texts(ids, toy())
        assert "".join(texts[:-4]).startswith("the tool\n")
        assert "\ufffd" in texts[-1]
        assert token_texts([3, 4], None) == ["3", "4"]

    def test_a_template_on_one_side_is_no_difference(self):
        assert same_tokenizer(toy(), toy(TEMPLATE)) == []
        assert same_tokenizer(toy(TEMPLATE), toy(TEMPLATE)) == []

    def test_differences_are_told_in_words(self):
        (template,) = same_tokenizer(toy(TEMPLATE), toy(SYSTEM_TEMPLATE))
        assert template.startswith("chat template: SHA-256 ")
        (vocabulary,) = same_tokenizer(toy(), toy(extra=("<tool_kall>",)))
        assert vocabulary.startswith("vocabulary: 3")
        assert "2 with other ids, such as '<tool_call>' 2/absent" in vocabulary

    def test_equal_vocabularies_that_split_differently_are_told_apart(self):
        class Letters:
            def __init__(self, step):
                self.step = step

            def get_vocab(self):
                return {"a": 0, "b": 1}

            def encode(self, text, *, add_special_tokens):
                return [ord(letter) for letter in text[:: self.step]]

        (difference,) = same_tokenizer(Letters(1), Letters(-1))
        assert difference.startswith("splitting")

    def test_begin_tokens_are_compared(self):
        other = copy.deepcopy(toy())
        other.bos_token = "</s>"
        differences = same_tokenizer(toy(), other)
        assert "begin token: '<s>' (id 0) and '</s>' (id 1)" in differences

    def test_digest_names_what_identifies_a_tokenizer(self):
        found = tokenizer_digest(toy(TEMPLATE))
        assert found["bos"] == ["<s>", 0]
        assert found["eos"] == ["</s>", 1]
        assert found["size"] == len(toy())
        assert found["chat_template"] == hashlib.sha256(TEMPLATE.encode()).hexdigest()
        assert tokenizer_digest(toy())["chat_template"] is None
        assert found["vocabulary"] == tokenizer_digest(toy())["vocabulary"]
