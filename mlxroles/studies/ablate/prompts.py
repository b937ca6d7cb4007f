"""Prompts of ablations: random ids that repeat where none are given, and whom to resample from."""

from collections.abc import Sequence

import numpy as np

from mlxroles.detectors import repeated
from mlxroles.errors import PromptError
from mlxroles.prompts import digest
from mlxroles.studies.encoded import Encoded
from mlxroles.studies.subject import Subject
from mlxroles.text import safe_text

MEASURED, SCORED = 0, 1
"""Streams of random ids: those on which effects are measured, and those for the scores."""


def repeats(subject: Subject, *, seed: int, stream: int = MEASURED) -> tuple[Encoded, ...]:
    """Sequences [x, x] of random ids that all models of a study know.

    Those for the scores are ids of ordinary pieces of text, where there is a tokenizer.
    """
    tokenizer = subject.tokenizer if stream == SCORED else None
    rng = np.random.default_rng([seed, stream])
    ids = repeated(subject.vocab, rng, tokenizer=tokenizer).tolist()
    return tuple(
        Encoded(f"repeat{n:02d}", tuple(row), digest(tuple(row))) for n, row in enumerate(ids)
    )


def partners(
    prompts: Sequence[Encoded], reference: Sequence[Encoded], seed: int
) -> tuple[int, ...]:
    """For each prompt one of the reference, drawn among those as long at least and with other ids.

    Raises:
        PromptError: there is none.
    """
    found = []
    for n, prompt in enumerate(prompts):
        can = [
            m
            for m, other in enumerate(reference)
            if other.n_tokens >= prompt.n_tokens and other.ids[: prompt.n_tokens] != prompt.ids
        ]
        if not can:
            raise PromptError(
                f"no other prompt has the {prompt.n_tokens} tokens of "
                f"'{safe_text(prompt.id, limit=80)}' to resample from; name longer ones with "
                "--reference"
            )
        found.append(can[int(np.random.default_rng([seed, n]).integers(len(can)))])
    return tuple(found)
