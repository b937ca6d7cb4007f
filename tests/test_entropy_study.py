"""Entropies as a run stores them: row by row against transformers and plain sums."""

import json
import os
import signal

import numpy as np
import pytest
import stories
from tiny_models import tiny, tokens

from mlxroles import attention as attn
from mlxroles.backend import mx
from mlxroles.errors import ModelError, PromptError
from mlxroles.forward import by_blocks, forward
from mlxroles.models.load import load
from mlxroles.pairs import pair
from mlxroles.prompts import Prompt, load_prompts
from mlxroles.roles import sources
from mlxroles.roles.table import Entropies
from mlxroles.runner import Result
from mlxroles.store.folder import RunFolder
from mlxroles.store.reader import axes, read
from mlxroles.studies import entropy as entropy_study
from mlxroles.studies import role_results
from mlxroles.studies.entropy import EntropyStudy, role_prompts, summaries
from mlxroles.studies.place import RunPlace
from mlxroles.studies.role_results import Analysis
from mlxroles.studies.subject import Subject

ARCHITECTURES = ("llama", "qwen2", "gemma2", "phi3", "gpt2", "deepseek_v2")
QUICK = Analysis(n_resamples=200, n_permutations=200)
NAMES = ("self_referent", "confounder", "neutral", "third_person")


def entropy_of(row):
    """Entropy of weights that sum to 1, by a plain sum over a list."""
    return -sum(float(p) * np.log(float(p)) for p in row if p > 0)


def id_prompts(lengths, categories=NAMES, vocab=60, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Prompt(f"p{n:02d}", ids=tuple(rng.integers(1, vocab, size=length).tolist()), category=name)
        for n, (length, name) in enumerate(zip(lengths, categories * len(lengths), strict=False))
    ]


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    """What is drawn is tested by test_plots_roles; here it would take most of the time."""
    monkeypatch.setattr(role_results, "role_figures", lambda *a: {})


def run(study, folder, analysis=QUICK, **place):
    doc, finished = study.run(
        lambda event: None, RunPlace(folder, out=folder / "run", **place), analysis
    )
    assert (finished.failed, finished.interrupted) == (0, None)
    return doc


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_summaries_equal_plain_sums_over_the_pattern(name):
    ids = tokens(2, 7)
    kept = forward(tiny(name).network, ids, keep=("pattern", *attn.SUMMARIES), logits=False)
    for layer in kept.layers("entropy"):
        weights = np.array(kept["pattern", layer], dtype=np.float64)
        found = {site: np.array(kept[site, layer]) for site in attn.SUMMARIES}
        assert np.isnan(found["entropy_no_first"][:, :, 0]).all()
        for row, head, q in np.ndindex(weights.shape[:3]):
            seen = weights[row, head, q, : q + 1]
            at = (row, head, q)
            assert found["entropy"][at] == pytest.approx(entropy_of(seen), abs=1e-5)
            if q:
                rest = seen[1:] / seen[1:].sum()
                assert found["entropy_no_first"][at] == pytest.approx(entropy_of(rest), abs=1e-5)
            near = [seen[k] if k <= q else 0 for k in range(3)]
            assert found["first_keys"][at] == pytest.approx(near, abs=1e-6)
            near = [seen[q - k] if k <= q else 0 for k in range(3)]
            assert found["recent_keys"][at] == pytest.approx(near, abs=1e-6)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_blocks_of_queries_equal_the_whole_prompt_row_by_row(name):
    ids = tokens(2, 23)
    network = tiny(name).network
    whole = forward(network, ids, keep=attn.SUMMARIES, logits=False)
    parts = list(by_blocks(network, ids, keep=attn.SUMMARIES, size=5))
    assert [first for first, _ in parts] == [0, 5, 10, 15, 19]
    for site in attn.SUMMARIES:
        for layer in whole.layers(site):
            joined = np.concatenate([np.array(run[site, layer]) for _, run in parts], axis=2)
            np.testing.assert_allclose(joined, np.array(whole[site, layer]), atol=1e-5)


def test_a_long_prompt_needs_no_matrix_of_its_length_squared(monkeypatch):
    model, length = tiny("llama"), 600
    ids = [int(i) for i in np.array(tokens(1, length))[0]]
    whole = summaries(model, [ids])
    monkeypatch.setattr(entropy_study, "SCORE_BYTES", 4 * 4 * length * 32)
    shapes = []
    own = attn.summaries_of_call
    monkeypatch.setattr(attn, "pattern", lambda call: pytest.fail("the pattern was made"))
    monkeypatch.setattr(
        attn, "summaries_of_call", lambda c, names: shapes.append(c.q.shape) or own(c, names)
    )
    parts = summaries(model, [ids])
    assert max(shape[2] for shape in shapes) <= 32
    for site, array in whole.items():
        np.testing.assert_allclose(parts[site], array, atol=1e-5)


def test_one_summary_alone_is_the_same_bits_as_among_all():
    model = tiny("gemma2")
    ids = [[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]]
    whole, alone = summaries(model, ids), summaries(model, ids, ("entropy",))
    assert list(alone) == ["entropy"]
    assert alone["entropy"].tobytes() == whole["entropy"].tobytes()


