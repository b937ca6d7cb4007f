"""Keys that mlx_lm's module drops, and whether that changes any number."""

import re

from mlxroles.models.findings import Findings, Reading, shown

ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function", "mlp_hidden_act")
SILU = frozenset({"silu", "swish"})
TANH_GELU = frozenset({"gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_accurate"})
EXACT_GELU = frozenset({"gelu", "gelu_python"})
_IMPLEMENTED = (
    (("swiglu", "SwitchGLU", "nn.silu", "SwigluOAI"), SILU),
    (("gelu_approx", "geglu"), TANH_GELU),
    (("nn.gelu", "nn.GELU", "SwitchMLP"), EXACT_GELU),
    (("relu2", "nn.relu2", "nn.relu"), frozenset({"relu2"})),
    (("nn.relu",), frozenset({"relu"})),
    (("XieLU", "xielu"), frozenset({"xielu"})),
)
"""Names in a module's source, and the activations that they compute."""

_HARMLESS = """
    _name_or_path architectures auto_map chunk_size_feed_forward cross_attention_hidden_size
    attn_implementation bad_words_ids finetuning_task id2label label2id is_decoder
    is_encoder_decoder add_cross_attention num_labels prefix problem_type pruned_heads
    return_dict task_specific_params tokenizer_class torchscript transformers_version
    transformers.js_config model_type dtype torch_dtype use_cache output_attentions
    output_hidden_states output_router_logits output_scores quantization quantization_config
    unsloth_version unsloth_fixed initializer_range initializer_factor rescale_prenorm_residual
    pretraining_tp max_position_embeddings model_max_length max_seq_len seq_length
    max_sequence_length intermediate_size head_dim qk_head_dim v_head_dim attention_bias mlp_bias
    use_bias qkv_bias lm_head_bias layer_types mlp_layer_types moe_layers first_k_dense_replace
    mamba_expand moe_norm_min num_experts num_local_experts n_routed_experts
    num_sliding_attention_heads
    bias use_qkv_bias qk_layernorm mlp_only_layers n_inner num_key_value_heads multi_query
    attention_softmax_in_fp32 scale_attention_softmax_in_fp32 reorder_and_upcast_attn
    use_mamba_kernels use_mambapy use_associative_scan residual_in_fp32 mamba_ssm_cache_dtype
    moe_shared_expert_overlap num_logits_to_keep text_config vision_config audio_config
    video_config thinker_config talker_config vision_tower tie_word_embeddings embd_layer
    model_file mamba_chunk_size chunk_size expand lru_width per_layer_config ep_size
    language tokenizer_name vocab_size_per_layer_input has_vision encoder_config name
"""
HARMLESS = frozenset(_HARMLESS.split())
"""Keys that no forward pass depends on, or that shape weights: strict loading would catch those."""
_HARMLESS_FORMS = re.compile(
    r"""
    .*_token_ids?$ | .*_token_index$ | .*_token$ | .*dropout.* | .*_pdrop$ | .*_coef$
    | .*aux_loss.* | .*jitter.* | summary_.* | .*init(ializer)?_(range|std|scheme|floor|scale).*
    | .*variance_scale$ | (num_)?(mtp|nextn)_.* | num_nextn_predict_layers | .*mtp.* | time_step_.*
    | linear_(dt|a_log)_.* | .*loss.* | vision_.* | audio_.* | image_.* | video_.* | projector_.*
    | mm_.* | _.*
    | .*_version$ | .*initial.* | gradient_checkpointing.* | .*cache_implementation | num_labels
    | max_new_tokens | temperature | top_[pk] | do_sample | repetition_penalty | .*seed$
    """,
    re.VERBOSE,
)

OFF = (None, False, 0, 0.0, "", [], {}, ())
NEUTRAL: dict[str, tuple[object, ...]] = {
    "scale_attn_weights": (True,),
    "use_bidirectional_attention": (None, False, "vision"),
    "swiglu_alpha": (1.702,),
    "swiglu_limit": (7.0,),
    "decoder_sparse_step": (1,),
    "mamba_hidden_act": ("silu",),
    "rope_interleave": (True,),
    "moe_renormalize": (True,),
}
"""Values that ask for what every module does anyway, where plain 'off' is not one of them."""

