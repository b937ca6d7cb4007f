"""Draws a queue of experiments and the one that runs now, for a given size: pure.

Every experiment has a line: its mark, its name, how far it is or what came of it. Where they do
not all fit, those that are done or still wait are counted on a line of their own. Below stands
the run of the moment as it would be shown alone.
"""

from collections.abc import Sequence
from datetime import datetime
from functools import partial

from rich.text import Text

from mlxroles.dashboard import facts, run_view
from mlxroles.dashboard.forecast import Forecast, clock_time, forecast
from mlxroles.dashboard.layout import Look, Section, blank, clipped, flush, one, stacked
from mlxroles.dashboard.pace import Eta
from mlxroles.dashboard.state import RunState
from mlxroles.store.sweep_state import Entry, QueueState
from mlxroles.text import distinct, safe_text, shortened

MARKS = {
    "done": ("✓", "green"),
    "running": ("▸", "bold cyan"),
    "waiting": ("·", "dim"),
    "failed": ("✗", "bold red"),
    "stopped": ("■", "yellow"),
    "left": ("–", "yellow"),
}
"""A mark and a style per state of an experiment."""

_NAME, _WIDE_NAME = 28, 40
_BAR, _WIDE_BAR = 14, 24
_WIDE = 110
_LOG = 5
_BODY = 8
_CAUSE = 200


