"""`mlxroles generate`: the text a model goes on with, without edits and with them."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from mlxroles.cli.inputs import (
    chosen_prompts,
    chosen_subject,
    model_options,
    model_or_pair_options,
    prompt_options,
    two_model_options,
)
from mlxroles.cli.options import (
    json_option,
    plain_option,
    seed_option,
)
from mlxroles.cli.output import note, print_json
from mlxroles.errors import SIGNAL_STATUS, PromptError
from mlxroles.text import safe_text

END = 60
"""Characters of a prompt's end that are shown."""


@click.command("generate")
@model_or_pair_options
@prompt_options
@click.option(
    "--chat-template/--raw",
    "chat_template",
    default=None,
    help="Put plain texts into the chat template, or conversations into plain paragraphs.  "
    "[default: texts as they are, conversations through the template]",
)
@click.option("--no-tools", is_flag=True, help="Leave out the tools that the prompt offers.")
@click.option("--system", metavar="TEXT", help="A system message to put first.")
@click.option(
    "--edits",
    type=click.Path(path_type=Path),
    metavar="FILE.toml",
    help="Also generate under the edits of this file, beside the text without them.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Most tokens to generate.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="0 takes the most probable token, above it tokens are sampled.",
)
@click.option(
    "--top-p",
    type=click.FloatRange(min=0, max=1, min_open=True),
    default=1.0,
    show_default=True,
    help="Sample from the fewest tokens that together have this probability.",
)
@two_model_options
@model_options
@seed_option
@plain_option
@json_option
def command(**given: Any) -> int:
    """Let a model go on with a prompt, without edits and with them, side by side.

    Greedy or sampled, with the key-value cache; without edits the tokens are those of mlx_lm's
    own generate. A file of edits holds [[edit]] tables (site, layers or heads, value or vector,
    positions, and on = "prompt", "generated" or "both"). A conversation goes through the chat
    template, a text goes in as it is. The default prompt is the packaged conversation notepad.

    \b
    Examples:
      mlxroles generate --pair tiny
      mlxroles generate --model DIR --prompt "Once upon a time" --edits steer.toml
      mlxroles generate --model DIR --prompt "TEXT" --temperature 0.7
    """  # noqa: D301
    asked, told = _asked(given)
    texts, lines, broken_off = _grown(asked, given, told)
    from mlxroles.studies.generation import document

    doc = document(asked, texts, lines, told)
    if given["as_json"]:
        print_json(doc)
    for text in doc["notes"]:
        note(text)
    return SIGNAL_STATUS["SIGINT"] if broken_off else 0


def _asked(given: dict[str, Any]) -> tuple[Any, list[dict[str, Any]]]:
    """What the options ask for, and what each prompt became.

    Raises:
        click.UsageError: a model and a pair, or neither.
    """
    if given["edits"] is not None and not given["edits"].is_file():
        raise click.UsageError(f"--edits: there is no file {str(given['edits'])!r}")
    if given["edits"] is not None:
        from mlxroles.edit_file import tables

        tables(given["edits"])  # refuses what is wrong before a model is loaded
    from mlxroles.models.generate import Settings
    from mlxroles.prompts import load_prompts
    from mlxroles.studies.generation import Asked, how_asked
    from mlxroles.studies.inputs import DEFAULT_PROMPT, encoded

    subject = chosen_subject(given)
    subject.on_load = note
    prompts = chosen_prompts(given) or load_prompts(DEFAULT_PROMPT)
    raw = given["chat_template"] is False
    offers_none = next((p for p in prompts if p.plain_text is None), None)
    if given["no_tools"] and offers_none is not None:
        raise PromptError(
            f"prompt '{safe_text(offers_none.id)}' offers no tools that --no-tools could leave "
            "out; use a conversation with a tools_text and a plain_text"
        )
    if given["chat_template"]:
        prompts = [_as_turn(prompt) for prompt in prompts]
    how = {"tools": not given["no_tools"], "system": given["system"], "raw": raw}
    rows = encoded(subject, prompts, note=subject.notes.append, **how)
    names = ("max_tokens", "temperature", "top_p", "seed")
    try:
        settings = Settings(**{name: given[name] for name in names})
    except ValueError as error:  # a temperature of nan is in any range
        raise click.UsageError(str(error)) from None
    return Asked(subject, rows, settings, given["edits"]), how_asked(
        subject, prompts, rows, raw=raw
    )


def _as_turn(prompt: Any) -> Any:
    """A plain text as the user's turn of a conversation."""
    from dataclasses import replace

    from mlxroles.prompts import Message

    if prompt.text is None:
        return prompt
    return replace(prompt, text=None, messages=(Message("user", prompt.text),))


