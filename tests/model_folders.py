"""Model folders of a few bytes: a plain one, and one laid out as the cache of the Hub."""

import json
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def plain(folder: Path, *weights: str) -> Path:
    """A folder with a config and the named weight files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    for name in weights or ("model.safetensors",):
        (folder / name).write_bytes(b"12345678")
    return folder


def index(folder: Path, *shards: str) -> None:
    """Writes the index that names the shards."""
    weight_map = {f"tensor.{i}": name for i, name in enumerate(shards)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def cached(hub: Path, repo: str, files: dict[str, bytes] | None = None) -> Path:
    """The snapshot folder of a repository in a Hub cache: links into ``blobs``, a ref to it."""
    if files is None:
        files = {"config.json": b"{}", "model.safetensors": b"12345678"}
    folder = hub / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    for made in (snapshot, folder / "blobs", folder / "refs"):
        made.mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(COMMIT)
    for number, (name, content) in enumerate(files.items()):
        blob = folder / "blobs" / f"{number:064x}"
        blob.write_bytes(content)
        (snapshot / name).unlink(missing_ok=True)
        (snapshot / name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot
