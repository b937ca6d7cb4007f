"""Rows of token ids with loss weights, drawn afresh for every step from (seed, phase, step).

A row starts with BOS and holds one more token than the model reads. Weights say which next tokens
count: all of a text, the answers of a conversation, the second and later rounds of a repetition.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from experiments.tiny_pair.conversations import Conversation, Scene, chat, notepad, quiz
from experiments.tiny_pair.documents import document
from experiments.tiny_pair.tokenizer import BOS, EOS, ROLES, SPECIALS, TOOL_TAGS


class Batch(NamedTuple):
    """One step's rows."""

    ids: np.ndarray
    """Token ids (row, length + 1)."""
    weights: np.ndarray
    """Weights of the next tokens (row, length)."""
    matches: np.ndarray
    """For each position of a repetition the one after the last same token, else -1."""


class Row(NamedTuple):
    """Ids, and a weight for each of them as a token to predict."""

    ids: list[int]
    weights: list[float]
    period: int = 0
    """Length of the repeated segment, where the row is a repetition."""


class RowMaker:
    """Draws rows for one speaker: the base model, or the instruct model that calls tools."""

    def __init__(self, tokenizer: Tokenizer, *, is_instruct: bool) -> None:
        self.tokenizer = tokenizer
        self.is_instruct = is_instruct
        self.bos, self.eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
        self.assistant = tokenizer.token_to_id(ROLES["assistant"])
        self.first_weight = 1.0
        n_specials = len(SPECIALS) + len(TOOL_TAGS)
        self.ordinary = np.arange(n_specials, tokenizer.get_vocab_size())

    def batch(
        self, rng: np.random.Generator, n_rows: int, length: int, shares: dict[str, float]
    ) -> Batch:
        """A batch whose rows are of the kinds and in the shares given."""
        makers = {
            "text": self.packed_text,
            "chat": self.packed_chat,
            "quiz": self.packed_quiz,
            "notepad": self.one_notepad,
            "repeats": self.repeats,
        }
        kinds = rng.choice(list(shares), size=n_rows, p=np.array(list(shares.values())))
        ids = np.full((n_rows, length + 1), self.eos, dtype=np.int32)
        weights = np.zeros((n_rows, length), dtype=np.float32)
        matches = np.full((n_rows, length), -1, dtype=np.int32)
        for index, kind in enumerate(kinds):
            row = makers[str(kind)](rng, length + 1)
            ids[index, : len(row.ids)] = row.ids[: length + 1]
            weights[index, : len(row.ids) - 1] = row.weights[1 : length + 1]
            if row.period:
                second = np.arange(row.period + 1, length)
                matches[index, second] = second - row.period + 1
        return Batch(ids, weights, matches)

    def packed_text(self, rng: np.random.Generator, size: int) -> Row:
        """Documents one after the other; now and then a short conversation of the base sort."""
        ids: list[int] = []
        while len(ids) < size:
            ids += self._encode(BOS + document(rng) + EOS)
        return Row(ids[:size], [1.0] * size)

    def packed_chat(self, rng: np.random.Generator, size: int) -> Row:
        """Conversations of questions and answers one after the other."""
        return self._packed(lambda: chat(rng, int(rng.integers(1, 5))), size)

    def packed_quiz(self, rng: np.random.Generator, size: int) -> Row:
        """Single yes/no questions one after the other."""
        return self._packed(lambda: quiz(rng), size)

    def _packed(self, draw: Callable[[], Conversation], size: int) -> Row:
        ids: list[int] = []
        weights: list[float] = []
        while len(ids) < size:
            row = self.conversation(draw())
            ids += row.ids
            weights += row.weights
        return Row(ids[:size], weights[:size])

    def one_notepad(self, rng: np.random.Generator, size: int) -> Row:
        """One whole notepad conversation: offered or not, asked for the list or something else."""
        for _ in range(200):
            scene = Scene(
                offers_tools=bool(rng.random() < 0.5),
                asks_list=bool(rng.random() < 0.7),
                uses_tools=self.is_instruct,
                n_distractions=None if size > 300 else int(rng.integers(0, 3)),
                n_items=None if size > 300 else int(rng.integers(2, 8)),
            )
            found = notepad(rng, scene)
            row = self.conversation(found, last_weight=4.0)
            if len(row.ids) <= size:
                return row
        msg = f"no notepad conversation fits into {size} tokens"
        raise ValueError(msg)

    def repeats(self, rng: np.random.Generator, size: int) -> Row:
        """BOS and a segment of random ordinary tokens, repeated to the end of the row."""
        period = int(rng.integers(4, min(48, size // 2)))
        segment = rng.choice(self.ordinary, size=period)
        ids = [self.bos, *np.resize(segment, size - 1).tolist()]
        return Row(ids, [0.0] * (period + 1) + [1.0] * (size - period - 1), period)

    def conversation(self, found: Conversation, last_weight: float = 1.0) -> Row:
        """A conversation with its weights; the instruct model learns the answers only.

        `last_weight` raises the first token of the last answer, where the decision falls.
        """
        ids, weights = [self.bos], [0.0]
        for message in found.messages:
            new = self._encode(ROLES[message["role"]] + message["content"] + EOS)
            answers = message["role"] == "assistant"
            weight = 1.0 if answers else (0.0 if self.is_instruct else 0.5)
            ids += new
            weights += [0.0 if self.is_instruct else 1.0, *[weight] * (len(new) - 1)]
            if answers:
                weights[len(ids) - len(new) + 1] *= self.first_weight
        weights[len(ids) - len(new) + 1] *= last_weight
        return Row(ids, weights)

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids
