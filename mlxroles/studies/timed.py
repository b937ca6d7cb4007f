"""Estimates of studies: their models' sizes from the config, this machine's rates, what is learned.

A plan measures the machine where it was not measured yet; a run only uses what is known by then.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mlxroles import timing
from mlxroles.backend import device_name
from mlxroles.engine import calibration, memory
from mlxroles.events import RunFinished
from mlxroles.models.dense_on_cpu import LARGE
from mlxroles.store.folder import RunFolder
from mlxroles.studies.subject import Subject, text_config
from mlxroles.supervision import supervision
from mlxroles.timing import Kind, Parts, Record, Sizes, Work
from mlxroles.timing.rates import machine, near

TWO_MATRICES = (
    "apertus",
    "gpt2",
    "gpt_bigcode",
    "gpt_neox",
    "gptj",
    "nemotron",
    "phi",
    "phixtral",
    "starcoder2",
)
"""Types of models whose MLPs have two matrices; the others have a gate as well."""

LONGEST_START = 60.0
"""Seconds of a process before its first study that can be its start-up alone."""

_state = {"began": False}


@dataclass(frozen=True)
class Task:
    """What a study has to do.

    Args:
        study: Its kind, as in the name of its command.
        subject: Its models.
        work: How much there is.
        results: Seconds that follow the cells, on the machine of ``timing.prediction``.
    """

    study: str
    subject: Subject
    work: Work
    results: float

    def seconds(self) -> dict[str, Any] | None:
        """``likely``, ``low``, ``high`` and ``basis`` of a plan; None where nobody can say."""
        return self._estimate(calibration.rates(kind(self.subject)))

    def known(self) -> dict[str, Any] | None:
        """The same if this machine was measured by now."""
        return self._estimate(timing.kept(kind(self.subject)))

    def predicted(self, rates: timing.Rates) -> Parts:
        """Seconds, uncorrected."""
        return timing.predict(self.work, sizes(self.subject), rates, results=self.results)

    def _estimate(self, rates: timing.Rates | None) -> dict[str, Any] | None:
        if rates is None:
            return None
        of = kind(self.subject)
        records = timing.recall(machine(of.device), self.study)
        return timing.estimate(self.predicted(rates), records, of.size).document()


class Watch:
    """The time that a run takes, from here on, beside what was thought."""

    def __init__(self) -> None:
        self.task: Task | None = None
        self.estimate: dict[str, Any] | None = None
        self._begun, self._fresh = time.monotonic(), False
        # the processor's time of a process that has just begun is what it took to get here
        used, first = time.process_time(), not _state["began"]
        self._start = used if first and used < LONGEST_START else None
        _state["began"] = True

    def begin(self, task: Task, folder: RunFolder) -> None:
        """Estimates what there is to do, and notes whether all of it is still to be done."""
        self.task, self.estimate = task, task.known()
        alone = supervision().size == 1 and task.subject.ranks is None
        self._fresh = alone and not folder.done()

    def stop(self, finished: RunFinished) -> dict[str, Any] | None:
        """The estimate beside the seconds that it took, remembered; None where there was none.

        Only whole runs by one process are compared.
        """
        if self.task is None or self.estimate is None or not self._fresh:
            return None
        of, ended_early = kind(self.task.subject), finished.interrupted is not None
        rates, whole = timing.kept(of), finished.done == self.task.work.cells
        if rates is None or ended_early or finished.failed or not whole:
            return None
        predicted = self.task.predicted(rates)
        start = predicted.start if self._start is None else self._start
        cells = finished.seconds
        results = max(0.0, time.monotonic() - self._begun - cells)
        actual = Parts(start, cells, results)
        timing.record(machine(of.device), self.task.study, Record(of.size, predicted, actual))
        seconds = {name: self.estimate[name] for name in ("likely", "low", "high")}
        return {**seconds, "seconds": round(actual.total, 2)}


def kind(subject: Subject) -> Kind:
    """What the rates for a study's models depend on."""
    side = next(iter(subject.sides.values()))
    config = text_config(side.config)
    of = memory.sizes_of_config(config, side.n_bytes, side.n_layers)
    packed = side.config.get("quantization")
    packed = packed if isinstance(packed, Mapping) else {}
    bits, group = (packed.get(name) for name in ("bits", "group_size"))
    bits = bits if isinstance(bits, int) else None
    group = group if isinstance(group, int) else None
    mode = None if bits is None else str(packed.get("mode") or "affine")
    named = str(config.get("torch_dtype") or config.get("dtype") or "bfloat16")
    dtype = named if named in ("float32", "float16") else "bfloat16"
    return Kind(
        device_name(),
        dtype,
        bits,
        group,
        mode,
        calibration.is_widened(bits, mode, dtype, side.n_bytes >= LARGE),
        max(near(of.d_model), group or 0),
        near(of.hidden // 2),
    )


def sizes(subject: Subject) -> Sizes:
    """The sizes of a study's models, as the config of the first of them says."""
    side = next(iter(subject.sides.values()))
    of = memory.sizes_of_config(text_config(side.config), side.n_bytes, side.n_layers)
    matrices = 2 if side.config.get("model_type") in TWO_MATRICES else 3
    wide = memory.STREAM.get(of.itemsize, 15) * of.d_model
    wide += memory.QUERIES.get(of.itemsize, 8) * of.queries + memory.KEYS * of.keys + of.hidden
    return Sizes(
        n_layers=side.n_layers,
        d_model=of.d_model,
        queries=of.queries,
        heads=of.heads,
        weights=of.d_model * (2 * of.queries + 2 * of.keys + matrices * of.hidden // 2),
        numbers=wide,
        vocab=of.vocab,
        itemsize=of.itemsize,
    )


def loads(subject: Subject, order: Iterable[str]) -> Work:
    """What is read from disk when models are needed in this order of sides."""
    held, total = set(), 0
    for side in order:
        if side in held:
            continue
        total += subject.sides[side].n_bytes
        held = {side} if subject.resident == 1 else held | {side}
    return Work(loads=float(total))
