"""Experiment files: what they may say, what they come to, and one line for whatever is wrong."""

import datetime
import itertools
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxroles.errors import SpecError
from mlxroles.spec import Experiment, Queue, over, parse_budget, parse_until, read, read_queue
from mlxroles.spec.tables import label

NOW = datetime.datetime(2026, 11, 21, 22, 0)


@pytest.fixture
def write(tmp_path):
    """Writes an experiment file beside the others."""

    def made(text, name="x.toml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return made


def refusal(call, *args):
    with pytest.raises(SpecError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- one experiment -------------------------------------------------------------------------------


def test_an_experiment_is_its_command_and_options(write):
    found = read(
        write('kind = "patch"\npair = "tiny"\nlayers = "0-5"\ndonor_head = 1\nedges = true')
    )
    assert found == Experiment(
        "patch",
        "patch tiny",
        {"pair": "tiny", "layers": "0-5", "donor-head": 1, "edges": True},
        source=found.source,
    )
    assert found.source.endswith("x.toml")


def test_name_and_priority_are_not_options(write):
    found = read(write('kind = "probe"\nname = "what they say"\npriority = 7'))
    assert (found.name, found.priority, found.options) == ("what they say", 7, {})


def test_experiments_are_frozen(write):
    found = read(write('kind = "probe"'))
    with pytest.raises(AttributeError):
        found.kind = "patch"


def test_windows_line_ends_and_a_byte_order_mark_are_read(tmp_path):
    path = tmp_path / "x.toml"
    path.write_bytes('\ufeffkind = "probe"\r\npair = "tiny"\r\n'.encode())
    assert read(path).options == {"pair": "tiny"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", 'holds no experiment: an experiment has a line such as kind = "patch"'),
        ("knid = 'patch'", "did you mean 'kind'?"),
        ("experiments = []", "did you mean 'experiment'?"),
        ("kind = 3", "kind must be the name of a command"),
        ("kind = 'patch'\nfile = 'x.toml'", "has kind and file"),
        ("kind = 'patch'\npriority = 'high'", "priority must be a whole number"),
        ("kind = 'patch'\npriority = true", "priority must be a whole number"),
        ("kind = 'patch'\nname = ''", "name must be text"),
        ('kind = "patch"\nname = "a\\nb"', "must be one line"),
        (f"kind = 'patch'\nname = '{'x' * 300}'", "at most 200"),
        ("kind = 'patch'\nprompt = []", "prompt is an empty list"),
        ("kind = 'patch'\nprompt = [['a']]", "prompt must be a list of texts"),
        ("kind = 'patch'\nprompt.a = 1", "prompt is a table"),
        ("kind = 'patch'\n[gird]\nsite = ['z']", "did you mean 'grid'?"),
        ("kind = 'patch'\nseed = 2026-01-01", "seed is a date or a time"),
        ("kind = 'patch'\nseed = nan", "seed must be a finite number"),
        ('kind = "patch"\nprompt = "a\\u0000b"', "prompt holds a NUL character"),
        (f"kind = 'patch'\nprompt = '{'x' * 100_001}'", "put it into a .txt file"),
        ("kind = 'patch'\ntoken-ids = '1'\ntoken_ids = '2'", "token-ids stands there twice"),
        ("kind = 'patch'\n[[experiment]]\nkind = 'probe'", "one experiment or a queue"),
    ],
)
def test_what_cannot_be_meant_is_one_line_with_the_file(write, text, said):
    found = refusal(read, write(text))
    assert said in found
    assert "x.toml" in found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            'kind = "patch"\npair = tiny\n',
            "line 2: Invalid value (column 8); text stands in quotes",
        ),
        ('kind = "patch"\nkind = "probe"\n', "line 2: Cannot overwrite a value"),
        ('kind = "patch"\nx = [1,\n', "line 2: "),
        ('kind = "patch\n', "line 1: Illegal character"),
        ("a = " + "[" * 5000, "x.toml"),
    ],
)
def test_a_syntax_error_names_the_line(write, text, said):
    assert said in refusal(read, write(text))


