"""One forward of a network under keeps and edits: the primitive that every study is made of.

The model's own ``__call__`` drives. Only what is asked for is kept; MLX is lazy, so what no kept
array needs is never computed: with ``start`` the blocks before it are not even built, blocks
after the last wanted one neither, and with ``read`` the final norm and head see those positions
only. Unedited attention returns the fused kernel's own output; edits of a pattern are applied as
a difference to it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mlxroles import attention as attn
from mlxroles.anatomy import (
    Anatomy,
    Block,
    architecture_of,
    four_axes,
    residual_place,
    stream,
)
from mlxroles.backend import mx, nn
from mlxroles.edits import ATTENTION_SITES, SITES, Edit, apply
from mlxroles.errors import ModelError
from mlxroles.taps import AttentionCall, Frame, ModuleCall, Tap, home_namespaces

# Files whose final norm or head mix positions or copies, so that a cropped stream would be wrong.
WHOLE_HEAD = {"kimi_k3", "deepseek_v41", "gemma3n", "nanbeige"}


class Start(NamedTuple):
    """Begin at ``layer`` with ``stream`` [batch, position, d_model] as its input.

    ``layer`` may be the number of layers: then only the final norm and the head run.
    """

    layer: int
    stream: mx.array


@dataclass(frozen=True, eq=False)
class Network:
    """A module of mlx_lm, its blocks in order, and what is known about them."""

    module: nn.Module
    anatomy: Anatomy
    layers: tuple[nn.Module, ...] = field(init=False)
    namespaces: tuple[Any, ...] = field(init=False)
    architecture: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.module.layers))
        object.__setattr__(self, "namespaces", tuple(home_namespaces(self.module)))
        object.__setattr__(self, "architecture", architecture_of(self.module))

    def block(self, layer: int) -> Block:
        """What is known about one layer."""
        return self.anatomy.blocks[layer]


@dataclass(frozen=True, eq=False)
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
        if isinstance(key, tuple):
            return self.sites[key[0]][key[1]]
        kept = self.sites[key]
        shapes = {a.shape for a in kept.values()}
        if len(shapes) > 1:
            raise ModelError(f"{key} has other shapes in other layers; take one layer at a time")
        return mx.stack([kept[i] for i in sorted(kept)])

    def layers(self, site: str) -> list[int]:
        """Layers for which the site was kept: those of the run that have it."""
        return sorted(self.sites[site])


class Prefix:
    """A read-only KV cache of one layer: keys and values of positions that an earlier run saw.

    k and v are [batch, kv_head, position, d]; a batch of 1 serves rows of any number. Nothing is
    ever written, so one prefix is shared by all rows and runs.
    """

    def __init__(self, k: mx.array, v: mx.array) -> None:
        self.k, self.v, self.offset = k, v, int(k.shape[2])

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """The prefix followed by ``keys`` and ``values``; mlx_lm's caches have this method."""
        rows = keys.shape[0]
        old = [mx.broadcast_to(a, (rows, *a.shape[1:])) for a in (self.k, self.v)]
        return mx.concatenate([old[0], keys], axis=2), mx.concatenate([old[1], values], axis=2)

    def make_mask(self, n: int, return_array: bool = False, window_size: int | None = None) -> Any:
        """Mask for ``n`` new positions after the prefix."""
        from mlx_lm.models.cache import create_attention_mask

        return create_attention_mask(n, self.offset, return_array, window_size)


