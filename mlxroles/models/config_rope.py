"""Rotary positions: `rope_parameters` of transformers 5 and `rope_scaling` of before.

transformers 5 writes base, scaling and partial factor into one dictionary, once or per layer type;
most mlx_lm modules only read the old keys and fall back to a default base without a word.
"""

from collections.abc import Mapping
from typing import Any

from mlxroles.models import reference
from mlxroles.models.findings import Findings, LengthLimit, Reading, shown

BASES = ("rope_theta", "rotary_emb_base")
LOCAL_BASES = ("rope_local_base_freq", "swa_rope_theta", "rope_local_theta")
PARTIALS = ("partial_rotary_factor", "rotary_pct")
PLAIN_LOCAL = frozenset({"olmo3"})
"""Modules that scale the rope of full-attention layers only, as their transformers twin does."""
WHOLE_HEAD = frozenset({"glm"})
"""Modules that rotate whole heads although their models rotate a part; corrected when built."""
FIXED_PARTIAL = {"recurrent_gemma": 0.5}
"""Rotated fraction that is written into a module."""
_NOT_SCALING = frozenset({"rope_theta", "partial_rotary_factor"})
_KINDS = frozenset({"type", "rope_type", "factor"})
_LENGTH = "original_max_position_embeddings"
_YARN = frozenset({_LENGTH, "beta_fast", "beta_slow", "mscale", "mscale_all_dim"})
UNDERSTOOD = {
    "default": frozenset({"mrope_section", "mrope_interleaved"}),
    "mrope": frozenset({"mrope_section", "mrope_interleaved"}),
    "linear": frozenset(),
    "dynamic": frozenset({"alpha", _LENGTH}),
    "llama3": frozenset({_LENGTH, "low_freq_factor", "high_freq_factor"}),
    "yarn": _YARN,
    "deepseek_yarn": _YARN,
    "telechat3-yarn": _YARN,
    "longrope": frozenset({_LENGTH, "long_factor", "short_factor", "long_mscale", "short_mscale"}),
    "proportional": frozenset(),
}
"""Keys that mlx_lm's ``initialize_rope`` uses, by rope type."""
UNDERSTOOD["su"] = UNDERSTOOD["longrope"]
HARMLESS = frozenset({"max_position_embeddings", "finetuned", "mrope_section"})
NEUTRAL = {"truncate": (True,), "attention_factor": (1.0,)}
_PHI3_KINDS = frozenset({"default", "longrope", "su", "linear"})
_EXPLAINED = ("rope_parameters", "rope_scaling", *BASES, *LOCAL_BASES, *PARTIALS)


def rope(reading: Reading, found: Findings) -> None:
    """Brings every rope setting to the keys that the module reads, or says that it cannot."""
    found.explained.update(_EXPLAINED)
    stored = reading.text.get("rope_parameters")
    if not isinstance(stored, Mapping) or not stored:
        _old_style(reading, found)
        return
    if any(isinstance(value, Mapping) for value in stored.values()):
        if reading.served.reads("rope_parameters"):
            return
        stored = _one_rope(reading, found, stored)
    if stored:
        _flat(reading, found, stored)


def _flat(reading: Reading, found: Findings, stored: Mapping[str, Any]) -> None:
    """One dictionary for all layers."""
    _base(reading, found, stored.get("rope_theta"))
    whole = 1.0 if reading.served.requires("rotary_dim") else None
    _partial(reading, found, stored.get("partial_rotary_factor", whole))
    kind = _kind(stored)
    scaling = {k: v for k, v in stored.items() if k not in _NOT_SCALING and v is not None}
    if kind in ("default", "mrope"):
        if reading.served.declares("rope_scaling") and reading.served.requires("rope_scaling"):
            found.overrides.setdefault("rope_scaling", reading.text.get("rope_scaling"))
    elif reading.served.reads("rope_scaling"):
        scaling |= {"type": kind, "rope_type": kind}
        reason = f"rope_parameters asks for rope type {kind!r}"
        found.repair("rope_scaling", scaling, reason)
        _details(reading, found, scaling)
    elif reading.served.reads("rope_parameters") and reading.served.uses("initialize_rope"):
        _details(reading, found, scaling)
    else:
        found.refusals.append(_no_scaling(reading, kind))


def _old_style(reading: Reading, found: Findings) -> None:
    """Separate keys, as before transformers 5."""
    scaling = reading.text.get("rope_scaling")
    _base(reading, found, _old_base(reading))
    for key in PARTIALS:
        _partial(reading, found, reading.text.get(key))
    if not isinstance(scaling, Mapping):
        if reading.served.requires("rope_scaling") and "rope_scaling" not in reading.text:
            found.repair("rope_scaling", None, "the module requires the key")
        return
    kind = _kind(scaling)
    if kind != "default" and not reading.served.reads("rope_scaling"):
        found.refusals.append(_no_scaling(reading, kind))
        return
    if "type" not in scaling or "rope_type" not in scaling:
        scaling = {**scaling, "type": kind, "rope_type": kind}
        found.overrides["rope_scaling"] = scaling
    _details(reading, found, scaling)


def _old_base(reading: Reading) -> object:
    """The base in the config; if there is none, that of transformers for this model type."""
    for key in (*BASES, "rope_embedding_base", "rope_freq_constant"):
        if reading.text.get(key) is not None:
            return reading.text[key]
    if any(reading.served.reads(key) for key in BASES):
        return reference.defaults(reading.model_type).get("default_theta")
    return None


def _base(reading: Reading, found: Findings, base: object) -> None:
    """Sets the base under the name that the module reads."""
    if base is None:
        return
    for key in BASES:
        if not reading.served.declares(key):
            continue
        before, default = reading.text.get(key), reading.served.defaults[key]
        found.overrides[key] = base
        if before is not None and before != base:
            found.repair(key, base, f"rope_parameters wins over {key} {shown(before)}")
        elif before is None and reading.served.requires(key):
            found.repair(key, base, "the key is absent")
        elif before is None and default != base and not reading.served.reads("rope_parameters"):
            found.repair(key, base, f"mlx_lm would have used {shown(default)}")
        return
    rotates = reading.served.uses("RoPE") or reading.served.uses("initialize_rope")
    if rotates and not reading.served.reads("rope_parameters") and base != 10000.0:
        message = f"rope_theta {shown(base)} cannot be given to mlx_lm's {reading.served.name}"
        found.refusals.append(message)


def _partial(reading: Reading, found: Findings, factor: object) -> None:
    """Sets the rotated fraction of each head under the name that the module reads."""
    if factor is None:
        return
    for key in PARTIALS:
        if reading.served.declares(key):
            found.overrides[key] = factor
            if reading.text.get(key, reading.served.defaults[key]) != factor:
                found.repair(key, factor, "rope_parameters holds it")
            return
    name, head_dim = reading.served.name, reading.text.get("head_dim")
    if reading.served.declares("rotary_dim") or reading.served.reads("rope_parameters"):
        _rotary_dim(reading, found, factor)
    elif name in WHOLE_HEAD and isinstance(head_dim, int) and isinstance(factor, float | int):
        found.rope["dims"] = int(head_dim * factor)
        told = f"mlx_lm's {name} would have rotated all {head_dim}"
        found.repairs.append(f"rotated dimensions = {found.rope['dims']}: {told}")
    elif factor != FIXED_PARTIAL.get(name, 1.0):
        message = f"partial_rotary_factor {shown(factor)} is not read"
        found.refusals.append(f"{message} by mlx_lm's {reading.served.name}")


def _rotary_dim(reading: Reading, found: Findings, factor: object) -> None:
    """Sets the count of rotated dimensions that minimax reads instead of a fraction."""
    head_dim = reading.text.get("head_dim")
    absent = reading.served.requires("rotary_dim") and "rotary_dim" not in reading.text
    if absent and isinstance(head_dim, int) and isinstance(factor, float | int):
        found.repair("rotary_dim", int(head_dim * factor), "from partial_rotary_factor")


