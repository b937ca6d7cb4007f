"""A loaded model: its sizes, one forward under keeps and edits, embedding, unembedding."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mlx.utils import tree_flatten

from mlxroles import notebook
from mlxroles.anatomy import examine
from mlxroles.backend import mx, nn
from mlxroles.edits import Edit
from mlxroles.errors import PromptError
from mlxroles.forward import Network, Prefix, Run, Start, Summary, forward, prefix_of
from mlxroles.models import sharded, weights
from mlxroles.ranks import Ranks
from mlxroles.text import format_bytes, safe_text

if TYPE_CHECKING:
    from mlxroles.models.generate import Generation

LEARNED_POSITIONS = ("gpt2", "gpt_bigcode")
"""Architectures with a table of positions: beyond its end MLX would read whatever lies there."""

Tokens = Sequence[int] | Sequence[Sequence[int]] | np.ndarray | mx.array


@dataclass(eq=False, repr=False)
class Model:
    """Any mlx_lm model, run layer by layer; made by ``load`` from a folder or by ``wrap``.

    Layers, heads and positions count from 0; ``layer=7`` means block 7, whose output is its
    ``resid_post``.
    """

    module: nn.Module
    config: dict[str, Any]
    name: str = "model"
    path: Path | None = None
    repairs: tuple[str, ...] = ()
    """What mlx_lm would have read wrongly from the config, and was put right."""
    warnings: tuple[str, ...] = ()
    longest: int | None = None
    """Longest prompt for which mlx_lm computes what the config says; None without a limit."""
    longest_reason: str = ""
    ranks: Ranks | None = None
    """The processes that hold the model together; None where this one holds all of it."""
    network: Network = field(init=False)

    def __post_init__(self) -> None:
        anatomy = examine(self.module)
        if self.ranks is not None:
            anatomy = sharded.whole(anatomy, self.ranks)
        self.network = Network(self.module, anatomy, self.ranks)

    @property
    def architecture(self) -> str:
        """Name of the mlx_lm model file."""
        return self.network.architecture

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.network.layers)

    @property
    def n_heads(self) -> int:
        """Query heads of the first block with attention; 0 for a model without."""
        return next((b.heads for b in self.network.anatomy.blocks if b.heads), 0)

    @property
    def n_kv_heads(self) -> int:
        """Key-value heads of the first block with attention."""
        return next((b.kv_heads for b in self.network.anatomy.blocks if b.heads), 0)

    @property
    def d_head(self) -> int:
        """Width of a head's output z."""
        return next((b.d_head for b in self.network.anatomy.blocks if b.heads), 0)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.network.anatomy.d_model

    @property
    def vocab(self) -> int:
        """Number of token ids that may be asked for: the width of the logits."""
        return self.network.anatomy.vocab

    @property
    def n_ids(self) -> int:
        """Number of ids that a prompt may hold: the logits are often wider than the vocabulary."""
        told = self._text_config.get("vocab_size")
        return min(self.vocab, told) if isinstance(told, int) and told > 0 else self.vocab

    @property
    def dtype(self) -> mx.Dtype:
        """Type of the residual stream."""
        return self.network.anatomy.dtype

    def __repr__(self) -> str:
        """Name, architecture and sizes on one line."""
        facts = ", ".join(f"{name} {value}" for name, value in self._sizes())
        return f"Model {safe_text(self.name, limit=80)} ({self.architecture}): {facts}"

    def _repr_html_(self) -> str:
        notes = [("warning", text) for text in self.warnings]
        notes += [("put right", text) for text in self.repairs]
        for what in (self.network.anatomy.refused, self.network.anatomy.stateful):
            notes += [("note", what)] if what else []
        caption = f"{self.name} ({self.architecture})"
        return notebook.table(caption, (), [*self._sizes(), *notes])

    def _sizes(self) -> list[tuple[str, str]]:
        """What the model is made of, as text."""
        heads = f"{self.n_heads} of {self.d_head}" if self.n_heads else "0"
        grouped = self.n_heads and self.n_kv_heads != self.n_heads
        found: Any = tree_flatten(self.module.parameters())
        size = format_bytes(sum(weight.nbytes for _, weight in found))
        return [
            ("layers", str(self.n_layers)),
            ("heads", f"{heads} ({self.n_kv_heads} kv)" if grouped else heads),
            ("d_model", str(self.d_model)),
            ("vocab", str(self.vocab)),
            ("stream", str(self.dtype).rsplit(".", 1)[-1]),
            ("weights", size),
        ]

    @cached_property
    def tokenizer(self) -> Any:
        """The folder's tokenizer (transformers' class), or None where it has no tokenizer files."""
        if self.path is None:
            return None
        from mlxroles.models.tokenizer import load_tokenizer

        return load_tokenizer(self.path)

    # --- running ------------------------------------------------------------------------------

    def run(
        self,
        tokens: Tokens,
        keep: Sequence[str] = (),
        edits: Sequence[Edit] = (),
        positions: Sequence[int] | str | None = None,
        *,
        layers: Sequence[int] | None = None,
        start: Start | None = None,
        prefix: Sequence[Prefix] | None = None,
        logits: bool = True,
        summary: Summary | None = None,
    ) -> Run:
        """Runs the model and returns what was asked for.

        Args:
            tokens: Ids of one prompt, or of several: prompts of different lengths are padded on
                the right, and what lies beyond a prompt's end means nothing.
            keep: Sites to keep, of ``edits.SITES``, in the layouts given there.
            edits: Interventions.
            positions: Where logits are read: a list of positions (negative ones count from the
                end), ``"last"`` for the last token of each prompt, None for all.
            layers: Layers at which sites are kept; None for all.
            start: Begin at a layer from a residual stream.
            prefix: From ``prefix``: keys and values of what comes before ``tokens``. Positions
                count from the first of ``tokens``, in edits, captures and ``positions``.
            logits: Whether logits are wanted.
            summary: What is kept of every ``pattern`` in its place: a function of the layer, the
                weights and which keys are seen.

        Raises:
            PromptError: an empty prompt, an id outside the vocabulary or too long a prompt.
            ModelError: a site that cannot be captured from this architecture.
            ValueError: a layer, head or position that does not exist, or a start or prefix that
                does not fit.
            TypeError: tokens that are no integers.
        """
        rows = as_rows(tokens)
        self.check_tokens(rows, after=prefix[0].offset if prefix else 0)
        padded, lengths = pad(rows)
        return forward(
            self.network,
            padded,
            keep=keep,
            layers=layers,
            edits=edits,
            start=start,
            read=_read(positions, lengths),
            prefix=prefix,
            logits=logits,
            summary=summary,
        )

    def prefix(self, tokens: Tokens, edits: Sequence[Edit] = ()) -> list[Prefix]:
        """Keys and values of every layer for one prompt, to run continuations of it from.

        Raises:
            ModelError: the architecture keeps more than plain keys and values.
            ValueError: prompts of different lengths; padding cannot stand inside a prompt.
        """
        rows = as_rows(tokens)
        self.check_tokens(rows)
        if len({len(row) for row in rows}) > 1:
            raise ValueError("prompts of different lengths cannot share a prefix")
        return prefix_of(self.network, mx.array(rows), edits)

    def generate(self, tokens: Tokens | str, **how: Any) -> "Generation":
        """The text that the model goes on with, under edits if there are any.

        ``how`` and errors are those of ``models.generate.generate``: edits, prompt_edits,
        generated_edits, max_tokens, temperature, top_p, seed, stop, logprobs.
        """
        from mlxroles.models.generate import generate

        return generate(self, tokens, **how)

    def embed(self, tokens: Tokens) -> mx.array:
        """The stream that enters block 0 [batch, position, d_model], scaled as the model does."""
        return self.run(tokens, keep=["resid_pre"], layers=[0], logits=False)["resid_pre", 0]

    def unembed(self, h: mx.array) -> mx.array:
        """Logits of a final residual stream [batch, position, d_model]: norm, head and soft-cap.

        Raises:
            ValueError: a stream of another shape.
        """
        n = self.n_layers
        if h.ndim != 3 or h.shape[-1] != self.d_model or not h.size:
            raise ValueError(
                f"a stream of shape {h.shape} is not [batch, position, {self.d_model}]"
            )
        tokens = mx.zeros(h.shape[:2], dtype=mx.int32)
        if self.network.anatomy.resumable:
            out = forward(self.network, tokens, start=Start(n, h)).logits
        else:
            out = forward(self.network, tokens, edits=[Edit("resid_post", n - 1, h)]).logits
        assert out is not None
        return out

    def check_tokens(self, rows: Sequence[Sequence[int]], after: int = 0) -> None:
        """Refuses prompts that the model would answer with nonsense instead of an error.

        Raises:
            PromptError: naming the id or length that was found and the one that is possible.
        """
        vocab = self.n_ids
        for row in rows:
            if not len(row):
                raise PromptError("a prompt has no tokens; give at least one")
            low, high = min(row), max(row)
            if low < 0 or high >= vocab:
                bad = low if low < 0 else high
                raise PromptError(f"token id {bad} is outside 0..{vocab - 1} of {self.name}")
            if self.table_length is not None and len(row) + after > self.table_length:
                raise PromptError(
                    f"a prompt has {len(row) + after} tokens; {self.name} has a table of "
                    f"{self.table_length} positions, shorten it"
                )
            if self.longest is not None and len(row) + after > self.longest:
                raise PromptError(
                    f"a prompt has {len(row) + after} tokens, but mlx_lm computes {self.name} as "
                    f"its config says only up to {self.longest} ({self.longest_reason}); "
                    "shorten it, or pass --allow-window-mismatch to go on"
                )

    @property
    def table_length(self) -> int | None:
        """Number of learned positions, beyond which nothing can be run; None without a table."""
        if self.architecture not in LEARNED_POSITIONS:
            return None
        named = (self._text_config.get(name) for name in ("n_positions", "n_ctx"))
        return min((n for n in named if isinstance(n, int)), default=None)

    @property
    def _text_config(self) -> dict[str, Any]:
        text = self.config.get("text_config")
        return text if isinstance(text, dict) else self.config

    # --- weights per head ---------------------------------------------------------------------

    def W_Q(self, layer: int) -> mx.array:
        """Query weights [head, d_model, d_head] of a layer, dequantised to float32."""
        return weights.projection(self.network, layer, "q")

    def W_K(self, layer: int) -> mx.array:
        """Key weights [kv_head, d_model, d_head]; head h reads kv head h // group size."""
        return weights.projection(self.network, layer, "k")

    def W_V(self, layer: int) -> mx.array:
        """Value weights [kv_head, d_model, d_head] of a layer, dequantised to float32."""
        return weights.projection(self.network, layer, "v")

    def W_O(self, layer: int) -> mx.array:
        """Output weights [head, d_head, d_model] of a layer, dequantised to float32."""
        return weights.output(self.network, layer)


