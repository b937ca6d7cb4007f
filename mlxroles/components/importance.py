"""How much each component matters at a position: a trained function, or the share of the output.

A trained component file brings a function that says, from what enters a map, which components the
model could not do without there: the causal importance g in [0, 1] of stochastic parameter
decomposition (Bushnaq et al. 2025). Four kinds, all small MLPs with exact GELUs:

* ``activation``: one MLP per component, whose only input is the component's activation a = x V;
* ``input``: one MLP per component on the map's input x;
* ``shared``: one MLP per map from x to all of its components;
* ``global``: one MLP from the inputs of all maps together to all components.

A file without one (from ``components svd``, or an import without its function) is read by the
output share min(1, |a_c| ||U_c|| / ||x V U||) instead. That is no causal importance: it says what a
component adds to the map's output, not whether the model needs it. ``Importance.name`` tells them
apart wherever a number is shown.

Parameters are named ``<map>.<n>.W`` and ``<map>.<n>.b``, n counting the layers of an MLP (numbers
may be left out, as in files whose activations are numbered too), with ``all`` in place of the map
for ``global``. W is [component, in, out] where every component has an MLP, else [in, out].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from mlxroles.backend import mx, nn
from mlxroles.errors import StoreError
from mlxroles.text import safe_text

if TYPE_CHECKING:
    from mlxroles.components.decomposition import Components

KINDS = ("activation", "input", "shared", "global")
CAUSAL, SHARE = "causal importance", "share of the output"
LEAK = 0.01
"""Slope beside [0, 1] of the leaky hard sigmoids."""
SHARE_THRESHOLD = 0.1
"""A component fires where it makes up more than this share of its map's output."""
SMALLEST = 1e-12
ALL = "all"
"""Stands for the map in the names of a ``global`` function's parameters."""

_BROKEN = "the importance function's parameters fit no MLP; train or import the file again"

Arrays = Mapping[str, mx.array]
Layer = tuple[mx.array, mx.array]
"""Weight and bias of one layer of an MLP, or of one MLP per component."""


def lower_leaky(x: mx.array) -> mx.array:
    """Hard sigmoid clip(x, 0, 1) whose gradient leaks below 0 where it asks for more.

    The gradient of x is that of the output in (0, 1], ``LEAK`` of it below 0 if it is negative
    (a step down the loss would raise x), and 0 elsewhere.
    """
    clipped: Any = _clipped(x)
    return clipped


@mx.custom_function
def _clipped(x: mx.array) -> mx.array:
    return mx.clip(x, 0, 1)


@_clipped.vjp
def _(x: mx.array, cotangent: mx.array, _: mx.array) -> mx.array:
    below = mx.where(cotangent < 0, LEAK * cotangent, 0)
    return mx.where(x <= 0, below, mx.where(x <= 1, cotangent, 0))


def upper_leaky(x: mx.array) -> mx.array:
    """Hard sigmoid that goes on above 1 with slope ``LEAK``: 0 below 0, x, then 1 + LEAK (x - 1).

    At 0 and 1 its slope is 1, as in the published program. An input of zeros, at which all values
    are 0 before training, is common: behind a ReLU, or where no feature of a toy is there.
    """
    return mx.where(x > 1, 1 + LEAK * (x - 1), mx.where(x < 0, 0.0, x))


def mlp(layers: Sequence[Layer], x: mx.array) -> mx.array:
    """A plain MLP with GELUs between its layers: [..., in] to [..., out]."""
    for n, (weight, bias) in enumerate(layers):
        x = (nn.gelu(x) if n else x) @ weight + bias
    return x


