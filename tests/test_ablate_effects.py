"""Ablations against weights without the heads, plain loops and closed forms."""

import copy
import csv
import json

import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten
from tiny_models import tiny, tiny_llama

from mlxroles import detectors as head_scores
from mlxroles import pairs, vectors
from mlxroles.backend import mx
from mlxroles.edits import Edit
from mlxroles.errors import ModelError, PromptError, SpecError
from mlxroles.models.load import wrap
from mlxroles.report.ablate import effect_page
from mlxroles.studies.ablate import ablation, document, effects
from mlxroles.studies.ablate.ablation import Sizes
from mlxroles.studies.ablate.conditions import random_sets
from mlxroles.studies.ablate.head_list import read_heads
from mlxroles.studies.ablate.how import How, edits
from mlxroles.studies.ablate.prompts import partners
from mlxroles.studies.ablate.runs import Runs
from mlxroles.studies.ablate.study import Ablate
from mlxroles.studies.ablate.work import Options
from mlxroles.studies.encoded import Encoded
from mlxroles.studies.place import RunPlace
from mlxroles.studies.subject import Subject
from mlxroles.vectors import Vectors

SIZES = Sizes(n_layers=4, n_heads=4, n_kv_heads=2)
LENGTHS = (6, 9, 9)


@pytest.fixture(scope="module")
def llama():
    return wrap(tiny_llama(0), {}, name="llama")


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(3)
    return [
        Encoded(f"p{n}", tuple(rng.integers(0, 64, length).tolist()), f"{n}")
        for n, length in enumerate(LENGTHS)
    ]


@pytest.fixture(scope="module")
def runs(llama, prompts):
    return Runs(llama, prompts, "all", None, reference=(prompts, (1, 2, 1)))


def without(**changed):
    """The same model with some weights changed: name -> what it does to a numpy array."""
    module = tiny_llama(0)
    found = []
    for path, weight in tree_flatten(module.parameters()):
        array = np.array(weight)
        for name, change in changed.items():
            if path == name.replace("__", "."):
                array = change(array.copy())
        found.append((path, mx.array(array)))
    module.update(tree_unflatten(found))
    return wrap(copy.deepcopy(module), {}, name="changed")


def log_probs(model, ids, made=()):
    logits = np.array(model.run([list(ids)], edits=made).logits[0]).astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def plain(clean, ablated, ids, first=0):
    """The measures of one prompt, position by position."""
    kl, changed, gap, loss = [], [], [], []
    for t in range(first, len(ids)):
        p, q = clean[t], ablated[t]
        kl.append(sum(np.exp(p[v]) * (p[v] - q[v]) for v in range(len(p))))
        top, second = np.argsort(-p)[:2]
        changed.append(float(np.argmax(q) != top))
        gap.append((q[top] - q[second]) - (p[top] - p[second]))
        if t + 1 < len(ids):
            loss.append(p[ids[t + 1]] - q[ids[t + 1]])
    found = {"kl": kl, "top1_changed": changed, "logit_diff": gap, "loss": loss}
    return {name: np.mean(values) for name, values in found.items() if values}


def agree(found, model, ablated, prompts, first=0):
    for n, prompt in enumerate(prompts):
        clean = log_probs(model, prompt.ids)
        for name, value in plain(clean, log_probs(ablated, prompt.ids), prompt.ids, first).items():
            assert found.measures[name][n] == pytest.approx(value, abs=2e-5), name


# --- what is ablated ---------------------------------------------------------------------------


def test_a_head_is_what_its_output_weights_bring(llama, runs, prompts):
    found = runs.measure(ablation.of_heads([(1, 2), (2, 0)]), How())

    def head(n):
        def cut(weight):
            weight[:, 8 * n : 8 * (n + 1)] = 0
            return weight

        return cut

    changed = {
        "model__layers__1__self_attn__o_proj__weight": head(2),
        "model__layers__2__self_attn__o_proj__weight": head(0),
    }
    agree(found, llama, without(**changed), prompts)


