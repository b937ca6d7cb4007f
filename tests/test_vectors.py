"""Vectors of the residual stream: made from a model, bound to their layers, put to work."""

import numpy as np
import pytest
from tiny_models import in_dtype, off, tiny, to_numpy

from mlxroles import vectors
from mlxroles.backend import mx
from mlxroles.edits import Edit
from mlxroles.errors import PromptError, VectorError
from mlxroles.models.load import load, wrap
from mlxroles.models.model import Model
from mlxroles.pairs import resolve
from mlxroles.vectors import Vectors

WORDS = ["volcano", "chess", "honey"]
CONTRASTS = ["llama", "gemma2", "deepseek_v3", "gpt_oss", "gpt2", "mamba2", "qwen3_next"]
"""Plain, soft-capped, latent attention, sinks, learned positions, no attention, mixed."""
A, B = [7, 3, 9, 14, 2, 5], [4, 8, 1, 11]


@pytest.fixture(scope="module")
def model() -> Model:
    return load("tiny/instruct", scan=False)


@pytest.fixture(scope="module")
def concepts(model) -> Vectors:
    return vectors.concept(model, WORDS, vectors.baseline()[:12])


def some(names=("a", "b"), layers=(0, 2, 3), d_model=4) -> Vectors:
    """Vectors of which the second is not of layer 2."""
    rng = np.random.default_rng(0)
    array = rng.standard_normal((len(names), len(layers), d_model), dtype=np.float32)
    array[1:, 1] = np.nan
    return Vectors(tuple(names), array, tuple(layers), meta={n: {"how": n} for n in names})


# --- where a vector is ----------------------------------------------------------------------------


def test_a_vector_is_had_for_the_layers_it_was_taken_from_and_no_other():
    made = some()
    assert made.layers_of("a") == (0, 2, 3)
    assert made.layers_of("b") == (0, 3)
    assert np.array_equal(made.at("b", 3), made.array[1, 2])
    for layer in (1, 2, 4, -1):
        with pytest.raises(VectorError, match=f"not taken from layer {layer}, but from 0, 3"):
            made.at("b", layer)


def test_an_unknown_name_is_told_with_the_nearest():
    made = some(("ocean", "forest"))
    with pytest.raises(VectorError, match="no vector 'oceans'; did you mean 'ocean'"):
        made.at("oceans", 0)
    with pytest.raises(VectorError, match="no vector 'xyz'; there are ocean, forest"):
        made.subset(["xyz"])


def test_a_subset_keeps_the_layers_that_it_has():
    made = some().subset(["b"])
    assert (made.names, made.layers, made.meta) == (("b",), (0, 3), {"b": {"how": "b"}})
    assert made.single == "b"
    with pytest.raises(VectorError, match="2 vectors"):
        _ = some().single


def test_some_layers_only():
    made = some().at_layers([2, 7])
    assert (made.names, made.layers) == (("a",), (2,))
    with pytest.raises(VectorError, match="no vector was taken from layer 1"):
        some().at_layers([1])


def test_vectors_of_several_files_stand_together():
    one, two = some(("a", "b")), some(("c", "d"), (2, 5, 6))
    made = vectors.merge([one, two])
    assert (made.names, made.layers) == (("a", "b", "c", "d"), (0, 2, 3, 5, 6))
    for part in (one, two):
        for name in part.names:
            assert made.layers_of(name) == part.layers_of(name)
            for layer in part.layers_of(name):
                assert np.array_equal(made.at(name, layer), part.at(name, layer))
    with pytest.raises(ValueError, match="each once"):
        vectors.merge([one, one])


def test_length_and_direction():
    made = some()
    assert made.norm("a", 2) == pytest.approx(np.sqrt((made.at("a", 2) ** 2).sum()), rel=1e-6)
    assert np.allclose(made.unit("a", 2) * made.norm("a", 2), made.at("a", 2), rtol=1e-6)
    none = Vectors(("zero",), np.zeros((1, 1, 3)), (1,))
    with pytest.raises(VectorError, match="length 0"):
        none.unit("zero", 1)


@pytest.mark.parametrize(
    ("names", "array", "layers"),
    [
        (("a",), np.zeros((1, 2, 3)), (0,)),
        (("a", "a"), np.zeros((2, 1, 3)), (0,)),
        (("a\n",), np.zeros((1, 1, 3)), (0,)),
        (("a",), np.zeros((1, 2, 3)), (1, 0)),
        (("a",), np.full((1, 1, 3), np.nan), (0,)),
        (("a",), np.array([[[0.0, np.nan, 1.0]]]), (0,)),
        (("a",), np.array([[[0.0, np.inf, 1.0]]]), (0,)),
    ],
)
def test_what_cannot_be_vectors_is_refused(names, array, layers):
    with pytest.raises(ValueError, match=r"vectors|layers|finite"):
        Vectors(names, array, layers)


