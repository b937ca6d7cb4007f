"""Parts of sentences that several tests share."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mlxroles.studies.ablate.at_positions import AtPositions


def within(model: str, context: "AtPositions") -> str:
    """``in base `` where there are two models."""
    return f"in {model} " if len(context.subject.sides) > 1 else ""


def bounds(ci: Sequence[float]) -> str:
    """`` (95 % interval 5 to 9)``, of shares in percent; nothing where there is none."""
    if not np.isfinite(ci).all():
        return ""
    return f" (95 % interval {100 * ci[0]:.0f} to {100 * ci[1]:.0f})"


def beside(null: Mapping[str, Any], how: str = "", what: str = "heads") -> str:
    """What random sets (of ``what``) leave, shares in percent; nothing without any."""
    if not null["n"]:
        return ""
    low, high = null["range"]
    shown = f"{100 * low:.0f} to {100 * high:.0f} %" if null["n"] > 1 else f"{100 * low:.0f} %"
    return f"; random {what} leave {how}{shown} (p = {null['p']:.2g})"
