"""What is remembered of a model's self-checks, and what a study is told of them."""

import pytest
from tiny_models import LLAMA, tiny_llama

from mlxroles import cache
from mlxroles.errors import ModelError
from mlxroles.models import vetted
from mlxroles.models.check import CheckReport
from mlxroles.models.load import wrap
from mlxroles.models.vetted import LARGEST_ON_CPU, vet


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MLXROLES_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def model():
    return wrap(tiny_llama(0), LLAMA)


def never(_model):
    raise AssertionError("checked again")


def test_a_sound_model_is_checked_once(model, monkeypatch):
    assert vet(model, "abc", 1) == []
    monkeypatch.setattr(vetted, "check", never)
    assert vet(model, "abc", 1) == []
    with pytest.raises(AssertionError, match="checked again"):
        vet(model, "another", 1)


def test_the_warnings_of_one_loading_do_not_stay_with_the_next(model):
    model.warnings = ("prompts over 16 tokens differ from the config",)
    assert vet(model, "abc", 1) == list(model.warnings)
    model.warnings = ()
    assert vet(model, "abc", 1) == []


def test_a_refusal_says_why_and_is_not_remembered(model, monkeypatch):
    refused = CheckReport((), ("its forward fails: out of memory",), limited=True, sites=())
    monkeypatch.setattr(vetted, "check", lambda _model: refused)
    with pytest.raises(ModelError, match="out of memory"):
        vet(model, "abc", 1)
    assert not cache.read("checks")


def test_a_model_too_large_for_checks_on_a_cpu_says_so(model, monkeypatch):
    monkeypatch.setattr(vetted, "check", never)
    monkeypatch.setattr(vetted, "on_gpu", lambda: False)
    assert "too large" in vet(model, "abc", LARGEST_ON_CPU + 1)[-1]
