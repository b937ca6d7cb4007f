"""The command line: parses, calls one function, prints what it returns.

Each command lives in a module of its own that is imported when the command is called, and every
heavy import of such a module stands inside the command's body: ``--help`` and the commands that
need no model answer at once. This module translates what a command raises into one line on
standard error and an exit status:

    0 done   1 error   2 usage   3 finished with failed cells   4 run folder locked
    5 integrity failure   130 interrupted   141 the reader of the output went away
"""

import errno
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module

import click

from mlxroles import __version__
from mlxroles.errors import SIGNAL_STATUS, MlxrolesError
from mlxroles.supervision import LeftToFirst, leave_unattended
from mlxroles.text import did_you_mean, safe_text

SECTIONS = {
    "Studies": {
        "patch": "Which layers carry the difference between base and instruct.",
        "probe": "What a model is about to say: the measures alone.",
        "ablate": "What heads, values, layers or directions are needed for.",
        "inject": "Add concepts to the stream: noticed or not, what changes.",
        "lens": "What each layer would say: logit lens, tuned lens, parts.",
        "heads": "What each head does, beside chance; --causal zeroes it.",
        "components": "Weights as sums of rank-one parts: make, train, explain.",
        "circuits": "What heads do by their weights: copying, composition.",
        "generate": "Text under edits, beside the text without them.",
        "entropy": "How attention spreads on prompts about the model.",
        "pipeline": "The whole role study of one or several families.",
        "compare": "What instruction tuning changed, layer by layer.",
        "candidates": "Heads whose entropy tuning moved, beside what chance gives.",
        "correlate": "Whether families changed in the same layers.",
        "capture": "Write the activations of prompts to HDF5.",
    },
    "Experiments as files": {
        "run": "Run the experiment of a file.",
        "plan": "What experiment files would take: cells, time, memory, disk.",
        "sweep": "Run a queue of experiments through the night.",
    },
    "Stored runs": {
        "status": "How far runs are: a line for each, or everything about one.",
        "show": "What a run found, as its command printed it.",
        "watch": "The live view of a run or sweep that goes on elsewhere.",
        "resume": "Go on with a run that was stopped.",
        "report": "Make the report of a stored run again.",
        "verify": "Check stored runs against what was written.",
        "diff": "What differs between two runs: question and numbers.",
        "export": "A run as CSV, Parquet, JSON, safetensors or npz.",
    },
    "Models and machine": {
        "models": "Show, check and download models.",
        "doctor": "Is this machine fit for long runs, and what to type if not.",
        "bench": "Measure the sweep engine on this machine, beside plain loops.",
    },
}
"""Name and one line for every command, as ``--help`` lists them.

``mlxroles.cli.<name>`` holds a command as ``command``.
"""

COMMANDS = {name: line for section in SECTIONS.values() for name, line in section.items()}

MODULES = {"run": "run_file"}
"""The modules whose names differ from the command's: :func:`run` is what runs every command."""

INTERRUPTED = 130
PIPE_CLOSED = 141
SHORT_OF_MEMORY = (
    "memory ran out; what is stored stays: close other programs, or try --memory 50%, --resident 1 "
    "or a smaller model"
)

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
"""What writing the output to a file may end in, through no fault of ours."""


class LazyGroup(click.Group):
    """A group that imports a command's module only when that command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names in the order of :data:`COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now."""
        if cmd_name not in COMMANDS:
            return None
        return import_module(f"mlxroles.cli.{MODULES.get(cmd_name, cmd_name)}").command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the arguments name, or a usage error with the nearest right one."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            shown = safe_text(name, limit=80)
            ctx.fail(f"no command {shown!r}{did_you_mean(name, COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the lists of commands from :data:`SECTIONS`, importing none of them."""
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(list(commands.items()))


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"mlxroles {__version__}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def group() -> None:
    """Find out which layers and heads of a language model carry what it decides.

    \b
    Examples:
      mlxroles patch --pair tiny
      mlxroles patch --pair llama8b --layers 25-31
      mlxroles sweep experiments/overnight.toml
    """  # noqa: D301  (click reads the backspace character itself)


def run(args: Sequence[str] | None = None) -> int:
    """The exit status of one command line; results and messages are printed on the way."""
    arguments = list(sys.argv[1:] if args is None else args)
    try:
        # Not group.main(): it ends the process by itself when the reader of the output goes away.
        with group.make_context("mlxroles", arguments) as ctx:
            result = group.invoke(ctx)
        if sys.stdout is not None:  # as it is where it was closed before we began
            sys.stdout.flush()
    except MlxrolesError as error:
        return _failed(error)
    except LeftToFirst as error:
        return SIGNAL_STATUS.get(error.finished.interrupted or "", 0)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.exceptions.Abort):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return PIPE_CLOSED
    except MemoryError:
        return _failed(MlxrolesError(SHORT_OF_MEMORY))
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        return _unwritable(error)
    return result if isinstance(result, int) else 0


def _drop_output() -> None:
    """What is still buffered would raise again when the interpreter closes the stream."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _unwritable(error: OSError) -> int:
    _drop_output()
    what = "the output" if error.filename is None else safe_text(str(error.filename))
    with suppress(OSError):  # the messages may go to the same full disk
        click.echo(
            f"error: {what} cannot be written ({error.strerror}): what is stored stays; free "
            "space, then run the same command again",
            err=True,
        )
    return 1


def _failed(error: MlxrolesError) -> int:
    lines = [str(error), *getattr(error, "__notes__", [])]
    # One line, whatever the message quotes: safe_text turns a line break into a visible \n.
    click.echo("error: " + "; ".join(safe_text(line) for line in lines), err=True)
    return error.exit_code


def main() -> None:
    """Entry point of the ``mlxroles`` program."""
    if "_MLXROLES_COMPLETE" in os.environ:
        group.main(prog_name="mlxroles")  # a shell asks for completions; click answers and exits
    leave_unattended()
    sys.exit(run())
