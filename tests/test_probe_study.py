"""A probe against the models' own logits."""

import math

import numpy as np
import pytest
import stories
from stories import TEXT, TOOL, Plain, softmax

from mlxroles import probes
from mlxroles.errors import PromptError
from mlxroles.prompts import Prompt
from mlxroles.studies import probe as probe_study
from mlxroles.studies.probe import Probe, answers, variants
from mlxroles.studies.subject import Subject

CONVERSATION = """
strings = ["puppy", "[", "the dog"]
headline = "["
plain_text = "You are kind."
tools_text = "You are kind. You may use [tools]."
[[messages]]
role = "user"
content = "Where is the puppy?"
"""


@pytest.fixture(scope="module")
def models(shared):
    return shared / "models"


@pytest.fixture(scope="module")
def chat(models):
    return Plain(models / "stories260K-chat")


def chain_of(plain, ids, chain):
    return math.prod(
        softmax(plain.logits([*ids, *chain[:i]])[-1])[token] for i, token in enumerate(chain)
    )


def test_one_model_says_what_its_logits_say(models, chat, tmp_path):
    subject = Subject.of_model(str(models / "stories260K-chat"))
    study = Probe(
        subject,
        [Prompt("p", text=TEXT)],
        variants(no_tools=False, system=None),
        strings=("puppy is", "[", "the"),
    )
    doc = stories.run(study, tmp_path / "run")
    (row,) = doc["rows"]
    ids = study.variants["default"][0].ids
    logits = chat.logits(ids)[-1]
    p = softmax(logits)
    assert doc["schema"] == "mlxroles/probe/1"
    assert (row["model"], row["prompt"], row["variant"]) == ("model", "p", "default")
    assert row["n_tokens"] == len(ids)
    assert row["p_first_token"] == pytest.approx(p[study.targets.head.first], rel=1e-4)
    assert row["entropy"] == pytest.approx(-(p * np.log(p)).sum(), abs=1e-4)
    assert row["top5"][0]["id"] == TOOL
    assert row["strings"]["["]["p_first"] == pytest.approx(p[TOOL], rel=1e-4)
    for target in study.targets.strings:
        whole = chain_of(chat, ids, target.chain)
        assert row["strings"][target.text]["p_chain"] == pytest.approx(whole, rel=1e-3), target
    assert doc["means"] == []


def test_without_a_cache_the_chains_are_the_same(models, chat):
    loaded = stories.subject(models).model("instruct")
    ids = [1, 403, 407, 261]
    chains = {"a": (5, 6, 7), "b": (8,), "c": (9, 10)}
    found = [probes.Target(name, ids, ids, ids[:1]) for name, ids in chains.items()]
    targets = probes.Targets(tuple(found), "a")
    first, cached = answers(loaded, ids, targets)
    object.__setattr__(loaded.network.anatomy, "prefix", False)
    again, whole = answers(loaded, ids, targets)
    assert cached.keys() == whole.keys() == {"a", "c"}
    assert np.abs(first - again).max() <= 1e-5
    for name, chain in chains.items():
        if len(chain) > 1:
            assert cached[name] == pytest.approx(whole[name], abs=1e-4)
            assert math.exp(whole[name]) == pytest.approx(chain_of(chat, ids, chain), rel=1e-3)


def test_pairs_and_prompts_give_means_with_intervals(models, tmp_path):
    prompts = [Prompt("a", text=TEXT), Prompt("b", text="The cat sat. "), Prompt("c", text="One ")]
    study = Probe(
        stories.subject(models), prompts, variants(no_tools=False, system=None), strings=("[",)
    )
    doc = stories.run(study, tmp_path / "run")
    assert [(r["model"], r["prompt"]) for r in doc["rows"]] == [
        (m, p) for m in ("base", "instruct") for p in "abc"
    ]
    mean = next(m for m in doc["means"] if m["model"] == "instruct")
    column = [r["log_odds"] for r in doc["rows"] if r["model"] == "instruct"]
    assert mean["n_prompts"] == 3
    assert mean["log_odds"] == pytest.approx(np.mean(column))
    low, high = mean["log_odds_ci"]
    assert min(column) <= low < mean["log_odds"] < high <= max(column)
    assert (tmp_path / "run" / "summary.json").is_file()


def test_variants_render_the_prompt_with_and_without_tools_and_system(models, tmp_path):
    path = tmp_path / "talk.toml"
    path.write_text(CONVERSATION)
    from mlxroles.prompts import load_prompts

    how = variants(no_tools=True, system="Be brief.")
    assert list(how) == ["default", "no-tools", "system", "system, no-tools"]
    subject = Subject.of_model(str(models / "stories260K-chat"))
    study = Probe(subject, load_prompts(str(path)), how)
    assert study.targets.headline == "["
    texts = {n: subject.tokenizer.decode(list(rows[0].ids)) for n, rows in study.variants.items()}
    assert [("tools" in t, "brief" in t) for t in texts.values()] == [
        (True, False),
        (False, False),
        (True, True),
        (False, True),
    ]
    doc = stories.run(study, tmp_path / "run")
    assert [r["variant"] for r in doc["rows"]] == list(how)
    plain = Plain(models / "stories260K-chat")
    for row in doc["rows"]:
        p = softmax(plain.logits(study.variants[row["variant"]][0].ids)[-1])
        assert row["p_first_token"] == pytest.approx(p[TOOL], rel=1e-3)


def test_variants_that_a_prompt_does_not_have_are_refused(models):
    subject = Subject.of_model(str(models / "stories260K-chat"))
    prompts = [Prompt("p", text=TEXT)]
    with pytest.raises(PromptError, match="--no-tools"):
        Probe(subject, prompts, variants(no_tools=True, system=None), token_ids=(1,))
    with pytest.raises(PromptError, match="no system message"):
        Probe(subject, prompts, variants(no_tools=False, system="x"), token_ids=(1,))
    with pytest.raises(PromptError, match="surrogate"):
        Probe(subject, prompts, variants(no_tools=False, system="\ud800"), token_ids=(1,))


def test_a_prompt_without_numbers_fails_alone(models, tmp_path, monkeypatch):
    real = probe_study.engine.clean
    calls = []

    def broken(*args, **how):
        calls.append(1)
        found = real(*args, **how)
        found.logits[:] *= np.nan if len(calls) in (2, 3) else 1
        return found

    monkeypatch.setattr(probe_study.engine, "clean", broken)
    prompts = [Prompt(name, ids=(1, n)) for n, name in enumerate("abcd", 5)]
    subject = Subject.of_model(str(models / "stories260K"))
    study = Probe(subject, prompts, variants(no_tools=False, system=None), token_ids=(TOOL,))
    events = []
    doc = stories.run(study, tmp_path / "run", events)
    assert [r["prompt"] for r in doc["rows"]] == ["a", "c", "d"]
    assert [f["cell"] for f in doc["failed_cells"]] == ["model/p001/variant=default"]
    doc = stories.run(study, tmp_path / "run")
    assert [r["prompt"] for r in doc["rows"]] == list("abcd")


def test_a_later_run_keeps_what_was_said_when_the_model_was_loaded(models, tmp_path):
    prompts = [Prompt("a", ids=(1, 5))]
    for said in (["the config was repaired"], []):
        subject = Subject.of_model(str(models / "stories260K"), notes=list(said))
        study = Probe(subject, prompts, variants(no_tools=False, system=None), token_ids=(TOOL,))
        doc = stories.run(study, tmp_path / "run")
        assert doc["notes"] == ["the config was repaired"]