_UNIT = re.compile(r".*(_factor|_multiplier|_scale|_scaling)")
"""Factors: 1 is neutral."""
FIXED: dict[str, dict[str, object]] = {
    "llama4": {"no_rope_layer_interval": 4},
    "mamba": {"layer_norm_epsilon": 1e-5},
    "nanochat": {"final_logit_softcapping": 15.0},
}
"""Values that are written into the source of a module."""

DECISIVE = re.compile(
    r"""
    .*soft_?cap.* | clip_qkv | .*alibi.* | scale_attn.* | query_pre_attn_scalar
    | attention_multiplier | logits?_scal.* | embedding_multiplier | residual_multiplier
    | use_bidirectional_attention | .*rope.* | .*rotary.* | .*use_qk_norm.* | is_causal
    | position_embedding_type | .*parallel_(attn|residual) | .*sinks?$ | attn_temperature_tuning
    """,
    re.VERBOSE,
)
"""Keys that change attention or logits for certain when they are on."""
POSITIONS_BY_MODULE = {"gpt2": "absolute", "gpt_bigcode": "absolute"}


DEFECTS = {
    "jamba": "its expert weights are renormalised over the chosen experts, transformers' are not",
    "phi3small": "its block-sparse layers are not causal",
}
"""Known differences of a module that no key controls."""


def defects(reading: Reading, found: Findings) -> None:
    """Warns about modules that are known to compute something else."""
    name = reading.served.name
    if name in DEFECTS and (name != "jamba" or reading.text.get("num_experts", 16) > 1):
        found.warnings.append(f"mlx_lm's {name} deviates from its model: {DEFECTS[name]}")


def activation(reading: Reading, found: Findings) -> None:
    """Compares the named activation with the one written into the module."""
    found.explained.update(ACTIVATIONS)
    known = {a for names, values in _IMPLEMENTED if _any(reading, names) for a in values}
    for key in ACTIVATIONS:
        name = reading.text.get(key)
        if not isinstance(name, str) or reading.served.reads(key) or not known or name in known:
            continue
        if name in EXACT_GELU | TANH_GELU and known & (EXACT_GELU | TANH_GELU):
            kind = "the tanh approximation of GELU" if known & TANH_GELU else "the exact GELU"
            tail = f"mlx_lm's {reading.served.name} computes {kind}"
            found.warnings.append(f"{key} = {shown(name)}: {tail}, logits differ by about 1e-4")
        elif key == "hidden_act" and reading.text.get("hidden_activation"):
            continue  # gemma: the newer key wins
        else:
            tail = f"mlx_lm's {reading.served.name} computes {', '.join(sorted(known))}"
            found.refusals.append(f"{key} = {shown(name)}, but {tail}")


def _any(reading: Reading, names: tuple[str, ...]) -> bool:
    return any(reading.served.uses(name) for name in names)


def unread(reading: Reading, found: Findings) -> None:
    """Names every key that is dropped and could change a number."""
    for key, value in reading.text.items():
        if reading.served.declares(key) or key in found.explained or _is_harmless(key):
            continue
        if key == "query_pre_attn_scalar" and value == reading.text.get("head_dim"):
            continue
        if value in NEUTRAL.get(key, OFF) or (value == 1 and _UNIT.fullmatch(key)):
            continue
        if key in FIXED.get(reading.served.name, {}) and value == FIXED[reading.served.name][key]:
            continue
        if key == "no_rope_layers" and _every_fourth(reading, value):
            continue
        positions = POSITIONS_BY_MODULE.get(reading.served.name, "rope")
        if key == "position_embedding_type" and value == positions:
            continue
        message = f"{key} = {shown(value)} is not read by mlx_lm's {reading.served.name}"
        if DECISIVE.fullmatch(key):
            found.refusals.append(message)
        else:
            found.warnings.append(message)


def _every_fourth(reading: Reading, layers: object) -> bool:
    """Whether positions are left out where mlx_lm's llama4 leaves them out."""
    if reading.served.name != "llama4" or not isinstance(layers, list):
        return False
    return [int(use) for use in layers] == [int((i + 1) % 4 != 0) for i in range(len(layers))]


def _is_harmless(key: str) -> bool:
    return key in HARMLESS or _HARMLESS_FORMS.fullmatch(key) is not None