def _one_rope(
    reading: Reading, found: Findings, stored: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    """The rope of full-attention layers, when that of the others has a place of its own."""
    by_kind = {kind: dict(value) for kind, value in stored.items() if isinstance(value, Mapping)}
    if len({repr(sorted(value.items())) for value in by_kind.values()}) == 1:
        return next(iter(by_kind.values()))
    full, local = by_kind.get("full_attention"), by_kind.get("sliding_attention")
    name = reading.served.name
    if full and local and set(by_kind) == {"full_attention", "sliding_attention"}:
        plain = _kind(local) == "default"
        key = next((key for key in LOCAL_BASES if reading.served.reads(key)), None)
        if key and plain:
            if reading.text.get(key) != local.get("rope_theta"):
                found.repair(key, local.get("rope_theta"), "rope of sliding_attention layers")
            return full
        if name in PLAIN_LOCAL and plain and local.get("rope_theta") == full.get("rope_theta"):
            return full
    found.refusals.append(f"rope_parameters differ by layer type, mlx_lm's {name} has one rope")
    return None


def _details(reading: Reading, found: Findings, scaling: Mapping[str, Any]) -> None:
    """Keys inside a scaling dictionary that mlx_lm would ignore or take otherwise."""
    kind = _kind(scaling)
    if reading.served.name == "phi3" and kind not in _PHI3_KINDS:
        found.refusals.append(_no_scaling(reading, kind))
    if _LENGTH in scaling:
        _original_length(reading, found, scaling[_LENGTH])
    elif UNDERSTOOD.get(kind) == _YARN:
        _yarn_length(reading, found, scaling)
    if kind in ("longrope", "su"):
        _longrope(reading, found, scaling)
    if not reading.served.uses("initialize_rope"):
        return
    if kind not in UNDERSTOOD:
        found.refusals.append(_no_scaling(reading, kind))
        return
    if UNDERSTOOD[kind] is _YARN and _needs_correction(scaling):
        _yarn_layers(reading, found, scaling)
        return
    for key, value in scaling.items():
        if key in UNDERSTOOD[kind] | _KINDS | _NOT_SCALING | HARMLESS or value is None:
            continue
        if value not in NEUTRAL.get(key, ()) and f'"{key}"' not in reading.served.source:
            message = f"rope {key} = {shown(value)} is ignored by mlx_lm for rope type {kind!r}"
            found.warnings.append(message)


def _original_length(reading: Reading, found: Findings, length: object) -> None:
    """Copies the trained length to where phi3 reads it, beside the dictionary."""
    if reading.served.declares(_LENGTH) and _LENGTH not in reading.text:
        found.repair(_LENGTH, length, "rope_parameters holds it")


def _yarn_length(reading: Reading, found: Findings, scaling: Mapping[str, Any]) -> None:
    """Fills in a missing trained length as transformers does; mlx_lm would take 4096."""
    length = reading.text.get("max_position_embeddings")
    if isinstance(length, int) and reading.served.reads("rope_scaling"):
        fuller = {**scaling, _LENGTH: length}
        found.repair("rope_scaling", fuller, "mlx_lm would have assumed 4096 trained positions")


def _needs_correction(scaling: Mapping[str, Any]) -> bool:
    return scaling.get("truncate") is False or scaling.get("attention_factor") is not None


def _yarn_layers(reading: Reading, found: Findings, scaling: Mapping[str, Any]) -> None:
    """Leaves ``truncate`` and ``attention_factor`` to `rope_layers.correct`."""
    base = next((b for key in BASES if (b := found.value(reading, key)) is not None), None)
    if base is None or scaling.get(_LENGTH) is None:
        found.refusals.append("rope type 'yarn' without rope_theta or " + _LENGTH)
        return
    found.rope["yarn"] = {**scaling, "rope_theta": base}
    keys = [key for key in ("truncate", "attention_factor") if scaling.get(key) is not None]
    found.repairs.append(f"rope {', '.join(keys)}: mlx_lm ignores this, the layers are corrected")


def _longrope(reading: Reading, found: Findings, scaling: Mapping[str, Any]) -> None:
    """Takes the short factors up to the trained length; mlx_lm alone always uses the long ones."""
    length = scaling.get(_LENGTH, reading.text.get(_LENGTH))
    short, long = scaling.get("short_factor"), scaling.get("long_factor")
    if short is None or short == long or not reading.served.reads("rope_scaling"):
        return
    if not isinstance(length, int):
        found.refusals.append(f"longrope without {_LENGTH}: which factors apply is not known")
        return
    fixed = {**scaling, "long_factor": short}
    if "short_mscale" in scaling:
        fixed["long_mscale"] = scaling["short_mscale"]
    reason = "transformers uses the short factors up to the trained length"
    found.repair("rope_scaling", fixed, reason)
    found.limits.append(LengthLimit(length, f"longrope: short factors hold up to {length} tokens"))


def _kind(scaling: Mapping[str, Any]) -> str:
    return str(scaling.get("rope_type") or scaling.get("type") or "default")


def _no_scaling(reading: Reading, kind: str) -> str:
    return f"rope type {shown(kind)} is not implemented by mlx_lm's {reading.served.name}"
