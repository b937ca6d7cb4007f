"""A patch sweep against a plain loop over the layers of a small real pair."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import stories
from stories import TEXT, TOOL, Plain, softmax, without_times

from mlxroles import edits, engine, forward, probes
from mlxroles.backend import mx
from mlxroles.documents import DIRECTIONS, donor, recipient
from mlxroles.errors import PairError, PromptError, SpecError
from mlxroles.events import Stage
from mlxroles.stats import bootstrap_mean_ci
from mlxroles.studies import patch_run, patch_sweep

LAYERS = range(5)
SIDES = ("base", "instruct")
SITES = ("resid_post", "resid_pre", "attn_out", "mlp_out", "z")


@pytest.fixture(scope="module", autouse=True)
def no_figures():
    """Figures have tests of their own and take longer than everything here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patch_sweep, "patch_figures", lambda doc, folder: {})
        patch.setattr(patch_sweep, "svg", lambda doc, path, *, title: None)
        yield


@pytest.fixture(scope="module")
def models(shared):
    return shared / "models"


@pytest.fixture(scope="module")
def plain(models):
    names = ("stories260K", "stories260K-chat")
    return {s: Plain(models / n) for s, n in zip(SIDES, names, strict=True)}


@pytest.fixture(scope="module")
def swept(models, tmp_path_factory):
    """The sweep of the default options: document, sweep."""
    study = stories.sweep(models)
    return stories.run(study, tmp_path_factory.mktemp("swept")), study


def ids_of(study, prompt=0):
    return study.grid.prompts[prompt].ids


def gap(doc, direction):
    levels = {s: doc["baselines"][s]["log_odds"] for s in SIDES}
    return levels[recipient(direction)], levels[donor(direction)]


def check(cell, row, base_row):
    """Every measure of a cell from its row of logits, worked out again."""
    p, q = softmax(row), softmax(base_row)
    assert cell["tool_call_prob"] == pytest.approx(p[TOOL], rel=1e-4, abs=1e-12)
    assert cell["p_first_token"] == pytest.approx(p[TOOL], rel=1e-4, abs=1e-12)
    assert cell["p_chain"] == pytest.approx(p[TOOL], rel=1e-4, abs=1e-12)
    assert cell["log_prob"] == pytest.approx(math.log(p[TOOL]), abs=1e-4)
    others = math.log(np.delete(p, TOOL).sum())
    assert cell["log_odds"] == pytest.approx(math.log(p[TOOL]) - others, abs=1e-4)
    assert cell["logit_diff"] == pytest.approx(row[TOOL] - np.delete(row, TOOL).max(), abs=1e-4)
    assert cell["entropy"] == pytest.approx(-(p * np.log(p)).sum(), abs=1e-4)
    assert cell["kl"] == pytest.approx((p * np.log(p / q)).sum(), rel=1e-4, abs=1e-5)
    assert cell["rank"] == (row > row[TOOL]).sum()
    best = np.argsort(-row, kind="stable")[:5]
    assert [entry["id"] for entry in cell["top5"]] == best.tolist()
    assert [entry["prob"] for entry in cell["top5"]] == pytest.approx(p[best].tolist(), rel=1e-4)


def test_prompt_has_the_ids_and_the_answer_that_are_known(swept):
    doc, study = swept
    assert ids_of(study)[0] == 1
    assert ids_of(study)[-1] == 410
    assert doc["baselines"]["instruct"]["p_first_token"] >= 0.99
    assert doc["baselines"]["base"]["p_first_token"] < 1e-8
    probs = [doc["base_to_instruct"][str(i)]["tool_call_prob"] for i in LAYERS]
    assert probs[1] > 0.85
    assert probs[2] < 0.05
    assert probs[4] < 1e-6


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_number_is_that_of_a_plain_loop(swept, plain, direction):
    doc, study = swept
    ids = ids_of(study)
    target, source = plain[recipient(direction)], plain[donor(direction)]
    clean, given = target.logits(ids)[-1], source.stream(ids)
    own, goal = gap(doc, direction)
    before = math.nan
    for layer in LAYERS:
        cell = doc[direction][str(layer)]
        row = target.finish(given[layer + 1], layer + 1)[-1]
        check(cell, row, clean)
        p, q = softmax(row), softmax(clean)
        assert cell["effect"] == pytest.approx(p[TOOL] - q[TOOL], abs=1e-6)
        assert cell["effect_log_odds"] == pytest.approx(cell["log_odds"] - own, abs=1e-9)
        assert cell["recovery"] == pytest.approx((cell["log_odds"] - own) / (goal - own), abs=1e-9)
        if layer:
            assert cell["increment"] == pytest.approx(cell["recovery"] - before, abs=1e-9)
        before = cell["recovery"]
    recoveries = {i: doc[direction][str(i)]["recovery"] for i in LAYERS}
    first = next((i for i in LAYERS if recoveries[i] >= 0.5), None)
    assert doc["summary"][direction]["first_half_recovery_layer"] == first
    effects = {i: doc[direction][str(i)]["effect"] for i in LAYERS}
    peak = max(LAYERS, key=lambda i: abs(effects[i]))
    assert doc["summary"][direction]["peak_layer"] == peak
    assert doc["summary"][direction]["peak_depth_pct"] == 100 * peak / 5