def test_vectors_in_a_notebook_show_names_layers_and_lengths():
    made = some(("<script>a", "b"))
    shown = made._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;a</td><td>0, 2-3</td>" in shown
    assert "resid_post, d_model 4" in shown
    assert repr(made) == "Vectors(<script>a, b: resid_post of layers 0, 2-3, d_model 4)"


def test_vectors_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        some().array[0] = 0


# --- where they come from -------------------------------------------------------------------------


def test_a_contrast_is_what_transformers_has_after_each_block(model):
    torch = pytest.importorskip("torch")
    from oracles import blocks
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(resolve("tiny/instruct"), dtype=torch.float32)
    toward, away = [A, [*B, 6]], [B, A[:3], [2, 2]]
    seen: list[np.ndarray] = []

    def keep(_module, _inputs, output):
        seen.append((output[0] if isinstance(output, tuple) else output)[0, -1].numpy())

    for block in blocks(theirs):
        block.register_forward_hook(keep)
    with torch.no_grad():
        for row in [*toward, *away]:
            theirs(torch.tensor([row]), use_cache=False)
    ends = np.stack(seen).reshape(5, model.n_layers, model.d_model).astype(np.float64)
    expected = ends[:2].mean(axis=0) - ends[2:].mean(axis=0)
    made = vectors.contrast(model, toward, away)
    assert made.layers == tuple(range(model.n_layers))
    for layer in made.layers:
        assert np.abs(made.at("contrast", layer) - expected[layer]).max() < 1e-4


def test_prompts_of_any_lengths_give_what_each_gives_alone(model):
    rng = np.random.default_rng(1)
    lengths = [5, 3, 5, 40, 3, 1, 5]
    rows = [rng.integers(0, 300, size=n).tolist() for n in lengths]
    found = vectors.last_streams(model, rows, [1, 4])
    for row, ends in zip(rows, found, strict=True):
        run = model.run([row], keep=["resid_post"], layers=[1, 4])
        alone = np.stack([to_numpy(run["resid_post", layer])[0, -1] for layer in (1, 4)])
        assert np.abs(ends - alone).max() < 1e-4


def test_a_concept_is_its_prompt_less_the_mean_of_the_baseline(model, concepts):
    from mlxroles.prompts import Message, Prompt, encode

    def end(word: str, layer: int) -> np.ndarray:
        said = Message("user", f"Tell me about {word}")
        ids = encode(Prompt("p", messages=(said,)), model.tokenizer, vocab_size=model.vocab)
        run = model.run([ids.tolist()], keep=["resid_post"], layers=[layer])
        return to_numpy(run["resid_post", layer])[0, -1].astype(np.float64)

    for layer in (0, 3):
        mean = np.mean([end(word, layer) for word in vectors.baseline()[:12]], axis=0)
        for word in WORDS:
            assert np.abs(concepts.at(word, layer) - (end(word, layer) - mean)).max() < 1e-4
    assert concepts.meta["chess"]["baseline"] == 12


def test_a_baseline_word_that_is_a_concept_is_left_out(model):
    made = vectors.concept(model, ["Chess"], ["table", "chess", "TABLE", "lamp"], layers=[2])
    alike = vectors.concept(model, ["Chess"], ["lamp", "TABLE"], layers=[2])
    assert np.allclose(made.array, alike.array, atol=1e-6)
    with pytest.raises(PromptError, match="every baseline word is a concept"):
        vectors.concept(model, ["chess"], ["Chess"])


@pytest.mark.parametrize(
    ("words", "template", "said"),
    [
        ([], "{word}", "no concept word"),
        (["a", "A "], "{word}", "'A' is given twice"),
        (["a", " "], "{word}", "is empty"),
        (["a"], "Tell me", "has no {word}"),
    ],
)
def test_words_that_make_no_concept(model, words, template, said):
    with pytest.raises(PromptError, match=said):
        vectors.concept(model, words, ["table"], template)


def test_a_contrast_needs_both_sides_and_words_a_tokenizer(model):
    with pytest.raises(PromptError, match="none away"):
        vectors.contrast(model, [A], [])
    with pytest.raises(PromptError, match="no tokenizer to read words with"):
        vectors.concept(tiny("llama"), ["a"], ["b"])


