"""Trains a tuned lens: per layer the affine map that brings the lens near to the model's answer.

The loss is KL(end || lens), averaged over positions (Belrose et al. 2023). The stream is centred
and scaled per dimension for training, so that one learning rate serves every layer and width; the
maps that come out are those of the raw stream. Texts are split three ways: what trains, what
decides when to stop, and what the gain is measured on, which nothing was chosen by. Texts that
begin alike have the same streams there: such positions serve only where they come first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.optimizers as optim
import numpy as np

from mlxroles.backend import mx
from mlxroles.errors import ModelError, PromptError
from mlxroles.lens.projection import (
    BLOCK,
    check,
    log_softmax,
    mixes_positions,
)
from mlxroles.models.model import Model

LEAST_TEXTS = 10
"""Texts without which there is none to hold out."""

HELD = 1 << 28
"""Bytes of the end's log-probabilities that are held; beyond it they are made for every step."""

_TINY = 1e-37
"""The least probability of a mean answer, so that its log is a number."""

CHECKS, PATIENCE = 20, 4
"""How often training looks at the texts that decide when it is over, and how often in vain."""


@dataclass(frozen=True)
class Settings:
    """How a map is trained."""

    steps: int = 400
    rate: float = 0.1
    """Learning rate at the start, over the width of the stream; it falls to 0 in a line."""
    decay: float = 1.0
    """Weight decay, towards the plain lens."""
    batch: int = 256
    """Positions per step; fewer where the vocabulary is large."""


class Split(NamedTuple):
    """Which texts serve for what; indices, ascending."""

    train: tuple[int, ...]
    stop: tuple[int, ...]
    held_out: tuple[int, ...]


class Streams(NamedTuple):
    """What leaves a layer, and the model, for many texts: their positions one after the other."""

    layer: np.ndarray
    """[position, d_model]"""
    end: np.ndarray
    """[position, d_model], what leaves the last layer."""
    following: np.ndarray
    """[position], the id that follows; -1 where none does."""
    text: np.ndarray
    """[position], the text that it belongs to."""
    prefix: np.ndarray
    """[position], a number for the tokens up to there: equal where streams are equal."""


class Fitted(NamedTuple):
    """The map of one layer, and how it does on texts that it has not seen."""

    weight: np.ndarray
    bias: np.ndarray
    kl: np.ndarray
    """[lens, text], mean KL(end || lens) per held-out text, for the plain and the tuned lens."""
    loss: np.ndarray
    """[lens, text], mean negative log-probability of the token that follows, the same way."""
    constant: np.ndarray
    """[text], mean KL(end || q) of the one answer q that is best on the training texts: what a
    lens has that reads nothing."""
    best_step: int
    """The step whose map is kept; 0 is the plain lens."""


