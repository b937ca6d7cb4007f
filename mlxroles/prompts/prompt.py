"""One prompt as plain data, checked when it is made.

Exactly one of text, messages and ids is set. The other fields only shape how a conversation is
told to a model. Not here: files (:mod:`.files`) and tokens (:mod:`.encoding`).
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxroles.errors import PromptError
from mlxroles.text import did_you_mean, safe_text

ROLES = ("system", "developer", "user", "assistant", "tool")
"""The roles a message may have; what a chat template does with each is its own affair."""

SEPARATOR = "---"
"""Stands on a line of its own between the tools text and the first user message."""

MAX_ID = 2**31 - 1
"""The largest token id that fits the int32 arrays which models take."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_PROMPT_ID = re.compile(r"[^\s/\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]{0,79}")


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Prompt:
    """Raw text, a conversation or token ids, with a name.

    Raises:
        PromptError: it is empty, holds text that no tokenizer can take, or is two kinds at once.
    """

    id: str
    """Unique in its set; names the prompt in results."""
    text: str | None = None
    """Raw text: no chat template is put around it."""
    messages: tuple[Message, ...] | None = None
    """A conversation for the tokenizer's chat template."""
    ids: tuple[int, ...] | None = None
    """Token ids, used as they are."""
    category: str | None = None
    """Groups the prompts of a set, e.g. ``self_referent``."""
    tools_text: str | None = None
    """Put before the first user message when tools are on."""
    plain_text: str | None = None
    """Put there instead when tools are off."""
    separator: str = SEPARATOR
    """The line between either text and the message."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """Tool schemas, for chat templates that take them."""
    strings: tuple[str, ...] = ()
    """Answers whose probability is worth measuring, in order."""
    headline: str | None = None
    """The one of them that a summary reports."""
    description: str = ""
    """What the prompt is for, one line."""

    def __post_init__(self) -> None:
        if not is_prompt_id(self.id):
            raise PromptError(
                f"prompt id '{safe_text(self.id, limit=90)}' must have 1 to 80 characters, "
                "no slash and no control character, and not begin with a space"
            )
        kinds = [kind for kind in ("text", "messages", "ids") if getattr(self, kind) is not None]
        if len(kinds) != 1:
            found = " and ".join(kinds) or "none of them"
            raise PromptError(f"{self._named()} needs one of text, messages and ids; found {found}")
        if not getattr(self, kinds[0]):
            raise PromptError(f"{self._named()} is empty: it has no {kinds[0]}")
        if self.ids is not None:
            check_ids(self.ids, self._named())
        for message in self.messages or ():
            self._check_role(message.role)
            self._check_text(message.content)
        for text in (self.text, self.tools_text, self.plain_text, self.separator, *self.strings):
            self._check_text(text or "")
        prefixed = self.tools_text is not None or self.plain_text is not None
        if prefixed and not any(message.role == "user" for message in self.messages or ()):
            raise PromptError(
                f"{self._named()} has a tools_text or plain_text, but no user message to put it in"
            )

    def _named(self) -> str:
        return f"prompt '{safe_text(self.id)}'"

    def _check_role(self, role: str) -> None:
        if role not in ROLES:
            hint = did_you_mean(role, ROLES) or f"; it must be one of {', '.join(ROLES)}"
            raise PromptError(f"{self._named()}: unknown role '{safe_text(role)}'{hint}")

    def _check_text(self, text: str) -> None:
        broken = _SURROGATE.search(text)
        if broken:
            raise PromptError(
                f"{self._named()}: character {broken.start()} is the lone surrogate "
                f"{safe_text(broken.group())}, which no tokenizer can encode; write valid UTF-8"
            )


def is_prompt_id(name: str) -> bool:
    """Whether the name can stand as a prompt id: 1 to 80 characters, no slash, no control."""
    return bool(_PROMPT_ID.fullmatch(name)) and not _SURROGATE.search(name)


def check_ids(ids: Sequence[int], named: str, *, vocab_size: int | None = None) -> None:
    """Refuses ids that are negative or outside the vocabulary.

    Raises:
        PromptError: names the first such id, its position and the limit.
    """
    limit = MAX_ID + 1 if vocab_size is None else vocab_size
    array = np.asarray(ids, dtype=object)
    outside = np.flatnonzero((array < 0) | (array >= limit))
    if not outside.size:
        return
    position = int(outside[0])
    found = f"{named}: token id {ids[position]} at position {position}"
    if ids[position] < 0:
        raise PromptError(f"{found} is negative; token ids count from 0")
    what = "what 32 bits hold" if vocab_size is None else "the model's vocabulary"
    raise PromptError(f"{found} is outside {what}: 0..{limit - 1}")


def digest(ids: Sequence[int] | NDArray[np.integer]) -> str:
    """The SHA-256 of the ids as little-endian int32, in hexadecimal."""
    return hashlib.sha256(np.asarray(ids).astype("<i4").tobytes()).hexdigest()
