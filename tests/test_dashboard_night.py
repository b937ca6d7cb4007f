"""The dashboard of long runs: queues, maps, estimates, deaths, every size and every terminal."""

import io
import math
import signal
import threading
import time
from dataclasses import replace

import night_states
import patch_docs
import pytest
from night_states import NOW, Entry, Queue, grid_state, night, run_state, vitals
from rich.console import Console

from mlxroles import documents
from mlxroles.dashboard import colors, facts, heat, queue, queue_view, run_view, svg
from mlxroles.dashboard.forecast import forecast
from mlxroles.dashboard.layout import Look, Section, beside, flush, stacked
from mlxroles.dashboard.pace import Eta, Meter, Pace
from mlxroles.dashboard.progress import Row
from mlxroles.dashboard.queue_table import queue_table
from mlxroles.dashboard.screen import Screen
from mlxroles.dashboard.snapshot import queue_snapshot, run_snapshot
from mlxroles.dashboard.spoken import SpokenQueue, SpokenRun, progress_sentence
from mlxroles.dashboard.state import RunState, empty_progress
from mlxroles.events import (
    Cell,
    CellDone,
    CellFailed,
    Note,
    RunFinished,
    RunStarted,
    Stage,
    Vitals,
)

TERMINAL = {"TERM": "xterm-256color"}
SIZES = [
    (width, height)
    for width in (20, 21, 33, 43, 44, 60, 79, 80, 100, 119, 130, 160, 250)
    for height in (5, 6, 9, 12, 16, 24, 40, 50, 80)
]
DEPTHS = ("none", "16", "256", "true")


class Encoded(io.StringIO):
    """A stream that claims to be a terminal."""

    encoding = "utf-8"

    def isatty(self):
        return True


def terminal(width=80, height=24, **more):
    options = {"force_terminal": True, "_environ": TERMINAL} | more
    return Console(file=Encoded(), width=width, height=height, **options)


def plain(lines):
    return "\n".join(line.plain.rstrip() for line in lines)


def night_screen(width=80, height=24, *, state=None, shown=None, depth="none"):
    state = night() if state is None else state
    return plain(queue_view.lines(state, shown, Look(width, height, depth), now=NOW))


# ---- every size