def test_what_is_no_file_is_told_apart(tmp_path, write):
    assert "no experiment file" in refusal(read, tmp_path / "none.toml")
    assert "is a folder" in refusal(read, tmp_path)
    assert "not a regular file" in refusal(read, Path("/dev/null"))
    (tmp_path / "latin.toml").write_bytes(b'kind = "\xe9"')
    assert "is not UTF-8: byte 8" in refusal(read, tmp_path / "latin.toml")
    assert "larger than 1 MB" in refusal(read, write("#" * (1 << 20) + "\n"))
    assert "a\\x00b" in refusal(read, tmp_path / "a\0b.toml")
    os.mkfifo(tmp_path / "pipe.toml")
    assert "not a regular file" in refusal(read, tmp_path / "pipe.toml")
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    refusal(read, tmp_path / "loop.toml")


def test_hostile_names_are_shown_safely(tmp_path):
    found = refusal(read, tmp_path / "\x1b[2J\u202e.toml")
    assert found.isprintable()


# --- paths ----------------------------------------------------------------------------------------


def test_paths_are_taken_from_the_folder_of_the_file(write, tmp_path, monkeypatch):
    elsewhere = tmp_path / "cwd"
    elsewhere.mkdir()
    (elsewhere / "here.txt").touch()
    monkeypatch.chdir(elsewhere)
    (tmp_path / "models" / "base").mkdir(parents=True)
    write("text", "prompts/own.txt")
    (tmp_path / "notepad").mkdir()
    found = read(
        write(
            """
            kind = "patch"
            base = "models/base"
            instruct = "org/name"
            prompt = ["prompts/own.txt", "notepad", "here.txt", "Is it a text? Yes."]
            system = "prompts/own.txt"
            """
        )
    ).options
    assert found["base"] == str(tmp_path / "models" / "base")
    assert found["instruct"] == "org/name"
    own = str(tmp_path / "prompts" / "own.txt")
    assert found["prompt"] == [own, "notepad", "here.txt", "Is it a text? Yes."]
    assert found["system"] == "prompts/own.txt"


def test_a_long_prompt_is_no_path(write):
    text = "a." * 3000
    assert read(write(f'kind = "patch"\nprompt = "{text}"')).options["prompt"] == text


# --- file references ------------------------------------------------------------------------------


def test_keys_beside_file_override_those_of_the_file(write):
    write('kind = "patch"\npair = "tiny"\nlayers = "0-5"\npriority = 3', "sub/patch.toml")
    found = read(write('file = "sub/patch.toml"\nlayers = "2"'))
    assert (found.kind, found.options) == ("patch", {"pair": "tiny", "layers": "2"})
    assert found.priority == 3


def test_paths_of_a_referred_file_are_from_its_own_folder(write, tmp_path):
    write("text", "sub/own.txt")
    write('kind = "patch"\nprompt = "own.txt"', "sub/patch.toml")
    found = read(write('file = "sub/patch.toml"'))
    assert found.options["prompt"] == str(tmp_path / "sub" / "own.txt")


def test_an_option_beside_file_takes_the_place_of_its_grid(write):
    write('kind = "patch"\n[grid]\nseed = [1, 2]\nsite = ["z", "q"]', "sub.toml")
    found = read(write('file = "sub.toml"\nseed = 9'))
    assert [e.options for e in found.experiments] == [
        {"seed": 9, "site": "z"},
        {"seed": 9, "site": "q"},
    ]


def test_files_in_a_circle_are_refused(write):
    write('file = "b.toml"', "a.toml")
    path = write('file = "a.toml"', "b.toml")
    assert "in a circle: b.toml -> a.toml -> b.toml" in refusal(read, path)
    assert "in a circle" in refusal(read, write('file = "self.toml"', "self.toml"))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ('"none.toml"', "no experiment file"),
        ("3", "file must be a path"),
        ('"queue.toml"', "is a queue, and file takes a single experiment"),
        ('"broken.toml"', "line 1"),
        ('"."', "is a folder"),
    ],
)
def test_a_file_that_cannot_be_taken_is_one_line(write, value, said):
    write('[[experiment]]\nkind = "patch"', "queue.toml")
    write("kind = patch", "broken.toml")
    found = refusal(read, write(f"[[experiment]]\nfile = {value}"))
    assert said in found
    assert "x.toml, experiment 1" in found


