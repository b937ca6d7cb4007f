"""What the lens reads of one prompt: per layer and position the likeliest tokens and how sure.

Everything is compared with what the same run says in the end: ``kl`` is KL(end || lens) in nats,
0 at the last layer of the plain lens, whose reading is the model's own answer. That equality is
checked in every reading, so that a head that reads something else than the stream is found out.
"""

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from mlxroles.backend import mx, number
from mlxroles.edits import Edit
from mlxroles.errors import ModelError
from mlxroles.lens.projection import SITES, check, log_softmax, mixes_positions, projected
from mlxroles.lens.tuned import Tuned
from mlxroles.models.model import Model
from mlxroles.prompts import token_texts
from mlxroles.text import show_token

_SHOWN = 12
"""Positions that a notebook shows."""
TOLERANCE = {mx.float32: 2e-3, mx.float16: 2e-2, mx.bfloat16: 1e-1}
"""How far the last layer's logits may be from the model's, as a share of the largest of them."""


@dataclass(frozen=True, eq=False, repr=False)
class Reading:
    """The lens on one prompt; arrays are [layer, position, ...] over ``layers`` and ``positions``.

    Logs are natural. A rank counts the tokens with a larger logit: 0 is the top.
    """

    site: str
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    tokens: tuple[int, ...]
    """The whole prompt."""
    asked: tuple[int, ...]
    """Ids whose log-probability and rank were asked for."""
    top_ids: np.ndarray
    """[layer, position, k], the likeliest first."""
    top_log_prob: np.ndarray
    entropy: np.ndarray
    """[layer, position], in nats."""
    kl: np.ndarray
    """[layer, position], KL(end || lens) in nats."""
    end_ids: np.ndarray
    """[position], what the run itself finds likeliest."""
    end_rank: np.ndarray
    """[layer, position], rank of that token in the lens."""
    next_log_prob: np.ndarray
    """[layer, position], of the token that follows in the prompt; NaN after the last."""
    asked_log_prob: np.ndarray
    """[layer, position, id]"""
    asked_rank: np.ndarray
    last_logits: np.ndarray
    """[layer, vocab], the lens at the last of the positions."""
    end_logits: np.ndarray
    """[vocab], the run's own logits there."""
    end_error: float
    """Largest difference of the last layer's logits from the run's own; NaN where not compared."""
    decode: Callable[[Sequence[int]], list[str]] = field(
        repr=False, default=lambda ids: [str(i) for i in ids]
    )
    """Texts of token ids."""

    def __repr__(self) -> str:
        shape = f"{len(self.layers)} layers x {len(self.positions)} positions"
        return f"Reading of {self.site}: {shape}, top {self.top_ids.shape[-1]} tokens, kl, ranks"

    def _repr_html_(self) -> str:
        columns = list(range(len(self.positions)))[-_SHOWN:]
        prompt = self.decode([self.tokens[self.positions[n]] for n in columns])
        lines = [_line("th", ["layer", *prompt])]
        for at in reversed(range(len(self.layers))):
            texts = self.decode([int(self.top_ids[at, n, 0]) for n in columns])
            probs = np.exp(self.top_log_prob[at, columns, 0])
            cells = [f"{t} {p:.2f}" for t, p in zip(texts, probs, strict=True)]
            lines.append(_line("td", [str(self.layers[at]), *cells]))
        return f"<p>{html.escape(repr(self))}</p><table>{''.join(lines)}</table>"


def _line(tag: str, cells: Sequence[str]) -> str:
    """A row of an HTML table; the texts are escaped."""
    inner = "".join(f"<{tag}>{html.escape(show_token(cell))}</{tag}>" for cell in cells)
    return f"<tr>{inner}</tr>"


