"""The variables of a result file: what they are called, their axes, type and unit."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
DTYPES = ("f4", "f8", "i4", "str", "store")

Coordinates = Mapping[str, Sequence[str | int | float] | int]
"""The values along each axis; a number n stands for 0, 1, ... n - 1."""


@dataclass(frozen=True)
class Variable:
    """One array of a result file."""

    name: str
    axes: tuple[str, ...]
    """Axis names, outermost first; none of them for a single number."""
    dtype: str = "f4"
    """``f4``, ``f8``, ``i4`` or ``str``; in captures also ``store``: what ``--store`` asks for."""
    unit: str = "1"
    """Unit of the values, ``1`` for a pure number."""
    long_name: str = ""
    """What the values are, in plain words."""

    def __post_init__(self) -> None:
        """Checks names and type."""
        for name in (self.name, *self.axes):
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name for a variable or an axis")
        if self.dtype not in DTYPES:
            raise ValueError(f"{self.name}: dtype {self.dtype!r} is none of {', '.join(DTYPES)}")
        if len(set(self.axes)) < len(self.axes) or self.name in self.axes:
            raise ValueError(f"{self.name}: an axis name occurs twice in {self.axes}")


_STREAM = ("prompt", "layer", "position", "d_model")
_QUERY = ("prompt", "layer", "position", "head", "d_head")
_KEY = ("prompt", "layer", "position", "kv_head", "d_head")

CAPTURE_VARIABLES: Mapping[str, Variable] = {
    variable.name: variable
    for variable in (
        Variable("resid_pre", _STREAM, "store", long_name="residual stream before the block"),
        Variable("resid_mid", _STREAM, "store", long_name="residual stream after attention"),
        Variable("resid_post", _STREAM, "store", long_name="residual stream after the block"),
        Variable("attn_out", _STREAM, "store", long_name="what attention adds to the stream"),
        Variable("mlp_out", _STREAM, "store", long_name="what the MLP adds to the stream"),
        Variable("q", _QUERY, "store", long_name="queries after RoPE"),
        Variable("k", _KEY, "store", long_name="keys after RoPE"),
        Variable("v", _KEY, "store", long_name="values"),
        Variable("z", _QUERY, "store", long_name="head outputs before the output projection"),
        Variable(
            "pattern",
            ("prompt", "layer", "head", "query", "key"),
            "store",
            long_name="attention after softmax",
        ),
        Variable(
            "entropy",
            ("prompt", "layer", "head", "query"),
            "f4",
            "nat",
            "entropy of the attention of each query",
        ),
        Variable("logits", ("prompt", "position", "vocab"), "store", long_name="output logits"),
        Variable("tokens", ("prompt", "position"), "i4", long_name="token ids, -1 after the end"),
        Variable("length", ("prompt",), "i4", long_name="number of tokens of the prompt"),
    )
}
"""The arrays that a capture may hold, by site."""
