"""run and plan: a file does what its command does, and every wrong word in it is one line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from mlxroles import cli
from mlxroles.cli import experiments
from mlxroles.cli.experiments import KINDS, arguments, command_of
from mlxroles.errors import SpecError
from mlxroles.spec import Experiment, read, read_queue

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "experiments").glob("*.toml"))
CATALOGUED = {"llama8b", "llama", "qwen", "mistral"}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes an experiment file into the working directory."""
    monkeypatch.chdir(tmp_path)

    def made(text, name="x.toml"):
        Path(name).write_text(text, encoding="utf-8")
        return name

    return made


def experiment(kind="patch", **options):
    own = {key.replace("_", "-"): value for key, value in options.items()}
    return Experiment(kind, "it", own, source="x.toml")


def refused(found):
    status, out, err = found
    assert (status, out) == (1, ""), err
    assert err.count("\n") == 1, err
    assert err.startswith("error: ")
    return err


# --- words ----------------------------------------------------------------------------------------


def test_options_become_words():
    found = arguments(
        experiment(
            pair="tiny",
            layers=3,
            prompt=["a text", "-dashed"],
            edges=True,
            method="attribution",
            allow_window_mismatch=False,
        )
    )
    assert found == [
        *["patch", "--pair", "tiny", "--layers", "3", "--prompt", "a text", "--prompt=-dashed"],
        *["--edges", "--method", "attribution"],
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"chat_template": True}, ["--chat-template"]),
        ({"chat_template": False}, ["--raw"]),
        ({"raw": True}, ["--raw"]),
        ({"raw": False}, ["--chat-template"]),
        ({"family": "tiny"}, ["--family", "tiny"]),
        ({"pair": "tiny"}, ["--pair", "tiny"]),
    ],
)
def test_switches_and_synonyms(options, words):
    assert arguments(experiment("entropy", **options)) == ["entropy", *words]


def test_a_scalar_is_a_list_of_one():
    assert arguments(experiment("pipeline", family="tiny")) == ["pipeline", "--family", "tiny"]
    found = arguments(experiment("correlate", sources=["a", "-b"], metric="rsi"))
    assert found == ["correlate", "--metric", "rsi", "--", "a", "-b"]
    assert arguments(experiment("compare", source="tiny")) == ["compare", "tiny"]


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("ptach", {}, "no kind of experiment 'ptach'; did you mean 'patch'?"),
        ("models", {}, "no kind of experiment 'models'; there are patch, "),
        ("sweep", {}, "no kind of experiment 'sweep'"),
        ("patch", {"layer": "2"}, "patch has no option 'layer'; did you mean 'layers'?"),
        ("patch", {"xyzzy": "2"}, "(`mlxroles patch --help` lists them)"),
        ("patch", {"priorty": 1}, "did you mean 'priority'?"),
        ("patch", {"site": "resid_pots"}, "site: 'resid_pots' is not one of"),
        ("patch", {"site": "resid_pots"}, "did you mean 'resid_post'?"),
        ("patch", {"seed": -1}, "seed: -1 is not in the range"),
        ("patch", {"seed": 1.5}, "seed: '1.5' is not a valid integer"),
        ("patch", {"seed": "one"}, "seed: 'one' is not a valid integer"),
        ("patch", {"layers": [1, 2]}, 'layers takes one value, such as "1,2"'),
        ("patch", {"layers": True}, "layers takes a value, not true or false"),
        ("patch", {"prompt": ["a", True]}, "prompt takes a value, not true or false"),
        ("patch", {"edges": "yes"}, "edges is a switch: write edges = true or edges = false"),
        ("patch", {"token_ids": "1,x"}, "token-ids: '1,x' is not a list of token ids"),
        ("patch", {"ids": "1", "prompt_ids": "2"}, "ids and prompt-ids are one option"),
        ("entropy", {"raw": True, "chat_template": True}, "raw and chat-template are one option"),
        ("entropy", {"names": "x"}, "entropy has no option 'names'"),
        ("capture", {"prompt": "x"}, "capture needs model"),
        ("capture", {"model": "x", "out": "/"}, "out: "),
        ("patch", {"json": True}, "json is no part of an experiment"),
        ("patch", {"plain": True}, "plain is no part of an experiment"),
        ("patch", {"fresh": True}, "mlxroles run FILE --fresh"),
        ("patch", {"dry_run": True}, "mlxroles plan FILE"),
        ("patch", {"help": True}, "mlxroles COMMAND --help"),
        ("pipeline", {"open": True}, "open is no part of an experiment"),
        ("patch", {"\x1b[2J\n": 1}, r"\x1b[2J\n"),
    ],
)
def test_what_a_command_does_not_take_is_one_line_with_the_file(kind, options, said):
    with pytest.raises(SpecError) as caught:
        arguments(experiment(kind, **options))
    found = str(caught.value)
    assert said in found
    assert found.startswith("x.toml: ")
    assert found.isprintable()


