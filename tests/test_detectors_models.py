"""Detectors on models: against transformers, plain loops over whole patterns, known heads."""

from itertools import pairwise

import numpy as np
import oracles
import pytest
from tiny_models import in_dtype, tiny, tiny_llama

import mlxroles
from mlxroles import detectors
from mlxroles.backend import mx, nn
from mlxroles.detectors import copies, places
from mlxroles.detectors.material import Material, RowSet, material
from mlxroles.detectors.reading import read
from mlxroles.errors import ModelError, PromptError
from mlxroles.heads import head_name
from mlxroles.models.load import load, wrap

N, HALF = 40, 16


def row_set(rows, half=HALF):
    """Every kind of place on given rows of ids, as ``material`` would make it."""
    rng, scores = np.random.default_rng(0), {}
    for row in rows:
        twice = places.duplicates(row)
        marked = np.asarray(row) % 5 == 0
        for name, given in {
            "previous": places.previous(len(row)),
            "neighbours": places.neighbours(len(row)),
            "first": places.first(len(row)),
            "induction": places.repeat(half),
            "duplicate": twice,
            "matched": places.matched(twice, row, rng),
            "delimiter": places.onto(marked, start=0),
        }.items():
            scores.setdefault(name, []).append(given)
    ids = tuple(tuple(int(i) for i in row) for row in rows)
    return RowSet("rows", "", ids, {k: tuple(v) for k, v in scores.items()}, 8, 0)


def by_hand(pattern, row, half=HALF):
    """The published scores of one pattern [query, key], cell by cell."""
    n, p = len(row), pattern.astype(np.float64)
    pairs = [(i, j) for i in range(n) for j in range(i) if row[i] == row[j]]
    queries = {i for i, _ in pairs}
    return {
        "previous": sum(p[q, q - 1] for q in range(1, n)) / (n - 1),
        "neighbours": np.mean(
            [sum(p[q, q - d] for q in range(d, n)) / (n - d) for d in (2, 3, 4, 5)]
        ),
        "first": sum(p[q, 0] for q in range(1, n)) / (n - 1),
        "induction": sum(p[half + k, k + 1] for k in range(half - 1)) / (half - 1),
        "duplicate": sum(p[i, j] for i, j in pairs) / len(queries) if pairs else np.nan,
        "delimiter": sum(p[q, k] for q in range(n) for k in range(q + 1) if row[k] % 5 == 0) / n,
    }


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss"])
def test_scores_and_profile_are_those_of_transformers(family, tmp_path):
    oracle = oracles.oracle(family, tmp_path)
    model = load(oracle.folder, scan=False)
    found = read(model, row_set(oracle.tokens))
    for layer, row in np.ndindex(oracle.pattern.shape[:2]):
        visible = (oracle.pattern[layer, row] > 0).any(axis=0)
        even = by_hand(places.uniform(visible), oracle.tokens[row])
        for head, pattern in enumerate(oracle.pattern[layer, row]):
            for name, value in by_hand(pattern, oracle.tokens[row]).items():
                got = found.values[name][row, layer, head]
                assert got == pytest.approx(value, abs=2e-5, nan_ok=True), name
            for d in range(8):
                mean = np.diagonal(pattern, -d).mean()
                assert found.profile[row, layer, head, d] == pytest.approx(mean, abs=2e-5)
        for name, value in even.items():
            assert found.uniform[name][row, layer] == pytest.approx(value, abs=1e-6, nan_ok=True)
        for d in range(8):
            mean = np.diagonal(places.uniform(visible), -d).mean()
            assert found.profile_uniform[row, layer, d] == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize(
    "name", ["gemma3_text", "gpt_oss", "deepseek_v32", "nemotron-nas", "jamba"]
)
def test_one_pass_reads_what_whole_patterns_hold(name):
    model = tiny(name)
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 64, length) for length in (32, 24, 30)]  # padded on the right
    found = read(model, row_set(rows, half=8))
    blocks = model.network.anatomy.blocks
    seen = [i for i, b in enumerate(blocks) if b.heads and "pattern" not in b.missing]
    run = model.run([r.tolist() for r in rows], ["pattern"], layers=seen, logits=False)
    for layer in range(model.n_layers):
        if layer not in seen:
            assert np.isnan(found.values["previous"][:, layer]).all()
            continue
        whole = np.array(run["pattern", layer].astype(mx.float32))
        for n, row in enumerate(rows):
            own = whole[n, :, : len(row), : len(row)]
            for head, pattern in enumerate(own):
                for key, value in by_hand(pattern, row, half=8).items():
                    got = found.values[key][n, layer, head]
                    assert got == pytest.approx(value, abs=1e-5, nan_ok=True)
            even = by_hand(places.uniform((own > 0).any(axis=0)), row, half=8)
            for key, value in even.items():
                got = found.uniform[key][n, layer]
                assert got == pytest.approx(value, abs=1e-5, nan_ok=True)


