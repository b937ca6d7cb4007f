"""Plain measurements on the tiny pair: its own loop over blocks, nothing of the toolkit.

Everything is the slow and obvious way, so that the toolkit's engine can be held against it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.llama import Model, ModelArgs
from tokenizers import Tokenizer

from experiments.tiny_pair.tokenizer import BOS, ROLES, render


class Speaker(NamedTuple):
    """A model with its tokenizer."""

    model: Model
    tokenizer: Tokenizer

    @property
    def tool_id(self) -> int:
        """Id of the tag that opens a tool call."""
        return self.tokenizer.token_to_id("<tool_call>")

    @property
    def eos_id(self) -> int:
        """Id of the token that ends a turn."""
        return self.tokenizer.token_to_id("<|eos|>")


class Trace(NamedTuple):
    """Residual streams after each block (layer, position, d_model), patterns, logits."""

    streams: list[mx.array]
    patterns: list[np.ndarray]
    logits: mx.array


def load(folder: Path) -> Speaker:
    """The model in a folder."""
    config = json.loads((folder / "config.json").read_text())
    model = Model(ModelArgs.from_dict(config))
    model.load_weights(str(folder / "model.safetensors"))
    return Speaker(model, Tokenizer.from_file(str(folder / "tokenizer.json")))


def prompt_ids(tokenizer: Tokenizer, messages: list[dict[str, str]]) -> list[int]:
    """Token ids of a conversation with the generation prompt."""
    text = render(messages) + ROLES["assistant"]
    return tokenizer.encode(text, add_special_tokens=False).ids


def question_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of one question in the chat format."""
    return prompt_ids(tokenizer, [{"role": "user", "content": text}])


def text_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a plain text."""
    return tokenizer.encode(BOS + text, add_special_tokens=False).ids


def head(model: Model, stream: mx.array) -> mx.array:
    """Logits of a residual stream: final norm, then the tied embeddings."""
    return model.model.embed_tokens.as_linear(model.model.norm(stream))


def blocks(model: Model, stream: mx.array, first: int) -> mx.array:
    """The stream after the blocks from `first` on."""
    for layer in model.model.layers[first:]:
        stream = layer(stream, "causal", None)
    return stream


def trace(model: Model, ids: list[int]) -> Trace:
    """One run with every stream and every attention pattern."""
    stream = model.model.embed_tokens(mx.array([ids]))
    streams, patterns = [], []
    for layer in model.model.layers:
        patterns.append(np.array(pattern(layer, stream)[0]))
        stream = layer(stream, "causal", None)
        streams.append(stream)
    return Trace(streams, patterns, head(model, stream)[0])


def pattern(layer: nn.Module, stream: mx.array) -> mx.array:
    """Attention weights (batch, head, query, key) of a block that reads the stream."""
    attention = layer.self_attn
    x = layer.input_layernorm(stream)
    rows, length = x.shape[:2]
    n_heads, n_kv_heads = attention.n_heads, attention.n_kv_heads
    q = attention.q_proj(x).reshape(rows, length, n_heads, -1).transpose(0, 2, 1, 3)
    k = attention.k_proj(x).reshape(rows, length, n_kv_heads, -1).transpose(0, 2, 1, 3)
    q, k = attention.rope(q), mx.repeat(attention.rope(k), n_heads // n_kv_heads, axis=1)
    scores = (q @ k.transpose(0, 1, 3, 2)) * attention.scale
    causal = mx.tril(mx.ones((length, length), dtype=mx.bool_))
    return mx.softmax(mx.where(causal, scores, mx.array(-mx.inf)), axis=-1)


def last_probabilities(logits: mx.array) -> np.ndarray:
    """Probabilities of the next token after the last position."""
    return np.array(mx.softmax(logits.reshape(-1, logits.shape[-1])[-1]))


def next_token(model: Model, ids: list[int]) -> np.ndarray:
    """Probabilities of the token after the prompt."""
    return last_probabilities(model(mx.array([ids]))[0])


def generate(speaker: Speaker, ids: list[int], limit: int = 60) -> str:
    """The greedy continuation, up to the end of the turn."""
    new: list[int] = []
    while len(new) < limit:
        best = int(next_token(speaker.model, ids + new).argmax())
        if best == speaker.eos_id:
            break
        new.append(best)
    return speaker.tokenizer.decode(new, skip_special_tokens=False)


class Sweep(NamedTuple):
    """P(tool tag) of the recipient by patched layer, and of both models unpatched."""

    patched: list[float]
    recipient: float
    donor: float

    def recovery(self) -> np.ndarray:
        """Share of the way from the recipient's to the donor's probability, by layer."""
        return (np.array(self.patched) - self.recipient) / (self.donor - self.recipient)

    def crossing(self) -> int:
        """The first layer that recovers half; the number of layers where none does."""
        above = np.flatnonzero(self.recovery() >= 0.5)
        return int(above[0]) if len(above) else len(self.patched)


def sweep(donor: Speaker, recipient: Speaker, ids: list[int]) -> Sweep:
    """Replaces the recipient's whole stream after each block by the donor's, in turn."""
    given, own = trace(donor.model, ids), trace(recipient.model, ids)
    patched = []
    for layer, stream in enumerate(given.streams):
        end = blocks(recipient.model, stream, layer + 1)
        patched.append(last_probabilities(head(recipient.model, end)[0]))
    tool = donor.tool_id
    return Sweep(
        [float(p[tool]) for p in patched],
        float(last_probabilities(own.logits)[tool]),
        float(last_probabilities(given.logits)[tool]),
    )


class HeadScores(NamedTuple):
    """Mean attention weights by (layer, head) on repeated random tokens."""

    induction: np.ndarray
    """From the second occurrence of a token to the token after its first occurrence."""
    previous: np.ndarray
    """To the position before."""
    entropy: np.ndarray
    """Entropy of the rows in nats."""
    repeat_loss: float
    """Cross-entropy in nats of the second round."""


def head_scores(speaker: Speaker, rng: np.random.Generator, n_rows: int = 12) -> HeadScores:
    """Induction, previous-token and entropy scores on rows of BOS and 32 random tokens twice."""
    period, vocab = 32, speaker.tokenizer.get_vocab_size()
    sums = None
    losses = []
    for _ in range(n_rows):
        segment = rng.integers(7, vocab, size=period).tolist()
        ids = [0, *segment, *segment]
        found = trace(speaker.model, ids)
        weights = np.stack(found.patterns)
        query = np.arange(period + 1, 2 * period + 1)
        later = np.arange(2, len(ids))
        rows = np.stack(
            [
                weights[:, :, query, query - period + 1].mean(-1),
                weights[:, :, later, later - 1].mean(-1),
                -(weights * np.log(weights + 1e-12)).sum(-1).mean(-1),
            ]
        )
        sums = rows if sums is None else sums + rows
        logs = np.array(found.logits - mx.logsumexp(found.logits, axis=-1, keepdims=True))
        predictors = np.arange(period + 1, 2 * period)
        losses.append(-logs[predictors, np.array(ids)[predictors + 1]].mean())
    return HeadScores(*(sums / n_rows), float(np.mean(losses)))


def text_loss(speaker: Speaker, texts: list[str]) -> float:
    """Mean cross-entropy in nats per token of plain texts."""
    total, count = 0.0, 0
    for text in texts:
        ids = text_ids(speaker.tokenizer, text)
        logits = speaker.model(mx.array([ids[:-1]]))[0]
        logs = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        total -= float(logs[np.arange(len(ids) - 1), ids[1:]].sum())
        count += len(ids) - 1
    return total / count
