"""Direct logit attribution: what every part of a model writes to a logit, so that it adds up.

The final stream is the sum of what the embedding, the heads, the MLPs and the biases wrote to it.
With the scale of the final norm (and of norms after an attention) held at the value that it had,
what turns the stream into a logit is a sum too (Elhage et al. 2021; "logit attribution" of
TransformerLens). Everything is taken from runs and not from the names of modules, and checked
against them: what cannot be told apart stays one part, what cannot be read is refused by name.
"""

from mlxroles.direct.attribute import attribute, attribute_positions
from mlxroles.direct.parts import KINDS, Parts

__all__ = ["KINDS", "Parts", "attribute", "attribute_positions"]