def test_a_row_without_a_duplicate_has_no_such_score():
    model = tiny("llama")
    rows = [np.arange(32), np.zeros(32, dtype=int)]
    found = read(model, row_set(rows))
    assert np.isnan(found.values["duplicate"][0]).all()
    assert np.isfinite(found.values["duplicate"][1]).all()
    assert np.isnan(found.values["matched"]).all()


def test_no_layer_keeps_its_pattern(monkeypatch):
    model, shapes = tiny("llama"), []
    run = type(model).run

    def watched(self, *args, **kwargs):
        out = run(self, *args, **kwargs)
        shapes.extend(a.shape for kept in out.sites.values() for a in kept.values())
        return out

    monkeypatch.setattr(type(model), "run", watched)
    given = row_set([np.arange(40) % 7])
    read(model, given)
    heads = model.network.block(0).heads
    assert set(shapes) == {(1, heads + 1, len(given.scores) + given.offsets)}


def test_half_precision_and_quantised_weights_are_read():
    module = tiny_llama(0, intermediate_size=64)
    exact = read(wrap(module, {}, name="a"), row_set([np.arange(40) % 7]))
    for dtype in (mx.float16, mx.bfloat16):
        half = read(wrap(in_dtype(module, dtype), {}, name="b"), row_set([np.arange(40) % 7]))
        assert half.values["previous"] == pytest.approx(exact.values["previous"], abs=0.02)
        assert half.uniform["previous"] == pytest.approx(exact.uniform["previous"], abs=1e-6)
    nn.quantize(module, group_size=32, bits=8)
    found = read(wrap(module, {}, name="c"), row_set([np.arange(40) % 7]))
    assert found.values["previous"] == pytest.approx(exact.values["previous"], abs=0.02)


# --- the whole ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base():
    return mlxroles.load("tiny/base")


@pytest.fixture(scope="module")
def small(base):
    """Material and detection of the packaged base model, few and short rows."""
    made = material(base.tokenizer, base.vocab, sequences=16, length=80)
    return made, detectors.detect(base, made)


def test_the_planted_heads_are_found(small):
    made, found = small
    assert list(found.scores) == list(made.detectors) == list(detectors.DETECTORS)
    classes = detectors.classify(found.scores)
    for name, planted in {"previous": ["L0H1", "L1H4"], "induction": ["L2H5", "L3H2"]}.items():
        marked = {head_name(*at) for at in classes.heads(name)}
        assert set(planted) <= marked
    assert classes.primary[3][2] == "induction"
    assert classes.primary[1][4] == "previous"
    assert found.scores["positional"].more["offset"][0, 1, 4] == 1
    assert found.best("previous_random")[0] == 1
    assert any(name == "none" for row in classes.primary for name in row)


def test_what_a_notebook_shows(small):
    made, found = small
    assert "  repeated     16 rows, 32 random ids, twice" in repr(made)
    classes = detectors.classify(found.scores)
    at = head_name(*found.best("induction"))
    for shown in (repr(found), found._repr_html_()):
        line = next(line for line in shown.replace("<tr>", "\n").split("\n") if "induction" in line)
        assert f"{at} 0.9" in line
    for shown in (repr(classes), classes._repr_html_()):
        assert "L3H2" in shown
        assert f"{sum(row.count('none') for row in classes.primary)} heads" in shown


def test_scores_are_those_of_their_sets(small, base):
    made, found = small
    own = found.scores
    n, layer, head, start = 3, 2, 5, len(made.opening)
    orders = own["s_inhibition"]
    both = (orders.more["abba"] + orders.more["baba"]) / 2
    assert orders.score == pytest.approx(both)
    ratio = own["delimiter"]
    assert ratio.more["ratio"] == pytest.approx(ratio.score / ratio.uniform)
    assert ratio.more["frequency_ratio"] == pytest.approx(ratio.score / made.share)
    row = made.sets["text"].ids[n]
    p = np.array(base.run([list(row)], ["pattern"], layers=[layer])["pattern", layer])[0, head]
    inner = p[start:, start:]  # without BOS
    for d in range(found.profile.shape[-1]):
        mean = np.diagonal(inner, -d).mean()
        assert found.profile[n, layer, head, d] == pytest.approx(mean, abs=1e-5)
    rest = p[start:].sum() - p[start:, 0].sum()
    visible = places.uniform(places.causal(len(row)))[start:]
    even = ratio.uniform[n, layer, head] * len(visible) / (visible.sum() - visible[:, 0].sum())
    wanted = ratio.score[n, layer, head] * len(visible) / rest / even
    assert ratio.more["ratio_no_first"][n, layer, head] == pytest.approx(wanted, rel=1e-4)


