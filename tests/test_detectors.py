"""Scores of heads on patterns known in closed form, and the rows on which they are taken."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from toy_tokenizers import toy

from mlxroles import detectors
from mlxroles.detectors import catalogue, formulas, lists, pieces, places, prose
from mlxroles.detectors.classify import ANTI, bounds
from mlxroles.detectors.detect import Scores, positional
from mlxroles.errors import PromptError

T = 12
UNIFORM = places.uniform(places.causal(T))
BEFORE = np.eye(T, k=-1)
BEFORE[0, 0] = 1


# --- closed forms ------------------------------------------------------------------------------


def test_a_head_that_looks_one_back_scores_1_and_peaks_at_offset_1():
    assert places.previous(T).read(BEFORE) == pytest.approx(1)
    assert places.neighbours(T).read(BEFORE) == 0
    found = formulas.profile(BEFORE, 5)
    assert found[1:].argmax() == 0
    assert found == pytest.approx([1 / T, 1, 0, 0, 0])


def test_uniform_attention_scores_what_the_visible_keys_say():
    mean = np.mean([1 / (q + 1) for q in range(1, T)])
    assert places.previous(T).read(UNIFORM) == pytest.approx(mean)
    assert places.own(T).read(UNIFORM) == pytest.approx(mean)
    assert formulas.first_position(UNIFORM) == pytest.approx(
        np.mean([1 / (q + 1) for q in range(T)])
    )
    assert formulas.first_position(UNIFORM, start=1) == pytest.approx(mean)
    assert places.neighbours(T).read(UNIFORM) == pytest.approx(
        np.mean([np.mean([1 / (q + 1) for q in range(d, T)]) for d in (2, 3, 4, 5)])
    )
    assert places.other_first(T).read(UNIFORM) == pytest.approx(
        np.mean([np.mean([1 / (q + 1) for q in range(k + 1, T)]) for k in (1, 2, 3, 4)])
    )


def test_uniform_attention_under_a_window_is_less_wide():
    narrow = places.uniform(places.causal(T, window=3))
    assert places.previous(T).read(narrow) == pytest.approx((1 / 2 + (T - 2) / 3) / (T - 1))
    assert formulas.first_position(narrow, start=3) == 0


def test_an_ideal_induction_pattern_scores_1_and_one_that_repeats_the_token_does_not():
    half = T // 2
    ideal, itself = np.zeros((T, T)), np.zeros((T, T))
    for k in range(half):
        itself[half + k, k] = 1
        if k < half - 1:
            ideal[half + k, k + 1] = 1
    assert places.repeat(half).read(ideal) == pytest.approx(1)
    assert places.same(half).read(ideal) == 0
    assert places.same(half).read(itself) == pytest.approx(1)
    assert places.repeat(half).read(itself) == 0
    assert np.isnan(places.repeat(1).read(ideal))


def test_two_equal_tokens_are_one_valid_position():
    pattern = np.zeros((6, 6))
    pattern[5, 0] = 0.3
    assert formulas.duplicate(pattern, [7, 1, 2, 3, 4, 7]) == pytest.approx(0.3)
    assert np.isnan(formulas.duplicate(pattern, range(6)))


def test_duplicates_add_up_over_earlier_ones_and_average_over_queries():
    pattern, ids = np.random.default_rng(0).random((2, 3, 20, 20)), [1, 2, 3, 1, 2] * 4
    found = formulas.duplicate(pattern, ids)
    for at in np.ndindex(2, 3):
        sums = []
        for i in range(20):
            earlier = [pattern[(*at, i, j)] for j in range(i) if ids[j] == ids[i]]
            sums += [sum(earlier)] if earlier else []
        assert found[at] == pytest.approx(np.mean(sums))


def test_delimiters_under_uniform_attention_have_the_ratio_1():
    assert formulas.delimiter_ratio(UNIFORM, np.ones(T)) == pytest.approx(1)
    assert formulas.delimiter_frequency_ratio(UNIFORM, np.ones(T)) == pytest.approx(1)
    some = np.arange(T) % 3 == 2
    assert formulas.delimiter_ratio(UNIFORM, some) == pytest.approx(1)
    # the published ratio is another one: keys late in a row are seen by few queries
    by_hand = np.mean([some[: q + 1].sum() / (q + 1) for q in range(T)]) / some.mean()
    assert formulas.delimiter_frequency_ratio(UNIFORM, some) == pytest.approx(by_hand)
    assert by_hand < 0.9
    assert np.isnan(formulas.delimiter_ratio(UNIFORM, np.zeros(T)))


def test_the_profile_is_the_mean_of_the_sub_diagonals():
    pattern = np.random.default_rng(1).random((3, T, T))
    found = formulas.profile(pattern, T + 2)
    for head in range(3):
        for d in range(T):
            mean = np.mean([pattern[head, q, q - d] for q in range(d, T)])
            assert found[head, d] == pytest.approx(mean)
    assert np.isnan(found[:, T:]).all()


def test_spans_add_up_over_tokens_and_average_over_pairs():
    pattern = np.random.default_rng(2).random((T, T))
    found = places.spans([5, 9], [(1, 3), (4, 5)]).read(pattern)
    assert found == pytest.approx((pattern[5, 1] + pattern[5, 2] + pattern[9, 4]) / 2)


# --- controls ----------------------------------------------------------------------------------


def test_controls_of_duplicates_keep_the_distances_and_differ_in_the_token():
    ids = np.random.default_rng(3).integers(0, 12, 60)
    given = places.duplicates(ids)
    control = places.matched(given, ids, np.random.default_rng(4))
    assert len(given.queries) - 5 < len(control.queries) <= len(given.queries)
    assert (ids[control.queries] != ids[control.keys]).all()
    assert control.weights.sum() == pytest.approx(given.weights.sum())
    left = {*zip(control.queries - control.keys, strict=True)}
    assert left <= {*zip(given.queries - given.keys, strict=True)}
    if len(control.queries) == len(given.queries):
        assert np.abs(control.queries - given.queries).max() <= 8


def test_controls_of_duplicates_where_there_are_none():
    ids = np.zeros(6, dtype=int)
    assert not len(places.matched(places.duplicates(ids), ids, np.random.default_rng(0)).queries)


def test_as_many_other_keys_are_drawn_near_the_chosen_ones():
    chosen = np.arange(40) % 5 == 4
    found = places.others(chosen, np.random.default_rng(0))
    assert found.sum() == chosen.sum()
    assert not (found & chosen).any()
    assert places.others(np.ones(3), np.random.default_rng(0)).sum() == 0


def test_shuffled_lists_have_no_successors():
    for size in range(4, 13):
        for seed in range(5):
            found = lists.shuffled(range(3, 3 + size), np.random.default_rng(seed))
            assert sorted(found) == list(range(3, 3 + size))
            assert all(b != a + 1 for a, b in pairwise(found))


def test_lists_are_stretches_of_single_tokens_in_their_order():
    words = [*(str(n) for n in range(1, 5)), *(str(n) for n in range(10, 16))]
    made = Pieces(["and", *words])

    def encode(text, *, add_special_tokens):
        known = [
            w if w in made.get_vocab() or f"▁{w}" in made.get_vocab() else "and and"
            for w in text.split()
        ]
        return Pieces.encode(made, " ".join(known), add_special_tokens=add_special_tokens)

    split = SimpleNamespace(encode=encode)
    numerals = [str(n) for n in range(1, 21)]
    assert lists.stretch(split, numerals) == [str(n) for n in range(10, 16)]
    assert lists.stretch(split, numerals[:12]) == numerals[:12]  # too few in a row: all


def test_no_list_counts_twice():
    found, _ = lists.sets(toy(), 256, 0)
    assert 100 < len({tuple(ids) for ids in found["lists"].ids}) == len(found["lists"].ids) < 256
    assert len(found["shuffled"].ids) == len(found["lists"].ids)


def test_lists_whose_elements_are_unknown_are_left_out():
    class Unknown(Pieces):
        def encode(self, text, *, add_special_tokens):
            spaced = text.replace(",", " ,").replace(":", " ").split()
            known = {",": self.words.index(",")} | {w: self.words.index(f"▁{w}") for w in letters}
            return [known.get(w, 0) for w in spaced]

    letters = [chr(n) for n in range(ord("A"), ord("Z") + 1)]
    found, _ = lists.sets(Unknown(letters), 20, 0)
    assert 0 < len(found["lists"].ids) <= 4  # one kind of five
    assert len(found["shuffled"].ids) == len(found["lists"].ids)


def test_the_positional_score_is_the_weight_at_the_peak_of_the_averaged_profile():
    profile = np.full((4, 1, 2, 8), 0.01, np.float32)
    profile[:, 0, 0, 3] = [0.4, 0.5, 0.3, 0.4]
    profile[0, 0, 0, 6] = 0.9  # the largest of one row is not the peak of the mean
    profile[:, 0, 1, 0] = 0.9  # nor is the query itself
    profile[:, 0, 1, 2] = 0.2
    found = positional(profile, np.full((4, 1, 8), 0.125, np.float32), 2 * profile)
    assert found.more["offset"].tolist() == [[[3, 2]]]
    assert found.score[:, 0, 0] == pytest.approx([0.4, 0.5, 0.3, 0.4])
    assert found.uniform == pytest.approx(0.125)
    assert found.more["random"] == pytest.approx(2 * found.score)
    assert found.control[:, 0, 0] == pytest.approx(np.mean(profile[:, 0, 0, [1, 5, 6, 7]], axis=1))


def test_no_row_has_a_say_in_where_its_peak_is():
    noise = np.random.default_rng(0).random((20, 4, 30, 40)).astype(np.float32)
    found = positional(noise, np.full((20, 4, 40), 0.5, np.float32))
    assert found.score.mean() == pytest.approx(0.5, abs=0.02)
    highest = noise.mean(axis=0)[..., 1:].max(axis=-1).mean()
    assert highest > 0.6  # what the peak of all rows would promise
    for row, layer, head in [(0, 1, 2), (19, 3, 29)]:
        others = np.delete(noise[:, layer, head], row, axis=0).mean(axis=0)
        peak = 1 + int(others[1:].argmax())
        assert found.score[row, layer, head] == noise[row, layer, head, peak]


# --- tokenizers and rows -----------------------------------------------------------------------


class Pieces:
    """A word tokenizer as SentencePiece's are: a space before every text, bytes as <0x..>."""

    bos_token_id, all_special_ids = 1, [0, 1]

    def __init__(self, words, front=(1,)):
        bytes_ = [f"<0x{n:02X}>" for n in range(60, 68)]
        self.words = ["<unk>", "<s>", *bytes_, *(f"▁{w}" for w in words), ",", ".", "<unused7>"]
        self.front = list(front)

    def get_vocab(self):
        return {word: n for n, word in enumerate(self.words)}

    def encode(self, text, *, add_special_tokens):
        spaced = text.replace(",", " ,").replace(".", " .").split()
        found = [self.words.index(w if w in ",." else f"▁{w}") for w in spaced]
        return (self.front if add_special_tokens else []) + found

    def decode(self, ids):
        return " ".join(self.words[i].strip("▁") for i in ids)