def test_an_architecture_without_a_plain_cache_is_not_cut_into_blocks():
    with pytest.raises(ModelError, match="no plain key-value cache"):
        list(by_blocks(tiny("gpt_oss").network, tokens(1, 9), keep=("entropy",), size=4))
    assert summaries(tiny("gpt_oss"), [[1, 2, 3, 4]])["entropy"].shape[-1] == 4


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "gemma2"])
def test_stored_entropies_equal_transformers_in_every_row(family, tmp_path):
    oracles = pytest.importorskip("oracles")
    torch = pytest.importorskip("torch")
    model = oracles.save(family, tmp_path / family)
    prompts = id_prompts([4, 9, 9, 6, 4, 31], vocab=200)
    study = EntropyStudy(Subject.of_model(str(tmp_path / family)), prompts)
    doc = run(study, tmp_path)
    path = tmp_path / "run" / "run.h5"
    assert axes(path)["entropy"] == ("prompt", "layer", "head", "query")
    stored = read(path, "entropy")
    assert list(read(path, "category")) == [p.category for p in prompts]
    assert doc["models"] == ["model"]
    for n, prompt in enumerate(prompts):
        with torch.no_grad():
            out = model(torch.tensor([prompt.ids]), output_attentions=True, use_cache=False)
        weights = np.stack([a[0].double().numpy() for a in out.attentions])
        for layer, head, q in np.ndindex(weights.shape[:3]):
            wanted = entropy_of(weights[layer, head, q])
            assert stored[n, layer, head, q] == pytest.approx(wanted, abs=1e-4)
        assert np.isnan(stored[n, ..., len(prompt.ids) :]).all()


def test_prompts_of_one_length_are_one_batch_and_the_weights_are_read_once_for_them(
    tmp_path, monkeypatch
):
    calls = []

    def counted(model, rows):
        calls.append(len(rows))
        return summaries(model, rows)

    monkeypatch.setattr(entropy_study, "summaries", counted)
    prompts = id_prompts([5, 6, 5, 5, 6, 5, 7, 5])
    study = EntropyStudy(Subject.of_pair(pair("tiny")), prompts)
    run(study, tmp_path)
    assert sorted(calls) == [1, 1, 2, 2, 5, 5]


class Killed(BaseException):
    """Stands for a kill: nothing in the run may catch it."""


@pytest.mark.parametrize("after", [1, 7, 11])
def test_a_killed_run_goes_on_to_the_same_bits(after, tmp_path, monkeypatch):
    prompts = id_prompts([5, 6, 5, 5, 6, 5, 7, 5], vocab=900)
    whole = run(EntropyStudy(Subject.of_pair(pair("tiny")), prompts), tmp_path / "whole")

    stored, record = [], RunFolder.record

    def dies(self, cell, *args, **kwargs):
        if len(stored) == after:
            raise Killed
        stored.append(cell)
        return record(self, cell, *args, **kwargs)

    monkeypatch.setattr(RunFolder, "record", dies)
    with pytest.raises(Killed):
        run(EntropyStudy(Subject.of_pair(pair("tiny")), prompts), tmp_path / "killed")
    monkeypatch.setattr(RunFolder, "record", record)
    resumed = run(EntropyStudy(Subject.of_pair(pair("tiny")), prompts), tmp_path / "killed")

    for name in ("entropy", "entropy_no_first", "first_keys", "recent_keys"):
        first, second = (
            read(tmp_path / place / "run" / "run.h5", name) for place in ("whole", "killed")
        )
        assert first.tobytes() == second.tobytes()
    same = ("raw", "normalised", "heads", "candidates", "null", "sentence", "notes")
    assert json.dumps([whole[k] for k in same]) == json.dumps([resumed[k] for k in same])


def test_a_finished_run_is_not_worked_out_again_unless_it_is_read_otherwise(tmp_path, monkeypatch):
    prompts = id_prompts([5, 6, 5, 5, 6, 5, 7, 5])
    folder = tmp_path / "run"
    first = run(EntropyStudy(Subject.of_pair(pair("tiny")), prompts), tmp_path)
    statistics = role_results.statistics
    monkeypatch.setattr(role_results, "statistics", lambda *a: pytest.fail("worked out again"))
    again = role_results.finish(RunFolder.reopen(folder), QUICK)
    assert json.dumps(again["raw"]) == json.dumps(first["raw"]).replace("NaN", "null")
    monkeypatch.setattr(role_results, "statistics", statistics)
    last = Analysis(role_results.Reading("last"), n_resamples=200, n_permutations=200)
    other = role_results.read(folder, last)
    assert other["reading"]["queries"] == "last"
    assert other["raw"]["models"] != first["raw"]["models"]