# --- queues and grids -----------------------------------------------------------------------------


def test_a_queue_has_its_settings_and_experiments_in_order(write):
    found = read(
        write(
            """
            name = "night"
            until = "07:00"
            notify = "say done"
            [defaults]
            pair = "tiny"
            [[experiment]]
            kind = "patch"
            [[experiment]]
            kind = "probe"
            priority = 5
            """
        )
    )
    assert (found.name, found.until, found.budget, found.notify) == (
        "night",
        "07:00",
        None,
        "say done",
    )
    assert [e.name for e in found.experiments] == ["patch tiny", "probe tiny"]
    assert [e.kind for e in found.ordered()] == ["probe", "patch"]
    assert found.experiments[0].defaults == {"pair": "tiny"}
    assert found.experiments[0].options == {}


def test_a_grid_is_every_combination_with_a_readable_name(write):
    found = read(
        write(
            """
            [[experiment]]
            kind = "patch"
            pair = "tiny"
            [experiment.grid]
            site = ["resid_post", "attn_out"]
            seed = [0, 1]
            edges = [true, false]
            """,
            "night.toml",
        )
    )
    assert found.name == "night"
    assert [e.name for e in found.experiments[:3]] == [
        "patch tiny resid_post seed=0 edges",
        "patch tiny resid_post seed=0 no-edges",
        "patch tiny resid_post seed=1 edges",
    ]
    assert len(found.experiments) == 8


def test_a_value_of_a_grid_may_be_several_options(write):
    found = read(
        write(
            """
            [[experiment]]
            kind = "patch"
            layers = "2"
            [experiment.grid]
            pair = [
                "tiny",
                {name = "mine", base = "a/b", instruct = "a/c"},
                {base = "d", instruct = "e"},
            ]
            """
        )
    )
    assert [e.options for e in found.experiments] == [
        {"layers": "2", "pair": "tiny"},
        {"layers": "2", "base": "a/b", "instruct": "a/c"},
        {"layers": "2", "base": "d", "instruct": "e"},
    ]
    assert [e.name for e in found.experiments] == ["patch tiny", "patch mine", "patch d+e"]


def test_a_list_in_a_grid_is_one_value(write):
    found = read(write('kind = "patch"\n[grid]\nprompt = [["a.toml", "notepad"], ["notepad"]]'))
    assert isinstance(found, Queue)
    assert [e.options["prompt"] for e in found.experiments] == [["a.toml", "notepad"], ["notepad"]]
    assert found.experiments[0].name == "patch prompt=a+notepad"


def test_names_that_were_made_are_told_apart_by_what_differs(write):
    found = read(
        write(
            """
            [[experiment]]
            kind = "patch"
            pair = "tiny"
            layers = "2"
            seed = 1
            [[experiment]]
            kind = "patch"
            pair = "tiny"
            layers = "3"
            seed = 1
            """
        )
    )
    assert [e.name for e in found.experiments] == ["patch tiny layers=2", "patch tiny layers=3"]