def test_defaults_go_to_commands_that_have_them(write):
    name = write(
        """
        [defaults]
        pair = "tiny"
        seed = 3
        layers = "2"
        [[experiment]]
        kind = "patch"
        layers = "4"
        [[experiment]]
        kind = "entropy"
        family = "other"
        [[experiment]]
        kind = "capture"
        model = "DIR"
        prompt = "x"
        [[experiment]]
        kind = "probe"
        base = "A"
        instruct = "B"
        [[experiment]]
        kind = "compare"
        source = "tiny"
        """
    )
    found = [" ".join(arguments(one)) for one in read(name).experiments]
    assert found == [
        "patch --pair tiny --seed 3 --layers 4",
        "entropy --seed 3 --family other",
        "capture --layers 2 --model DIR --prompt x",
        "probe --seed 3 --base A --instruct B",
        "compare --seed 3 tiny",
    ]


def test_a_default_that_no_command_has_is_refused(write):
    name = write('[defaults]\nsede = 3\n[[experiment]]\nkind = "patch"')
    with pytest.raises(SpecError, match=r"x.toml, \[defaults\]: no command has an option 'sede'"):
        arguments(read(name).experiments[0])
    name = write('[defaults]\njson = true\n[[experiment]]\nkind = "patch"')
    with pytest.raises(SpecError, match="how results are printed"):
        arguments(read(name).experiments[0])


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_of_a_command_can_be_said(kind):
    known = experiments._options(kind)
    words = {w for p in command_of(experiment(kind)).params for w in (*p.opts, *p.secondary_opts)}
    said = {option.word or key for key, option in known.items()}
    unsaid = (
        {w for w in words if w.startswith("--")} - said - {f"--{k}" for k in experiments.SWITCHES}
    )
    assert unsaid == set()
    assert not set(known) & set(experiments.SWITCHES)


def test_a_new_command_needs_nothing_else(monkeypatch):
    @click.command("dance")
    @click.argument("steps", nargs=-1)
    @click.option("--tempo", type=click.IntRange(1, 200))
    @click.option("--twice", is_flag=True)
    def dance(**given):
        return given

    module = type(sys)("mlxroles.cli.dance")
    module.command = dance
    monkeypatch.setitem(sys.modules, "mlxroles.cli.dance", module)
    monkeypatch.setattr(experiments, "KINDS", (*KINDS, "dance"))
    found = arguments(experiment("dance", tempo=100, twice=True, steps=["a", "b"]))
    assert found == ["dance", "--tempo", "100", "--twice", "a", "b"]
    with pytest.raises(SpecError, match="tempo: 300 is not in the range"):
        arguments(experiment("dance", tempo=300))


# --- the files that come with the project ---------------------------------------------------------


