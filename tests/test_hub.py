"""Downloads against a Hub made of one small class; nothing here opens a connection."""

import errno
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import errors
from model_folders import COMMIT, cached
from told import line

from mlxroles import hub
from mlxroles.errors import ModelError

FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "model.safetensors": b"x" * 1000,
    "consolidated.safetensors": b"x" * 1000,
    "modeling_evil.py": b"import os",
    "README.md": b"words",
}
NEEDED = 1000 + 2 + 2


class FakeHub:
    """Answers like HfApi and snapshot_download and notes what it was asked."""

    def __init__(self, cache: Path):
        self.cache = cache
        self.files = dict(FILES)
        self.patterns = None
        self.refuses = None
        self.fails = None

    def HfApi(self):
        return self

    def model_info(self, repo, *, revision, files_metadata, timeout):
        if self.refuses is not None:
            raise self.refuses
        assert files_metadata
        siblings = [SimpleNamespace(rfilename=n, size=len(c)) for n, c in self.files.items()]
        return SimpleNamespace(sha=COMMIT, siblings=siblings)

    def snapshot_download(self, repo, *, revision, cache_dir, allow_patterns):
        self.patterns = allow_patterns
        if self.fails is not None:
            raise self.fails
        kept = huggingface_hub.utils.filter_repo_objects(self.files, allow_patterns=allow_patterns)
        return str(cached(self.cache, repo, {name: self.files[name] for name in kept}))


@pytest.fixture
def fake(tmp_path, monkeypatch):
    made = FakeHub(tmp_path / "hub")
    monkeypatch.setenv("HF_HUB_CACHE", str(made.cache))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(huggingface_hub, "HfApi", made.HfApi)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    return made


def test_pull_fetches_what_a_model_is_loaded_from_and_nothing_else(fake):
    folder = hub.pull("org/name")
    assert folder == fake.cache / "models--org--name" / "snapshots" / COMMIT
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "tokenizer.json", "model.safetensors"}


def test_plan_counts_bytes_and_knows_what_is_here(fake):
    assert hub.plan("org/name") == hub.Download(("org/name", "main"), COMMIT, NEEDED, NEEDED)
    cached(fake.cache, "org/name", {"config.json": b"{}", "tokenizer.json": b"{}"})
    assert hub.plan("org/name").missing == 1000


def test_disk_is_checked_before_anything_is_fetched(fake, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=int(NEEDED * 1.04)))
    with pytest.raises(ModelError) as error:
        hub.pull("org/name")
    assert "needs 1.05 kB" in line(error)
    assert "1.04 kB free" in line(error)
    assert "HF_HOME" in line(error)
    assert fake.patterns is None
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=int(NEEDED * 1.06)))
    assert hub.pull("org/name")


def test_progress_goes_from_what_is_here_to_the_whole(fake):
    cached(fake.cache, "org/name", {"config.json": b"{}", "tokenizer.json": b"{}"})
    seen = []
    hub.pull("org/name", on_progress=seen.append)
    assert seen[0] == hub.Progress(4, NEEDED)
    assert seen[-1] == hub.Progress(NEEDED, NEEDED)


def test_progress_of_a_failed_download_does_not_claim_the_end(fake):
    fake.fails = OSError(errno.ENOSPC, "No space left on device")
    seen = []
    with pytest.raises(ModelError, match="the disk is full; make room"):
        hub.pull("org/name", on_progress=seen.append)
    assert all(state.done < NEEDED for state in seen)


def test_a_download_that_lacks_a_file_is_not_a_model(fake):
    download = hub.plan("org/name")
    del fake.files["model.safetensors"]
    with pytest.raises(ModelError, match=r"model\.safetensors did not arrive; run the same"):
        hub.fetch(download)


def test_repository_without_safetensors(fake):
    del fake.files["model.safetensors"]
    with pytest.raises(ModelError, match=r"holds no model\*\.safetensors"):
        hub.plan("org/name")


def test_offline_is_said_at_once(fake, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set; unset it"):
        hub.plan("org/name")


def test_no_hub_id(fake):
    with pytest.raises(ModelError, match="is not a Hub id"):
        hub.plan("/some/folder")


def response(status: int):
    """An answer of the HTTP library that this version of the Hub's client is built on."""
    transport = next(c for c in errors.HfHubHTTPError.__mro__ if c.__name__ == "HTTPError")
    library = __import__(transport.__module__.split(".")[0])
    request = library.Request("GET", "https://huggingface.co/org/name")
    return library.Response(status, request=request), library.ConnectError("no route")


@pytest.mark.parametrize(
    ("kind", "status", "said"),
    [
        (errors.GatedRepoError, 403, "its licence must be accepted first"),
        (errors.RepositoryNotFoundError, 401, "not on the Hub, or private"),
        (errors.RevisionNotFoundError, 404, "knows the model but not this revision"),
        (errors.HfHubHTTPError, 403, r"refuses access \(HTTP 403\)"),
        (errors.HfHubHTTPError, 503, "answers HTTP 503; try again later"),
    ],
)
def test_answers_of_the_hub_become_one_line(fake, kind, status, said):
    fake.refuses = kind("said no\nand more", response=response(status)[0])
    with pytest.raises(ModelError, match=said) as error:
        hub.plan("org/name")
    assert line(error).startswith("org/name: ")


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (response(200)[1], "cannot be reached"),
        (errors.OfflineModeIsEnabled("off"), "HF_HUB_OFFLINE is set"),
        (errors.LocalEntryNotFoundError("no\nconnection"), "cannot be reached"),
        (ConnectionResetError("reset"), "cannot be reached"),
        (OSError(errno.EDQUOT, "quota"), "the disk is full"),
        (PermissionError(errno.EACCES, "denied", "/cache"), "no permission to write /cache"),
    ],
)
def test_failures_on_the_way_become_one_line(fake, failure, said):
    fake.fails = failure
    with pytest.raises(ModelError, match=said) as error:
        hub.pull("org/name")
    line(error)
