"""Tests at single positions against transformers with hooks, plain runs and closed forms."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from stories import run as run_study
from tiny_models import tiny, tiny_llama
from transformers import AutoModelForCausalLM

import mlxroles
from mlxroles.dashboard.position_tables import position_table
from mlxroles.edits import zero
from mlxroles.errors import ModelError, PromptError, SpecError
from mlxroles.models.load import load, wrap
from mlxroles.pairs import pair
from mlxroles.prompts import Prompt
from mlxroles.stats import bootstrap_mean_ci
from mlxroles.studies.ablate import conditions, position_results, position_tests, spread
from mlxroles.studies.ablate.conditions import Condition
from mlxroles.studies.ablate.offsets import Offsets
from mlxroles.studies.ablate.patterns import Patterns
from mlxroles.studies.ablate.redundancy import COMPARISONS, Redundancy
from mlxroles.studies.subject import Subject

FOLDER = Path(mlxroles.__file__).parent / "data" / "tiny" / "base"
IDS = (0, 400, 31, 77, 512, 400, 31, 9)
PROMPTS = [Prompt("a", ids=IDS), Prompt("b", ids=IDS[::-1]), Prompt("c", ids=(*IDS[2:], 5, 6))]


@pytest.fixture(scope="module")
def model():
    return load(FOLDER)


@pytest.fixture(scope="module")
def oracle():
    """The same weights in transformers, eager attention; one thread, as they are small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield AutoModelForCausalLM.from_pretrained(FOLDER, attn_implementation="eager").eval()
    torch.set_num_threads(threads)


def hooked(oracle, ids, *, heads=(), values=(), everywhere=False):
    """attn_out at t by layer, logits at t and patterns at t, with zeros put in by hooks.

    heads: (layer, query head); values: (layer, kv head, position).
    """
    width, outputs, handles = oracle.config.head_dim, {}, []
    for i, block in enumerate(oracle.model.layers):

        def enter(_, args, i=i):
            z = args[0].clone()
            for layer, head in heads:
                if layer == i:
                    at = slice(None) if everywhere else -1
                    z[:, at, head * width : (head + 1) * width] = 0
            return (z,)

        def value(_, __, out, i=i):
            out = out.clone()
            for layer, head, position in values:
                if layer == i:
                    out[:, position, head * width : (head + 1) * width] = 0
            return out

        def leave(_, __, out, i=i):
            outputs[i] = out[0, -1].detach().numpy()

        attn = block.self_attn
        handles += [
            attn.o_proj.register_forward_pre_hook(enter),
            attn.v_proj.register_forward_hook(value),
            attn.o_proj.register_forward_hook(leave),
        ]
    with torch.no_grad():
        made = oracle(torch.tensor([list(ids)]), output_attentions=True)
    for handle in handles:
        handle.remove()
    return outputs, made.logits[0, -1].numpy(), [a[0, :, -1].numpy() for a in made.attentions]


def log_softmax(x):
    x = x.astype(np.float64)
    return x - np.logaddexp.reduce(x)


# --- runs under conditions ------------------------------------------------------------------------


def test_a_batch_of_conditions_is_one_plain_run_each():
    model = wrap(tiny_llama(3), {"model_type": "llama"})
    ids = [3, 9, 27, 50, 9, 27]
    asked = [
        Condition("base"),
        Condition("heads", ((1, 3), (2, 0))),
        Condition("everywhere", ((1, 3),), everywhere=True),
        Condition("values", values=((1, None),)),
        Condition("own values", values=((1, 3), (0, 0)), offsets=(1, 4)),
        Condition("all values", values=((2, None),), offsets=None),
        Condition("both", ((1, 3),), values=((1, None),), offsets=(2,)),
        Condition("beyond the start", values=((1, None),), offsets=(9,)),
    ]
    kv = {"heads": range(2)}
    edits = [
        [],
        [zero("z", 1, positions=[5], heads=[3]), zero("z", 2, positions=[5], heads=[0])],
        [zero("z", 1, heads=[3])],
        [zero("v", 1, positions=[4], **kv)],
        [zero("v", 1, positions=[4, 1], heads=[1]), zero("v", 0, positions=[4, 1], heads=[0])],
        [zero("v", 2)],
        [zero("z", 1, positions=[5], heads=[3]), zero("v", 1, positions=[3], **kv)],
        [],
    ]
    seen = conditions.run(model, ids, asked, ["attn_out", "pattern"])
    for row, own in enumerate(edits):
        made = model.run([ids], ["attn_out", "pattern"], own)
        assert np.abs(seen.logits[row] - np.array(made.logits)[0, -1]).max() <= 1e-5
        for layer in range(4):
            out = np.array(made["attn_out", layer])[0, -1]
            assert np.abs(seen.sites["attn_out"][layer][row] - out).max() <= 1e-5
            pattern = np.array(made["pattern", layer])[0, :, -1]
            assert np.abs(seen.sites["pattern"][layer][row] - pattern).max() <= 1e-5


