"""Keys under another name, layer patterns, sliding windows and tied embeddings."""

from mlxroles.models import reference
from mlxroles.models.findings import Findings, LengthLimit, Reading, shown

ALIASES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("n_ctx", ("n_positions", "max_position_embeddings")),
    ("n_positions", ("n_ctx", "max_position_embeddings")),
    ("num_experts", ("num_local_experts", "n_routed_experts")),
    ("num_local_experts", ("num_experts",)),
    ("n_routed_experts", ("num_experts", "num_local_experts")),
    ("num_experts_per_tok", ("num_experts_per_token",)),
    ("sliding_window_size", ("sliding_window",)),
    ("sliding_window_pattern", ("_sliding_window_pattern",)),
    ("layernorm_epsilon", ("rms_norm_eps",)),
    ("block_dim", ("hidden_size",)),
    ("num_attention_groups", ("num_key_value_heads",)),
)
"""The key that a module reads, and what else the same thing is called."""
HARD_CODED: dict[str, dict[str, object]] = {
    "apertus": {"mlp_bias": False, "post_norm": False, "qk_norm": True},
    "minimax": {"shared_intermediate_size": 0},
    "qwen3_vl_moe": {"norm_topk_prob": True},
}
"""Keys that a module requires and transformers no longer writes, by module."""
WINDOWS = ("sliding_window", "sliding_window_size", "attention_window_size", "attention_chunk_size")
NEEDS_SWITCH = frozenset({"qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3", "qwen2_vl_text"})
"""Model types whose window is off unless ``use_sliding_window`` is true."""
PER_LAYER_MASK = frozenset({"llama", "smollm3"})
"""Modules that make a windowed mask only for the layers that ``layer_types`` names."""
_WINDOWED = ("sliding_attention", "chunked_attention")


