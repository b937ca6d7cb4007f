"""Heads from a table of candidates: a CSV file, or the folder of an entropy run that holds one."""

import csv
import io
from pathlib import Path

from mlxroles.errors import SpecError
from mlxroles.store.files import MIB, plain_errors, shown
from mlxroles.studies.ablate.ablation import Head

_LARGEST = 16 * MIB
TABLE = "candidates.csv"


def is_source(text: str) -> bool:
    """Whether a text names a file or folder and no heads."""
    return bool(text) and (text.endswith(".csv") or "/" in text or Path(text).exists())


def read_heads(text: str, top: int) -> list[Head]:
    """The first heads of a table, in its order.

    Args:
        text: A CSV file with the columns ``layer`` and ``head``, or a run folder with a
            ``candidates.csv``.
        top: How many at most.

    Raises:
        SpecError: it cannot be found or read, with what was expected.
        StoreError: the file cannot be opened.
    """
    path = Path(text)
    if path.is_dir():
        found = sorted(path.rglob(TABLE))
        if not found:
            raise SpecError(
                f"{shown(path)} holds no {TABLE}; name the folder of a run of `mlxroles entropy` "
                "on a pair, or a file of `mlxroles candidates --csv`"
            )
        path = found[0]
    if not path.is_file():
        raise SpecError(f"{shown(path)} is not there; name heads as L5H8,L6H1, or a .csv")
    with plain_errors(path):
        if path.stat().st_size > _LARGEST:
            raise SpecError(f"{shown(path)} is larger than 16 MB: no table of heads")
        data = path.read_bytes()
    try:
        lines = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"))))
        heads = [(int(line["layer"]), int(line["head"])) for line in lines[:top]]
    except (UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError):
        raise SpecError(
            f"{shown(path)} is no table of heads: columns 'layer' and 'head' with whole numbers "
            "are expected"
        ) from None
    if not heads:
        raise SpecError(f"{shown(path)} lists no heads")
    return heads
