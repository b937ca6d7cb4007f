"""The lens against mlx_lm's own logits, transformers' norm and head, and numpy on whole rows."""

import architectures
import numpy as np
import pytest
import tiny_models
from tiny_models import to_numpy

from mlxroles import lens
from mlxroles.backend import mx
from mlxroles.edits import Edit, zero
from mlxroles.errors import MlxrolesError, ModelError, PromptError, SpecError
from mlxroles.lens import Settings, Tuned, fitting
from mlxroles.models.load import wrap

IDS = [3, 7, 11, 5, 9, 2, 30, 31, 17, 3, 7, 11]
BROKEN = {"olmo", "iquestloopcoder", "nanbeige", "phi3small"}
NO_LENS = BROKEN | {"deepseek_v41", "gemma3n", "kimi_k3"}
ARCHITECTURES = architectures.names()


def log_softmax(rows):
    rows = rows.astype(np.float64)
    return rows - np.logaddexp.reduce(rows, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def llama():
    return wrap(tiny_models.tiny_llama(1), tiny_models.LLAMA, name="llama")


# --- what the model itself says -------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_last_layer_says_what_mlx_lm_says(name):
    try:
        model = tiny_models.tiny(name)
    except (ValueError, ImportError, RuntimeError, KeyError, TypeError, AttributeError):
        assert name in BROKEN
        return
    if name in NO_LENS:
        with pytest.raises((ModelError, FloatingPointError), match=f"{name}|finite"):
            lens.read(model, IDS)
        return
    found = lens.read(model, IDS, asked=[5], top_k=3)
    plain = model.module(mx.array([IDS]))
    logits = to_numpy(plain[0] if isinstance(plain, tuple) else plain)[0]
    logs = log_softmax(logits)
    assert found.end_error <= 1e-5
    assert np.abs(found.last_logits[-1] - logits[-1]).max() <= 1e-5
    assert np.abs(found.asked_log_prob[-1, :, 0] - logs[:, 5]).max() <= 1e-5
    top = np.sort(logs, axis=-1)[:, ::-1][:, :3]
    assert np.abs(found.top_log_prob[-1] - top).max() <= 1e-5
    assert found.kl[-1].max() <= 1e-6
    assert found.end_rank[-1].max() == 0
    if model.n_layers > 1:
        assert found.kl[0].max() > 1e-3


def test_a_head_that_reads_more_than_the_stream_is_refused_by_its_numbers():
    with pytest.raises(ModelError, match="kimi_k3: its last layer's stream gives logits"):
        lens.read(tiny_models.tiny("kimi_k3"), IDS)


@pytest.mark.parametrize("family", ["gemma2", "gpt2"])
def test_every_layer_is_transformers_norm_and_head(family, tmp_path):
    torch = pytest.importorskip("torch", reason="the oracle is transformers (extra 'test')")
    import oracles

    from mlxroles.models.load import load

    theirs = oracles.save(family, tmp_path)
    streams = []
    for block in oracles.blocks(theirs):
        block.register_forward_hook(
            lambda _m, _i, out: streams.append(out[0] if isinstance(out, tuple) else out)
        )
    ids = [int(i) for i in oracles.tokens(12)[0]]
    body = theirs.transformer if family == "gpt2" else theirs.model
    norm = body.ln_f if family == "gpt2" else body.norm
    with torch.no_grad():
        theirs(torch.tensor([ids]), use_cache=False)
        rows = theirs.lm_head(norm(torch.stack(streams)[:, 0]))
        if family == "gemma2":
            rows = 30 * torch.tanh(rows / 30)
    wanted = log_softmax(rows.numpy())
    model = load(tmp_path, scan=False)
    asked = [0, 5, 77, 300, oracles.VOCABULARY - 1]
    found = lens.read(model, ids, asked=asked, top_k=10)
    assert np.abs(found.asked_log_prob - wanted[..., asked]).max() <= 2e-4
    assert np.abs(found.top_log_prob - np.sort(wanted)[..., ::-1][..., :10]).max() <= 2e-4
    entropy = -(np.exp(wanted) * wanted).sum(-1)
    assert np.abs(found.entropy - entropy).max() <= 2e-4


# --- numbers of a reading -------------------------------------------------------------------------


def plain_rows(model, site, ids=IDS, edits=()):
    """Log-probabilities [layer, position, vocab] one stream at a time, and those of the run."""
    run = model.run([ids], keep=[site], edits=edits)
    rows = [to_numpy(model.unembed(run[site, i]))[0] for i in run.layers(site)]
    return np.stack(rows), to_numpy(run.logits)[0]


@pytest.mark.parametrize("site", lens.SITES)
def test_every_number_is_that_of_the_whole_rows(llama, site):
    rows, own = plain_rows(llama, site)
    logs, end = log_softmax(rows), log_softmax(own)
    found = lens.read(llama, IDS, site=site, asked=[4, 60], top_k=4)
    assert found.layers == tuple(range(4))
    assert found.positions == tuple(range(len(IDS)))
    order = np.argsort(-rows, axis=-1, kind="stable")[..., :4]
    assert np.array_equal(found.top_ids, order)
    assert np.abs(found.entropy + (np.exp(logs) * logs).sum(-1)).max() <= 1e-5
    kl = (np.exp(end)[None] * (end[None] - logs)).sum(-1)
    assert np.abs(found.kl - kl).max() <= 1e-5
    said = own.argmax(-1)
    assert np.array_equal(found.end_ids, said)
    at_end = np.take_along_axis(rows, said[None, :, None], axis=-1)
    assert np.array_equal(found.end_rank, (rows > at_end).sum(-1))
    following = np.array(IDS[1:])
    next_logs = np.take_along_axis(logs[:, :-1], following[None, :, None], axis=-1)[..., 0]
    assert np.abs(found.next_log_prob[:, :-1] - next_logs).max() <= 1e-5
    assert np.isnan(found.next_log_prob[:, -1]).all()
    for n, token in enumerate((4, 60)):
        assert np.abs(found.asked_log_prob[..., n] - logs[..., token]).max() <= 1e-5
        assert np.array_equal(found.asked_rank[..., n], (rows > rows[..., [token]]).sum(-1))


def test_blocks_and_chosen_positions_change_nothing(llama, monkeypatch):
    whole = lens.read(llama, IDS, asked=[8])
    monkeypatch.setattr("mlxroles.lens.projection.BLOCK", 4 * llama.vocab * 5)
    parts = lens.read(llama, IDS, asked=[8], positions=[-1, 3, 0], layers=[1, 3])
    assert parts.positions == (0, 3, 11)
    assert parts.layers == (1, 3)
    for name in ("top_ids", "kl", "entropy", "end_rank", "asked_log_prob"):
        wanted = getattr(whole, name)[[1, 3]][:, [0, 3, 11]]
        assert np.abs(getattr(parts, name) - wanted).max() <= 1e-5
    assert parts.last_logits.shape == (2, llama.vocab)


def test_a_stream_before_a_block_is_the_one_after_the_block_before(llama):
    before = lens.read(llama, IDS, site="resid_pre")
    after = lens.read(llama, IDS)
    assert np.abs(before.entropy[1:] - after.entropy[:-1]).max() <= 1e-5
    assert np.isnan(before.end_error)


def test_the_lens_of_an_edited_run(llama):
    edits = [zero("attn_out", 1), Edit("resid_post", 2, mx.ones((32,)), "add", positions=[11])]
    found = lens.read(llama, IDS, edits=edits)
    rows, own = plain_rows(llama, "resid_post", edits=edits)
    clean = lens.read(llama, IDS)
    assert np.abs(found.last_logits - rows[:, -1]).max() <= 1e-5
    assert np.abs(found.end_logits - own[-1]).max() <= 1e-6
    assert np.abs(found.kl[0] - clean.kl[0]).max() > 1e-3  # another end
    assert np.abs(found.entropy[0] - clean.entropy[0]).max() <= 1e-6  # before any edit
    assert np.abs(found.entropy[3, 11] - clean.entropy[3, 11]) > 1e-4


def test_a_notebook_shows_a_table_without_markup_from_tokens(llama):
    found = lens.read(llama, IDS, layers=[0, 3])
    assert repr(found) == "Reading of resid_post: 2 layers x 12 positions, top 5 tokens, kl, ranks"
    object.__setattr__(found, "decode", lambda ids: ["<b>\x1b"] * len(ids))
    assert "<b>" not in found._repr_html_()
    assert found._repr_html_().count("<tr>") == 3


def test_half_precision_is_read_in_its_own_type():
    for dtype in (mx.bfloat16, mx.float16):
        module = tiny_models.in_dtype(tiny_models.tiny_llama(1), dtype)
        found = lens.read(wrap(module, tiny_models.LLAMA), IDS)
        assert found.end_error <= 0.05
        assert found.end_rank[-1].max() == 0


def test_wrong_questions_are_answered_with_what_is_wrong(llama):
    with pytest.raises(ModelError, match="no lens on 'q'; the sites are resid_pre"):
        lens.read(llama, IDS, site="q")
    with pytest.raises(ValueError, match="position 12 is outside"):
        lens.read(llama, IDS, positions=[12])
    with pytest.raises(ValueError, match="token id 64 is outside"):
        lens.read(llama, IDS, asked=[64])
    with pytest.raises(PromptError):
        lens.read(llama, [])
    parallel = tiny_models.tiny("cohere")
    with pytest.raises(ModelError, match="resid_mid cannot be captured from cohere"):
        lens.read(parallel, IDS, site="resid_mid")


# --- the tuned lens -------------------------------------------------------------------------------


def tuned_of(model, seed, scale=0.05):
    rng = np.random.default_rng(seed)
    n, d = model.n_layers - 1, model.d_model
    weight = scale * rng.standard_normal((n, d, d), dtype=np.float32)
    bias = rng.standard_normal((n, d), dtype=np.float32)
    return Tuned("resid_post", tuple(range(n)), weight, bias, {"sha256": "x"}, {"texts": 3})


def test_a_tuned_lens_maps_the_stream_and_leaves_the_last_layer_alone(llama):
    tuned = tuned_of(llama, 2)
    found = lens.read(llama, IDS, tuned=tuned)
    run = llama.run([IDS], keep=["resid_post"])
    h = to_numpy(run["resid_post", 1])
    row = to_numpy(llama.unembed(mx.array(h + h @ tuned.weight[1] + tuned.bias[1])))[0, -1]
    assert np.abs(found.last_logits[1] - row).max() <= 1e-4
    assert np.abs(found.last_logits[3] - to_numpy(run.logits)[0, -1]).max() <= 1e-5
    nothing = Tuned("resid_post", (0, 1, 2), tuned.weight * 0, tuned.bias * 0)
    plain = lens.read(llama, IDS)
    assert np.abs(lens.read(llama, IDS, tuned=nothing).kl - plain.kl).max() <= 1e-6


def test_the_file_keeps_every_number_and_refuses_what_is_no_tuned_lens(llama, tmp_path):
    tuned, path = tuned_of(llama, 3), tmp_path / "t.safetensors"
    lens.write_tuned(path, tuned)
    again = lens.read_tuned(path, d_model=32)
    assert np.array_equal(again.weight, tuned.weight)
    assert np.array_equal(again.bias, tuned.bias)
    assert (again.site, again.layers) == ("resid_post", (0, 1, 2))
    assert (again.model, again.meta) == ({"sha256": "x"}, {"texts": 3})
    with pytest.raises(SpecError, match="for streams 32 wide; this model's are 64"):
        lens.read_tuned(path, d_model=64)
    other = tmp_path / "other.safetensors"
    mx.save_safetensors(str(other), {"x": mx.zeros((2,))})
    with pytest.raises(SpecError, match="is no tuned lens"):
        lens.read_tuned(other)
    other.write_bytes(path.read_bytes()[:200])
    with pytest.raises(SpecError, match="no readable safetensors"):
        lens.read_tuned(other)
    lens.write_tuned(other, Tuned("resid_post", (0,), tuned.weight[:1] * np.nan, tuned.bias[:1]))
    with pytest.raises(SpecError, match="damaged tuned lens"):
        lens.read_tuned(other)
    for wrong, said in ((tmp_path, "is a folder"), (tmp_path / "no", "does not exist")):
        with pytest.raises(SpecError, match=said):
            lens.read_tuned(wrong)


def test_a_tuned_lens_that_does_not_fit_is_refused(llama):
    tuned = tuned_of(llama, 4)
    for wrong, said in (
        ({"site": "resid_pre"}, "fitted on resid_post, and cannot read resid_pre"),
        ({"tuned": Tuned("resid_post", (0, 1), tuned.weight, tuned.bias)}, r"\[0, 1\], and not 2"),
        (
            {"tuned": Tuned("resid_post", (0,), np.zeros((1, 8, 8)), np.zeros((1, 8)))},
            "8 wide; this model's are 32",
        ),
    ):
        with pytest.raises(SpecError, match=said):
            lens.read(llama, IDS, **{"tuned": tuned, **wrong})


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(5)
    return [[int(i) for i in rng.integers(0, 64, 24)] for _ in range(30)]


def test_fitting_brings_the_lens_nearer_to_the_answer_on_unseen_texts(llama, texts):
    parts = fitting.split(len(texts), np.random.default_rng(0))
    assert sorted([*parts.train, *parts.stop, *parts.held_out]) == list(range(30))
    assert (len(parts.stop), len(parts.held_out)) == (3, 6)
    streams = fitting.streams_of(llama, texts, 2)
    assert streams.layer.shape == (30 * 23, 32)
    assert streams.following[:22].tolist() == texts[0][2:]
    assert streams.following[22] == -1
    settings = Settings(steps=60, batch=128)
    found = lens.fit(llama, streams, parts, np.random.default_rng(1), settings)
    assert found.kl.shape == (2, 6)
    assert found.kl[1].mean() < 0.9 * found.kl[0].mean()
    assert found.best_step > 0
    # the numbers are those of the maps that come out, read anew
    tuned = Tuned("resid_post", (2,), found.weight[None], found.bias[None])
    for at, text in enumerate(parts.held_out):
        for n, lens_ in enumerate((None, tuned)):
            reading = lens.read(llama, texts[text], layers=[2], tuned=lens_)
            assert reading.kl[0, 1:].mean() == pytest.approx(found.kl[n, at], abs=2e-4)
            loss = -np.nanmean(reading.next_log_prob[0, 1:])
            assert loss == pytest.approx(found.loss[n, at], abs=2e-4)


def test_what_training_has_seen_measures_nothing(llama, texts):
    parts = fitting.Split(tuple(range(8)), (8,), (9, 10))
    rows = [t[:12] for t in texts[:11]]
    rows[9] = rows[0][:5] + rows[9][5:]  # begins like a text that trains
    rows[10] = rows[8][:3] + rows[10][3:]  # like one that says when to stop
    streams = fitting.streams_of(llama, rows, 1)
    found = lens.fit(llama, streams, parts, np.random.default_rng(1), Settings(steps=2, batch=32))
    ends = [log_softmax(to_numpy(llama.run([t]).logits)[0]) for t in rows]
    best = np.log(np.mean([np.exp(e)[1:] for e in ends[:8]], axis=(0, 1)))
    for at, (text, seen) in enumerate(((9, 5), (10, 3))):
        reading = lens.read(llama, rows[text], layers=[1])
        assert found.kl[0, at] == pytest.approx(reading.kl[0, seen:].mean(), abs=2e-4)
        end = ends[text][seen:]
        constant = (np.exp(end) * (end - best)).sum(-1).mean()
        assert found.constant[at] == pytest.approx(constant, abs=2e-4)
    again = fitting.streams_of(llama, [rows[0]] * 11, 1)
    with pytest.raises(PromptError, match="repeat each other"):
        lens.fit(llama, again, parts, np.random.default_rng(1), Settings(steps=1))


def test_the_same_seed_fits_the_same_map_whatever_is_held(llama, texts, monkeypatch):
    parts = fitting.split(len(texts), np.random.default_rng(0))
    streams = fitting.streams_of(llama, texts, 0)
    settings = Settings(steps=5, batch=32)
    one, two = (
        lens.fit(llama, streams, parts, np.random.default_rng(7), settings) for _ in range(2)
    )
    assert np.array_equal(one.weight, two.weight)
    assert np.array_equal(one.bias, two.bias)
    monkeypatch.setattr(fitting, "HELD", 0)
    three = lens.fit(llama, streams, parts, np.random.default_rng(7), settings)
    assert np.abs(one.weight - three.weight).max() <= 1e-5


def test_no_step_that_helps_leaves_the_plain_lens(llama, texts):
    parts = fitting.split(len(texts), np.random.default_rng(0))
    streams = fitting.streams_of(llama, texts, 3)  # what is there is the answer itself
    settings = Settings(steps=4, batch=32, rate=50.0)
    found = lens.fit(llama, streams, parts, np.random.default_rng(7), settings)
    assert found.best_step == 0
    assert not found.weight.any()
    assert np.allclose(found.kl, 0, atol=1e-5)


def test_a_model_that_cannot_be_resumed_can_be_tuned(texts):
    name = "rwkv7"
    model = tiny_models.tiny(name)
    short = [t[:6] for t in texts[:10]]
    streams = fitting.streams_of(model, short, 0)
    parts = fitting.split(10, np.random.default_rng(0))
    settings = Settings(steps=8, batch=16)
    found = lens.fit(model, streams, parts, np.random.default_rng(1), settings)
    assert found.kl[1].mean() < found.kl[0].mean()


def test_too_few_texts_and_mixed_positions_are_refused(texts):
    with pytest.raises(PromptError, match="needs 10 texts or pieces of texts"):
        fitting.split(9, np.random.default_rng(0))
    with pytest.raises(MlxrolesError, match="kimi_k3: its head reads positions"):
        fitting.streams_of(tiny_models.tiny("kimi_k3"), texts, 0)
