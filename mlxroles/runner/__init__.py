"""Runs the pending cells of a study into its run folder and tells events about it.

The runner knows nothing of models: a study cuts pending cells into batches and computes a batch;
the runner stores what was computed while the next batch computes, records what fails, shares the
batches with other machines, and leaves at the first signal with the running batch stored.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from mlxroles.events import (
    DEADLINE,
    Cell,
    CellDone,
    Emit,
    Event,
    Note,
    RunFinished,
    RunStarted,
    Vitals,
)
from mlxroles.machine.power import awake
from mlxroles.runner.deaths import sorted_out, suspects
from mlxroles.runner.job import SAME_CAUSE, Job, in_order
from mlxroles.runner.noted import Noted, noted_signals
from mlxroles.runner.protocol import BatchLike, Result, Study
from mlxroles.runner.pulse import VitalSigns, heartbeat
from mlxroles.runner.writer import Writer
from mlxroles.store.folder import RunFolder
from mlxroles.store.history import History, read_history
from mlxroles.store.shards import Claims, gather, take_in
from mlxroles.supervision import LeftToFirst, Supervision, supervision

__all__ = ["SAME_CAUSE", "BatchLike", "Result", "Study", "run"]


ALONE = "their last digits may differ from those of a run with their neighbours"


def run(
    study: Study,
    cells: Sequence[Cell],
    folder: RunFolder,
    emit: Emit,
    *,
    title: str,
    notes: Iterable[str] = (),
    stored: Callable[[Result], None] | None = None,
    signs: VitalSigns | None = None,
    estimate: dict[str, object] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> RunFinished:
    """Computes and stores every cell that is not stored yet.

    One thread writes while this one computes; it is gone when this function returns or raises,
    and what was computed by then is stored.

    Args:
        study: What computes.
        cells: The whole plan.
        folder: Where results go, open for writing.
        emit: Told of everything that happens, one event at a time; of cells by the thread that
            writes, as soon as they are safe on the disk.
        title: One line that names the run.
        notes: What whoever watches should know, beside what the folder has to say.
        stored: What else is done with a result that is safe, by the thread that writes and
            before ``emit`` is told of it. A run with it is not shared with other machines.
        signs: Asked for vital signs every few seconds.
        estimate: Seconds that the plan was thought to take.
        clock: Seconds, monotonic.

    Returns:
        The closing event: cells done and failed, and what ended the run early, if anything did.

    Raises:
        LeftToFirst: this is not the first of several machines, and its share is done.
        StoreError: nothing more can be stored. What was stored is safe.
        MlxrolesError: what the study needs cannot be prepared, or three cells in a row failed
            alike.

    Whatever ``stored`` or ``emit`` raise ends the run as it is.
    """
    begun, wishes = clock(), supervision()
    emit = _told(emit, folder.history)
    if folder.rank == 0:
        take_in(folder)
    pending = _begin(folder, cells, emit, wishes, title=title, notes=notes, estimate=estimate)
    noted = Noted(wishes.until)
    writer = Writer(folder, emit, stored)

    def told() -> Vitals:
        found = Vitals(0, 0, None, None, 0.0, 0) if signs is None else signs()
        return replace(found, tokens=writer.tokens, cells=writer.cells)

    with noted_signals(noted), heartbeat(emit, noted, told, folder.beat), awake(os.getpid()):
        job = Job(study, writer, emit, noted, clock=clock)
        try:
            _work(job, pending, folder, wishes, is_shared=wishes.size > 1 and stored is None)
        except KeyboardInterrupt:
            noted.note("SIGINT")
        finally:
            noted.interrupts = False  # what is computed will be stored, which takes moments
            writer.close()
    writer.check()
    return _end(folder, cells, job, emit, wishes, seconds=clock() - begun)


def _begin(
    folder: RunFolder,
    cells: Sequence[Cell],
    emit: Emit,
    wishes: Supervision,
    *,
    title: str,
    notes: Iterable[str],
    estimate: dict[str, object] | None,
) -> list[Cell]:
    """Tells what there is already; the cells that are still to be done."""
    done, records = folder.done(), folder.records()
    about = folder.manifest.get("about")
    view = about.get("view") if isinstance(about, dict) else None
    n_done = sum(cell.id in done for cell in cells)
    emit(RunStarted(title, str(folder.path), cells, n_done, view or {}, folder.rank, estimate))
    # only now: what a supervisor reads before is what another process has said
    wishes.announce(folder.path)
    for text in (*folder.notes, *notes):
        emit(Note(text))
    if folder.torn_lines:
        emit(Note(f"{folder.torn_lines} damaged journal lines are passed over and run again"))
    for cell in cells:
        if cell.id in done:
            emit(CellDone(cell, records[cell.id].values, records[cell.id].seconds, restored=True))
    return [cell for cell in cells if cell.id not in done]


def _work(
    job: Job, pending: Sequence[Cell], folder: RunFolder, wishes: Supervision, *, is_shared: bool
) -> None:
    """Computes what is pending: what processes have died of last, and each cell by itself."""
    study = job.study
    held = suspects(read_history(folder.path))
    usual, alone, given_up = sorted_out(pending, held)
    claims = Claims(folder) if is_shared else None
    batches = in_order(study.batches(usual), hurried=wishes.until is not None, coarse=wishes.coarse)
    if folder.rank == 0:
        for cell in given_up:
            cause, deaths = held[cell.id].cause, held[cell.id].deaths
            known = folder.latest(cell.id)
            if known is None or known.attempt != deaths:  # not recorded by an earlier process
                job.give_up(cell, cause, deaths)
    if claims is None:
        job.all(batches)
    else:
        job.shared(batches, folder, claims)
    if folder.rank == 0 and alone:
        job.emit(Note(f"{len(alone)} cells run alone, after deaths in their midst: {ALONE}"))
        job.all([_by_itself(study, cell) for cell in alone])


def _end(
    folder: RunFolder,
    cells: Sequence[Cell],
    job: Job,
    emit: Emit,
    wishes: Supervision,
    *,
    seconds: float,
) -> RunFinished:
    """Tells how the run ended; on other machines than the first that is all they do."""
    if folder.rank:
        raise LeftToFirst(RunFinished(0, job.failed, seconds, job.noted.name))
    gather(folder)
    done, records = folder.done(), folder.records()
    n_done = sum(cell.id in done for cell in cells)
    n_failed = sum(cell.id in records and records[cell.id].status != "ok" for cell in cells)
    # a signal that came with the last batch has ended nothing early
    interrupted = None
    if n_done < len(cells):
        interrupted = job.noted.name
        if interrupted is None and wishes.coarse and n_done + n_failed < len(cells):
            interrupted = DEADLINE  # the rest is for later
    finished = RunFinished(n_done, n_failed, seconds, interrupted)
    emit(finished)
    return finished


def _by_itself(study: Study, cell: Cell) -> BatchLike:
    """A batch of one cell, without its neighbours where the study can do that."""
    alone = getattr(study, "alone", None)
    return study.batches([cell])[0] if alone is None else alone(cell)


def _told(emit: Emit, history: History) -> Emit:
    """Tells the history too; one event at a time, whatever thread it comes from."""
    lock = threading.RLock()

    def both(event: Event) -> None:
        with lock:
            history.append(event)
            emit(event)

    return both
