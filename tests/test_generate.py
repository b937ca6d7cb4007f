"""Generation: mlx_lm's tokens without edits, those of whole runs with them, refusals by name."""

from dataclasses import replace

import architectures
import numpy as np
import pytest
import tiny_models
from mlx_lm.generate import generate_step

import mlxroles
from mlxroles.backend import mx
from mlxroles.edits import Edit, project_out, transplant, zero
from mlxroles.errors import ModelError, PromptError
from mlxroles.models import lasting
from mlxroles.models.generate import Generation, Piece, stop_ids, stream
from mlxroles.models.load import wrap

PROMPT = [int(i) for i in np.random.default_rng(0).integers(0, 32, 11)]
N = 6
"""Tokens generated; with the prompt more than any window of the tiny models."""

PLAIN = ("llama", "gpt2", "gemma2", "dbrx", "hunyuan", "gemma3n")
WINDOWS = ("gemma3_text", "gpt_oss", "cohere2", "llama4", "exaone4")
STATES = ("mamba2", "rwkv7", "lfm2", "qwen3_next", "falcon_h1", "recurrent_gemma")
LATENT = ("deepseek_v3", "kimi_linear", "mistral4")


def vector(model, *shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape or (model.d_model,)).astype(np.float32)


def going_on(model, **how):
    return model.generate(PROMPT, **{"max_tokens": N, "stop": (), "logprobs": True} | how)


def whole(edits=(), prompt_edits=(), generated_edits=(), *, length):
    """The edits of one run of ``length`` tokens that begins with the prompt."""
    n = len(PROMPT)
    spans = [(edits, None), (prompt_edits, range(n)), (generated_edits, range(n, length))]
    return [
        edit if span is None or edit.positions is not None else replace(edit, positions=[*span])
        for group, span in spans
        for edit in group
        if span is None or len(span)
    ]


def log_probs(logits):
    row = logits.astype(mx.float32)
    return np.array(row - mx.logsumexp(row, axis=-1, keepdims=True))


def error(model, made, **edits):
    """Largest difference from a run of the whole text: chosen tokens, and that none is better."""
    ids = [*made.prompt, *made.tokens]
    rows = log_probs(model.run(ids, edits=whole(**edits, length=len(ids))).logits[0])
    rows = rows[len(PROMPT) - 1 : -1]
    chosen = rows[np.arange(N), list(made.tokens)]
    assert np.isfinite(rows).all()
    return max(np.abs(chosen - made.logprobs).max(), (rows.max(axis=1) - chosen).max())


def has(model, site, layer):
    return site not in model.network.block(layer).missing


def cases(model):
    """Edits of every kind that this architecture has, each as keywords."""
    last, n = model.n_layers - 1, len(PROMPT)
    blocks = model.network.anatomy.blocks
    attending = [i for i, b in enumerate(blocks) if b.kind != "none"]
    spot = attending[-1] if attending else 0
    wide = (blocks[spot].d_head,)
    found = [
        {"edits": [Edit("resid_post", 0, vector(model), "add")]},
        {"prompt_edits": [Edit("resid_pre", last, vector(model, n, model.d_model))]},
        {"generated_edits": [zero("mlp_out", last), zero("attn_out", spot)]},
        {"edits": [Edit("attn_out", spot, 2.0, "scale", positions=[2, n - 1, n + 2])]},
        {"edits": [zero("z", spot, heads=[0])]},
        {"edits": [Edit("pattern", spot, 0.25, "scale", heads=[0])]},
        {"generated_edits": [Edit("z", spot, vector(model, *wide), "add", heads=[0])]},
        {"edits": [Edit("q", spot, 2.0, "scale", heads=[0])]},
        {"prompt_edits": [Edit("k", spot, 0.5, "add", heads=[0])]},
        {"generated_edits": [Edit("k", spot, 0.3, "scale")]},
        {"edits": [Edit("v", spot, 3.0, "scale", positions=[1, n - 1, n + 1])]},
    ]
    latent = model.network.anatomy.shortest > 1
    return [
        case
        for case in (found[:6] if latent else found)
        if all(has(model, e.site, e.layer) for group in case.values() for e in group)
    ]


