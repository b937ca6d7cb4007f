"""Downloads models from the Hugging Face Hub: sizes and free disk first, then the files.

Only what mlx_lm needs is fetched: configuration, tokenizer and ``model*.safetensors``; never
Python files. An interrupted download is resumed by the Hub's own client. ``huggingface_hub`` is
imported when a function is called, so that listing models costs nothing.
"""

import contextlib
import errno
import shutil
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from mlxroles.errors import ModelError
from mlxroles.snapshots import HubId, hub_cache, hub_id, missing_files, offline, repo_folder
from mlxroles.text import format_bytes, safe_text

PATTERNS = (
    "*.json",
    "model*.safetensors",
    "tokenizer*",
    "*.model",
    "*.tiktoken",
    "*.txt",
    "*.jinja",
)
"""What a model is loaded from; everything else in a repository stays there."""

SPARE = 0.05
"""Share of the download that must stay free on the disk beyond it."""

_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Download:
    """What fetching a model means: one commit of it, its size, and what is not here yet."""

    model: HubId
    """``org/name`` and the branch, tag or commit that was asked for."""
    commit: str
    """The commit that it stands for now."""
    total: int
    """Bytes of all files that are needed."""
    missing: int
    """Bytes of those that are not in the cache yet."""


@dataclass(frozen=True)
class Progress:
    """How far a download is, in bytes on this disk."""

    done: int
    total: int


OnProgress = Callable[[Progress], None]


def plan(ref: str) -> Download:
    """Asks the Hub what a download of the model would fetch.

    Raises:
        ModelError: the text is no Hub id, or the Hub cannot be asked or refuses.
    """
    model = hub_id(ref)
    if model is None:
        raise ModelError(f"{safe_text(ref, limit=200)!r} is not a Hub id (org/name)")
    if offline():
        raise ModelError(f"{ref}: HF_HUB_OFFLINE is set; unset it to download")
    with _explained(ref) as hub:
        from huggingface_hub.utils import filter_repo_objects

        info = hub.HfApi().model_info(
            model.repo, revision=model.revision, files_metadata=True, timeout=30
        )
        wanted = list(
            filter_repo_objects(
                info.siblings or [], allow_patterns=list(PATTERNS), key=lambda file: file.rfilename
            )
        )
    if not any(file.rfilename.endswith(".safetensors") for file in wanted):
        raise ModelError(f"{ref}: the repository holds no model*.safetensors; choose another one")
    here = repo_folder(model) / "snapshots" / info.sha
    absent = [file for file in wanted if not (here / file.rfilename).is_file()]
    return Download(model, info.sha, _bytes(wanted), _bytes(absent))


def fetch(download: Download, on_progress: OnProgress | None = None) -> Path:
    """Downloads what is missing, resuming what was begun, and returns the model's folder.

    Raises:
        ModelError: the disk is too small, the network fails, or what came is incomplete.
    """
    cache = hub_cache()
    _check_disk(download, cache)
    ref = download.model.repo
    with _explained(ref) as hub, _watched(download, on_progress):
        folder = Path(
            hub.snapshot_download(
                download.model.repo,
                revision=download.model.revision,
                cache_dir=cache,
                allow_patterns=list(PATTERNS),
            )
        )
    missing = missing_files(folder)
    if missing:
        raise ModelError(f"{ref}: {missing[0]} did not arrive; run the same command again")
    return folder


def pull(ref: str, *, on_progress: OnProgress | None = None) -> Path:
    """The model's folder after everything that was missing has been downloaded."""
    return fetch(plan(ref), on_progress)


def _bytes(files: list[Any]) -> int:
    return sum(file.size or 0 for file in files)


def _check_disk(download: Download, cache: Path) -> None:
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    # What an interrupted download already holds is counted as missing: the margin of doubt is ours.
    needed = int(download.missing * (1 + SPARE))
    if needed > free:
        raise ModelError(
            f"{download.model.repo}: needs {format_bytes(needed)} in {cache}, "
            f"{format_bytes(free)} free; make room or set HF_HOME to a larger disk"
        )


@contextlib.contextmanager
def _watched(download: Download, on_progress: OnProgress | None) -> Generator[None, None, None]:
    """Reports the bytes on disk while the body runs: true for every way the Hub transfers."""
    if on_progress is None:
        yield
        return
    blobs = repo_folder(download.model) / "blobs"
    before, here = _stored(blobs), download.total - download.missing
    stop = threading.Event()

    def report() -> None:
        done = min(here + max(_stored(blobs) - before, 0), download.total)
        on_progress(Progress(done, download.total))

    def watch() -> None:
        while not stop.wait(_POLL_SECONDS):
            report()

    thread = threading.Thread(target=watch, name="download-progress", daemon=True)
    report()
    thread.start()
    try:
        yield
        stop.set()
        thread.join()
        on_progress(Progress(download.total, download.total))
    finally:
        stop.set()
        thread.join()


def _stored(folder: Path) -> int:
    total = 0
    with contextlib.suppress(OSError):  # files are renamed and removed while we look
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                total += path.stat().st_size
    return total


@contextlib.contextmanager
def _explained(ref: str) -> Generator[ModuleType, None, None]:
    """Hands out ``huggingface_hub`` and turns its errors into one line with what to do."""
    import huggingface_hub as hub
    from huggingface_hub import errors
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    # The class of the HTTP library that this version of the Hub's client is built on.
    transport = next(
        base
        for base in errors.HfHubHTTPError.__mro__
        if base.__name__ == "HTTPError" and issubclass(base, Exception)
    )
    try:
        yield hub
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{ref}: its licence must be accepted first; do so on https://huggingface.co/{ref}, "
            "then log in with `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"{ref}: the Hub knows the model but not this revision") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"{ref}: not on the Hub, or private; check the name, or log in with `hf auth login`"
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise ModelError(f"{ref}: HF_HUB_OFFLINE is set; unset it to download") from error
    except (errors.LocalEntryNotFoundError, transport, OSError) as error:
        raise ModelError(f"{ref}: {_cause(error)}") from error


def _cause(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; make room and run the same command again, it resumes"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"the Hub refuses access (HTTP {status}); log in with `hf auth login`"
    if status is not None:
        return f"the Hub answers HTTP {status}; try again later"
    if isinstance(error, PermissionError):
        return f"no permission to write {error.filename}; set HF_HOME to a folder of yours"
    reason = safe_text(" ".join(str(error).split()), limit=160) or type(error).__name__
    return f"the Hub cannot be reached ({reason}); check the connection, what is done is kept"
