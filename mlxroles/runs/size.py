"""How many cells a run has in all, where nobody has said so: worked out from its manifest."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

Doc = Mapping[str, Any]


def cells_of(manifest: Doc) -> int | None:
    """The number of cells of a plan, None where the manifest does not tell.

    Runs that keep a history say it themselves; this is for those made before there was one.
    """
    identity = manifest.get("identity")
    if not isinstance(identity, Mapping):
        return None
    count = _COUNTS.get(str(identity.get("kind")), _unknown)
    with suppress(KeyError, TypeError, ValueError, AttributeError):
        return count(identity, manifest)
    return None


def _patch(identity: Doc, manifest: Doc) -> int | None:
    if identity["heads"] == "each":
        return None
    each = identity["positions"] == "each"
    lengths = [len(manifest["token_ids"][prompt[0]]) for prompt in identity["prompts"]]
    places = sum(lengths) if each else len(lengths)
    ways = 2 * len(identity["layers"]) * (1 + len(identity["controls"]))
    return 2 * len(lengths) + ways * places


def _probe(identity: Doc, manifest: Doc) -> int:
    return len(identity["models"]) * sum(len(rows) for rows in identity["prompts"].values())


def _entropy(identity: Doc, manifest: Doc) -> int:
    return len(identity["models"]) * len(_rows(identity["prompts"]))


def _unknown(identity: Doc, manifest: Doc) -> None:
    return None


def _rows(prompts: Sequence[Any]) -> Sequence[Any]:
    if isinstance(prompts, str | bytes):
        raise TypeError("prompts are a list")
    return prompts


_COUNTS: Mapping[str, Callable[[Doc, Doc], int | None]] = {
    "patch": _patch,
    "probe": _probe,
    "entropy": _entropy,
}