QUEUE = "[[experiment]]\nkind = 'patch'\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("experiment = []", "is an empty queue"),
        ("experiment = 3", "every experiment of a queue is a table [[experiment]]"),
        ("[experiment]\nkind = 'patch'", "every experiment of a queue is a table [[experiment]]"),
        ("pair = 'tiny'\n" + QUEUE, "a queue has no key 'pair'; options of all experiments"),
        ("untli = '07:00'\n" + QUEUE, "did you mean 'until'?"),
        ("until = '07:00'\nbudget = '8h'\n" + QUEUE, "until and budget exclude each other"),
        ("until = 7\n" + QUEUE, 'until must be text, such as until = "07:00"'),
        ("until = 'noon'\n" + QUEUE, "'noon' is no time"),
        ("until = '25:00'\n" + QUEUE, "'25:00' is no time"),
        ("budget = 8\n" + QUEUE, 'budget must be text, such as budget = "8h"'),
        ("budget = '8 apples'\n" + QUEUE, "is no duration"),
        ("budget = '0h'\n" + QUEUE, "is not between"),
        ("notify = ['say']\n" + QUEUE, "notify must be text"),
        ("defaults = 3\n" + QUEUE, "defaults must be a table"),
        ("[defaults]\nkind = 'patch'\n" + QUEUE, "kind belongs to an experiment"),
        ("[defaults]\nout = 'x'\n" + QUEUE, "out is one run's folder"),
        (QUEUE + QUEUE, "runs 1 and 2 are both named 'patch'"),
        (QUEUE + "name = 'a'\n" + QUEUE + "name = 'a'", "are both named 'a'"),
        (QUEUE + "out='x'\nname='a'\n" + QUEUE + "out='x'\nname='b'", "2 experiments write to out"),
        (QUEUE + "grid = 3", "grid must be a table of lists"),
        (QUEUE + "[experiment.grid]\nseed = 3", "seed must be a list of values"),
        (QUEUE + "[experiment.grid]\nseed = []", "seed is an empty list"),
        (QUEUE + "[experiment.grid]\nseed = [1, 1]", "seed lists seed=1 twice"),
        (QUEUE + "[experiment.grid]\nkind = ['patch']", "kind is no option and cannot be varied"),
        (QUEUE + "[experiment.grid]\npair = [{kind = 'x'}]", "kind is no option"),
        (QUEUE + "[experiment.grid]\npair = [{name = 'x'}]", "a table without an option"),
        (QUEUE + "[experiment.grid]\na_b = [1]\na-b = [2]", "a-b stands there twice"),
        (QUEUE + "seed = 1\n[experiment.grid]\nseed = [1]", "in the grid and beside it"),
        (QUEUE + "[experiment.grid]\na = [{seed = 1}]\nseed = [2]", "a and seed both set seed"),
        (
            QUEUE + f"[experiment.grid]\na = {list(range(101))}\nb = {list(range(100))}",
            "the grid makes 10100 experiments",
        ),
        (
            (QUEUE + f"name = 'a'\n[experiment.grid]\na = {list(range(6000))}\n")
            + (QUEUE + f"name = 'b'\n[experiment.grid]\na = {list(range(6000))}\n"),
            "12000 experiments are more than a queue may hold",
        ),
    ],
)
def test_a_queue_that_cannot_be_meant_is_one_line_with_the_file(write, text, said):
    found = refusal(read, write(text))
    assert said in found
    assert "x.toml" in found


def test_a_time_that_toml_knows_is_taken(write):
    assert read(write("until = 07:00:00\n" + QUEUE)).until == "07:00:00"


def test_files_make_one_queue(write):
    one = write('kind = "patch"\npair = "tiny"', "one.toml")
    two = write('budget = "8h"\n[[experiment]]\nkind = "patch"\npair = "tiny"', "two.toml")
    found = read_queue([one, two])
    assert [e.name for e in found.experiments] == ["patch tiny (one)", "patch tiny (two)"]
    assert (found.name, found.budget) == ("one+two", "8h")
    alone = read_queue([one])
    assert (alone.name, len(alone.experiments)) == ("one", 1)
    assert "at least one" in refusal(read_queue, [])
    three = write('budget = "9h"\n' + QUEUE, "three.toml")
    assert "give budget differently" in refusal(read_queue, [two, three])
    four = write('until = "07:00"\n' + QUEUE, "four.toml")
    assert "exclude each other" in refusal(read_queue, [two, four])
    assert "both named" in refusal(read_queue, [one, one])


# --- times ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("8h", 28800), ("90m", 5400), ("1h30m", 5400), ("45s", 45), ("1.5h", 5400), ("1d 2H", 93600)],
)
def test_budgets(text, seconds):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "8", "h", "-1h", "1m1h", "0s", "inf h", "1e9h", "400d", "٣h"])
def test_no_budgets(text):
    refusal(parse_budget, text)


@given(st.integers(0, 99), st.integers(0, 99), st.integers(1, 99))
def test_a_budget_is_the_sum_of_its_parts(hours, minutes, seconds):
    assert parse_budget(f"{hours}h{minutes}m{seconds}s") == hours * 3600 + minutes * 60 + seconds


