"""Attribution patching: what single patches would do, estimated from one gradient.

Effects of all cells and of all edges are first order in the donor's change, except that the
softmax of changed queries and keys is computed exactly; integrated gradients follow the change
further. ``path_rows`` are the edges' exact twins, for the engine to run.
"""

from mlxroles.attribution.edges import Edges, edges
from mlxroles.attribution.estimate import HEADS, STREAM, Estimates, estimate
from mlxroles.attribution.metrics import METRICS, Metric, metric
from mlxroles.attribution.nodes import Node
from mlxroles.attribution.paths import path_rows

__all__ = [
    "HEADS",
    "METRICS",
    "STREAM",
    "Edges",
    "Estimates",
    "Metric",
    "Node",
    "edges",
    "estimate",
    "metric",
    "path_rows",
]
