"""Configs of further transformers families, of which logits and residual streams are compared.

By model type: what a tiny config of it needs besides the shared sizes.
"""

from typing import Any

_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
_ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_LATENT = {
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "num_key_value_heads": 8,
}
_WINDOW = {"sliding_window": 16}
_HEADS = {"head_dim": 16}

FAMILIES: dict[str, dict[str, Any]] = {
    "afmoe": _EXPERTS | _HEADS | _WINDOW,
    "apertus": {},
    "cohere": {},
    "cohere2": _HEADS | _WINDOW | {"num_hidden_layers": 8},
    "deepseek_v3": _ROUTED | _LATENT,
    "dots1": _ROUTED,
    "ernie4_5": _HEADS,
    "ernie4_5_moe": _HEADS | {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 64},
    "exaone4": _WINDOW | {"num_hidden_layers": 8},
    "falcon_h1": _HEADS
    | {"mamba_d_ssm": 128, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16},
    "glm4": _HEADS,
    "glm4_moe": _ROUTED | _HEADS,
    "glm4_moe_lite": _ROUTED | _LATENT,
    "granite": {
        "embedding_multiplier": 2.0,
        "attention_multiplier": 0.2,
        "logits_scaling": 2.0,
        "residual_multiplier": 0.5,
    },
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "helium": _HEADS,
    "hunyuan_v1_dense": _HEADS,
    "laguna": _EXPERTS | _HEADS | _WINDOW | {"shared_expert_intermediate_size": 64},
    "mellum": _EXPERTS | _HEADS | _WINDOW,
    "minimax_m2": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16},
    "ministral3": _HEADS,
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "nemotron": {},
    "olmo3": _WINDOW,
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "phi": {},
    "qwen2_moe": _EXPERTS | {"shared_expert_intermediate_size": 64},
    "qwen3_moe": _EXPERTS | _HEADS,
    "qwen3_next": _EXPERTS
    | _HEADS
    | {
        "shared_expert_intermediate_size": 64,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
    },
    "seed_oss": _HEADS,
    "smollm3": {},
    "stablelm": {},
}

APPROXIMATE = ("gemma", "starcoder2")
"""Families whose activation mlx_lm computes in another form, as a warning says."""
