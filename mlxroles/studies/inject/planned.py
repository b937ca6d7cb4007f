"""From what a user says to a planned injection run: prompts, vectors, layers, strengths."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlxroles.errors import PromptError, SpecError
from mlxroles.plan import parse_layers
from mlxroles.prompts import Prompt, load_prompts
from mlxroles.studies.inject import battery, readout
from mlxroles.studies.inject.grid import Grid
from mlxroles.studies.inject.injection import Asked, Injection
from mlxroles.studies.inject.items import (
    AWAY,
    EACH_SENTENCE,
    PROMPT,
    TOWARD,
    Item,
    Reader,
    Where,
    battery_items,
    trial_items,
)
from mlxroles.studies.inject.source import (
    NO_TOOLS,
    Contrast,
    Source,
    Words,
    from_files,
    halves,
)
from mlxroles.studies.inputs import DEFAULT_PROMPT, several_tokens, targets_for
from mlxroles.studies.subject import Subject
from mlxroles.text import safe_text

DEFAULT_BATTERY = "introspection"
MOST_NAME = 80
MOST_LAYERS = 16
"""Layers that are tested where none are named; of deeper models every second, third, ..."""
SCALES = {"words": (1.0, 2.0, 4.0, 8.0), "contrast": (0.5, 1.0, 2.0, 4.0)}
"""Of a contrast, 1 is the whole difference between its sides."""


@dataclass(frozen=True)
class Options:
    """What a user may say; empty or None is left to the program."""

    concepts: tuple[str, ...] = ()
    toward: tuple[str, ...] = ()
    """Sources of prompts, as ``load_prompts`` takes them."""
    away: tuple[str, ...] = ()
    """Likewise, or ``no-tools``: the same prompts without the tools that they offer."""
    vectors: tuple[str, ...] = ()
    """``FILE`` or ``FILE#NAME``."""
    layers: str | None = None
    scales: str | None = None
    positions: str | None = None
    kv_only: bool = False
    test: str = "battery"
    battery: str | None = None
    prompts: tuple[Prompt, ...] = ()
    strings: tuple[str, ...] = ()
    token_ids: tuple[int, ...] = ()
    n_random: int = 20
    relative: bool = False
    seed: int = 0

    @property
    def mode(self) -> str:
        """``localise``, ``battery`` or ``prompts``."""
        measured = self.prompts or self.strings or self.token_ids
        if self.test == "localise":
            if measured:
                raise PromptError("--test localise asks its own questions; leave --prompt out")
            return "localise"
        if self.battery is not None:
            if measured:
                raise PromptError(
                    "--battery asks Yes or No, --prompt and --tokens measure strings; give one"
                )
            return "battery"
        return "prompts" if measured or self.toward else "battery"


def planned(subject: Subject, options: Options) -> Injection:
    """The run that the options describe; no weights are loaded.

    Raises:
        PromptError: prompts, batteries or sources that do not fit together.
        SpecError: layers or strengths that cannot be.
        VectorError: a file of vectors that does not fit the models.
    """
    _check_sources(options)
    where = _where(options)
    reader = Reader(subject, where, subject.notes.append)
    source, held = _source(subject, reader, options)
    asked = _asked(subject, reader, options, held)
    _check_apart(source, asked.items)
    grid = Grid(
        _layers(subject, source, options.layers),
        _scales(options),
        projects=asked.mode == "prompts",
    )
    how = {"n_random": options.n_random, "relative": options.relative, "seed": options.seed}
    return Injection(subject, asked, source, grid, **how)


def _check_sources(options: Options) -> None:
    if options.away and not options.toward:
        raise PromptError("--away needs --toward: a contrast has two sides")
    if options.toward and not options.away:
        raise PromptError(
            "--toward needs --away: other prompts, or no-tools for the same ones without the "
            "tools that they offer"
        )
    given = [bool(x) for x in (options.concepts, options.toward, options.vectors)]
    if sum(given) != 1:
        found = "none of them" if not any(given) else "several"
        raise PromptError(
            "say what to inject: --concept WORD, or --toward PROMPTS --away PROMPTS, or --vector "
            f"FILE#NAME; found {found}"
        )


def _where(options: Options) -> Where:
    mode = options.mode
    if mode == "localise":
        if options.positions is not None or options.kv_only:
            raise PromptError(
                "--test localise injects into one sentence after the other; leave --positions and "
                "--kv-only out"
            )
        return Where("all")
    if options.kv_only:
        if options.positions is not None:
            raise PromptError("--kv-only says where to inject; leave --positions out")
        return Where("all", before=True)
    if options.positions is None:
        return Where("question" if mode == "battery" else "last")
    if not options.positions.strip():
        raise PromptError("--positions is empty; give all, last, question, numbers or a text")
    return Where(options.positions)


