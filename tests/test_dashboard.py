"""What a run shows in a terminal, in a log, as tables and as a picture."""

import io
import math
import xml.etree.ElementTree as ET

import patch_docs
import pytest
from rich.console import Console
from told import printed

from mlxroles import documents
from mlxroles.dashboard import final_table, probe_table, run_view, svg, watch
from mlxroles.dashboard.bars import Mark, bar
from mlxroles.dashboard.curves import grouped
from mlxroles.dashboard.facts import Memory
from mlxroles.dashboard.layout import Look
from mlxroles.dashboard.painting import FINAL_ROWS
from mlxroles.dashboard.plain import PlainLines
from mlxroles.dashboard.progress import Progress, Row, from_document
from mlxroles.dashboard.state import RunState
from mlxroles.dashboard.watch import resolve
from mlxroles.events import Cell, CellDone, CellFailed, Note, RunFinished, RunStarted, Stage

TERMINAL = {"TERM": "xterm-256color"}


class Clock:
    """Seconds that pass only when told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def progress(layers=range(6), **more):
    layers = list(layers)
    return Progress(
        layers, list(documents.DIRECTIONS), n_layers=len(layers), headline="<tool_call>", **more
    )


def landed(direction, layer, value, *, prompt="p", control=None, seconds=1.0, **coords):
    coords |= {"direction": direction, "layer": layer, "prompt": prompt, "control": control}
    cell = Cell(f"{direction}/L{layer}/{prompt}/{control}", coords)
    return CellDone(cell, {"tool_call_prob": value}, seconds, tokens=100)


def baseline(model, value, prompt="p"):
    return CellDone(
        Cell(f"baseline/{model}", {"baseline": model, "prompt": prompt}),
        {"tool_call_prob": value},
        1.0,
    )


def started(count, title="Tiny · notepad · resid_post"):
    return RunStarted(title, "runs/x", [Cell(str(i)) for i in range(count)], 0)


def fold(view, *events):
    for event in events:
        view.fold(event)
    return view


def screen(view, width=80, height=24, memory=None):
    shown = run_view.lines(RunState(view), Look(width, height), memory)
    return "\n".join(line.plain for line in shown)


# ---- state


def test_a_row_is_the_mean_over_prompts_and_counts_what_is_missing():
    view = fold(
        progress(),
        landed("instruct_to_base", 2, 0.2, prompt="a"),
        landed("instruct_to_base", 2, 0.4, prompt="b"),
        landed("instruct_to_base", 2, None, prompt="c"),
        landed("instruct_to_base", 3, None),
    )
    assert view.shown(Row("instruct_to_base", 2)) == (pytest.approx(0.3), 1)
    assert math.isnan(view.shown(Row("instruct_to_base", 3)).value)
    assert view.shown(Row("instruct_to_base", 4)) is None


def test_of_several_heads_the_one_farthest_from_the_baseline_is_shown():
    view = fold(progress(), baseline("base", 0.5))
    for head, value in enumerate((0.52, 0.1, 0.7, None)):
        view.fold(landed("instruct_to_base", 1, value, head=head))
    assert view.shown(Row("instruct_to_base", 1)).value == 0.1


def test_the_remaining_time_counts_the_layers_still_to_run_and_passes_over_a_nap():
    clock = Clock()
    view = progress(clock=clock)
    plan = [landed("instruct_to_base", layer, 0.1).cell for layer in range(6)]
    fold(view, RunStarted("Tiny", "runs/x", plan, 0))
    assert view.remaining_seconds is None
    for layer, seconds in enumerate((3.0, 2.5, 500.0)):  # 6, 5 and 4 layers still to run
        clock.now += seconds
        view.fold(landed("instruct_to_base", layer, 0.1, seconds=seconds))
    assert view.remaining_seconds == pytest.approx(0.5 * (3 + 2 + 1))
    assert view.remaining.low < 3 < view.remaining.high
    assert view.elapsed == 505.5
    view.fold(RunFinished(3, 0, 7.0))
    assert view.elapsed == 7.0


def test_stored_cells_do_not_enter_speed_or_time():
    view = fold(progress(), started(2), *patch_docs.event_stream(patch_docs.patch_doc(1)))
    assert view.restored == 2
    assert view.tokens_per_second == pytest.approx(312 / 0.25)


# ---- the screen

RUNNING = """\
Tiny · notepad · resid_post
━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━  8/9  89%  ETA 2.0 s
▸ loading base  ·  71 tokens/s  ·  memory ■■■■■■■■ 9.00 GB of 36.0 GB

layer  instruct → base           ┃ 0.004    base → instruct           ┃ 0.930
    0  ┃                           0.004    █████████████████████████┃  0.930
    1  ┃████×███████▌              0.500 ▲                           ┃    NaN
    2  ┃                               ·                             ┃      ✗