RUNS = {
    "bars": run_state,
    "positions": lambda: run_state(position=40),
    "many positions": lambda: run_state(8, position=700),
    "heads": lambda: run_state(part_done=1.0, head=32),
    "prompts": grid_state,
    "nothing yet": RunState,
    "80 layers": lambda: run_state(80),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_fits_every_size(name):
    state = RUNS[name]()
    for at, (width, height) in enumerate(SIZES):
        shown = run_view.lines(state, Look(width, height, DEPTHS[at % 4]))
        assert len(shown) <= height
        assert all(line.cell_len <= width for line in shown), (width, height)
        assert all(line.plain.isprintable() for line in shown)


@pytest.mark.parametrize("name", ["bars", "positions", "prompts", "nothing yet"])
def test_a_queue_fits_every_size(name):
    run = RUNS[name]()
    for at, (width, height) in enumerate(SIZES):
        for state in (night(), night(finished=True), night(ranks=0), Queue()):
            look = Look(width, height, DEPTHS[at % 4])
            shown = queue_view.lines(state, run, look, now=NOW)
            assert len(shown) <= height
            assert all(line.cell_len <= width for line in shown), (width, height)
            assert all(line.plain.isprintable() for line in shown)


def test_hostile_names_stay_on_their_line():
    state = night()
    for entry, text in zip(state.entries, patch_docs.HOSTILE, strict=False):
        entry.name, entry.error, entry.sentence = text, text, text
    state.name = "".join(patch_docs.HOSTILE)
    state.events = [{"time": "no time", "text": text} for text in patch_docs.HOSTILE]
    state.ranks = [{"rank": n, "host": text} for n, text in enumerate(patch_docs.HOSTILE)]
    for width, height in SIZES:
        shown = queue_view.lines(state, None, Look(width, height), now=NOW)
        assert all(line.cell_len <= width and line.plain.isprintable() for line in shown)


# ---- what stays when there is little room


def test_a_night_at_80_by_24():
    shown = night_screen(shown=run_state()).splitlines()
    assert shown[0].startswith("overnight  3 of 7 done  1 failed")
    assert shown[0].endswith("in 4 h 13 min")
    assert " left" in shown[1]
    assert [line[1] for line in shown[2:10]] == list("✓✓✓ ✗▸··")
    assert "RFC rises in 9 of 32 layers" in shown[5]
    text = "\n".join(shown)
    assert "● 1 mac-b 133 cells  ✗ 2 mac-c gone, 45 cells" in text
    assert "540 tokens/s  ·  180 layer calls/s  ·  memory ■■■■■■■■ 9.00 GB of 24.0 GB" in text
    assert "½  base → instruct half at layer 18" in text
    assert sum(line[:6].strip()[:1].isdigit() and "┃" in line for line in shown) >= 7
    assert len(shown) == 24


def test_five_rows_show_the_bar_and_the_experiment_of_the_moment():
    shown = night_screen(40, 5, shown=run_state())
    assert "overnight" in shown
    assert "57%" in shown
    assert "▸ llama-fine" in shown
    assert "… and" in shown


def test_a_long_queue_shows_what_is_near_and_counts_the_rest():
    entries = [Entry(n, f"e{n}", status="done" if n < 30 else "waiting") for n in range(60)]
    entries[3].status, entries[30].status = "failed", "running"
    shown = night_screen(80, 12, state=Queue(entries=entries)).splitlines()
    assert "▸ patch e30" in "\n".join(shown)
    assert shown[-1].strip().startswith("… and ")
    assert shown[-1].count("done") == shown[-1].count("waiting") == 1


def test_sentences_of_finished_experiments_appear_with_height_or_width():
    tall, wide = night_screen(80, 60), night_screen(160, 24)
    for shown in (tall, wide):
        assert "From layer 17 of 32 on" in shown
        assert "Instruct into base: half of the effect" in shown
        assert "RFC rises in 9" in shown


def test_a_queue_that_is_over_says_what_became_of_it():
    shown = night_screen(state=night(finished=True))
    assert "over after 9 h 00 min, 6 restarts, asleep for 13 min" in shown
    assert "700 of 2560 cells: the time was over first" in shown
    assert "ended " in shown.splitlines()[0]
    assert "left  " not in shown.splitlines()[1]


def test_the_log_stands_beside_the_layers_where_it_is_wide():
    shown = plain(run_view.lines(run_state(), Look(160, 42))).splitlines()
    (row,) = [line for line in shown if line.endswith("events")]
    assert "base → instruct" in row
    assert any("the machine slept 12 min 40 s" in line and "┃" in line for line in shown)


def test_every_layer_has_a_row_as_soon_as_there_is_room():
    state = run_state()
    rows = {
        height: sum("┃" in line.plain for line in run_view.lines(state, Look(80, height)))
        for height in (20, 40, 60)
    }
    assert rows[20] < rows[40] < rows[60]
    assert rows[60] >= 33


# ---- maps


def map_lines(state, width=100, height=40, depth="true"):
    return heat.maps(state.progress, width, height, depth)


def test_without_colours_characters_carry_value_and_sign():
    shown = plain(map_lines(run_state(part_done=1.0, position=40), 60, 74, "none"))
    assert "effect on P(<tool_call>)" in shown
    assert any(mark in shown for mark in "56789")
    assert any(mark in shown for mark in "cdefg")
    assert "▲" in shown
    assert "▼" in shown


def test_a_map_fills_in_and_marks_what_failed():
    state = run_state(part_done=0.4, position=40)
    cells = plain(map_lines(state, 120, 40))
    assert heat.WAITING * 10 in cells
    assert heat.BROKEN in cells
    assert "+" in cells or "-" in cells


def test_short_maps_put_two_layers_into_a_row_of_half_blocks():
    state = run_state(position=40)
    shown = plain(map_lines(state, 100, 20))
    assert "▀" in shown
    assert " 0-1 " in shown
    assert "▀" not in plain(map_lines(state, 100, 20, "16"))
    assert "▀" not in plain(map_lines(state, 100, 20, "none"))


def test_a_row_names_its_strongest_cell_with_its_sign():
    state = RunState(empty_progress())
    cells = night_states.patch_cells(2, head=4)
    state.fold(RunStarted("x", "x", cells, 0, night_states.view(2)))
    state.fold(CellDone(cells[1], {"tool_call_prob": 0.5}, 1.0))
    for cell in cells[2:]:
        if cell.coords["direction"] == "base_to_instruct":
            value = 0.08 if cell.coords["head"] == 2 else 0.495
            state.fold(CellDone(cell, {"tool_call_prob": value}, 1.0))
    state.fold(CellDone(cells[0], {"tool_call_prob": 0.5}, 1.0))
    shown = plain(map_lines(state, 120, 10))
    assert shown.count("▼.42 @2") == 2
    assert "unpatched 0.500" in shown
    assert heat.end_of([state.progress.effects("base_to_instruct")]) == 0.5


def test_the_scale_has_a_round_end_whatever_the_values():
    assert heat.end_of([{}]) == 0.02
    assert heat.end_of([{(0, 0): math.nan, (0, 1): -0.3}]) == 0.5
    assert heat.end_of([{(0, 0): 7.2}]) == 8


@pytest.mark.parametrize("depth", DEPTHS)
def test_colours_tell_the_sign_at_every_depth(depth):
    up, down = colors.diverging(0.8, depth), colors.diverging(-0.8, depth)
    assert (up == down) is (depth == "none")
    assert (colors.letter(0.8), colors.letter(-0.8), colors.letter(0.01)) == ("7", "g", ".")
    assert colors.diverging(math.nan, depth) == colors.sequential(math.nan, depth)
    assert (colors.sequential(0.1, depth) == colors.sequential(0.9, depth)) is (depth == "none")


@pytest.mark.parametrize(
    ("options", "depth"),
    [
        ({"color_system": "truecolor"}, "true"),
        ({"color_system": "256"}, "256"),
        ({"color_system": "standard"}, "16"),
        ({"color_system": None}, "none"),
        ({"color_system": "truecolor", "no_color": True}, "none"),
    ],
)
def test_the_depth_is_that_of_the_console(options, depth):
    assert colors.depth(terminal(**options)) == depth


def test_the_plan_of_a_map_is_known_from_the_view_where_cells_are_only_counted():
    about = night_states.view(4, positions="each", n_tokens=[9, 12])
    state = RunState(empty_progress())
    state.fold(RunStarted("x", "x", (Cell(""),) * 96, 0, about))
    assert state.progress.part_axis == "position"
    assert state.progress.parts == list(range(12))
    assert "11" in plain(map_lines(state, 120, 10))


# ---- state


def test_a_cell_that_is_told_twice_counts_once_and_a_retried_failure_is_forgotten():
    state = RunState(empty_progress())
    cells = night_states.patch_cells(2)
    state.fold(RunStarted("x", "x", cells, 0, night_states.view(2)))
    state.fold(CellFailed(cells[3], "boom"))
    assert (state.progress.done, state.progress.failed) == (0, 1)
    assert state.progress.has_failed(Row(cells[3].coords["direction"], 0, "other_prompt"))
    for _ in range(2):
        state.fold(CellDone(cells[3], {"tool_call_prob": 0.5}, 1.0))
    assert (state.progress.done, state.progress.failed) == (1, 0)
    assert not state.progress.has_failed(Row(cells[3].coords["direction"], 0, "other_prompt"))
    state.fold(RunStarted("x", "x", cells, 1, night_states.view(2)))
    state.fold(CellDone(cells[3], {"tool_call_prob": 0.5}, 1.0, restored=True))
    assert state.progress.settled == 1


def test_deaths_and_sleep_are_counted_and_told():
    state = run_state()
    assert (state.deaths, state.slept) == (1, 760.0)
    assert [said.kind for said in state.log][-2:] == ["died", "slept"]
    assert "† 1 restart" in plain(run_view.lines(state, Look(80, 24)))


def test_what_happened_before_anybody_looked_has_no_time_but_tells_the_pace():
    events = night_states.run_events(8, 0.9)
    cells = [e for e in events if isinstance(e, CellDone)]
    stored = [replace(each, restored=True) for each in cells]
    rest = [e for e in events if not isinstance(e, CellDone)]
    state = RunState(empty_progress())
    state.catch_up([rest[0], *stored, *rest[1:]])
    assert {said.time for said in state.log} == {""}
    assert state.remaining is not None
    assert state.progress.restored == 0  # as many as the process found when it began
    state.fold(Note("later"))
    assert state.log[-1].time != ""


def test_a_run_that_goes_on_after_its_end_is_not_over():
    state = run_state(4, 0.5)
    state.fold(RunFinished(3, 0, 9.0, "SIGTERM"))
    assert state.is_over
    cell = night_states.patch_cells(4)[-1]
    state.fold(CellDone(cell, {"tool_call_prob": 0.1}, 1.0))
    assert not state.is_over


def test_half_of_the_effect_is_certain_only_when_no_earlier_layer_is_open():
    state = run_state(part_done=1.0)
    found = {direction: (layer, whole) for direction, layer, whole in facts.crossings(state)}
    assert found["base_to_instruct"] == (18, True)
    clock = run_state(8, 0.0)
    cells = [c for c in night_states.patch_cells(8) if c.coords.get("control", 0) is None]
    for model, prob in night_states.BASELINES.items():
        cell = Cell(f"baseline/{model}", {"baseline": model, "prompt": 0})
        values = {"tool_call_prob": prob, "log_odds": night_states.odds(prob)}
        clock.fold(CellDone(cell, values, 1.0))
    late = next(c for c in cells if c.coords["layer"] == 7)
    ends = [night_states.BASELINES[who(late.coords["direction"])]
            for who in (documents.recipient, documents.donor)]  # fmt: skip
    clock.fold(CellDone(late, night_states.level(0.9, *ends), 1.0))
    assert [(layer, whole) for _, layer, whole in facts.crossings(clock)] == [(7, False)]
    assert "layer 7 or before" in plain(run_view.lines(clock, Look(80, 24)))


def test_a_run_without_layers_shows_its_prompts_and_last_numbers():
    shown = plain(run_view.lines(grid_state(), Look(80, 24)))
    assert "base     ████████████✗" in shown
    assert "39/40" in shown
    assert "17/40" in shown
    assert "last: model=instruct/prompt=16  entropy 2.67  rank 56" in shown


def test_further_machines_do_not_start_the_run_anew():
    state = run_state()
    before = state.progress.total
    state.fold(RunStarted("other", "x", (), 0, {}, 2))
    assert (state.progress.total, state.progress.title[:5]) == (before, "patch")
    assert not state.is_begun_by(RunStarted(state.progress.title, "x", (), 0))
    assert state.is_begun_by(RunStarted("next", "x", (), 0))
    assert not state.is_begun_by(Note("x"))


def test_without_a_baseline_no_cell_of_a_map_has_an_effect():
    view = {"kind": "patch", "layers": [0, 1], "directions": ["base_to_instruct"], "n_layers": 2}
    state = RunState()
    state.fold(RunStarted("t", "", (), 0, view | {"heads": "each", "n_heads": 4}))
    coords = {"direction": "base_to_instruct", "layer": 1, "head": 2, "prompt": 0}
    value = state.progress.value
    state.fold(CellDone(Cell("x", coords), {value: 0.9}, 1.0))
    assert state.progress.effects("base_to_instruct") == {}
    baseline = Cell("baseline/instruct", {"baseline": "instruct", "prompt": 0})
    state.fold(CellDone(baseline, {value: 0.9}, 1.0))
    assert state.progress.effects("base_to_instruct") == {(1, 2): 0.0}


# ---- time


def pace(times, work=1.0, total=100, **more):
    found = Pace(**more)
    found.begin([{} for _ in range(total)], [], 1)
    for seconds in times:
        found.add({}, seconds * work, 10)
    return found


def test_steady_times_give_a_narrow_range_and_scattered_ones_a_wide_one():
    steady = pace([1.0 + 0.001 * n for n in range(20)]).eta(80)
    wild = pace([1.0 + (n % 5) for n in range(20)]).eta(80)
    assert steady.likely == pytest.approx(80.8, abs=0.5)
    assert (steady.high - steady.low) / steady.likely < 0.11
    assert (wild.high - wild.low) / wild.likely > 0.3
    assert wild.low < wild.likely < wild.high


def test_the_estimate_of_the_plan_counts_until_enough_is_measured():
    plan = {"likely": 400.0, "low": 300.0, "high": 600.0}
    assert pace([], estimate=plan).eta(100) == Eta(400.0, 300.0, 600.0)
    early = pace([1.0], estimate=plan).eta(99).likely
    late = pace([1.0 + n / 1e6 for n in range(32)], estimate=plan).eta(68).likely
    assert early > 250
    assert late < 100
    assert pace([]).eta(50) is None
    assert pace([]).eta(0) == Eta(0.0, 0.0, 0.0)


def test_late_layers_are_known_to_take_less_time():
    found = Pace()
    cells = [{"direction": "d", "layer": layer} for layer in range(10)]
    found.begin(cells, range(10), 10)
    for cell in cells[:5]:
        found.add(cell, 10.0 - cell["layer"], 1)
    assert found.eta(5).likely == pytest.approx(5 + 4 + 3 + 2 + 1)


def test_machines_side_by_side_divide_the_time():
    assert pace([1.0, 1.1], parallel=2).eta(98).likely == pytest.approx(
        pace([1.0, 1.1]).eta(98).likely / 2
    )


def test_speed_is_measured_between_counters_and_starts_over_with_a_new_process():
    meter = Meter()
    assert meter.layer_calls is None
    for now, calls in ((0, 0.0), (5, 500.0), (10, 1000.0)):
        meter.add(now, vitals(calls, int(calls) * 4))
    assert (meter.layer_calls, meter.tokens) == (100.0, 400.0)
    meter.add(12, vitals(10.0, 40))
    assert meter.layer_calls is None


@pytest.mark.parametrize(
    ("eta", "text"),
    [
        (Eta(1920, 1680, 2400), "32 min (28–40 min)"),
        (Eta(1920, 1910, 1930), "32 min"),
        (Eta(20, 10, 30), "20 s"),
        (Eta(9000, 3300, 12000), "2 h 30 min (55 min–3 h 20 min)"),
    ],
)
def test_a_range_is_as_short_as_it_can_be(eta, text):
    assert facts.span(eta) == text


def test_the_end_of_a_queue_adds_up_what_is_ahead():
    state = night()
    guess = forecast(state, None, NOW)
    assert guess.left.likely == pytest.approx(9400 * 450 / 770 + 7600 + 420, rel=0.01)
    assert guess.elapsed == 4 * 3600 + 47 * 60
    assert not guess.is_late
    state.entries[5].estimate = 1e5
    assert forecast(state, None, NOW).is_late
    assert "later than" in night_screen(120, 24, state=state)
    state.entries[5].estimate = None
    unknown = forecast(state, None, NOW)
    assert unknown.left is None
    assert 4 / 7 <= unknown.share < 5 / 7


# ---- layout


def test_rows_go_to_what_matters_most_and_come_out_in_their_places():
    def part(name):
        return lambda rows: [night_states_text(name)] * rows

    sections = [Section([(2, 1)], part("a")), Section([(0, 1), (3, 9)], part("b"))]
    sections += [Section([(1, 3)], part("c"))]
    for height, shown in ((1, "b"), (3, "abb"), (4, "bccc"), (5, "abccc"), (7, "abbbccc")):
        assert "".join(t.plain for t in stacked(sections, Look(9, height))) == shown


def night_states_text(name):
    from rich.text import Text

    return Text(name)


def test_columns_keep_their_distance_and_width():
    left, right = night_states_text("x" * 50), night_states_text("right")
    (line,) = beside([left], [right], 20)
    assert line.plain.index("right") == 20
    assert flush(left, right, 30).cell_len == 30
    assert flush(left, right, 10).plain == "x" * 9 + "…"


# ---- sentences


def test_a_queue_in_sentences():
    clock = night_states.Clock()
    said = []
    speak = SpokenQueue(said.append, clock)
    state, run = night(), run_state()
    speak(state, run)
    assert said[0].startswith("Queue overnight: 7 experiments, 4 of them done before, about ")
    assert said[1] == "Experiment 5 of 7, llama-fine, begins: 770 cells."
    fresh = []
    SpokenQueue(fresh.append, clock)(replace(state, finished="2026-11-22T06:00:00+00:00"), run)
    assert fresh[2].startswith("Experiment 2 of 7, llama-coarse, is done: 420 cells, 3 of them")
    assert "failed: stopped after 3 cells" in fresh[4]
    before = len(said)
    speak(state, run)
    assert len(said) == before
    clock.now += 61
    state.entries[5].status = "running"
    state.events.append({"time": "2026-11-22T02:50:00+00:00", "text": "all is well"})
    speak(state, run)
    assert said[before] == "Experiment 6 of 7, llama-positions, begins: 2560 cells."
    assert said[before + 1] == "All is well."
    assert said[before + 2].startswith("Experiment 5 of 7, llama-fine: 116 of 194 cells, 60 perc")
    assert not any(char in "".join(said) for char in "━█┃▸✓✗·†")


def test_a_run_in_sentences():
    clock = night_states.Clock()
    said = []
    speak = SpokenRun(said.append, clock)
    state = run_state()
    speak(state)
    assert said[0] == "patch Llama 3.1 8B (32 layers): resid_post, notepad: 194 cells"
    assert said[1] == "Base into instruct: half of the effect at layer 18."
    assert said[2] == progress_sentence(state)
    assert "memory 9.00 GB of 24.0 GB" in said[2]
    for _ in range(5):
        clock.now += 20
        state.fold(Note(f"note at {clock.now}"))
        speak(state)
    assert [line.startswith("Note at") for line in said[3:]] == [
        True,
        True,
        True,
        False,
        True,
        True,
    ]
    state.fold(RunFinished(194, 2, 99.0))
    speak(state)
    assert said[-1] == "Finished: 194 cells in 1 min 39 s, 2 failed."


# ---- live


def test_a_terminal_gets_a_screen_and_keeps_its_last_state():
    console = terminal(100, 30)
    with queue.show(console, env=TERMINAL) as show:
        for _ in range(3):
            show(night(), run_state(4))
        show(night(finished=True), None)
    text = console.file.getvalue()
    screen, _, rest = text.rpartition("\x1b[?1049l")
    assert "\x1b[?1049h" in screen
    assert "4 done" not in screen
    assert "4 of 7 done" in rest
    assert "\x1b[?25h" in text


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"TERM": ""}, {"CI": "1", **TERMINAL}])
def test_simple_terminals_get_sentences(env):
    console = terminal()
    with queue.show(console, env=env) as show:
        show(night(), None)
    assert "\x1b" not in console.file.getvalue()
    assert "Queue overnight" in console.file.getvalue()