@pytest.mark.parametrize("positions", ["all", "last", "3-6"])
@pytest.mark.parametrize("site", SITES)
def test_every_site_and_position_is_that_of_a_plain_loop(models, plain, tmp_path, site, positions):
    study = stories.sweep(models, site=site, positions=positions, layers="1,4", controls=())
    doc = stories.run(study, tmp_path / "run")
    ids = ids_of(study)
    n = len(ids)
    chosen = {"all": range(n), "last": [n - 1], "3-6": range(3, 7)}[positions]
    streams = {s: plain[s].stream(ids) for s in SIDES}
    for direction in DIRECTIONS:
        target, source = plain[recipient(direction)], plain[donor(direction)]
        clean = target.logits(ids)[-1]
        for layer in (1, 4):
            given = source.at(site, layer, streams[donor(direction)])

            def new(own, given=given):
                mask = mx.array([i in chosen for i in range(n)])
                return mx.where(mask.reshape(1, n, *[1] * (own.ndim - 2)), given, own)

            h = streams[recipient(direction)][layer]
            check(doc[direction][str(layer)], target.patched(site, layer, h, new)[-1], clean)


@pytest.mark.parametrize("site", ["q", "k", "v", "pattern"])
def test_queries_keys_values_and_patterns_are_patched_head_by_head(models, tmp_path, site):
    study = stories.sweep(models, site=site, heads="each", layers="1,4")
    doc = stories.run(study, tmp_path / "run")
    ids, network = mx.array([ids_of(study)]), {s: study.subject.model(s).network for s in SIDES}
    n, heads = ids.shape[1], 4 if site in "kv" else 8
    for direction in DIRECTIONS:
        target = network[recipient(direction)]
        given = forward.forward(network[donor(direction)], ids, keep=[site], logits=False)
        clean = np.array(forward.forward(target, ids, read=[n - 1]).logits)[0, 0]
        for layer in (1, 4):
            cells = doc[direction][str(layer)]["by_head"]
            assert sorted(map(int, cells)) == list(range(heads))
            for head in (0, heads - 1):
                edit = edits.transplant(site, layer, given[site, layer], heads=[head])
                row = forward.forward(target, ids, edits=[edit], read=[n - 1]).logits
                check(cells[str(head)], np.array(row)[0, 0], clean)
    assert {"other_prompt", "random"} == {*doc["controls"]}


def test_the_control_of_a_pattern_deals_a_querys_weights_to_keys_that_it_may_see(models):
    model = stories.subject(models).model("base")
    pattern = model.run([1, 403, 407, 261, 410], keep=["pattern"], layers=[2])["pattern", 2]
    dealt = np.array(engine.shuffled_keys(pattern, np.random.default_rng(0)))
    real = np.array(pattern)
    assert (np.triu(dealt, 1) == 0).all()
    assert (np.sort(dealt, axis=-1) == np.sort(real, axis=-1)).all()
    assert (dealt != real).any()


def test_each_position_is_its_own_cell(models, plain, tmp_path):
    study = stories.sweep(models, [[1, 403, 407, 261, 410]], positions="each", layers="2")
    doc = stories.run(study, tmp_path / "run")
    ids = ids_of(study)
    target, given = plain["instruct"], plain["base"].stream(ids)
    own = target.stream(ids)[3]
    cells = doc["base_to_instruct"]["2"]["by_position"]
    assert sorted(map(int, cells)) == list(range(5))
    for position in range(5):
        mask = (mx.arange(5) == position).reshape(1, 5, 1)
        row = target.finish(mx.where(mask, given[3], own), 3)[-1]
        check(cells[str(position)], row, target.logits(ids)[-1])
    strongest = doc["base_to_instruct"]["2"]["strongest"]
    assert doc["base_to_instruct"]["2"]["recovery"] == cells[str(strongest)]["recovery"]