def forward(
    network: Network,
    tokens: mx.array,
    *,
    keep: Sequence[str] = (),
    layers: Sequence[int] | None = None,
    edits: Sequence[Edit] = (),
    start: Start | None = None,
    read: Sequence[int] | mx.array | None = None,
    prefix: Sequence[Prefix] | None = None,
    logits: bool = True,
) -> Run:
    """Runs the network on tokens [batch, position] and returns what was asked for, evaluated.

    Args:
        network: What to run.
        tokens: Token ids; rows of different lengths are padded on the right, where causal
            attention hides the padding from every real position.
        keep: Sites to keep, of ``edits.SITES``.
        layers: Layers at which to keep them; None for all that have them.
        edits: Interventions, carried out in the order given where several meet.
        start: Where to begin, if not at the embedding.
        read: Positions at which logits are wanted: a list for all rows, or an array [batch, n].
            None reads all.
        prefix: One ``Prefix`` per layer for the positions before ``tokens``.
        logits: Whether logits are wanted at all.

    Raises:
        ModelError: when a site cannot be captured here, naming it and why.
        ValueError: for a layer that does not exist or a start that the network does not allow.
    """
    job = _Job(network, tuple(keep), layers, tuple(edits), start, read, logits)
    modules, job_attention = job.module_hooks(), job.wants_attention()
    tap = Tap(
        network.layers,
        namespaces=network.namespaces if job_attention else (),
        layer=job.layer,
        modules=modules,
        attention=job.attention if job_attention else None,
        softmax=job.softmax if job_attention and network.anatomy.direct else None,
        direct=job_attention and network.anatomy.direct,
    )
    extra = {} if prefix is None else {"cache": list(prefix)}
    with tap:
        out = stream(network.module(tokens, **extra))
    if logits and read is not None and network.architecture in WHOLE_HEAD:
        out = _at(out, read)
    wanted = [a for kept in job.kept.values() for a in kept.values()]
    mx.eval(*wanted, *([out] if logits else []))
    offset = prefix[0].offset if prefix else 0
    return Run(job.kept, out if logits else None, offset)


def _at(h: mx.array, read: Sequence[int] | mx.array) -> mx.array:
    """Positions ``read`` of h [batch, position, width], the same or others for every row."""
    if isinstance(read, mx.array) and read.ndim == 2:
        return mx.take_along_axis(h, read[:, :, None], axis=1)
    return h[:, mx.array(read)]


