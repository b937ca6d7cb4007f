"""First-order effects of edges: what one writer's change does through one reader alone.

The effect of an edge is (change of the stream by the source) . (slope of the metric in the stream
as the target alone reads it), summed over positions: edge attribution patching (Syed et al.
2023). The slopes of the targets come from one backward pass to the queries, keys, values and MLP
outputs, and from there to the stream one row per target, through the target's own projection and
norm. The sources' changes go forward through the output projection and whatever follows it, to
first order. Nothing is read off weight matrices, so grouped kv heads, biases, norms after a block
and quantised weights need no rule of their own.

The edges of a source add up to the estimate of its own cells, where all that reads the stream
after it is a target. It is not where a layer has no softmax attention, nor in latent attention,
whose rotated queries and keys reach the kernel as a mask.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mlxroles.attribution.estimate import Donor
from mlxroles.attribution.metrics import Metric
from mlxroles.attribution.nodes import Node, check_layers, feeds, sequential, targets_of
from mlxroles.attribution.trace import Key, Recipient, Trace, differentiable
from mlxroles.backend import mx
from mlxroles.edits import Edit
from mlxroles.forward import Network, Start

ROWS = 16
"""Targets or sources of a layer that run as one batch."""


@dataclass(frozen=True, eq=False)
class Edges:
    """First-order estimates of what single edges do to a metric of the recipient."""

    sources: list[Node]
    targets: list[Node]
    scores: np.ndarray
    """[prompt, source, target], float32; NaN where the source does not feed the target."""
    value: np.ndarray
    """The unpatched recipient's metric [prompt]."""


def edges(
    network: Network, tokens: mx.array, donor: Donor, metric: Metric, *, read: Sequence[int]
) -> Edges:
    """Effects of every edge on the metric, first order.

    Args:
        network: The recipient.
        tokens: Prompts of one length [prompt, position].
        donor: Sites ``z`` and ``mlp_out`` of the layers whose heads and MLPs are sources, and
            ``resid_pre`` of layer 0 if the embedding is to be one.
        metric: From ``metrics.metric``.
        read: Positions that the metric reads.

    Raises:
        ModelError: a network whose layers cannot be seen, or not be run one by one.
        PromptError: an empty prompt or a token id that the model does not have.
        ValueError: a donor without sources, or whose arrays do not fit; a position to read that
            does not exist.
    """
    recipient = Recipient(network, tokens, metric, read)
    check_layers(network)
    last = len(network.layers) - 1
    targets = [node for layer in range(last + 1) for node in targets_of(network, layer)]
    clean = _Pass(recipient, donor, targets)
    changes = dict(clean.changes(donor))
    if not changes:
        raise ValueError("the donor has neither z nor mlp_out of any layer")
    sources, prompts = list(changes), tokens.shape[0]
    moved = mx.stack([changes.pop(source) for source in sources], axis=1)
    moved = moved.reshape(prompts, len(sources), -1)
    targets.append(Node(last, "resid"))
    columns = {target: t for t, target in enumerate(targets)}
    scores = np.full((prompts, len(sources), len(targets)), np.nan, np.float32)
    for nodes, slopes in clean.slopes(targets):
        # sources come in the order of the run, so that those before a target are the first ones
        n = sum(feeds(network, source, nodes[0]) for source in sources)
        readers = slopes.reshape(len(nodes), prompts, -1).transpose(1, 2, 0)
        scores[:, :n, [columns[node] for node in nodes]] = np.array(moved[:, :n] @ readers)
    return Edges(sources, targets, scores, np.array(clean.value))


