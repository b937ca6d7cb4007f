"""The callbacks of one forward: what is kept, what is edited, what is not run at all."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mlxroles import attention as attn
from mlxroles.anatomy import Block, four_axes, residual_place, stream
from mlxroles.backend import mx, nn, on_gpu
from mlxroles.edits import ATTENTION_SITES, DERIVED, LINEAR, SITES, add_map, apply
from mlxroles.errors import ModelError
from mlxroles.forward.asked import WHOLE_HEAD, Asked, at
from mlxroles.forward.leaves import check_map, leaf_paths, nested
from mlxroles.forward.network import Network
from mlxroles.taps import AttentionCall, Frame, LayerHook, ModuleCall, Tap

LARGE = 1 << 19
"""Bytes of a stream from which a CPU had better finish a layer before it begins the next."""

UNSETTLED = 1 << 26
"""Bytes of score matrices that may be handed out before what is kept of them is evaluated."""


class Job:
    """The callbacks of one forward, and what they have kept so far.

    Raises:
        ModelError: a site that cannot be captured or edited, naming it and why.
        ValueError: a layer that does not exist or is not run.
    """

    def __init__(self, network: Network, asked: Asked) -> None:
        self.network, self.asked, self.start = network, asked, asked.start
        self.offset = asked.offset
        self._check_layers()
        first = 0 if self.start is None else self.start.layer
        chosen = range(first, len(network.layers)) if asked.layers is None else asked.layers
        self.kept: dict[str, dict[int, mx.array]] = {site: {} for site in asked.keep}
        self.keeps = {i: self._available(i, named=asked.layers is not None) for i in chosen}
        for site in asked.keep:
            if not any(site in sites for sites in self.keeps.values()):
                raise ModelError(self._why_not(site, chosen[0]))
        self.edits: dict[tuple[str, int], list[Any]] = {}
        for e in asked.edits:
            if e.site in network.block(e.layer).missing:
                raise ModelError(self._why_not(e.site, e.layer))
            check_map(network, e)
            self.edits.setdefault((e.site, e.layer), []).append(e)
        last = max((i for i, sites in self.keeps.items() if sites), default=-1)
        # layers that hand on more than their stream cannot be left out
        whole = asked.through or not network.anatomy.resumable
        self.last = len(network.layers) - 1 if whole else last
        self.output: mx.array | None = None
        self.mid: dict[int, mx.array] = {}
        self.turns: dict[int, int] = {}
        self.unsettled = 0

    def _check_layers(self) -> None:
        asked, n = self.asked, len(self.network.layers)
        for layer in (*(asked.layers or ()), *(e.layer for e in asked.edits)):
            if not 0 <= layer < n:
                raise ValueError(f"layer {layer} is outside 0..{n - 1}")
        first = 0 if self.start is None else self.start.layer
        if asked.keep and (asked.layers == () or first == n):
            raise ValueError("there is no layer at which to keep anything")
        kept = (asked.layers or ()) if asked.keep else ()
        for layer in (*kept, *(e.layer for e in asked.edits)):
            if layer < first:
                raise ValueError(f"layer {layer} lies before the start layer {first}")

    def _why_not(self, site: str, layer: int) -> str:
        if site not in SITES | DERIVED:
            return f"there is no site {site!r}; the sites are {', '.join(SITES)}"
        missing = self.network.block(layer).missing
        why = missing.get(_home(site)) or "not part of this layer"
        return f"{site} cannot be captured from {self.network.architecture}: {why}"

    def _available(self, layer: int, *, named: bool) -> tuple[str, ...]:
        """Sites to keep that this layer has; a refusal where it was asked for by name."""
        sites = []
        block = self.network.block(layer)
        for site in self.asked.keep:
            if site not in SITES | DERIVED:
                raise ModelError(self._why_not(site, layer))
            absent = _home(site) in block.missing
            gap = absent and block.kind == "none" and _home(site) in ATTENTION_SITES
            if absent and (named or not gap):
                raise ModelError(self._why_not(site, layer))
            if not absent:
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

    def _pass_heads(self, site: str, layer: int, array: mx.array, axis: int) -> mx.array:
        """The same for an array with heads along an axis; of those only this rank's go on."""
        ranks = self.network.ranks
        if ranks is None or not self._has(site, layer):
            return self._pass(site, layer, array)
        before = ranks.gathered(array, axis)
        after = self._pass(site, layer, before)
        return array if after is before else ranks.own(after, axis)

    def _known(self, site: str, layer: int) -> bool:
        """Whether the site's array comes from elsewhere, so that none need be computed here."""
        return False

    def wants_attention(self) -> bool:
        """Whether any attention site is kept or edited."""
        kept = {site for sites in self.keeps.values() for site in sites}
        return bool({_home(s) for s in kept | {s for s, _ in self.edits}} & set(ATTENTION_SITES))

    def _sees_weights(self, layer: int) -> bool:
        """Whether anything made of the pattern is kept or edited at a layer."""
        return any(self._has(site, layer) for site in ("pattern", *attn.SUMMARIES))

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
        after, out = self._block(call, place, self._pass("resid_pre", i, h[...]))
        self._settle(i, after)
        return self._leave(i, after, out, call.kwargs)

    def _settle(self, i: int, after: mx.array) -> None:
        """Bounds memory: T x T matrices of earlier layers are gone before more are built.

        On a CPU streams that are kept are finished layer by layer where they are large, so that
        the next layer works in memory that this one has left (a fifth less at 512 tokens).
        """
        if self.keeps.get(i) and i < self.last and after.nbytes >= LARGE and not on_gpu():
            mx.async_eval(after)
        if not {"pattern", *attn.SUMMARIES} & set(self.keeps.get(i, ())):
            return
        rows, length = after.shape[:2]
        self.unsettled += 4 * rows * self.network.block(i).heads * length * (self.offset + length)
        if self.unsettled > UNSETTLED:
            onwards = [] if i == self.last else [after]  # nobody reads what leaves the last one
            mx.eval(onwards, [list(k.values()) for k in self.kept.values()])
            self.unsettled = 0

    def _block(self, call: ModuleCall, place: int | str, h: mx.array) -> tuple[mx.array, Any]:
        """Runs a block on a stream: the stream that leaves it, and all that it returned."""
        assert call.frame is not None
        i = call.frame.layer
        if isinstance(place, int):
            call.args = (*call.args[:place], h, *call.args[place + 1 :])
        else:
            call.kwargs[place] = h
        self.turns[i] = 0
        out = call.run()
        if self._has("resid_mid", i):
            self._pass("resid_mid", i, h + self.mid.pop(i).astype(h.dtype))
        return self._pass("resid_post", i, stream(out)[...]), out

    def _leave(self, i: int, h: mx.array, out: Any, kwargs: dict[str, Any] | None = None) -> Any:
        """What the layer returns: the stream, cropped after the last one, and its other outputs."""
        read, architecture = self.asked.read, self.network.architecture
        if i == len(self.network.layers) - 1 and read is not None:
            h = h if architecture in WHOLE_HEAD else at(h, read)
        self.output = h
        if not isinstance(out, (tuple, list)):
            return h
        if architecture == "muse_spark" and out[1] is not None and kwargs:
            # it also hands on the next layer's normed input, made from the unedited stream
            pre_norm = next(s["pre_norm"] for s in self.network.namespaces if "pre_norm" in s)
            return (h, pre_norm(h, kwargs["next_norm"], dtype=out[1].dtype))
        return (h, *out[1:])

    def tap(self) -> Tap:
        """The tap whose callbacks these are."""
        attends = self.wants_attention()
        direct = attends and self.network.anatomy.direct
        return Tap(
            self.network.layers,
            namespaces=self.network.namespaces if attends else (),
            layer=self.layer,
            modules=self.module_hooks(),
            attention=self.attention if attends else None,
            softmax=self.softmax if direct else None,
            direct=direct,
        )

    # --- parts of a block ---------------------------------------------------------------------

    def module_hooks(self) -> list[tuple[nn.Module, LayerHook]]:
        """(submodule, callback) of every part of a block that is kept or edited."""
        hooks: dict[int, tuple[nn.Module, LayerHook]] = {}
        for i, layer in enumerate(self.network.layers):
            for path, hook in self._parts(i, self.network.block(i)):
                module = dict(layer.named_modules())[path]
                hooks[id(module)] = (module, hook)
        for layer, path in leaf_paths(self.edits):
            module, own = dict(self.network.layers[layer].named_modules())[path], self._leaf(path)
            _, other = hooks.get(id(module), (module, None))
            hooks[id(module)] = (module, own if other is None else nested(other, own))
        return list(hooks.values())

    def _parts(self, i: int, block: Block) -> Iterator[tuple[str, LayerHook]]:
        if block.attn_out and (self._has("attn_out", i) or self._has("resid_mid", i)):
            yield block.attn_out.path, self._part("attn_out")
        if block.mlp_out and self._has("mlp_out", i):
            yield block.mlp_out.path, self._part("mlp_out")
        # the leaves that show q, k, v and z of a layer that computes its attention by hand
        if block.rope and (self._has("q", i) or self._has("k", i)):
            yield block.rope, self._rope
        if block.v_proj and self._has("v", i):
            yield block.v_proj, self._values
        if block.out_proj and self._has("z", i):
            yield block.out_proj, self._projection

    def _rope(self, call: ModuleCall) -> Any:
        out = call.run()
        if call.frame is None:
            return out
        i = call.frame.layer
        self.turns[i] += 1
        site = "q" if self.turns[i] == 1 else "k"
        return self._pass(site, i, out.swapaxes(1, 2)).swapaxes(1, 2)

    def _values(self, call: ModuleCall) -> Any:
        out = call.run()
        if call.frame is None:
            return out
        i = call.frame.layer
        v = out.reshape(*out.shape[:2], self.network.block(i).kv_heads, -1)
        return self._pass("v", i, v).reshape(out.shape)

    def _part(self, site: str) -> LayerHook:
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
            if part.scale != 1.0 and self._known(site, i):
                new = new / part.scale
            elif part.scale != 1.0:
                # what the edit left alone goes back as it came, not through * and /
                new = mx.where(new == written, stream(out), new / part.scale)
            return (new, *out[1:]) if isinstance(out, (tuple, list)) else new

        return hook

    def _leaf(self, path: str) -> LayerHook:
        def hook(call: ModuleCall) -> Any:
            if call.frame is None or (LINEAR, call.frame.layer) not in self.edits:
                return call.run()
            x, y = call.args[0][...], call.run()
            if not isinstance(y, mx.array):
                raise ModelError(f"{path} of {self.network.architecture} is no linear map")
            return self._pass_leaf(path, call.frame.layer, x, y)

        return hook

    def _pass_leaf(self, path: str, layer: int, x: mx.array, y: mx.array) -> mx.array:
        """What a linear leaf that was handed x returns, after the edits of that leaf."""
        for edit in self.edits[LINEAR, layer]:
            y = add_map(edit, x, y) if edit.value.leaf == path else y
        return y

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
        if self._has("q", i):
            call.q = self._pass_heads("q", i, call.q.swapaxes(1, 2), 2).swapaxes(1, 2)
        for name in ("k", "v"):
            if self._has(name, i):
                setattr(call, name, self._own_positions(name, i, call))
        edited = any((name, i) in self.edits for name in ("q", "k", "v"))
        z = call.fused(call.q, call.k, call.v) if edited else call.fused()
        self._check_form(i, call, z)
        if self._sees_weights(i):
            change = self._weights(i, call)
            z = z if change is None else (z.astype(mx.float32) + change).astype(z.dtype)
        if self._has("z", i):
            z = self._pass_heads("z", i, z.swapaxes(1, 2), 2).swapaxes(1, 2)
        return z

    def _own_positions(self, name: str, i: int, call: AttentionCall) -> mx.array:
        """Keys or values after keeps and edits of those that do not come from the prefix."""
        whole = attn.plain(getattr(call, name), call.cache)
        before, own = whole[:, :, : self.offset], whole[:, :, self.offset :]
        own = self._pass_heads(name, i, own.swapaxes(1, 2), 2).swapaxes(1, 2)
        return mx.concatenate([before, own], axis=2) if self.offset else own

    def _check_form(self, i: int, call: AttentionCall, z: mx.array) -> None:
        """Latent attention computes a single token in the latent space: other k, v and z."""
        block = self.network.block(i)
        wanted = [site for site in ("q", "k", "v", "z") if self._has(site, i)]
        kv_heads = attn.plain(call.k, call.cache).shape[1] * self.network.parts
        if wanted and (kv_heads, z.shape[-1]) != (block.kv_heads, block.d_head):
            raise ModelError(
                f"{', '.join(wanted)} cannot be captured from {self.network.architecture} on a "
                "single token: it then attends in its latent space; run two tokens or more"
            )

    def _weights(self, i: int, call: AttentionCall) -> mx.array | None:
        """What an edited pattern adds to z, float32; None where it is only read."""
        if not self._has("pattern", i):
            self._keep(i, attn.summaries_of_call(call, self._summaries(i)))
            return None
        before = attn.pattern(call).weights
        after = self._pass_heads("pattern", i, before, 1)
        self._summarise(i, lambda: attn.visible(call.mask, *before.shape[-2:]))
        self._keep(i, attn.summaries(after, self._summaries(i)))
        if ("pattern", i) not in self.edits:
            return None
        v = attn.plain(call.v, call.cache)
        return attn.z_from(after, v) - attn.z_from(before, v)

    def _summarise(self, i: int, visible: Callable[[], mx.array]) -> None:
        """Puts a summary in the place of the pattern that was kept, where one is asked for."""
        kept = self.kept.get("pattern", {})
        if self.asked.summary is not None and i in kept:
            kept[i] = self.asked.summary(i, kept[i], visible())

    def _summaries(self, i: int) -> list[str]:
        """Those numbers made of the pattern that are wanted at a layer."""
        return [site for site in attn.SUMMARIES if self._has(site, i)]

    def _keep(self, i: int, found: Mapping[str, mx.array]) -> None:
        for site, array in found.items():
            self._pass_heads(site, i, array, 1)

    def softmax(self, frame: Frame, scores: mx.array, out: mx.array) -> mx.array:
        """Weights of a model that takes its softmax by hand, after keeps and edits."""
        i = frame.layer
        if self.network.block(i).kind != "softmax":
            return out
        if not self._sees_weights(i):
            return out
        if not self._has("pattern", i):
            self._keep(i, attn.summaries_of_scores(four_axes(scores), self._summaries(i)))
            return out
        exact = four_axes(mx.softmax(scores.astype(mx.float32), axis=-1, precise=True))
        weights = self._pass("pattern", i, exact)
        self._summarise(i, lambda: attn.seen_scores(four_axes(scores)))
        self._keep(i, attn.summaries(weights, self._summaries(i)))
        if ("pattern", i) not in self.edits:
            return out
        changed = (weights != exact).reshape(out.shape)
        return mx.where(changed, weights.reshape(out.shape).astype(out.dtype), out)


def _home(site: str) -> str:
    """The site whose absence is also the absence of this one."""
    return "entropy" if site in DERIVED else site