P(<tool_call>), 0 to 1  ┃ unpatched  × other prompt  ▲▼ moved by > .01
✗ 1 failed  last: base_to_instruct/L2: out of memory [/b]\\n\\x1b[2J"""


def running():
    return fold(
        progress(range(3), clock=Clock()),
        started(9),
        baseline("instruct", 0.93),
        baseline("base", 0.004),
        landed("instruct_to_base", 0, 0.0041),
        landed("instruct_to_base", 1, 0.5),
        landed("instruct_to_base", 1, 0.22, control="other_prompt"),
        landed("base_to_instruct", 0, 0.93),
        landed("base_to_instruct", 1, None),
        CellFailed(
            Cell("base_to_instruct/L2", {"direction": "base_to_instruct", "layer": 2}),
            "out of memory [/b]\n\x1b[2J",
        ),
        Stage("loading base"),
    )


def test_the_whole_screen_of_a_run_under_way():
    view = running()
    assert screen(view, memory=Memory(9e9, 12e9, 36e9)) == RUNNING


def test_twenty_columns_show_the_numbers():
    view = fold(running(), RunFinished(5, 1, 3.0, "SIGINT"))
    shown = screen(view, width=20)
    assert shown.splitlines()[3:7] == [
        "",
        "  L i→b    b→i",
        "  0 0.004  0.930",
        "  1 0.500▲   NaN",
    ]


def test_an_interrupted_run_says_so():
    view = fold(running(), RunFinished(5, 1, 3.0, "SIGINT"))
    assert "interrupted (SIGINT)" in screen(view)


@pytest.mark.parametrize("count", [1, 6, 32, 80])
def test_every_size_of_terminal_holds_the_screen(count):
    doc = patch_docs.patch_doc(count, display="".join(patch_docs.HOSTILE))
    view = fold(progress(range(count)), *patch_docs.event_stream(doc, trouble=True))
    for width in (20, 21, 33, 43, 44, 45, 80, 119, 200):
        for height in (5, 12, 24, FINAL_ROWS):
            memory = Memory(1e9, 2e9, 3e9)
            shown = run_view.lines(RunState(view), Look(width, height), memory)
            assert len(shown) <= height
            assert all(line.cell_len <= width for line in shown)
            assert all(line.plain.isprintable() for line in shown)


def test_many_layers_share_rows_and_the_largest_effect_stays_visible():
    assert grouped(range(5), 3) == [[0, 1], [2, 3], [4]]
    view = fold(progress(range(80)), baseline("base", 0.1))
    for layer in range(80):
        view.fold(landed("instruct_to_base", layer, 0.9 if layer == 41 else 0.1))
    shown = screen(view, height=40)
    (row,) = [line for line in shown.splitlines() if "0.900 ▲" in line]
    assert row.split()[0] in {"39-41", "40-41", "40-42", "41-43"}


def test_32_layers_fit_in_40_rows_with_one_row_each():
    doc = patch_docs.patch_doc(32)
    shown = screen(from_document(doc), width=100, height=FINAL_ROWS).splitlines()
    assert [line.split()[0] for line in shown if line[:5].strip().isdigit()] == [
        str(layer) for layer in range(32)
    ]


def test_one_direction_uses_the_whole_width():
    view = progress(range(2))
    view.directions = ["base_to_instruct"]
    fold(view, baseline("instruct", 1.0), landed("base_to_instruct", 0, 1.0))
    assert "█" * 60 in screen(view)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (0.0, "        "),
        (1e-9, "▏       "),
        (0.5, "████    "),
        (1.0, "████████"),
        (7.0, "████████"),
    ],
)
def test_bars(value, plain):
    assert bar(value, 8, "blue", []).plain == plain


def test_later_marks_cover_earlier_ones_and_nan_marks_nothing():
    marks = [
        Mark(0.5, "×", ""),
        Mark(0.5, "┃", "bold"),
        Mark(math.nan, "+", ""),
        Mark(1.0, "+", ""),
    ]
    assert bar(math.nan, 8, "blue", marks).plain == "    ┃  +"


# ---- plain lines

PLAIN = """\
Tiny (6 layers) · notepad0 · resid_post: 10 cells, 2 stored earlier in results/patch/0123abcd
loading base
[ 3/10]  instruct_to_base/resid_post/L00/all  P 0.004 (+1e-04)  1,248 tokens/s  ETA 1.6 s
[ 4/10]  instruct_to_base/resid_post/L01/all  P 0.429 (+0.425)  1,248 tokens/s  ETA 1.5 s
[ 5/10]  base_to_instruct/resid_post/L00/all  P 0.928 (-0.002)  1,248 tokens/s  ETA 1.2 s
failed base_to_instruct/resid_post/L01/all: out of memory: 1.2 GB wanted [/b]\\nrow 2
[ 7/10]  instruct_to_base/resid_post/L00/random  P nan  1,248 tokens/s  ETA 0.91 s
[ 8/10]  instruct_to_base/resid_post/L01/random  P 0.007 (+0.003)  1,248 tokens/s  ETA 0.71 s
[ 9/10]  base_to_instruct/resid_post/L00/random  P 0.930 (-3e-04)  1,248 tokens/s  ETA 0.44 s
[10/10]  base_to_instruct/resid_post/L01/random  P 0.876 (-0.054)  1,248 tokens/s
the cache limit is low: runs may be slow
finished: 9 cells in 2.5 s, 1 failed"""


def stream(mode, events, **options):
    console = Console(file=io.StringIO(), width=20, color_system=None, _environ={})
    with watch(
        console,
        mode=mode,
        n_layers=6,
        layers=range(6),
        directions=documents.DIRECTIONS,
        headline="<tool_call>",
        **options,
    ) as emit:
        for event in events:
            emit(event)
    return console.file.getvalue()


def test_the_whole_log_of_a_run():
    doc = patch_docs.patch_doc(2, controls=("random",))
    text = stream("auto", patch_docs.event_stream(doc, trouble=True))
    assert text == PLAIN + "\n"


def test_a_long_run_has_about_twenty_lines():
    doc = patch_docs.patch_doc(80)
    text = stream("plain", patch_docs.event_stream(doc))
    assert 20 <= len(text.splitlines()) <= 26
    assert "\x1b" not in text


def test_a_minute_of_silence_is_broken():
    clock = Clock()
    written = []
    emit = PlainLines(progress(clock=clock), written.append)
    emit(started(10_000))
    for layer in range(4):
        clock.now += 31
        emit(landed("instruct_to_base", layer, 0.1))
    assert [line.split()[0] for line in written[1:]] == ["[", "["]


def test_quiet_leaves_failures_and_the_interrupt():
    events = [started(2), Note("hint"), CellFailed(Cell("x"), "bad"), RunFinished(0, 1, 1.0)]
    assert stream("quiet", events) == "failed x: bad\n"
    text = stream("quiet", [RunFinished(3, 0, 61.0, "SIGTERM")])
    assert text == "interrupted by SIGTERM: 3 cells in 1 min 01 s\n"


def test_hostile_text_reaches_a_log_escaped():
    events = [Stage(text) for text in patch_docs.HOSTILE]
    events += [CellFailed(Cell(text), text) for text in patch_docs.HOSTILE]
    assert all(line.isprintable() for line in stream("plain", events).splitlines())


# ---- which view


class Encoded(io.StringIO):
    """A stream that claims to be a terminal with this encoding."""

    def __init__(self, encoding="utf-8", tty=True):
        super().__init__()
        self._encoding, self._tty = encoding, tty

    encoding = property(lambda self: self._encoding)

    def isatty(self):
        return self._tty


@pytest.mark.parametrize(
    ("env", "stream_options", "mode"),
    [
        ({}, {}, "live"),
        ({}, {"tty": False}, "plain"),
        ({}, {"encoding": "ascii"}, "plain"),
        ({"TERM": "dumb"}, {}, "plain"),
        ({"TERM": ""}, {}, "plain"),
        ({"NO_COLOR": "1"}, {}, "plain"),
        ({"NO_COLOR": ""}, {}, "live"),
        ({"CI": "true"}, {}, "plain"),
    ],
)
def test_auto_is_live_only_on_a_capable_terminal(env, stream_options, mode):
    env = TERMINAL | env
    console = Console(file=Encoded(**stream_options), _environ=env)
    assert resolve("auto", console, env) == mode
    assert resolve("quiet", console, env) == "quiet"


def test_the_live_view_leaves_its_final_state_and_passes_no_escape_through():
    console = Console(file=Encoded(), width=80, height=24, force_terminal=True, _environ=TERMINAL)
    doc = patch_docs.patch_doc(6, display=patch_docs.HOSTILE[0] + patch_docs.HOSTILE[1])
    with watch(
        console,
        mode="live",
        n_layers=6,
        layers=range(6),
        directions=documents.DIRECTIONS,
        headline="<tool_call>",
        memory=lambda: (5e9, 6e9, 36e9),
    ) as emit:
        for event in patch_docs.event_stream(doc, trouble=True):
            emit(event)
        emit(Note("\x1b]0;owned\x07"))
    text = console.file.getvalue()
    assert "\x1b]" not in text
    assert r"\x1b]0;owned\x07" in text
    assert "done in 9.5 s" in text.rpartition("[b]bold[/b]")[2]
    assert "5.00 GB of 36.0 GB" in text


def test_an_error_inside_the_live_view_restores_the_cursor():
    console = Console(file=Encoded(), width=80, force_terminal=True, _environ=TERMINAL)
    with (
        pytest.raises(RuntimeError, match="boom"),
        watch(
            console,
            mode="live",
            n_layers=1,
            layers=[0],
            directions=documents.DIRECTIONS,
            headline="x",
        ),
    ):
        raise RuntimeError("boom")
    assert console.file.getvalue().rstrip().endswith("\x1b[?25h")


# ---- tables

FINAL = """\
instruct → base   unpatched P 0.004    base → instruct   unpatched P 0.930
layer      P      effect     R  ctrl   layer      P      effect     R  ctrl
─────────────────────────────────────  ─────────────────────────────────────
    0  0.004      +1e-04  0.00  0.00       0  0.928      -0.002  0.00  0.00
  ½ 2  0.429  +0.425 ***  0.65  0.08    ◆½ 2  0.066  -0.864 ***  0.65  0.08
  ◆ 3  0.915  +0.911 ***  0.97  0.12       3      –           –     –  0.12
◆ largest effect   ½ first recovery of at least half   *** |effect| > .01
ctrl: recovery of the control that recovers most (other prompt or random)"""


def test_the_final_table_of_a_patch_run():
    doc = patch_docs.patch_doc(4, layers=[0, 2, 3])
    doc["base_to_instruct"]["3"] |= {"tool_call_prob": None, "effect": None, "recovery": None}
    assert printed(final_table(doc)) == FINAL


def test_the_tables_stand_below_each_other_where_it_is_narrow():
    shown = printed(final_table(patch_docs.patch_doc(2)), width=44)
    assert shown.index("instruct → base") < shown.index("base → instruct")
    assert all(len(line) <= 44 for line in shown.splitlines())


@pytest.mark.parametrize("axis", ["by_head", "by_position"])
def test_heads_and_positions_are_listed_by_their_effect(axis):
    shown = printed(final_table(patch_docs.by_part(axis, 10)), width=100)
    assert axis.removeprefix("by_") in shown
    assert "the 20 largest effects of 60" in shown


def test_parts_stand_beside_the_control_that_recovers_most():
    doc = patch_docs.by_part("by_head", 2, 2)
    doc["controls"] = {"random": {"instruct_to_base": doc["instruct_to_base"]}}
    shown = printed(final_table(doc), width=100)
    assert "ctrl" in shown
    assert "ctrl: recovery of the control that recovers most (random)" in shown


def test_the_picture_counts_the_unpatched_models_and_says_what_was_patched():
    view = from_document(patch_docs.patch_doc(6))
    assert (view.done, view.total) == (2 + 6 * 2 * 3, 38)
    assert view.title == "Tiny (6 layers) · notepad0 · resid_post at all positions"


def test_the_probe_table():
    rows = [
        {"model": model, "prompt": text, "variant": "chat", **patch_docs.values(prob)}
        for model, prob in (("base", 1e-6), ("instruct", 0.9))
        for text in ("notepad", patch_docs.HOSTILE[0])
    ]
    rows[0]["top5"] = []
    rows[0]["entropy"] = None
    doc = {"schema": "mlxroles/probe/1", "headline": "[/b]\x1b", "rows": rows}
    shown = printed(probe_table(doc), width=110)
    assert shown.splitlines()[0] == r"P([/b]\x1b)"
    assert "[b]bold[/b] [/nope]" in shown
    assert "1e-06" in shown
    assert "<tool_call> 0.900" in shown
    printed(probe_table({"schema": "mlxroles/probe/1", "rows": []}), width=20)


# ---- picture


def test_the_picture_is_plain_repeatable_svg(tmp_path):
    doc = patch_docs.patch_doc(6, display="".join(patch_docs.HOSTILE))
    svg(doc, tmp_path / "a.svg")
    svg(from_document(doc), tmp_path / "b.svg", title="[b]<\x1b>")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    root = ET.fromstring(text)
    assert root.tag.endswith("svg")
    assert text.count("http") == 1  # the name of the SVG namespace
    svg(doc, tmp_path / "c.svg")
    assert (tmp_path / "c.svg").read_text(encoding="utf-8") == text
    assert ET.fromstring((tmp_path / "b.svg").read_text(encoding="utf-8")) is not None


def test_a_run_without_a_finished_layer_still_has_a_table_a_screen_and_a_picture(tmp_path):
    doc = patch_docs.patch_doc(2) | {"instruct_to_base": {}, "base_to_instruct": {}, "controls": {}}
    assert printed(final_table(doc)).strip().startswith("◆ largest effect")
    svg(doc, tmp_path / "a.svg")
    assert screen(progress([])).splitlines()[0] == "preparing"
    view = fold(running(), RunFinished(5, 1, 3.0), Stage("drawing figures"))
    assert "drawing" not in screen(view)
    assert "memory 1.00 GB  ·  peak 2.00 GB" in screen(view, memory=Memory(1e9, 2e9, None))
