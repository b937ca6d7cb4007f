"""What `models.config` repairs, limits, warns about and refuses, without loading a model."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxroles.backend import mx
from mlxroles.errors import ModelError
from mlxroles.models.config import model_classes, understand
from mlxroles.models.implementation import implementation
from mlxroles.models.rope_layers import yarn_wavelengths
from mlxroles.models.weight_names import renaming

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 100,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "max_position_embeddings": 512,
}
GEMMA3 = {
    "model_type": "gemma3_text",
    "hidden_activation": "gelu_pytorch_tanh",
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 8,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONG = {"short_factor": [1.0, 1.1], "long_factor": [2.0, 3.0]}
LOCAL_THEN_FULL = ["sliding_attention", "sliding_attention", "full_attention"]


def llama(**changes):
    """An old-style Llama config with keys changed; a value of ... removes the key."""
    return {k: v for k, v in {**LLAMA, **changes}.items() if v is not ...}


def typed(model_type, **changes):
    return llama(model_type=model_type, **changes)


def v5(**rope):
    """A config as transformers 5 writes it."""
    return llama(rope_theta=..., rope_parameters=rope, dtype="float32")


_KEYS = """
    rope_parameters rope_scaling rope_theta layer_types sliding_window hidden_act head_dim
    text_config architectures tie_word_embeddings partial_rotary_factor n_layers rope_type type
    factor full_attention sliding_attention short_factor use_sliding_window sliding_window_pattern
    original_max_position_embeddings max_position_embeddings something_else
"""
KEYS = st.sampled_from(_KEYS.split())

CLEAN = [
    llama(),
    llama(torch_dtype="bfloat16", rope_scaling=None, pretraining_tp=1, use_cache=True),
    v5(rope_type="default", rope_theta=10000.0),
    typed("qwen2", sliding_window=131072, use_sliding_window=False, max_window_layers=4),
    typed("qwen2", sliding_window=4096, use_sliding_window=True, max_window_layers=4),
    typed("qwen3", head_dim=16, sliding_window=None, layer_types=["full_attention"] * 4),
    typed("mistral", sliding_window=None),
    typed("starcoder2", hidden_act="gelu", sliding_window=None, rms_norm_eps=...),
    typed("phi3", sliding_window=None, original_max_position_embeddings=4096),
    typed("mistral", sliding_window=4096, max_position_embeddings=4096),
    llama(rope_scaling=dict(LLAMA3)),
    typed(
        "qwen2",
        rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    ),
    typed("llama", quantization={"group_size": 64, "bits": 4}),
    typed("olmo2", attention_dropout=0.0, initializer_range=0.02, eos_token_id=[1, 2]),
]


@pytest.mark.parametrize("config", CLEAN, ids=lambda c: c["model_type"])
def test_a_config_that_mlx_lm_reads_rightly_passes_in_silence(config):
    found = understand(config, {"lm_head.weight"})
    assert (found.repairs, found.warnings, found.refusals, found.limits) == ((), (), (), ())
    assert found.ignored_window is None


REPAIRS = [
    (v5(rope_type="default", rope_theta=5e5), {"rope_theta": 5e5}),
    (v5(rope_theta=5e5), {"rope_theta": 5e5}),
    (
        v5(rope_theta=5e5, **LLAMA3),
        {"rope_theta": 5e5, "rope_scaling": {**LLAMA3, "type": "llama3"}},
    ),
    (
        llama(rope_parameters={"rope_type": "default", "rope_theta": 7.0}, rope_theta=9.0),
        {"rope_theta": 7.0},
    ),
    (typed("qwen2", rope_theta=...), {"rope_theta": 10000.0}),
    (llama(tie_word_embeddings=...), {"tie_word_embeddings": False}),
    (
        {"model_type": "gpt2", "n_positions": 32, "n_embd": 8, "n_head": 2, "n_layer": 1}
        | {"layer_norm_epsilon": 1e-5, "vocab_size": 9, "activation_function": "gelu_new"},
        {"n_ctx": 32},
    ),
    (
        typed(
            "gpt_neox",
            rope_theta=...,
            layer_norm_eps=1e-5,
            hidden_act="gelu_fast",
            rope_parameters={"rope_theta": 123.0, "partial_rotary_factor": 0.25},
        ),
        {"rotary_emb_base": 123.0, "rotary_pct": 0.25},
    ),
    (
        GEMMA3
        | {
            "layer_types": LOCAL_THEN_FULL * 2,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
            },
        },
        {
            "rope_theta": 2e6,
            "rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 8.0},
            "rope_local_base_freq": 5e3,
            "sliding_window_pattern": 3,
        },
    ),
    (
        typed("exaone4", head_dim=16, sliding_window=8, layer_types=LOCAL_THEN_FULL),
        {"sliding_window_pattern": "LLG", "rope_scaling": None},
    ),
    (llama(rms_norm_eps=...), {"rms_norm_eps": 1e-6}),
    (typed("gemma2", head_dim=16, hidden_act="gelu_new"), {"query_pre_attn_scalar": 256}),
    (
        {"model_type": "gpt_bigcode", "n_embd": 8, "n_layer": 1, "n_inner": None, "n_head": 2}
        | {"n_positions": 9, "layer_norm_epsilon": 1e-5, "vocab_size": 9},
        {"n_inner": 32},
    ),
    (typed("qwen3_moe", num_local_experts=4, head_dim=...), {"num_experts": 4, "head_dim": 16}),
    (
        llama(rope_scaling={"rope_type": "yarn", "factor": 4.0}),
        {
            "rope_scaling": {
                "rope_type": "yarn",
                "type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 512,
            }
        },
    ),
]


@pytest.mark.parametrize(("config", "overrides"), REPAIRS)
def test_keys_are_brought_to_where_the_module_reads_them(config, overrides):
    found = understand(config, {"lm_head.weight"})
    assert {key: found.overrides[key] for key in overrides} == overrides
    assert all(any(key in line for line in found.repairs) for key in overrides if overrides[key])


def test_weights_decide_about_tying_when_the_config_is_silent():
    assert understand(llama(tie_word_embeddings=...), {"lm_head.weight"}).repairs
    assert not understand(llama(tie_word_embeddings=...), {"model.norm.weight"}).repairs
    assert understand(llama(tie_word_embeddings=True), {"lm_head.weight"}).warnings


def test_a_wrapper_takes_the_vocabulary_of_its_language_model():
    text = {"model_type": "gemma3_text", "vocab_size": 512, "num_hidden_layers": 2}
    config = {"model_type": "gemma3", "text_config": text}
    assert understand(config).overrides["vocab_size"] == 512
    assert "vocab_size" not in understand(config | {"vocab_size": 512}).overrides
    usual = config | {"text_config": text | {"vocab_size": 262208}}
    assert "vocab_size" not in understand(usual).overrides


def test_a_multimodal_config_is_repaired_where_its_language_model_reads():
    text = llama(rope_theta=..., rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    config = {"model_type": "mistral3", "text_config": text, "vision_config": {"x": 1}}
    found = understand(config, {"language_model.lm_head.weight"})
    assert implementation(config).text_args.__module__ == "mlx_lm.models.llama"
    assert found.overrides["text_config"]["rope_theta"] == 5e5
    assert found.overrides["text_config"]["hidden_size"] == 64


WINDOWS = [
    (typed("mistral", sliding_window=16), 16),
    (typed("mistral", sliding_window=16, layer_types=["sliding_attention"] * 4), 16),
    (typed("mistral", max_position_embeddings=8192), 4096),
    (typed("phi3", sliding_window=16), 16),
    (typed("gemma2", head_dim=16, sliding_window=16, hidden_act="gelu_pytorch_tanh"), 16),
    (typed("starcoder2", hidden_act="gelu", sliding_window=16), 16),
    (typed("qwen2", sliding_window=16, use_sliding_window=True, max_window_layers=2), 16),
    (typed("qwen2", sliding_window=16, use_sliding_window=True, layer_types=LOCAL_THEN_FULL), 16),
    (typed("llama", sliding_window=16, layer_types=LOCAL_THEN_FULL), None),
    (typed("olmo3", sliding_window=16, layer_types=LOCAL_THEN_FULL), None),
    (GEMMA3 | {"layer_types": LOCAL_THEN_FULL}, None),
    (typed("gpt_oss", sliding_window=16, layer_types=LOCAL_THEN_FULL), None),
]


@pytest.mark.parametrize(("config", "width"), WINDOWS)
def test_a_window_that_no_mask_serves_limits_the_prompt(config, width):
    found = understand(config)
    assert found.ignored_window == width
    assert bool(found.warnings) is (width is not None)
    assert not found.refusals


def test_a_model_of_windowed_layers_only_can_be_built():
    config = typed("mistral", sliding_window=16, layer_types=["sliding_attention"] * 4)
    assert understand(config).overrides["layer_types"] == ["full_attention"] * 4


def test_longrope_takes_the_short_factors_and_says_up_to_where():
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 64, **LONG}
    found = understand(typed("phi3", rope_scaling=rope))
    assert found.overrides["rope_scaling"]["long_factor"] == LONG["short_factor"]
    assert found.ignored_window == 64
    assert found.limits[0].reason.startswith("longrope")


REFUSED = [
    ({}, "no model_type"),
    ({"model_type": "no_such_model"}, "model type not supported"),
    ({"model_type": "olmo"}, "olmo"),  # not importable, or without its keys
    ({"model_type": "../evil"}, "no model module"),
    ({"model_type": "rope_utils"}, "no model module"),
    (llama(intermediate_size=...), "lacks intermediate_size"),
    (llama(hidden_act="relu"), "hidden_act = 'relu'"),
    (llama(partial_rotary_factor=0.5), "partial_rotary_factor 0.5"),
    (llama(attn_logit_softcapping=50.0), "attn_logit_softcapping = 50.0"),
    (llama(clip_qkv=8.0), "clip_qkv = 8.0"),
    (llama(rope_scaling={"type": "warped", "factor": 2.0}), "rope type 'warped'"),
    (
        typed(
            "gpt_neox",
            layer_norm_eps=1e-5,
            hidden_act="gelu_fast",
            rotary_emb_base=10000,
            rotary_pct=0.25,
            rope_scaling={"type": "linear", "factor": 2.0},
        ),
        "rope type 'linear' is not implemented",
    ),
    (
        llama(
            rope_parameters={
                "full_attention": {"rope_theta": 1e6},
                "sliding_attention": {"rope_theta": 1e4},
            }
        ),
        "rope_parameters differ by layer type",
    ),
    (
        GEMMA3 | {"layer_types": ["full_attention", *LOCAL_THEN_FULL]},
        "has no period",
    ),
    (
        {"model_type": "gpt2", "n_positions": 32, "n_embd": 8, "n_head": 2, "n_layer": 1}
        | {"layer_norm_epsilon": 1e-5, "vocab_size": 9, "scale_attn_by_inverse_layer_idx": True},
        "scale_attn_by_inverse_layer_idx",
    ),
]


@pytest.mark.parametrize(("config", "text"), REFUSED)
def test_what_cannot_be_computed_is_refused_by_name(config, text):
    found = understand(config)
    assert any(text in refusal for refusal in found.refusals), found.refusals
    with pytest.raises(ModelError):
        model_classes(config, found)


WARNED = [
    (llama(some_new_attention_trick=3), "some_new_attention_trick = 3 is not read"),
    (
        typed("gpt_neox", layer_norm_eps=1e-5, hidden_act="gelu", rotary_pct=1.0),
        "the tanh approximation of GELU",
    ),
    (llama(rope_scaling={"type": "llama3", **LLAMA3, "extra": 2}), "rope extra = 2 is ignored"),
    (
        typed("phi3small", ff_intermediate_size=9, rope_theta=...),
        "block-sparse layers are not causal",
    ),
    (llama(model_file="own.py", model_type="mine"), "brings its own code"),
]


@pytest.mark.parametrize(("config", "text"), WARNED)
def test_what_may_change_a_number_is_warned_about_by_name(config, text):
    found = understand(config)
    assert any(text in warning for warning in found.warnings), found.warnings


def test_hostile_values_stay_on_one_line():
    found = understand(llama(strange="\x1b[31m\n" * 100))
    assert found.warnings
    assert all(line.isprintable() and len(line) < 200 for line in found.warnings)


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["llama", "gemma3_text", "phi3", "exaone4"]), st.dictionaries(KEYS, ODD))
def test_any_config_ends_in_findings_and_not_in_a_traceback(model_type, changes):
    found = understand(typed(model_type, **changes), {"lm_head.weight"})
    for line in (*found.repairs, *found.warnings, *found.refusals):
        assert line.isprintable()


def test_gpt2_weights_lose_their_prefix_and_buffers():
    stored = {"transformer.h.0.attn.bias": 0, "transformer.wte.weight": 1, "lm_head.weight": 2}
    translate = renaming("gpt2", stored)
    assert translate is not None
    assert translate(stored) == {"wte.weight": 1}
    assert renaming("gpt2", {"wte.weight": 1}) is None
    assert renaming("llama", stored) is None


def test_fused_experts_are_split_where_gate_and_up_interleave():
    fused = mx.arange(2 * 3 * 8).reshape(2, 3, 8)
    stored = {
        "model.layers.0.mlp.experts.gate_up_proj": fused,
        "model.layers.0.mlp.experts.gate_up_proj_bias": fused[:, 0],
        "model.layers.0.mlp.experts.down_proj": fused,
        "model.layers.0.mlp.experts.down_proj_bias": fused[:, 0],
        "model.norm.weight": fused,
    }
    translate = renaming("gpt_oss", stored)
    assert translate is not None
    split = translate(stored)
    head = "model.layers.0.mlp.experts."
    assert mx.array_equal(split[f"{head}up_proj.weight"], fused.swapaxes(1, 2)[:, 1::2])
    assert mx.array_equal(split[f"{head}gate_proj.bias"], fused[:, 0, ::2])
    assert split[f"{head}down_proj.weight"].shape == (2, 8, 3)
    assert set(split) > {"model.norm.weight", f"{head}down_proj.bias", f"{head}gate_proj.weight"}


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_wavelengths_equal_mlx_lm_where_it_is_right(truncate):
    from mlx_lm.models.rope_utils import YarnRoPE

    rope = {"rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
    own = yarn_wavelengths(16, rope | {"truncate": truncate})
    theirs = YarnRoPE(16, base=1e4, scaling_factor=4.0, original_max_position_embeddings=64)._freqs
    assert bool(mx.allclose(own, theirs, rtol=1e-5)) is truncate


def test_the_classes_are_mlx_lms_own_where_nothing_is_corrected():
    from mlx_lm.models import gpt2
    from mlx_lm.models import llama as plain

    config = llama()
    assert model_classes(config, understand(config))({}) == (plain.Model, plain.ModelArgs)
    config = {"model_type": "gpt2", "n_ctx": 8, "n_positions": 8, "n_embd": 8, "n_head": 2}
    config |= {"n_layer": 1, "layer_norm_epsilon": 1e-5, "vocab_size": 9}
    model, args = model_classes(config, understand(config))({})
    assert issubclass(model, gpt2.Model)
    assert model.__module__ == gpt2.__name__
    assert args is gpt2.ModelArgs