def test_there_is_a_file_for_every_command():
    held = {one.kind for path in FILES for one in read_queue([path]).experiments}
    assert held == set(KINDS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_file_is_read_and_its_command_takes_it(path):
    assert path.read_text().startswith("# ")
    for one in read_queue([path]).experiments:
        assert " ".join(arguments(one)).startswith(f"{one.kind} ")


def commented(path):
    """The options that stand commented out in a file, with the text in which each is taken."""
    lines = path.read_text().splitlines()
    for n, line in enumerate(lines):
        key, is_option, _ = line.removeprefix("# ").partition(" = ")
        if line.startswith("# ") and is_option and key.replace("-", "").isalpha():
            gone = (f"{key} =", "family =") if key == "all" else (f"{key} =",)
            others = [o for m, o in enumerate(lines) if m != n and not o.startswith(gone)]
            yield key, "\n".join([line.removeprefix("# "), *others])


@pytest.mark.parametrize(
    "path", [p for p in FILES if "[[experiment]]" not in p.read_text()], ids=lambda p: p.stem
)
def test_what_is_commented_out_in_a_file_is_taken_as_well(path, write):
    for key, text in commented(path):
        assert read(write(text)).options.keys() >= {key}
        assert arguments(read("x.toml"))


def test_what_is_commented_out_in_the_night_is_taken_as_well(write):
    text = (ROOT / "experiments" / "overnight.toml").read_text()
    for path in FILES:
        shutil.copy(path, path.name)
    whole = text.replace('pair = "tiny"\n# pair', "pair").replace("# pair", "pair")
    for key in ("until", "notify", "[[experiment]]", "file", "priority"):
        whole = whole.replace(f"\n# {key}", f"\n{key}")
    found = read(write(whole))
    assert (found.until, found.notify) == ("07:00", "say 'the night is over'")
    assert len(found.experiments) == len(read(write(text)).experiments) + 2 * 6 + 1
    names = [one.name for one in found.experiments]
    assert "layers animals seed=1 mine" in names
    assert {"--base", "--instruct"} <= set(
        arguments(found.experiments[names.index("layers notepad seed=0 mine")])
    )


@pytest.mark.slow
def test_plan_takes_every_file(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = call("plan", *FILES, "--json")
    doc = json.loads(out)
    wrong = {e["name"]: e["error"] for e in doc["experiments"] if e["error"]}
    assert status == (1 if wrong else 0)
    for name, error in wrong.items():
        assert CATALOGUED & set(name.replace("+", " ").split()), name
        assert "not on this machine" in error
    without = {"compare", "candidates", "correlate", "bench"}
    for one in doc["experiments"]:
        assert one["error"] or one["cells"] or one["kind"] in without


@pytest.mark.slow
def test_the_night_is_a_few_minutes_of_distinct_runs(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = call("plan", ROOT / "experiments" / "overnight.toml", "--json")
    doc = json.loads(out)
    assert status == 0
    assert all(one["same_as"] is None for one in doc["experiments"])
    priorities = [one["priority"] for one in doc["experiments"]]
    assert priorities == sorted(priorities, reverse=True)
    assert 10 <= doc["totals"]["experiments"] <= 40
    assert doc["totals"]["layer_calls"] < 20_000


# --- run ------------------------------------------------------------------------------------------


def test_run_is_the_command_with_the_same_options(call, write):
    name = write('kind = "probe"\npair = "tiny"\nseed = 1')
    status, out, _ = call("run", name, "--json")
    doc = json.loads(out)
    assert (status, out.count("\n")) == (0, 1)
    assert doc["schema"] == "mlxroles/probe/1"
    manifest = json.loads((Path(doc["run"]) / "manifest.json").read_text())
    assert manifest["argv"] == ["probe", "--json", "--pair", "tiny", "--seed", "1"]
    status, out, err = call("probe", "--pair", "tiny", "--seed", "1", "--json", "--plain")
    again = json.loads(out)
    assert (status, again["run"], again["rows"]) == (0, doc["run"], doc["rows"])
    assert "2 cells, 2 done" in err


def test_run_takes_the_switches_of_a_call(call, write, tmp_path):
    name = write('kind = "probe"\npair = "tiny"\nout = "not here"')
    status, out, _ = call("run", name, "--dry-run", "--json")
    assert (status, json.loads(out)["cells"]) == (0, 2)
    assert list(Path().iterdir()) == [Path("x.toml")]
    status, out, err = call("run", name, "--plain", "--out", "there")
    assert (status, "\x1b" in out + err) == (0, False)
    assert (tmp_path / "there" / "manifest.json").exists()
    status, _, _ = call("run", name, "--out", "there", "--fresh", "--plain")
    assert status == 0
    assert (tmp_path / "there.old-1").exists()


def test_a_dashed_argument_does_not_swallow_the_switches(call, write):
    name = write('kind = "compare"\nsource = "-x"')
    status, out, err = call("run", name, "--json")
    assert (status, out) == (1, "")
    assert "-x" in err
    assert "--json" not in err


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        ('[[experiment]]\nkind = "patch"', (), "is a queue of experiments: use `mlxroles sweep x"),
        ('kind = "patch"\n[grid]\nseed = [1, 2]', (), "use `mlxroles sweep x.toml`"),
        ('kind = "bench"', ("--fresh",), "bench has no --fresh"),
        ('kind = "compare"\nsource = "x"', ("--dry-run",), "compare has no --dry-run"),
        ('kind = "pipeline"\nfamily = "tiny"', ("--out", "x"), "pipeline has no option 'out'"),
        ('kind = "patch"\npair = "tniy"', (), "no pair 'tniy' in the catalogue; did you mean"),
        ('kind = "patch"\npair = "tiny"\nlayers = "9"', (), "layer 9 is outside 0..5"),
        ("kind = patch", (), "x.toml, line 1: Invalid value"),
    ],
)
def test_what_run_cannot_run_is_one_line(call, write, text, words, said):
    assert said in refused(call("run", write(text), *words))


def test_a_file_that_is_none_is_one_line(call, write):
    write("")
    assert "no experiment file none.toml" in refused(call("run", "none.toml"))
    assert "no experiment file -" in refused(call("run", "-"))
    Path("pyproject.toml").touch()
    assert refused(call("run", "nope.toml")).strip() == "error: no experiment file nope.toml"
    assert "did you mean 'pyproject.toml'" in refused(call("run", "pyprojct.toml"))
    assert "is a folder" in refused(call("run", "."))
    assert call("run")[0] == 2


def test_wrong_use_of_the_command_names_the_file(call, write):
    status, out, err = call("run", write('kind = "patch"'))
    assert (status, out) == (2, "")
    assert "Error: x.toml: name a pair with --pair" in err
    assert "mlxroles patch" in err


def test_standard_input_is_no_file(write):
    write("")
    words = [sys.executable, "-m", "mlxroles.cli", "run", "/dev/stdin"]
    found = subprocess.run(
        words,
        input='kind = "probe"',
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])},
    )
    assert found.returncode == 1
    assert found.stderr.count("\n") == 1
    assert "not a regular file" in found.stderr


