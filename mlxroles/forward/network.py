"""What a forward takes and gives: a network, where to start, what came before, what was kept."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mlxroles import notebook
from mlxroles.anatomy import Anatomy, Block, architecture_of
from mlxroles.backend import mx, nn
from mlxroles.errors import ModelError
from mlxroles.forward import shown
from mlxroles.ranks import Ranks
from mlxroles.taps import Namespace, home_namespaces


class Start(NamedTuple):
    """Begin at ``layer`` with ``stream`` [batch, position, d_model] as its input.

    ``layer`` may be the number of layers: then only the final norm and the head run. The stream
    should have the dtype that the model's own has there: it is taken as it is.
    """

    layer: int
    stream: mx.array


@dataclass(frozen=True, eq=False)
class Network:
    """A module of mlx_lm, its blocks in order, and what is known about them."""

    module: nn.Module
    anatomy: Anatomy
    ranks: Ranks | None = None
    """The processes that hold it together; None where this one holds all of it."""
    layers: tuple[nn.Module, ...] = field(init=False)
    namespaces: tuple[Namespace, ...] = field(init=False)
    architecture: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.module.layers))
        object.__setattr__(self, "namespaces", tuple(home_namespaces(self.module)))
        object.__setattr__(self, "architecture", architecture_of(self.module))

    @property
    def parts(self) -> int:
        """Number of processes among which the heads are divided."""
        return 1 if self.ranks is None else self.ranks.size

    def block(self, layer: int) -> Block:
        """What is known about one layer, its heads those of all ranks."""
        return self.anatomy.blocks[layer]


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """What one forward kept.

    ``run["z"]`` stacks a site over the layers that were kept, ``run["z", 5]`` is one layer's
    array in the layout of ``edits.SITES``; ``logits`` is [batch, position, vocab] at the
    positions that were read, or None.
    """

    sites: Mapping[str, Mapping[int, mx.array]]
    logits: mx.array | None
    offset: int = 0
    """Number of positions that came from a prefix."""

    def __getitem__(self, key: str | tuple[str, int]) -> mx.array:
        site, layer = key if isinstance(key, tuple) else (key, None)
        if site not in self.sites:
            raise KeyError(f"{site!r} was not kept; kept were {list(self.sites)}")
        kept = self.sites[site]
        if layer is not None:
            if layer not in kept:
                raise KeyError(f"{site} was kept at layers {sorted(kept)}, not at {layer}")
            return kept[layer]
        if len({a.shape for a in kept.values()}) > 1:
            raise ModelError(f"{site} has other shapes in other layers; take one layer at a time")
        return mx.stack([kept[i] for i in sorted(kept)])

    def layers(self, site: str) -> list[int]:
        """Layers for which the site was kept: those of the run that have it."""
        return sorted(self.sites[site])

    def __repr__(self) -> str:
        """Names, shapes, axes and layers of what was kept, an array or site to a line."""
        found = shown.lines(self.sites, self.logits)
        told = [
            f"  {x.name:<16} {x.shape:<20} {x.axes}, {x.dtype}"
            + (f", layers {x.layers}" if x.layers else "")
            for x in found
        ]
        after = f" after {self.offset} positions" if self.offset else ""
        return "\n".join([f"Run{after}: {'kept' if told else 'nothing was kept'}", *told])

    def _repr_html_(self) -> str:
        after = f"A run after {self.offset} positions." if self.offset else "A run."
        note = 'run["site", layer] is one layer\'s array, run["site"] stacks the layers.'
        head = ("array", "shape", "axes", "type", "layers")
        return notebook.table(after, head, shown.lines(self.sites, self.logits), note)


class _Unwindowed:
    """What mlx_lm asks of a cache that drops old positions: here none are ever dropped."""

    start_position = 0

    def maybe_trim_front(self) -> None:
        """Does nothing; a mask and not the cache hides what lies outside a window or chunk."""


class Prefix(_Unwindowed):
    """A read-only KV cache of one layer: keys and values of positions that an earlier run saw.

    k and v are what the layer hands to its cache, as a rule [batch, kv_head, position, d]; a
    batch of 1 serves rows of any number, one of several prompts as many rows. Nothing is ever
    written, so one prefix is shared by all rows and runs. It stands for sliding and chunked
    caches too: all positions are kept, and the mask hides those outside the window.
    """

    def __init__(self, k: mx.array, v: mx.array) -> None:
        self.k, self.v, self.offset = k, v, int(k.shape[2])

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """The prefix followed by ``keys`` and ``values``; mlx_lm's caches have this method."""
        rows = keys.shape[0]
        old = [mx.broadcast_to(a, (rows, *a.shape[1:])) for a in (self.k, self.v)]
        return mx.concatenate([old[0], keys], axis=2), mx.concatenate([old[1], values], axis=2)

    def make_mask(
        self, n: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        """Mask for ``n`` new positions after the prefix."""
        return _mask(n, self.offset, return_array, window_size)


class Recorder(_Unwindowed):
    """An empty KV cache that remembers what a layer hands to it, to make a ``Prefix`` of."""

    offset = 0

    def __init__(self) -> None:
        self.kv: tuple[mx.array, mx.array] | None = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """``keys`` and ``values`` themselves."""
        self.kv = (keys[...], values[...])
        return keys, values

    def make_mask(
        self, n: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        """Mask for the first ``n`` positions."""
        return _mask(n, 0, return_array, window_size)


def _mask(n: int, offset: int, as_array: bool, window: int | None) -> Any:
    """What a model that runs without a cache makes, for the last ``n`` of offset + n positions."""
    from mlx_lm.models.cache import create_attention_mask

    narrow = window is not None and offset + n > window
    return create_attention_mask(n, offset, as_array, window if narrow else None)
