"""Text that a model goes on with, with or without edits: mlx_lm's own generation under our tap.

``mlx_lm.generate_step`` drives: its caches, its chunks of the prompt, its look-ahead. Without an
edit it calls the model itself, so that the tokens are mlx_lm's by construction. With edits it
calls ``forward.steps.Steps``, which gives every call the edits of its positions. A run of the
whole text under the same edits says the same tokens; an edit for which that cannot hold is refused.
"""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlxroles.backend import mx
from mlxroles.edits import Edit
from mlxroles.errors import ModelError, PromptError
from mlxroles.forward.steps import Steps
from mlxroles.models import lasting
from mlxroles.models.model import Model, Tokens, as_rows
from mlxroles.text import safe_text

GREEDY = 0.0
"""The temperature at which the most probable token is taken."""


@dataclass(frozen=True)
class Settings:
    """How tokens are chosen and when generation ends.

    Raises:
        ValueError: a value that no generation could use.
        TypeError: a number of tokens or a stop id that is no integer.
    """

    max_tokens: int = 100
    """Most tokens to generate."""
    temperature: float = GREEDY
    """Divides the log-probabilities before sampling; 0 takes the most probable token."""
    top_p: float = 1.0
    """Samples from the fewest tokens that together have this probability."""
    seed: int = 0
    """Of the sampling; mlx_lm draws the same tokens after ``mx.random.seed`` with it."""
    stop: Sequence[int] | None = None
    """Ids that end the text; None for those of the model, ``()`` for none."""
    logprobs: bool = False
    """Whether the log-probability of each token is kept, in nats and before temperature."""

    def __post_init__(self) -> None:
        for number in (self.max_tokens, *(self.stop or ())):
            operator.index(number)
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}; at least 1 is needed")
        if not self.temperature >= 0 or not np.isfinite(self.temperature):
            raise ValueError(f"temperature is {self.temperature}; it must be 0 or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")


class Piece(NamedTuple):
    """One step of a text that grows."""

    token: int | None
    """The token; None in the last piece, which brings the end and what text was held back."""
    text: str
    """What the token adds to the text: nothing while a character is not complete."""
    logprob: float | None = None
    """Log-probability of the token in nats, where it was asked for."""
    finish: str | None = None
    """In the last piece: ``stop`` at a stop token, ``length`` after ``max_tokens``."""


@dataclass(frozen=True)
class Generation:
    """A generated text: ``tokens`` and ``text`` without the prompt and without the stop token."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str
    """As mlx_lm decodes it; the ids where the model has no tokenizer."""
    finish: str
    """``stop`` at a stop token, ``length`` after ``max_tokens``."""
    edits: tuple[str, ...] = ()
    """Each edit in words."""
    logprobs: tuple[float, ...] | None = None
    """Log-probability of each token in nats, where they were asked for."""

    def __repr__(self) -> str:
        """The text's beginning, how much there is of it and under how many edits."""
        plural = "" if len(self.edits) == 1 else "s"
        under = f", {len(self.edits)} edit{plural}" if self.edits else ""
        return f"Generation({self.text[:60]!r}, {len(self.tokens)} tokens, {self.finish}{under})"

    def _repr_html_(self) -> str:
        edits = "".join(f"<li>{escape(safe_text(line))}</li>" for line in self.edits)
        lines = [escape(safe_text(line)) for line in self.text.split("\n")]
        end = "ended by itself" if self.finish == "stop" else "as many as were asked for"
        return (
            f"<div><small>{len(self.tokens)} tokens after {len(self.prompt)}, {end}</small>"
            f"<pre style='white-space:pre-wrap'>{'<br>'.join(lines)}</pre>"
            + (f"<small>under<ul>{edits}</ul></small>" if edits else "")
            + "</div>"
        )


def generate(
    model: Model,
    tokens: Tokens | str,
    *,
    edits: Sequence[Edit] = (),
    prompt_edits: Sequence[Edit] = (),
    generated_edits: Sequence[Edit] = (),
    **settings: Any,
) -> Generation:
    """The text that the model goes on with after a prompt.

    Args:
        model: Any model.
        tokens: Ids of one prompt, or a text, which goes in as it is, without a chat template.
        edits: Hold everywhere, in the prompt and in what is generated. Positions that an edit
            names are absolute: the first generated token has the number of prompt tokens.
        prompt_edits: Hold while the prompt is read: later tokens feel them through the cache.
        generated_edits: Hold from the first generated token on, which is itself chosen before.
        settings: Those of ``Settings``: max_tokens, temperature, top_p, seed, stop, logprobs.

    Raises:
        PromptError: a prompt that the model cannot be asked, or that is too long to go on from.
        ModelError: an edit that this architecture cannot carry out, or not with a cache, naming
            it and why; also edits that made the logits something other than numbers.
        ValueError: an edit of a layer, head or position that does not exist or with values that
            do not fit; a setting that cannot be.
    """
    groups = {"edits": edits, "prompt_edits": prompt_edits, "generated_edits": generated_edits}
    pieces = list(stream(model, tokens, **groups, **settings))
    chosen = Settings(**settings)
    numbers = tuple(p.logprob for p in pieces if p.logprob is not None)
    return Generation(
        prompt=tuple(prompt_ids(model, tokens)),
        tokens=tuple(p.token for p in pieces if p.token is not None),
        text="".join(p.text for p in pieces),
        finish=pieces[-1].finish or "length",
        edits=lasting.in_words(**groups),
        logprobs=numbers if chosen.logprobs else None,
    )


