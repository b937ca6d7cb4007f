"""What goes into a study and what is measured: prompts as token ids, strings as targets."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mlxroles import probes
from mlxroles.errors import PromptError
from mlxroles.probes import Target, Targets
from mlxroles.prompts import Prompt, digest, encode, load_prompts
from mlxroles.studies.encoded import Encoded
from mlxroles.studies.subject import Subject
from mlxroles.text import safe_text

DEFAULT_PROMPT = "notepad"
CONTROL_TEXT = Path(__file__).parent.parent / "data" / "control.txt"


def encoded(
    subject: Subject,
    prompts: Sequence[Prompt],
    *,
    note: Callable[[str], None] | None = None,
    by_blocks: bool = False,
    **how: Any,
) -> tuple[Encoded, ...]:
    """The prompts as ids. A tokenizer is only read where a prompt is text or there are two models.

    Args:
        subject: Its tokenizer, vocabulary and context.
        prompts: At least one.
        note: Told of anything unexpected, one line each.
        by_blocks: Whether long prompts run in parts, so that their length squared does not count.
        how: Passed on to ``prompts.encode``: tools, system, raw.

    Raises:
        PromptError: a prompt that the models cannot be asked.
    """
    if not prompts:
        raise PromptError("there is no prompt to run; give at least one")
    system = how.get("system")
    if system is not None:
        check_text(system, "the system message")
    needs_tokenizer = len(subject.sides) > 1 or any(prompt.ids is None for prompt in prompts)
    tokenizer = subject.tokenizer if needs_tokenizer else None
    found = []
    for prompt in prompts:
        ids = encode(prompt, tokenizer, vocab_size=subject.vocab, note=note, **how)
        row = tuple(int(i) for i in ids)
        subject.check_length(
            len(row), f"prompt '{safe_text(prompt.id)}'", note, by_blocks=by_blocks
        )
        found.append(Encoded(prompt.id, row, digest(row), category=prompt.category))
    return tuple(found)


def with_others(subject: Subject, prompts: Sequence[Encoded], *, seed: int) -> tuple[Encoded, ...]:
    """The prompts, each with as many ids of the control text for the ``other_prompt`` control."""
    control: list[int] = []
    if subject.tokenizer is not None:
        text = CONTROL_TEXT.read_text(encoding="utf-8").strip()
        ids = subject.tokenizer.encode(text, add_special_tokens=False)
        control = [int(i) for i in ids if i < subject.vocab]
    return tuple(
        replace(
            prompt,
            other=other_tokens(
                prompt.ids, control, np.random.default_rng([seed, n]), vocab=subject.vocab
            ),
        )
        for n, prompt in enumerate(prompts)
    )


def other_tokens(
    ids: Sequence[int], text_ids: Sequence[int], rng: np.random.Generator, *, vocab: int
) -> tuple[int, ...]:
    """Ids of another text, as many as ``ids``, for the control donor.

    With a text, its tokens are repeated to the length, after the prompt's first token (BOS or
    its stand-in), so that the text's end meets the prompt's; without one, the prompt's own tokens
    but the first are shuffled. Where that leaves the prompt as it is, as with a single token,
    every token is drawn from the vocabulary instead.
    """
    rest = len(ids) - 1
    if text_ids:
        other = (ids[0], *(text_ids[(i - rest) % len(text_ids)] for i in range(rest)))
    else:
        other = (ids[0], *(int(ids[1 + i]) for i in rng.permutation(rest)))
    while other == tuple(ids) and vocab > 1:
        other = tuple(int(i) for i in rng.integers(vocab, size=len(ids)))
    return other


def several_tokens(targets: Targets) -> list[str]:
    """A line of warning where the headline string is no single token of this vocabulary."""
    count = len(targets.head.chain)
    if count < 2:
        return []
    return [
        f"{safe_text(targets.headline, limit=40)} is {count} tokens here: the study's "
        "tool_call_prob is the largest of them, wherever it belongs; R is about the first token, "
        "and p_chain is the probability of the whole string"
    ]


def targets_for(
    subject: Subject,
    prompts: Sequence[Prompt],
    strings: Sequence[str],
    token_ids: Sequence[int],
) -> Targets:
    """What is measured: the given ids, the given strings, or those that the prompt names.

    Several ids are one headline, "any of these": its first token is the first of them, its union
    all of them; each id is also measured on its own.

    Raises:
        PromptError: strings without a tokenizer, or ids outside the vocabulary.
    """
    if strings and token_ids:
        raise PromptError("--tokens and --token-ids exclude each other; give one")
    if token_ids:
        found = _targets_of(tuple(dict.fromkeys(token_ids)))
        found.check(subject.vocab)
        return found
    if subject.tokenizer is None:
        raise PromptError(
            "the models have no tokenizer to read strings with; name the ids to measure with "
            "--token-ids"
        )
    headline = strings[0] if strings else None
    if not strings:
        named = next((p for p in prompts if p.strings), None) or load_prompts(DEFAULT_PROMPT)[0]
        strings, headline = named.strings, named.headline
    for string in strings:
        check_text(string, "a measured string")
    return probes.targets(strings, headline, subject.tokenizer, vocab_size=subject.vocab)


def _targets_of(ids: tuple[int, ...]) -> Targets:
    name = f"token{'s' if len(ids) > 1 else ''} {' '.join(map(str, ids))}"
    head = Target(name, ids, ids[:1], tuple(sorted(ids)))
    each = [Target(f"token {i}", (i,), (i,), (i,)) for i in ids] if len(ids) > 1 else []
    return Targets((head, *each), name)


def check_text(text: str, what: str) -> None:
    """Refuses text that no tokenizer can take.

    Raises:
        PromptError: it holds a lone surrogate, which stands for a byte that is not UTF-8.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            f"{what} ('{safe_text(text, limit=80)}') holds the lone surrogate "
            f"{safe_text(text[error.start])} at character {error.start}; write valid UTF-8"
        ) from None