def spread_evenly(pattern):
    return np.tril(np.ones_like(pattern)) / np.arange(1, len(pattern) + 1)[:, None]


def test_scores_controls_and_baselines_are_plain_loops_over_the_patterns(small, base):
    made, found = small
    n, layer, s, half = 3, 2, len(made.opening), made.about["half"]
    rows = {name: made.sets[name].ids[n] for name in made.sets}
    runs = {
        name: np.array(base.run([list(ids)], ["pattern"], layers=[layer])["pattern", layer])[0]
        for name, ids in rows.items()
    }

    def check(name, loop, on, against, control):
        own = found.scores[name]
        for head in range(8):
            score, null = loop(runs[on][head], on), control(runs[against][head], against)
            assert own.score[n, layer, head] == pytest.approx(score, abs=1e-5), name
            assert own.control[n, layer, head] == pytest.approx(null, abs=1e-5), name
        even = loop(spread_evenly(runs[on][0]), on)
        assert own.uniform[n, layer] == pytest.approx(even, abs=1e-6), name

    def back(d):
        return lambda p, _: np.mean([p[q, q - d] for q in range(s + d, len(p))])

    def onto(k):
        return lambda p, _: np.mean([p[q, k] for q in range(k + 1, len(p))])

    def mean(*loops):
        return lambda p, on: np.mean([loop(p, on) for loop in loops])

    near = mean(*map(back, (2, 3, 4, 5)))
    for name, on in (("previous", "text"), ("previous_random", "random")):
        check(name, back(1), on, on, near)
    check("self", back(0), "text", "text", near)
    check("first", onto(0), "text", "text", mean(*map(onto, (1, 2, 3, 4))))

    def copied(p, _):
        return np.mean([p[s + half + k, s + k + 1] for k in range(half - 1)])

    def same(p, _):
        return np.mean([p[s + half + k, s + k] for k in range(half)])

    check("induction", copied, "repeated", "random", copied)
    check("duplicate_random", same, "repeated", "random", same)

    def predecessors(p, on):
        spans = made.sets[on].marks["elements"][n]
        return np.mean([p[d - 1, a:b].sum() for (a, b), (_, d) in pairwise(spans)])

    check("successor", predecessors, "lists", "shuffled", predecessors)

    end = made.sets["answers"].marks["final"][n]

    def asked(*keys):
        return lambda p, _: np.mean([p[q, k] for k in keys for q in range(end + 1, len(p))])

    check("final", asked(end), "answers", "answers", asked(end - 3, end - 2, end - 1))


def test_s_inhibition_reads_the_second_mention_in_both_orders(small, base):
    made, found = small
    n, layer, own = 3, 2, found.scores["s_inhibition"]
    io, subject = (made.sets["names_abba"].marks[name][n] for name in ("io", "subject"))
    seen, at = {}, -1
    for order in ("abba", "baba", "third"):
        ids = np.array(made.sets[f"names_{order}"].ids[n])
        given = base.run([ids.tolist()], ["pattern"], layers=[layer])["pattern", layer]
        if order != "third":
            first, at = np.flatnonzero(ids == subject)  # all names are one token here
            assert (first < np.flatnonzero(ids == io)[0]) == (order == "baba")
        else:
            assert {io, subject} == {*ids[:at]} & {io, subject}
            assert ids[at] not in ids[:at]
        seen[order] = np.array(given)[0, :, -1, at]
    both = (seen["abba"] + seen["baba"]) / 2
    assert own.score[n, layer] == pytest.approx(both, abs=1e-5)
    assert own.control[n, layer] == pytest.approx(seen["third"], abs=1e-5)
    assert own.uniform[n, layer] == pytest.approx(1 / len(made.sets["names_abba"].ids[n]))


def test_patterns_of_chosen_heads_are_on_the_rows_that_show_them(small, base):
    made, found = small
    at = found.best("induction")
    wanted = [(*at, "induction"), (1, 4, "previous"), (*at, "copying")]
    shown = detectors.patterns(base, made, wanted, row=2)
    assert [shown[w].set for w in wanted] == ["repeated", "text", "text"]
    example = shown[wanted[0]]
    assert example.ids == made.sets["repeated"].ids[2]
    half, start = made.about["half"], example.start
    score = places.repeat(half).moved(start).read(example.pattern)
    assert score == pytest.approx(found.scores["induction"].score[2, *at], abs=1e-5)


