"""The sweep engine: no layer is computed twice.

What precedes an edit is known from the recipient's clean run. A patched run is a row: it joins the
model's loop at the layer of its first edit (inside the block, where the edit is), it begins at
its first edited position with the clean run's keys and values before it, and the last block and
the head see the positions that are read. Rows of many layers, heads, positions, prompts, donors
and strengths run as one batch. Architectures that forbid a shortcut run without it, with the same
numbers.
"""

from mlxroles.engine.batch import Answer
from mlxroles.engine.clean import Clean, clean, transplant
from mlxroles.engine.counting import LayerCalls, calls, reset_calls
from mlxroles.engine.noise import matched_noise, shuffled_keys
from mlxroles.engine.rows import Row, Shape, Spot, clean_calls, least_calls, spot
from mlxroles.engine.sweep import cut, room, run, sweep

__all__ = [
    "Answer",
    "Clean",
    "LayerCalls",
    "Row",
    "Shape",
    "Spot",
    "calls",
    "clean",
    "clean_calls",
    "cut",
    "least_calls",
    "matched_noise",
    "reset_calls",
    "room",
    "run",
    "shuffled_keys",
    "spot",
    "sweep",
    "transplant",
]