def read(
    model: Model,
    tokens: Sequence[int],
    *,
    site: str = "resid_post",
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    asked: Sequence[int] = (),
    top_k: int = 5,
    edits: Sequence[Edit] = (),
    tuned: Tuned | None = None,
) -> Reading:
    """The lens on one prompt, with or without edits and a tuned lens.

    Args:
        model: Any loaded model.
        tokens: Ids of the prompt.
        site: One of ``SITES``. ``attn_out`` and ``mlp_out`` are what a part alone would say.
        layers: Which layers; None for all that have the site.
        positions: Which positions, negative ones from the end; None for all.
        asked: Ids whose log-probability and rank are wanted everywhere.
        top_k: How many of the likeliest tokens are kept.
        edits: Interventions of the run that is read.
        tuned: Maps to go through before the head.

    Raises:
        ModelError: the model or site cannot be read, or the head reads something else.
        PromptError: a prompt that the model cannot be asked.
        ValueError: a layer, position or id that does not exist.
        FloatingPointError: logits that are no finite numbers.
    """
    check(model)
    if site not in SITES:
        raise ModelError(f"there is no lens on {site!r}; the sites are {', '.join(SITES)}")
    ids = [int(t) for t in tokens]
    where = _positions(positions, len(ids))
    run = model.run([ids], keep=[site], layers=layers, edits=edits, positions=where)
    assert run.logits is not None
    found = run.layers(site)
    streams = _streams(model, [run[site, i] for i in found], where)
    if tuned is not None:
        streams = tuned.apply(streams, found, site=site, n_layers=model.n_layers)
    own = run.logits[0]
    wanted = _checked_ids(asked, model.vocab)
    gathered = _Gathered(own, [ids[p + 1] if p + 1 < len(ids) else -1 for p in where], wanted)
    gathered.top_k = min(top_k, model.vocab)
    read_at = where if streams.shape[1] == len(ids) else list(range(len(where)))
    for rows, logits in projected(model, streams, read_at):
        gathered.add(rows, logits)
    compared = site == "resid_post" and found[-1] == model.n_layers - 1
    error = gathered.last_error() if compared else float("nan")
    if compared and error > _allowed(model, own):
        raise ModelError(
            f"there is no lens for {model.architecture}: its last layer's stream gives logits that "
            f"differ from the model's by {error:.2g}, so its head reads more than the stream"
        )
    shape = (len(found), len(where))
    return Reading(
        site,
        tuple(found),
        tuple(where),
        tuple(ids),
        wanted,
        **gathered.arrays(shape),
        end_error=error,
        decode=lambda ids: token_texts(ids, model.tokenizer),
    )


def _streams(model: Model, streams: Sequence[mx.array], where: Sequence[int]) -> mx.array:
    """[layer, position, d_model]; without the positions that nobody asks for, where that can be."""
    if mixes_positions(model):
        return mx.concatenate(list(streams))
    index = mx.array(list(where), dtype=mx.int32)
    return mx.concatenate([stream[:, index] for stream in streams])


def _positions(positions: Sequence[int] | None, length: int) -> list[int]:
    if positions is None:
        return list(range(length))
    for p in positions:
        if not -length <= p < length:
            raise ValueError(f"position {p} is outside 0..{length - 1}")
    found = sorted({p % length for p in positions})
    if not found:
        raise ValueError("no positions are named; leave it out to read all")
    return found


def _checked_ids(asked: Sequence[int], vocab: int) -> tuple[int, ...]:
    bad = [i for i in asked if not 0 <= i < vocab]
    if bad:
        raise ValueError(f"token id {bad[0]} is outside 0..{vocab - 1}")
    return tuple(int(i) for i in asked)


def _allowed(model: Model, own: mx.array) -> float:
    share = TOLERANCE.get(model.dtype, max(TOLERANCE.values()))
    return share * max(1.0, number(mx.abs(own).max()))