def test_no_color_takes_the_colours_and_leaves_the_screen():
    env = TERMINAL | {"NO_COLOR": "1"}
    console = terminal(_environ=env)
    with queue.show(console, env=env) as show:
        show(night(), run_state(part_done=0.9, position=40))
    text = console.file.getvalue()
    assert "\x1b[?1049h" in text
    assert "\x1b[3" not in text.replace("\x1b[3m", "")  # italics are no colour
    assert "\x1b[4" not in text
    with queue.show(terminal(), plain=True, env=TERMINAL) as show:
        show(night(), None)


def test_an_error_gives_the_terminal_back():
    console = terminal()

    def fails():
        with queue.show(console, env=TERMINAL) as show:
            show(night(), None)
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fails()
    text = console.file.getvalue()
    assert text.rfind("\x1b[?1049l") > text.rfind("\x1b[?1049h")


def test_a_signal_handler_that_tells_of_an_event_never_waits_for_the_screen():
    screen = Screen(run_state(4))
    console = terminal()

    class Loud(dict):
        """Calls for a signal in the middle of taking in an event and of drawing."""

        def values(self):
            signal.raise_signal(signal.SIGUSR1)
            return super().values()

        def get(self, *given):
            signal.raise_signal(signal.SIGUSR1)
            return super().get(*given)

    told = []

    def handler(*_):
        if len(told) < 50:
            told.append(Note(f"signal {len(told)}"))
            screen.fold(told[-1])
            console.print(screen)

    before = signal.signal(signal.SIGUSR1, handler)
    finished = threading.Event()
    watchdog = threading.Timer(20, lambda: finished.is_set() or signal.raise_signal(signal.SIGABRT))
    watchdog.start()
    try:
        screen.state.progress._settled = Loud(screen.state.progress._settled)
        screen.fold(CellDone(night_states.patch_cells(4)[9], {"tool_call_prob": 0.2}, 1.0))
        console.print(screen)
    finally:
        finished.set()
        watchdog.cancel()
        screen.state.progress._settled = dict(screen.state.progress._settled)
        signal.signal(signal.SIGUSR1, before)
    console.print(screen)
    assert told
    texts = [said.text for said in screen.state.log]
    assert [text for text in texts if text.startswith("signal")] == [note.text for note in told]


