"""Batteries: questions of one form behind the same turns, and five-sentence trials to locate.

A battery is a TOML file; the packaged one is ``introspection``. What is asked about the model
itself (``detect``) stands beside controls whose right answer is known (``no`` and ``yes``).
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from mlxroles.errors import PromptError
from mlxroles.prompts import Message, Prompt
from mlxroles.text import did_you_mean, safe_text

DETECT, NO, YES = "detect", "no", "yes"
FEWEST = 3
"""Controls of a kind below which nothing can be said of how they spread."""

_KEYS = ("name", "description", "yes", "no", "form", "turns", "questions", "localise")
_FIELD = {"form": "{question}", "localise": "{sentences}"}


@dataclass(frozen=True)
class Question:
    """One question of a battery."""

    kind: str
    """``detect``, ``no`` or ``yes``; for the controls the right answer."""
    about: str
    """A group within the kind, such as ``self`` or ``world``; may be empty."""
    text: str


@dataclass(frozen=True)
class Trials:
    """The localisation task: which of several sentences holds the injection."""

    form: str
    numbers: tuple[str, ...]
    """How each place is answered."""
    sets: tuple[tuple[str, ...], ...]

    @property
    def chance(self) -> float:
        """Share of right answers by guessing."""
        return 1 / len(self.numbers)


@dataclass(frozen=True)
class Battery:
    """Questions in one form."""

    name: str
    yes: tuple[str, ...]
    """Spellings of the answer; any single token among them counts."""
    no: tuple[str, ...]
    form: str
    turns: tuple[Message, ...]
    """What stands before every question."""
    questions: tuple[Question, ...]
    trials: Trials | None = None
    description: str = ""
    document: Mapping[str, Any] = field(default_factory=dict)
    """The whole file, for the identity of a run."""

    def prompts(self) -> list[Prompt]:
        """One conversation per question, in order; ids count within each kind."""
        found, counts = [], dict.fromkeys((DETECT, NO, YES), 0)
        for question in self.questions:
            counts[question.kind] += 1
            said = Message("user", self.form.format(question=question.text))
            name = f"{question.kind}{counts[question.kind]:02d}"
            found.append(Prompt(name, messages=(*self.turns, said), category=question.kind))
        return found

    def trial_prompts(self) -> list[Prompt]:
        """One conversation per set of sentences.

        Raises:
            PromptError: the battery has no such task.
        """
        if self.trials is None:
            raise PromptError(
                f"the battery '{safe_text(self.name)}' has no [localise] task; add one or use the "
                "packaged battery"
            )
        found = []
        for n, sentences in enumerate(self.trials.sets):
            listed = zip(self.trials.numbers, sentences, strict=True)
            text = "\n".join(f"{number}. {sentence}" for number, sentence in listed)
            said = Message("user", self.trials.form.format(sentences=text))
            found.append(Prompt(f"set{n + 1:02d}", messages=(*self.turns, said)))
        return found


def packaged() -> list[str]:
    """Names of the batteries that come with the program."""
    folder = resources.files("mlxroles").joinpath("data", "batteries")
    names = (entry.name for entry in folder.iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def read(source: str) -> Battery:
    """The battery of a packaged name or of a file.

    Raises:
        PromptError: there is none, or it is no battery; one line with what is wrong.
    """
    if source in packaged():
        entry = resources.files("mlxroles").joinpath("data", "batteries", f"{source}.toml")
        return parse(entry.read_text(encoding="utf-8"), f"packaged battery {source}", source)
    path, named = Path(source), safe_text(source, limit=200)
    if not path.is_file():
        hint = did_you_mean(source, packaged()) or f"; packaged is {', '.join(packaged())}"
        raise PromptError(f"no battery '{named}': it is no packaged name and no file{hint}")
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise PromptError(f"{named} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise PromptError(f"{named} is not UTF-8: byte {error.start} cannot be read") from error
    return parse(content, named, path.stem)


def parse(content: str, named: str, name: str) -> Battery:
    """The battery of a TOML text.

    Raises:
        PromptError: a key that is not understood, or something that is missing.
    """
    try:
        document = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise PromptError(f"{named} is not TOML: {safe_text(str(error), limit=200)}") from error
    _refuse_unknown(document, _KEYS, named)
    form = _form(document.get("form", "{question}"), named, "form")
    battery = Battery(
        name=_text(document.get("name", name), f"{named}: name"),
        yes=_texts(document.get("yes", ["Yes", "yes", "YES"]), f"{named}: yes"),
        no=_texts(document.get("no", ["No", "no", "NO"]), f"{named}: no"),
        form=form,
        turns=_turns(document.get("turns", []), named),
        questions=tuple(_questions(document.get("questions"), named)),
        trials=_trials(document["localise"], named) if "localise" in document else None,
        description=_text(document.get("description", ""), f"{named}: description"),
        document=document,
    )
    for kind in (DETECT, NO):
        count = sum(q.kind == kind for q in battery.questions)
        if count < (1 if kind == DETECT else FEWEST):
            needed = "one question" if kind == DETECT else f"{FEWEST} controls"
            raise PromptError(
                f"{named} has {count} questions under questions.{kind}; at least {needed} of that "
                "kind must be there, or nothing can be compared"
            )
    return battery


def _questions(table: Any, named: str) -> list[Question]:
    if not isinstance(table, dict):
        raise PromptError(f"{named} needs [questions] with detect, no and yes")
    _refuse_unknown(table, (DETECT, NO, YES), f"{named}: questions")
    found = []
    for kind in (DETECT, NO, YES):
        groups = table.get(kind, [])
        groups = groups if isinstance(groups, dict) else {"": groups}
        for about, texts in groups.items():
            where = f"{named}: questions.{kind}{f'.{safe_text(about)}' if about else ''}"
            found += [Question(kind, about, text) for text in _texts(texts, where)]
    said = [question.text for question in found]
    twice = next((text for text in said if said.count(text) > 1), None)
    if twice is not None:
        raise PromptError(f"{named}: the question '{safe_text(twice, limit=80)}' stands twice")
    return found


def _trials(table: Any, named: str) -> Trials:
    where = f"{named}: localise"
    if not isinstance(table, dict):
        raise PromptError(f"{where} must be a table with form, numbers and sets")
    _refuse_unknown(table, ("form", "numbers", "sets"), where)
    numbers = _texts(table.get("numbers", ["1", "2", "3", "4", "5"]), f"{where}.numbers")
    sets = table.get("sets")
    if not isinstance(sets, list) or not sets:
        raise PromptError(f"{where} needs sets, each a list of {len(numbers)} sentences")
    rows = tuple(_texts(row, f"{where}.sets[{n}]") for n, row in enumerate(sets))
    for n, row in enumerate(rows):
        if len(row) != len(numbers) or len({*row}) < len(row):
            raise PromptError(
                f"{where}.sets[{n}] has {len({*row})} different sentences; there must be "
                f"{len(numbers)}, one for each of the numbers"
            )
    return Trials(_form(table.get("form", "{sentences}"), named, "localise"), numbers, rows)


def _turns(items: Any, named: str) -> tuple[Message, ...]:
    found = []
    for n, item in enumerate(items if isinstance(items, list) else [items]):
        if not isinstance(item, dict) or item.keys() != {"role", "content"}:
            raise PromptError(f"{named}: turn {n} must be {{role, content}} and nothing else")
        found.append(Message(*(_text(item[key], f"{named}: turn {n}") for key in Message._fields)))
    return tuple(found)


def _form(value: Any, named: str, key: str) -> str:
    """A text with the one field that is filled in, and no other braces."""
    text, name = _text(value, f"{named}: {key}"), _FIELD[key]
    rest = text.replace(name, "", 1)
    if name not in text or "{" in rest or "}" in rest:
        raise PromptError(f"{named}: the form of {key} needs {name} once and no other braces")
    return text


def _texts(value: Any, where: str) -> tuple[str, ...]:
    items: Sequence[Any] = value if isinstance(value, list) else [value]
    return tuple(_text(item, where, is_empty_fine=False) for item in items)


def _text(value: Any, where: str, *, is_empty_fine: bool = True) -> str:
    if not isinstance(value, str) or not (value or is_empty_fine):
        raise PromptError(f"{where} holds {safe_text(repr(value), limit=60)}; expected a text")
    return value


def _refuse_unknown(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in table:
        if key not in known:
            hint = did_you_mean(key, known) or f"; known are {', '.join(known)}"
            raise PromptError(f"{where}: unknown key '{safe_text(key, limit=80)}'{hint}")
