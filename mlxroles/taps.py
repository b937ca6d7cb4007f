"""Taps in situ: the model's own forward runs, and what passes through it can be read and replaced.

A layer (or any submodule) is given a cached subclass of its own class, whose ``__call__`` asks the
active tap; identity, attributes, ``isinstance`` and parameters stay what they were. Attention is
seen where the model's file calls ``scaled_dot_product_attention``: that name is replaced by a
dispatcher in the namespaces of the model's classes. Files that call ``mx.fast`` or ``mx.softmax``
themselves are given a stand-in for ``mx``.

The active taps live in context variables and every replacement is counted per object, so that
exceptions, threads, asyncio tasks and several models of one architecture all come out clean.

What a tap *does* is decided by its callbacks; this module knows no sites and no edits.
"""

import sys
import threading
import types
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mlxroles.backend import mx, nn


class Frame(NamedTuple):
    """The layer that is running: its index and how often it was called before in this run."""

    layer: int
    call: int


@dataclass
class ModuleCall:
    """A call of a layer or submodule that a tap may run, change or leave out."""

    module: nn.Module
    cls: type
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    frame: Frame | None

    def run(self) -> Any:
        """Output of the module's own ``__call__`` on ``args`` and ``kwargs`` as they stand."""
        return self.cls.__call__(self.module, *self.args, **self.kwargs)


@dataclass
class AttentionCall:
    """One call of fused attention: q [batch, head, query, d], k and v [batch, kv_head, key, d].

    q and k come after RoPE and any q/k norm. With a quantised cache k and v are triples.
    """

    q: Any
    k: Any
    v: Any
    scale: float
    mask: Any
    sinks: Any
    cache: Any
    fused: Callable[..., mx.array]
    """``fused(q, k, v)`` is the model's own kernel; without arguments it takes those given."""
    frame: Frame


LayerHook = Callable[[ModuleCall], Any]
AttentionHook = Callable[[AttentionCall], mx.array]
SoftmaxHook = Callable[[Frame, mx.array, mx.array], mx.array]
"""Takes the frame, the scores and the weights that the model's softmax made of them."""

Namespace = dict[str, Any]
"""The globals of a Python file."""

KERNEL = "scaled_dot_product_attention"

_TAPS: ContextVar[tuple["Tap", ...]] = ContextVar("mlxroles_taps", default=())
_FRAME: ContextVar[tuple["Tap", Frame] | None] = ContextVar("mlxroles_frame", default=None)
_LOCK = threading.RLock()
_SUBCLASSES: dict[type, type] = {}
_RECLASSED: Counter[int] = Counter()
_RENAMED: dict[tuple[int, str], list[Any]] = {}


def _subclass(cls: type) -> type:
    if cls not in _SUBCLASSES:

        def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
            for tap in _TAPS.get():
                if id(self) in tap.where:
                    return tap._called(self, cls, args, kwargs)
            return cls.__call__(self, *args, **kwargs)

        names = {"__call__": __call__, "__module__": cls.__module__, "_tapped_class": cls}
        _SUBCLASSES[cls] = type(cls.__name__, (cls,), names)
    return _SUBCLASSES[cls]


def _reclass(module: nn.Module) -> None:
    with _LOCK:
        if _RECLASSED[id(module)] == 0:
            object.__setattr__(module, "__class__", _subclass(type(module)))
        _RECLASSED[id(module)] += 1


def _declass(module: nn.Module) -> None:
    with _LOCK:
        _RECLASSED[id(module)] -= 1
        if _RECLASSED[id(module)] == 0:
            del _RECLASSED[id(module)]
            object.__setattr__(module, "__class__", real_class(module))


def _rename(namespace: Namespace, name: str, make: Callable[[Any], Any]) -> None:
    key = (id(namespace), name)
    with _LOCK:
        if key not in _RENAMED:
            original = namespace[name]
            namespace[name] = make(original)
            _RENAMED[key] = [0, original]
        _RENAMED[key][0] += 1


def _unrename(namespace: Namespace, name: str) -> None:
    key = (id(namespace), name)
    with _LOCK:
        _RENAMED[key][0] -= 1
        if _RENAMED[key][0] == 0:
            namespace[name] = _RENAMED.pop(key)[1]


def real_class(module: nn.Module) -> type:
    """Class of a module as its author wrote it, also while a tap holds the module."""
    return getattr(type(module), "_tapped_class", type(module))


def _sdpa_dispatcher(original: Callable[..., mx.array]) -> Callable[..., mx.array]:
    def scaled_dot_product_attention(
        queries: Any, keys: Any, values: Any, *args: Any, **kwargs: Any
    ) -> mx.array:
        active = _FRAME.get()
        if active is None or active[0].attention is None:
            return original(queries, keys, values, *args, **kwargs)
        names = dict(zip(("cache", "scale", "mask", "sinks"), args, strict=False)) | kwargs

        def fused(q: Any = queries, k: Any = keys, v: Any = values) -> mx.array:
            return original(q, k, v, *args, **kwargs)

        return _seen(active, (queries, keys, values), names, fused)

    return scaled_dot_product_attention


def _seen(
    active: tuple["Tap", Frame], qkv: tuple[Any, Any, Any], names: Mapping[str, Any], fused: Any
) -> mx.array:
    """What the tap's callback makes of an attention call; ``names`` are its other arguments."""
    tap, frame = active
    assert tap.attention is not None
    call = AttentionCall(
        q=qkv[0][...],  # mlx_lm's quantised attention scales its q in place
        k=qkv[1],
        v=qkv[2],
        scale=names.get("scale", 1.0),
        mask=names.get("mask"),
        sinks=names.get("sinks"),
        cache=names.get("cache"),
        fused=fused,
        frame=frame,
    )
    return tap.attention(call)


class _StandIn(types.ModuleType):
    """Another module under a few names of its own."""

    def __init__(self, real: Any, **names: Any) -> None:
        super().__init__(real.__name__)
        self.__dict__.update(names, _real=real)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_real"], name)


def _mx_stand_in(original: Any) -> types.ModuleType:
    def softmax(a: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        out = original.softmax(a, *args, **kwargs)
        active = _FRAME.get()
        if active is None or active[0].softmax is None or out.ndim < 4:
            return out
        return active[0].softmax(active[1], a, out)

    fast = original.fast

    def sdpa(q: Any, k: Any, v: Any, **kwargs: Any) -> mx.array:
        active = _FRAME.get()
        if active is None or active[0].attention is None:
            return fast.scaled_dot_product_attention(q, k, v, **kwargs)

        def fused(q: Any = q, k: Any = k, v: Any = v) -> mx.array:
            return fast.scaled_dot_product_attention(q, k, v, **kwargs)

        return _seen(active, (q, k, v), kwargs, fused)

    stand_in = _StandIn(fast, scaled_dot_product_attention=sdpa)
    return _StandIn(original, softmax=softmax, fast=stand_in)


def home_namespaces(net: nn.Module) -> list[Namespace]:
    """Globals of the files in which the classes of ``net`` were written, MLX's own left out."""
    found: dict[int, Namespace] = {}
    for cls in {c for module in net.modules() for c in real_class(module).__mro__}:
        home = cls.__module__
        if home in ("builtins", "mlx_lm.models.base") or home.startswith("mlx."):
            continue
        # a file that a model brings along is run without becoming an importable module
        imported = sys.modules.get(home)
        for space in [vars(imported)] if imported else _globals_of(cls):
            found[id(space)] = space
    return sorted(found.values(), key=lambda space: str(space.get("__name__")))


def _globals_of(cls: type) -> list[Namespace]:
    return [f.__globals__ for f in vars(cls).values() if isinstance(f, types.FunctionType)]


@dataclass(eq=False)
class Tap:
    """A context in which calls of layers, submodules and attention pass through callbacks.

    Each callback replaces the call it is handed and must return what the call would have: it can
    run it as it is, change its arguments or its result, or not run it at all. Of two taps on the
    same layer the inner one gets its calls. One tap serves one ``with`` block at a time; threads
    make their own.

    Raises:
        RuntimeError: when it is entered while it is active.
    """

    layers: Iterable[nn.Module]
    """The model's blocks in order; the callback ``layer`` and all frames count by it."""
    namespaces: Iterable[Namespace] = ()
    """From ``home_namespaces``: walked once per model, since the walk costs 0.5 ms."""
    layer: LayerHook | None = None
    modules: Iterable[tuple[nn.Module, LayerHook]] = ()
    """Submodules and their callbacks; the frame tells the layer that is running, if any."""
    attention: AttentionHook | None = None
    softmax: SoftmaxHook | None = None
    direct: bool = False
    """Also replace ``mx`` in the namespaces, for files that call its attention or softmax."""
    where: dict[int, Any] = field(init=False, repr=False)
    calls: Counter[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.layers = list(self.layers)
        self._modules = {id(m): (m, hook) for m, hook in self.modules}
        self.where = {id(layer): i for i, layer in enumerate(self.layers)} | self._modules
        self.calls = Counter()
        self._undo: ExitStack | None = None

    def _called(self, module: nn.Module, cls: type, args: tuple, kwargs: dict[str, Any]) -> Any:
        active = _FRAME.get()
        if id(module) in self._modules:
            inside = active[1] if active is not None and active[0] is self else None
            return self._modules[id(module)][1](ModuleCall(module, cls, args, kwargs, inside))
        i = self.where[id(module)]
        frame = Frame(i, self.calls[i])
        self.calls[i] += 1
        token = _FRAME.set((self, frame))
        try:
            call = ModuleCall(module, cls, args, kwargs, frame)
            return call.run() if self.layer is None else self.layer(call)
        finally:
            _FRAME.reset(token)

    def __enter__(self) -> "Tap":
        if self._undo is not None:
            raise RuntimeError("this tap is active already; make another one")
        self.calls.clear()
        with ExitStack() as undo:
            named: list[nn.Module] = [module for module, _ in self._modules.values()]
            held = {id(m): m for m in (*self.layers, *named)}
            for module in held.values():
                _reclass(module)
                undo.callback(_declass, module)
            for namespace in self.namespaces:
                if self.attention and KERNEL in namespace:
                    _rename(namespace, KERNEL, _sdpa_dispatcher)
                    undo.callback(_unrename, namespace, KERNEL)
                if self.direct and "mx" in namespace:
                    _rename(namespace, "mx", _mx_stand_in)
                    undo.callback(_unrename, namespace, "mx")
            token = _TAPS.set((self, *_TAPS.get()))
            undo.callback(_TAPS.reset, token)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        undo, self._undo = self._undo, None
        if undo is not None:
            undo.close()