def test_a_run_that_lacks_cells_says_so_and_claims_nothing(tmp_path, monkeypatch):
    prompts = id_prompts([5, 6, 5, 5])
    study = EntropyStudy(Subject.of_pair(pair("tiny")), prompts)
    compute = EntropyStudy.compute

    def fails(self, batch):
        for result in compute(self, batch):
            if result.cell.coords["prompt"] == 2:
                raise FloatingPointError("not finite")
            yield Result(*result)

    monkeypatch.setattr(EntropyStudy, "compute", fails)
    doc, finished = study.run(lambda e: None, RunPlace(tmp_path, out=tmp_path / "run"), QUICK)
    assert (finished.failed, doc["missing_cells"]) == (2, 2)
    assert "raw" not in doc
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_signal_with_the_last_batch_leaves_a_whole_run(tmp_path, monkeypatch):
    study = EntropyStudy(Subject.of_pair(pair("tiny")), id_prompts([5, 6, 5, 5]))
    compute = EntropyStudy.compute

    def signalled(self, batch):
        yield from compute(self, batch)
        if batch.cells[-1] == self.batches(self.cells)[-1].cells[-1]:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(EntropyStudy, "compute", signalled)
    doc = run(study, tmp_path)
    assert (doc["missing_cells"], doc["interrupted"]) == (0, None)
    assert sources.find(str(tmp_path / "run")) == tmp_path / "run"


def test_prompts_that_make_too_large_a_table_are_refused_before_anything_runs(monkeypatch):
    monkeypatch.setattr(entropy_study, "memory_limit", lambda: 10**6)
    with pytest.raises(PromptError, match="3 prompts of up to 400 tokens make a table of"):
        EntropyStudy(Subject.of_pair(pair("tiny")), id_prompts([5, 5, 400]))


def test_a_model_with_sinks_is_said_to_have_them():
    found = summaries(tiny("gpt_oss"), [[1, 2, 3, 4], [5, 6, 7, 8]])
    plain = summaries(tiny("llama"), [[1, 2, 3, 4], [5, 6, 7, 8]])
    for arrays, has_sinks in ((found, True), (plain, False)):
        table = Entropies(
            "model",
            ("a", "b"),
            ("x", "y"),
            np.array([4, 4]),
            np.array([False, False]),
            tuple(range(arrays["entropy"].shape[1])),
            **arrays,
        )
        doc, _ = role_results.statistics({"model": table}, QUICK, {})
        assert doc["has_sinks"] is has_sinks


def test_a_long_prompt_that_cannot_run_in_parts_is_refused_with_its_size(monkeypatch, tmp_path):
    prompts = id_prompts([40], vocab=60)
    study = EntropyStudy(Subject.of_pair(pair("tiny")), prompts)
    monkeypatch.setattr(entropy_study, "memory_limit", lambda: 1000)
    model = study.subject.model("base")
    object.__setattr__(model.network.anatomy, "plain_cache", False)
    with pytest.raises(PromptError, match="40 tokens at once"):
        list(study.prepare(study.batches(study.cells)))


def test_prompts_are_taken_from_the_front_of_each_category_and_oddities_are_told():
    prompts = [Prompt(f"a{n}", text=f"text {n}", category="a") for n in range(4)]
    prompts += [Prompt("b0", text="one", category="b"), Prompt("b1", text="one", category="b")]
    prompts += [Prompt("c0", text="one")]
    found, notes = role_prompts(prompts, per_category=2, chat_template=False)
    assert [p.id for p in found] == ["a0", "a1", "b0", "b1", "c0"]
    assert any("2 times" in note for note in notes)
    assert any("different numbers of prompts" in note for note in notes)
    asked, _ = role_prompts(prompts, per_category=1, chat_template=True)
    assert asked[0].messages[0] == ("user", "text 0")


def test_the_begin_token_is_seen_where_the_tokenizer_puts_one(shared, tmp_path):
    story = Subject.of_model(str(shared / "models" / "stories260K"))
    study = EntropyStudy(story, [Prompt("a", text="Once upon a time")])
    assert [p["has_bos"] for p in study.about()["prompts"]] == [True]
    bare = Subject.of_pair(pair("tiny"))
    begins = bare.tokenizer.bos_token_id
    ids = [5, 6, 7] if begins is None else [begins, 5, 6]
    study = EntropyStudy(bare, [Prompt("a", ids=tuple(ids)), Prompt("b", ids=(8, 9))])
    assert [p["has_bos"] for p in study.about()["prompts"]] == [begins is not None, False]


def test_the_packaged_set_is_what_a_pair_runs_by_default():
    prompts, notes = role_prompts(load_prompts("roles"), per_category=30, chat_template=False)
    assert (len(prompts), notes) == (120, [])
    study = EntropyStudy(Subject.of_pair(pair("tiny")), prompts)
    plan = study.plan()
    assert plan["cells"] == 240
    assert plan["batches"] < 40


def test_a_half_precision_model_gives_entropies_in_float32(shared, tmp_path):
    folder = stories.copied(shared / "models" / "stories260K", tmp_path / "half")
    model = load(folder)
    model.module.set_dtype(mx.bfloat16)
    found = summaries(model, [[1, 2, 3, 4]])
    assert all(array.dtype == np.float32 for array in found.values())
    assert np.isfinite(found["entropy"]).all()
