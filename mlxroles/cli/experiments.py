"""What an experiment file may hold: commands, and their options checked against the commands'.

Nothing here knows a single option: what a command takes is asked of the command itself, which is
imported for that but loads no model.
"""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import click

from mlxroles.errors import SpecError
from mlxroles.spec import Experiment, over
from mlxroles.text import did_you_mean, safe_text

KINDS = (
    "patch",
    "probe",
    "ablate",
    "inject",
    "lens",
    "heads",
    "circuits",
    "components train",
    "entropy",
    "pipeline",
    "capture",
    "compare",
    "candidates",
    "correlate",
    "bench",
)
"""Commands whose runs are experiments, as they are typed."""

SWITCHES = {
    "json": "how results are printed is said on the command line",
    "plain": "how results are printed is said on the command line",
    "open": "what is shown at the end is said on the command line",
    "dry-run": "use `mlxroles plan FILE`",
    "fresh": "a file would throw its own results away each time; use `mlxroles run FILE --fresh`",
    "help": "use `mlxroles COMMAND --help`",
}
"""Options that are about a call and not about an experiment, and what to do instead."""


class _Option(NamedTuple):
    """How one key of a file is said on the command line."""

    parameter: click.Parameter
    word: str
    """``--site``, or an empty string for what has no name there."""
    opposite: str = ""
    """Of a switch, the word that turns it off."""


def command_of(experiment: Experiment) -> click.Command:
    """The command of an experiment.

    Raises:
        SpecError: no command of that name runs experiments.
    """
    kind = experiment.kind
    if kind not in KINDS:
        shown = safe_text(kind, limit=80)
        raise SpecError(
            f"{experiment.source}: no kind of experiment '{shown}'"
            f"{did_you_mean(kind, KINDS) or '; there are ' + ', '.join(KINDS)}"
        )
    return _command(kind)


def _command(kind: str) -> click.Command:
    return import_module(f"mlxroles.cli.{kind.replace(' ', '_')}").command


def arguments(experiment: Experiment) -> list[str]:
    """The words that run an experiment, after ``mlxroles``: the command, options, arguments.

    Raises:
        SpecError: as ``options``.
    """
    return [*experiment.kind.split(), *options(experiment)]


def options(experiment: Experiment) -> list[str]:
    """Those of ``arguments`` after the command.

    Raises:
        SpecError: an option that the command does not have, or a value that it does not take; one
            line with file and key.
    """
    command = command_of(experiment)
    known = _options(experiment.kind)
    given = over(_defaults(experiment, known), experiment.options)
    words: list[str] = []
    behind: list[str] = []
    keys: dict[str, str] = {}
    for key, value in given.items():
        option = _known(key, known, experiment)
        before = keys.setdefault(str(option.parameter.name), key)
        if before != key:
            raise SpecError(f"{experiment.source}: {before} and {key} are one option; keep one")
        said = _said(option, key, value, experiment)
        if option.word:
            words += said
        else:
            behind += said
    if any(word.startswith("-") for word in behind):
        behind.insert(0, "--")
    _try(command, [*words, *behind], keys, experiment)
    return [*words, *behind]


@cache
def _options(kind: str) -> Mapping[str, _Option]:
    """Key of a file -> how it is said; the switches of :data:`SWITCHES` are left out."""
    found: dict[str, _Option] = {}
    for parameter in _command(kind).params:
        if isinstance(parameter, click.Argument):
            if parameter.expose_value and parameter.name:
                found[parameter.name.replace("_", "-")] = _Option(parameter, "")
            continue
        words = [w for w in parameter.opts if w.startswith("--")]
        against = [w for w in parameter.secondary_opts if w.startswith("--")]
        for word in words:
            found[word[2:]] = _Option(parameter, word, against[0] if against else "")
        for word in against:
            found[word[2:]] = _Option(parameter, word, words[0])
    return {key: option for key, option in found.items() if key not in SWITCHES}


def _defaults(experiment: Experiment, known: Mapping[str, _Option]) -> dict[str, Any]:
    """The defaults that this command has; one that no command has is refused."""
    found = {}
    named = {str(known[key].parameter.name) for key in experiment.options if key in known}
    for key, value in experiment.defaults.items():
        if key in known:
            if str(known[key].parameter.name) not in named:
                found[key] = value
        elif not any(key in _options(kind) for kind in KINDS):
            everything = [other for kind in KINDS for other in _options(kind)]
            raise SpecError(
                f"{_file(experiment)}, [defaults]: no command has an option "
                f"'{safe_text(key, limit=80)}'{_hint(key, everything)}"
            )
    return found


def _file(experiment: Experiment) -> str:
    return experiment.source.split(", experiment ")[0]


def _hint(key: str, known: Any) -> str:
    return f"; {SWITCHES[key]}" if key in SWITCHES else did_you_mean(key, known)


def _known(key: str, known: Mapping[str, _Option], experiment: Experiment) -> _Option:
    if key in known:
        return known[key]
    shown = safe_text(key, limit=80)
    if key in SWITCHES:
        raise SpecError(
            f"{experiment.source}: {shown} is no part of an experiment: {SWITCHES[key]}"
        )
    hint = did_you_mean(key, [*known, "name", "priority", "grid"])
    raise SpecError(
        f"{experiment.source}: {experiment.kind} has no option '{shown}'"
        f"{hint or f' (`mlxroles {experiment.kind} --help` lists them)'}"
    )


def _said(option: _Option, key: str, value: Any, experiment: Experiment) -> list[str]:
    """The words of one option."""
    parameter, where = option.parameter, f"{experiment.source}: {key}"
    if isinstance(parameter, click.Option) and parameter.is_flag:
        if not isinstance(value, bool):
            raise SpecError(f"{where} is a switch: write {key} = true or {key} = false")
        word = option.word if value else option.opposite
        return [word] if word else []
    takes_many = parameter.multiple or parameter.nargs == -1
    if isinstance(value, list) and not takes_many:
        listed = ",".join(str(item) for item in value)
        raise SpecError(
            f"{where} takes one value, such as {_as_text(listed)}; values that are runs of their "
            "own belong in the grid"
        )
    values = value if isinstance(value, list) else [value]
    if any(isinstance(item, bool) for item in values):
        raise SpecError(f"{where} takes a value, not true or false")
    texts = [str(item) for item in values]
    if not option.word:
        return texts
    said: list[str] = []
    for text in texts:
        said += [f"{option.word}={text}"] if text.startswith("-") else [option.word, text]
    return said


def _as_text(text: str) -> str:
    return f'"{safe_text(text, limit=40)}"'


def _try(
    command: click.Command, words: list[str], keys: Mapping[str, str], experiment: Experiment
) -> None:
    """Lets the command read the words, as it will when it runs.

    Raises:
        SpecError: it refuses them.
    """
    try:
        with command.make_context(experiment.kind, list(words)):
            return
    except click.MissingParameter as error:
        name = error.param.name if error.param is not None else None
        wanted = next((k for k, o in _options(experiment.kind).items() if o[0].name == name), name)
        raise SpecError(f"{experiment.source}: {experiment.kind} needs {wanted}") from None
    except click.UsageError as error:
        named = getattr(error, "param", None)
        key = keys.get(str(named.name)) if named is not None else None
        near = ""
        if key is not None and named is not None and isinstance(named.type, click.Choice):
            value = over(experiment.defaults, experiment.options)[key]
            near = did_you_mean(str(value), [str(choice) for choice in named.type.choices])
        text = safe_text(error.message.rstrip(".").replace("\n", " "), limit=300)
        raise SpecError(": ".join(filter(None, (experiment.source, key, text + near)))) from None