def test_copy_scores_are_those_of_the_matrices(base):
    ids = [300, 400, 500, 600, 700, 800]
    (found,), shares, _ = copies.copy_scores(base, ids)
    rng = np.random.default_rng(0)
    drawn = rng.permutation(ids)
    table = np.array(base.module.model.embed_tokens.weight, dtype=np.float64)
    layer, head = 3, 2
    gain = np.array(base.module.layers[layer].input_layernorm.weight, dtype=np.float64)
    last = np.array(base.module.model.norm.weight, dtype=np.float64)
    v, o = np.array(base.W_V(layer)[head // 2]), np.array(base.W_O(layer)[head])
    entries = (table[drawn] * gain) @ v @ o @ (table[drawn] * last).T
    for n in range(6):
        rest = np.delete(entries[n], n)
        z = (entries[n, n] - rest.mean()) / rest.std(ddof=1)
        assert found.own[n, layer, head] == pytest.approx(entries[n, n], rel=1e-3, abs=1e-4)
        assert found.other[n, layer, head] == pytest.approx(rest.mean(), rel=1e-3, abs=1e-4)
        assert found.z[n, layer, head] == pytest.approx(z, rel=1e-3, abs=1e-3)
    assert (shares["random_low"] < 0).all()
    assert (shares["random_high"] > 0).all()


def test_eigenvalue_shares_are_those_of_the_matrix_between_all_tokens():
    model = tiny("llama")
    _, shares, _ = copies.copy_scores(model, range(8), layers=[1])
    module = model.module
    embedding, head = (
        np.array(m.weight, dtype=np.float64) for m in (module.model.embed_tokens, module.lm_head)
    )
    gains = [module.layers[1].input_layernorm.weight, module.model.norm.weight]
    before, last = (np.array(gain, dtype=np.float64) for gain in gains)
    heads, kv_heads = model.network.block(1).heads, model.network.block(1).kv_heads
    for n in range(heads):
        v, o = np.array(model.W_V(1)[n * kv_heads // heads]), np.array(model.W_O(1)[n])
        values = np.linalg.eigvals((embedding * before) @ v @ o @ (head * last).T)
        share = values.real.sum() / np.abs(values).sum()
        assert shares["eigenvalues"][0, 1, n] == pytest.approx(share, abs=1e-3)
    assert np.isnan(shares["eigenvalues"][0, 0]).all()


def test_the_story_model_has_previous_token_heads_and_no_induction_head(shared):
    model = mlxroles.load(shared / "models" / "stories260K")
    made = material(model.tokenizer, model.vocab, sequences=24, length=96)
    assert set(made.ordinary) <= set(range(259, 512))  # not the bytes, which it never saw
    kept = {name: made.sets[name] for name in ("text", "random", "repeated")}
    found = detectors.detect(model, Material(kept, made.opening, made.ordinary, (), made.share))
    own = found.scores
    assert own["previous_random"].mean[3, 6] == pytest.approx(0.76, abs=0.03)
    assert own["previous"].mean[3, 6] == pytest.approx(0.60, abs=0.06)
    assert own["previous_random"].mean[1, 3] == pytest.approx(0.65, abs=0.04)
    assert own["previous"].mean[1, 3] == pytest.approx(0.65, abs=0.04)
    best = found.best("induction")
    assert own["induction"].mean[best] == pytest.approx(0.037, abs=0.008)
    assert own["induction"].uniform[0, 0, 0] == pytest.approx(0.022, abs=0.001)
    classes = detectors.classify(own)
    assert not classes.marked["induction"].any()
    assert {"previous"} == {classes.primary[3][6], classes.primary[1][3]}


def test_models_without_a_tokenizer_and_without_attention():
    made = material(None, 64, sequences=2, length=24, half=8)
    found = detectors.detect(tiny("gemma3_text"), made)
    assert set(found.scores) <= {*made.detectors}
    assert "no tokenizer" in found.notes[0]
    with pytest.raises(ModelError, match=r"mamba.* shows no attention pattern: .*Mamba") as error:
        detectors.detect(tiny("mamba"), made)
    assert "\n" not in str(error.value)
    with pytest.raises(PromptError, match="outside 0"):
        detectors.detect(tiny("llama"), material(None, 4096, sequences=2, length=24))


def test_chosen_layers_alone_are_read():
    made = material(None, 64, sequences=2, length=24, half=8)
    model = tiny("llama")
    some = detectors.detect(model, made, layers=[1])
    whole = detectors.detect(model, made)
    for name in whole.scores:
        assert np.isnan(some.scores[name].score[:, 0]).all()
        one, all_ = some.scores[name].score[:, 1], whole.scores[name].score[:, 1]
        assert one == pytest.approx(all_, abs=1e-6, nan_ok=True)
