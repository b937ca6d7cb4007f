"""Which categories of prompts are held against each other."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from mlxroles.errors import SpecError
from mlxroles.text import did_you_mean, safe_text

_FOCUS, _REFERENCE, _CONFOUNDER = "self_referent", "neutral", "confounder"


@dataclass(frozen=True)
class Contrast:
    """The categories that RFC and RSI are made of."""

    focus: str
    """The category in question; RFC is how far its entropy lies below the reference."""
    reference: str
    """What both metrics are measured in."""
    confounder: str | None = None
    """What shares the focus' surface but not its subject; without it there is no RSI."""

    @property
    def names(self) -> tuple[str, ...]:
        """The categories that take part, focus first."""
        return (self.focus, self.reference, *([] if self.confounder is None else [self.confounder]))

    def document(self) -> dict[str, str | None]:
        """The contrast as it stands in a result document."""
        return asdict(self)


def contrast_of(
    categories: Sequence[str], text: str | None = None
) -> tuple[Contrast | None, tuple[str, ...]]:
    """The contrast that a text asks for, or the one that the categories suggest, with notes.

    Without a text these are ``self_referent``, ``neutral`` and ``confounder`` where the first two
    exist; otherwise the first category is the focus, the last the reference and, of three or
    more, the second the confounder. Fewer than two categories make no contrast.

    Args:
        categories: the names in the order of their first prompts.
        text: ``FOCUS/REFERENCE`` or ``FOCUS/REFERENCE/CONFOUNDER``; a name may hold a slash
            itself where the categories leave one way to read the text.

    Raises:
        SpecError: the text has another form, can be read in two ways, names a category twice or
            one that no prompt has.
    """
    if text is not None:
        return _asked_for(categories, text), ()
    if len(categories) < 2:
        return None, ("one category of prompts: entropies alone, nothing to hold them against",)
    if _FOCUS in categories and _REFERENCE in categories:
        return Contrast(_FOCUS, _REFERENCE, _CONFOUNDER if _CONFOUNDER in categories else None), ()
    found = Contrast(categories[0], categories[-1], categories[1] if len(categories) > 2 else None)
    return found, (_assumed(found),)


def _asked_for(categories: Sequence[str], text: str) -> Contrast:
    ways = [names for names in _ways(text) if all(name in categories for name in names)]
    ways = [names for names in ways if len(set(names)) == len(names)] or ways
    if len(ways) > 1:
        shown = " or ".join(", ".join(f"'{safe_text(name)}'" for name in names) for names in ways)
        raise SpecError(
            f"the contrast '{safe_text(text)}' can be read as {shown}; rename a category so that "
            "no name holds a slash"
        )
    names = ways[0] if ways else [name.strip() for name in text.split("/")]
    if len(names) not in (2, 3) or not all(names):
        raise SpecError(
            f"the contrast '{safe_text(text)}' is not FOCUS/REFERENCE or FOCUS/REFERENCE/CONFOUNDER"
        )
    for name in names:
        if name not in categories:
            known = ", ".join(map(safe_text, categories))
            hint = did_you_mean(name, categories)
            raise SpecError(
                f"no prompt has the category '{safe_text(name)}'; there are {known}{hint}"
            )
    if len(set(names)) < len(names):
        raise SpecError(f"the contrast '{safe_text(text)}' names a category twice")
    return Contrast(*names)


def _ways(text: str) -> Iterator[list[str]]:
    """Every way to read a text as two or three names, with slashes between or inside them."""
    parts = text.split("/")
    for n_cuts in (1, 2):
        for cuts in itertools.combinations(range(1, len(parts)), n_cuts):
            edges = itertools.pairwise((0, *cuts, len(parts)))
            yield ["/".join(parts[start:end]).strip() for start, end in edges]


def _assumed(found: Contrast) -> str:
    parts = [f"focus {safe_text(found.focus)}", f"reference {safe_text(found.reference)}"]
    if found.confounder is not None:
        parts.append(f"confounder {safe_text(found.confounder)}")
    return (
        f"no categories {_FOCUS} and {_REFERENCE}: {', '.join(parts)}, by their order; "
        "another contrast can be asked for"
    )