@pytest.mark.parametrize("heads", ["0,5", "2-3", "each"])
def test_heads_of_z_are_those_of_a_plain_loop(models, plain, tmp_path, heads):
    study = stories.sweep(models, site="z", heads=heads, layers="0", controls=())
    doc = stories.run(study, tmp_path / "run")
    ids, n_heads = ids_of(study), 8
    target, source = plain["instruct"], plain["base"]
    h, clean = target.stream(ids)[0], target.logits(ids)[-1]
    given = source.at("z", 0, source.stream(ids))
    cell = doc["base_to_instruct"]["0"]
    groups = {"0,5": [(0, 5)], "2-3": [(2, 3)], "each": [(i,) for i in range(n_heads)]}[heads]
    for group in groups:
        found = cell["by_head"][str(group[0])] if heads == "each" else cell
        mask = mx.array([i in group for i in range(n_heads)]).reshape(1, 1, n_heads, 1)
        row = target.patched("z", 0, h, lambda own, m=mask: mx.where(m, given, own))[-1]
        check(found, row, clean)


def test_several_prompts_give_means_and_intervals_over_prompts(models, plain, tmp_path):
    texts = [TEXT, "User: Where is the dog?\nAssistant: ", "The cat sat. "]
    study = stories.sweep(models, texts, layers="1,3", controls=())
    doc = stories.run(study, tmp_path / "run")
    assert doc["n_tokens_per_prompt"] == [len(ids_of(study, p)) for p in range(3)]
    for direction in DIRECTIONS:
        target, source = plain[recipient(direction)], plain[donor(direction)]
        for layer in (1, 3):
            column = {"log_odds": [], "recovery": [], "effect": []}
            for p in range(3):
                ids = ids_of(study, p)
                rows = {
                    "patched": target.finish(source.stream(ids)[layer + 1], layer + 1)[-1],
                    "own": target.logits(ids)[-1],
                    "goal": source.logits(ids)[-1],
                }
                odds = {k: float(probes.log_odds(v, [TOOL])) for k, v in rows.items()}
                gap = odds["goal"] - odds["own"]
                column["log_odds"].append(odds["patched"])
                column["recovery"].append((odds["patched"] - odds["own"]) / gap)
                column["effect"].append(softmax(rows["patched"])[TOOL] - softmax(rows["own"])[TOOL])
            cell = doc[direction][str(layer)]
            for name, values in column.items():
                assert cell[name] == pytest.approx(np.mean(values), abs=1e-4)
                bounds = bootstrap_mean_ci(values, np.random.default_rng(7))
                wide = max(values) - min(values)
                assert cell[f"{name}_ci"] == pytest.approx(
                    [float(b) for b in bounds], abs=wide / 50
                )
    total = sum(entry["prob"] for entry in doc["baselines"]["base"]["top5"])
    assert 0 < total <= 1


def test_a_chain_is_the_product_of_teacher_forced_steps(models, plain, tmp_path):
    study = stories.sweep(models, strings=("puppy is", "puppy"), layers="2", controls=())
    chain = study.targets.head.chain
    assert len(chain) > 1
    doc = stories.run(study, tmp_path / "run")
    ids = ids_of(study)
    for side in SIDES:
        p = 1.0
        for step, token in enumerate(chain):
            p *= softmax(plain[side].logits([*ids, *chain[:step]])[-1])[token]
        assert doc["baselines"][side]["p_chain"] == pytest.approx(p, rel=1e-3)
    whole = [*ids, *chain[:-1]]
    given = plain["base"].stream(whole)[3]
    rows = plain["instruct"].finish(given, 3)[len(ids) - 1 :]
    p = math.prod(softmax(row)[token] for row, token in zip(rows, chain, strict=True))
    cell = doc["base_to_instruct"]["2"]
    assert cell["p_chain"] == pytest.approx(p, rel=1e-3)
    assert cell["p_chain"] <= cell["p_first_token"]