def test_conditions_run_in_parts_as_together(monkeypatch):
    model = wrap(tiny_llama(3), {"model_type": "llama"})
    ids = [3, 9, 27, 50]
    asked = [Condition("A", ((layer, head),)) for layer in range(4) for head in range(4)]
    together = conditions.run(model, ids, asked, ["attn_out"])
    monkeypatch.setattr(conditions, "worth", lambda: 12)
    apart = conditions.run(model, ids, asked, ["attn_out"])
    assert np.abs(together.logits - apart.logits).max() <= 1e-6
    for layer, rows in together.sites["attn_out"].items():
        assert np.abs(rows - apart.sites["attn_out"][layer]).max() <= 1e-6


def test_what_comes_before_the_first_edit_runs_once(monkeypatch):
    model = wrap(tiny_llama(3), {"model_type": "llama"})
    ids = [3, 9, 27, 50, 9, 27, 4, 8]
    asked = [Condition("base"), Condition("A", ((1, 3),), values=((2, None),), offsets=(1, 3))]
    seen = conditions.run(model, ids, asked, ["attn_out", "pattern"])
    lengths = []
    run = model.run

    def counted(_, tokens, *args, **how):
        lengths.append(len(tokens[0]))
        return run(tokens, *args, **how)

    monkeypatch.setattr(type(model), "run", counted)
    conditions.run(model, ids, asked)
    monkeypatch.setattr(conditions, "_prefix", lambda *_: None)
    plain = conditions.run(model, ids, asked, ["attn_out", "pattern"])
    assert lengths == [4, 8]
    assert np.abs(seen.logits - plain.logits).max() <= 1e-5
    for site in ("attn_out", "pattern"):
        for layer, rows in plain.sites[site].items():
            assert np.abs(seen.sites[site][layer] - rows).max() <= 1e-5


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss", "deepseek_v3", "qwen3_moe", "phi3"])
def test_other_architectures_are_plain_runs_too(name):
    model = tiny(name)
    ids = [3, 9, 27, 50, 9]
    asked = [Condition("A", ((1, 1),)), Condition("B", values=((1, None),), offsets=(1,))]
    seen = conditions.run(model, ids, asked, ["attn_out"], [1])
    for row, edit in enumerate(
        (zero("z", 1, positions=[4], heads=[1]), zero("v", 1, positions=[3]))
    ):
        made = model.run([ids], ["attn_out"], [edit], "last", layers=[1])
        out = np.array(made["attn_out", 1])[0, -1]
        assert np.abs(seen.sites["attn_out"][1][row] - out).max() <= 1e-5
        assert np.abs(seen.logits[row] - np.array(made.logits)[0, 0]).max() <= 5e-5


def test_what_has_no_heads_is_refused_by_name():
    with pytest.raises(SpecError, match="layer 0 of mamba has no heads"):
        conditions.run(tiny("mamba"), [1, 2, 3], [Condition("A", ((0, 0),))])
    with pytest.raises(SpecError, match=r"L1H9 is not in .* the heads 0\.\.3"):
        conditions.run(wrap(tiny_llama(0), {}), [1, 2], [Condition("A", ((1, 9),))])
    with pytest.raises(SpecError, match=r"layer 7 is outside 0\.\.3"):
        conditions.run(wrap(tiny_llama(0), {}), [1, 2], [Condition("A", ((7, 0),))])
    with pytest.raises(ModelError, match="attn_out cannot be captured"):
        Redundancy(((0, 0),)).measure(tiny("dbrx"), [1, 2, 3])