def test_the_packaged_words_do_not_overlap():
    concepts, baseline = vectors.concepts(), vectors.baseline()
    assert len(concepts) >= 50
    assert len(baseline) >= 100
    for words in (concepts, baseline):
        assert len({*words}) == len(words)
        assert all(word.isascii() and word.isalpha() and word.islower() for word in words)
    for concept in concepts:
        for word in baseline:
            assert concept not in word, (concept, word)
            assert word not in concept or len(word) < 4, (concept, word)


# --- what they do ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTRASTS)
def test_adding_b_minus_a_at_the_last_token_is_patching_it(name):
    model = tiny(name)
    donor = model.run([B], keep=["resid_post"])
    made = vectors.contrast(model, [B], [A])
    last = len(A) - 1
    for layer in range(model.n_layers):
        value = donor["resid_post", layer][:, -1:]
        patch = Edit("resid_post", layer, value, positions=[last])
        added = vectors.edit(made, "contrast", layer, positions=[last])
        assert (
            off(model.run([A], edits=[added]).logits, model.run([A], edits=[patch]).logits) < 1e-4
        )


@pytest.mark.parametrize("name", ["llama", "gemma2", "mamba2"])
def test_strength_zero_changes_nothing_at_all(name):
    model = tiny(name)
    made = vectors.contrast(model, [B], [A])
    edits = [vectors.edit(made, "contrast", layer, 0.0) for layer in made.layers]
    assert mx.array_equal(model.run([A], edits=edits).logits, model.run([A]).logits)


def test_strength_multiplies(model, concepts):
    clean = model.run([A], keep=["resid_post"])
    run = model.run([A], keep=["resid_post"], edits=[vectors.edit(concepts, "chess", 2, -3.0)])
    expected = to_numpy(clean["resid_post", 2]) - 3 * concepts.at("chess", 2)
    assert np.abs(to_numpy(run["resid_post", 2]) - expected).max() < 1e-4


def test_a_projected_direction_is_gone_and_the_rest_stays(model, concepts):
    edit = vectors.edit(concepts, "honey", 3, op="project", positions=[1, 4])
    clean = to_numpy(model.run([A], keep=["resid_post"])["resid_post", 3])[0].astype(np.float64)
    found = to_numpy(model.run([A], keep=["resid_post"], edits=[edit])["resid_post", 3])[0]
    unit = concepts.at("honey", 3).astype(np.float64)
    unit /= np.linalg.norm(unit)
    expected = clean.copy()
    expected[[1, 4]] -= np.outer(clean[[1, 4]] @ unit, unit)
    assert np.abs(found - expected).max() < 1e-4
    assert np.abs(found[[1, 4]] @ unit).max() < 1e-4


def test_a_vector_is_put_to_work_at_its_own_layer_only():
    with pytest.raises(VectorError, match="a vector acts at its own layer"):
        vectors.edit(some(), "b", 2)


def test_noise_is_as_long_as_the_vector_and_points_anywhere():
    vector = np.random.default_rng(0).standard_normal(512) * 7
    noise = vectors.matched_noise(vector, 200, np.random.default_rng(3))
    assert noise.shape == (200, 512)
    assert noise.dtype == np.float32
    lengths = np.linalg.norm(noise.astype(np.float64), axis=1)
    assert np.abs(lengths / np.linalg.norm(vector) - 1).max() < 1e-6
    cosines = noise @ vector / np.linalg.norm(vector) ** 2
    assert abs(cosines.mean()) < 4 / np.sqrt(512 * 200)
    assert cosines.std() == pytest.approx(1 / np.sqrt(512), rel=0.2)
    again = vectors.matched_noise(vector, 200, np.random.default_rng(3))
    assert np.array_equal(noise, again)
    assert not vectors.matched_noise(np.zeros(3), 2, np.random.default_rng(0)).any()


@pytest.mark.parametrize("vector", [np.zeros((2, 3)), np.zeros(0), np.array([1.0, np.nan])])
def test_noise_for_no_vector_is_refused(vector):
    with pytest.raises(VectorError, match="one finite vector"):
        vectors.matched_noise(vector, 2, np.random.default_rng(0))


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_a_model_of_fewer_bits_gives_and_takes_float32_vectors(dtype):
    model = wrap(in_dtype(tiny("llama").module, dtype), tiny("llama").config)
    made = vectors.contrast(model, [B], [A])
    assert made.array.dtype == np.float32
    run = model.run([A], keep=["resid_post"], edits=[vectors.edit(made, "contrast", 1)])
    assert run["resid_post", 1].dtype == dtype
    clean = model.run([A], keep=["resid_post"])
    moved = to_numpy(run["resid_post", 1]) - to_numpy(clean["resid_post", 1])
    assert np.abs(moved - made.at("contrast", 1)).max() < 0.05