def test_the_chains_of_all_second_tokens_sum_to_the_first(plain):
    ids, first = [1, 403, 407], 261
    step, after = softmax(plain["base"].logits(ids)[-1]), plain["base"].logits([*ids, first])
    rows = np.stack([plain["base"].logits(ids)[-1], after[-1]])
    chains = [math.exp(probes.chain_log_prob(rows, [first, second])) for second in range(512)]
    assert sum(chains) == pytest.approx(step[first], rel=1e-9)


def test_a_model_patched_into_itself_changes_nothing(models, tmp_path):
    study = stories.sweep(models, base=models / "stories260K-chat", controls=())
    doc = stories.run(study, tmp_path / "run")
    for direction in DIRECTIONS:
        for cell in doc[direction].values():
            assert (cell["effect"], cell["effect_log_odds"], cell["kl"]) == (0.0, 0.0, 0.0)
            assert math.isnan(cell["recovery"])
    stored = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert stored["base_to_instruct"]["2"]["recovery"] is None
    assert stored["summary"]["base_to_instruct"]["first_half_recovery_layer"] is None
    assert "nothing to recover" in doc["summary"]["sentence"]


def test_the_other_prompt_control_puts_in_the_donor_on_the_control_text(swept, plain):
    doc, study = swept
    prompt = study.grid.prompts[0]
    assert len(prompt.other) == len(prompt.ids)
    assert prompt.other[0] == prompt.ids[0]
    assert prompt.other != prompt.ids
    clean = plain["instruct"].logits(prompt.ids)[-1]
    given = plain["base"].stream(prompt.other)
    for layer in LAYERS:
        row = plain["instruct"].finish(given[layer + 1], layer + 1)[-1]
        check(doc["controls"]["other_prompt"]["base_to_instruct"][str(layer)], row, clean)


def test_the_random_control_is_noise_of_the_donors_norms_from_the_seed(swept, plain):
    doc, study = swept
    ids = ids_of(study)
    clean = plain["base"].logits(ids)[-1]
    for layer in LAYERS:
        given = np.array(plain["instruct"].stream(ids)[layer + 1])
        rng = np.random.default_rng([0, 0, layer, 1])  # seed, prompt, layer, instruct to base
        noise = rng.standard_normal(given.shape, dtype=np.float32)
        noise *= np.linalg.norm(given, axis=-1, keepdims=True)
        noise /= np.linalg.norm(rng_noise(layer, given.shape), axis=-1, keepdims=True)
        row = plain["base"].finish(mx.array(noise), layer + 1)[-1]
        cell = doc["controls"]["random"]["instruct_to_base"][str(layer)]
        assert cell["log_odds"] == pytest.approx(float(probes.log_odds(row, [TOOL])), abs=2e-3)
        assert cell["kl"] == pytest.approx(probes.kl(row, clean), rel=1e-3)


def rng_noise(layer, shape):
    rng = np.random.default_rng([0, 0, layer, 1])
    return rng.standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("ids", [(1,), (1, 5), (7, 7, 7)])
def test_a_prompt_too_short_to_shuffle_gets_another_control(ids):
    from mlxroles.studies.inputs import other_tokens

    other = other_tokens(ids, [], np.random.default_rng(0), vocab=512)
    assert len(other) == len(ids)
    assert other != ids
    assert all(0 <= i < 512 for i in other)


def test_the_donors_head_reads_the_patched_stream(models, plain, tmp_path):
    study = stories.sweep(models, layers="1,4", controls=(), donor_head=True)
    doc = stories.run(study, tmp_path / "run")
    ids = ids_of(study)
    for layer in (1, 4):
        h = plain["base"].stream(ids)[layer + 1]
        for i in range(layer + 1, 5):
            h = plain["instruct"].block(i, h)
        row = plain["base"].head(h)[-1]
        found = doc["base_to_instruct"][str(layer)]["donor_head"]
        assert found["log_odds"] == pytest.approx(float(probes.log_odds(row, [TOOL])), abs=1e-4)
    base = doc["baselines"]["base"]["log_odds"]
    assert doc["base_to_instruct"]["4"]["donor_head"]["log_odds"] == pytest.approx(base, abs=1e-4)


def stored(folder):
    """The summary of a run without what differs between two equal runs."""
    return without_times(json.loads((folder / "summary.json").read_text()))


