"""What is ablated: heads, values, outputs of layers or directions, read from a user's words.

No model is needed here. Heads that are to be found by their scores stand as slots, which
``chosen`` fills for each model: the same words may mean other heads in the other model of a pair.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mlxroles.errors import SpecError
from mlxroles.heads import by_layer, check_head, head_name, parse_heads
from mlxroles.plan import parse_layers
from mlxroles.text import safe_text

Head = tuple[int, int]
"""Layer and head."""

Kind = Literal["heads", "values", "output", "direction", "components"]

OUTPUTS = ("attn_out", "mlp_out")
MOST_NAMED = 4
"""Heads of a set that its name lists."""
SLOTS = {"previous": "previous-token", "induction": "induction"}


@dataclass(frozen=True)
class Ablation:
    """One thing that is taken out."""

    name: str
    """Short, for tables."""
    kind: Kind
    key: str
    """The same for a cell's id."""
    heads: tuple[Head, ...] = ()
    """Query heads, or for ``values`` key-value heads."""
    slots: tuple[tuple[str, int | None], ...] = ()
    """Heads by score: ``previous`` or ``induction`` and a rank from 0, None for all marked ones."""
    site: str = "z"
    layers: tuple[int, ...] = ()
    """Layers whose outputs or values go, or at which a direction is taken out."""
    offsets: tuple[int, ...] | None = None
    """Of values: those at t - d for each query t; None for all of them."""
    is_joint: bool = False
    """Whether its effect is held against the sum of its parts' own."""
    components: tuple[str, ...] = ()
    """Names of components, as ``L3.q:17@H4``."""

    def document(self) -> dict[str, Any]:
        """What changes numbers."""
        offsets = None if self.offsets is None else list(self.offsets)
        named = {"components": list(self.components)} if self.components else {}
        return named | {
            "kind": self.kind,
            "heads": [list(at) for at in self.heads],
            "slots": [list(slot) for slot in self.slots],
            "site": self.site,
            "layers": list(self.layers),
            "offsets": offsets,
        }


def of_heads(heads: Sequence[Head], *, is_joint: bool = False) -> Ablation:
    """The ablation of some heads together."""
    return Ablation(named(heads), "heads", _key(heads), heads=tuple(heads), is_joint=is_joint)


def named(heads: Sequence[Head]) -> str:
    """A name for a set of heads: ``L5H8``, ``L1H4 L3H2``, ``L1H4 L3H2 L3H3 L3H0 +4``."""
    shown = " ".join(head_name(*at) for at in heads[:MOST_NAMED])
    return shown + (f" +{len(heads) - MOST_NAMED}" if len(heads) > MOST_NAMED else "")


def _key(heads: Sequence[Head]) -> str:
    return "-".join(head_name(*at).lower() for at in heads)


@dataclass(frozen=True)
class Sizes:
    """What a config says of the models."""

    n_layers: int
    n_heads: int
    n_kv_heads: int


def each_head(sizes: Sizes) -> list[Ablation]:
    """Every head by itself."""
    if not sizes.n_heads:
        raise SpecError("the config names no attention heads; name outputs with --sites")
    layers, heads = range(sizes.n_layers), range(sizes.n_heads)
    return [of_heads([(layer, head)]) for layer in layers for head in heads]


def each_and_all(heads: Sequence[Head]) -> list[Ablation]:
    """Every one of some heads by itself, then all of them together."""
    alone = [of_heads([at]) for at in heads]
    return [*alone, of_heads(heads, is_joint=True)] if len(heads) > 1 else alone


def growing(heads: Sequence[Head]) -> list[Ablation]:
    """Every one of some heads by itself, then the first two, the first three and so on."""
    sets = [of_heads(heads[:k], is_joint=True) for k in range(2, len(heads) + 1)]
    return [*(of_heads([at]) for at in heads), *sets]


def circuit(pairs: int) -> list[Ablation]:
    """The induction circuit, found by scores: pair by pair, then all heads of either kind."""
    found = []
    for k in range(1, pairs + 1):
        slots = tuple((name, n) for n in range(k) for name in SLOTS)
        found.append(Ablation(f"{k} pair{'s' * (k > 1)}", "heads", f"pairs-{k}", slots=slots))
    for name, word in SLOTS.items():
        slots = ((name, None),)
        found.append(Ablation(f"all {word} heads", "heads", f"all-{name}", slots=slots))
    both = tuple((name, None) for name in SLOTS)
    return [*found, Ablation("all of both kinds", "heads", "all-both", slots=both)]


