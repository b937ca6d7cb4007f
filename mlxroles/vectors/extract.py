"""Vectors from a model's own activations: differences of means at the last token of prompts.

A vector of layer 7 is taken from the output of block 7, where an edit of ``resid_post`` at layer
7 adds it. One clean run per prompt; nothing is fitted.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlxroles.backend import mx
from mlxroles.errors import PromptError
from mlxroles.models.model import Model
from mlxroles.prompts import Message, Prompt, encode
from mlxroles.text import safe_text
from mlxroles.vectors.vectors import Vectors

TEMPLATE = "Tell me about {word}"
"""Of a prompt for a concept; after Lindsey, "Emergent introspective awareness" (2025)."""
MOST_TOKENS = 512
"""Tokens of the prompts that run as one batch."""


def contrast(
    model: Model,
    toward: Sequence[Sequence[int]],
    away: Sequence[Sequence[int]],
    layers: Sequence[int] | None = None,
    *,
    name: str = "contrast",
    identity: Mapping[str, Any] | None = None,
) -> Vectors:
    """The mean over prompts of ``toward`` less that of ``away``, at their last tokens.

    Args:
        model: A loaded model.
        toward: Token ids of each prompt.
        away: Likewise.
        layers: Layers that get a vector; None for all.
        name: Name of the vector.
        identity: What identifies the model.

    Raises:
        PromptError: there are no prompts on a side, or one that the model cannot be asked.
        ModelError: the residual stream of this architecture cannot be captured.
        ValueError: a layer that does not exist.
    """
    for what, rows in (("toward", toward), ("away", away)):
        if not rows:
            raise PromptError(f"a contrast needs prompts on both sides; there are none {what}")
    chosen = _chosen(model, layers)
    ends = last_streams(model, [*toward, *away], chosen).astype(np.float64)
    direction = ends[: len(toward)].mean(axis=0) - ends[len(toward) :].mean(axis=0)
    how = {"how": "contrast", "toward": len(toward), "away": len(away)}
    return Vectors((name,), direction[None], chosen, "resid_post", identity, {name: how})


def concept(
    model: Model,
    words: Sequence[str],
    baseline: Sequence[str],
    template: str = TEMPLATE,
    layers: Sequence[int] | None = None,
    *,
    identity: Mapping[str, Any] | None = None,
) -> Vectors:
    """One vector per word: its prompt's last token less the mean over those of baseline words.

    A prompt is put as a conversation where the tokenizer has a chat template. A baseline word
    that is one of the words is left out, for all of them.

    Args:
        model: A loaded model with a tokenizer.
        words: What the vectors are of, and their names.
        baseline: Everyday words.
        template: Prompt with ``{word}`` in it.
        layers: Layers that get a vector; None for all.
        identity: What identifies the model.

    Raises:
        PromptError: no words or a word twice, no baseline word that is left, a template without
            ``{word}``, or a model without a tokenizer.
        ModelError: the residual stream of this architecture cannot be captured.
        ValueError: a layer that does not exist.
    """
    asked = [word.strip() for word in words]
    _check_words(asked)
    rest = without(baseline, asked)
    if not rest:
        raise PromptError("every baseline word is a concept too; give other baseline words")
    chosen = _chosen(model, layers)
    rows = word_ids(model, [*asked, *rest], template)
    ends = last_streams(model, rows, chosen).astype(np.float64)
    array = ends[: len(asked)] - ends[len(asked) :].mean(axis=0)
    how = {"how": "concept", "template": template, "baseline": len(rest)}
    meta = {word: how | {"word": word} for word in asked}
    return Vectors(tuple(asked), array, chosen, "resid_post", identity, meta)


def without(baseline: Sequence[str], words: Sequence[str]) -> list[str]:
    """The baseline words that are none of the words, each once; upper case does not matter."""
    taken = {word.casefold() for word in words}
    found = {word.casefold(): word for word in baseline if word.casefold() not in taken}
    return [*found.values()]


def word_ids(model: Model, words: Sequence[str], template: str = TEMPLATE) -> list[list[int]]:
    """Token ids of the prompt for each word, ready for an answer.

    Raises:
        PromptError: the model has no tokenizer, or the template no ``{word}``.
    """
    if "{word}" not in template:
        raise PromptError(
            f"the template '{safe_text(template, limit=80)}' has no {{word}}; put it where the "
            "word belongs"
        )
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise PromptError(
            f"{model.name} has no tokenizer to read words with; make vectors from token ids of "
            "contrasting prompts"
        )
    chat = getattr(tokenizer, "chat_template", None) is not None
    rows = []
    for n, word in enumerate(words):
        text = template.replace("{word}", word)
        named = f"word{n}"
        prompt = Prompt(named, messages=(Message("user", text),)) if chat else Prompt(named, text)
        rows.append([int(i) for i in encode(prompt, tokenizer, vocab_size=model.vocab)])
    return rows


def last_streams(model: Model, rows: Sequence[Sequence[int]], layers: Sequence[int]) -> np.ndarray:
    """What leaves each layer at the last token of each prompt [prompt, layer, d_model], float32.

    Prompts of one length run together, so that nothing is padded.

    Raises:
        PromptError: a prompt that the model cannot be asked.
        ModelError: the residual stream of this architecture cannot be captured.
        ValueError: a layer that does not exist.
    """
    out = np.empty((len(rows), len(layers), model.d_model), np.float32)
    by_length: dict[int, list[int]] = {}
    for n, row in enumerate(rows):
        by_length.setdefault(len(row), []).append(n)
    for length, members in by_length.items():
        size = max(1, MOST_TOKENS // max(length, 1))
        for start in range(0, len(members), size):
            batch = members[start : start + size]
            asked = [list(rows[n]) for n in batch]
            run = model.run(asked, keep=["resid_post"], layers=layers, logits=False)
            ends = mx.stack([run["resid_post", i][:, -1] for i in layers], axis=1)
            out[batch] = np.array(ends.astype(mx.float32))
    return out


def _chosen(model: Model, layers: Sequence[int] | None) -> tuple[int, ...]:
    return tuple(range(model.n_layers)) if layers is None else tuple(sorted({*layers}))


def _check_words(words: Sequence[str]) -> None:
    if not words:
        raise PromptError("there is no concept word; give at least one")
    folded = [word.casefold() for word in words]
    for n, word in enumerate(folded):
        if not word:
            raise PromptError("a concept word is empty; give a word such as ocean")
        if word in folded[:n]:
            raise PromptError(f"the concept word '{safe_text(words[n], limit=40)}' is given twice")
