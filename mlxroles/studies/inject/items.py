"""Prompts of an injection run: their ids, what each stands for, and where the vector goes in."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mlxroles import plan
from mlxroles.errors import PromptError
from mlxroles.prompts import Prompt, digest, encode, render
from mlxroles.prompts.encoding import Tools
from mlxroles.studies.inject.battery import Battery
from mlxroles.studies.subject import Subject
from mlxroles.text import safe_text

TOWARD, AWAY, PROMPT, TRIAL = "toward", "away", "prompt", "trial"
"""Roles of prompts that are no questions of a battery."""

RAW = (
    "the tokenizer has no chat template: conversations are told as paragraphs, User: and Assistant:"
)
EACH_SENTENCE = "each sentence"
"""What a report says of trials, whose positions are part of the task."""

_NUMBERS = re.compile(r"[0-9,\- ]+")


@dataclass(frozen=True)
class Item:
    """One prompt of a run."""

    id: str
    role: str
    """``detect``, ``no`` or ``yes`` of a battery; ``toward``, ``away``, ``prompt``; ``trial``."""
    ids: tuple[int, ...]
    where: tuple[int, ...]
    """Positions that the vector is added to."""
    about: str = ""
    """A group within the role, or the set that a trial is of."""
    text: str = ""
    """The question in words; empty for prompts."""
    right: int = -1
    """Of a trial the place of the injection, from 0."""

    @property
    def digest(self) -> str:
        """SHA-256 of the ids."""
        return digest(self.ids)

    def document(self) -> dict[str, Any]:
        """What a table shows of it."""
        about = {"id": self.id, "role": self.role, "about": self.about, "text": self.text}
        return about | {"n_tokens": len(self.ids), "n_injected": len(self.where)}


@dataclass(frozen=True)
class Where:
    """Which tokens of each prompt get the vector."""

    positions: str
    """``all``, ``last``, ``question`` (the last message and what follows), positions such as
    ``4-9``, or a text whose tokens are meant."""
    before: bool = False
    """Everything before the last message, so that the question is asked of what the keys and
    values of the earlier turns have kept: ``--kv-only``."""

    def document(self) -> str:
        """In a few words, for reports."""
        named = ("all", "last", "question", EACH_SENTENCE)
        shown = self.positions if self.positions in named else f"'{self.positions}'"
        return "before the question" if self.before else shown


class Reader:
    """Turns prompts into items for one subject's tokenizer."""

    def __init__(
        self, subject: Subject, where: Where, note: Callable[[str], None] | None = None
    ) -> None:
        self.subject, self.where, self.note = subject, where, note

    def item(self, prompt: Prompt, role: str, *, tools: Tools = True, **about: Any) -> Item:
        """One prompt.

        Raises:
            PromptError: the models cannot be asked it, or the positions are not in it.
        """
        tokenizer = None if prompt.ids is not None else self.subject.tokenizer
        how: dict[str, Any] = {"vocab_size": self.subject.vocab, "note": self.note}
        found = encode(prompt, tokenizer, tools=tools, raw=self._is_raw(prompt), **how)
        ids = tuple(int(i) for i in found)
        self.subject.check_length(len(ids), f"prompt '{safe_text(prompt.id)}'", self.note)
        text = None if tokenizer is None else self.text(prompt, tools=tools)
        where = self._positions(prompt, ids, text)
        return Item(prompt.id, role, ids, where, **about)

    def text(self, prompt: Prompt, *, tools: Tools = True) -> str:
        """The text of a prompt as the models see it."""
        return render(prompt, self.subject.tokenizer, tools=tools, raw=self._is_raw(prompt))

    def _is_raw(self, prompt: Prompt) -> bool:
        """Whether a conversation is told in paragraphs, as there is no chat template."""
        tokenizer = self.subject.tokenizer if prompt.messages else None
        if tokenizer is None:
            return False
        known = getattr(tokenizer, "has_chat_template", None)
        has_template = getattr(tokenizer, "chat_template", None) is not None
        is_raw = not (has_template if known is None else known)
        if is_raw and RAW not in self.subject.notes:
            self.subject.notes.append(RAW)
        return is_raw

    def _positions(self, prompt: Prompt, ids: tuple[int, ...], text: str | None) -> tuple[int, ...]:
        asked = self.where.positions
        n, named = len(ids), f"prompt '{safe_text(prompt.id)}'"
        if not self.where.before and asked in ("all", "last"):
            return tuple(range(n)) if asked == "all" else (n - 1,)
        is_numbers = bool(_NUMBERS.fullmatch(asked))
        if not self.where.before and is_numbers:
            return plan.parse_positions(asked, n).positions
        if text is None:
            raise PromptError(
                f"{named} is token ids, in which no text can be found; use --positions all, last "
                "or numbers"
            )
        if not self.where.before and asked != "question":
            return self.span(ids, text, asked, named)
        if not prompt.messages:
            rest = "leave --kv-only out" if self.where.before else "use --positions all or last"
            raise PromptError(f"{named} is no conversation, so it has no last message; {rest}")
        last = prompt.messages[-1].content
        first = self.span(ids, text, last, named)[0]
        found = tuple(range(first)) if self.where.before else tuple(range(first, n))
        if not found or (self.where.before and len(prompt.messages) < 2):
            raise PromptError(
                f"{named} has no turn before its last message; --kv-only needs one to inject into"
            )
        return found

    def span(self, ids: tuple[int, ...], text: str, part: str, named: str) -> tuple[int, ...]:
        """Positions of the tokens that hold the last occurrence of a part of the text.

        Raises:
            PromptError: the part is not in it.
        """
        at = text.rfind(part)
        if at < 0:
            part = part.strip()
            at = text.rfind(part) if part else -1
        if at < 0:
            raise PromptError(
                f"{named} does not hold the text '{safe_text(part, limit=60)}' as the model sees "
                "it; use --positions all, last or numbers, or a text that is in every prompt"
            )
        starts = token_starts(ids, text, self.subject.tokenizer)
        ends = [*starts[1:], len(text)]
        last = at + len(part)
        found = [
            p for p, (a, b) in enumerate(zip(starts, ends, strict=True)) if a < last and b > at
        ]
        if not found:
            raise PromptError(f"{named}: no token holds '{safe_text(part, limit=60)}'")
        return tuple(found)


