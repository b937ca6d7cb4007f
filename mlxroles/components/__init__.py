"""Components of a model's linear maps: W^T = V U, one rank-one matrix each.

Decompositions come from the singular values of any model (``svd``), from training (``train``) or
from another program's state dict (``importing``); a component file (``file``) holds them.
"""

from mlxroles.components.decomposition import Components, Decomposition, Name, parse
from mlxroles.components.file import read, write
from mlxroles.components.maps import KINDS, Map, decomposable

__all__ = [
    "KINDS",
    "Components",
    "Decomposition",
    "Map",
    "Name",
    "decomposable",
    "parse",
    "read",
    "write",
]