def test_one_model_at_a_time_gives_the_same_numbers(models, swept, tmp_path):
    study = stories.sweep(models, resident=1)
    stories.run(study, tmp_path / "run")
    assert len(study.subject._loaded) == 1
    assert stored(tmp_path / "run") == stored(Path(swept[0]["run"]))


def test_nothing_before_the_edited_layer_runs_again(models, tmp_path):
    study = stories.sweep(models, layers="1,3", controls=())
    engine.reset_calls()
    stories.run(study, tmp_path / "run")
    share = 1 / study.grid.prompts[0].n_tokens  # the last layer runs where it is read
    made, least = engine.calls()
    assert made == pytest.approx(2 * (4 + share) + 2 * (2 + share + share))
    assert least == pytest.approx(made)
    assert study.plan()["layer_calls"] == pytest.approx(made, abs=0.06)


def test_blocks_before_the_start_are_not_called(models):
    loaded = stories.subject(models).model("base")
    seen = []
    number = {id(layer): n for n, layer in enumerate(loaded.network.layers)}
    kind = type(loaded.network.layers[0])
    real = kind.__call__
    kind.__call__ = lambda self, *a, **k: seen.append(number[id(self)]) or real(self, *a, **k)
    try:
        h = loaded.embed([1, 2, 3])
        seen.clear()
        start = forward.Start(3, h)
        forward.forward(loaded.network, mx.array([[1, 2, 3]]), start=start, read=[2])
    finally:
        kind.__call__ = real
    assert seen == [3, 4]


def test_prompts_beyond_the_memory_bound_run_in_groups_with_the_same_numbers(
    models, tmp_path, monkeypatch
):
    texts = [TEXT, "The cat sat. "]
    stories.run(stories.sweep(models, texts, layers="2"), tmp_path / "whole")
    monkeypatch.setattr(patch_run, "STATE_BYTES", 1)
    events = []
    stories.run(stories.sweep(models, texts, layers="2"), tmp_path / "parts", events)
    assert stored(tmp_path / "parts") == stored(tmp_path / "whole")
    assert sum(e == Stage("preparing") for e in events) == 2


def test_a_cell_without_a_number_fails_alone(models, tmp_path, monkeypatch):
    real = engine.run

    def broken(network, own, rows):
        answers = real(network, own, rows)
        for row, answer in zip(rows, answers, strict=True):
            edit = row.edits[0]
            if tuple(edit.positions) == (3,) and edit.layer == 2:
                answer.logits[:] = np.nan
        return answers

    monkeypatch.setattr(patch_run.engine, "run", broken)
    study = stories.sweep(models, [[1, 2, 3, 4, 5, 6]], positions="each", layers="1-2")
    events = []
    doc = stories.run(study, tmp_path / "run", events)
    assert {f["cell"].split("/control")[0] for f in doc["failed_cells"]} == {
        f"{d}/resid_post/L02/P003" for d in DIRECTIONS
    }
    assert len(doc["failed_cells"]) == 2 * 3  # two directions; the patch and two controls
    assert all("not all finite" in f["error"] for f in doc["failed_cells"])
    cells = doc["base_to_instruct"]["2"]["by_position"]
    assert [p for p in cells if cells[p].get("log_odds") is None] == []
    assert sorted(map(int, cells)) == [0, 1, 2, 4, 5]
    monkeypatch.setattr(patch_run.engine, "run", real)
    study = stories.sweep(models, [[1, 2, 3, 4, 5, 6]], positions="each", layers="1-2")
    again = stories.run(study, tmp_path / "run")
    assert again["failed_cells"] == []
    assert len(again["base_to_instruct"]["2"]["by_position"]) == 6


