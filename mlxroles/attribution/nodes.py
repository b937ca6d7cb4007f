"""The ends of edges: what writes to the stream, and what reads it."""

from dataclasses import dataclass

from mlxroles.errors import ModelError, SpecError
from mlxroles.forward import Network

SOURCES = ("embed", "head", "mlp")
"""The embedding, a head's z, an MLP's output."""

TARGETS = ("q", "k", "v", "mlp", "resid")
"""The stream as a query, key or value head reads it, as an MLP reads it, as the head reads it."""


@dataclass(frozen=True)
class Node:
    """A source (of ``SOURCES``) or a target (of ``TARGETS``) of an edge."""

    layer: int
    part: str
    head: int | None = None
    """Query head, or kv head for k and v; None for parts that have none."""


def feeds(network: Network, source: Node, target: Node) -> bool:
    """Whether a source writes to the stream before the target reads it.

    Within a block a head comes before the MLP where the MLP reads the stream after attention, and
    not where both read what enters the block.
    """
    if target.part == "resid" or source.part == "embed":
        return True
    if source.layer != target.layer:
        return source.layer < target.layer
    return source.part == "head" and target.part == "mlp" and sequential(network, target.layer)


def sequential(network: Network, layer: int) -> bool:
    """Whether a block's MLP reads the stream after its attention."""
    return "resid_mid" not in network.block(layer).missing


def targets_of(network: Network, layer: int) -> list[Node]:
    """What reads the stream in a layer, as far as it can be seen."""
    block = network.block(layer)
    found = []
    for part, heads in (("q", block.heads), ("k", block.kv_heads), ("v", block.kv_heads)):
        if part not in block.missing:
            found += [Node(layer, part, head) for head in range(heads)]
    return found if "mlp_out" in block.missing else [*found, Node(layer, "mlp")]


def check_layers(network: Network) -> None:
    """Refuses networks in which readers of the stream cannot be told apart.

    Raises:
        ModelError: layers that hand on more than the stream.
    """
    if not network.anatomy.resumable:
        why = network.anatomy.stateful or network.anatomy.refused or "layers return several arrays"
        raise ModelError(f"{network.architecture} has no edges that can be told apart: {why}")


def check(network: Network, source: Node, target: Node) -> None:
    """Refuses an edge that does not exist.

    Raises:
        SpecError: naming the edge and why.
    """
    n = len(network.layers)
    for node, parts in ((source, SOURCES), (target, TARGETS)):
        if node.part not in parts or not 0 <= node.layer < n:
            raise SpecError(f"{node} is no end of an edge; it has one of {', '.join(parts)}")
    for node in (source, target):
        block = network.block(node.layer)
        heads = {"head": block.heads, "q": block.heads, "k": block.kv_heads, "v": block.kv_heads}
        if node.part in heads and (node.head is None or not 0 <= node.head < heads[node.part]):
            raise SpecError(f"{node} has no such head; the layer has {heads[node.part]}")
    if not feeds(network, source, target):
        raise SpecError(f"{source} does not feed {target}, which reads the stream before it")