@pytest.mark.parametrize(
    ("site", "weight"), [("attn_out", "self_attn.o_proj"), ("mlp_out", "mlp.down_proj")]
)
def test_an_output_is_what_its_last_matrix_brings(llama, runs, prompts, site, weight):
    (only,) = ablation.outputs([site], [2])
    name = f"model.layers.2.{weight}.weight".replace(".", "__")
    half = runs.measure(only, How("scale", 0.5))
    agree(half, llama, without(**{name: lambda w: 0.5 * w}), prompts)


def test_values_of_a_key_value_head_are_its_weights(llama, runs, prompts):
    (only,) = ablation.values(None, [(1, 1)], ())

    def cut(weight):
        weight[8:] = 0
        return weight

    name = "model__layers__1__self_attn__v_proj__weight"
    agree(runs.measure(only, How()), llama, without(**{name: cut}), prompts)


def test_values_before_every_query_are_those_of_one_query_at_a_time(llama):
    ids = list(range(3, 11))
    for one in ablation.values((1, 3), [(2, 0)], ()) + ablation.values((2,), None, [1]):
        layer = one.layers[0]
        made = edits(one, How(), llama, len(ids))
        together = np.array(llama.run([ids], ["attn_out"], made, layers=[layer])["attn_out", layer])
        for t in range(max(one.offsets), len(ids)):
            places = [t - d for d in one.offsets]
            heads = [0] if one.heads else None
            alone = [Edit("v", layer, 0.0, positions=places, heads=heads)]
            run = llama.run([ids[: t + 1]], ["attn_out"], alone, layers=[layer])
            assert np.allclose(together[0, t], np.array(run["attn_out", layer])[0, t], atol=1e-5)


def test_values_before_a_named_position_go_there_alone(llama, prompts):
    (one,) = ablation.values((1,), None, [2])
    (edit,) = edits(one, How(positions=(4,)), llama, 9)
    assert (edit.site, edit.layer, list(edit.positions), edit.heads) == ("v", 2, [3], None)
    found = Runs(llama, prompts, "4", None).measure(one, How())
    for n, prompt in enumerate(prompts):
        made = [Edit("v", 2, 0.0, positions=[3])]
        clean, ablated = log_probs(llama, prompt.ids), log_probs(llama, prompt.ids, made)
        assert np.allclose(clean[:3], ablated[:3], atol=1e-6)  # these cannot change
        for name, value in plain(clean, ablated, prompt.ids, 3).items():
            assert found.measures[name][n] == pytest.approx(value, abs=2e-5)


def test_a_direction_is_gone_after_the_last_layer(llama, runs, prompts):
    d = np.random.default_rng(0).standard_normal(32).astype(np.float32)
    one = ablation.direction("d", (3,))
    found = runs.measure(one, How(), directions={3: d})
    for n, prompt in enumerate(prompts):
        h = np.array(llama.run([prompt.ids], ["resid_post"], layers=[3])["resid_post", 3])
        h = h - (h @ d)[..., None] * d / (d @ d)
        logits = np.array(llama.unembed(mx.array(h)))[0].astype(np.float64)
        ablated = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        for name, value in plain(log_probs(llama, prompt.ids), ablated, prompt.ids).items():
            assert found.measures[name][n] == pytest.approx(value, abs=2e-5)


def test_the_mean_is_over_all_prompts_and_positions(llama, runs, prompts):
    rows = [
        np.array(llama.run([p.ids], ["z"], layers=[1])["z", 1])[0].astype(np.float64)
        for p in prompts
    ]
    mean = np.concatenate(rows).mean(axis=0)[[3]].astype(np.float32)
    found = runs.measure(ablation.of_heads([(1, 3)]), How("mean"))
    made = [Edit("z", 1, mx.array(mean[None, None]), heads=[3])]
    for n, prompt in enumerate(prompts):
        clean, ablated = log_probs(llama, prompt.ids), log_probs(llama, prompt.ids, made)
        for name, value in plain(clean, ablated, prompt.ids).items():
            assert found.measures[name][n] == pytest.approx(value, abs=2e-5)


