"""Which token ids an answer is made of, and which it may begin with.

One string has many spellings in tokens: with or without a space before it, after a line break,
as one special token or in pieces. The original study took the most probable of all the pieces of
one spelling, which for ``<tool_call>`` in most vocabularies is the probability of ``<`` or
``_``. Here that number keeps its ids, and beside it stand the first token, the whole spelling
and the set of all tokens that the string can begin with.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlxroles.errors import PromptError
from mlxroles.prompts import Tokenizer
from mlxroles.text import safe_text

_LEADS = ("", " ", "\n")
"""What may stand between the prompt and the string."""

_TAG_START = re.compile(r"<[^A-Za-z]?[A-Za-z]+")


@dataclass(frozen=True)
class Target:
    """One string and its token ids."""

    text: str
    """The string, or a name for it where only ids are known."""
    ids: tuple[int, ...]
    """Everything that the tokenizer makes of the string: the study's sub-tokens."""
    chain: tuple[int, ...]
    """The spelling whose probability is chained: ``ids`` without a blank token in front, which
    SentencePiece vocabularies put before any text."""
    variants: tuple[int, ...]
    """Distinct ids that the string may begin with, ascending; ``first`` is one of them."""

    @property
    def first(self) -> int:
        """The id that the string begins with."""
        return self.chain[0]


@dataclass(frozen=True)
class Targets:
    """The strings that a probe measures, one of which is the headline."""

    strings: tuple[Target, ...]
    headline: str

    @property
    def head(self) -> Target:
        """The target of the headline."""
        return self[self.headline]

    def __getitem__(self, text: str) -> Target:
        for target in self.strings:
            if target.text == text:
                return target
        raise KeyError(text)

    def check(self, vocab_size: int) -> None:
        """Refuses ids outside the vocabulary.

        Raises:
            PromptError: names the string, the id and the size.
        """
        for target in self.strings:
            for token in (*target.ids, *target.variants):
                if not 0 <= token < vocab_size:
                    raise PromptError(
                        f"measured string '{safe_text(target.text)}' has the token id {token}, "
                        f"outside the model's vocabulary: 0..{vocab_size - 1}"
                    )

    def document(self) -> dict[str, Any]:
        """The ids per string, for the summary document."""
        return {
            target.text: {
                "ids": list(target.ids),
                "chain": list(target.chain),
                "variants": list(target.variants),
            }
            for target in self.strings
        }


def targets(
    strings: Sequence[str],
    headline: str | None,
    tokenizer: Tokenizer,
    *,
    vocab_size: int | None = None,
) -> Targets:
    """The ids of the strings with this tokenizer.

    Args:
        strings: what to measure, in order; a repeated string counts once.
        headline: the string that a summary reports, added where it is missing; without one it is
            the first string.
        tokenizer: the tokenizer of the model.
        vocab_size: the number of logits; ids beyond it are refused.

    Raises:
        PromptError: there is no string, or one that has no tokens or none in the vocabulary.
    """
    texts = list(dict.fromkeys(strings if headline is None else [*strings, headline]))
    if not texts:
        raise PromptError("there is no string to measure; name at least one")
    found = Targets(tuple(_target(text, tokenizer) for text in texts), headline or texts[0])
    if vocab_size is not None:
        found.check(vocab_size)
    return found


def targets_from_ids(
    ids: Sequence[int],
    *,
    name: str | None = None,
    variants: Sequence[int] = (),
    vocab_size: int | None = None,
) -> Targets:
    """One string given by its token ids, for models without a tokenizer.

    Args:
        ids: the tokens of the string in order; the first one is what it begins with.
        name: how results call it; by default ``token 508`` or ``tokens 5 6``.
        variants: further ids that it may begin with.
        vocab_size: the number of logits; ids beyond it are refused.

    Raises:
        PromptError: there is no id, or one outside the vocabulary.
    """
    chain = tuple(int(token) for token in ids)
    if not chain:
        raise PromptError("there is no token id to measure; give at least one")
    label = name or f"token{'s' if len(chain) > 1 else ''} {' '.join(map(str, chain))}"
    leading = tuple(sorted({chain[0], *(int(token) for token in variants)}))
    found = Targets((Target(label, chain, chain, leading),), label)
    found.check(2**31 if vocab_size is None else vocab_size)
    return found


def _target(text: str, tokenizer: Tokenizer) -> Target:
    ids = _encode(text, tokenizer)
    if not ids:
        raise PromptError(f"measured string '{safe_text(text)}' has no token; remove it")
    chain = _without_blanks(ids, tokenizer, keep_spaces=text[:1].isspace())
    variants = {chain[0]}
    for spelling in _spellings(text.lstrip() or text):
        for lead in _LEADS if text.strip() else ("",):
            spelled = _without_blanks(_encode(lead + spelling, tokenizer), tokenizer)
            variants.update(spelled[:1])
    return Target(text, ids, chain, tuple(sorted(variants)))


def _spellings(text: str) -> list[str]:
    """The string itself, and a tag such as ``<tool_call>`` also as it is written in pieces."""
    if not (text.startswith("<") and text.endswith(">") and len(text) > 2):
        return [text]
    start = _TAG_START.match(text)
    return [text, text[:-1], *([start.group()] if start else [])]


def _encode(text: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    return tuple(int(token) for token in tokenizer.encode(text, add_special_tokens=False))


def _without_blanks(
    ids: tuple[int, ...], tokenizer: Tokenizer, *, keep_spaces: bool = False
) -> tuple[int, ...]:
    """The ids from the first one on that shows, or with ``keep_spaces`` that has any text.

    Where no token shows, spaces are kept; where none has text, all of them are.
    """
    for index, token in enumerate(ids):
        text = tokenizer.decode([token])
        if text if keep_spaces else text.strip():
            return ids[index:]
    return ids if keep_spaces else _without_blanks(ids, tokenizer, keep_spaces=True)