def test_what_stands_in_front_is_what_the_tokenizer_puts_there():
    assert pieces.opening(None) == ()
    assert pieces.opening(toy()) == (toy().bos_token_id,)
    assert pieces.opening(toy(bos=False)) == ()
    assert pieces.opening(toy(bos=True, eos=True)) == (toy().bos_token_id,)
    assert pieces.opening(Pieces(["word"], front=(0, 1))) == (0, 1)


def test_single_tokens_are_found_whatever_stands_in_front_of_a_text():
    words = ["and", "Mary", "Tom"]
    made = Pieces(words)
    assert pieces.single(made, ["Mary", "Tom"], least=0) == ["Mary", "Tom"]
    for bos in (True, False):
        tokenizer = toy(bos=bos, corpus=("and Mary and Tom and Mary and Tom ",) * 9)
        assert pieces.single(tokenizer, ["Mary", "Tom", "Xqzw"], least=0) == ["Mary", "Tom"]
        assert pieces.single(tokenizer, ["Mary", "Xqzw"], least=2) == ["Mary", "Xqzw"]


def test_random_ids_are_ordinary_pieces():
    made = Pieces(["word", "Mary", "and"])
    found = pieces.ordinary_ids(made, 64, np.random.default_rng(0)).tolist()
    assert [made.words[i] for i in found] == ["▁word", "▁Mary", "▁and", ",", "."]
    bytes_ = toy()
    for token in pieces.ordinary_ids(bytes_, 10**6, np.random.default_rng(0)).tolist():
        text = bytes_.decode([token])
        assert text.strip()
        assert text.isprintable()
        assert "\ufffd" not in text
        assert token not in bytes_.all_special_ids
    assert pieces.ordinary_ids(toy(), 100, np.random.default_rng(0)).max() < 100
    assert pieces.ordinary_ids(None, 1024, np.random.default_rng(0)).tolist() == [*range(100, 924)]
    made.get_vocab, made.all_special_ids = dict, [8]  # nothing is listed
    assert pieces.ordinary_ids(made, 12, np.random.default_rng(0)).tolist() == [*range(2, 8), 9, 10]


