"""Measured strings, the numbers of one row of logits, and what a patch did to them."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import special
from scipy.stats import entropy as scipy_entropy
from toy_tokenizers import toy

from mlxroles.errors import PromptError, SpecError
from mlxroles.probes import (
    Peak,
    chain_log_prob,
    effect,
    effects,
    entropy,
    entropy_study,
    first_half_layer,
    kl,
    log_odds,
    log_softmax,
    measure,
    measure_rows,
    peak,
    recovery,
    study_summary,
    targets,
    targets_from_ids,
)

LOGITS = np.array([2.0, 0.0, -1.0, 3.0, 0.5, 3.0], dtype=np.float32)
finite = st.floats(-80, 80, width=32)
rows_of_logits = hnp.arrays(np.float32, st.integers(3, 12), elements=finite)


def decode(token: int) -> str:
    return f"t{token}"


class TestTargets:
    def test_a_special_token_keeps_its_id_and_gains_its_pieces(self):
        tokenizer = toy(extra=("<tool_call>",))
        found = targets(["<tool_call>"], None, tokenizer, vocab_size=320).head
        special_id = tokenizer.convert_tokens_to_ids("<tool_call>")
        piece = tokenizer.encode("<tool", add_special_tokens=False)[0]
        assert piece != special_id
        assert (found.ids, found.chain, found.first) == ((special_id,), (special_id,), special_id)
        assert {special_id, piece} <= set(found.variants)

    def test_variants_are_what_the_string_begins_with_after_a_space_or_line(self):
        tokenizer = toy()
        found = targets(["notes"], None, tokenizer).head
        expected = {
            tokenizer.encode(lead + "notes", add_special_tokens=False)[0] for lead in ("", " ")
        }
        assert expected <= set(found.variants)
        newline = tokenizer.encode("\n", add_special_tokens=False)
        assert not set(newline) & set(found.variants)

    def test_every_variant_begins_the_string(self):
        tokenizer = toy()
        strings = ["save_notes", "<tool_call>", '{"tool"', '"save_notes"', " tool", "é", "🙂"]
        for target in targets(strings, None, tokenizer).strings:
            assert target.first in target.variants
            assert tokenizer.decode(list(target.ids)) == target.text
            for token in target.variants:
                text = tokenizer.decode([token]).strip().rstrip("\ufffd")
                assert target.text.strip().startswith(text)

    def test_order_headline_and_repetitions(self):
        found = targets(["b", "a", "b"], "c", toy())
        assert [target.text for target in found.strings] == ["b", "a", "c"]
        assert found.head.text == found.headline == "c"
        assert targets(["b", "a"], None, toy()).headline == "b"
        assert found.document()["a"]["ids"] == list(found["a"].ids)
        with pytest.raises(KeyError):
            found["missing"]

    def test_sentencepiece_prefix_is_no_part_of_a_string(self, shared):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(shared / "models/stories260K"))
        found = targets(["[", "\n"], "[", tokenizer, vocab_size=512)
        assert (found["["].ids, found["["].chain, found["["].variants) == (
            (410, 508),
            (508,),
            (508,),
        )
        assert (found["\n"].chain, found["\n"].variants) == ((13,), (13,))

    def test_ids_stand_for_one_string(self):
        found = targets_from_ids([5, 6], variants=[9, 5], vocab_size=10)
        assert found.headline == "tokens 5 6"
        assert (found.head.chain, found.head.variants) == ((5, 6), (5, 9))
        assert targets_from_ids([508]).headline == "token 508"
        assert targets_from_ids([508], name="[").headline == "["

    @pytest.mark.parametrize(
        ("call", "says"),
        [
            (lambda: targets([], None, toy()), "no string to measure"),
            (lambda: targets([""], None, toy()), "'' has no token"),
            (lambda: targets(["a"], None, toy(), vocab_size=3), "outside the model's vocabulary"),
            (lambda: targets_from_ids([]), "no token id"),
            (lambda: targets_from_ids([7], vocab_size=7), "id 7, outside the model's .* 0..6"),
            (lambda: targets_from_ids([-1]), "id -1"),
            (lambda: measure(LOGITS, targets_from_ids([6]), decode=decode), "0..5"),
        ],
    )
    def test_what_cannot_be_measured_is_refused(self, call, says):
        with pytest.raises(PromptError, match=says):
            call()


class TestMeasure:
    def test_closed_forms(self):
        found = measure(LOGITS, targets_from_ids([0, 3], variants=[4]), decode=decode, top_k=3)
        p = special.softmax(LOGITS.astype(np.float64))
        assert found["tool_call_prob"] == pytest.approx(p[3], rel=1e-14)
        assert found["p_first_token"] == pytest.approx(p[0], rel=1e-14)
        assert found["p_union"] == pytest.approx(p[0] + p[4], rel=1e-14)
        assert found["log_prob"] == pytest.approx(math.log(p[0]), rel=1e-14)
        assert found["log_odds"] == pytest.approx(math.log(p[0] / (1 - p[0])), rel=1e-13)
        assert found["logit_diff"] == -1.0
        assert found["rank"] == 2
        assert found["entropy"] == pytest.approx(scipy_entropy(p), rel=1e-14)
        assert found["p_chain"] is None
        assert found["strings"] == {
            "tokens 0 3": {
                "max_subtoken": found["tool_call_prob"],
                "p_first": found["p_first_token"],
                "p_chain": None,
            }
        }
        assert [(top["id"], top["token"]) for top in found["top3"]] == [
            (3, "t3"), (5, "t5"), (0, "t0"),
        ]  # fmt: skip
        assert found["top3"][0]["prob"] == pytest.approx(p[3], rel=1e-14)

    def test_chained_probability_of_a_single_token_is_its_own(self):
        found = measure(LOGITS, targets_from_ids([1]), decode=decode)
        assert found["p_chain"] == found["p_first_token"] == found["tool_call_prob"]

    def test_chains_are_given_by_string(self):
        ours = targets_from_ids([0, 3])
        found = measure(LOGITS, ours, decode=decode, chain={"tokens 0 3": math.log(0.25)})
        assert found["p_chain"] == pytest.approx(0.25)
        assert found["strings"]["tokens 0 3"]["p_chain"] == found["p_chain"]

    def test_rows_are_measured_like_single_ones(self):
        rng = np.random.default_rng(0)
        logits = rng.normal(size=(70, 50)).astype(np.float32) * 4
        ours = targets_from_ids([3, 4], variants=[7])
        chains = [{ours.headline: -float(row)} for row in range(70)]
        together = measure_rows(logits, ours, decode=decode, chains=chains)
        for row, chain, found in zip(logits, chains, together, strict=True):
            alone = measure(row, ours, decode=decode, chain=chain)
            assert alone.keys() == found.keys()
            for name in alone.keys() - {"top5", "strings"}:
                assert found[name] == pytest.approx(alone[name], rel=1e-12)
            assert [top["id"] for top in found["top5"]] == [top["id"] for top in alone["top5"]]

    def test_numbers_are_plain_python(self):
        found = measure(LOGITS, targets_from_ids([1]), decode=decode)
        assert type(found["rank"]) is int
        for name in found.keys() - {"rank", "top5", "strings"}:
            assert type(found[name]) is float
        assert {type(value) for top in found["top5"] for value in top.values()} == {int, str, float}

    def test_ties_list_the_lower_ids(self):
        found = measure(np.zeros(9, np.float32), targets_from_ids([8]), decode=decode)
        assert [top["id"] for top in found["top5"]] == [0, 1, 2, 3, 4]
        assert found["rank"] == 0
        assert measure(LOGITS[:2], targets_from_ids([0]), decode=decode, top_k=0)["top0"] == []
        assert len(measure(LOGITS[:2], targets_from_ids([0]), decode=decode)["top5"]) == 2

    def test_a_vocabulary_of_targets_only_has_no_other_token(self):
        found = measure(LOGITS[:2], targets_from_ids([0], variants=[1]), decode=decode)
        assert found["p_union"] == pytest.approx(1.0, rel=1e-15)
        assert found["logit_diff"] == math.inf

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_non_finite_logits_are_refused(self, bad):
        logits = LOGITS.copy()
        logits[2] = bad
        for call in (
            log_softmax,
            entropy,
            lambda row: kl(row, LOGITS),
            lambda row: kl(LOGITS, row),
        ):
            with pytest.raises(ValueError, match="non-finite logits"):
                call(logits)
        with pytest.raises(ValueError, match="non-finite logits"):
            measure(logits, targets_from_ids([0]), decode=decode)

    def test_wrong_shapes_are_refused(self):
        ours = targets_from_ids([0])
        with pytest.raises(ValueError, match="one row"):
            measure(LOGITS[None], ours, decode=decode)
        with pytest.raises(ValueError, match="cells, vocab"):
            measure_rows(LOGITS, ours, decode=decode)
        with pytest.raises(ValueError, match="2 chains for 1 rows"):
            measure_rows(LOGITS[None], ours, decode=decode, chains=[{}, {}])
        with pytest.raises(ValueError, match="2 ids need"):
            chain_log_prob(LOGITS[None], [1, 2])
        with pytest.raises(ValueError, match="two rows"):
            kl(LOGITS, LOGITS[:3])

    @given(rows_of_logits, st.data())
    def test_bounds_and_relations(self, logits, data):
        ids = data.draw(st.lists(st.integers(0, len(logits) - 1), min_size=1, max_size=4))
        found = measure(logits, targets_from_ids(ids, variants=ids[1:]), decode=decode)
        for name in ("tool_call_prob", "p_first_token", "p_union"):
            assert 0 <= found[name] <= 1
        assert found["p_first_token"] <= found["tool_call_prob"] * (1 + 1e-12)
        assert found["p_first_token"] <= found["p_union"] * (1 + 1e-12)
        assert special.expit(found["log_odds"]) == pytest.approx(found["p_first_token"], rel=1e-9)
        assert math.exp(found["log_prob"]) == pytest.approx(found["p_first_token"], rel=1e-12)
        assert 0 <= found["entropy"] <= math.log(len(logits)) * (1 + 1e-12)
        assert found["rank"] == sorted(logits, reverse=True).index(logits[ids[0]])
        expected = sorted(range(len(logits)), key=lambda token: (-logits[token], token))[:5]
        assert [top["id"] for top in found["top5"]] == expected

    @given(rows_of_logits, st.floats(-50, 50, width=32))
    def test_a_constant_on_all_logits_changes_nothing(self, logits, shift):
        logits = logits.astype(np.float64)
        before = measure(logits, targets_from_ids([1]), decode=decode)
        after = measure(logits + shift, targets_from_ids([1]), decode=decode)
        for name in ("p_first_token", "log_odds", "logit_diff", "entropy"):
            assert after[name] == pytest.approx(before[name], rel=1e-9, abs=1e-9)


class TestFormulas:
    @given(rows_of_logits)
    def test_log_softmax_agrees_with_scipy(self, logits):
        expected = special.log_softmax(logits.astype(np.float64))
        np.testing.assert_allclose(log_softmax(logits), expected, rtol=1e-12, atol=1e-12)

    def test_log_odds_do_not_saturate(self):
        logits = np.array([100.0, 0.0, 0.0], dtype=np.float32)
        assert log_odds(logits, [0]) == pytest.approx(100 - math.log(2), rel=1e-14)
        assert log_odds(logits, [1]) == pytest.approx(-100, rel=1e-14)
        assert log_odds(logits, [0, 1, 2]) == math.inf
        assert log_odds(logits, [0, 0]) == log_odds(logits, [0])

    @given(rows_of_logits)
    def test_log_odds_of_a_set_and_of_its_complement_are_opposite(self, logits):
        ids = list(range(len(logits)))
        ours, others = log_odds(logits, ids[:2]), log_odds(logits, ids[2:])
        assert ours == pytest.approx(-others, rel=1e-9, abs=1e-9)

    def test_entropy_of_flat_and_of_certain_rows(self):
        assert entropy(np.zeros((2, 8))) == pytest.approx([math.log(8)] * 2, rel=1e-14)
        assert entropy(np.array([2000.0, 0.0])) == 0.0
        assert entropy_study(np.array([2000.0, 0.0])) == 0.0
        p = special.softmax(LOGITS.astype(np.float64))
        assert entropy_study(LOGITS) == round(float(-(p * np.log(p + 1e-10)).sum()), 4)

    @given(rows_of_logits, st.data())
    def test_kl_agrees_with_scipy_and_its_direction(self, logits, data):
        other = data.draw(hnp.arrays(np.float32, len(logits), elements=st.floats(-8, 8, width=32)))
        p, q = (special.softmax(row.astype(np.float64)) for row in (logits, other))
        assert kl(logits, other) == pytest.approx(scipy_entropy(p, q), rel=1e-7, abs=1e-12)
        assert kl(logits, logits) == 0.0

    def test_chained_log_probability_is_the_sum_over_the_rows(self):
        rows = np.random.default_rng(1).normal(size=(3, 7)).astype(np.float32)
        each = [special.log_softmax(rows[i].astype(float)) for i in range(3)]
        expected = each[0][2] + each[1][0] + each[2][6]
        assert chain_log_prob(rows, [2, 0, 6]) == pytest.approx(expected, rel=1e-13)

    @given(hnp.arrays(np.float32, (6, 5), elements=finite))
    def test_chained_probabilities_of_all_continuations_sum_to_one(self, logits):
        first, then = logits[0], logits[1:]
        pairs = itertools.product(range(5), repeat=2)
        total = sum(math.exp(chain_log_prob(np.stack([first, then[a]]), [a, b])) for a, b in pairs)
        assert total == pytest.approx(1.0, abs=1e-12)

    def test_chained_probability_never_exceeds_that_of_the_first_token(self):
        rows = np.random.default_rng(2).normal(size=(2, 9)).astype(np.float32)
        ours = targets_from_ids([4, 5])
        chain = {ours.headline: chain_log_prob(rows, ours.head.chain)}
        found = measure(rows[0], ours, decode=decode, chain=chain)
        assert found["p_chain"] <= found["p_first_token"]

    def test_many_rows_of_a_large_vocabulary(self):
        logits = np.random.default_rng(3).normal(size=(3, 128_256)).astype(np.float32)
        found = measure_rows(logits, targets_from_ids([5]), decode=decode)
        best = np.argsort(-logits[1], kind="stable")[:5]
        assert [top["id"] for top in found[1]["top5"]] == best.tolist()


def numbers(prob: float) -> dict[str, float]:
    return {
        "tool_call_prob": prob,
        "p_first_token": prob,
        "log_odds": math.log(prob / (1 - prob)),
        "logit_diff": 10 * prob,
    }


class TestEffects:
    def test_recovery_is_zero_at_the_recipient_and_one_at_the_donor(self):
        assert recovery(0.2, 0.2, 0.6) == 0.0
        assert recovery(0.6, 0.2, 0.6) == 1.0
        assert recovery(0.0, 0.2, 0.6) == pytest.approx(-0.5)

    @pytest.mark.parametrize("donor", [0.2, 0.2 + 9e-7, math.inf, math.nan])
    def test_recovery_of_no_difference_is_not_a_number(self, donor):
        assert math.isnan(recovery(0.4, 0.2, donor))

    def test_numbers_per_layer(self):
        recipient, donor = numbers(0.1), numbers(0.9)
        found = effects(
            {4: numbers(0.9), 1: numbers(0.1), 2: numbers(0.5)}, recipient=recipient, donor=donor
        )
        assert list(found) == [1, 2, 4]
        assert [found[layer]["effect"] for layer in found] == pytest.approx([0, 0.4, 0.8])
        assert [found[layer]["recovery"] for layer in found] == pytest.approx([0, 0.5, 1])
        assert [found[layer]["recovery_prob"] for layer in found] == pytest.approx([0, 0.5, 1])
        assert found[2]["effect_log_odds"] == pytest.approx(math.log(9))
        assert math.isnan(found[1]["increment"])
        assert [found[layer]["increment"] for layer in (2, 4)] == pytest.approx([0.5, 0.5])

    def test_another_metric_can_be_recovered(self):
        found = effect(
            numbers(0.3), recipient=numbers(0.1), donor=numbers(0.9), metric="logit_diff"
        )
        assert found["recovery"] == pytest.approx(0.25)

    def test_a_failed_cell_is_not_a_number_and_breaks_the_increments(self):
        cells = {0: numbers(0.1), 1: None, 2: numbers(0.9), 3: numbers(0.9)}
        found = effects(cells, recipient=numbers(0.1), donor=numbers(0.9))
        assert all(math.isnan(value) for value in found[1].values())
        assert found[1].keys() == found[0].keys()
        assert math.isnan(found[2]["increment"])
        assert found[3]["increment"] == 0.0

    def test_peak_is_the_first_largest_absolute_effect(self):
        assert peak({3: -0.5, 1: 0.5, 2: math.nan, 0: 0.1}, 32) == Peak(1, 0.5, 3.1)
        assert peak({7: -0.2}, 28) == Peak(7, -0.2, 25.0)
        assert peak({0: math.nan}, 28) == Peak(None, None, None)
        with pytest.raises(SpecError, match=r"no layer was tested.*0\.\.27"):
            peak({}, 28)

    def test_study_summary_names_both_directions(self):
        found = study_summary(instruct_to_base={0: 0.1, 5: 0.2}, base_to_instruct=None, n_layers=6)
        assert found == {
            "i2b_peak_layer": 5, "i2b_peak_effect": 0.2, "i2b_peak_depth_pct": 83.3,
            "b2i_peak_layer": None, "b2i_peak_effect": None, "b2i_peak_depth_pct": None,
        }  # fmt: skip

    def test_first_layer_at_one_half(self):
        assert first_half_layer({5: 0.9, 3: 0.5, 1: 0.49, 2: math.nan}) == 3
        assert first_half_layer({1: 0.2, 2: math.nan}) is None
        assert first_half_layer({}) is None
