"""The logit lens: what a model would say if its stream ended at an earlier layer.

The stream of a layer goes through the model's own final norm (once), head, scale and soft-cap
(nostalgebraist 2020). The tuned lens (Belrose et al. 2023) puts an affine map per layer before
that, trained so that the reading comes near to what the model says in the end. Not here: how much
each part adds to a logit, which is direct logit attribution.
"""

from mlxroles.lens.fitting import Fitted, Settings, fit
from mlxroles.lens.projection import SITES, check, projected
from mlxroles.lens.reading import Reading, read
from mlxroles.lens.tuned import Tuned, read_tuned, write_tuned

__all__ = [
    "SITES",
    "Fitted",
    "Reading",
    "Settings",
    "Tuned",
    "check",
    "fit",
    "projected",
    "read",
    "read_tuned",
    "write_tuned",
]