def mlps(layers: Sequence[Layer], x: mx.array) -> mx.array:
    """One MLP per component with a single output each: [n, component or 1, in] to [n, component].

    Args:
        layers: Weights [component, in, out] and biases [component, out].
        x: What goes into each; one row for all where the second axis is 1.
    """
    x = x.swapaxes(0, 1)
    for n, (weight, bias) in enumerate(layers):
        x = nn.gelu(x) if n else x
        if weight.shape[1] == 1:
            x = x * weight + bias[:, None]
        elif weight.shape[2] == 1:
            x = (x * weight.swapaxes(1, 2)).sum(axis=-1, keepdims=True) + bias[:, None]
        else:
            x = x @ weight + bias[:, None]
    return x[..., 0].T


def kind_of(parameters: Mapping[str, mx.array | np.ndarray]) -> str | None:
    """Which kind of function these parameters are of, by their names and shapes; None for none."""
    if not parameters:
        return None
    if any(name.startswith(f"{ALL}.") for name in parameters):
        return "global"
    owner = next(iter(parameters)).rsplit(".", 2)[0]
    weights = {
        int(n.split(".")[-2]): w
        for n, w in parameters.items()
        if n.endswith(".W") and n.startswith(f"{owner}.")
    }
    first = weights[min(weights)].shape
    if len(first) == 2:
        return "shared"
    return "activation" if first[1] == 1 else "input"


def _numbered(parameters: Mapping[str, mx.array], of: str) -> list[Layer]:
    """The layers of one MLP in order."""
    start = len(of) + 1
    own = [name[start:].split(".") for name in parameters if name.startswith(f"{of}.")]
    numbers = sorted({int(n) for n, *rest in own if rest in (["W"], ["b"])})
    return [(parameters[f"{of}.{n}.W"], parameters[f"{of}.{n}.b"]) for n in numbers]


def before_sigmoid(
    kind: str, parameters: Arrays, x: Arrays, a: Arrays, sizes: Mapping[str, int]
) -> dict[str, mx.array]:
    """What a function says of all maps at once, before the hard sigmoid: [..., component] each.

    Args:
        kind: One of ``KINDS``.
        parameters: As described above.
        x: Map -> what enters it [..., d_in].
        a: Map -> activations of its components [..., component].
        sizes: Map -> number of its components; its order is that in which a ``global`` function
            reads inputs and gives its outputs.
    """
    if kind == "global":
        joined = mx.concatenate([x[key] for key in sizes], axis=-1)
        ends = np.cumsum(list(sizes.values()))[:-1].tolist()
        parts = mx.split(mlp(_numbered(parameters, ALL), joined), ends, axis=-1)
        return dict(zip(sizes, parts, strict=True))
    return {key: _of_map(kind, _numbered(parameters, key), x[key], a[key]) for key in sizes}


def _of_map(kind: str, layers: Sequence[Layer], x: mx.array, a: mx.array) -> mx.array:
    if kind == "shared":
        return mlp(layers, x)
    given = a.reshape(-1, a.shape[-1], 1) if kind == "activation" else x.reshape(-1, 1, x.shape[-1])
    return mlps(layers, given).reshape(a.shape)


def share(x_or_a: mx.array, U: mx.array) -> mx.array:
    """Output share min(1, |a_c| ||U_c|| / ||a U||) of components with activations a [..., C].

    Args:
        x_or_a: The activations a = x V.
        U: Output directions [component, d_out].
    """
    a = x_or_a.astype(mx.float32)
    whole = mx.linalg.norm(a @ U, axis=-1, keepdims=True)
    return mx.minimum(1, mx.abs(a) * mx.linalg.norm(U, axis=-1) / mx.maximum(whole, SMALLEST))