def as_rows(tokens: Tokens) -> list[list[int]]:
    """Token ids of one or several prompts as a list of lists of int.

    Raises:
        TypeError: an id that is no integer.
    """
    if isinstance(tokens, (np.ndarray, mx.array)):
        tokens = tokens.tolist()  # ty: ignore[invalid-assignment]
    rows: Any = list(tokens)
    if rows and not isinstance(rows[0], (list, tuple, np.ndarray, mx.array)):
        rows = [rows]
    return [[operator.index(t) for t in row] for row in rows] or [[]]


def pad(rows: Sequence[Sequence[int]]) -> tuple[mx.array, list[int]]:
    """Rows as one array [batch, position], padded on the right with id 0, and their lengths."""
    lengths = [len(row) for row in rows]
    longest = max(lengths)
    return mx.array([[*row, *[0] * (longest - len(row))] for row in rows]), lengths


def _read(positions: Sequence[int] | str | None, lengths: list[int]) -> list[int] | mx.array | None:
    """What ``forward`` calls ``read``: None, one list for all rows, or an array [batch, n]."""
    if positions is None:
        return None
    if isinstance(positions, str) and positions != "last":
        raise ValueError(f"positions {positions!r} is neither a list nor 'last'")
    wanted = [-1] if isinstance(positions, str) else [operator.index(p) for p in positions]
    if not wanted:
        raise ValueError("no positions are named; leave it out to read all")
    table = []
    for length in lengths:
        for p in wanted:
            if not -length <= p < length:
                raise ValueError(f"position {p} is outside 0..{length - 1}")
        table.append([p % length for p in wanted])
    return table[0] if all(row == table[0] for row in table) else mx.array(table)
