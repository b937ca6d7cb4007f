"""``mlxroles models`` and the frame of the command line: what is printed where, how it ends."""

import json
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import click
import pytest
from model_folders import COMMIT, cached, plain

from mlxroles import cli, hub, pairs
from mlxroles.cli import options, output
from mlxroles.errors import IntegrityError, LockedError, ModelError, PairError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def fails(monkeypatch):
    """Makes ``mlxroles models list`` raise the given exception."""
    from mlxroles.cli import models

    def with_(error: BaseException) -> int:
        def raising():
            raise error

        monkeypatch.setattr(models, "catalogue", raising)
        return cli.run(["models", "list"])

    return with_


@pytest.fixture
def checker(monkeypatch):
    """Puts a model loader and a check in place that need no model; verdicts by folder name."""
    verdicts = {}

    def load(folder, *, trust_remote_code):
        assert not trust_remote_code
        verdict = verdicts.get(folder.rsplit("/", 1)[-1], "works")
        if verdict == "unloadable":
            raise ModelError("config.json: model type 'x' is not known to mlx_lm")
        return SimpleNamespace(verdict=verdict, warnings=("w1",))

    def check(model):
        checks = [
            {"name": "rows sum to 1", "value": 1.5e-7, "bound": 1e-5, "ok": True},
            {"name": "finite", "value": None, "bound": None, "ok": model.verdict != "refused"},
        ]
        document = {
            "schema": "mlxroles/check/1",
            "verdict": model.verdict,
            "checks": checks,
            "sites": ["z"],
            "notes": ["w1"],
            "repairs": ["rope_theta = 5e5: \x1b[31mnested"],
        }
        return SimpleNamespace(as_dict=lambda: document)

    for name, function in (("load", load), ("check", check)):
        module = ModuleType(f"mlxroles.models.{name}")
        setattr(module, name, function)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return verdicts