class _Job:
    """The callbacks of one forward, and what they have kept so far."""

    def __init__(
        self,
        network: Network,
        keep: tuple[str, ...],
        layers: Sequence[int] | None,
        edits: tuple[Edit, ...],
        start: Start | None,
        read: Sequence[int] | mx.array | None,
        logits: bool,
    ) -> None:
        self.network, self.start, self.read, self.logits = network, start, read, logits
        n = len(network.layers)
        chosen = range(n) if layers is None else layers
        if network.anatomy.refused and (keep or edits or start):
            raise ModelError(f"{network.architecture}: {network.anatomy.refused}")
        for layer in (*chosen, *(e.layer for e in edits)):
            if not 0 <= layer < n:
                raise ValueError(f"layer {layer} is outside 0..{n - 1}")
        self._check_start(edits)
        self.kept: dict[str, dict[int, mx.array]] = {site: {} for site in keep}
        self.keeps = {i: self._available(keep, i, named=layers is not None) for i in chosen}
        for site in keep:
            if not any(site in at for at in self.keeps.values()):
                raise ModelError(self._why_not(site, next(iter(chosen))))
        self.edits: dict[tuple[str, int], list[Edit]] = {}
        for e in edits:
            if e.site in network.block(e.layer).missing:
                raise ModelError(self._why_not(e.site, e.layer))
            self.edits.setdefault((e.site, e.layer), []).append(e)
        touched = [i for i, sites in self.keeps.items() if sites]
        self.last = n - 1 if logits else max(touched, default=-1)
        self.output: mx.array | None = None
        self.mid: dict[int, mx.array] = {}
        self.turns: dict[int, int] = {}

    def _check_start(self, edits: tuple[Edit, ...]) -> None:
        if self.start is None:
            return
        if not self.network.anatomy.resumable:
            raise ValueError(f"{self.network.architecture} cannot start from a residual stream")
        if not 0 <= self.start.layer <= len(self.network.layers):
            raise ValueError(f"start layer {self.start.layer} does not exist")
        if any(e.layer < self.start.layer for e in edits):
            raise ValueError("an edit lies before the start layer")

    def _why_not(self, site: str, layer: int) -> str:
        if site not in SITES:
            known = ", ".join((*SITES, "logits"))
            return f"there is no site {site!r}; the sites are {known}"
        block = self.network.block(layer)
        why = block.missing.get(site) or "not part of this layer"
        return f"{site} cannot be captured from {self.network.architecture}: {why}"

    def _available(self, keep: tuple[str, ...], layer: int, *, named: bool) -> tuple[str, ...]:
        """Sites of ``keep`` that this layer has; a refusal where the layer was asked for by name."""
        sites = []
        block = self.network.block(layer) if self.network.anatomy.blocks else None
        for site in keep:
            if site not in SITES:
                raise ModelError(self._why_not(site, layer))
            absent = block is None or site in block.missing
            gap = absent and block is not None and block.kind == "none" and site in ATTENTION_SITES
            if absent and (named or not gap):
                raise ModelError(self._why_not(site, layer))
            if not absent and (self.start is None or layer >= self.start.layer):
                sites.append(site)
        return tuple(sites)

    def _has(self, site: str, layer: int) -> bool:
        return site in self.keeps.get(layer, ()) or (site, layer) in self.edits

    def _pass(self, site: str, layer: int, array: mx.array) -> mx.array:
        """The array after this site's edits; kept if asked for."""
        for edit in self.edits.get((site, layer), ()):
            array = apply(edit, array)
        if site in self.keeps.get(layer, ()):
            self.kept[site][layer] = array[...]
        return array

    def wants_attention(self) -> bool:
        """Whether any attention site is kept or edited."""
        kept = {site for sites in self.keeps.values() for site in sites}
        return bool((kept | {site for site, _ in self.edits}) & set(ATTENTION_SITES))

    # --- layers -------------------------------------------------------------------------------

    def layer(self, call: ModuleCall) -> Any:
        """Runs one block, or passes the stream on where its output is not needed."""
        assert call.frame is not None
        i, n = call.frame.layer, len(self.network.layers)
        place = residual_place(call, self.output, self.network.architecture)
        h = call.args[place] if isinstance(place, int) else call.kwargs[place]
        if self.start is not None and i < self.start.layer:
            if i == n - 1:
                h = self.start.stream
            return self._leave(i, h, h)
        if self.start is not None and i == self.start.layer:
            h = self.start.stream
        if i > self.last:
            return self._leave(i, h, h)
        h = self._pass("resid_pre", i, h[...])
        if isinstance(place, int):
            call.args = (*call.args[:place], h, *call.args[place + 1 :])
        else:
            call.kwargs[place] = h
        out = call.run()
        if self._has("resid_mid", i):
            self._pass("resid_mid", i, h + self.mid.pop(i).astype(h.dtype))
        after = self._pass("resid_post", i, stream(out)[...])
        if {"pattern", "entropy"} & set(self.keeps.get(i, ())):
            # bounds memory: the T x T matrices of one layer are gone before the next is built
            mx.eval(after, *(kept[i] for kept in self.kept.values() if i in kept))
        return self._leave(i, after, out, call.kwargs)

    def _leave(self, i: int, h: mx.array, out: Any, kwargs: dict[str, Any] | None = None) -> Any:
        if i == len(self.network.layers) - 1 and self.read is not None:
            if self.network.architecture not in WHOLE_HEAD:
                h = _at(h, self.read)
        self.output = h
        if not isinstance(out, (tuple, list)):
            return h
        if self.network.architecture == "muse_spark" and out[1] is not None and kwargs:
            # it also hands on the next layer's normed input, made from the unedited stream
            pre_norm = next(s.pre_norm for s in self.network.namespaces if hasattr(s, "pre_norm"))
            return (h, pre_norm(h, kwargs["next_norm"], dtype=out[1].dtype))
        return (h, *out[1:])

    # --- parts of a block ---------------------------------------------------------------------

    def module_hooks(self) -> list[tuple[nn.Module, Any]]:
        """(submodule, callback) of every part of a block that is kept or edited."""
        hooks: dict[int, tuple[nn.Module, Any]] = {}
        for i, layer in enumerate(self.network.layers):
            if not self.network.anatomy.blocks:
                break
            block = self.network.block(i)
            paths = dict(layer.named_modules())
            if block.attn_out and (self._has("attn_out", i) or self._has("resid_mid", i)):
                module = paths[block.attn_out.path]
                hooks[id(module)] = (module, self._part("attn_out"))
            if block.mlp_out and self._has("mlp_out", i):
                module = paths[block.mlp_out.path]
                hooks[id(module)] = (module, self._part("mlp_out"))
            if block.kind == "softmax":
                for module, hook in self._leaves(i, block, paths):
                    hooks[id(module)] = (module, hook)
        return list(hooks.values())

    def _leaves(
        self, i: int, block: Block, paths: Mapping[str, nn.Module]
    ) -> Iterator[tuple[nn.Module, Any]]:
        """Leaves that show q, k, v and z of a layer that computes its attention by hand."""
        if block.rope and (self._has("q", i) or self._has("k", i)):
            yield paths[block.rope], self._rope
        if block.v_proj and self._has("v", i):
            yield paths[block.v_proj], self._values
        if block.out_proj and self._has("z", i):
            yield paths[block.out_proj], self._projection

    def _rope(self, call: ModuleCall) -> Any:
        out = call.run()
        if call.frame is None:
            return out
        i = call.frame.layer
        self.turns[i] = self.turns.get(i, 0) + 1
        site = "q" if self.turns[i] == 1 else "k"
        return self._pass(site, i, out.swapaxes(1, 2)).swapaxes(1, 2)

    def _values(self, call: ModuleCall) -> Any:
        out = call.run()
        if call.frame is None:
            return out
        i = call.frame.layer
        v = out.reshape(*out.shape[:2], self.network.block(i).kv_heads, -1)
        return self._pass("v", i, v).reshape(out.shape)

    def _part(self, site: str) -> Any:
        def hook(call: ModuleCall) -> Any:
            out = call.run()
            if call.frame is None:
                return out
            i = call.frame.layer
            part = getattr(self.network.block(i), site)
            written = stream(out)[...] if part.scale == 1.0 else stream(out) * part.scale
            new = self._pass(site, i, written)
            if site == "attn_out":
                self.mid[i] = new
            if (site, i) not in self.edits:
                return out
            new = new if part.scale == 1.0 else new / part.scale
            return (new, *out[1:]) if isinstance(out, (tuple, list)) else new

        return hook

    def _projection(self, call: ModuleCall) -> Any:
        if call.frame is None:
            return call.run()
        i, x = call.frame.layer, call.args[0]
        heads = x.reshape(*x.shape[:-1], self.network.block(i).heads, -1)
        z = self._pass("z", i, heads)
        if ("z", i) in self.edits:
            call.args = (z.reshape(x.shape), *call.args[1:])
        return call.run()

    # --- attention ----------------------------------------------------------------------------

    def attention(self, call: AttentionCall) -> mx.array:
        """Output z [batch, head, query, d] of one attention call, after keeps and edits."""
        i = call.frame.layer
        for name in ("q", "k", "v"):
            if self._has(name, i):
                array = getattr(call, name)
                array = array if name == "q" else attn.plain(array, call.cache)
                new = self._pass(name, i, array.swapaxes(1, 2)).swapaxes(1, 2)
                setattr(call, name, new)
        edited = any((name, i) in self.edits for name in ("q", "k", "v"))
        z = call.fused(call.q, call.k, call.v) if edited else call.fused()
        if self._has("pattern", i) or self._has("entropy", i):
            z = z + self._weights(i, call)
        if self._has("z", i):
            z = self._pass("z", i, z.swapaxes(1, 2)).swapaxes(1, 2)
        return z

    def _weights(self, i: int, call: AttentionCall) -> mx.array | float:
        """What an edited pattern adds to z; nothing is added where the pattern is only read."""
        before = attn.pattern(call).weights
        after = self._pass("pattern", i, before)
        if self._has("entropy", i):
            self._pass("entropy", i, attn.entropy(after))
        if ("pattern", i) not in self.edits:
            return 0.0
        v = attn.plain(call.v, call.cache)
        return (attn.z_from(after, v) - attn.z_from(before, v)).astype(v.dtype)

    def softmax(self, frame: Frame, scores: mx.array, out: mx.array) -> mx.array:
        """Weights of a model that takes its softmax by hand, after keeps and edits."""
        i = frame.layer
        if self.network.block(i).kind != "softmax":
            return out
        if not (self._has("pattern", i) or self._has("entropy", i)):
            return out
        exact = mx.softmax(scores.astype(mx.float32), axis=-1, precise=True)
        weights = self._pass("pattern", i, four_axes(exact))
        if self._has("entropy", i):
            self._pass("entropy", i, attn.entropy(weights))
        if ("pattern", i) not in self.edits:
            return out
        return weights.reshape(out.shape).astype(out.dtype)