@dataclass(frozen=True, eq=False)
class Importance:
    """How much the components of a file matter; made by :func:`importance_of`."""

    name: str
    """``CAUSAL`` or ``SHARE``."""
    kind: str | None
    """One of ``KINDS``; None for the output share."""
    sizes: Mapping[str, int]
    """Map -> number of its components."""
    parameters: Arrays
    U: Arrays
    """Map -> output directions [component, d_out], for the output share."""

    @property
    def trained(self) -> bool:
        """Whether these are causal importances."""
        return self.kind is not None

    @property
    def threshold(self) -> float:
        """A component fires where its value is above this."""
        return 0.0 if self.trained else SHARE_THRESHOLD

    @property
    def joint(self) -> bool:
        """Whether a value depends on the inputs of all maps, so that only ``of_all`` can tell."""
        return self.kind == "global"

    def __call__(self, key: str, x: mx.array, a: mx.array) -> mx.array:
        """Values in [0, 1] of one map's components: [..., component].

        Args:
            key: The map.
            x: What enters it [..., d_in].
            a: Activations x V of its components [..., component].

        Raises:
            ValueError: the function is ``global``.
        """
        if self.joint:
            raise ValueError("this importance function reads the inputs of all maps: use of_all")
        if self.kind is None:
            return share(a, self.U[key])
        x, a = x.astype(mx.float32), a.astype(mx.float32)
        sizes = {key: self.sizes[key]}
        said = before_sigmoid(self.kind, self.parameters, {key: x}, {key: a}, sizes)
        return mx.clip(said[key], 0, 1)

    def of_all(self, x: Arrays, a: Arrays) -> dict[str, mx.array]:
        """Values of all maps at once, from what enters each and its activations.

        Raises:
            ValueError: a ``global`` function was not given every map's input.
        """
        if not self.joint:
            return {key: self(key, x[key], a[key]) for key in x}
        missing = [key for key in self.sizes if key not in x]
        if missing:
            raise ValueError(f"this importance function also reads {missing[0]}")
        wide = {key: value.astype(mx.float32) for key, value in x.items()}
        said = before_sigmoid("global", self.parameters, wide, a, self.sizes)
        return {key: mx.clip(value, 0, 1) for key, value in said.items()}


def importance_of(components: "Components") -> Importance:
    """How much the components of a file matter at a position.

    Returns:
        ``importance(key, x, a)`` [..., component] in [0, 1]: the causal importance if the file has
        a trained function, else the output share.

    Raises:
        StoreError: the function's parameters do not fit the components.
    """
    sizes = {key: part.U.shape[0] for key, part in components.maps.items()}
    try:
        kind = kind_of(components.importance)
    except (IndexError, KeyError, ValueError):
        raise StoreError(_BROKEN) from None
    if kind is None:
        directions = {k: mx.array(np.asarray(p.U)) for k, p in components.maps.items()}
        return Importance(SHARE, None, sizes, {}, directions)
    widths = {key: part.V.shape[0] for key, part in components.maps.items()}
    parameters = {name: mx.array(np.asarray(p)) for name, p in components.importance.items()}
    _check(kind, parameters, sizes, widths)
    return Importance(CAUSAL, kind, sizes, parameters, {})


def _check(
    kind: str, parameters: Arrays, sizes: Mapping[str, int], widths: Mapping[str, int]
) -> None:
    """Refuses parameters that do not map these inputs to these components."""
    if kind == "global":
        sizes, widths = {ALL: sum(sizes.values())}, {ALL: sum(widths.values())}
    for key, n in sizes.items():
        try:
            layers = _numbered(parameters, key)
        except (KeyError, ValueError):
            raise StoreError(_BROKEN) from None
        widths_of = [(w.shape[-2:], b.shape[-1:]) for w, b in layers]
        inner = all(b == w[1:] for w, b in widths_of) and all(
            b == w[:1] for (_, b), (w, _) in pairwise(widths_of)
        )
        if not inner:
            raise StoreError(_BROKEN)
        if not layers:
            raise StoreError(
                f"the importance function has no parameters for {safe_text(key, limit=80)}; train "
                "or import the file again"
            )
        expected = {"activation": (n, 1), "input": (n, widths[key])}.get(kind, (widths[key],))
        first, last = layers[0][0].shape[:-1], layers[-1][1].shape[:1]
        if tuple(first) != expected or last != (n,):
            raise StoreError(
                f"the importance function of {safe_text(key, limit=80)} maps {tuple(first)} to "
                f"{tuple(last)}; {expected} to {(n,)} was expected"
            )