class _Pass:
    """The unpatched run with its slopes, and layers of it that run again in several rows."""

    def __init__(self, recipient: Recipient, donor: Donor, targets: Sequence[Node]) -> None:
        self.recipient, self.network = recipient, recipient.network
        last = len(self.network.layers) - 1
        reads: set[Key] = {("mlp_out" if t.part == "mlp" else t.part, t.layer) for t in targets}
        reads.add(("resid_post", last))
        watched: set[Key] = {("resid_pre", layer) for layer in range(last + 1)}
        for site in ("z", "mlp_out"):
            watched |= {(site, layer) for layer in donor.get(site, ())}
        mlps = [t.layer for t in targets if t.part == "mlp"]
        watched |= {("attn_out", layer) for layer in mlps if sequential(self.network, layer)}
        clean = recipient.gradients(recipient.shapes(reads), watched=watched)
        self.value, self.slope, self.own = clean.value, clean.slope, clean.trace.seen
        mx.eval(self.value, list(self.slope.values()), list(self.own.values()))

    def changes(self, donor: Donor) -> Iterator[tuple[Node, mx.array]]:
        """Change of the stream by every source [prompt, position, d_model], float32.

        First order, and in the order in which the sources write.
        """
        embedding = donor.get("resid_pre", {}).get(0)
        if embedding is not None:
            yield Node(0, "embed"), _difference(embedding, self.own["resid_pre", 0])
        for layer in range(len(self.network.layers)):
            if layer in donor.get("z", {}):
                change = _difference(donor["z"][layer], self.own["z", layer])
                for head, written in enumerate(self._written(layer, change)):
                    yield Node(layer, "head", head), written
            if layer in donor.get("mlp_out", {}):
                change = _difference(donor["mlp_out"][layer], self.own["mlp_out", layer])
                yield Node(layer, "mlp"), change

    def _written(self, layer: int, change: mx.array) -> Iterator[mx.array]:
        """What every head's change of z writes to the stream, first order."""
        own, heads = self.own["z", layer], change.shape[2]
        for first in range(0, heads, ROWS):
            part = range(first, min(first + ROWS, heads))
            alone = [mx.arange(heads)[:, None] == head for head in part]
            moved = mx.concatenate([change * at for at in alone])
            fixed = Edit("z", layer, mx.tile(own, (len(part), 1, 1, 1)))

            def write(added: mx.array, fixed: Edit = fixed) -> mx.array:
                return self._again(layer, ("z", layer), added, ["attn_out"], [fixed])[0]

            with differentiable(self.network):
                _, (rows,) = mx.jvp(write, [mx.zeros(moved.shape)], [moved])
            rows = rows.reshape(len(part), -1, *rows.shape[1:])
            mx.eval(rows)
            yield from rows

    def slopes(self, targets: Sequence[Node]) -> Iterator[tuple[list[Node], mx.array]]:
        """Slopes in the stream as targets read it [target, prompt, position, d_model], float32.

        Targets that come together read the same stream.
        """
        last = len(self.network.layers) - 1
        for layer in range(last + 1):
            own = [target for target in targets if target.layer == layer]
            heads = [target for target in own if target.part in ("q", "k", "v")]
            for i in range(0, len(heads), ROWS):
                nodes = heads[i : i + ROWS]
                parts = list(dict.fromkeys(node.part for node in nodes))
                alone = [_alone(nodes, part, self.slope[part, layer]) for part in parts]
                yield nodes, self._read(layer, parts, alone)
            mlp = [target for target in own if target.part == "mlp"]
            if mlp:
                yield mlp, self._read(layer, ["mlp_out"], [self.slope["mlp_out", layer]])
        yield [Node(last, "resid")], self.slope["resid_post", last][None]

    def _read(self, layer: int, parts: Sequence[str], slopes: Sequence[mx.array]) -> mx.array:
        """Slopes at what a layer makes of the stream, brought back to the stream it reads.

        Args:
            layer: The layer.
            parts: Sites that read the stream.
            slopes: Slope at every one of them [row x prompt, ...].
        """
        stream = self.own["resid_pre", layer]
        copies = slopes[0].shape[0] // stream.shape[0]
        entry, fixed = ("resid_pre", layer), []
        if "mlp_out" in parts and sequential(self.network, layer):
            entry = ("attn_out", layer)
            fixed = [Edit("attn_out", layer, self.own[entry])]

        def read(added: mx.array) -> list[mx.array]:
            return self._again(layer, entry, added, parts, fixed)

        zeros = mx.zeros((copies * stream.shape[0], *stream.shape[1:]))
        with differentiable(self.network):
            _, (rows,) = mx.vjp(read, [zeros], list(slopes))
        rows = rows.reshape(copies, *stream.shape)
        mx.eval(rows)
        return rows

    def _again(
        self, layer: int, entry: Key, added: mx.array, sites: Sequence[str], fixed: Sequence[Edit]
    ) -> list[mx.array]:
        """Arrays at sites of one layer, float32, with something added at ``entry``.

        As many rows as ``added`` has: every prompt once, all of them again, and so on.
        """
        copies = added.shape[0] // self.recipient.tokens.shape[0]
        start = Start(layer, mx.tile(self.own["resid_pre", layer], (copies, 1, 1)))
        keys = [(site, layer) for site in sites]
        trace = Trace(
            self.network, {entry: added}, watched=keys, edits=fixed, start=start, last=layer
        )
        trace.run(mx.tile(self.recipient.tokens, (copies, 1)))
        return [trace.seen[key].astype(mx.float32) for key in keys]


def _difference(donor: mx.array, own: mx.array) -> mx.array:
    if donor.shape != own.shape:
        raise ValueError(f"a donor's array has shape {donor.shape}, here it is {own.shape}")
    return donor.astype(own.dtype).astype(mx.float32) - own.astype(mx.float32)


def _alone(nodes: Sequence[Node], part: str, slope: mx.array) -> mx.array:
    """Slope of one part [prompt, position, head, d], once per node with that node's head alone.

    All zeros for nodes of another part.
    """
    head = mx.arange(slope.shape[2])[:, None]
    kept = [head == node.head if node.part == part else head < 0 for node in nodes]
    return mx.concatenate([slope * at for at in kept])