def growing_circuit(pairs: int) -> list[Ablation]:
    """Heads of the circuit by themselves, in pairs by rank, then the first two, three and so on."""
    slots = [(name, n) for n in range(pairs) for name in ("induction", "previous")]
    alone = [
        Ablation(f"{SLOTS[name]} head {n + 1}", "heads", f"{name}-{n}", slots=((name, n),))
        for name, n in slots
    ]
    return [
        *alone,
        *(
            Ablation(f"first {k}", "heads", f"first-{k}", slots=tuple(slots[:k]), is_joint=True)
            for k in range(2, len(slots) + 1)
        ),
    ]


def values(
    offsets: tuple[int, ...] | None, heads: Sequence[Head] | None, layers: Sequence[int]
) -> list[Ablation]:
    """Values of key-value heads (layer, kv head), or of all heads of each layer."""
    told = "all values" if offsets is None else "values t-" + ",".join(map(str, offsets))
    key = "all" if offsets is None else "-".join(map(str, offsets))
    if heads is None:
        return [
            Ablation(
                f"{told} L{layer}",
                "values",
                f"values-{key}-l{layer}",
                site="v",
                layers=(layer,),
                offsets=offsets,
            )
            for layer in layers
        ]
    sets = [[at] for at in heads] + ([list(heads)] if len(heads) > 1 else [])
    return [
        Ablation(
            f"{told} {_kv_named(some)}",
            "values",
            f"values-{key}-" + "-".join(f"l{layer}kv{h}" for layer, h in some),
            heads=tuple(some),
            site="v",
            layers=tuple(by_layer(some)),
            offsets=offsets,
        )
        for some in sets
    ]


def _kv_named(heads: Sequence[Head]) -> str:
    shown = " ".join(f"L{layer}KV{head}" for layer, head in heads[:MOST_NAMED])
    return shown + (f" +{len(heads) - MOST_NAMED}" if len(heads) > MOST_NAMED else "")


def outputs(sites: Sequence[str], layers: Sequence[int]) -> list[Ablation]:
    """The output of each layer's attention or MLP."""
    return [
        Ablation(f"{site} L{layer}", "output", f"{site}-l{layer}", site=site, layers=(layer,))
        for site in sites
        for layer in layers
    ]


def direction(name: str, layers: Sequence[int]) -> Ablation:
    """A direction of the residual stream, taken out at some layers' outputs at once."""
    where = f"L{layers[0]}" if len(layers) == 1 else f"L{layers[0]}-{layers[-1]}"
    shown = safe_text(name, limit=40)
    return Ablation(
        f"{shown} {where}", "direction", "direction", site="resid_post", layers=tuple(layers)
    )


def parse_offsets(text: str) -> tuple[int, ...] | None:
    """Offsets before t: ``1``, ``1,2``; ``all`` is None.

    Raises:
        SpecError: it names none.
    """
    if text.strip() == "all":
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 0 < len(part) < 7 for part in parts):
        raise SpecError(
            f"values '{safe_text(text, limit=40)}' cannot be read: write 1, 1,2 (offsets before "
            "the query) or all"
        )
    return tuple(sorted({int(part) for part in parts}))


def parse_sites(text: str) -> tuple[str, ...]:
    """Outputs of layers: ``attn_out``, ``mlp_out`` or both.

    Raises:
        SpecError: something else.
    """
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for site in found:
        if site not in OUTPUTS:
            raise SpecError(
                f"site '{safe_text(site, limit=40)}' cannot be ablated whole: use "
                f"{' or '.join(OUTPUTS)}, or name heads with --heads"
            )
    return found


def parse_factors(text: str) -> tuple[float, ...]:
    """Factors such as ``1,.5,0``.

    Raises:
        SpecError: they are no numbers.
    """
    try:
        found = tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        found = ()
    if not found or not all(abs(f) < 1e6 for f in found):
        raise SpecError(
            f"factors '{safe_text(text, limit=40)}' cannot be read: write numbers such as 1,.5,0"
        )
    return found


def named_heads(text: str, sizes: Sizes) -> list[Head]:
    """Heads named one by one, checked against the sizes.

    Raises:
        SpecError: a head that does not exist.
    """
    return parse_heads(text, n_layers=sizes.n_layers, n_heads=sizes.n_heads or None)


def checked(heads: Sequence[Head], sizes: Sizes) -> list[Head]:
    """Heads from a file, checked in the same way."""
    for layer, head in heads:
        check_head(layer, head, n_layers=sizes.n_layers, n_heads=sizes.n_heads or None)
    return list(dict.fromkeys(heads))


def kv_heads(heads: Sequence[Head], sizes: Sizes) -> list[Head]:
    """Key-value heads that query heads read, each once."""
    group = max(1, sizes.n_heads // max(1, sizes.n_kv_heads))
    return list(dict.fromkeys((layer, head // group) for layer, head in heads))


def chosen_layers(text: str | None, n_layers: int) -> tuple[int, ...]:
    """Layers that ``--layers`` names, all without it.

    Raises:
        SpecError: they cannot be read.
    """
    return parse_layers(text, n_layers).layers
