"""Model folders on this machine: where they are, and whether they are complete.

A model folder holds ``config.json`` and weights as ``model*.safetensors``; it is either any
folder or a snapshot in the cache of the Hugging Face Hub, ``models--org--name/snapshots/<rev>``,
whose files may be links into ``blobs/``. The cache is read here directly, without
``huggingface_hub``, so that commands which only look answer at once. Not here: downloading
(``hub``) and loading (``models``).
"""

import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from mlxroles.errors import ModelError
from mlxroles.text import safe_text

INDEX = "model.safetensors.index.json"
"""Names the weight file of every tensor where a model is split into several."""

_HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?")
_SHARD = re.compile(r"(?P<stem>model.*)-\d{5}-of-(?P<count>\d{5})\.safetensors")
_FOREIGN_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".npz", ".h5", ".msgpack")
_MAX_SHARDS = 10_000


class HubId(NamedTuple):
    """A model on the Hub: ``org/name`` and the branch, tag or commit that is meant."""

    repo: str
    revision: str


def hub_id(ref: str) -> HubId | None:
    """The Hub id that the text has the form of (``org/name`` or ``org/name@revision``)."""
    match = _HUB_ID.fullmatch(ref)
    if match is None or ".." in ref:
        return None
    return HubId(match["repo"], match["revision"] or "main")


def hub_cache() -> Path:
    """The folder in which the Hub's own tools keep models, by the same variables as theirs."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.path.expandvars(os.environ[variable])).expanduser()
    if os.environ.get("HF_HOME"):
        return Path(os.path.expandvars(os.environ["HF_HOME"])).expanduser() / "hub"
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "huggingface" / "hub"


def offline() -> bool:
    """Whether the environment forbids asking the Hub (``HF_HUB_OFFLINE``)."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def repo_folder(model: HubId) -> Path:
    """The folder of the model's repository in the cache, whether it is there or not."""
    return hub_cache() / f"models--{model.repo.replace('/', '--')}"


def snapshot(model: HubId) -> Path | None:
    """The model's folder in the cache, complete or not; None when there is none."""
    folder = repo_folder(model)
    revision = model.revision
    reference = folder / "refs" / revision
    try:
        if reference.is_file():
            revision = reference.read_text(encoding="utf-8").strip()
        found = folder / "snapshots" / revision
        return found if revision and found.is_dir() else None
    except (OSError, UnicodeDecodeError):
        return None


def missing_files(folder: Path) -> list[str]:
    """Names of the files without which the model in the folder cannot be loaded.

    A link into ``blobs/`` whose target is gone counts as missing. A folder that holds no weights
    at all yields ``model.safetensors``.
    """
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    if os.path.lexists(folder / INDEX):
        return missing + [name for name in _indexed(folder) if not (folder / name).is_file()]
    names = sorted(path.name for path in folder.glob("model*.safetensors"))
    if not names:
        return [*missing, "model.safetensors"]
    expected = {shard for name in names for shard in _shards(name)}
    return missing + sorted(name for name in expected if not (folder / name).is_file())


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a model folder that are there, in the order of their names."""
    return sorted(path for path in folder.glob("model*.safetensors") if path.is_file())


def file_facts(folder: Path) -> list[list[Any]]:
    """Name, size and time of every file of a model that says what it computes.

    What has the same facts has not been changed, as far as anybody can say without reading it.
    """
    named = [*folder.glob("*.safetensors"), *folder.glob("*.json"), *folder.glob("*.jinja")]
    facts = [(path.name, path.stat()) for path in sorted(named) if path.is_file()]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in facts]


def read_config(folder: Path) -> dict[str, Any]:
    """The model's ``config.json``.

    Raises:
        ModelError: it is absent, unreadable or not a JSON object.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{_shown(path)}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{_shown(path)}: not valid JSON ({error})") from error
    if not isinstance(config, dict):
        raise ModelError(f"{_shown(path)}: expected a JSON object, found {type(config).__name__}")
    return config


def check_folder(folder: Path) -> Path:
    """The folder itself, when a model can be loaded from it as far as file names tell.

    Raises:
        ModelError: with what is wrong and what to do, in one line.
    """
    try:
        if not folder.exists():
            raise ModelError(f"{_shown(folder)}: no such folder; check the path")
        if not folder.is_dir():
            raise ModelError(
                f"{_shown(folder)}: is a file; expected the folder that holds config.json "
                "and model.safetensors"
            )
        names = sorted(path.name for path in folder.iterdir())
        missing = missing_files(folder)
    except OSError as error:
        reason = error.strerror or "unreadable"
        raise ModelError(f"{_shown(folder)}: cannot be read ({reason})") from error
    if not missing:
        return folder
    raise ModelError(f"{_shown(folder)}: {_reason(names, missing)}")


def _reason(names: list[str], missing: list[str]) -> str:
    if not names:
        return "the folder is empty; expected config.json and model.safetensors"
    if "config.json" in missing:
        return "no config.json; expected a model folder as mlx_lm.convert writes it"
    if missing != ["model.safetensors"] or any(name.startswith("model") for name in missing[1:]):
        return f"incomplete: {_listed(missing)} missing; copy or download it again"
    foreign = [name for name in names if name.endswith(_FOREIGN_WEIGHTS)]
    if foreign:
        return (
            f"weights only as {_listed(foreign)}; only safetensors are read, "
            "convert them with mlx_lm.convert"
        )
    other = [name for name in names if name.endswith(".safetensors")]
    if other:
        return f"weights only as {_listed(other)}; mlx_lm reads files named model*.safetensors"
    return "no weights; expected model.safetensors"


def _indexed(folder: Path) -> list[str]:
    """The weight files that the index names; the index itself when it cannot be understood."""
    try:
        weights = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        names = {str(name) for name in weights.values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [f"a readable {INDEX}"]
    # A name with a folder in it could point anywhere; such an index is not one of ours.
    if not names or any(Path(name).name != name for name in names):
        return [f"a readable {INDEX}"]
    return sorted(names)


def _shards(name: str) -> list[str]:
    """All names of the series that a shard such as ``model-00001-of-00003`` belongs to."""
    match = _SHARD.fullmatch(name)
    if match is None or int(match["count"]) > _MAX_SHARDS:
        return [name]
    count = int(match["count"])
    return [f"{match['stem']}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def _listed(names: list[str]) -> str:
    shown = ", ".join(safe_text(name, limit=60) for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def _shown(path: Path) -> str:
    return safe_text(str(path), limit=200)