def _source(
    subject: Subject, reader: Reader, options: Options
) -> tuple[Source, list[tuple[Prompt, str, bool]]]:
    """What is injected, and the prompts of a contrast that are held out from it.

    Each of those comes with its role and whether its tools are offered.
    """
    if options.concepts:
        return Words(tuple(word.strip() for word in options.concepts)), []
    if options.vectors:
        lone = (options.layers or "").strip()
        layer = int(lone) if lone.isdecimal() else None
        return from_files(options.vectors, subject, layer), []
    toward = [p for source in options.toward for p in load_prompts(source)]
    is_same = NO_TOOLS in options.away
    if is_same and len(options.away) > 1:
        raise PromptError("--away no-tools stands alone: it is the other side of --toward")
    away = toward if is_same else [p for source in options.away for p in load_prompts(source)]
    if is_same:
        _check_plain(toward)
    sides = [(toward, TOWARD, True), (away, AWAY, not is_same)]
    made: dict[str, list[Prompt]] = {}
    held: list[tuple[Prompt, str, bool]] = []
    for prompts, role, offers in sides:
        made[role], rest = (
            (prompts, []) if options.prompts or options.mode != "prompts" else (halves(prompts))
        )
        held += [(prompt, role, offers) for prompt in rest]
    whole = Reader(subject, Where("all"), reader.note)
    items = {
        role: tuple(whole.item(p, role, tools=offers) for p in made[role])
        for _, role, offers in sides
    }
    if {item.digest for item in items[TOWARD]} == {item.digest for item in items[AWAY]}:
        raise PromptError(
            "--toward and --away are the same prompts, so their difference is nothing; name others "
            "on one side, or --away no-tools"
        )
    return Contrast(items[TOWARD], items[AWAY], (_contrast_name(options),)), held


def _contrast_name(options: Options) -> str:
    """What the direction leads to, in characters that a name may have."""
    names = [safe_text(Path(source).stem, limit=40) for source in options.toward]
    return "+".join(names)[:MOST_NAME].strip() or "contrast"


def _check_plain(prompts: Sequence[Prompt]) -> None:
    for prompt in prompts:
        if prompt.plain_text is None or prompt.tools_text is None:
            raise PromptError(
                f"prompt '{safe_text(prompt.id)}' offers no tools that --away no-tools could leave "
                "out; use conversations with a tools_text and a plain_text, such as offers"
            )


def _asked(
    subject: Subject,
    reader: Reader,
    options: Options,
    held: Sequence[tuple[Prompt, str, bool]],
) -> Asked:
    if options.mode == "prompts":
        return _asked_prompts(subject, reader, options, held)
    found = battery.read(options.battery or DEFAULT_BATTERY)
    if options.mode == "localise":
        trials = trial_items(reader, found)
        assert found.trials is not None
        labels = found.trials.numbers
        read = readout.choice(labels, subject.tokenizer, subject.vocab)
        where = Where(EACH_SENTENCE)
        return Asked("localise", tuple(trials), read, where, found.name, labels)
    items = tuple(battery_items(reader, found))
    yes_no = readout.yes_no(found.yes, found.no, subject.tokenizer, subject.vocab)
    return Asked("battery", items, yes_no, reader.where, found.name)


def _asked_prompts(
    subject: Subject,
    reader: Reader,
    options: Options,
    held: Sequence[tuple[Prompt, str, bool]],
) -> Asked:
    prompts = list(options.prompts)
    if not prompts and not held:
        prompts = load_prompts(DEFAULT_PROMPT)
    named = [*prompts, *(prompt for prompt, _, _ in held)]
    targets = targets_for(subject, named, options.strings, options.token_ids)
    subject.notes += several_tokens(targets)
    items: list[Item] = []
    both = NO_TOOLS in options.away
    for prompt in prompts:
        if both and prompt.plain_text is not None:
            items.append(_as(reader, prompt, TOWARD, offers=True))
            items.append(_as(reader, prompt, AWAY, offers=False))
        else:
            items.append(reader.item(prompt, PROMPT))
    items += [_as(reader, prompt, role, offers=offers) for prompt, role, offers in held]
    items.sort(key=lambda item: (AWAY, TOWARD, PROMPT).index(item.role))
    return Asked("prompts", tuple(items), readout.Headline(targets), reader.where)


def _as(reader: Reader, prompt: Prompt, role: str, *, offers: bool) -> Item:
    """A prompt of one side of a contrast, with the side in its name."""
    from dataclasses import replace

    item = reader.item(prompt, role, tools=offers)
    return replace(item, id=f"{prompt.id}-{role}")


def _check_apart(source: Source, items: Sequence[Item]) -> None:
    """Refuses to measure a direction on the prompts that it was made from."""
    if not isinstance(source, Contrast):
        return
    made = {item.digest for item in (*source.toward, *source.away)}
    same = next((item for item in items if item.digest in made), None)
    if same is not None:
        raise PromptError(
            f"prompt '{safe_text(same.id)}' is measured and makes the direction too; leave it out "
            "of one of them, or leave --prompt out: then every other prompt is held out"
        )


def _layers(subject: Subject, source: Source, text: str | None) -> tuple[int, ...]:
    if text is not None:
        return tuple(parse_layers(text, subject.n_layers))
    known = source.has if source.has is not None else tuple(range(subject.n_layers))
    step = -(-len(known) // MOST_LAYERS)
    # the last of every group, so that the last layer of all is one of them
    return tuple(known[step - 1 :: step]) or known


def _scales(options: Options) -> tuple[float, ...]:
    if options.scales is None:
        return SCALES["contrast" if options.toward or options.relative else "words"]
    found: list[float] = []
    for piece in options.scales.split(","):
        try:
            value = float(piece)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value in found:
            raise SpecError(
                f"scales '{safe_text(options.scales, limit=60)}' cannot be read: write numbers, "
                "each once, such as 1,2,4,8"
            )
        found.append(value)
    return tuple(sorted(found))