@pytest.mark.parametrize("name", PLAIN + WINDOWS + STATES + LATENT)
def test_generation_under_edits_says_what_runs_of_the_whole_text_say(name):
    model = tiny_models.tiny(name)
    plain = going_on(model)
    assert error(model, plain) < 2e-5
    tried = cases(model)
    assert len(tried) >= 1
    for case in tried:
        made = going_on(model, **case)
        assert error(model, made, **case) < 1e-4, case
        assert np.abs(np.array(made.logprobs) - plain.logprobs).max() > 1e-5, case


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_a_loop_without_a_cache_says_the_same_token_after_token(name):
    model = tiny_models.tiny(name)
    edits = {
        "edits": [Edit("resid_post", 1, vector(model), "add")],
        "prompt_edits": [zero("v", 2, heads=[0])],
        "generated_edits": [project_out("mlp_out", 0, vector(model, seed=2))],
    }
    ids = list(PROMPT)
    for _ in range(8):
        run = model.run(ids, edits=whole(**edits, length=len(ids)), positions="last")
        ids.append(int(mx.argmax(run.logits[0, 0])))
    assert going_on(model, max_tokens=8, **edits).tokens == tuple(ids[len(PROMPT) :])


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "llama4", "qwen3_next"])
def test_a_prompt_that_is_read_in_parts_is_edited_at_the_same_positions(name, monkeypatch):
    monkeypatch.setattr(lasting, "CHUNK", 4)
    model = tiny_models.tiny(name)
    for case in cases(model):
        assert error(model, going_on(model, **case), **case) < 1e-4, case


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "deepseek_v3", "mamba2"])
def test_tokens_without_edits_are_those_of_mlx_lm(name):
    model = tiny_models.tiny(name)
    theirs = [t for t, _ in generate_step(mx.array(PROMPT), model.module, max_tokens=12)]
    assert list(going_on(model, max_tokens=12).tokens) == theirs
    nothing = [Edit("resid_post", 1, 0.0, "add"), Edit("resid_pre", 0, 1.0, "scale")]
    assert list(going_on(model, max_tokens=12, edits=nothing).tokens) == theirs


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_sampled_tokens_are_those_of_mlx_lm_with_the_same_seed(top_p):
    from mlx_lm.sample_utils import make_sampler

    model = tiny_models.tiny("llama")
    state = [np.array(s) for s in mx.random.state]
    how = {"temperature": 0.7, "top_p": top_p, "seed": 5, "max_tokens": 20}
    ours = going_on(model, **how).tokens
    assert all(np.array_equal(np.array(a), b) for a, b in zip(mx.random.state, state, strict=True))
    mx.random.seed(5)
    steps = generate_step(
        mx.array(PROMPT), model.module, max_tokens=20, sampler=make_sampler(0.7, top_p)
    )
    assert ours == tuple(t for t, _ in steps)
    assert ours != going_on(model, **how | {"seed": 6}).tokens


def test_text_and_end_are_those_of_mlx_lm():
    import mlx_lm
    from mlx_lm.utils import load

    model = mlxroles.load("tiny/instruct")
    module, tokenizer = load(str(model.path))
    assert stop_ids(model) == tokenizer.eos_token_ids
    for text in ("<|user|>Hello<|eos|><|assistant|>", "The 10 items are"):
        made = model.generate(text, max_tokens=30)
        assert made.text == mlx_lm.generate(module, tokenizer, text, max_tokens=30)
        assert made.finish == ("stop" if len(made.tokens) < 30 else "length")


def test_pieces_make_up_the_text_and_texts_grow_in_turns():
    model = tiny_models.tiny("llama")
    edit = Edit("resid_post", 1, vector(model), "add")
    plain, edited = going_on(model), going_on(model, edits=[edit])
    how = {"max_tokens": N, "stop": (), "logprobs": True}
    streams = [stream(model, PROMPT, **how), stream(model, PROMPT, edits=[edit], **how)]
    seen: list[list[Piece]] = [[], []]
    for pieces in zip(*streams, strict=True):
        for found, piece in zip(seen, pieces, strict=True):
            found.append(piece)
        model.run(PROMPT, edits=[zero("resid_post", 0)])  # nothing of the tap is left outside
    assert [tuple(p.token for p in found[:-1]) for found in seen] == [plain.tokens, edited.tokens]
    assert "".join(p.text for p in seen[0]) == plain.text
    assert (seen[0][-1].token, seen[0][-1].finish) == (None, "length")
    assert plain.tokens != edited.tokens


def test_a_broken_off_stream_leaves_the_model_as_it_was():
    model = tiny_models.tiny("llama")
    classes = [type(m) for m in model.module.modules()]
    pieces = stream(model, PROMPT, edits=[zero("z", 0)], max_tokens=5, stop=())
    next(pieces)
    assert [type(m) for m in model.module.modules()] == classes
    pieces.close()
    assert [type(m) for m in model.module.modules()] == classes


def test_stop_tokens_end_the_text_and_are_not_part_of_it():
    model = tiny_models.tiny("llama")
    tokens = going_on(model).tokens
    made = going_on(model, stop=[tokens[2]])
    first = tokens.index(tokens[2])
    assert (made.tokens, made.finish) == (tokens[:first], "stop")


def test_a_pattern_may_name_keys_that_are_there():
    model = tiny_models.tiny("llama")
    other = model.run(PROMPT[::-1], keep=["pattern"], layers=[1])["pattern", 1]
    n = len(PROMPT)
    made = going_on(model, prompt_edits=[transplant("pattern", 1, other)])
    grown = mx.pad(other, [(0, 0), (0, 0), (0, 0), (0, N)])
    assert error(model, made, prompt_edits=[transplant("pattern", 1, grown)]) < 1e-4
    rows = np.zeros((1, 1, 2, 3), np.float32)
    rows[..., 1] = 1
    edit = Edit("pattern", 1, rows, positions=[n, n + 1], heads=[2])
    padded = np.zeros((1, 1, 2, n + N), np.float32)
    padded[..., 1] = 1
    made = going_on(model, edits=[edit])
    assert error(model, made, edits=[replace(edit, value=padded)]) < 1e-4


