"""Reference activations of tiny random transformers models, and the folders they were saved to.

Eager attention in float32 on the CPU. The folders are exactly what ``save_pretrained`` of
transformers 5 writes (`rope_parameters`, no `rope_theta`, its own weight names), because that is
what a loader has to cope with. Weight matrices are scaled up so that attention is far from
uniform. This is not a test file; `test_oracle.py` and others import it.
"""

import importlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import further_families
import numpy as np
import torch
from torch import nn

tf: Any = importlib.import_module("transformers")  # its types do not know its own configs

LENGTH, BATCH, VOCABULARY, WINDOW = 48, 2, 512, 16
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
}
NEOX_SIZES = {k: v for k, v in SIZES.items() if k != "num_key_value_heads"}
THETA = {"rope_type": "default", "rope_theta": 500000.0}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 64,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 9.0],
}
ENDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}

FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaConfig(**SIZES),
    "llama-theta": lambda: tf.LlamaConfig(**SIZES, rope_parameters=dict(THETA)),
    "llama-llama3": lambda: tf.LlamaConfig(**SIZES, rope_parameters=dict(LLAMA3_ROPE)),
    "llama-tied": lambda: tf.LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen2": lambda: tf.Qwen2Config(**SIZES),
    "qwen2-yarn": lambda: tf.Qwen2Config(**SIZES, rope_parameters=dict(YARN_ROPE)),
    "qwen2-yarn-factor": lambda: tf.Qwen2Config(
        **SIZES, rope_parameters={**YARN_ROPE, "attention_factor": 0.8, "truncate": False}
    ),
    "qwen3": lambda: tf.Qwen3Config(**SIZES, head_dim=32),
    "mistral": lambda: tf.MistralConfig(**SIZES, head_dim=16, sliding_window=None),
    "mistral-window": lambda: tf.MistralConfig(**SIZES, head_dim=16, sliding_window=WINDOW),
    "gemma2": lambda: tf.Gemma2Config(
        **SIZES, head_dim=32, query_pre_attn_scalar=32, sliding_window=4096
    ),
    "gemma2-window": lambda: tf.Gemma2Config(
        **SIZES, head_dim=32, query_pre_attn_scalar=32, sliding_window=WINDOW
    ),
    "gemma3": lambda: tf.Gemma3TextConfig(
        **{**SIZES, "num_hidden_layers": 7},
        head_dim=32,
        query_pre_attn_scalar=32,
        sliding_window=WINDOW,
    ),
    "phi3": lambda: tf.Phi3Config(**SIZES, **ENDS, sliding_window=None),
    "phi3-window": lambda: tf.Phi3Config(**SIZES, **ENDS, sliding_window=WINDOW),
    "phi3-longrope": lambda: tf.Phi3Config(
        **SIZES,
        **ENDS,
        sliding_window=None,
        original_max_position_embeddings=64,
        rope_parameters=dict(LONG_ROPE),
    ),
    "glm": lambda: tf.GlmConfig(**SIZES, **ENDS, head_dim=16),
    "olmo2": lambda: tf.Olmo2Config(**SIZES, pad_token_id=0, eos_token_id=1),
    "gpt2": lambda: tf.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=128,
        n_layer=4,
        n_head=8,
        n_positions=256,
        bos_token_id=0,
        eos_token_id=0,
    ),
    "gpt_neox": lambda: tf.GPTNeoXConfig(**{**NEOX_SIZES, "intermediate_size": 512}),
    "gpt_neox-tanh": lambda: tf.GPTNeoXConfig(
        **{**NEOX_SIZES, "intermediate_size": 512}, hidden_act="gelu_pytorch_tanh"
    ),
    "gpt_oss": lambda: tf.GptOssConfig(
        **{**SIZES, "intermediate_size": 128},
        head_dim=32,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=WINDOW,
        rope_parameters={"rope_type": "default", "rope_theta": 150000.0},
        pad_token_id=0,
        eos_token_id=1,
    ),
    "gpt_oss-yarn": lambda: tf.GptOssConfig(
        **{**SIZES, "intermediate_size": 128, "max_position_embeddings": 2048},
        head_dim=32,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=WINDOW,
        rope_parameters={**YARN_ROPE, "rope_theta": 150000.0, "truncate": False},
        pad_token_id=0,
        eos_token_id=1,
    ),
}

ATTENTION = ("self_attn", "attn", "attention")
PROJECTION = ("o_proj", "c_proj", "dense")
POST_NORMED = ("gemma2", "gemma3_text", "olmo2")


@dataclass(frozen=True)
class Oracle:
    """What one saved model computes, in float32; the field order is that of a `Run`."""

    family: str
    folder: Path
    tokens: np.ndarray
    resid_post: np.ndarray
    """(layer, batch, position, d_model)"""
    pattern: np.ndarray
    """(layer, batch, head, query, key); rows sum to 1 less the sink's share"""
    z: np.ndarray
    """(layer, batch, position, head, d_head), the input of the output projection"""
    attn_out: np.ndarray
    """(layer, batch, position, d_model), what attention adds to the residual stream"""
    mlp_out: np.ndarray
    """(layer, batch, position, d_model), what the MLP adds to the residual stream"""
    logits: np.ndarray
    """(batch, position, vocabulary)"""

    @property
    def entropy(self) -> np.ndarray:
        """Entropy of every attention row in nats, (layer, batch, head, query)."""
        rows = self.pattern.astype(np.float64)
        return -(rows * np.log(np.maximum(rows, 1e-300))).sum(-1)