# --- the tests against transformers ---------------------------------------------------------------


def test_seven_comparisons_are_those_of_transformers(model, oracle):
    heads, group = ((1, 4), (2, 1)), 2
    layers, t = (1, 2), len(IDS) - 2
    every = [(layer, h, t) for layer in layers for h in range(4)]
    spec = [(layer, head // group, t) for layer, head in heads]
    runs = {
        "base": hooked(oracle, IDS),
        "A": hooked(oracle, IDS, heads=heads),
        "B_all": hooked(oracle, IDS, values=every),
        "B_spec": hooked(oracle, IDS, values=spec),
        "AB_all": hooked(oracle, IDS, heads=heads, values=every),
        "AB_spec": hooked(oracle, IDS, heads=heads, values=spec),
    }
    other = ((1, 0), (2, 7))
    test = Redundancy(heads, None, (other,))
    values, arrays = test.measure(model, IDS)
    assert list(values) == [f"nip_{a}_{b}" for a, b in COMPARISONS]
    for n, (a, b) in enumerate(COMPARISONS):
        for m, layer in enumerate(layers):
            x, y = (runs[name][0][layer].astype(np.float64) for name in (a, b))
            nip, cosine, moved = (arrays[name][n, m] for name in ("nip", "cosine", "moved"))
            assert nip == pytest.approx(x @ y / (x @ x), abs=2e-5)
            assert cosine == pytest.approx(x @ y / np.sqrt((x @ x) * (y @ y)), abs=2e-5)
            assert moved == pytest.approx(((x - y) ** 2).sum(), rel=1e-3, abs=1e-6)
        p, q = (log_softmax(runs[name][1]) for name in (a, b))
        assert arrays["kl"][n] == pytest.approx((np.exp(p) * (p - q)).sum(), abs=1e-4)
        assert arrays["top1_changed"][n] == (p.argmax() != q.argmax())
    drawn = [
        hooked(oracle, IDS, heads=other),
        hooked(oracle, IDS, heads=other, values=every),
    ]
    for m, layer in enumerate(layers):
        r, rb = (made[0][layer].astype(np.float64) for made in drawn)
        assert arrays["random_moved"][0, m] == pytest.approx(((r - rb) ** 2).sum(), rel=1e-3)


def test_offsets_are_those_of_transformers(model, oracle):
    _, arrays = Offsets(((1, 4),), 9, (((1, 0),),)).measure(model, IDS)
    base, alone = (hooked(oracle, IDS, heads=h)[0][1].astype(np.float64) for h in ((), [(1, 4)]))
    assert arrays["heads_nip"][0] == pytest.approx(base @ alone / (base @ base), abs=2e-5)
    t, sets = len(IDS) - 1, ((), [(1, 4)], [(1, 0)])
    owns = [hooked(oracle, IDS, heads=heads)[0][1] for heads in sets]
    for d in (1, 4, t, t + 1, 9):
        if d > t:
            assert np.isnan(arrays["nip"][:, 0, d - 1]).all()
            assert np.isnan(arrays["moved"][:, 0, d - 1]).all()
            continue
        gone = [(1, h, t - d) for h in range(4)]
        for row, (heads, own) in enumerate(zip(sets, owns, strict=True)):
            made = hooked(oracle, IDS, heads=heads, values=gone)[0][1].astype(np.float64)
            want = ((own - made) ** 2).sum()
            assert arrays["moved"][row, 0, d - 1] == pytest.approx(want, rel=1e-3, abs=1e-8)
            if row < 2:
                nip = base @ made / (base @ base)
                assert arrays["nip"][1 - row, 0, d - 1] == pytest.approx(nip, abs=2e-5)


@pytest.mark.parametrize("everywhere", [True, False])
def test_patterns_are_those_of_transformers(model, oracle, everywhere):
    heads, other = ((0, 1), (1, 4)), ((0, 0), (1, 7))
    test = Patterns(heads, (1, 2, 3, 4, 5), everywhere, 10, (other,))
    values, arrays = test.measure(model, IDS)
    base = hooked(oracle, IDS)[2]
    for n, zeroed in enumerate((heads, other)):
        made = hooked(oracle, IDS, heads=zeroed, everywhere=everywhere)[2]
        for m, layer in enumerate(test.layers):
            moved = 0.5 * np.abs(made[layer] - base[layer]).sum(axis=-1)
            assert np.abs(arrays["moved"][n, m] - moved).max() <= 1e-5
            shift = (made[layer] - base[layer]).mean(axis=0)[::-1]
            assert np.abs(arrays["shift"][n, m, : len(IDS)] - shift).max() <= 1e-5
            if n == 0:
                for k, seen in enumerate((base, made)):
                    got = arrays["pattern"][k, m, :, : len(IDS)]
                    assert np.abs(got - seen[layer][:, ::-1]).max() <= 1e-5
    assert np.isnan(arrays["pattern"][..., len(IDS) :]).all()
    assert values["moved_most"] == pytest.approx(np.nanmax(arrays["moved"][0]))


# --- closed forms ---------------------------------------------------------------------------------


def test_in_the_layer_itself_values_give_what_the_weights_say(model):
    """base - B is the sum over heads of W_O p[t, t-1] v[t-1]; A - AB that over the others."""
    made = model.run([IDS], ["pattern", "v"], layers=[1])
    pattern = np.array(made["pattern", 1])[0, :, -1, -2]
    v = np.array(made["v", 1])[0, -2]
    each = np.einsum("h,hd,hdm->hm", pattern, v[np.arange(8) // 2], np.array(model.W_O(1)))
    _, arrays = Redundancy(((1, 4),)).measure(model, IDS)
    at = {comparison: n for n, comparison in enumerate(COMPARISONS)}
    moved = arrays["moved"][:, 0]
    others = each[np.arange(8) != 4].sum(axis=0)
    assert moved[at["base", "B_all"]] == pytest.approx((each.sum(axis=0) ** 2).sum(), rel=1e-4)
    assert moved[at["A", "AB_all"]] == pytest.approx((others**2).sum(), rel=1e-4)
    assert moved[at["A", "AB_spec"]] == pytest.approx((each[5] ** 2).sum(), rel=1e-3)


def test_without_all_heads_of_the_layer_nothing_remains(model):
    whole = tuple((1, head) for head in range(8))
    _, arrays = Redundancy(whole).measure(model, IDS)
    at = {comparison: n for n, comparison in enumerate(COMPARISONS)}
    assert arrays["moved"][at["A", "AB_all"], 0] == 0
    assert arrays["nip"][at["base", "A"], 0] == pytest.approx(0, abs=1e-7)
    assert arrays["moved"][at["base", "B_all"], 0] > 0.01


# --- random sets and intervals --------------------------------------------------------------------


def test_random_sets_have_the_layer_mix_and_are_others():
    heads = [(1, 4), (3, 0), (3, 2)]
    found = conditions.random_sets(heads, dict.fromkeys(range(4), 8), 20, np.random.default_rng(0))
    assert len({*found}) == len(found) == 20
    for drawn in found:
        assert [layer for layer, _ in drawn] == [1, 3, 3]
        assert len({*drawn}) == 3
        assert not {*drawn} & {*heads}
    assert len(conditions.random_sets([(0, 1)], {0: 8}, 20, np.random.default_rng(0))) == 7
    assert conditions.random_sets([(0, 0), (0, 1)], {0: 2}, 20, np.random.default_rng(0)) == []
    scarce = conditions.random_sets([(0, 0), (0, 1)], {0: 4}, 20, np.random.default_rng(0))
    assert scarce[0] == ((0, 2), (0, 3)), "the one without either head comes first"
    assert len(scarce) == 5
    uneven = conditions.random_sets([(0, 0), (1, 1)], {0: 2, 1: 3}, 20, np.random.default_rng(0))
    assert {at for drawn in uneven for at in drawn} == {
        (i, h) for i in (0, 1) for h in range(2 + i)
    }


def test_intervals_draw_prompts_again_and_not_samples():
    rng = np.random.default_rng(0)
    values = rng.standard_normal(40)
    alone = spread.means(values[:, None], range(40), np.random.default_rng(1)).at(0)
    low, high = bootstrap_mean_ci(values, np.random.default_rng(2))
    assert alone["mean"] == pytest.approx(values.mean())
    assert alone["std"] == pytest.approx(values.std(ddof=1))
    assert alone["ci"] == pytest.approx([low, high], abs=0.02)
    # ten samples of each prompt that say the same are no more than one
    often = spread.means(np.repeat(values, 10), np.repeat(range(40), 10), np.random.default_rng(1))
    assert often.at()["ci"] == pytest.approx(alone["ci"], abs=1e-9)
    assert often.at()["n"] == 400
    # a single prompt: its samples; a single sample: no interval
    assert np.isfinite(spread.means(values, [3] * 40, rng).at()["ci"]).all()
    assert np.isnan(spread.means(values[:1], [3], rng).at()["ci"]).all()
    constant = spread.means(np.full((5, 2), 0.1), range(5), rng)
    assert constant.at(1)["ci"] == pytest.approx([0.1, 0.1], abs=1e-12)
    holes = spread.means(np.array([[1.0, np.nan], [3.0, np.nan]]), range(2), rng)
    assert (holes.at(0)["mean"], holes.at(1)["n"]) == (2.0, 0)


def test_p_counts_the_set_itself():
    assert spread.against(0.1, [0.2, 0.3, 0.4], smaller=True)["p"] == 0.25
    assert spread.against(0.3, [0.2, 0.3, 0.4], smaller=True)["p"] == 0.75
    assert spread.against(0.5, [0.2, 0.3, 0.4], smaller=False)["p"] == 0.25
    assert np.isnan(spread.against(0.5, [], smaller=False)["p"])


# --- the study ------------------------------------------------------------------------------------


def planned(test="redundancy", heads=((1, 4),), prompts=PROMPTS, **options):
    subject = Subject.of_model(str(FOLDER))
    options = {"samples": 6, "n_random": 3} | options
    return position_tests.planned(test, subject, prompts, heads, **options)


def test_positions_are_drawn_or_given():
    study = planned()
    assert [len(places) for places in study.positions] == [2, 2, 2]
    for prompt, places in zip(study.prompts, study.positions, strict=True):
        assert all(2 <= t < prompt.n_tokens for t in places)
    assert planned().positions == study.positions != planned(seed=1).positions
    assert planned(positions=[-1, 3]).positions == [[3, 7]] * 3
    assert planned("compare").positions == [[7]] * 3
    assert planned(prompts=[Prompt("two", ids=(5, 6))]).positions == [[1]]
    repeats = planned("patterns", prompts=None)
    assert {p.ids[:12] == p.ids[12:] for p in repeats.prompts} == {True}
    assert all(12 <= t < 24 for places in repeats.positions for t in places)
    assert "random ids, twice" in repeats.subject.notes[-1]
    assert [p.id for p in planned(prompts=None).prompts][::39] == ["copy_1", "rule_5"]
    for bad, match in (
        ({"prompts": [Prompt("one", ids=(5,))]}, "has one token"),
        ({"positions": [0]}, r"position 0 of prompt 'a' cannot be t: t must be in 1\.\.7"),
        ({"positions": [-9]}, "cannot be t"),
    ):
        with pytest.raises(PromptError, match=match):
            planned(**bad)
    for heads, match in (
        ((), "no head is named"),
        (((9, 0),), r"outside 0\.\.5"),
        (((0, 8),), r"outside 0\.\.7"),
    ):
        with pytest.raises(SpecError, match=match):
            planned(heads=heads)
    with pytest.raises(SpecError, match="last layer"):
        planned("patterns", heads=((5, 0),))


def test_the_document_follows_from_the_samples(tmp_path):
    study = planned()
    doc = run_study(study, tmp_path / "run")
    assert (doc["schema"], doc["test"], doc["n_samples"]) == (
        "mlxroles/ablate/1",
        "redundancy",
        {"model": 6},
    )
    measured = [
        study.test.measure(study.subject.model("model"), study.prompts[p].ids[: t + 1])[1]
        for p, places in enumerate(study.positions)
        for t in places
    ]
    nip, moved = (np.stack([a[name] for a in measured]) for name in ("nip", "moved"))
    row = next(r for r in doc["rows"] if r["comparison"] == "A - AB_all")
    assert row["nip"]["mean"] == pytest.approx(nip[:, 5, 0].mean())
    low, high = row["nip"]["ci"]
    assert low <= row["nip"]["mean"] <= high
    (remains,) = doc["remains"]
    assert remains["share"] == pytest.approx(moved[:, 5, 0].sum() / moved[:, 1, 0].sum())
    assert remains["random"]["n"] == 3
    assert f"{100 * remains['share']:.0f} % of what values at t-1 give" in doc["sentence"]
    assert study.plan()["cells"] == 6


def test_a_run_goes_on_where_it_ended(tmp_path, monkeypatch):
    first = run_study(planned(), tmp_path / "run")
    lines = (tmp_path / "run" / "cells.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run" / "cells.jsonl").write_text("".join(lines[:4]))
    again = planned()
    real, seen = Redundancy.measure, []
    monkeypatch.setattr(
        Redundancy, "measure", lambda self, model, ids: seen.append(ids) or real(self, model, ids)
    )
    doc = run_study(again, tmp_path / "run")
    assert len(seen) == 2
    for name in ("rows", "remains", "sentence", "random"):
        assert doc[name] == first[name]


@pytest.mark.parametrize("test", ["redundancy", "offsets", "patterns"])
def test_reports_are_made_from_the_stored_document(test, tmp_path):
    # without random heads, and with a model of which nothing is measured yet
    study = planned(test, n_random=0 if test == "offsets" else 3)
    doc = run_study(study, tmp_path / "run")
    doc["sentence"] += " <b>&"
    doc["models"].append("later")
    assert position_results.write(tmp_path / "run", doc)[0] == "report.html"
    page = (tmp_path / "run" / "report.html").read_bytes()
    table = (tmp_path / "run" / f"{test}.csv").read_text().splitlines()
    assert b"<b>" not in page
    assert b"&lt;b&gt;&amp;" in page
    assert table[0].startswith("model,")
    assert len(table) > 10
    stored = json.loads((tmp_path / "run" / "summary.json").read_text())
    position_results.write(tmp_path / "run", stored)
    assert (tmp_path / "run" / "report.html").read_bytes() == page
    nothing = doc | study.test.summary({"model": []}, study)
    assert nothing["sentence"] == "Nothing was measured."
    position_results.write(tmp_path / "run", nothing)
    console = Console(width=80, file=io.StringIO())
    for each in (stored, nothing):
        console.print(position_table(each))
    assert max(map(len, console.file.getvalue().splitlines())) <= 80
    assert "…" not in console.file.getvalue()


def test_the_previous_token_head_of_tiny_is_the_way_for_values_at_t_minus_1(tmp_path):
    """L0H1 was told to look at the token before; the values there have little other way."""
    subject = Subject.of_pair(pair("tiny"), only="base")
    study = position_tests.planned(
        "redundancy",
        subject,
        [Prompt(f"p{n}", ids=_ids(n)) for n in range(5)],
        [(0, 1)],
        samples=20,
    )
    (remains,) = run_study(study, tmp_path / "run")["remains"]
    assert remains["ci"][1] < remains["random"]["range"][0]
    assert remains["random"]["n"] == 7
    assert remains["random"]["p"] == 0.125


def _ids(seed):
    half = np.random.default_rng(seed).integers(10, 1000, 12)
    return tuple(int(i) for i in np.tile(half, 2))