def token_starts(ids: Sequence[int], text: str, tokenizer: Any) -> list[int]:
    """Where in the text each token begins, in characters, ascending.

    From the tokenizer's own offsets where it has them for these ids; else from the lengths of
    decoded prefixes, which a tokenizer that drops spaces gets nearly right.
    """
    if getattr(tokenizer, "is_fast", False):  # the others have no offsets
        for special in (False, True):
            found = tokenizer(text, return_offsets_mapping=True, add_special_tokens=special)
            if [int(i) for i in found["input_ids"]] == [int(i) for i in ids]:
                # a token that is put before the text has no place in it and begins at 0
                return _ascending([int(start) for start, _ in found["offset_mapping"]])
    decoded = [len(tokenizer.decode(list(ids[:n]))) for n in range(len(ids))]
    scale = len(text) / max(len(tokenizer.decode(list(ids))), 1)
    return _ascending([int(n * scale) if scale < 1 else n for n in decoded])


def _ascending(starts: list[int]) -> list[int]:
    for n in range(1, len(starts)):
        starts[n] = max(starts[n], starts[n - 1])
    return starts


def battery_items(reader: Reader, battery: Battery) -> list[Item]:
    """The questions of a battery, in its order."""
    asked = zip(battery.prompts(), battery.questions, strict=True)
    return [reader.item(p, q.kind, about=q.about, text=q.text) for p, q in asked]


def trial_items(reader: Reader, battery: Battery) -> list[Item]:
    """Every set of sentences once for each place of the injection."""
    prompts, trials = battery.trial_prompts(), battery.trials
    assert trials is not None
    found = []
    for prompt, sentences in zip(prompts, trials.sets, strict=True):
        whole = reader.item(prompt, TRIAL)
        text = reader.text(prompt)
        for place, sentence in enumerate(sentences):
            span = reader.span(whole.ids, text, sentence, f"prompt '{safe_text(prompt.id)}'")
            name = f"{prompt.id}-{place + 1}"
            found.append(Item(name, TRIAL, whole.ids, span, prompt.id, sentence, place))
    return found
