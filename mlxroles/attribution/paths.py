"""Path patching: the exact twin of an edge, as rows for the engine.

The source writes the donor's output to the stream, and the target alone reads it: what it makes of
the changed stream is computed by the model's own block and put in by an edit. All else reads the
clean stream until the target's own effect arrives.
"""

from collections.abc import Sequence

from mlxroles.attribution.estimate import Donor
from mlxroles.attribution.nodes import Node, check, check_layers, sequential
from mlxroles.attribution.trace import Key, Trace
from mlxroles.backend import mx
from mlxroles.edits import Edit
from mlxroles.engine import Clean, Row
from mlxroles.forward import Network, Run, Start, forward

ROWS = 16
"""Changed streams that run through a layer as one batch."""


def path_rows(
    network: Network,
    own: Clean,
    donor: Donor,
    pairs: Sequence[tuple[Node, Node]],
    prompt: int = 0,
) -> list[Row]:
    """A row per pair (source, target), in their order.

    Args:
        network: The recipient.
        own: Its clean run, of which the prompts are taken.
        donor: The sources' sites: ``z`` of heads, ``mlp_out`` of MLPs, ``resid_pre`` of layer 0 of
            the embedding.
        pairs: The edges.
        prompt: Which of the clean run's prompts, and of the donor's.

    Raises:
        ModelError: a network whose layers cannot be run one by one.
        SpecError: an edge that does not exist.
        ValueError: a donor that lacks a source, or whose arrays do not fit.
    """
    check_layers(network)
    for pair in pairs:
        check(network, *pair)
    paths = _Paths(network, own.tokens[prompt : prompt + 1], pairs)
    changes = {source: paths.change(source, donor, prompt) for source, _ in pairs}
    wanted: dict[tuple[int, bool], dict[Node, set[str]]] = {}
    for source, target in pairs:
        if target.part != "resid":
            key = (target.layer, target.part == "mlp")
            wanted.setdefault(key, {}).setdefault(source, set()).add(_site(target))
    made: dict[tuple[Node, Key], mx.array] = {}
    for (layer, mlp), sources in wanted.items():
        for i in range(0, len(sources), ROWS):
            part = {source: changes[source] for source in [*sources][i : i + ROWS]}
            sites = sorted({site for source in part for site in sources[source]})
            run = paths.read(layer, mx.concatenate(list(part.values())), sites, mlp=mlp)
            for n, source in enumerate(part):
                made |= {(source, (site, layer)): run[site, layer][n : n + 1] for site in sites}
    rows = []
    for source, target in pairs:
        key, heads = (_site(target), target.layer), None
        value = made.get((source, key))
        if value is None:
            value = paths.own[key] + changes[source]
        if target.head is not None:
            heads = [target.head]
            value = value[:, :, mx.array(heads)]
        rows.append(Row((Edit(*key, value, heads=heads),), prompt))
    return rows


def _site(node: Node) -> str:
    """The site that a node's part is an array of."""
    sites = {"embed": "resid_pre", "head": "z", "mlp": "mlp_out", "resid": "resid_post"}
    return sites.get(node.part, node.part)


class _Paths:
    """One prompt's clean run, and layers of it that are run again."""

    def __init__(
        self, network: Network, tokens: mx.array, pairs: Sequence[tuple[Node, Node]]
    ) -> None:
        self.network, self.tokens = network, tokens
        needed: set[Key] = set()
        for source, target in pairs:
            needed |= {(_site(source), source.layer), ("resid_pre", target.layer)}
            if source.part == "head":
                needed |= {("resid_pre", source.layer), ("attn_out", source.layer)}
            if target.part == "resid":
                needed.add(("resid_post", target.layer))
            if target.part == "mlp" and sequential(network, target.layer):
                needed.add(("attn_out", target.layer))
        trace = Trace(network, {}, watched=needed)
        trace.run(tokens)
        mx.eval(list(trace.seen.values()))
        self.own = trace.seen

    def change(self, source: Node, donor: Donor, prompt: int) -> mx.array:
        """Change of the stream by a source [1, position, d_model]."""
        site, layer = _site(source), source.layer
        given, own = donor.get(site, {}).get(layer), self.own[site, layer]
        if given is None:
            raise ValueError(f"the donor has no {site} of layer {layer}")
        given = given[prompt : prompt + 1].astype(own.dtype)
        if given.shape != own.shape:
            raise ValueError(f"the donor's {site} has shape {given.shape}, here it is {own.shape}")
        if source.head is None:
            return given - own
        heads = [source.head]
        edit = Edit("z", layer, given[:, :, mx.array(heads)], heads=heads)
        run = self._layer(layer, self.own["resid_pre", layer], ["attn_out"], [edit])
        return run["attn_out", layer] - self.own["attn_out", layer]

    def read(self, layer: int, changes: mx.array, sites: Sequence[str], *, mlp: bool) -> Run:
        """What a layer makes of the stream with each of the changes [row, position, d_model].

        With ``mlp`` it is the MLP alone that reads the changed stream.
        """
        stream = self.own["resid_pre", layer]
        if mlp and sequential(self.network, layer):
            changed = Edit("attn_out", layer, self.own["attn_out", layer] + changes)
            rows = mx.tile(stream, (changes.shape[0], 1, 1))
            return self._layer(layer, rows, sites, [changed])
        return self._layer(layer, stream + changes, sites)

    def _layer(
        self, layer: int, stream: mx.array, keep: Sequence[str], edits: Sequence[Edit] = ()
    ) -> Run:
        """One layer on streams [row, position, d_model]."""
        return forward(
            self.network,
            mx.tile(self.tokens, (stream.shape[0], 1)),
            keep=keep,
            layers=[layer],
            edits=edits,
            start=Start(layer, stream),
            logits=False,
        )