class TestList:
    def test_table_away_from_a_terminal_is_tab_separated(self, cache, capsys):
        cached(cache, "mlx-community/Meta-Llama-3-8B-4bit")
        assert cli.run(["models", "list"]) == 0
        out = capsys.readouterr().out
        rows = {row.split("\t")[0]: row.split("\t") for row in out.splitlines()}
        assert rows["name"][5] == "here"
        assert rows["llama8b"][5] == "base"
        assert rows["qwen7b"][5] == "no"
        assert "\x1b" not in out

    @pytest.mark.parametrize(("columns", "names"), [("80", False), ("160", True)])
    def test_on_a_terminal_rows_stay_on_one_line(self, monkeypatch, capsys, columns, names):
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", columns)
        assert cli.run(["models", "list"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 2 + len(pairs.catalogue())
        assert any("mlx-community/Meta-Llama-3-8B-4bit" in line for line in lines) == names

    def test_json(self, cache, capsys):
        folder = cached(cache, "mlx-community/Meta-Llama-3-8B-4bit")
        assert cli.run(["models", "list", "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["schema"] == "mlxroles/models/1"
        entry = next(p for p in document["pairs"] if p["name"] == "llama8b")
        assert entry["local"] == {"base": str(folder), "instruct": None}
        assert entry["d1_group"] == "A"

    def test_size_is_that_of_the_files_when_both_are_here(self, tmp_path, monkeypatch, capsys):
        own = tmp_path / "pairs.toml"
        own.write_text('[mine]\nbase = "./b"\ninstruct = "./i"\nbytes = 7\n')
        monkeypatch.setenv("MLXROLES_PAIRS", str(own))
        plain(tmp_path / "b")
        plain(tmp_path / "i")
        cli.run(["models", "list"])
        row = next(r for r in capsys.readouterr().out.splitlines() if r.startswith("mine"))
        assert row.split("\t")[4:6] == ["16 B", "both"]

    def test_wrong_catalogue_of_the_user(self, tmp_path, monkeypatch, capsys):
        own = tmp_path / "pairs.toml"
        own.write_text('[mine]\nbas = "./b"\n')
        monkeypatch.setenv("MLXROLES_PAIRS", str(own))
        assert cli.run(["models", "list"]) == 1
        assert "unknown key 'bas'; did you mean 'base'?" in capsys.readouterr().err


class TestCheck:
    def test_json_of_one_model(self, tmp_path, checker, capsys):
        assert cli.run(["models", "check", str(plain(tmp_path / "m")), "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["schema"] == "mlxroles/check/1"
        assert document["model"] == str(tmp_path / "m")
        assert document["verdict"] == "works"
        assert document["checks"][0] == {
            "name": "rows sum to 1", "value": 1.5e-7, "bound": 1e-5, "ok": True,
        }  # fmt: skip
        assert document["warnings"] == ["w1"]
        assert document["repairs"][0].startswith("rope_theta")

    def test_table(self, tmp_path, checker, capsys):
        checker["m"] = "partial"
        assert cli.run(["models", "check", str(plain(tmp_path / "m"))]) == 0
        out, err = capsys.readouterr()
        assert "rows sum to 1\t1.5e-07\t1e-05\tok" in out
        assert "m: partial" in out
        assert r"repair: rope_theta = 5e5: \x1b[31mnested" in err
        assert "\x1b" not in out + err

    def test_refused_ends_in_1(self, tmp_path, checker, capsys):
        checker["m"] = "refused"
        assert cli.run(["models", "check", str(plain(tmp_path / "m"))]) == 1
        assert "finite\t-\t-\tFAILED" in capsys.readouterr().out

    def test_unloadable_model_is_refused_with_the_reason(self, tmp_path, checker, capsys):
        checker["m"] = "unloadable"
        assert cli.run(["models", "check", str(plain(tmp_path / "m")), "--json"]) == 1
        document = json.loads(capsys.readouterr().out)
        assert (document["verdict"], document["checks"]) == ("refused", [])
        assert "not known to mlx_lm" in document["notes"][0]

    def test_pair_has_the_worse_verdict_of_its_two(self, tmp_path, checker, monkeypatch, capsys):
        own = tmp_path / "pairs.toml"
        own.write_text('[mine]\nbase = "./b"\ninstruct = "./i"\n')
        monkeypatch.setenv("MLXROLES_PAIRS", str(own))
        plain(tmp_path / "b")
        plain(tmp_path / "i")
        checker["base"] = "partial"
        assert cli.run(["models", "check", "mine", "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["verdict"] == "partial"
        assert [m["model"] for m in document["models"]] == ["mine/base", "mine/instruct"]

    def test_missing_folder_is_one_line(self, checker, capsys):
        assert cli.run(["models", "check", "/no/such", "--json"]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1


class TestPull:
    @pytest.fixture
    def fetched(self, tmp_path, monkeypatch):
        """Replaces the Hub: every model has 100 bytes of which 60 are missing."""
        seen = []

        def fetch(download, on_progress):
            seen.append(download.model.repo)
            for done in (40, 70, 100):
                on_progress(hub.Progress(done, 100))
            return tmp_path / download.model.repo.split("/")[1]

        monkeypatch.setattr(
            hub, "plan", lambda ref: hub.Download(hub.hub_id(ref), COMMIT, total=100, missing=60)
        )
        monkeypatch.setattr(hub, "fetch", fetch)
        return seen

    def test_both_models_of_a_pair(self, fetched, tmp_path, capsys):
        assert cli.run(["models", "pull", "mistral7b"]) == 0
        out, err = capsys.readouterr()
        assert fetched == [
            "mlx-community/Mistral-7B-v0.3-4bit",
            "mlx-community/Mistral-7B-Instruct-v0.3-4bit",
        ]
        assert out.splitlines() == [str(tmp_path / ref.split("/")[1]) for ref in fetched]
        assert "100 B, 60 B to download" in err
        assert "100 B of 100 B (100%)" in err

    def test_one_side_as_json(self, fetched, capsys):
        assert cli.run(["models", "pull", "mistral7b/base", "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["schema"] == "mlxroles/pull/1"
        assert [m["downloaded"] for m in document["models"]] == [60]
        assert len(fetched) == 1

    def test_dry_run_fetches_nothing(self, fetched, capsys):
        assert cli.run(["models", "pull", "org/name", "--dry-run", "--json"]) == 0
        entry = json.loads(capsys.readouterr().out)["models"][0]
        assert (entry["missing"], entry["downloaded"], entry["folder"]) == (60, 0, None)
        assert fetched == []

    def test_tiny_is_part_of_the_package(self, fetched, capsys):
        assert cli.run(["models", "pull", "tiny"]) == 0
        assert "nothing to download" in capsys.readouterr().err
        assert fetched == []

    def test_unknown_pair(self, capsys):
        assert cli.run(["models", "pull", "lama8b"]) == 1
        assert "did you mean 'llama8b'" in capsys.readouterr().err


class TestFrame:
    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (ModelError("m"), 1),
            (PairError("m"), 1),
            (LockedError("m"), 4),
            (IntegrityError("m"), 5),
            (KeyboardInterrupt(), 130),
            (click.UsageError("m"), 2),
        ],
    )
    def test_exit_status(self, fails, error, status, capsys):
        assert fails(error) == status
        out, err = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err

    def test_message_is_one_line_without_escape_sequences(self, fails, capsys):
        error = ModelError("line 1\nline \x1b[2J 2")
        error.add_note("in config.json")
        fails(error)
        assert capsys.readouterr().err == ("error: line 1\\nline \\x1b[2J 2; in config.json\n")

    def test_programming_mistakes_keep_their_traceback(self, fails):
        with pytest.raises(ValueError, match="a bug"):
            fails(ValueError("a bug"))

    def test_unknown_command_suggests_the_nearest(self, capsys):
        assert cli.run(["modles"]) == 2
        assert "did you mean 'models'?" in capsys.readouterr().err

    def test_unknown_option_is_a_usage_error(self, capsys):
        assert cli.run(["models", "list", "--jsn"]) == 2
        assert "--json" in capsys.readouterr().err

    def test_reader_that_goes_away_ends_quietly(self):
        code = "from mlxroles.cli import main; main()"
        with subprocess.Popen(
            [sys.executable, "-c", code, "models", "list"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            process.stdout.close()
            err = process.stderr.read()
            assert process.wait(timeout=60) == cli.PIPE_CLOSED
        assert err == b""


class TestOptions:
    def test_a_pair_by_name_or_by_two_folders(self):
        assert options.chosen_pair("tiny", None, None).name == "tiny"
        assert options.chosen_pair(None, "a", "b").base == "a"

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            (("tiny", "a", None), "exclude each other"),
            ((None, None, None), "name a pair with --pair"),
            ((None, "a", None), "--instruct is missing"),
            ((None, None, "b"), "--base is missing"),
        ],
    )
    def test_anything_else_is_a_usage_error(self, given, said):
        with pytest.raises(click.UsageError, match=said):
            options.chosen_pair(*given)

    def test_bundles_add_their_options(self):
        @click.command()
        @options.pair_options
        @options.run_options
        def command(**kwargs):
            """Does nothing."""

        names = {parameter.name for parameter in command.params}
        assert names == {
            "pair_name", "base", "instruct", "as_json", "plain", "out", "seed", "dry_run", "fresh",
        }  # fmt: skip
        assert all(parameter.help for parameter in command.params)


class TestOutput:
    def test_what_is_not_a_number_becomes_null(self, capsys):
        output.print_json({"a": [float("nan"), 1.5, (float("inf"),)], 3: {"b": -float("inf")}})
        assert json.loads(capsys.readouterr().out) == {
            "a": [None, 1.5, [None]],
            "3": {"b": None},
        }

    def test_a_lone_surrogate_can_be_printed(self, capsys):
        output.print_json({"token": "\ud800"})
        assert json.loads(capsys.readouterr().out) == {"token": "\ud800"}

    def test_table_on_a_terminal_takes_no_markup(self, capsys, monkeypatch):
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
        output.print_table("[i]T[/no]", ("a", "#b"), [["[bold]x[/nope]", "1"]])
        out = capsys.readouterr().out
        assert "[bold]x[/nope]" in out
        assert "[i]T[/no]" in out
