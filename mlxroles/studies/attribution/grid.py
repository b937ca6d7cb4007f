"""Attribution patching: what is estimated, at which sites, layers and positions, in which cells.

One backward pass through the recipient estimates, to first order, what every patch of an exact
sweep would do. A stored cell is one prompt and one direction with its arrays over all places; what
a table calls a cell of a site, a layer and head or position, is cut out of these. Gradients at
several points take long, so that each site then is a stored cell of its own. No model is needed
here; the cells are computed in ``run`` and summed up in
``document``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mlxroles import documents
from mlxroles.errors import SpecError
from mlxroles.events import Cell
from mlxroles.plan import LayerRange, cell_id, parse_layers, parse_positions
from mlxroles.store.schema import Variable
from mlxroles.text import safe_text

if TYPE_CHECKING:
    from mlxroles.studies.encoded import Encoded

STREAM_SITES = ("resid_post", "attn_out", "mlp_out")
HEAD_SITES = ("z", "q", "k", "v", "pattern")
SITES = STREAM_SITES + HEAD_SITES
DIRECTIONS = documents.DIRECTIONS[::-1]
"""In computing order: the clean runs end with the instruct model in memory, the first recipient."""

STEPS = ("estimate", "edges", "verify", "verify_edges")
"""What a stored cell holds, in computing order."""

UNITS = {"log_odds": "nat", "log_prob": "nat", "entropy": "nat", "kl": "nat"}
"""Units of the metrics that have one."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class AttributionGrid:
    """What a run estimates, read against the sizes of the models and the prompts."""

    prompts: "tuple[Encoded, ...]"
    layers: LayerRange
    sites: tuple[str, ...]
    stream_positions: str
    """Positions of a cell of the residual stream: ``each``, or those that are summed."""
    head_positions: str
    """The same of a cell of a head."""
    edges: bool = False
    verify: int | None = None
    """How many of the largest cells of each site, and as many random ones, are run exactly."""
    ig: int = 1
    """Points between recipient and donor at which the gradients of ``integrated`` are taken."""

    @property
    def integrated(self) -> tuple[str, ...]:
        """Sites whose gradients are taken at several points: streams, or the one site there is.

        A head's cell that sums over positions costs less as an exact run than ``ig`` gradients.
        """
        if self.ig == 1:
            return ()
        return tuple(s for s in self.sites if s in STREAM_SITES or len(self.sites) == 1)

    @classmethod
    def read(
        cls,
        prompts: "Sequence[Encoded]",
        *,
        n_layers: int,
        sites: Sequence[str] = SITES,
        layers: str | None = None,
        positions: str | None = None,
        edges: bool = False,
        verify: int | None = None,
        ig: int = 1,
    ) -> "AttributionGrid":
        """The grid that a user's words describe.

        Args:
            prompts: What is run.
            n_layers: Of each model.
            sites: Where effects are estimated.
            layers: Those that count; None for all.
            positions: Those that count in a cell; None for one cell per position of the stream
                (where the prompts have one length) and for all of them together in heads.
            edges: Whether edges between parts are estimated too.
            verify: How many cells are run exactly.
            ig: Points at which gradients are taken.

        Raises:
            SpecError: a site, layer or position that does not exist or cannot be had.
        """
        for site in sites:
            if site == "resid_pre":
                raise SpecError(
                    "--method attribution has no resid_pre: it is resid_post of the layer before"
                )
            if site not in SITES:
                raise SpecError(f"site {site!r} has no attribution; use one of {', '.join(SITES)}")
        lengths = sorted({prompt.n_tokens for prompt in prompts})
        stream = positions or ("each" if len(lengths) == 1 else "all")
        for prompt in prompts:
            try:
                stream = str(parse_positions(stream, prompt.n_tokens))
            except SpecError as error:
                raise SpecError(f"prompt '{safe_text(prompt.id)}': {error}") from error
        if stream == "each" and len(lengths) > 1:
            raise SpecError(
                f"--positions each averages over prompts of one length; these have {lengths[0]} "
                f"to {lengths[-1]} tokens: use all or last"
            )
        heads = "all" if positions is None else stream
        found = parse_layers(layers, n_layers)
        return cls(tuple(prompts), found, tuple(sites), stream, heads, edges, verify, ig)

    def positions(self, site: str) -> str:
        """Positions of a cell of the site: ``each``, or those that are summed."""
        return self.stream_positions if site in STREAM_SITES else self.head_positions

    def axes(self, site: str) -> tuple[str, ...]:
        """What names a cell of the site, outermost first."""
        heads = () if site in STREAM_SITES else ("head",)
        return ("layer", *heads, *(("position",) if self.positions(site) == "each" else ()))

    def chosen(self, prompt: int, site: str) -> tuple[int, ...] | None:
        """Positions that a cell of the site sums over; None for all, with what follows the prompt.

        What follows are the tokens of a string that is measured whole.
        """
        where = self.positions(site)
        if where in ("all", "each"):
            return None
        return parse_positions(where, self.prompts[prompt].n_tokens).positions

    def cut(self, prompt: int, site: str, array: NDArray[np.floating]) -> Numbers:
        """The numbers of the site's cells from a stored array.

        Args:
            prompt: Number of the prompt.
            site: Where.
            array: ``[layer, position]`` or ``[layer, head, position]``, over the tested layers.

        Returns:
            Estimates by ``axes(site)``; what is summed over positions leaves NaN out, and is NaN
            where there is nothing else. Positions of the last layer that nothing reads are NaN:
            they are no cells.
        """
        values = np.array(array, dtype=np.float64)
        if self.positions(site) != "each":
            return summed(values, self.chosen(prompt, site))
        n = self.prompts[prompt].n_tokens
        if self.layers.n_layers - 1 in self.layers and site not in ("k", "v"):
            values[-1, ..., : n - 1] = np.nan
        return values[..., :n]

    def cells(self) -> list[Cell]:
        """Every stored cell, by step, then by direction and prompt."""
        return list(self._cells())

    def _cells(self) -> Iterator[Cell]:
        wanted = {
            "estimate": True,
            "edges": self.edges,
            "verify": self.verify is not None,
            "verify_edges": self.edges and self.verify is not None,
        }
        for step in (step for step in STEPS if wanted[step]):
            exact = {"k": self.verify} if step.startswith("verify") else {}
            by_site = step == "verify" or (step == "estimate" and self.ig > 1)
            sites = [{"site": site} for site in self.sites] if by_site else [{}]
            for direction in DIRECTIONS:
                for p in range(len(self.prompts)):
                    for site in sites:
                        where: dict[str, object] = {"direction": direction, "prompt": p}
                        coords = {**where, "step": step, **site, **exact}
                        yield Cell(cell_id(coords), coords)


