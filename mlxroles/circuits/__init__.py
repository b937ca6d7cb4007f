"""What the weights of heads say without a prompt: QK and OV circuits (Elhage et al. 2021).

:func:`copying`: whether attending to a token makes it likelier. :mod:`.composition`: what a head
reads of what an earlier one writes. :mod:`.spectrum`: eigenvalues of the circuits between tokens.
:mod:`.pairs`: the tokens that they join most. :func:`rotary`, :func:`curves`: what distance does,
under the model's own RoPE. All of it is of dequantised weights, with the gains of norms folded in
or not, and no array is vocab x vocab. What a head reads in a run is more than embeddings, so each
of these says what a head would do on the direct path from the tokens.
"""

from mlxroles.circuits.copying import TOKENS, Copying, copied, copying, drawn_ids
from mlxroles.circuits.curves import CURVE_FIELDS, OFFSETS, Curves, curves
from mlxroles.circuits.ends import Ends, ends_of
from mlxroles.circuits.matrices import Heads, heads_of
from mlxroles.circuits.rotary import Rotary, rotary

__all__ = [
    "CURVE_FIELDS",
    "OFFSETS",
    "TOKENS",
    "Copying",
    "Curves",
    "Ends",
    "Heads",
    "Rotary",
    "copied",
    "copying",
    "curves",
    "drawn_ids",
    "ends_of",
    "heads_of",
    "rotary",
]