@pytest.mark.parametrize(
    ("name", "how", "told"),
    [
        ("deepseek_v3", {"edits": [zero("k", 1)]}, "keeps latents in place of keys"),
        ("deepseek_v3", {"edits": [Edit("q", 1, 2.0, "scale")]}, "attends in its latent space"),
        (
            "deepseek_v3",
            {"generated_edits": [Edit("z", 1, 1.0, "add")]},
            "scale or zero z, or edit the stream",
        ),
        ("llama", {"edits": [Edit("pattern", 1, 0.5)]}, "keys after the query"),
        ("llama", {"edits": [Edit("pattern", 1, np.ones((2, 5)), positions=[1, 7])]}, "keys after"),
        (
            "gemma3_text",
            {"edits": [Edit("pattern", 0, np.zeros(5), positions=[7])]},
            "names keys, which cannot be found in the cache of layer 0 (RotatingKVCache)",
        ),
        ("mamba2", {"edits": [zero("z", 0)]}, "z cannot be captured from mamba2"),
        ("nanbeige", {"edits": [zero("z", 0)]}, "calls a layer more than once"),
        ("llama", {"edits": [Edit("resid_post", 0, np.nan, "add")]}, "no numbers after 0"),
    ],
)
def test_what_a_cache_cannot_carry_is_refused_by_name(name, how, told):
    model = tiny_models.tiny(name)
    with pytest.raises(ModelError, match=told.replace("(", r"\(").replace(")", r"\)")):
        going_on(model, **how)


def test_edits_of_a_latent_prompt_before_its_last_token_work():
    model = tiny_models.tiny("deepseek_v3")
    case = {"edits": [Edit("z", 1, 1.0, "add", positions=[0, 4])]}
    assert error(model, going_on(model, **case), **case) < 1e-4


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"prompt_edits": [zero("z", 0, positions=[11])]}, "position 11 .* 0..10"),
        ({"generated_edits": [zero("z", 0, positions=[3])]}, "position 3 .* 11..16"),
        ({"edits": [zero("z", 0, positions=[17])]}, "position 17 .* 0..16"),
        ({"edits": [Edit("resid_post", 0, np.zeros((11, 32)))]}, "values for 11 positions"),
        ({"edits": [zero("z", 9)]}, "layer 9 is outside 0..3"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
    ],
)
def test_what_does_not_fit_is_refused(how, told):
    with pytest.raises(ValueError, match=told):
        going_on(tiny_models.tiny("llama"), **how)


@pytest.mark.parametrize("how", [{"max_tokens": 2.5}, {"stop": [1.5]}])
def test_numbers_that_are_not_whole_are_refused(how):
    with pytest.raises(TypeError, match="integer"):
        going_on(tiny_models.tiny("llama"), **how)


def test_prompts_that_cannot_be_are_refused():
    model = tiny_models.tiny("llama")
    with pytest.raises(PromptError, match="outside"):
        model.generate([9999])
    with pytest.raises(PromptError, match="no tokens"):
        model.generate("")
    with pytest.raises(ValueError, match="2 prompts"):
        model.generate([[1, 2], [3, 4]])
    with pytest.raises(TypeError):
        model.generate(PROMPT, temprature=1.0)
    short = wrap(architectures.build("gpt2"), architectures.config("gpt2"), name="gpt2")
    table = short.table_length
    with pytest.raises(PromptError, match=f"table of {table} positions; generate 1 tokens at"):
        short.generate([1] * (table - 1), max_tokens=2)


def test_a_generation_shows_itself_and_runs_nothing():
    made = Generation((1,), (2, 3), "<script>\x1b[2J\nnext", "stop", ("zero <z>",))
    page = made._repr_html_()
    assert "<script>" not in page
    assert "\x1b" not in page
    assert "&lt;script&gt;" in page
    assert "zero &lt;z&gt;" in page
    assert "2 tokens" in repr(made)


def test_edits_are_told_in_words():
    model = tiny_models.tiny("llama")
    made = going_on(
        model,
        edits=[zero("z", 1, heads=[0, 2])],
        prompt_edits=[Edit("resid_post", 0, vector(model), "add", positions=[3])],
        generated_edits=[Edit("mlp_out", 2, mx.array(0.5, mx.bfloat16), "scale")],
    )
    assert made.edits == (
        "zero z of layer 1, heads 0, 2",
        f"add an array of shape {model.d_model} to resid_post of layer 0, position 3 while the "
        "prompt is read",
        "scale mlp_out of layer 2 by 0.5 afterwards",
    )