def test_resampled_is_what_the_partner_has_at_the_same_positions(llama, runs, prompts):
    found = runs.measure(ablation.of_heads([(1, 3)]), How("resample"))
    for n, partner in enumerate((1, 2, 1)):
        ids = prompts[n].ids
        other = llama.run([prompts[partner].ids[: len(ids)]], ["z"], layers=[1])["z", 1]
        made = [Edit("z", 1, other[:, :, 3:4], heads=[3])]
        clean, ablated = log_probs(llama, ids), log_probs(llama, ids, made)
        for name, value in plain(clean, ablated, ids).items():
            assert found.measures[name][n] == pytest.approx(value, abs=2e-5)


def test_partners_are_long_enough_and_others():
    a, b, short = (Encoded(n, ids, n) for n, ids in (("a", (1, 2)), ("b", (3, 4, 5)), ("s", (6,))))
    assert partners([a], [a, b, short], 0) == (1,)
    with pytest.raises(PromptError, match="no other prompt has the 3 tokens of 'b'"):
        partners([b], [a, b], 0)


def test_nothing_changes_at_factor_one(runs):
    found = runs.measure(ablation.of_heads([(1, 3)]), How("scale", 1.0))
    for name, still in (("kl", 0), ("top1_changed", 0), ("loss", 0), ("nip", 1), ("cosine", 1)):
        assert np.allclose(found.measures[name], still, atol=1e-6)
    assert np.nanmax(np.abs(found.entropy)) < 1e-6


# --- measures ----------------------------------------------------------------------------------


def test_what_is_left_of_the_attention_output(llama, runs, prompts):
    found = runs.measure(ablation.of_heads([(1, 2), (2, 0)]), How())
    made = [Edit("z", 1, 0.0, heads=[2]), Edit("z", 2, 0.0, heads=[0])]
    for n, prompt in enumerate(prompts):
        clean, cut = (llama.run([prompt.ids], ["attn_out"], e, layers=[1, 2]) for e in ([], made))
        nip, cosine = [], []
        for layer in (1, 2):
            for x, y in zip(
                *(np.array(r["attn_out", layer])[0].astype(float) for r in (clean, cut)),
                strict=True,
            ):
                nip.append(x @ y / max(x @ x, 1e-8))
                cosine.append(x @ y / max(np.sqrt(x @ x) * np.sqrt(y @ y), 1e-8))
        assert found.measures["nip"][n] == pytest.approx(np.mean(nip), abs=1e-5)
        assert found.measures["cosine"][n] == pytest.approx(np.mean(cosine), abs=1e-5)


def test_entropies_are_those_of_later_heads_and_never_the_ablated_ones(llama, runs, prompts):
    found = runs.measure(ablation.of_heads([(1, 2)]), How())
    assert np.isnan(found.entropy[0]).all()
    assert np.isnan(found.entropy[1]).tolist() == [False, False, True, False]
    made = [Edit("z", 1, 0.0, heads=[2])]
    for layer, head in ((2, 1), (3, 0)):
        gained = []
        for prompt in prompts:
            a, b = (
                np.array(llama.run([prompt.ids], ["pattern"], e)["pattern", layer])[0, head]
                for e in ([], made)
            )
            h = [-(p * np.log(np.where(p > 0, p, 1))).sum(axis=-1).mean() for p in (a, b)]
            gained.append(h[1] - h[0])
        assert found.entropy[layer, head] == pytest.approx(np.mean(gained), abs=1e-5)
    (whole,) = ablation.values(None, [(1, 1)], ())
    masked = np.isnan(runs.measure(whole, How()).entropy[1])
    assert masked.tolist() == [False, False, True, True]  # both query heads of the kv head


