"""What is shown of components, as plain texts and numbers: pages, figures and tables draw these."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mlxroles.components.counts import Coactivation
    from mlxroles.components.offsets import Chance

Numbers = NDArray[np.float64]


class Window(NamedTuple):
    """A piece of text in which a component fires."""

    tokens: tuple[str, ...]
    importance: Numbers
    """[token], 0 to 1; NaN outside of the text."""
    at: int
    """The token that it is shown for."""


class Tokens(NamedTuple):
    """Where a component fires, from a harvest; all texts as the tokenizer gives them."""

    reads: tuple[tuple[str, float], ...] = ()
    """Tokens at which it fires and their pointwise mutual information in nats, surest first."""
    follows: tuple[tuple[str, float], ...] = ()
    """Tokens that the model says next there, likewise."""
    windows: tuple[Window, ...] = ()


class MapView(NamedTuple):
    """One decomposed map."""

    key: str
    layer: int
    kind: str
    """``q``, ``k``, ``v``, ``o`` or the path of an MLP's map."""
    n_heads: int
    importance: Numbers
    """[component], what they are ranked by."""
    alive: NDArray[np.bool_]
    """[component], whether it counts: mean importance above .01, or norm above 1 % of the
    largest where nothing was harvested."""
    order: NDArray[np.int64]
    """[component], by importance, the largest first."""
    norms: Numbers
    head_norms: Numbers | None = None
    """[component, head]"""
    spread: Numbers | None = None
    """[component], nats."""
    chance_share: float = float("nan")
    """Largest share of one head that 95 of 100 random directions stay below."""
    density: Numbers | None = None
    """[component], share of the tokens at which it fires."""
    signed: Numbers | None = None
    """[component], mean of ``a |U[c]|`` over all tokens."""
    activity: Numbers | None = None
    """[component, head], mean size of what it writes while it fires."""

    @property
    def name(self) -> str:
        """The map without its layer: ``q``, ``mlp.down_proj``."""
        return self.key.split(".", 1)[-1]

    def top(self, most: int) -> NDArray[np.int64]:
        """The most important components that count, at most so many."""
        return self.order[self.alive[self.order]][:most]


class Likeness(NamedTuple):
    """Cosines of what the components of two maps read."""

    one: str
    other: str
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    cosine: Numbers
    """[row, column]"""
    chance: float
    """|cosine| that the largest of so many pairs of random directions stays below (95 %)."""


class Together(NamedTuple):
    """How often components of two maps fire at the same token."""

    one: str
    other: str
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    measures: "Coactivation"
    """phi, Jaccard and both conditionals [row, column]."""
    tokens: int
    chance: float
    """|phi| that the largest of so many unrelated pairs stays below (95 %), if tokens were
    independent."""


class QK(NamedTuple):
    """Contributions of query and key components to the scores, by distance."""

    q: NDArray[np.int64]
    k: NDArray[np.int64]
    offsets: NDArray[np.int64]
    values: NDArray[np.float32]
    """[offset, query head, query component, key component]; with a harvest, turned by the product
    of the signs of both mean activations, since the sign of a component is arbitrary."""
    chance: "Chance"


class Matrices(NamedTuple):
    """One map's weights beside those of its components, made small enough to draw."""

    key: str
    names: tuple[str, ...]
    grids: tuple[Numbers, ...]
    """[row, column] each: the target where the model is known, VU, components."""
    components: int
    """How many of them, the last ones, are components."""
    shape: tuple[int, int]
    lines: tuple[float, ...]
    """Rows (columns for o) of the grids at which a head ends."""
    is_by_column: bool


class Value(NamedTuple):
    """A value component that goes with a key component."""

    component: int
    measure: float
    """phi where there is a harvest, the cosine of what both read otherwise."""
    tokens: Tokens


class Partner(NamedTuple):
    """A key component that a query component looks for, or turns away from."""

    component: int
    peak: float
    """W of the head sum where its size is largest."""
    chance: float
    """Size of a peak that the largest of as many random key components stays below (95 %)."""
    offset: int
    head: int
    """The query head that adds most there."""
    curves: Numbers
    """[offset, query head]"""
    tokens: Tokens
    values: tuple[Value, ...]


class Story(NamedTuple):
    """A query component, what it looks for and what moves then."""

    component: int
    importance: float
    density: float
    share: Numbers
    """[head] of its norm"""
    spread: float
    tokens: Tokens
    attended: tuple[Partner, ...]
    avoided: tuple[Partner, ...]


class LayerView(NamedTuple):
    """Everything shown of one layer."""

    layer: int
    maps: tuple[MapView, ...]
    matrices: tuple[Matrices, ...]
    likeness: tuple[Likeness, ...]
    together: tuple[Together, ...]
    qk: QK | None
    stories: tuple[Story, ...]

    def map(self, kind: str) -> MapView | None:
        """The map of this kind, if it is decomposed."""
        return next((each for each in self.maps if each.kind == kind), None)