@pytest.mark.parametrize("kept", [1, 4, 9, 14, 21])
def test_a_run_killed_anywhere_goes_on_to_the_same_document(models, tmp_path, kept):
    ids, how = [1, 403, 407, 261, 410], {"positions": "each", "layers": "2"}
    stories.run(stories.sweep(models, [ids], **how), tmp_path / "whole")
    stories.run(stories.sweep(models, [ids], **how), tmp_path / "cut")
    journal = tmp_path / "cut" / "cells.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:kept]) + lines[kept][: len(lines[kept]) // 2])
    events = []
    stories.run(stories.sweep(models, [ids], **how), tmp_path / "cut", events)
    assert stored(tmp_path / "cut") == stored(tmp_path / "whole")
    restored = [e for e in events if getattr(e, "restored", False)]
    assert len(restored) == kept


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"layers": "40"}, SpecError, "layer 40 is outside 0..4"),
        ({"layers": "-1"}, SpecError, "0..4"),
        ({"layers": "4-2"}, SpecError, "write 2-4"),
        ({"layers": "1-a"}, SpecError, "cannot be read"),
        ({"layers": ""}, SpecError, "cannot be read"),
        ({"positions": "28"}, SpecError, "position 28 is outside 0..27"),
        ({"heads": "1"}, SpecError, "--site z"),
        ({"site": "z", "heads": "8"}, SpecError, "head 8 is outside 0..7"),
        ({"site": "qq"}, SpecError, "cannot be patched"),
        ({"controls": ("noise",)}, SpecError, "unknown"),
        ({"site": "z", "heads": "each", "positions": "each"}, SpecError, "drop one"),
        ({"donor_head": True, "resident": 1}, SpecError, "--resident 2"),
        ({"token_ids": (512,)}, PromptError, "0..511"),
        ({"token_ids": (-1,)}, PromptError, "0..511"),
        ({"strings": ("a\ud800",)}, PromptError, "surrogate"),
        ({"strings": ("",)}, PromptError, "no token"),
        ({"prompts": [[1, 512]]}, PromptError, "0..511"),
        ({"prompts": [[1] * 100_000]}, PromptError, "100000 tokens"),
        ({"prompts": []}, PromptError, "no prompt"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_loaded(models, options, error, words):
    with pytest.raises(error, match=words):
        stories.sweep(models, **options)


def test_a_prompt_beyond_the_context_is_noted(models):
    study = stories.sweep(models, [[1] * 600], layers="0")
    assert any("600 tokens, more than the 512 positions" in text for text in study.subject.notes)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"num_hidden_layers": 4}, "layers 4, instruct 5"),
        ({"hidden_size": 32}, "d_model 32, instruct 64"),
        ({"vocab_size": 600}, "vocabulary 600, instruct 512"),
    ],
)
def test_models_of_another_shape_are_refused_with_both_values(models, tmp_path, config, words):
    base = stories.copied(models / "stories260K", tmp_path / "base", **config)
    with pytest.raises(PairError, match=words):
        stories.sweep(models, base=base)


def test_layers_that_show_the_shape_come_first_where_there_are_many_batches(models):
    study = stories.sweep(models, positions="each")
    work = study._work()
    batches = work.batches(study.cells)
    levels = {(c.coords.get("layer"), b.level) for b in batches for c in b.cells}
    assert levels - {(None, 0)} == {(0, 0), (1, 2), (2, 1), (3, 2), (4, 0)}
    together = [cell.id for batch in batches for cell in batch.cells]
    assert sorted(together) == sorted(cell.id for cell in study.cells)
    few = stories.sweep(models)
    assert {b.level for b in few._work().batches(few.cells)} == {0}


def test_a_cell_by_itself_has_the_same_numbers_to_rounding(models):
    study = stories.sweep(models)
    work = study._work()
    whole = {r.cell.id: r.values for b in work.batches(study.cells) for r in work.compute(b)}
    for cell in study.cells[2::5]:
        batch = work.alone(cell)
        assert batch.rows == batch.cells == (cell,)
        (result,) = work.compute(batch)
        assert result.values["log_odds"] == pytest.approx(whole[cell.id]["log_odds"], abs=1e-4)


def test_a_run_that_goes_on_cuts_the_batches_that_it_began_with(models, tmp_path):
    small = {"positions": "each", "memory": 3_000_000}
    first = stories.sweep(models, **small)
    begun = [batch.rows for batch in first._work()._batches]
    stories.run(first, tmp_path)
    later = stories.sweep(models, positions="each", memory=4_000_000_000)
    assert [batch.rows for batch in later._work()._batches] != begun
    seen = []
    real = patch_run.PatchWork.batches

    def batches(work, pending):
        seen.append([batch.rows for batch in work._batches])
        return real(work, pending)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patch_run.PatchWork, "batches", batches)
        stories.run(later, tmp_path)
        less = stories.sweep(models, positions="each", memory=2_900_000)
        stories.run(less, tmp_path)
    assert seen[0] == begun
    assert any("was begun with 3.00 MB of memory" in note for note in less.subject.notes)