def test_the_gain_is_the_loss_on_the_same_tokens_twice(llama):
    ids = [5, 9, 2, 40, 5, 9, 2, 40]
    logs = log_probs(llama, ids)
    first = -np.mean([logs[t][ids[t + 1]] for t in range(3)])
    second = -np.mean([logs[t][ids[t + 1]] for t in range(4, 7)])
    runs = Runs(llama, [Encoded("r", tuple(ids), "r")], "all", None)
    found = runs.baseline()
    assert found["gain"][0] == pytest.approx(first - second, abs=1e-5)
    assert found["loss_first"][0] == pytest.approx(first, abs=1e-5)
    assert document.repeats(ids)
    assert not any(map(document.repeats, (ids[:-1], [1, 1], [1, 2, 1, 3])))


def test_logits_that_are_not_finite_are_no_measure():
    with pytest.raises(FloatingPointError, match="not all finite"):
        effects.log_probs(mx.array([[[1.0, np.nan]]]))


# --- scores of heads ---------------------------------------------------------------------------


def test_scores_of_patterns_known_in_closed_form():
    n, length = 12, 6
    before = np.eye(n, k=-1)
    before[0, 0] = 1
    assert head_scores.previous_token(before) == pytest.approx(1)
    uniform = np.tril(np.ones((n, n))) / np.arange(1, n + 1)[:, None]
    assert head_scores.previous_token(uniform) == pytest.approx(
        np.mean([1 / (q + 1) for q in range(1, n)])
    )
    ideal = np.zeros((n, n))
    for k in range(length - 1):
        ideal[length + k, k + 1] = 1
    assert head_scores.induction(ideal, length) == pytest.approx(1)
    assert head_scores.induction(np.roll(ideal, 1, axis=1), length) == 0
    assert np.isnan(head_scores.previous_token(np.ones((1, 1))))
    with pytest.raises(ValueError, match="none of 2 x 5 tokens"):
        head_scores.induction(ideal, 5)


def test_scores_are_those_of_a_plain_loop(llama):
    ids = head_scores.repeated(64, np.random.default_rng(0), n=3, length=5)
    found = head_scores.head_scores(llama, ids)
    for n, row in enumerate(ids.tolist()):
        for layer in range(4):
            pattern = np.array(llama.run([row], ["pattern"])["pattern", layer])[0]
            for head in range(4):
                p = pattern[head]
                previous = np.mean([p[q, q - 1] for q in range(1, 10)])
                induction = np.mean([p[5 + k, k + 1] for k in range(4)])
                assert found.previous[n, layer, head] == pytest.approx(previous, abs=1e-6)
                assert found.induction[n, layer, head] == pytest.approx(induction, abs=1e-6)
    means = found.means("induction")
    assert found.ranked("induction")[0] == divmod(int(means.argmax()), 4)


def test_layers_without_attention_have_no_scores():
    model = tiny("jamba")
    ids = head_scores.repeated(model.vocab, np.random.default_rng(0), n=2, length=4)
    found = head_scores.head_scores(model, ids)
    seen = [bool(b.heads) for b in model.network.anatomy.blocks]
    assert np.isfinite(found.previous).all(axis=(0, 2)).tolist() == seen
    assert {layer for layer, _ in found.ranked("previous")} == {i for i, s in enumerate(seen) if s}


def test_repeated_ids_leave_the_ends_of_the_vocabulary():
    for vocab, edge in ((1024, 100), (64, 6), (3, 0)):
        ids = head_scores.repeated(vocab, np.random.default_rng(0), n=40, length=20)
        assert (ids[:, :20] == ids[:, 20:]).all()
        assert edge <= ids.min()
        assert ids.max() < vocab - edge


# --- words -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (lambda: ablation.parse_offsets("1,x"), "values '1,x' cannot be read"),
        (lambda: ablation.parse_sites("resid"), "site 'resid' cannot be ablated whole"),
        (lambda: ablation.parse_factors("1,b"), "factors '1,b' cannot be read"),
        (lambda: ablation.named_heads("L9H0", SIZES), "layer 9 is outside 0..3"),
        (lambda: ablation.each_head(Sizes(2, 0, 0)), "names no attention heads"),
    ],
)
def test_words_that_mean_nothing(words, message):
    with pytest.raises(SpecError, match=message):
        words()


def test_kv_heads_of_query_heads():
    assert ablation.kv_heads([(1, 3), (1, 2), (0, 0)], SIZES) == [(1, 1), (0, 0)]