@pytest.mark.parametrize(
    ("text", "until"),
    [
        ("07:00", (22, 7, 0)),
        ("7:00", (22, 7, 0)),
        ("23:30:15", (21, 23, 30, 15)),
        ("22:00", (22, 22, 0)),
        ("2026-11-23 07:00", (23, 7, 0)),
        ("2026-11-23T07:00", (23, 7, 0)),
    ],
)
def test_the_next_such_time(text, until):
    assert parse_until(text, NOW) == datetime.datetime(2026, 11, *until)


@pytest.mark.parametrize("text", ["", "7", "07:60", "24:61", "tomorrow", "2026-11-31 07:00"])
def test_no_times(text):
    assert "is no time" in refusal(parse_until, text, NOW)


def test_a_time_that_is_over_is_told():
    assert "is over; it is 2026-11-21 22:00" in refusal(parse_until, "2026-11-21 07:00", NOW)


@given(st.times(), st.datetimes(datetime.datetime(2000, 1, 1), datetime.datetime(2100, 1, 1)))
def test_the_next_such_time_is_within_a_day(clock, now):
    until = parse_until(clock.strftime("%H:%M:%S"), now)
    assert datetime.timedelta(0) < until - now <= datetime.timedelta(days=1)
    assert until.time() == clock.replace(microsecond=0)


def test_with_a_time_zone_the_clock_is_the_local_one():
    now = NOW.astimezone(datetime.UTC)
    assert parse_until("07:00", now) == datetime.datetime(2026, 11, 22, 7).astimezone()


# --- properties -----------------------------------------------------------------------------------

AXES = st.dictionaries(
    st.sampled_from(["seed", "site", "layers", "positions"]),
    st.lists(st.integers(0, 50), min_size=1, max_size=4, unique=True),
    min_size=1,
    max_size=4,
)


@given(AXES)
def test_a_grid_is_the_product_in_order_with_names_of_their_own(tmp_path_factory, axes):
    path = tmp_path_factory.mktemp("spec") / "x.toml"
    listed = "\n".join(f"{key} = {values}" for key, values in axes.items())
    path.write_text(f'kind = "patch"\n[grid]\n{listed}\n')
    found = read(path).experiments
    assert [tuple(e.options[key] for key in axes) for e in found] == list(
        itertools.product(*axes.values())
    )
    assert len({e.name for e in found}) == len(found)


VALUES = st.recursive(
    st.one_of(
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(),
        st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8),
        st.dates(),
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["kind", "name", "seed"]), inner, max_size=2)
    ),
    max_leaves=5,
)
KEYS = st.sampled_from(
    [
        "kind",
        "file",
        "name",
        "priority",
        "grid",
        "until",
        "budget",
        "notify",
        "defaults",
        "experiment",
    ]
)


def toml(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + "}"
    return str(value)


@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_document_is_read_or_refused_in_one_line(tmp_path_factory, doc):
    path = tmp_path_factory.mktemp("spec") / "x.toml"
    path.write_text("\n".join(f"{k} = {toml(v)}" for k, v in doc.items()), encoding="utf-8")
    try:
        found = read(path)
    except SpecError as error:
        assert str(error).isprintable()  # noqa: PT017
    else:
        assert isinstance(found, Experiment | Queue)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("spec") / "x.toml"
    path.write_bytes(data)
    with pytest.raises(SpecError):
        read(path)


OPTIONS = st.dictionaries(
    st.sampled_from(["pair", "model", "base", "instruct", "seed", "site"]), st.integers(0, 9)
)


@given(OPTIONS, OPTIONS)
def test_own_options_win_and_models_are_named_one_way(inherited, own):
    found = over(inherited, own)
    assert own.items() <= found.items()
    assert found.items() <= (inherited | own).items()
    if {"pair", "model"} & own.keys():
        assert not ({"base", "instruct"} & found.keys()) - own.keys()


def test_labels_are_short_and_printable():
    assert label("prompt", "/a/b/notes.txt") == "notes"
    assert label("prompt", "Is it?\n\x1b[2J" * 20).isprintable()
    assert len(label("prompt", "word " * 100)) < 60
    assert label("base", "org/name-4bit") == "name-4bit"
    assert label("layers", "0-5") == "layers=0-5"
