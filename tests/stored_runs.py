"""Real runs of every kind on the tiny pair, made once and copied for each test that needs them."""

import json
import shutil
from pathlib import Path

import mlxroles
from mlxroles.store.journal import decode_line, encode_line

TINY = Path(mlxroles.__file__).parent / "data" / "tiny"
NO_FIGURES = """
from mlxroles.studies import patch_sweep, role_results
from mlxroles.studies.attribution import results
role_results.role_figures = lambda doc, tables, folder: {}
patch_sweep.patch_figures = lambda doc, folder: {}
patch_sweep.svg = lambda doc, path, *, title: None
results.attribution_figures = lambda doc, maps, folder: {}
"""

IDS = ["--ids", "1,2,3", "--ids", "4,5,6,7,8"]
COMMANDS = {
    "patch": ["patch", "--pair", "tiny", *IDS, "--token-ids", "9", "--layers", "0-1"],
    "attribution": [
        *["patch", "--pair", "tiny", *IDS, "--token-ids", "9", "--method", "attribution"],
        *["--verify", "1", "--edges"],
    ],
    "probe": ["probe", "--pair", "tiny", "--prompt", "notepad", "--no-tools"],
    "entropy": ["entropy", "--family", "tiny", "--prompts-per-category", "2"],
    "capture": [
        *["capture", "--model", str(TINY / "base"), *IDS, "--layers", "0,2"],
        *["--keep", "resid_post,pattern,logits"],
    ],
}


def make(zygote, folder: Path) -> dict[str, Path]:
    """Kind -> run folder, all of them below ``folder``/results."""
    found = {}
    for kind, words in COMMANDS.items():
        status, _, err = zygote.run(*words, "--plain", cwd=folder, code=NO_FIGURES)
        assert status == 0, err
        [found[kind]] = (folder / "results").glob(f"{kind}_*/*")
    return found


def copied(run: Path, home: Path) -> Path:
    """The run below the results of another folder."""
    place = home / "results" / run.parent.name / run.name
    shutil.copytree(run, place)
    return place


def cut(run: Path, keep: int) -> list[str]:
    """Leaves a run as if it had been killed after so many cells; the ids of those that are gone."""
    lines = (run / "cells.jsonl").read_bytes().splitlines(keepends=True)
    (run / "cells.jsonl").write_bytes(b"".join(lines[:keep]))
    for name in ("summary.json", "run.h5", "capture.h5", "report.html"):
        (run / name).unlink(missing_ok=True)
    told = (run / "events.jsonl").read_bytes().splitlines(keepends=True)
    begun = [line for line in told if b'"event":"started"' in line]
    (run / "events.jsonl").write_bytes(b"".join(begun))
    return [entry(line)["id"] for line in lines[keep:]]


def entry(line: bytes) -> dict:
    """The entry of a line that is whole."""
    found = decode_line(line)
    assert found is not None
    return found


def change_line(run: Path, number: int, change) -> str:
    """Rewrites a line of a journal with a valid checksum; the id of its cell."""
    path = run / "cells.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    found = entry(lines[number])
    change(found)
    lines[number] = encode_line({key: value for key, value in found.items() if key != "v"})
    path.write_bytes(b"".join(lines))
    return found["id"]


def change_manifest(run: Path, change) -> None:
    """Rewrites the manifest of a run."""
    doc = json.loads((run / "manifest.json").read_text())
    change(doc)
    (run / "manifest.json").write_text(json.dumps(doc))
