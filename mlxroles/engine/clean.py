"""Clean runs: what the unpatched model computes, kept so that no patched run computes it again."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mlxroles.anatomy import residual_place
from mlxroles.backend import mx
from mlxroles.edits import SITES, Edit, onto, selected
from mlxroles.engine import counting
from mlxroles.engine.drive import Drive
from mlxroles.engine.rows import LATE, Shape, clean_calls
from mlxroles.forward import Network, Prefix, forward
from mlxroles.forward.asked import Asked, at
from mlxroles.forward.run import check_read, check_tokens
from mlxroles.taps import ModuleCall

COMPANIONS = {
    "mlp_out": ("attn_out",),
    "q": ("k", "v"),
    "k": ("q", "v"),
    "v": ("q", "k"),
}
"""Sites whose clean arrays spare a row that joins at a site the work before it."""


@dataclass(frozen=True, eq=False)
class Clean:
    """What one unpatched run of prompts of one length left behind."""

    tokens: mx.array
    """[prompt, position]"""
    shape: Shape
    sites: dict[str, dict[int, mx.array]] = field(default_factory=dict)
    """Site -> layer -> array [prompt, ...] in the layout of ``edits.SITES``."""
    logits: np.ndarray | None = None
    """[prompt, n_read, vocab] at the positions read, float32."""
    final: mx.array | None = None
    """Stream that leaves the last block at the positions read [prompt, n_read, d_model]; None
    for an architecture of which it cannot be captured."""
    streams: dict[int, mx.array] = field(default_factory=dict)
    """Layer -> stream that enters it; the number of layers stands for the last block's output,
    which begins at the first position read where ``shape.late``."""
    keys: dict[int, tuple[mx.array, mx.array]] = field(default_factory=dict)
    """Layer -> keys and values of all positions as it hands them to its cache."""
    late: bool = False
    """Arrays of the last layer begin at the first position read."""

    @property
    def read(self) -> tuple[int, ...]:
        """Positions of which logits are kept."""
        return self.shape.read

    def begins(self, site: str, layer: int) -> int:
        """Position at which the array of a site begins: 0 but where it was read late."""
        late = self.late and site != "resid_pre" and layer == self.shape.n_layers - 1
        return self.shape.first_read if late else 0

    def entering(self, layer: int) -> tuple[mx.array, int]:
        """The stream that enters a layer [prompt, position, d_model], and its first position.

        Raises:
            ValueError: it was not kept.
        """
        if layer not in self.streams:
            raise ValueError(
                f"the clean run kept what enters layers {sorted(self.streams)}, not {layer}: make "
                "it as a recipient's, with every layer that is edited"
            )
        return self.streams[layer], self.shape.first_read if layer == self.shape.n_layers else 0

    def prefix(self, prompt: int = 0) -> list[Prefix]:
        """Keys and values of every layer for one prompt, to run continuations of it from.

        Raises:
            ValueError: they were not kept for every layer.
        """
        if len(self.keys) < self.shape.n_layers:
            raise ValueError("the clean run has not kept the keys and values of every layer")
        rows = slice(prompt, prompt + 1)
        return [Prefix(k[rows], v[rows]) for k, v in (self.keys[i] for i in sorted(self.keys))]

    def value(self, site: str, layer: int, prompt: int = 0) -> mx.array:
        """One prompt's array [1, ...].

        Raises:
            ValueError: the site or layer was not kept.
        """
        kept = self.sites.get(site, {})
        if layer not in kept:
            raise ValueError(f"the clean run kept {site} at layers {sorted(kept)}, not at {layer}")
        return kept[layer][prompt : prompt + 1]


def transplant(
    donor: Clean,
    site: str,
    layer: int,
    *,
    prompt: int = 0,
    positions: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    value: mx.array | None = None,
    into: Clean | None = None,
) -> Edit:
    """The edit that puts a donor's activations in.

    Args:
        donor: The other model's clean run of prompts of the same length.
        site: Where they were kept.
        layer: Layer.
        prompt: Whose.
        positions: Positions that are replaced; None for all.
        heads: Heads that are replaced; None for all.
        value: Put in instead of the donor's own array, in its shape; noise, for example.
        into: The recipient's clean run, needed where the donor's array was read late: what lies
            before the first position that both read changes nothing there, and is left out.

    Raises:
        ValueError: the donor's run did not keep the site there, a position or head that it does
            not have, or a value of another shape.
    """
    own = donor.value(site, layer, prompt)
    array = own if value is None else value
    if array.shape != own.shape:
        raise ValueError(f"the donor's {site} has shape {own.shape}, the value {array.shape}")
    begins, length = donor.begins(site, layer), donor.shape.length
    if begins == 0:
        edit = Edit(site, layer, 0.0, positions=positions, heads=heads)
        return replace(edit, value=selected(edit, array))
    wanted = range(length) if positions is None else positions
    if into is None or into.shape.first_read < begins:
        raise ValueError(
            f"the donor's {site} of layer {layer} was kept from position {begins} on; make its "
            "clean run without late=True, or name as into a recipient that reads no earlier"
        )
    late = tuple(p for p in wanted if p >= begins)
    edit = Edit(site, layer, 0.0, positions=late, heads=heads)
    inside = onto(edit, begins, length)
    return edit if inside is None else replace(edit, value=selected(inside, array))


def clean(
    network: Network,
    tokens: mx.array | Sequence[Sequence[int]],
    *,
    read: Sequence[int],
    site: str | Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    recipient: bool = True,
    late: bool = False,
    logits: bool = True,
) -> Clean:
    """One unpatched run of prompts of one length.

    Args:
        network: The model's network.
        tokens: [prompt, position].
        read: Positions of which logits are kept.
        site: Sites whose arrays are kept; of a layer that lacks one nothing is kept.
        layers: Layers at which they are kept, and at which rows may join; None for all.
        recipient: Whether rows will run from it, so that streams, keys and values are kept.
        late: Keep arrays of the last layer from the first position read on only, so that the
            rest of it need not be computed.
        logits: Whether a donor's logits are wanted; a recipient's always are.

    Raises:
        ModelError: a site that cannot be captured from this architecture.
        PromptError: no tokens, or a token id that the model does not have.
        ValueError: a layer or position that does not exist, or prompts of different lengths.
    """
    asked = tokens if isinstance(tokens, mx.array) else _together(tokens)
    check_tokens(network, asked)
    named = [site] if isinstance(site, str) else list(site or ())
    n, length = len(network.layers), int(asked.shape[-1])
    chosen = list(range(n)) if layers is None else sorted({*layers})
    anatomy, logits = network.anatomy, logits or recipient
    wanted = tuple(int(p) for p in read)
    check_read(list(wanted), asked)
    shape = Shape(n, length, wanted, anatomy.prefix, anatomy.shortest)
    if not anatomy.resumable:
        return _whole(network, asked, shape, named, chosen, logits=logits)
    missing = {s for i in chosen if 0 <= i < n for s in network.block(i).missing}
    helpers = [s for name in named for s in COMPANIONS.get(name, ()) if recipient]
    helpers = [s for s in helpers if s not in missing]
    keep = [s for s in dict.fromkeys((*named, *helpers)) if s != "resid_pre"]
    is_late = late and shape.late and {*keep} <= {*LATE, "resid_mid"}
    job = _CleanRun(network, shape, keep, chosen, late=is_late, recipient=recipient)
    return job.result(asked, pre="resid_pre" in named, logits=logits)


def _together(tokens: Sequence[Sequence[int]]) -> mx.array:
    if len({len(row) for row in tokens}) > 1:
        raise ValueError("prompts of one clean run have one length")
    return mx.array([[int(token) for token in row] for row in tokens])


def _whole(
    network: Network,
    tokens: mx.array,
    shape: Shape,
    named: Sequence[str],
    layers: Sequence[int],
    *,
    logits: bool,
) -> Clean:
    """For architectures that cannot be resumed: patched runs will run whole, and need nothing."""
    last = shape.n_layers - 1
    ends = [] if "resid_post" in network.block(last).missing else ["resid_post"]
    sites = [*dict.fromkeys((*named, *ends))]
    where = sorted({*(layers if named else ()), last})
    run = forward(network, tokens, keep=sites, layers=where, read=list(shape.read), logits=logits)
    counting.add(made=tokens.shape[0] * shape.n_layers, least=tokens.shape[0] * shape.n_layers)
    return Clean(
        tokens,
        shape,
        {s: {i: run[s, i] for i in run.layers(s) if i in layers} for s in named},
        None if run.logits is None else np.array(run.logits.astype(mx.float32)),
        at(run["resid_post", last], shape.read) if ends else None,
    )


class _CleanRun(Drive):
    """The forward of a clean run; a layer that lacks a site keeps nothing of it."""

    def _available(self, layer: int, *, named: bool) -> tuple[str, ...]:
        missing = self.network.block(layer).missing
        return tuple(site for site in self.asked.keep if site in SITES and site not in missing)

    def __init__(
        self,
        network: Network,
        shape: Shape,
        keep: Sequence[str],
        layers: Sequence[int],
        *,
        late: bool,
        recipient: bool,
    ) -> None:
        asked = Asked(tuple(keep), tuple(layers), (), None, None, 0, through=True)
        super().__init__(network, asked, shape, first=0)
        last = self.n - 1
        self.recipient, self.is_late = recipient, late
        self.cuts_last = shape.first_read > 0 and (late or not keep or last not in layers)
        self.streams: dict[int, mx.array] = {}
        self.wanted = {*layers, *(i + 1 for i in layers)}
        self.final: mx.array | None = None

    def layer(self, call: ModuleCall) -> Any:
        """Runs one block and keeps what enters it."""
        assert call.frame is not None
        i = call.frame.layer
        place = residual_place(call, self.output, self.network.architecture)
        h = call.args[place] if isinstance(place, int) else call.kwargs[place]
        if i in self.wanted:
            self.streams[i] = h[...]
        last = i == self.n - 1
        if last and self.cuts_last:
            h = self.late_block(call, place, h[...])
        else:
            h, _ = self._block(call, place, h[...])
            self._settle(i, h)
            h = h[:, self.shape.first_read :] if last else h
        if last:
            self.streams[self.n] = h[...]
            h = self.final = at(h, [p - self.shape.first_read for p in self.shape.read])
        self.output = h
        return h

    def result(self, tokens: mx.array, *, pre: bool, logits: bool) -> Clean:
        """Runs it and evaluates what is kept."""
        out = self.go(tokens)
        rows, layers = tokens.shape[0], self.asked.layers or ()
        sites = {site: dict(kept) for site, kept in self.kept.items()}
        if pre:
            sites["resid_pre"] = {i: self.streams[i] for i in layers}
        keys = {}
        if self.recipient and self.caches is not None:
            first = min(layers, default=0)
            known = enumerate(self.caches)
            keys = {i: c.shown for i, c in known if i >= first and c.shown is not None}
        streams = self.streams if self.recipient else {}
        mx.eval([list(s.values()) for s in sites.values()], list(keys.values()), self.final)
        mx.eval(list(streams.values()), [out] if logits else [])
        shape = self.shape
        calls = rows * (clean_calls(shape) if self.cuts_last else self.n)
        counting.add(made=calls, least=calls)
        return Clean(
            tokens,
            shape,
            sites,
            np.array(out.astype(mx.float32)) if logits else None,
            self.final,
            streams,
            keys,
            late=self.is_late,
        )