@dataclass(frozen=True)
class Stream:
    """What any saved model computes between its blocks, in float32."""

    tokens: np.ndarray
    resid_post: np.ndarray
    """(layer, batch, position, d_model)"""
    logits: np.ndarray
    """(batch, position, vocabulary)"""


def tokens(length: int = LENGTH) -> np.ndarray:
    """Two rows of token ids; the same for every family."""
    return np.random.default_rng(0).integers(2, VOCABULARY, size=(BATCH, length))


def reference(family: str) -> Any:
    """A random float32 model of this family with eager attention, far from uniform."""
    config = FAMILIES[family]() if family in FAMILIES else _further(family)
    config._attn_implementation = "eager"
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tf.AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation="eager"
        ).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
            elif not any(part in name for part in ("embed", "wte", "wpe", "lm_head")):
                weight.mul_(4.0)
    return model


def _further(model_type: str) -> Any:
    """A tiny config of a model type of `further_families`."""
    sizes = {**SIZES, **ENDS, **further_families.FAMILIES.get(model_type, {})}
    return tf.CONFIG_MAPPING[model_type](**sizes)


def save(family: str, folder: Path, *, dtype: torch.dtype = torch.float32) -> Any:
    """Saves a random model unmodified and returns it in float32, rounded as it was stored."""
    model = reference(family).to(dtype)
    model.save_pretrained(folder)
    return model.to(torch.float32)


def oracle(
    family: str,
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    deviation: Callable[[Any], None] | None = None,
    lengths: tuple[int, ...] | None = None,
) -> Oracle:
    """Saves a model into the folder and returns what it computes.

    Args:
        family: a key of `FAMILIES`.
        folder: where the model is saved.
        dtype: the type in which the weights are saved; the oracle itself stays float32.
        deviation: changes the model after it was saved, as mlx_lm is known to differ.
        lengths: real tokens per row; the rest of a row is padding on the right.
    """
    model = save(family, folder, dtype=dtype)
    if deviation is not None:
        deviation(model)
    ids = tokens()
    mask = np.ones_like(ids)
    for row, length in enumerate(lengths or ()):
        ids[row, length:], mask[row, length:] = 0, 0
    return Oracle(family, folder, ids, **activations(model, ids, mask))


def stream(family: str, folder: Path) -> Stream:
    """Saves a model of any family into the folder and returns its residual stream and logits."""
    model = save(family, folder)
    outputs: list[np.ndarray] = []

    def after(_module: nn.Module, _inputs: Any, output: Any) -> None:
        outputs.append((output[0] if isinstance(output, tuple) else output).numpy())

    for block in blocks(model):
        block.register_forward_hook(after)
    with torch.no_grad():
        out = model(torch.tensor(tokens()), use_cache=False)
    return Stream(tokens(), np.stack(outputs), out.logits.numpy())


def activations(model: Any, ids: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    """Runs the model with hooks and returns the array fields of an `Oracle`."""
    seen: dict[str, list[np.ndarray]] = {"resid_post": [], "z": [], "attn_out": [], "mlp_out": []}
    with hooked(model, seen), torch.no_grad():
        out = model(
            torch.tensor(ids),
            attention_mask=torch.tensor(mask),
            output_attentions=True,
            use_cache=False,
        )
    arrays = {name: np.stack(values) for name, values in seen.items()}
    heads = out.attentions[0].shape[1]
    arrays["z"] = arrays["z"].reshape(*arrays["z"].shape[:-1], heads, -1)
    arrays["pattern"] = np.stack([rows.numpy() for rows in out.attentions])
    arrays["logits"] = out.logits.numpy()
    return arrays


@contextmanager
def hooked(model: Any, seen: dict[str, list[np.ndarray]]) -> Generator[None]:
    """Collects the residual stream, z and both contributions of every block."""
    handles = []

    def after(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            seen[name].append((output[0] if isinstance(output, tuple) else output).numpy())

        return hook

    def before(_module: nn.Module, inputs: Any) -> None:
        seen["z"].append(inputs[0].numpy())

    for block in blocks(model):
        attention = submodule(block, ATTENTION)
        post_normed = model.config.model_type in POST_NORMED
        mlp = block.post_feedforward_layernorm if post_normed else block.mlp
        mixed = block.post_attention_layernorm if post_normed else attention
        handles += [
            block.register_forward_hook(after("resid_post")),
            submodule(attention, PROJECTION).register_forward_pre_hook(before),
            mixed.register_forward_hook(after("attn_out")),
            mlp.register_forward_hook(after("mlp_out")),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def blocks(model: Any) -> Any:
    """The list of transformer blocks."""
    count = model.config.num_hidden_layers
    return next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count)


def submodule(module: Any, names: tuple[str, ...]) -> Any:
    """The first submodule that bears one of the names."""
    return next(getattr(module, name) for name in names if hasattr(module, name))


def tanh_gelu(model: Any) -> None:
    """Gives gpt_neox the approximate GELU that mlx_lm's module always uses."""
    for block in blocks(model):
        block.mlp.act = nn.GELU(approximate="tanh")


def bfloat16_embedding_scale(model: Any) -> None:
    """Rounds gemma3's embedding scale to bfloat16, as mlx_lm does at any precision."""
    scale = model.model.embed_tokens.embed_scale
    scale.copy_(scale.to(torch.bfloat16).to(torch.float32))


DEVIATIONS: dict[str, Callable[[Any], None]] = {
    "gemma3": bfloat16_embedding_scale,
    "gpt_neox": tanh_gelu,
}
