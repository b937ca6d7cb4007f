"""``--shard``: one model divided over the processes that ``mlx.launch`` started."""

import functools
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxroles.errors import MlxrolesError, RanksError

if TYPE_CHECKING:
    from mlxroles.ranks import Ranks

Command = Callable[..., int]


def shard_option(command: Command) -> Command:
    """Adds ``--shard``; the command finds the processes, or None, as ``ranks`` among its values.

    Errors of any of the processes are shown once, by the first one.
    """

    @functools.wraps(command)
    def shared(*args: Any, **given: Any) -> int:
        if not given.pop("shard"):
            return command(*args, ranks=None, **given)
        from mlxroles.ranks import Ranks, is_told

        ranks = Ranks.start()
        try:
            with nullcontext() if ranks.leads else _unseen():
                return _told(ranks, lambda: command(*args, ranks=ranks, **given))
        except click.ClickException as error:
            if ranks.leads:
                raise
            raise click.exceptions.Exit(error.exit_code) from error
        except RanksError as error:
            if is_told(error):
                raise click.exceptions.Exit(error.exit_code) from error
            if not ranks.leads:
                raise RanksError(f"rank {ranks.rank}: {error}") from error
            raise

    return click.option(
        "--shard",
        is_flag=True,
        help="Divide each model over the processes of `mlx.launch`, where it is too large for one.",
    )(shared)


def _told(ranks: "Ranks", action: Callable[[], int]) -> int:
    """Does something; its error is told to the other processes while they still listen."""
    try:
        return action()
    except MlxrolesError as error:
        if not ranks.over:
            ranks.exchange(error=error)
        raise


@contextmanager
def _unseen() -> Generator[None]:
    """Nothing that is printed meanwhile is seen: the first process shows everything."""
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def unshared(given: dict[str, Any], what: str) -> None:
    """Refuses ``--shard`` for what cannot be divided.

    Raises:
        RanksError: naming it.
    """
    if given.get("ranks") is not None:
        raise RanksError(f"--shard does not go with {what}; drop one of them")
