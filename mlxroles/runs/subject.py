"""What a run is about, in a few words: what tells it from others of its experiment."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlxroles.text import shortened

_MOST_PROMPTS, _MOST_SITES = 2, 3
_LONGEST = 24
_NUMBERED = re.compile(r"p\d{3,}")
"""Names of prompts that were given as texts, or in a file without names."""


def subject(manifest: Mapping[str, Any]) -> list[str]:
    """Prompts, sites, seed and the like, as far as they are not what every command takes.

    ``["animals", "attn_out", "seed 1"]``; empty where the manifest says nothing.
    """
    identity = manifest.get("identity")
    if not isinstance(identity, Mapping):
        return []
    parts = [*_prompts(identity, manifest.get("argv")), *_places(identity)]
    parts += [*_layers(identity, manifest.get("about")), *_others(identity)]
    return [shortened(part, _LONGEST) for part in parts]


def _prompts(identity: Mapping[str, Any], argv: object) -> Iterator[str]:
    """Names of few prompts, the number of many; the variants of a probe count once."""
    found: Any = identity.get("prompts")
    if isinstance(found, Mapping):
        found = next(iter(found.values()), None)
    names = [str(row[0]) for row in _list(found) if _list(row)]
    given = _given([str(word) for word in _list(argv)])
    if all(_NUMBERED.fullmatch(name) for name in names) and len(given) == 1:
        names = [given[0]] if len(names) == 1 else [f"{given[0]} ({len(names)})"]
    if len(names) > _MOST_PROMPTS:
        yield f"{len(names)} prompts"
    elif names:
        yield "+".join(names)


def _given(argv: Sequence[str]) -> list[str]:
    """Texts and files of prompts as they stand in the command."""
    words = [argv[at + 1] for at, word in enumerate(argv[:-1]) if word == "--prompt"]
    return [
        Path(word).name if word.endswith((".json", ".toml", ".txt")) else word for word in words
    ]


def _places(identity: Mapping[str, Any]) -> Iterator[str]:
    """Where a run patches, or what it keeps, where that is not the usual."""
    if identity.get("site", "resid_post") != "resid_post":
        yield str(identity["site"])
    for name in ("sites", "keep"):
        several = _list(identity.get(name))
        if several:
            is_few = len(several) <= _MOST_SITES
            yield "+".join(map(str, several)) if is_few else f"{len(several)} sites"
    for name in ("heads", "positions"):
        value = identity.get(name)
        if value == "each":
            yield f"each {name[:-1]}"
        elif isinstance(value, str | int) and value != "all":
            yield f"{name} {value}"


def _layers(identity: Mapping[str, Any], about: object) -> Iterator[str]:
    """The layers, where they are not all."""
    layers = _list(identity.get("layers"))
    view = about.get("view") if isinstance(about, Mapping) else None
    total = view.get("n_layers") if isinstance(view, Mapping) else None
    if layers and isinstance(total, int) and len(layers) < total:
        numbers = [layer for layer in layers if isinstance(layer, int)]
        is_range = len(numbers) > 1 and numbers == [*range(numbers[0], numbers[-1] + 1)]
        ends = f"{numbers[0]}-{numbers[-1]}" if is_range else ",".join(map(str, layers))
        yield f"layers {ends}"


def _others(identity: Mapping[str, Any]) -> Iterator[str]:
    if identity.get("headline"):
        yield str(identity["headline"])
    if identity.get("controls") == []:
        yield "no controls"
    if identity.get("donor_head"):
        yield "donor head"
    if isinstance(identity.get("ig"), int) and identity["ig"] > 1:
        yield f"ig {identity['ig']}"
    if identity.get("seed"):
        yield f"seed {identity['seed']}"


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()