# --- plan -----------------------------------------------------------------------------------------


def test_plan_tells_what_is_done_and_hides_nothing(call, write):
    name = write(
        """
        name = "night"
        [[experiment]]
        kind = "probe"
        pair = "tiny"
        priority = 2
        [[experiment]]
        kind = "probe"
        pair = "tiny"
        priority = 1
        name = "once more"
        seed = 4
        [[experiment]]
        kind = "patch"
        pair = "tniy"
        [[experiment]]
        kind = "patch"
        pair = "tiny"
        layer = 3
        [[experiment]]
        kind = "patch"
        [[experiment]]
        kind = "compare"
        source = "tiny"
        [[experiment]]
        kind = "patch"
        pair = "tiny"
        layers = "2"
        """
    )
    assert call("probe", "--pair", "tiny", "--plain")[0] == 0
    status, out, err = call("plan", name, "--json")
    doc = json.loads(out)
    assert (status, err, doc["schema"], doc["name"]) == (1, "", "mlxroles/queue-plan/1", "night")
    first, again, unknown, wrong, none, compare, patch = doc["experiments"]
    assert (first["cells"], first["done"], first["layer_calls"]) == (2, 2, 12)
    assert first["runs"][0]["path"].endswith(first["runs"][0]["run_id"])
    assert (again["same_as"], again["number"]) == (1, 2)
    assert "did you mean 'tiny'?" in unknown["error"]
    assert "did you mean 'layers'?" in wrong["error"]
    assert none["error"] == "x.toml, experiment 5: name a pair with --pair, or two models with " + (
        "--base and --instruct"
    )
    assert (compare["cells"], compare["error"]) == (None, None)
    assert (patch["cells"], patch["done"]) == (8, 0)
    assert doc["totals"]["cells"] == 10
    assert doc["totals"]["errors"] == 3
    assert doc["totals"]["memory_bytes"] == patch["memory_bytes"]
    status, out, _ = call("plan", name)
    lines = out.splitlines()
    assert status == 1
    assert lines[0].startswith("experiment\tcells\tdone")
    assert sum(line.startswith("cannot run    ") for line in lines) == 3
    assert [line.split("\t")[-1] for line in lines[1:8]] == [
        *["", "same run", "cannot run", "cannot run", "cannot run", "no plan", ""]
    ]


def test_plan_loads_no_weights_and_writes_nothing(call, write, monkeypatch):
    from mlxroles.studies.subject import Subject

    def loaded(*_):
        raise AssertionError("a plan loads no model")

    monkeypatch.setattr(Subject, "model", loaded)
    name = write(
        """
        [[experiment]]
        kind = "capture"
        model = "tiny/base"
        prompt = "notepad"
        [[experiment]]
        kind = "entropy"
        family = "tiny"
        [[experiment]]
        kind = "pipeline"
        family = "tiny"
        prompts-per-category = 2
        [[experiment]]
        kind = "patch"
        method = "attribution"
        pair = "tiny"
        verify = 2
        """
    )
    status, out, _ = call("plan", name, "--json")
    doc = json.loads(out)
    assert (status, list(Path().iterdir())) == (0, [Path("x.toml")])
    for one in doc["experiments"]:
        assert one["cells"] > 0
        assert one["layer_calls"] > 0
        assert one["disk_bytes"] > 0


