"""Figures of an entropy document: what each model does, and what tells the two apart.

``drawn`` yields them by name, one at a time, so that no more than one is held.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from matplotlib.figure import Figure

from mlxroles.plots.roles.candidates import candidates
from mlxroles.plots.roles.heads import heads, top_heads
from mlxroles.plots.roles.keys import first_keys, first_last
from mlxroles.plots.roles.layers import confounder, contrasts, entropy, roles
from mlxroles.plots.roles.models import comparison, differences
from mlxroles.plots.roles.subject import Subject
from mlxroles.plots.roles.violins import violins
from mlxroles.roles.table import Entropies
from mlxroles.text import slug

_PER_MODEL = {
    "entropy": entropy,
    "heads": heads,
    "first_keys": first_keys,
    "violins": violins,
    "contrasts": contrasts,
    "top_heads": top_heads,
    "first_last": first_last,
    "confounder": confounder,
    "roles": roles,
}
_PER_DOCUMENT = {"comparison": comparison, "differences": differences, "candidates": candidates}


def drawn(doc: Mapping[str, Any], tables: Mapping[str, Entropies]) -> Iterator[tuple[str, Figure]]:
    """Yields (name, figure) for all that the document holds; those without a number are left out.

    Figures of single heads and prompts need the model's table; without it they are left out.
    """
    for model in doc["models"]:
        subject = Subject(doc, str(model), tables.get(model))
        for name, draw in _PER_MODEL.items():
            figure = draw(subject)
            if figure is not None:
                yield f"{name}_{slug(subject.model)}", figure
    for name, draw_document in _PER_DOCUMENT.items():
        figure = draw_document(doc)
        if figure is not None:
            yield name, figure