def stream(
    model: Model,
    tokens: Tokens | str,
    *,
    edits: Sequence[Edit] = (),
    prompt_edits: Sequence[Edit] = (),
    generated_edits: Sequence[Edit] = (),
    **settings: Any,
) -> Iterator[Piece]:
    """The pieces of the text as they come; arguments and errors are those of ``generate``.

    What is wrong is told before the first piece is asked for. Between two pieces the model is
    free: other texts may be generated in turns with this one.
    """
    chosen = Settings(**settings)
    ids = prompt_ids(model, tokens)
    check_length(model, len(ids), chosen.max_tokens)
    spans = lasting.of(
        len(ids),
        chosen.max_tokens,
        edits=edits,
        prompt_edits=prompt_edits,
        generated_edits=generated_edits,
    )
    from mlx_lm.models.cache import make_prompt_cache

    caches = make_prompt_cache(model.module)
    driven: Any = model.module
    if spans:
        if model.network.anatomy.refused:
            raise ModelError(f"{model.architecture}: {model.network.anatomy.refused}")
        driven = Steps(model.network, spans, caches)
        lasting.check(model, spans, caches, len(ids))
    return _pieces(model, ids, driven, caches, chosen)


def _pieces(
    model: Model, ids: list[int], driven: Any, caches: list[Any], chosen: Settings
) -> Iterator[Piece]:
    from mlx_lm.generate import generate_step

    stop = stop_ids(model) if chosen.stop is None else frozenset(chosen.stop)
    words = _Words(model)
    told = chosen.logprobs or isinstance(driven, Steps)
    finish = "length"
    steps = generate_step(
        mx.array(ids),
        driven,
        max_tokens=chosen.max_tokens,
        sampler=_sampler(chosen),
        prompt_cache=caches,
        prefill_step_size=lasting.CHUNK,
    )
    for n, (drawn, logprobs) in enumerate(steps):
        token = int(drawn)
        number = float(np.array(logprobs[token].astype(mx.float32))) if told else None
        if number is not None and np.isnan(number):
            raise ModelError(
                f"the logits of {model.name} are no numbers after {n} generated tokens; "
                "edit with smaller values"
            )
        if token in stop:
            finish = "stop"
            break
        yield Piece(token, words.after(token), number if chosen.logprobs else None)
    yield Piece(None, words.rest(), finish=finish)


def prompt_ids(model: Model, tokens: Tokens | str) -> list[int]:
    """The ids of one prompt, checked.

    Raises:
        PromptError: no token, one that the model does not have, or a text without a tokenizer.
        ValueError: several prompts.
    """
    if isinstance(tokens, str):
        from mlxroles.prompts import Prompt, encode

        if not tokens:
            raise PromptError("a prompt has no tokens; give at least one")
        prompt = Prompt("text", text=tokens)
        return [int(i) for i in encode(prompt, model.tokenizer, vocab_size=model.vocab)]
    rows = as_rows(tokens)
    if len(rows) != 1:
        raise ValueError(f"{len(rows)} prompts were given; a text goes on from one")
    model.check_tokens(rows)
    return rows[0]


def check_length(model: Model, n_prompt: int, max_tokens: int) -> None:
    """Refuses more positions than the model can compute.

    Raises:
        PromptError: with the numbers of tokens and the limit.
    """
    whole = f"{n_prompt} tokens of the prompt and {max_tokens} more"
    table, longest = model.table_length, model.longest
    if table is not None and n_prompt + max_tokens > table:
        raise PromptError(
            f"{whole} do not fit: {model.name} has a table of {table} positions; generate "
            f"{max(table - n_prompt, 0)} tokens at most"
        )
    if longest is not None and n_prompt + max_tokens > longest:
        raise PromptError(
            f"{whole} do not fit: mlx_lm computes {model.name} as its config says only up to "
            f"{longest} ({model.longest_reason}); generate {max(longest - n_prompt, 0)} tokens at "
            "most, or pass --allow-window-mismatch to go on"
        )


def stop_ids(model: Model) -> frozenset[int]:
    """The ids that end a text, as mlx_lm takes them from the configs and the tokenizer."""
    named = model.config.get("eos_token_id")
    found = {named} if isinstance(named, int) else {*(named or ())}
    own = getattr(model.tokenizer, "eos_token_id", None)
    return frozenset(found | ({own} if own is not None else set()))


def _sampler(chosen: Settings) -> Any:
    """What picks a token from log-probabilities [1, vocab], with keys of its own."""
    from mlx_lm.sample_utils import apply_top_p, make_sampler

    if chosen.temperature == GREEDY:
        return make_sampler(temp=0.0)
    key = mx.random.key(chosen.seed)

    def sampler(logprobs: mx.array) -> mx.array:
        nonlocal key
        if chosen.top_p < 1:
            logprobs = apply_top_p(logprobs, chosen.top_p)
        key, now = mx.random.split(key)
        return mx.random.categorical(logprobs * (1 / chosen.temperature), key=now)

    return sampler


class _Words:
    """The text of tokens as they come, by mlx_lm's detokenizer; ids without a tokenizer."""

    def __init__(self, model: Model) -> None:
        found = None if model.tokenizer is None else _detokenizing(model.path)
        self.of = None if found is None else found.detokenizer
        self.begun = False

    def after(self, token: int) -> str:
        """What this token adds."""
        if self.of is None:
            space, self.begun = " " if self.begun else "", True
            return f"{space}{token}"
        self.of.add_token(token)
        return self.of.last_segment

    def rest(self) -> str:
        """What was held back for a character to become complete."""
        if self.of is None:
            return ""
        self.of.finalize()
        return self.of.last_segment


@lru_cache(maxsize=4)
def _detokenizing(folder: Path) -> Any:
    """mlx_lm's tokenizer of a folder, which knows how its tokens become text piece by piece."""
    from mlx_lm.tokenizer_utils import load

    return load(folder, {"local_files_only": True, "trust_remote_code": False})