def test_a_table_of_heads(tmp_path):
    path = tmp_path / "candidates.csv"
    path.write_text("rank,layer,head\n1,3,2\n2,1,0\n3,0,0\n")
    assert read_heads(str(path), 2) == [(3, 2), (1, 0)]
    assert read_heads(str(tmp_path), 1) == [(3, 2)]
    path.write_text("rank,head\n1,2\n")
    with pytest.raises(SpecError, match="columns 'layer' and 'head'"):
        read_heads(str(path), 2)
    with pytest.raises(SpecError, match="is not there"):
        read_heads(str(tmp_path / "none.csv"), 2)


def test_random_sets_have_the_layers_and_never_the_set_itself():
    heads = [(1, 0), (1, 3), (2, 2)]
    sets = random_sets(heads, {1: 4, 2: 4}, 20, np.random.default_rng(0))
    assert len({*sets}) == len(sets) == 20
    for n, drawn in enumerate(sets):
        assert [layer for layer, _ in drawn] == [1, 1, 2]
        assert {*drawn} != {*heads}
        assert bool({*drawn} & {*heads}) == (n >= 3), "three have none of the heads"


@pytest.mark.parametrize(
    "name", ["gemma2", "gpt_oss", "deepseek_v3", "jamba", "gpt2", "qwen3_next", "mamba"]
)
def test_any_architecture_is_ablated_or_refused(name):
    model = tiny(name)
    ids = head_scores.repeated(model.vocab, np.random.default_rng(0), n=2, length=4).tolist()
    prompts = [Encoded(f"p{n}", tuple(row), f"{n}") for n, row in enumerate(ids)]
    runs = Runs(model, prompts, "all", None)
    heads = [(i, 1) for i, b in enumerate(model.network.anatomy.blocks) if b.heads]
    for one in [ablation.of_heads([at]) for at in heads[:1]] + ablation.outputs(["attn_out"], [0]):
        site, layer = one.site, one.heads[0][0] if one.heads else 0
        made = [Edit(site, layer, 0.0, heads=[1] if one.heads else None)]
        try:
            ablated = [log_probs(model, row, made) for row in ids]
        except ModelError:
            with pytest.raises(ModelError, match="cannot be captured"):
                runs.measure(one, How())
            continue
        found = runs.measure(one, How())
        for n, row in enumerate(ids):
            expected = plain(log_probs(model, row), ablated[n], row)
            assert found.measures["kl"][n] == pytest.approx(expected["kl"], rel=1e-3, abs=1e-5)


def ends(path):
    return json.loads((path / "summary.json").read_text())


@pytest.mark.slow
def test_the_induction_heads_carry_the_repetition_gain(call, tmp_path, monkeypatch):
    """Done when: the heads found by score remove the gain, random heads of their layers do not."""
    monkeypatch.chdir(tmp_path)
    ids = head_scores.repeated(1024, np.random.default_rng(5), n=6, length=20)
    np.save("repeats.npy", ids)
    words = ["ablate", "--model", pairs.resolve(pairs.pair("tiny").ref("instruct"))]
    words += ["--heads", "induction", "--top", 4, "--random", 4, "--out", "run", "--plain"]
    words += ["--prompt-ids", "repeats.npy"]
    status, out, err = call(*words)
    assert status == 0, err
    doc = ends(tmp_path / "run")
    rows = {row["key"]: row for row in doc["rows"]}
    assert doc["baseline"]["model"]["gain"]["mean"] > 10
    assert rows["pairs-1"]["removed"]["mean"] < 0.2  # others stand in for one pair
    assert rows["pairs-4"]["removed"]["ci"][0] > 0.8
    assert rows["all-induction"]["removed"]["mean"] > 0.95
    for key in ("pairs-2", "pairs-3", "pairs-4"):
        null = rows[key]["null"]
        assert null["n"] == 4
        assert null["range"][1] < 0.6 * rows[key]["effect"]["mean"]
        assert null["p"] == pytest.approx(0.2)
    assert "of the repetition gain" in doc["sentence"]
    with (tmp_path / "run" / "effects.csv").open() as file:
        lines = list(csv.DictReader(file))
    gains = [float(x["value"]) for x in lines if x["ablation"] == "pairs-4" and x["random"] == ""
             and x["measure"] == "gain"]  # fmt: skip
    assert np.mean(gains) == pytest.approx(rows["pairs-4"]["gain"]["mean"])
    page = (tmp_path / "run" / "report.html").read_bytes()
    assert b"data:image/png" in page
    assert b"<script" not in page
    assert "pairs" in out

    assert call("report", "run")[0] == 0
    assert (tmp_path / "run" / "report.html").read_bytes() == page