def split(n_texts: int, rng: np.random.Generator) -> Split:
    """A tenth of the texts decide when to stop, a fifth measure the gain, the others train.

    Raises:
        PromptError: there are too few.
    """
    if n_texts < LEAST_TEXTS:
        raise PromptError(
            f"a tuned lens needs {LEAST_TEXTS} texts or pieces of texts, so that some can be held "
            f"out; found {n_texts}: name more with --prompt"
        )
    order = rng.permutation(n_texts)
    held, stop = max(2, n_texts // 5), max(1, n_texts // 10)
    parts = (order[held + stop :], order[held : held + stop], order[:held])
    return Split(*(tuple(sorted(int(i) for i in part)) for part in parts))


def streams_of(
    model: Model, texts: Sequence[Sequence[int]], layer: int, *, site: str = "resid_post"
) -> Streams:
    """Runs the texts; their first positions, where many models park attention, are left out.

    Raises:
        ModelError: the model or site cannot be read.
    """
    check(model)
    if mixes_positions(model):
        raise ModelError(
            f"no tuned lens can be fitted on {model.architecture}: its head reads positions "
            "together"
        )
    last = model.n_layers - 1
    rows, ends, following, text, prefix = [], [], [], [], []
    known: dict[tuple[int, int], int] = {}
    for n, ids in enumerate(texts):
        sites = [site] if site == "resid_post" else [site, "resid_post"]
        run = model.run([list(ids)], keep=sites, layers=sorted({layer, last}), logits=False)
        rows.append(_numbers(run[site, layer][0, 1:]))
        ends.append(_numbers(run["resid_post", last][0, 1:]))
        following += [*ids[2:], -1]
        text += [n] * (len(ids) - 1)
        at = -1
        for token in ids:
            at = known.setdefault((at, int(token)), len(known))
            prefix.append(at)
        del prefix[-len(ids)]
    found = Streams(
        np.concatenate(rows),
        np.concatenate(ends),
        *(np.array(numbers) for numbers in (following, text, prefix)),
    )
    if not (np.isfinite(found.layer).all() and np.isfinite(found.end).all()):
        raise FloatingPointError("the streams are not all finite numbers")
    return found


def _numbers(stream: mx.array) -> np.ndarray:
    return np.array(stream.astype(mx.float32))


def fit(
    model: Model,
    streams: Streams,
    parts: Split,
    rng: np.random.Generator,
    settings: Settings | None = None,
) -> Fitted:
    """Trains the map of one layer on the texts of a split.

    Raises:
        PromptError: the texts repeat each other, so that none is unseen.
        FloatingPointError: training left the finite numbers.
    """
    return _Fit(model, streams, parts, settings or Settings()).run(rng)


def batch_size(how: Settings, vocab: int) -> int:
    """Positions per step, at most."""
    return min(how.batch, max(16, BLOCK // (8 * max(vocab, 1))))


class _Fit:
    """The training of one layer's map."""

    def __init__(self, model: Model, streams: Streams, parts: Split, how: Settings) -> None:
        self.model, self.streams, self.how = model, streams, how
        self.rows = _rows(streams, parts)
        seen = streams.layer[self.rows["train"]]
        self.centre = seen.mean(axis=0)
        self.size = float(np.sqrt(np.mean((seen - self.centre) ** 2))) or 1.0
        self.scale = np.maximum(seen.std(axis=0), 1e-2 * self.size)
        width = seen.shape[1]
        self.params: dict[str, mx.array] = {
            "weight": mx.zeros((width, width)),
            "bias": mx.zeros((width,)),
        }
        self.end = self._whole_end()
        self.batch = min(batch_size(how, model.vocab), len(seen))

    def run(self, rng: np.random.Generator) -> Fitted:
        """Trains, keeps the best step, and measures the held-out texts."""
        how, width = self.how, self.centre.shape[0]
        rate = how.rate / width
        schedule = optim.linear_schedule(rate, 0.0, how.steps)
        optimizer = optim.AdamW(learning_rate=schedule, weight_decay=how.decay)
        gradient = mx.value_and_grad(self._loss)
        best, best_step, best_params = self._mean_kl("stop"), 0, dict(self.params)
        every = max(1, how.steps // CHECKS)
        train = self.rows["train"]
        for step in range(1, how.steps + 1):
            rows = rng.choice(train, self.batch, replace=len(train) < self.batch)
            _, grads = gradient(self.params, *self._arrays(rows))
            self.params = optimizer.apply_gradients(grads, self.params)
            mx.eval(self.params, optimizer.state)
            if step % every == 0 or step == how.steps:
                now = self._mean_kl("stop")
                if now < best:
                    best, best_step, best_params = now, step, dict(self.params)
                elif step - best_step >= PATIENCE * every:
                    break
        self.params = best_params
        weight, bias = self._folded()
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise FloatingPointError("the tuned lens is not all finite numbers")
        kl, loss, constant = self._held_out()
        return Fitted(weight, bias, kl, loss, constant, best_step)

    def _arrays(self, rows: np.ndarray) -> tuple[mx.array, mx.array]:
        """Streams [row, d_model] and the log-probabilities of the end [row, vocab]."""
        h = mx.array(self.streams.layer[rows])
        if self.end is not None:
            return h, mx.take(self.end, mx.array(rows.astype(np.int32)), axis=0)
        return h, mx.stop_gradient(self._log_probs(mx.array(self.streams.end[rows])))

    def _whole_end(self) -> mx.array | None:
        """Log-probabilities of the end at every position, where all of them are little to hold."""
        n = len(self.streams.end)
        if 4 * n * self.model.vocab > HELD:
            return None
        parts = [
            self._log_probs(mx.array(self.streams.end[rows])) for rows in self._blocks(np.arange(n))
        ]
        whole = mx.concatenate(parts)
        mx.eval(whole)
        return whole

    def _log_probs(self, h: mx.array) -> mx.array:
        logits = self.model.unembed(h[None].astype(self.model.dtype))[0]
        return log_softmax(logits.astype(mx.float32))

    def _mapped(self, params: dict[str, mx.array], h: mx.array) -> mx.array:
        x = (h - mx.array(self.centre)) / mx.array(self.scale)
        # a bias of its own rate: all the weights of a column move together, a bias is alone
        moved = x @ params["weight"] + params["bias"] * float(np.sqrt(self.centre.shape[0]))
        return h + self.size * moved

    def _loss(self, params: dict[str, mx.array], h: mx.array, end: mx.array) -> mx.array:
        return _kl(end, self._log_probs(self._mapped(params, h))).mean()

    def _mean_kl(self, part: str) -> float:
        rows = self.rows[part]
        total = 0.0
        for block in self._blocks(rows):
            h, end = self._arrays(block)
            total += float(np.array(_kl(end, self._log_probs(self._mapped(self.params, h))).sum()))
        return total / len(rows)

    def _blocks(self, rows: np.ndarray) -> list[np.ndarray]:
        size = max(1, BLOCK // (8 * self.model.vocab))
        return [rows[i : i + size] for i in range(0, len(rows), size)]

    def _folded(self) -> tuple[np.ndarray, np.ndarray]:
        """Weight and bias on the raw stream."""
        weight = np.array(self.params["weight"], dtype=np.float64)
        bias = np.array(self.params["bias"], dtype=np.float64) * np.sqrt(weight.shape[0])
        weight = self.size * weight / self.scale[:, None]
        bias = self.size * bias - self.centre @ weight
        return weight.astype(np.float32), bias.astype(np.float32)

    def _mean_answer(self) -> mx.array:
        """Log of the model's mean answer on the training texts [1, vocab]."""
        rows, total = self.rows["train"], mx.zeros((self.model.vocab,))
        for block in self._blocks(rows):
            total = total + mx.exp(self._arrays(block)[1]).sum(axis=0)
            mx.eval(total)
        return mx.log(mx.maximum(total / len(rows), _TINY))[None]

    def _held_out(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Per held-out text the mean KL and loss [lens, text], and the KL of a constant [text]."""
        rows, mean = self.rows["held_out"], self._mean_answer()
        kl, loss = np.zeros((3, len(rows))), np.full((2, len(rows)), np.nan)
        start = 0
        for block in self._blocks(rows):
            stop = start + len(block)
            h, end = self._arrays(block)
            following = self.streams.following[block]
            follows = mx.array(np.maximum(following, 0).astype(np.int32))[:, None]
            for n, stream in enumerate((h, self._mapped(self.params, h))):
                lens = self._log_probs(stream)
                kl[n, start:stop] = np.array(_kl(end, lens))
                said = -np.array(mx.take_along_axis(lens, follows, axis=-1)[:, 0])
                loss[n, start:stop] = np.where(following < 0, np.nan, said)
            kl[2, start:stop] = np.array(_kl(end, mean))
            start = stop
        texts = self.streams.text[rows]
        plain, tuned, constant = _by_text(kl, texts)
        return np.stack([plain, tuned]), _by_text(loss, texts), constant


def _rows(streams: Streams, parts: Split) -> dict[str, np.ndarray]:
    """Positions by what they serve for; those that an earlier part has seen are left out.

    Raises:
        PromptError: nothing is left of a part.
    """
    found: dict[str, np.ndarray] = {}
    seen = np.zeros(0, dtype=np.int64)
    for name, part in parts._asdict().items():
        rows = np.flatnonzero(np.isin(streams.text, part))
        found[name] = rows[~np.isin(streams.prefix[rows], seen)]
        seen = np.union1d(seen, streams.prefix[rows])
        if not len(found[name]):
            raise PromptError(
                "the texts repeat each other: none is left that the fit has not seen; name other "
                "texts with --prompt"
            )
    return found


def _kl(end: mx.array, lens: mx.array) -> mx.array:
    """KL(end || lens) in nats of every row of log-probabilities."""
    probs: Any = mx.exp(end)
    return (probs * (end - lens)).sum(axis=-1)


def _by_text(values: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Means over the positions of each text, [lens, text]; NaN where a text has none."""
    named = np.unique(texts)
    found = np.full((len(values), len(named)), np.nan)
    for at, text in enumerate(named):
        for lens in range(len(values)):
            ours = values[lens, texts == text]
            ours = ours[np.isfinite(ours)]
            if len(ours):
                found[lens, at] = ours.mean()
    return found