def test_spans_are_where_the_tokens_of_a_word_are():
    tokenizer = toy()
    ids, (first, second) = pieces.with_spans(
        tokenizer, [("Here:", False), (" Anna", True), (",", False), (" Tom", True)]
    )
    assert tokenizer.decode(ids[slice(*first)]) == " Anna"
    assert tokenizer.decode(ids[slice(*second)]) == " Tom"
    joined = toy(corpus=("Anna, Anna, Anna,",) * 9)
    assert pieces.with_spans(joined, [("x", False), ("", True), (",", False)]) is None


def test_delimiters_are_single_tokens():
    tokenizer = toy()
    found = {tokenizer.decode([i]) for i in prose.delimiters(tokenizer)}
    assert {".", ",", ";", ":", "!", "?", "\n"} <= found


@pytest.fixture(scope="module", params=[True, False], ids=["bos", "no bos"])
def tokenizer(request):
    return toy(bos=request.param)


@pytest.fixture(scope="module")
def made(tokenizer):
    return detectors.material(tokenizer, len(tokenizer), sequences=5, length=48, half=10, seed=3)


def test_rows_begin_with_bos_once_where_the_tokenizer_puts_one(tokenizer, made):
    front = pieces.opening(tokenizer)
    special = set(tokenizer.all_special_ids)
    assert made.opening == front
    for rows in made.sets.values():
        assert rows.start == len(front)
        for ids in rows.ids:
            assert ids[: len(front)] == front
            assert not special & set(ids[len(front) :])
    assert {len(row) for name in ("text", "random") for row in made.sets[name].ids} == {48}


def test_rows_of_one_number_belong_together(made):
    start = len(made.opening)
    for repeated, other in zip(made.sets["repeated"].ids, made.sets["random"].ids, strict=True):
        assert repeated[start : start + 10] == repeated[start + 10 :]
        assert other[: start + 10] == repeated[: start + 10]
        assert other[start + 10 : start + 20] != repeated[start + 10 :]
    for one, two in zip(made.sets["lists"].ids, made.sets["shuffled"].ids, strict=True):
        assert sorted(one) == sorted(two)
        assert one != two
    abba, baba, third = (made.sets[f"names_{n}"] for n in ("abba", "baba", "third"))
    for n in range(len(abba)):
        assert sorted(abba.ids[n]) == sorted(baba.ids[n])
        assert abba.ids[n] != third.ids[n]
    assert abba.marks["io"] == third.marks["io"]


def test_places_point_at_what_they_are_about(tokenizer, made):
    text = made.sets["text"]
    for ids, given in zip(text.ids, text.scores["duplicate"], strict=True):
        assert all(ids[q] == ids[k] for q, k in zip(given.queries, given.keys, strict=True))
    for ids, given in zip(text.ids, text.scores["delimiter"], strict=True):
        assert all(not any(c.isalnum() for c in tokenizer.decode([ids[k]])) for k in given.keys)
    answers = made.sets["answers"]
    for ids, at, given in zip(
        answers.ids, answers.marks["final"], answers.scores["final"], strict=True
    ):
        asked = tokenizer.decode(list(ids[: at + 1]))
        assert asked.endswith(("Answer:", "I remember that", "I would say"))
        assert set(given.keys) == {at}
        assert given.queries.tolist() == list(range(at + 1, len(ids)))
    listed = made.sets["lists"]
    for ids, spans in zip(listed.ids, listed.marks["elements"], strict=True):
        text = tokenizer.decode(list(ids[listed.start :]))
        told = [tokenizer.decode(list(ids[a:b])).strip() for a, b in spans]
        assert text.split(":", 1)[1].strip() == ", ".join(told)
    for name in ("names_abba", "names_baba"):
        rows = made.sets[name]
        for ids, given in zip(rows.ids, rows.scores["second"], strict=True):
            assert set(given.queries) == {len(ids) - 1}
            word = tokenizer.decode([ids[k] for k in given.keys])
            assert tokenizer.decode(list(ids)).count(word) == 2


