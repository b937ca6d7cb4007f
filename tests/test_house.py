"""The house rules that no linter knows: sizes, imports, what the documents promise."""

import ast
import contextlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import house_map
import pytest

import mlxroles
from mlxroles import cli

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mlxroles"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULES = sorted(PACKAGE.rglob("*.py"))

MODEL_LIBRARIES = ("mlx", "mlx_lm", "transformers")
HEAVY = (*MODEL_LIBRARIES, "torch", "matplotlib", "scipy", "h5py", "numpy", "huggingface_hub")
MAX_LINES = 400


def walk(command: click.Command, path: tuple[str, ...] = ()):
    """Every command below the given one, with the words that call it."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            with contextlib.suppress(ModuleNotFoundError):  # told by a test of its own
                yield from walk(command.get_command(context, name), (*path, name))


COMMANDS = list(walk(cli.group))


def loaded_by(code: str, names: tuple[str, ...]) -> list[str]:
    """Which of the modules a fresh interpreter has loaded after the code."""
    report = f"import sys; print('LOADED', *[n for n in {names!r} if n in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.rsplit("LOADED", 1)[1].split()


def document(name: str) -> str:
    path = ROOT / name
    assert path.is_file(), f"{name} is missing"
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_module_is_short_and_has_a_subject(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    assert path.stem not in {"utils", "util", "helpers", "common", "misc"}


def test_commands_that_need_no_model_load_no_heavy_module():
    calls = [["--help"], ["--version"], ["models", "list"], ["models", "list", "--json"]]
    calls += [[*path, "--help"] for path, _ in COMMANDS if path]
    code = f"""
import sys
from mlxroles.cli import run
for arguments in {calls!r}:
    assert run(arguments) == 0
    assert not set({HEAVY!r}) & set(sys.modules), arguments
"""
    assert loaded_by(code, HEAVY) == []


@pytest.mark.parametrize("name", ["role_reading", "role_results", "reports"])
def test_reading_a_stored_run_loads_no_model_library(name):
    assert loaded_by(f"import mlxroles.studies.{name}", MODEL_LIBRARIES) == []


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_listed_command_has_its_module(name):
    assert (PACKAGE / "cli" / f"{cli.MODULES.get(name, name)}.py").is_file()
    assert len(f"{name}{cli.COMMANDS[name]}") < 70


def test_wrong_use_loads_no_heavy_module():
    assert loaded_by("from mlxroles.cli import run\nassert run(['ptach']) == 2", HEAVY) == []


def test_the_half_without_mlx_really_is():
    contracts = PYPROJECT["tool"]["importlinter"]["contracts"]
    modules = next(c["source_modules"] for c in contracts if c["name"].startswith("this half"))
    code = "\n".join(f"import {module}" for module in modules)
    assert loaded_by(code, MODEL_LIBRARIES) == []


@pytest.mark.parametrize(
    ("path", "command"), COMMANDS, ids=lambda v: "_".join(v) if isinstance(v, tuple) else ""
)
def test_command_and_its_options_have_help(path, command):
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{' '.join(path)} {parameter.opts[0]} has no help"


@pytest.mark.parametrize("path", [p for p, _ in COMMANDS if p], ids=" ".join)
def test_command_is_in_the_readme(path):
    assert f"mlxroles {' '.join(path)}" in document("README.md")


@pytest.mark.parametrize("name", [n for n in mlxroles.__all__ if n != "__version__"])
def test_public_name_is_in_the_readme(name):
    assert re.search(rf"\bmlxroles\.{name}\b|import .*\b{name}\b", document("README.md"))


def documented_calls() -> list[str]:
    """The lines of README and CONTRIBUTING that call the program, joined at a backslash."""
    calls = []
    for name in ("README.md", "CONTRIBUTING.md"):
        if not (ROOT / name).is_file():
            continue
        for block in re.findall(r"```(?:bash|sh|console)\n(.*?)```", document(name), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = line.strip().removeprefix("$ ")
                if words.startswith("mlxroles "):
                    calls.append(words)
    return calls


def wrong_in(call: str) -> str | None:
    """What in the call does not exist: a command or an option."""
    words = shlex.split(call, comments=True)[1:]
    command: click.Command = cli.group
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name = words.pop(0)
        found = command.get_command(click.Context(command), name)
        if found is None:
            return f"no command {name!r}"
        command = found
    known = {"--help", "-h"}.union(*(p.opts + p.secondary_opts for p in command.params))
    return next((w for w in words if w.startswith("--") and w.split("=")[0] not in known), None)


def test_every_documented_call_exists():
    calls = documented_calls()
    assert calls
    assert {call: wrong for call in calls if (wrong := wrong_in(call))} == {}


def test_house_documents_exist():
    assert "MIT License" in document("LICENSE")
    assert f"## {mlxroles.__version__}" in document("CHANGELOG.md") or (
        "## Unreleased" in document("CHANGELOG.md")
    )
    assert "results/*" in document(".gitignore")


def test_the_map_of_the_house_is_up_to_date():
    text = document("CONTRIBUTING.md")
    assert house_map.updated(text) == text, "run: python tests/house_map.py"


def test_the_test_command_is_marked_in_the_readme():
    pattern = r"<!-- test-command:begin -->\s*```bash\n(.+?)```\s*<!-- test-command:end -->"
    match = re.search(pattern, document("README.md"), re.DOTALL)
    assert match, "README.md lacks the test command between its markers"
    assert "pytest" in match[1]


def test_ci_can_be_run():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    workflow = document(".github/workflows/tests.yml")
    assert ".ci/run" in workflow or "test-command" in workflow


def test_package_data_is_in_the_wheel_by_rule():
    assert PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["mlxroles"]
    for name in ("pairs.toml",):
        assert (PACKAGE / "data" / name).is_file()


def test_lock_file_pins_every_declared_dependency():
    locked = set(re.findall(r"^([a-z0-9-]+)==", document("requirements.lock"), re.MULTILINE))
    project = PYPROJECT["project"]
    lines = project["dependencies"] + project["optional-dependencies"]["test"]
    declared = {re.split(r"[\[<>=;\s]", line)[0].replace("_", "-") for line in lines}
    assert declared <= locked, "renew requirements.lock, see CONTRIBUTING.md"


def imported(module: Path) -> set[str]:
    """Top-level names of everything that the module imports when it runs, anywhere in it."""
    names = set()
    nodes: list[ast.AST] = [ast.parse(module.read_text(encoding="utf-8"))]
    for node in nodes:  # grows while it is walked
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
        nodes.extend(ast.iter_child_nodes(node))
    return names


def test_third_party_imports_are_declared():
    lines = PYPROJECT["project"]["dependencies"]
    declared = {re.split(r"[\[<>=;\s]", line)[0].replace("-", "_") for line in lines}
    foreign = set().union(*map(imported, MODULES)) - set(sys.stdlib_module_names) - declared
    assert foreign <= {"mlxroles", "transformers"}  # transformers comes with mlx_lm


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_linked_files_exist(name):
    for target in re.findall(r"\]\(([^)#\s]+)", document(name)):
        assert "://" in target or (ROOT / target).exists(), target
