"""Stands in for ``mlxroles`` in tests of the supervisor: a study of numbers that fails on demand.

    python toy_command.py toy NAME [--cells N] [--seconds S] [--fault KIND@CELL] ...

A fault strikes when its cell is computed: ``abort``, ``segfault``, ``kill``, ``hang``, ``raise``,
``nan``, ``memory``; with ``once`` behind it (``abort@3@once``) only the first time.
"""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from mlxroles.cli.results import exit_status
from mlxroles.errors import MlxrolesError
from mlxroles.events import Cell
from mlxroles.runner import Result, run
from mlxroles.store.folder import RunFolder
from mlxroles.supervision import LeftToFirst, leave_unattended, supervision


class Toy:
    def __init__(self, cells, seconds, faults, folder):
        self.cells, self.seconds, self.faults, self.folder = cells, seconds, faults, folder

    def batches(self, pending):
        wanted = {c.id for c in pending}
        return [
            Batch(
                tuple(c for c in self.cells[i : i + 3] if c.id in wanted),
                tuple(self.cells[i : i + 3]),
            )
            for i in range(0, len(self.cells), 3)
            if any(c.id in wanted for c in self.cells[i : i + 3])
        ]

    def alone(self, cell):
        return Batch((cell,), (cell,))

    def prepare(self, batches):
        yield

    def compute(self, batch):
        for cell in batch.rows:
            time.sleep(self.seconds)
            self._fault(cell.coords["n"])
        for cell in batch.cells:
            n = cell.coords["n"]
            if ("nan", n) in self.faults:
                raise FloatingPointError("not a number")
            yield Result(cell, {"value": n / 7}, {"x": np.arange(n + 1) / 3}, tokens=1)

    def _fault(self, n):
        for kind, (at, once) in [(k, v) for (k, _), v in self.faults.items()]:
            if at != n:
                continue
            mark = self.folder / f"{kind}-{n}"
            if once and mark.exists():
                continue
            mark.touch()
            if kind == "abort":
                os.abort()
            if kind == "segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "hang":
                time.sleep(3600)
            if kind == "memory":
                raise MemoryError("[malloc] Unable to allocate 8 bytes")
            if kind == "raise":
                raise RuntimeError("something is wrong")


class Batch:
    def __init__(self, cells, rows):
        self.cells, self.rows, self.group = cells, rows, 0
        self.level = 0 if rows[0].coords["n"] % 2 == 0 else 1


def main(words):
    name = words[1]
    given = dict(zip(words[2::2], words[3::2], strict=True))
    n, seconds = int(given.get("--cells", 12)), float(given.get("--seconds", 0.0))
    faults = {}
    for text in filter(None, given.get("--faults", "").split(",")):
        kind, at, *once = text.split("@")
        faults[kind, int(at)] = (int(at), bool(once))
    cells = [Cell(f"cell/L{i:02d}", {"n": i}) for i in range(n)]
    results = Path("results")
    wishes = supervision()
    identity = {"kind": "toy", "name": name, "cells": n}
    try:
        if given.get("--early") == "abort":
            os.abort()
        if "--silent" in given:
            return 0
        if "--broken" in given:
            raise MlxrolesError("this experiment cannot run: do something else")
        if wishes.rank:
            from mlxroles.store.shards import is_led

            path = results / "toy" / name
            while not is_led(path):
                time.sleep(0.05)
            folder = RunFolder.join(path, rank=wishes.rank, identity=identity)
        else:
            folder = RunFolder.open(
                results, experiment="toy", identity=identity, manifest={}, run_id=name
            )
        with folder:
            finished = run(
                Toy(cells, seconds, faults, folder.path), cells, folder, lambda e: None, title=name
            )
    except MlxrolesError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except LeftToFirst:
        return 0
    return exit_status(finished, {"fresh": False})


if __name__ == "__main__":
    leave_unattended()
    sys.exit(main(sys.argv[1:]))