def test_events_of_many_threads_all_arrive():
    screen = Screen(RunState(empty_progress()))
    console = terminal()

    def tell(name):
        for n in range(40):
            screen.fold(Stage(f"{name} {n}"))
            screen.fold(Note(f"{name} {n}"))

    threads = [threading.Thread(target=tell, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for _ in range(10):
        console.print(screen)
        time.sleep(0.001)
    for thread in threads:
        thread.join()
    console.print(screen)
    assert len(screen.state.log) == 160


# ---- snapshots and pictures


def test_the_picture_of_a_map_has_a_block_per_cell(tmp_path):
    doc = patch_docs.by_part("by_head", 10)
    svg(doc, tmp_path / "map.svg")
    text = (tmp_path / "map.svg").read_text(encoding="utf-8")
    assert colors.hue(0.5)[:1] == "#"
    assert text.count("<rect") > 40
    assert "position" not in text
    assert ">+" in text or "+<" in text


def test_snapshots_are_plain_data():
    import json

    state = run_state()
    state.fold(Vitals(1, 2, None, None, 1.0, 1))
    doc = run_snapshot(state)
    assert json.loads(json.dumps(doc, allow_nan=False))["done"] == 114
    assert doc["half_of_effect"] == {"base_to_instruct": {"layer": 18, "is_certain": True}}
    assert doc["seconds_left"]["low"] < doc["seconds_left"]["high"]
    whole = queue_snapshot(night(), state)
    assert whole["run"]["total"] == 194
    assert json.dumps(queue_snapshot(Queue(), None), allow_nan=False)


# ---- lists


GRID = [f"layers {prompt} seed={seed}" for prompt in ("no_request", "animals") for seed in (0, 1)]


@pytest.mark.parametrize("width", [50, 80])
def test_members_of_a_grid_stay_apart_in_a_queue(width):
    state = night()
    for entry, name in zip(state.entries, GRID, strict=False):
        entry.name = name
    lines = night_screen(width, 24, state=state).splitlines()
    names = [line[3 : 3 + width // 3] for line in lines if "seed=" in line]
    assert len(set(names)) == 4


def test_an_experiment_that_waits_for_its_second_turn_keeps_what_it_has():
    state = night()
    before = forecast(state, None, NOW).share
    entry = state.entries[4]
    entry.status = "waiting"
    assert forecast(state, None, NOW).share == pytest.approx(before)
    assert "318/770 cells, about" in night_screen(100, 24, state=state)
    for each in state.entries:
        each.estimate = None
    assert forecast(state, None, NOW).share == pytest.approx((4 + 320 / 770) / 7)


@pytest.mark.parametrize("width", [20, 50, 80, 120, 200])
def test_a_list_of_a_queue_fits_its_terminal(width):
    entries = night(finished=True).entries
    entries[0].name = "x" * 120
    entries[
        1
    ].brief = "i→b half at layer 3 (R 0.82, control 0.38) · b→i half at layer 3 (R 0.87, no)"
    console = terminal(width, color_system=None)
    console.print(queue_table(entries, "the night \x1b[2J"))
    lines = console.file.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    text = "\n".join(lines)
    assert "\x1b" not in text
    assert "deci\n" not in text
    for entry in entries:
        assert any(entry.status in line for line in lines)
    if width == 80:
        assert len(lines) < 30
        assert "    i→b half at layer 3 (R 0.82, control 0.38)\n" in text
        assert "612              12 min" in text
    if width == 200:
        assert len(lines) <= 2 + 3 * len(entries)
