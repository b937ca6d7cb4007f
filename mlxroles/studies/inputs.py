"""What goes into a study and what is measured: prompts as token ids, strings as targets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlxroles import probes
from mlxroles.errors import PromptError
from mlxroles.probes import Target, Targets
from mlxroles.prompts import Prompt, digest, encode, load_prompts
from mlxroles.studies.subject import Subject

DEFAULT_PROMPT = "notepad"
CONTROL_TEXT = Path(__file__).parent.parent / "data" / "control.txt"


@dataclass(frozen=True)
class Encoded:
    """A prompt as token ids, the same for both models."""

    id: str
    ids: tuple[int, ...]
    digest: str
    """SHA-256 of the ids."""
    other: tuple[int, ...] = ()
    """Ids of the same number whose activations serve as a control."""
    category: str | None = None

    @property
    def n_tokens(self) -> int:
        """Number of tokens of the prompt."""
        return len(self.ids)


def other_tokens(
    ids: Sequence[int], text_ids: Sequence[int] | None, rng: np.random.Generator
) -> tuple[int, ...]:
    """Ids of another text, as many as ``ids``, for the control donor.

    With a text, its tokens are repeated to the length, after the prompt's first token (BOS or
    its stand-in), so that the text's end meets the prompt's; without one, the prompt's own tokens
    but the first are shuffled.
    """
    rest = len(ids) - 1
    if text_ids:
        return (ids[0], *(text_ids[(i - rest) % len(text_ids)] for i in range(rest)))
    return (ids[0], *(int(ids[1 + i]) for i in rng.permutation(rest)))


def encoded(
    subject: Subject,
    prompts: Sequence[Prompt],
    *,
    seed: int,
    note: Callable[[str], None] | None = None,
    **how: Any,
) -> tuple[Encoded, ...]:
    """The prompts as ids, each with as many ids of the control text.

    Args:
        subject: Its tokenizer and vocabulary.
        prompts: At least one.
        seed: Of the shuffle that stands in for the control text where there is no tokenizer.
        note: Told of anything unexpected, one line each.
        how: Passed on to ``prompts.encode``: tools, system, raw.
    """
    if not prompts:
        raise PromptError("there is no prompt to run; give at least one")
    needs_text = any(prompt.ids is None for prompt in prompts)
    tokenizer = subject.tokenizer if needs_text or subject.tokenizer is not None else None
    control = None
    if tokenizer is not None:
        text = CONTROL_TEXT.read_text(encoding="utf-8").strip()
        control = tokenizer.encode(text, add_special_tokens=False)
        control = [i for i in control if i < subject.vocab]
    found = []
    for n, prompt in enumerate(prompts):
        ids = encode(prompt, tokenizer, vocab_size=subject.vocab, note=note, **how)
        row = tuple(int(i) for i in ids)
        other = other_tokens(row, control, np.random.default_rng([seed, n]))
        found.append(Encoded(prompt.id, row, digest(row), other, prompt.category))
    return tuple(found)


def targets_for(
    subject: Subject,
    prompts: Sequence[Prompt],
    strings: Sequence[str],
    token_ids: Sequence[int],
) -> Targets:
    """What is measured: the given ids, the given strings, or those that the prompt names.

    Raises:
        PromptError: strings without a tokenizer, or ids outside the vocabulary.
    """
    if token_ids:
        ids = tuple(token_ids)
        name = "token " + " ".join(map(str, ids))
        target = Target(name, ids, ids[:1], tuple(sorted(set(ids))))
        found = Targets((target,), name)
        found.check(subject.vocab)
        return found
    if subject.tokenizer is None:
        raise PromptError(
            "the models have no tokenizer to read strings with; name the ids to measure with "
            "--token-ids"
        )
    named = next((p for p in prompts if p.strings), None)
    if not strings:
        named = named or load_prompts(DEFAULT_PROMPT)[0]
        return probes.targets(
            named.strings, named.headline, subject.tokenizer, vocab_size=subject.vocab
        )
    return probes.targets(strings, strings[0], subject.tokenizer, vocab_size=subject.vocab)
