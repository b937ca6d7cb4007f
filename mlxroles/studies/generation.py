"""Texts that models go on with, each without edits and with them, grown side by side.

Nothing is stored: a text is made again in the time it takes to read it, and its seed is told.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlxroles.edit_file import EditSet, read_edits
from mlxroles.models.generate import Piece, Settings, stream
from mlxroles.prompts import Prompt
from mlxroles.studies.inputs import Encoded
from mlxroles.studies.subject import Subject
from mlxroles.text import safe_text
from mlxroles.versions import now, versions

SCHEMA = "mlxroles/generate/1"

INTERRUPTED = "interrupted"
"""The end of a text that the user broke off."""


@dataclass
class Growing:
    """One text while it grows."""

    model: str
    prompt: str
    edited: bool
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish: str | None = None
    """None while it grows; then ``stop``, ``length`` or ``interrupted``."""
    seen: list[str] = field(default_factory=list)
    """What each token added to the text."""

    def take(self, piece: Piece) -> None:
        """Puts a piece at the end."""
        self.text += piece.text
        if piece.token is None:
            self.finish = piece.finish
            return
        self.tokens.append(piece.token)
        self.seen.append(piece.text)


Watch = Callable[[Sequence[Growing]], None]
"""Is shown the texts of a group after every token."""


@dataclass(frozen=True)
class Asked:
    """What is generated: prompts on the models of a subject, perhaps with a file of edits too."""

    subject: Subject
    prompts: Sequence[Encoded]
    settings: Settings
    edits: Path | None = None

    def groups(self) -> list[list[Growing]]:
        """Texts that stand side by side: without and with edits, or those of a pair."""
        sides, plain = list(self.subject.sides), (False,)
        if self.edits is None:
            return [[Growing(s, p.id, e) for s in sides for e in plain] for p in self.prompts]
        return [
            [Growing(s, p.id, edited) for edited in (False, True)]
            for p in self.prompts
            for s in sides
        ]

    def grow(self, group: Sequence[Growing], watch: Watch) -> EditSet | None:
        """Lets the texts of a group grow, token by token in turns, to their ends.

        Texts of several models take turns only where all of them are in memory; else they follow
        one another.

        Returns:
            The edits, read for this prompt; None without a file.

        Raises:
            MlxrolesError: a prompt, an edit or a length that the model cannot take.
        """
        prompt = next(p for p in self.prompts if p.id == group[0].prompt)
        in_turns = self.subject.resident > 1 or len({text.model for text in group}) == 1
        found: EditSet | None = None
        live: list[tuple[Growing, Iterator[Piece]]] = []
        for text in group:
            model = self.subject.model(text.model)
            edits = EditSet()
            if text.edited and self.edits is not None:
                edits = found = read_edits(self.edits, model, prompt.n_tokens)
                for name, taken_from in edits.origins:
                    self.subject.note_origin(name, {"sha256": taken_from}, text.model)
            pieces = stream(
                model,
                prompt.ids,
                edits=edits.both,
                prompt_edits=edits.prompt,
                generated_edits=edits.generated,
                **asdict(self.settings),
            )
            live.append((text, pieces))
            if not in_turns:
                _finish(live, group, watch)
        _finish(live, group, watch)
        return found


def _finish(
    live: list[tuple[Growing, Iterator[Piece]]], group: Sequence[Growing], watch: Watch
) -> None:
    """One piece of each text in turn, until all have ended; then ``live`` is empty."""
    while live:
        for text, pieces in live:
            text.take(next(pieces))
            watch(group)
        live[:] = [(text, pieces) for text, pieces in live if text.finish is None]


def same_beginning(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of tokens with which both begin."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def document(
    asked: Asked, texts: Sequence[Growing], lines: Sequence[str], told: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """All texts with what they were generated from.

    Args:
        asked: What was asked for.
        texts: The texts, those of a group one after the other.
        lines: The edits in words.
        told: From ``how_asked``.
    """
    plain = {(t.model, t.prompt): t for t in texts if not t.edited}
    rows = []
    for text in texts:
        row: dict[str, Any] = {
            "model": text.model,
            "prompt": text.prompt,
            "edited": text.edited,
            "n_tokens": len(text.tokens),
            "finish": text.finish,
            "text": text.text,
            "tokens": text.tokens,
        }
        if text.edited:
            row["same_tokens"] = same_beginning(text.tokens, plain[text.model, text.prompt].tokens)
        rows.append(row)
    return {
        "schema": SCHEMA,
        "pair": asked.subject.pair,
        "display": asked.subject.display,
        "models": {name: str(side.folder) for name, side in asked.subject.sides.items()},
        "settings": {k: v for k, v in asdict(asked.settings).items() if k != "logprobs"},
        "edits": None if asked.edits is None else {"file": str(asked.edits), "lines": [*lines]},
        "prompts": list(told),
        "rows": rows,
        "notes": list(dict.fromkeys([*asked.subject.notes, *beyond(asked, texts)])),
        "timestamp": now(),
        "versions": versions(),
    }


def beyond(asked: Asked, texts: Sequence[Growing]) -> list[str]:
    """A line for each text that grew longer than what its model was trained for."""
    lengths = {prompt.id: prompt.n_tokens for prompt in asked.prompts}
    found = []
    for text in texts:
        context = asked.subject.sides[text.model].context
        length = lengths[text.prompt] + len(text.tokens)
        if context is not None and length > context:
            found.append(
                f"{text.model}: prompt '{safe_text(text.prompt)}' and its text are {length} "
                f"tokens, more than the {context} positions that the model was trained for"
            )
    return found


def how_asked(
    subject: Subject, prompts: Sequence[Prompt], rows: Sequence[Encoded], *, raw: bool
) -> list[dict[str, Any]]:
    """What each prompt became: which kind it is, its tokens and their text."""
    told = []
    for prompt, row in zip(prompts, rows, strict=True):
        kind = "raw text, as it is" if prompt.text is not None else "token ids"
        if prompt.messages is not None:
            kind = "conversation, as plain paragraphs" if raw else "conversation, chat template"
        texts = None
        if subject.tokenizer is not None:
            texts = subject.tokenizer.decode(row.ids, clean_up_tokenization_spaces=False)
        told.append(
            {"id": row.id, "kind": kind, "n_tokens": row.n_tokens, "ids": row.ids, "text": texts}
        )
    return told