def test_the_same_seed_makes_the_same_rows_and_another_one_others(tokenizer, made):
    def again(seed):
        kwargs = {"sequences": 5, "length": 48, "half": 10, "seed": seed}
        return detectors.material(tokenizer, len(tokenizer), **kwargs).digest

    assert again(3) == made.digest != again(4)


def test_a_text_of_the_user_is_cut_into_rows():
    tokenizer = toy()
    text = "The <s> tool calls a tool.\n" * 40
    found = detectors.material(tokenizer, len(tokenizer), text=text, sequences=3, length=20)
    ids = [i for i in pieces.encode(tokenizer, text) if i != tokenizer.bos_token_id]
    count = len(ids) // 19
    starts = [0, 19 * int((count - 1) / 2), 19 * (count - 1)]
    assert [list(row[1:]) for row in found.sets["text"].ids] == [ids[a : a + 19] for a in starts]
    assert "40 special tokens inside the text were left out" in found.notes
    few = detectors.material(tokenizer, len(tokenizer), text=text, sequences=90, length=20)
    assert any(f"enough for {count} rows" in note for note in few.notes)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sequences": 1}, "1 sequence gives no interval"),
        ({"length": 8}, "too short; take 16 or more"),
        ({"text": "too little"}, "two rows of 256 need 510"),
    ],
)
def test_what_gives_no_rows_is_refused_in_one_line(options, words):
    with pytest.raises(PromptError, match=words) as error:
        detectors.material(toy(), len(toy()), **options)
    assert "\n" not in str(error.value)


def test_without_a_tokenizer_the_rows_are_random_ids():
    found = detectors.material(None, 64, sequences=3, length=20, text="unused")
    assert set(found.sets) == {"random", "repeated"}
    assert found.opening == ()
    assert "no tokenizer" in found.notes[0]
    assert "text was not used" in found.notes[0]
    assert found.detectors == (
        *("previous_random", "induction", "duplicate_random"),
        *("positional", "first", "self", "copying"),
    )


# --- classes -----------------------------------------------------------------------------------


def scores(mean, *, control=0.02, uniform=0.02, rows=32, noise=0.02, seed=0, **more):
    """Scores [row, 1, head] of given means, with noise."""
    rng = np.random.default_rng(seed)
    made = np.asarray(mean)[None, None] + noise * rng.standard_normal((rows, 1, len(mean)))
    return Scores(made, np.full_like(made, uniform), np.full_like(made, control), more)


