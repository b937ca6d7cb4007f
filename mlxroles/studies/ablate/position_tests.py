"""The tests at single positions by name: redundancy, offsets, patterns, compare."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from mlxroles.detectors import repeated
from mlxroles.prompts import Prompt, load_prompts
from mlxroles.studies.ablate.at_positions import SAMPLES, AtPositions, LocalTest
from mlxroles.studies.ablate.compare import Comparison
from mlxroles.studies.ablate.conditions import Head
from mlxroles.studies.ablate.offsets import Offsets
from mlxroles.studies.ablate.parts import Parts
from mlxroles.studies.ablate.patterns import Patterns
from mlxroles.studies.ablate.redundancy import RANDOM, Redundancy
from mlxroles.studies.subject import Subject

PositionTest = Literal["redundancy", "offsets", "patterns", "compare"]
PROMPTS = "crafted"
"""The packaged prompts of these tests where none are named, but for patterns."""
PERIOD = 12
"""Tokens after which the random ids of patterns begin again: an offset that is drawn."""


def planned(
    test: PositionTest,
    subject: Subject,
    prompts: Sequence[Prompt] | None,
    heads: Sequence[Head],
    *,
    positions: Sequence[int] | None = None,
    samples: int = SAMPLES,
    value_heads: Sequence[Head] | None = None,
    n_random: int = RANDOM,
    seed: int = 0,
    parts: Parts | None = None,
) -> AtPositions:
    """The study of some heads.

    Args:
        test: Which.
        subject: One model or a pair.
        prompts: Texts or ids. None for the packaged ones; for patterns, and without a tokenizer,
            for random ids that repeat once, t among the repeated ones.
        heads: Query heads (layer, head), the same for both models of a pair.
        positions: Positions t of every prompt, negative ones from the end; None draws some, or
            takes the last ones to compare predictions.
        samples: How many are drawn.
        value_heads: For redundancy: query heads whose value heads are ``spec``; None for ``heads``.
        n_random: Random sets of heads to compare with.
        seed: Of everything drawn.
        parts: For redundancy: components in place of heads.

    Raises:
        SpecError: heads that the models do not have, or that the test cannot be about.
        PromptError: prompts or positions that cannot be used.
    """
    made: LocalTest
    if parts is not None:
        made = Redundancy.of_components(parts, n_random=n_random, seed=seed)
    elif test == "redundancy":
        made = Redundancy.of(subject, heads, value_heads=value_heads, n_random=n_random, seed=seed)
    elif test == "offsets":
        made = Offsets.of(subject, heads, n_random=n_random, seed=seed)
    elif test == "patterns":
        made = Patterns.of(subject, heads, n_random=n_random, seed=seed)
    else:
        made = Comparison.of(subject, heads, n_random=n_random, seed=seed)
        positions = (-1,) if positions is None else positions
    earliest = 2
    if prompts is None and (test == "patterns" or subject.tokenizer is None):
        prompts, earliest = _repeated(subject, seed), PERIOD
    return AtPositions(
        subject,
        load_prompts(PROMPTS) if prompts is None else prompts,
        made,
        positions=positions,
        samples=samples,
        earliest=earliest,
        seed=seed,
    )


def _repeated(subject: Subject, seed: int) -> list[Prompt]:
    """Random ids that repeat once, and a note that says so."""
    rng = np.random.default_rng([seed, PERIOD])
    rows = repeated(subject.vocab, rng, length=PERIOD).tolist()
    subject.notes.append(f"no prompt was named: {len(rows)} rows of {PERIOD} random ids, twice")
    return [Prompt(f"repeat{n:02d}", ids=tuple(row)) for n, row in enumerate(rows)]