def summed(values: Numbers, positions: Sequence[int] | None) -> Numbers:
    """The sum over the last axis, of these positions or all; NaN only where all are."""
    if positions is not None:
        values = values[..., list(positions)]
    return np.where(np.isnan(values).all(axis=-1), np.nan, np.nansum(values, axis=-1))


def outputs(grid: AttributionGrid, unit: str, *, edges: bool) -> list[Variable]:
    """Arrays of a packed run: estimates by prompt, direction and place, and the metric's levels.

    Args:
        grid: What the run is about.
        unit: Of the metric.
        edges: Whether any are stored.
    """
    found = [
        Variable(name, ("prompt", "direction"), "f8", unit, f"metric of the unpatched {who}")
        for name, who in (("recipient", "recipient"), ("donor", "donor"))
    ]
    for site in grid.sites:
        heads = () if site in STREAM_SITES else (head_axis(site),)
        axes = ("prompt", "direction", "layer", *heads, "position")
        found.append(
            Variable(site, axes, "f4", unit, f"first-order estimate of patching {site} there")
        )
    if edges:
        axes = ("prompt", "direction", "source", "target")
        what = "first-order estimate of patching the source's output for the target's input alone"
        found.append(Variable("edges", axes, "f4", unit, what))
    return found


def head_axis(site: str) -> str:
    """Name of the heads' axis of a site: keys and values have heads of their own."""
    return "kv_head" if site in ("k", "v") else "head"