def test_plan_finds_a_capture_wherever_it_is(call, write):
    text = 'kind = "capture"\nmodel = "tiny/base"\nprompt = "notepad"\nkeep = "entropy"\n'
    name = write(text + 'out = "run.h5"')
    plain = write(text, "plain.toml")
    for path in (name, plain):
        assert call("run", path, "--plain")[0] == 0
        (one,) = json.loads(call("plan", path, "--json")[1])["experiments"]
        assert (one["cells"], one["done"]) == (1, 1)
    status, out, _ = call("plan", plain, "--out", "run.h5", "--json")
    assert (status, json.loads(out)["experiments"][0]["done"]) == (0, 1)


def test_plan_of_a_folder_with_another_run_is_an_error(call, write):
    name = write('kind = "probe"\npair = "tiny"\nout = "there"')
    assert call("run", name, "--plain")[0] == 0
    assert json.loads(call("plan", name, "--json")[1])["totals"]["done"] == 2
    write('kind = "probe"\npair = "tiny"\nout = "there"\nprompt = "Hello"\ntokens = "a"')
    status, out, _ = call("plan", name)
    assert status == 1
    assert "there holds another run" in out


def test_plan_says_what_fits(call, write, monkeypatch):
    from mlxroles.studies.probe import Probe

    plan = Probe.plan
    seconds = {"likely": 10.0, "low": 5.0, "high": 20.0, "basis": "measured here on 3 runs"}
    monkeypatch.setattr(Probe, "plan", lambda self: plan(self) | {"seconds": seconds})
    name = write(
        'kind = "probe"\npair = "tiny"\n[grid]\nprompt = ["one", "two", "three"]\ntokens = ["a"]'
    )
    doc = json.loads(call("plan", name, "--budget", "15s", "--json")[1])
    assert [one["fits"] for one in doc["experiments"]] == ["likely", "partly", "not"]
    assert doc["totals"]["seconds_left"] == {"likely": 30.0, "low": 15.0, "high": 60.0}
    status, out, _ = call("plan", name, "--budget", "15s")
    assert status == 0
    assert "time          about 30 s (15 s to 1 min 00 s); measured here" in out
    assert "end           within 15 s: 2 of 3 would not be done" in out
    out = call("plan", name, "--until", "2099-01-01 07:00")[1]
    assert out.endswith("everything fits\n")
    assert "everything fits if nothing is slower" in call("plan", name, "--budget", "40s")[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--until", "07:00", "--budget", "8h"), "--until and --budget exclude each other"),
        (("--until", "noon"), "'noon' is no time"),
        (("--until", "2001-01-01 07:00"), "is over"),
        (("--budget", "8"), "'8' is no duration"),
        (("--out", "x"), "--out is the folder of one run"),
    ],
)
def test_an_end_that_cannot_be_read_is_one_line(call, write, words, said):
    name = write('[[experiment]]\nkind = "patch"\n[experiment.grid]\nseed = [1, 2]')
    assert said in refused(call("plan", name, *words))


@pytest.mark.parametrize("command", ["run", "plan"])
def test_nothing_in_a_name_reaches_the_terminal(call, write, command):
    name = write('kind = "patch"\nsite = "\\u001b[2J\\u202e"\npair = "tiny"')
    status, out, err = call(command, name)
    assert status == 1
    assert (out + err).replace("\n", "").replace("\t", "").isprintable()


@pytest.mark.parametrize("command", ["patch", "probe", "entropy", "capture", "pipeline"])
def test_every_study_has_a_plan_as_a_document(call, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models = {"pipeline": ["--family", "tiny"], "capture": ["--model", "tiny/base", "--ids", "1"]}
    words = [command, *models.get(command, ["--pair", "tiny"]), "--dry-run"]
    status, out, _ = call(*words, "--json")
    doc = json.loads(out)
    plan = doc["families"][0] if command == "pipeline" else doc
    assert (status, plan["schema"]) == (0, "mlxroles/plan/1")
    assert plan.keys() >= {"title", "run_id", "cells", "layer_calls", "weights_bytes", "disk_bytes"}
    status, out, _ = call(*words)
    assert (status, f"run id        {plan['run_id']}" in out) == (0, True)
    assert list(Path().iterdir()) == []
