"""Vectors of the residual stream: made from a model or read from files, bound to their layers.

A vector always says which layers it was taken from, and can be had for no other: what is made
from the output of block 7 is added to the output of block 7. Not here: what a vector does to a
model (``studies``), and edits from a file (``edit_file``).
"""

from mlxroles.vectors.extract import TEMPLATE, concept, contrast, last_streams, without, word_ids
from mlxroles.vectors.files import IN_RUN, read, split_ref, write
from mlxroles.vectors.noise import matched_noise
from mlxroles.vectors.steer import edit
from mlxroles.vectors.vectors import Vectors, merge
from mlxroles.vectors.words import baseline, concepts

__all__ = [
    "IN_RUN",
    "TEMPLATE",
    "Vectors",
    "baseline",
    "concept",
    "concepts",
    "contrast",
    "edit",
    "last_streams",
    "matched_noise",
    "merge",
    "read",
    "split_ref",
    "without",
    "word_ids",
    "write",
]