def _grown(
    asked: Any, given: dict[str, Any], told: Sequence[dict[str, Any]]
) -> tuple[list[Any], list[str], bool]:
    """All texts, the edits in words, and whether the user broke off; shown as they are ready."""
    from mlxroles.studies.generation import INTERRUPTED

    quiet, plain = given["as_json"], given["plain"]
    display, about = asked.subject.display, {prompt["id"]: prompt for prompt in told}
    texts: list[Any] = []
    lines: list[str] = []
    broken_off = False
    if not quiet:
        _show_settings(asked)
    for group in asked.groups():
        if not quiet and all(text.prompt != group[0].prompt for text in texts):
            _show_prompt(about[group[0].prompt])
        texts += group
        try:
            with _watched(display, plain=plain or quiet) as watch:
                edits = asked.grow(group, watch)
            lines = list(lines if edits is None else edits.lines)
        except KeyboardInterrupt:
            broken_off = True
        for text in group:
            text.finish = text.finish or INTERRUPTED
        if not quiet:
            _show(_columns(group, display), lines, plain=plain)
        if broken_off:
            break
    return texts, lines, broken_off


@contextmanager
def _watched(display: str, *, plain: bool) -> Generator[Callable[[Sequence[Any]], None]]:
    """What is shown the texts while they grow: on standard error, where that is a terminal."""
    from rich.console import Console

    from mlxroles.dashboard.generation import growing
    from mlxroles.dashboard.watch import resolve

    console = Console(stderr=True)
    if resolve("plain" if plain else "auto", console) != "live":
        yield lambda group: None
        return
    with growing(console) as show:
        yield lambda group: show(lambda: _columns(group, display))


def _columns(group: Sequence[Any], display: str) -> list[Any]:
    """The texts of a group for the screen; ``display`` names a model that is alone."""
    from mlxroles.dashboard.generation import Column
    from mlxroles.studies.generation import same_beginning

    found = []
    compared = any(text.edited for text in group)
    for text in group:
        title = display if text.model == "model" else text.model
        if compared:
            title += ", with edits" if text.edited else ", without edits"
        alike, foot = 0, "" if text.finish is None else _ending(text)
        if text.edited:
            same = same_beginning(group[0].tokens, text.tokens)
            alike = len("".join(text.seen[:same]))
            if text.finish is not None:
                foot += f"; {_compared(text, group[0], same)}"
        found.append(Column(title, text.text, foot, alike))
    return found


def _ending(text: Any) -> str:
    ends = {"stop": "ended by itself", "length": "as many as were asked for"}
    plural = "" if len(text.tokens) == 1 else "s"
    return f"{len(text.tokens)} token{plural}, {ends.get(text.finish, text.finish)}"


def _compared(text: Any, plain: Any, same: int) -> str:
    """Where a text under edits leaves the one without."""
    if same == len(text.tokens) == len(plain.tokens):
        return "the edits changed no token"
    return "other from the first token on" if same == 0 else f"the first {same} are the same"


def _show_settings(asked: Any) -> None:
    chosen = asked.settings
    how = "greedy"
    if chosen.temperature > 0:
        how = f"temperature {chosen.temperature:g}, top-p {chosen.top_p:g}, seed {chosen.seed}"
    plural = "" if chosen.max_tokens == 1 else "s"
    name = safe_text(asked.subject.display)
    click.echo(f"{name}: at most {chosen.max_tokens} token{plural}, {how}")


def _show_prompt(prompt: dict[str, Any]) -> None:
    """A line on what a prompt is, and its end, which the texts go on from."""
    plural = "" if prompt["n_tokens"] == 1 else "s"
    click.echo(
        f"prompt {safe_text(prompt['id'])}: {prompt['kind']}, {prompt['n_tokens']} token{plural}"
    )
    if prompt["text"]:
        dots = "..." if len(prompt["text"]) > END else ""
        click.echo(f"  {dots}{safe_text(prompt['text'][-END:])}")
    click.echo("")


def _show(columns: Sequence[Any], lines: Sequence[str], *, plain: bool) -> None:
    """Prints texts that have ended, and under which edits."""
    from rich.console import Console

    from mlxroles.cli.results import show
    from mlxroles.dashboard.generation import as_lines, side_by_side

    console = Console()
    if plain or not console.is_terminal:
        for line in as_lines(columns):
            click.echo(line)
    else:
        show(side_by_side(columns, console.width), plain=False)
        click.echo("")
    for line in lines:
        click.echo(f"edit: {safe_text(line)}")
    if lines:
        click.echo("")
