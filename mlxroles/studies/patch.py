"""Base <-> instruct patching: which cells a sweep has and what each of them holds.

A cell takes the donor's activations at one site of one layer, puts them into the recipient's run
of the same tokens, and reads what the recipient now predicts. Controls put in the donor's
activations on another text, and noise of the same norm. No model is needed here; the cells are
computed in ``patch_run`` and summed up in ``patch_document``.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlxroles import documents
from mlxroles.errors import SpecError
from mlxroles.events import Cell
from mlxroles.plan import LayerRange, cell_id, parse_layers, parse_positions
from mlxroles.store.schema import Variable
from mlxroles.studies.encoded import Encoded
from mlxroles.text import safe_text

SITES = ("resid_post", "resid_pre", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern")
HEAD_SITES = ("z", "q", "k", "v", "pattern")
"""Sites whose arrays have heads; those of k and v are the key-value heads."""
CONTROLS = ("other_prompt", "random")
DIRECTIONS = documents.DIRECTIONS[::-1]
"""In computing order: the clean runs end with the instruct model in memory, the first recipient."""
SIDES = ("base", "instruct")


@dataclass(frozen=True)
class PatchGrid:
    """The grid of a sweep, read against the sizes of the models and the prompts.

    Raises:
        SpecError: it names a site, layer, position, head or control that does not exist.
    """

    prompts: tuple[Encoded, ...]
    layers: LayerRange
    site: str = "resid_post"
    positions: str = "all"
    heads: str | None = None
    """Heads patched together, ``each`` for a cell per head, None for whole arrays."""
    controls: tuple[str, ...] = CONTROLS
    n_heads: int = 0

    @classmethod
    def read(
        cls,
        prompts: Sequence[Encoded],
        *,
        n_layers: int,
        n_heads: int,
        layers: str | None = None,
        site: str = "resid_post",
        positions: str = "all",
        heads: str | None = None,
        controls: Sequence[str] = CONTROLS,
    ) -> "PatchGrid":
        """The grid that a user's words describe."""
        if site not in SITES:
            raise SpecError(f"site {site!r} cannot be patched; use one of {', '.join(SITES)}")
        if heads is not None and site not in HEAD_SITES:
            named = ", ".join(HEAD_SITES[:-1])
            raise SpecError(f"--heads goes with --site {named} or pattern; {site} has no heads")
        if heads == "each" and positions == "each":
            raise SpecError(
                "--heads each and --positions each together are not one sweep; drop one"
            )
        for control in controls:
            if control not in CONTROLS:
                raise SpecError(
                    f"control {control!r} is unknown; use {', '.join(CONTROLS)} or none"
                )
        if heads is not None:
            chosen = parse_heads("all" if heads == "each" else heads, n_heads)
            heads = heads if heads == "each" else str(chosen)
        for prompt in prompts:
            try:
                where = parse_positions(positions, prompt.n_tokens)
            except SpecError as error:
                raise SpecError(f"prompt '{safe_text(prompt.id)}': {error}") from error
        grid = parse_layers(layers, n_layers)
        return cls(tuple(prompts), grid, site, str(where), heads, tuple(controls), n_heads)

    def places(self, prompt: Encoded) -> list[dict[str, object]]:
        """Coordinates of the places that are patched at every layer of a prompt."""
        where = parse_positions(self.positions, prompt.n_tokens)
        positions = where.positions if where.kind == "each" else (str(where),)
        if self.heads == "each":
            return [{"position": p, "head": h} for p in positions for h in range(self.n_heads)]
        heads = {} if self.heads is None else {"heads": self.heads}
        return [{"position": p, **heads} for p in positions]

    def place(
        self, coords: Mapping[str, Any]
    ) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
        """Positions and heads that a cell patches; None for all of them.

        ``all`` includes the tokens that follow the prompt when a string is measured whole.
        """
        where = coords["position"]
        positions: tuple[int, ...] | None = None
        if isinstance(where, int):
            positions = (where,)
        elif where != "all":
            n_tokens = self.prompts[int(coords["prompt"])].n_tokens
            positions = parse_positions(where, n_tokens).positions
        if "head" in coords:
            return positions, (int(coords["head"]),)
        heads = coords.get("heads")
        return positions, None if heads is None else parse_heads(heads, self.n_heads).layers

    def level(self, layer: int) -> int:
        """0 for every fourth layer and the last, 1 for those half way between them, 2 for others.

        The first two levels show the shape of a curve when there is no time for all.
        """
        at, last = self.layers.layers.index(layer), len(self.layers) - 1
        if at % 4 == 0 or at == last:
            return 0
        return 1 if at % 2 == 0 else 2

    def cells(self) -> list[Cell]:
        """Every cell in the order of computing: baselines, then by prompt, direction and layer."""
        return list(self._cells())

    def _cells(self) -> Iterator[Cell]:
        for p in range(len(self.prompts)):
            for side in SIDES:
                coords = {"baseline": side, "prompt": p}
                yield Cell(f"baseline/{side}{self._prompt_part(p)}", coords)
        for p, prompt in enumerate(self.prompts):
            places = self.places(prompt)
            for direction in DIRECTIONS:
                for layer in self.layers:
                    for control in (None, *self.controls):
                        for coords in places:
                            yield self._cell(p, direction, layer, control, coords)

    def _cell(
        self,
        p: int,
        direction: str,
        layer: int,
        control: str | None,
        coords: dict[str, object],
    ) -> Cell:
        full = {"direction": direction, "site": self.site, "layer": layer, **coords}
        full |= {"control": control}
        named = full | ({"prompt": p} if len(self.prompts) > 1 else {})
        return Cell(cell_id(named), full | {"prompt": p})

    def _prompt_part(self, p: int) -> str:
        return f"/p{p:03d}" if len(self.prompts) > 1 else ""


def parse_heads(text: str, n_heads: int) -> LayerRange:
    """Heads named by ``3``, ``0-3`` or ``1,5``.

    Raises:
        SpecError: no heads, or one that the model does not have.
    """
    if n_heads < 1:
        raise SpecError("this model has no attention heads to patch")
    try:
        return parse_layers(text, n_heads)
    except SpecError as error:
        raise SpecError(str(error).replace("layer", "head")) from error


MEASURES = {
    "tool_call_prob": ("1", "largest probability of any sub-token of the headline string"),
    "p_first_token": ("1", "probability of the headline string's first token"),
    "p_chain": ("1", "probability of the whole headline string, teacher-forced"),
    "p_union": ("1", "probability of any way to begin the headline string"),
    "log_prob": ("nat", "log-probability of the headline string's first token"),
    "log_odds": ("nat", "log-odds of the headline string's first token"),
    "logit_diff": ("1", "logit of the first token less that of the best other token"),
    "rank": ("1", "rank of the first token, 0 for the top"),
    "entropy": ("nat", "entropy of the next-token distribution"),
    "kl": ("nat", "KL divergence of the patched from the unpatched distribution"),
}
"""Numbers of a cell: unit, and what they are."""


def outputs() -> list[Variable]:
    """Arrays of a packed run: every measure over control, direction, layer, place and prompt."""
    axes = ("control", "direction", "layer", "place", "prompt")
    cells = [Variable(n, axes, "f4", unit, text) for n, (unit, text) in MEASURES.items()]
    base = [
        Variable(f"baseline_{n}", ("model", "prompt"), "f4", unit, f"unpatched: {text}")
        for n, (unit, text) in MEASURES.items()
        if n != "kl"
    ]
    return [*cells, *base]