def test_what_is_done_is_not_done_again(tmp_path, prompts, monkeypatch):
    subject = Subject.of_model(str(pairs.resolve(pairs.pair("tiny").ref("base"))))
    what = ablation.each_and_all([(3, 2), (3, 0)])
    done = []

    def study(stop_after):
        made = Ablate(subject, prompts, what, Options(random=2))
        compute = made.work.compute

        def counted(batch):
            if len(done) == stop_after:
                raise KeyboardInterrupt
            done.append(batch.cells[0].id)
            return compute(batch)

        monkeypatch.setattr(made.work, "compute", counted)
        return made

    place = RunPlace(tmp_path, out=tmp_path / "run")
    _, finished = study(4).run(lambda _: None, place)
    assert (finished.done, finished.interrupted) == (4, "SIGINT")
    doc, finished = study(-1).run(lambda _: None, place)
    assert finished.done == len(done) == len({*done}) == 1 + 3 + 3 * 2
    whole, _ = Ablate(subject, prompts, what, Options(random=2)).run(
        lambda _: None, RunPlace(tmp_path, out=tmp_path / "whole")
    )
    assert doc["rows"] == whole["rows"]


def test_heads_together_beside_the_sum_of_each(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["ablate", "--model", pairs.resolve(pairs.pair("tiny").ref("instruct"))]
    np.save("ids.npy", head_scores.repeated(1024, np.random.default_rng(5), n=5, length=12))
    words += ["--test", "joint", "--heads", "L3H2,L3H3", "--random", 0, "--out", "run", "--json"]
    words += ["--prompt-ids", "ids.npy"]
    status, out, err = call(*words)
    assert status == 0, err
    doc = json.loads(out)
    first, second, both = doc["rows"]
    assert both["sum"]["mean"] == pytest.approx(
        first["effect"]["mean"] + second["effect"]["mean"], abs=1e-9
    )
    assert both["beyond_sum"]["mean"] == pytest.approx(
        both["effect"]["mean"] - both["sum"]["mean"], abs=1e-9
    )
    assert both["beyond_sum"]["ci"][0] > 0  # they stand in for each other
    assert "not additive" in doc["sentence"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--heads", "L9H0"], "L9H0: layer 9 is outside 0..5"),
        (["--heads", "inductoin"], "did you mean 'induction'?"),
        (["--heads", "L1H1", "--sites", "attn_out"], "--sites and --heads are two ablations"),
        (["--heads", "L1H1", "--layers", "2"], "heads have their own"),
        (["--heads", "L1H1", "--factors", "1"], "--factors goes with --method scale"),
        (["--heads", ""], "an empty list names no head"),
        (["--test", "joint"], "is about some heads"),
        (["--test", "redundancy", "--heads", "each"], "is about some heads"),
        (["--heads", "L1H1", "--prompt", "a b", "--positions", "0", "--values", "1"], "no token 1"),
        (["--direction", "none.npy"], "none.npy"),
        (["--heads", "L1H1", "--positions", "each"], "is not one ablation"),
        (["--values", "1", "--method", "mean"], "name --positions"),
    ],
)
def test_wrong_words_are_refused_in_one_line(call, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    model = pairs.resolve(pairs.pair("tiny").ref("instruct"))
    status, out, err = call("ablate", "--model", model, *words)
    assert status != 0
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def test_a_plan_loads_no_weights(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = call("ablate", "--pair", "tiny", "--heads", "induction", "--dry-run", "--json")
    plan = json.loads(out)
    assert status == 0
    # 8 pairs and three sets of all, each with 20 random ones, and a baseline, in both models
    assert plan["cells"] == 2 * (1 + 11 + 11 * 20)
    assert not (tmp_path / "results").exists()


def test_heads_of_a_run_folder_by_its_name_alone(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "candidates.csv").write_text("rank,layer,head\n1,3,4\n2,0,5\n3,1,1\n")
    asked = ("ablate", "--pair", "tiny", "--heads", "found", "--top", "2", "--random", "0")
    status, out, _ = call(*asked, "--dry-run", "--json")
    assert status == 0
    assert json.loads(out)["ablations"] == 3


def test_a_model_without_induction_heads_stops_there(call, tmp_path, monkeypatch, shared):
    monkeypatch.chdir(tmp_path)
    model = shared / "models" / "stories260K"
    status, _, err = call("ablate", "--model", model, "--heads", "induction", "--plain")
    assert status == 1
    assert "stories260K has no induction head" in err


def test_the_circuit_is_found_for_single_positions_too(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ("ablate", "--pair", "tiny", "--heads", "induction", "--test", "redundancy")
    few = ("--random", "2", "--prompt-ids", "5,6,7,8,9,5,6,7", "--positions", "last")
    status, _, err = call(*asked, *few, "--dry-run")
    assert status != 0
    assert "found by running the model" in err
    assert err.count("\n") == 1
    status, out, _ = call(*asked, *few, "--json", "--plain")
    doc = json.loads(out)
    assert status == 0
    assert doc["heads"] == [[1, 4], [3, 2]], "the best pair of both models"
    assert "heads found by their scores in base: L1H4, L3H2" in doc["notes"]
    for drawn in doc["random"]:
        assert [layer for layer, _ in drawn] == [1, 3]
        assert not {(1, 4), (3, 2)} & {tuple(at) for at in drawn}


def test_a_direction_is_held_against_random_ones(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("v.npy", np.random.default_rng(0).standard_normal(128).astype(np.float32))
    words = ["ablate", "--model", pairs.resolve(pairs.pair("tiny").ref("instruct"))]
    words += ["--direction", "v.npy", "--random", 3, "--prompt", "notepad", "--out", "run"]
    status, _, err = call(*words)
    assert status == 1
    assert err.endswith("with --layers, or --layers all for everywhere\n")
    status, out, err = call(*words, "--layers", "all", "--json")
    assert status == 0, err
    doc = json.loads(out)
    (row,) = doc["rows"]
    assert (row["kind"], row["null"]["n"], doc["headline"]) == ("direction", 3, "log_odds")
    change = row["log_odds"]["mean"] - doc["baseline"]["model"]["log_odds"]["mean"]
    assert row["effect"]["mean"] == row["log_odds"]["change_mean"] == pytest.approx(change)
    assert "random directions" in doc["sentence"]
    assert row["p_first_token"]["mean"] < 1
    # texts of strangers stay text on the page
    hostile = doc | {"display": "<script>x</script>", "sentence": "<img src=x>", "notes": ["<b>"]}
    hostile |= {"prompts": [{"id": "<script>", "n_tokens": 2}], "measured": "<script>"}
    page = effect_page.html(hostile, {})
    assert not any(bad in page for bad in ("<script", "<img", "<b>"))


def test_a_direction_of_another_model_is_said_in_the_notes(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    array = np.random.default_rng(0).standard_normal((1, 6, 128)).astype(np.float32)
    made = Vectors(("push",), array, tuple(range(6)), model={"sha256": "0" * 64})
    vectors.write(tmp_path / "v.h5", made)
    given = ("--direction", "v.h5", "--prompt", "The dog sees", "--random", "0", "--tokens", " a")
    status, out, err = call("ablate", "--model", "tiny/instruct", *given, "--json")
    assert status == 0, err
    notes = json.loads(out)["notes"]
    assert "model: vector 'v.h5' was taken from another model" in notes
