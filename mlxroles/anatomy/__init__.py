"""What the blocks of a model are made of, found by watching one short run and not by their names.

A graph of a few tokens is built under taps: shapes, the order of calls and the identity of arrays
tell which submodule is the attention, what enters its output projection and what the block adds
to the stream. One block of each kind is then looked at in full, and what is found is verified by
numbers (the parts sum to the block's output, in every block; z from the pattern is the kernel's
z). What does not hold is refused by name in ``Block.missing``; nothing is assumed.
"""

from mlxroles.anatomy.block import NO_ATTENTION, Anatomy, Block, Part
from mlxroles.anatomy.examine import examine
from mlxroles.anatomy.parts import ROUNDINGS
from mlxroles.anatomy.rounding import distance, sum_error, tolerance
from mlxroles.anatomy.shortcuts import JOIN_LATE, START_LATE, forbidden_by_type
from mlxroles.anatomy.watch import PROBE, architecture_of, four_axes, residual_place, stream

__all__ = [
    "JOIN_LATE",
    "NO_ATTENTION",
    "PROBE",
    "ROUNDINGS",
    "START_LATE",
    "Anatomy",
    "Block",
    "Part",
    "architecture_of",
    "distance",
    "examine",
    "forbidden_by_type",
    "four_axes",
    "residual_place",
    "stream",
    "sum_error",
    "tolerance",
]
