"""The packaged prompt set `roles`: four categories that differ in meaning, not in length."""

import re
from collections import Counter
from importlib import resources

import numpy as np
import pytest

from mlxroles.errors import PromptError
from mlxroles.prompts import load_prompts

SHORT = {
    "self_referent": "self",
    "confounder": "conf",
    "neutral": "neut",
    "third_person": "third",
}
PERSONS = {
    "self_referent": {"you", "your", "yourself"},
    "confounder": {"i", "me", "my"},
    "third_person": {"he", "she", "him", "his", "her"},
}
REWORDED = {
    "i": {"he", "she"},
    "me": {"him", "her"},
    "my": {"his", "her"},
    "am": {"is"},
    "do": {"do", "does"},
}
ALIKE = {"am": "be", "are": "be", "is": "be", "does": "do"}


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def word_length(text: str) -> int:
    """Tokens where each word and each mark is one, with the begin token."""
    return 1 + len(re.findall(r"\w+|[^\w\s]", text))


def subword_length(folder):
    """How many ids a text becomes with the tokenizer of a model folder, begin token included."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda text: len(tokenizer.encode(text).ids)


def lengths(sets, count) -> np.ndarray:
    """Lengths [category, prompt] in the order of the file."""
    return np.array([[count(text) for text in texts] for texts in sets.values()])


def by_category(prompts) -> dict[str, list[str]]:
    return {
        category: [prompt.text for prompt in prompts if prompt.category == category]
        for category in dict.fromkeys(prompt.category for prompt in prompts)
    }


@pytest.fixture(scope="module")
def prompts():
    return load_prompts("roles")


@pytest.fixture(scope="module")
def sets(prompts):
    return by_category(prompts)


@pytest.fixture(scope="module")
def published(shared):
    return by_category(load_prompts(str(shared / "data/self-referent-study/prompts_120.json")))


class TestContents:
    def test_four_categories_of_thirty_in_order_with_ids_that_name_them(self, prompts):
        numbers = range(1, 31)
        expected = [(f"{short}_{k:02d}", name) for name, short in SHORT.items() for k in numbers]
        assert [(prompt.id, prompt.category) for prompt in prompts] == expected

    def test_no_text_stands_twice(self, prompts):
        assert len({" ".join(words(prompt.text)) for prompt in prompts}) == 120

    def test_every_text_is_one_plain_question(self, prompts):
        for prompt in prompts:
            assert re.fullmatch(r"[A-Z][a-z]*( [A-Za-z]+){2,5}\?", prompt.text), prompt.text

    def test_each_category_speaks_of_its_own_person_and_of_no_other(self, sets):
        for category, texts in sets.items():
            own = PERSONS.get(category, set())
            others = set().union(*PERSONS.values()) - own
            for text in texts:
                assert not others & set(words(text)), text
                assert bool(own) == bool(own & set(words(text))), text

    def test_third_person_is_the_confounder_reworded_and_nothing_else(self, sets):
        for text, other in zip(sets["confounder"], sets["third_person"], strict=True):
            pairs = list(zip(words(text), words(other), strict=True))
            for left, right in pairs:
                assert right in REWORDED.get(left, {left}), (text, other)
            changed = {right for left, right in pairs if left in PERSONS["confounder"]}
            assert changed <= {"he", "him", "his"} or changed <= {"she", "her"}, other
            assert ("do", "does") in pairs or "do i" not in " ".join(words(text)), other

    def test_he_and_she_are_asked_about_equally_often(self, sets):
        he = sum(bool({"he", "him", "his"} & set(words(text))) for text in sets["third_person"])
        assert he == 15

    def test_the_set_is_not_the_published_one(self, sets, published):
        ours = {" ".join(words(text)) for texts in sets.values() for text in texts}
        theirs = {" ".join(words(text)) for texts in published.values() for text in texts}
        assert len(ours & theirs) <= 40


class TestLengths:
    def test_the_same_word_lengths_in_every_category_prompt_by_prompt(self, sets):
        counted = lengths(sets, word_length)
        assert (counted == counted[0]).all()
        assert Counter(counted[0].tolist()) == {5: 6, 6: 9, 7: 9, 8: 6}

    def test_prompts_of_one_number_begin_with_the_same_question_word(self, sets):
        for texts in zip(*sets.values(), strict=True):
            first = [words(text)[0] for text in texts]
            assert len({ALIKE.get(word, word) for word in first}) == 1, texts

    def test_subword_lengths_of_the_embedded_pair_agree(self, sets):
        folder = resources.files("mlxroles").joinpath("data", "tiny", "instruct")
        counted = lengths(sets, subword_length(folder))
        assert np.ptp(counted.mean(1)) < 0.05
        assert np.ptp(counted.std(1, ddof=1)) < 0.15

    def test_subword_lengths_of_another_tokenizer_agree(self, sets, shared):
        counted = lengths(sets, subword_length(shared / "models/stories260K"))
        assert np.ptp(counted.mean(1)) < 0.05
        assert np.ptp(counted.std(1, ddof=1)) < 0.2


class TestPublished:
    def test_the_published_set_loads_as_it_is_with_one_text_twice(self, published):
        assert list(published) == list(SHORT)
        assert [len(texts) for texts in published.values()] == [30] * 4
        texts = [text for texts in published.values() for text in texts]
        assert [text for text, n in Counter(texts).items() if n > 1] == ["What is photosynthesis?"]
        assert len(set(texts)) == 119

    def test_its_lengths_differ_by_category(self, published):
        counted = lengths(published, word_length)
        assert counted.mean(1) == pytest.approx([173 / 30, 6.5, 163 / 30, 6.5])


def test_a_toml_file_may_hold_categories(tmp_path):
    for head in ("", "[categories]\n"):
        path = tmp_path / "set.toml"
        path.write_text(head + 'code = ["a = 1", "b = 2"]\nprose = ["It rained."]\n')
        prompts = load_prompts(str(path))
        assert [p.category for p in prompts] == ["code", "code", "prose"]


def test_a_category_without_prompts_or_name_is_refused(tmp_path):
    path = tmp_path / "set.json"
    for content, said in (
        ('{"a": [], "b": ["x"]}', "'a' has no prompts"),
        ('{"": ["x"]}', "has no name"),
    ):
        path.write_text(content)
        with pytest.raises(PromptError, match=said):
            load_prompts(str(path))