def aliases(reading: Reading, found: Findings) -> None:
    """Gives every declared key that is absent the value of its other name."""
    for key, others in ALIASES:
        if not reading.served.declares(key) or reading.text.get(key) is not None:
            continue
        other = next((o for o in others if reading.text.get(o) is not None), None)
        if other is None or (not reading.served.requires(key) and reading.served.declares(other)):
            continue
        found.repair(key, reading.text[other], f"the config calls it {other}")
        found.explained.add(other)
    for key, value in HARD_CODED.get(reading.served.name, {}).items():
        if reading.text.get(key) is None:
            found.repair(key, value, "transformers has it written into its code")
    if reading.served.reads("n_inner") and reading.text.get("n_inner") is None:
        width = reading.text.get("n_embd")
        if isinstance(width, int):
            found.repair("n_inner", 4 * width, "absent means 4 n_embd")
    hidden, heads = reading.text.get("hidden_size"), reading.text.get("num_attention_heads")
    absent = reading.served.requires("head_dim") and reading.text.get("head_dim") is None
    if absent and isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
        found.repair("head_dim", hidden // heads, "hidden_size / num_attention_heads")


def layer_pattern(reading: Reading, found: Findings) -> None:
    """Turns ``layer_types`` into the period or string that some modules read instead."""
    key, kinds = "sliding_window_pattern", reading.layer_types
    if not kinds or not reading.served.reads(key) or reading.served.reads("layer_types"):
        return
    stored = found.value(reading, key)
    local = [kind in _WINDOWED for kind in kinds]
    if reading.served.name == "exaone4":
        pattern: object = "".join("LG"[not windowed] for windowed in local)
        same = isinstance(stored, str) and stored and pattern == _repeated(stored, len(local))
        if not any(local):
            pattern, same = None, stored is None
    else:
        first = local.index(False) + 1 if False in local else 0
        pattern = first
        agrees = [(i + 1) % first != 0 for i in range(len(local))] == local if first else False
        if not agrees:
            message = f"layer_types {shown(kinds)} has no period: mlx_lm's {reading.served.name}"
            found.refusals.append(f"{message} can only place a full-attention layer every n layers")
            return
        same = stored == pattern
    if not same:
        found.repair(key, pattern, "from layer_types")


def _repeated(pattern: str, length: int) -> str:
    return (pattern * length)[:length]


def window(reading: Reading, found: Findings) -> None:
    """Limits the prompt where the config has an active window and the module masks none."""
    found.explained.update((*WINDOWS, "use_sliding_window", "max_window_layers"))
    if reading.layer_types and reading.served.reads("layer_types"):
        found.explained.update(("sliding_window_pattern", "global_attn_every_n_layers"))
    key, width = _window_of(reading)
    longest = reading.text.get("max_position_embeddings")
    if width <= 0 or (isinstance(longest, int) and width >= longest):
        return
    if not _is_active(reading) or _masks_windows(reading, key):
        return
    kinds = reading.layer_types
    if reading.served.name in PER_LAYER_MASK and kinds:
        # without any full-attention layer the module cannot be built
        reason = "mlx_lm cannot build a model of sliding-window layers only"
        found.repair("layer_types", ["full_attention"] * len(kinds), reason)
    reason = f"{key} {width} is ignored by mlx_lm's {reading.served.name}"
    found.limits.append(LengthLimit(width, reason))
    found.warnings.append(f"{reason}: exact for prompts of at most {width} tokens")


def _window_of(reading: Reading) -> tuple[str, int]:
    """Key and width of the window that the config, or transformers' default for it, asks for."""
    for key in WINDOWS:
        if isinstance(reading.text.get(key), int):
            return key, reading.text[key]
    width = reference.defaults(reading.model_type).get(WINDOWS[0])
    absent = WINDOWS[0] not in reading.text
    return WINDOWS[0], width if absent and isinstance(width, int) else 0


def _is_active(reading: Reading) -> bool:
    """Whether any layer of the config attends within a window."""
    if not reading.text.get("use_sliding_window", reading.model_type not in NEEDS_SWITCH):
        return False
    if reading.layer_types:
        return any(kind in _WINDOWED for kind in reading.layer_types)
    first, layers = reading.text.get("max_window_layers"), reading.n_layers
    switched = reading.model_type in NEEDS_SWITCH
    return not (switched and isinstance(first, int) and layers is not None and first >= layers)


def _masks_windows(reading: Reading, key: str) -> bool:
    """Whether the module makes a windowed mask for the layers that need one."""
    if reading.served.name in PER_LAYER_MASK:
        return {"sliding_attention", "full_attention"} <= set(reading.layer_types)
    named = [k for k in WINDOWS if reading.served.reads(k)]
    return key in named or bool(named and key != "attention_chunk_size")


def ties(reading: Reading, found: Findings) -> None:
    """Decides from the stored weights where the config leaves tying to a default."""
    key = "tie_word_embeddings"
    if not reading.served.reads(key) or not reading.weight_names:
        return
    has_head = any(name.endswith("lm_head.weight") for name in reading.weight_names)
    stored = reading.text.get(key, reading.whole.get(key))
    if stored is None:
        if reading.served.defaults[key] is has_head or reading.served.requires(key):
            reason = "the weights hold" + ("" if has_head else " no") + " lm_head.weight"
            found.repair(key, not has_head, reason)
    elif stored and has_head:
        found.warnings.append("tie_word_embeddings is true: the stored lm_head.weight is not used")
    if stored is not None and key not in reading.text:
        found.overrides[key] = stored


def missing(reading: Reading, found: Findings) -> None:
    """Refuses a config that lacks what the module cannot be built without."""
    absent = [
        key
        for key in reading.served.defaults
        if reading.served.requires(key) and key not in reading.text and key not in found.overrides
    ]
    if absent:
        tail = f"which mlx_lm's {reading.served.name} needs"
        found.refusals.append(f"config.json lacks {', '.join(absent)}, {tail}")