def test_a_head_is_what_stands_out_of_its_nulls_and_none_where_nothing_does():
    found = detectors.classify(
        {
            "previous": scores([0.9, 0.02, 0.5, 0.31, 0.02]),
            "induction": scores([0.02, 0.8, 0.02, 0.02, 0.02]),
            "first": scores([0.02, 0.95, 0.02, 0.02, 0.02]),
        }
    )
    assert found.primary == [["previous", "induction", "previous", "none", "none"]]
    assert found.also == [[[], ["first"], [], [], []]]
    assert found.heads("first") == [(0, 1)]
    assert found.tests == 15


def test_no_class_without_a_difference_from_the_control():
    assert detectors.classify({"previous": scores([0.9], control=0.9)}).primary == [["none"]]
    assert detectors.classify({"previous": scores([0.9], uniform=0.9)}).primary == [["none"]]


def test_a_class_takes_twice_its_nulls_however_high_they_are():
    for null in ({"control": 0.2}, {"uniform": 0.2}):
        found = detectors.classify({"self": scores([0.35, 0.45], **null)})
        assert found.marked["self"].tolist() == [[False, True]]


def test_noise_among_many_heads_marks_none():
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((16, 40, 40))
    null = np.zeros_like(drawn)
    assert (bounds(drawn, 0.025)[0] > 0.3).any()  # each alone would be
    marked = detectors.classify({"previous": Scores(drawn, null, null)}).marked["previous"]
    assert not marked.any()


def test_other_detectors_have_tests_of_their_own():
    found = detectors.classify(
        {
            "delimiter": scores([0.3, 0.15], uniform=0.1, control=0.05),
            "successor": scores([0.5, 0.42], control=0.4, uniform=0.1),
            "copying": scores([3, -3], control=0, uniform=0, rows=100),
        }
    )
    assert found.marked["delimiter"].tolist() == [[True, False]]
    assert found.marked["successor"].tolist() == [[True, False]]
    assert found.marked["copying"].tolist() == [[True, False]]
    assert found.marked[ANTI].tolist() == [[False, True]]
    assert found.primary == [["successor", ANTI]]
    assert found.also[0][0] == ["copying", "delimiter"]


def test_s_inhibition_needs_both_orders_and_copies_against_the_name():
    rng = np.random.default_rng(0)
    both = 0.4 + 0.01 * rng.standard_normal((30, 1, 3))
    one = np.concatenate([both[..., :1], 0.02 * both[..., 1:2], both[..., 2:]], axis=-1)
    copy = np.array([-1, -1, 1]) + 0.1 * rng.standard_normal((20, 1, 3))
    null = np.full_like(both, 0.05)
    more = {"abba": both, "baba": one, "copy": copy, "copy_other": 0 * copy}
    found = detectors.classify({"s_inhibition": Scores((both + one) / 2, null, null, more)})
    assert found.marked["s_inhibition"].tolist() == [[True, False, False]]
    more["copy_other"] = copy.mean(axis=0) - 0 * copy  # against every name as much
    found = detectors.classify({"s_inhibition": Scores((both + one) / 2, null, null, more)})
    assert not found.marked["s_inhibition"].any()
    del more["copy"]
    found = detectors.classify({"s_inhibition": Scores((both + one) / 2, null, null, more)})
    assert not found.marked["s_inhibition"].any()


def test_a_positional_head_of_offset_1_is_a_previous_token_head():
    rest = scores([0.8, 0.8], offset=np.array([[[1, 4]]]))
    assert detectors.classify({"positional": rest}).primary == [["none", "positional"]]


def test_bounds_are_those_of_the_t_test():
    from scipy import stats

    values = np.random.default_rng(0).standard_normal((9, 2, 3))
    values[3:5, 0, 0] = np.nan
    low, high = bounds(values, 0.01)
    for at in np.ndindex(2, 3):
        own = values[:, *at]
        own = own[np.isfinite(own)]
        wanted = stats.t.interval(0.98, len(own) - 1, own.mean(), stats.sem(own))
        assert (low[at], high[at]) == pytest.approx(wanted)


def test_every_detector_says_what_it_is_compared_with():
    for name, detector in catalogue.DETECTORS.items():
        assert detector.name == name
        assert detector.what
        assert detector.control
        assert detector.threshold > 0