@dataclass(eq=False)
class _Gathered:
    """Numbers of rows as their logits come; rows count layer by layer."""

    own: mx.array
    """[position, vocab], the run's own logits, in the model's type."""
    following: list[int]
    """[position], the id that follows; -1 where none does."""
    asked: tuple[int, ...]
    top_k: int = 5
    end_ids: mx.array = field(init=False)
    parts: dict[str, list[np.ndarray]] = field(default_factory=dict)
    errors: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not np.isfinite(number(self.own.max()) - number(self.own.min())):
            raise FloatingPointError("the logits are not all finite numbers")
        self.end_ids = mx.argmax(self.own, axis=-1)

    def add(self, rows: slice, logits: mx.array) -> None:
        """Takes the logits [row, vocab] of some rows."""
        n = len(self.following)
        at = np.arange(rows.start, rows.stop) % n
        place = mx.array(at.astype(np.int32))
        own = mx.take(self.own, place, axis=0).astype(mx.float32)
        lens, end = log_softmax(logits), log_softmax(own)
        probs = mx.exp(end)
        top = mx.argpartition(-logits, self.top_k - 1, axis=-1)[:, : self.top_k]
        order = mx.argsort(-mx.take_along_axis(lens, top, axis=-1), axis=-1)
        top = mx.take_along_axis(top, order, axis=-1)
        following = np.array([self.following[p] for p in at])
        follows = mx.array(np.maximum(following, 0).astype(np.int32))[:, None]
        ends = mx.take(self.end_ids, place)[:, None]
        found = {
            "top_ids": top.astype(mx.int32),
            "top_log_prob": mx.take_along_axis(lens, top, axis=-1),
            "entropy": -(mx.exp(lens) * lens).sum(axis=-1),
            "kl": mx.maximum(mx.where(probs > 0, probs * (end - lens), 0).sum(axis=-1), 0),
            "end_rank": _rank(logits, ends)[:, 0],
            "next_log_prob": mx.take_along_axis(lens, follows, axis=-1)[:, 0],
        }
        ids = mx.broadcast_to(mx.array(self.asked, dtype=mx.int32), (len(at), len(self.asked)))
        found["asked_log_prob"] = mx.take_along_axis(lens, ids, axis=-1)
        found["asked_rank"] = _rank(logits, ids)
        mx.eval(list(found.values()))
        arrays = {name: np.array(array) for name, array in found.items()}
        if not np.isfinite(arrays["entropy"]).all():
            raise FloatingPointError("the lens gives logits that are not all finite numbers")
        arrays["next_log_prob"] = np.where(following < 0, np.nan, arrays["next_log_prob"])
        last = np.flatnonzero(at == n - 1)
        arrays["last_logits"] = (
            np.array(logits[mx.array(last.astype(np.int32))])
            if len(last)
            else np.zeros((0, logits.shape[-1]), np.float32)
        )
        self.errors += np.array(mx.abs(logits - own).max(axis=-1)).tolist()
        for name, array in arrays.items():
            self.parts.setdefault(name, []).append(array)

    def last_error(self) -> float:
        """Largest difference of the last layer's logits from the run's own."""
        return max(self.errors[-len(self.following) :])

    def arrays(self, shape: tuple[int, int]) -> dict[str, np.ndarray]:
        """Everything, [layer, position, ...]."""
        whole = {name: np.concatenate(parts) for name, parts in self.parts.items()}
        last = whole.pop("last_logits")
        return {name: array.reshape(*shape, *array.shape[1:]) for name, array in whole.items()} | {
            "last_logits": last,
            "end_ids": np.array(self.end_ids.astype(mx.int32)),
            "end_logits": np.array(self.own[-1].astype(mx.float32)),
        }


def _rank(logits: mx.array, ids: mx.array) -> mx.array:
    """Number of tokens with a larger logit [row, id], for ids [row, id]."""
    columns = [
        (logits > mx.take_along_axis(logits, ids[:, n : n + 1], axis=-1)).sum(axis=-1)
        for n in range(ids.shape[1])
    ]
    if not columns:
        return mx.zeros((logits.shape[0], 0), dtype=mx.int32)
    return mx.stack(columns, axis=-1).astype(mx.int32)