def lines(
    queue: QueueState, run: RunState | None, look: Look, *, now: datetime | None = None
) -> list[Text]:
    """The whole screen of a queue, no line wider and no more lines than the look has.

    Args:
        queue: the supervisor's state.
        run: the state of the run of the moment, if one has begun.
        look: width, height and colours.
        now: the time, with its zone; None for that of the clock.
    """
    guess = forecast(queue, run, now)
    width = look.width
    n, told = len(queue.entries), _told(queue) if width < _WIDE else 0
    steps = [(1, min(n, 3)), (3, n), (6, n + min(told, 1)), (8, n + told)]
    sections = [
        *one(0, _title(queue, guess, width)),
        *one(0, _overall(queue, guess, width)),
        Section(steps, partial(_entries, queue, guess, run, width)),
        *one(5, _ranks(queue, width) if len(queue.ranks) > 1 else None),
    ]
    if run is not None and queue.finished is None:
        found = facts.status(run, width, facts.memory_of(run))
        sections += [*one(8, _rule(queue, width)), *one(2, found)]
        has_log = not queue.events
        sections += run_view.body(run, look, good=max(_BODY, look.height * 2 // 5), has_log=has_log)
    if queue.events:
        said = min(len(queue.events), _LOG)
        log = Section([(7, 1), (8, said)], partial(_log, queue, width))
        sections += [blank(10), log]
    return stacked(sections, look)


def _told(queue: QueueState) -> int:
    return sum(entry.sentence is not None and entry.status == "done" for entry in queue.entries)


def _title(queue: QueueState, guess: Forecast, width: int) -> Text:
    counts = dict.fromkeys(MARKS, 0)
    for entry in queue.entries:
        counts[entry.status] = counts.get(entry.status, 0) + 1
    text = Text.assemble((safe_text(queue.name, limit=60) or "queue", "bold"))
    text.append(f"  {counts['done']} of {len(queue.entries)} done")
    for status in ("failed", "left", "stopped"):
        if counts[status]:
            text.append(f"  {counts[status]} {status}", MARKS[status][1])
    return flush(text, Text(guess.when(queue), style="dim"), width)


def _overall(queue: QueueState, guess: Forecast, width: int) -> Text:
    if queue.finished is not None:
        state = f"over after {facts.coarse(guess.elapsed)}"
        if queue.deaths:
            state += f", {queue.deaths} restart{'s' * (queue.deaths > 1)}"
        if queue.slept:
            state += f", asleep for {facts.coarse(queue.slept)}"
        return clipped(Text(state), width)
    info = f"{guess.share:.0%}"
    if guess.left is not None and guess.left.likely > 0:
        info += f"  {facts.span(guess.left)} left"
        if width < len(info) + 12:
            info = f"{guess.share:.0%}  {facts.coarse(guess.left.likely)} left"
    late = f", later than {guess.deadline}" if guess.is_late else ""
    text = Text()
    length = min(width - len(info) - len(late) - 2, 60)
    if length >= 8:
        text.append_text(facts.progress_bar(guess.share, length, "green")).append("  ")
    text.append(info)
    if guess.is_late:
        text.append(late, "yellow")
    return clipped(text, width)


def _entries(
    queue: QueueState, guess: Forecast, run: RunState | None, width: int, height: int
) -> list[Text]:
    """A line per experiment; sentences below them where there is room, newest first."""
    shown = _chosen(queue, height)
    is_wide = width >= _WIDE
    spare = 0 if is_wide else max(height - len(shown) - (len(shown) < len(queue.entries)), 0)
    told = [e for e in shown if e.sentence is not None and e.status == "done"]
    below = {e.number for e in told[max(len(told) - spare, 0) :]} if spare else set()
    lines: list[Text] = []
    labels = _labels(queue.entries, width)
    for entry in shown:
        own = run if entry.status == "running" else None
        lines.append(_entry(entry, labels[entry.number], guess, own, width))
        if entry.number in below:
            found = safe_text(entry.brief or entry.sentence or "", limit=300)
            lines.append(clipped(Text(f"     {found}", style="dim italic"), width))
    rest = _rest([e for e in queue.entries if e not in shown], guess)
    return [*lines, *([clipped(rest, width)] if rest is not None else [])][:height]


def _chosen(queue: QueueState, height: int) -> list[Entry]:
    """The experiments that get a line of their own, in their order."""
    entries = list(queue.entries)
    if len(entries) <= height:
        return entries
    ranks = {"running": 0, "failed": 2, "stopped": 2, "left": 3, "done": 1, "waiting": 1}
    middle = next((at for at, e in enumerate(entries) if e.status in ("running", "waiting")), 0)

    def importance(at: int) -> tuple[int, int]:
        return ranks.get(entries[at].status, 3), abs(at - middle)

    order = sorted(range(len(entries)), key=importance)
    return [entries[at] for at in sorted(order[: max(height - 1, 1)])]


def _rest(entries: Sequence[Entry], guess: Forecast) -> Text | None:
    if not entries:
        return None
    counts = {status: sum(e.status == status for e in entries) for status in MARKS}
    parts = [f"{count} {status}" for status, count in counts.items() if count]
    ahead = sum(guess.each.get(e.number, Eta(0, 0, 0)).likely for e in entries)
    about = f", about {facts.coarse(ahead)}" if ahead else ""
    return Text(f"   … and {', '.join(parts)}{about}", style="dim")


def _labels(entries: Sequence[Entry], width: int) -> dict[int, str]:
    """The names of all experiments in one width; with their kinds where there is room for all."""
    most = _WIDE_NAME if width >= _WIDE else min(_NAME, max(width // 3, 8))
    names = [safe_text(entry.name) for entry in entries]
    kinds = [
        f"{e.kind} " if e.kind not in name else "" for e, name in zip(entries, names, strict=True)
    ]
    whole = [kind + name for kind, name in zip(kinds, names, strict=True)]
    shown = whole if max(map(len, whole), default=0) <= most else distinct(names, most)
    room = max(map(len, shown), default=0)
    return {e.number: name.ljust(room) for e, name in zip(entries, shown, strict=True)}


def _entry(entry: Entry, label: str, guess: Forecast, run: RunState | None, width: int) -> Text:
    mark, style = MARKS.get(entry.status, ("?", ""))
    is_wide = width >= _WIDE
    text = Text.assemble((f" {mark} ", style), no_wrap=True)
    styles = {"running": "bold", "waiting": "dim"}
    text.append(f"{label}  ", styles.get(entry.status, ""))
    text.append_text(_state(entry, guess, run, width - text.cell_len))
    if is_wide and entry.status == "done" and entry.sentence:
        at = len(label) + 5 + 30
        if text.cell_len < at:
            text.append(" " * (at - text.cell_len))
        text.append(f"  {safe_text(entry.brief or entry.sentence, limit=300)}", "dim italic")
    return clipped(text, width)


def _state(entry: Entry, guess: Forecast, run: RunState | None, room: int) -> Text:
    """What is known of the experiment: how far, what it cost, what it will cost, why it failed."""
    text = Text()
    match entry.status:
        case "running":
            _append_running(text, entry, guess, run, room)
        case "waiting":
            ahead = guess.each.get(entry.number)
            far = f"{entry.done}/{entry.cells} cells, " if entry.done and entry.cells else ""
            text.append(f"{far}about {facts.span(ahead)}" if ahead else f"{far}waits", "dim")
        case "done":
            cells = entry.cells if entry.cells is not None else entry.done
            text.append(f"{cells} cells  {facts.coarse(entry.seconds)}")
        case "failed":
            cause = safe_text(entry.error or "it could not go on", limit=_CAUSE)
            text.append(cause, "red")
        case "left":
            far = f"{entry.done} of {entry.cells} cells: " if entry.done and entry.cells else ""
            text.append(f"{far}the time was over first", "yellow")
        case status:
            far = f" at {entry.done} of {entry.cells} cells" if entry.cells else ""
            text.append(f"{safe_text(status)}{far}", "yellow")
    if entry.failed and entry.status != "failed":
        text.append(f"  ✗ {entry.failed}", "red")
    if entry.deaths:
        text.append(f"  † {entry.deaths}", "red")
    return text


def _append_running(
    text: Text, entry: Entry, guess: Forecast, run: RunState | None, room: int
) -> None:
    settled = entry.done + entry.failed
    total = entry.cells
    if run is not None and run.progress.total:
        settled, total = run.progress.settled, run.progress.total
    share = settled / total if total else 0.0
    ahead = guess.each.get(entry.number)
    left = f"  {facts.span(ahead)} left" if ahead and total else ""
    if not total and run is not None and run.progress.stage:
        text.append(safe_text(run.progress.stage, limit=60), "cyan")
        return
    info = f"{share:.0%}"
    if total and settled >= total:
        left = "  finishing"
    elif len(info) + len(left) + _BAR + 4 > room and ahead:
        left = f"  {facts.coarse(ahead.likely)} left"
    length = min(room - len(info) - len(left) - 4, _WIDE_BAR if room > 70 else _BAR)
    if length >= 5:
        text.append_text(facts.progress_bar(share, length, "cyan")).append("  ")
    text.append(info).append(left)


def _ranks(queue: QueueState, width: int) -> Text:
    text = Text.assemble((" machines", "dim"))
    for rank in queue.ranks:
        alive = bool(rank.get("alive"))
        host = safe_text(str(rank.get("host") or "?"), limit=20)
        text.append("  ● " if alive else "  ✗ ", "green" if alive else "red")
        gone = "" if alive else " gone,"
        text.append(f"{rank.get('rank')} {host}{gone} {rank.get('cells') or 0} cells")
    return clipped(text, width)


def _rule(queue: QueueState, width: int) -> Text:
    named = [e for e in queue.entries if e.status == "running"]
    name = f" {shortened(named[0].name, max(width - 8, 4))} " if named else ""
    return clipped(Text(f"──{name}".ljust(width, "─"), style="bright_black"), width)


def _log(queue: QueueState, width: int, height: int) -> list[Text]:
    lines: list[Text] = []
    for each in list(queue.events)[-height:]:
        at = clock_time(str(each.get("time", "")))
        row = f"{at} {safe_text(str(each.get('text', '')), limit=400)}".strip()
        lines.append(clipped(Text(row, style="dim"), width))
    return lines
