"""Tiny random models, built once per session, and small helpers to compare arrays."""

import copy
from functools import cache

import architectures
import mlx_lm.models.llama as llama
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from mlxroles.backend import mx, nn
from mlxroles.models.load import wrap
from mlxroles.models.model import Model

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 64,
    "tie_word_embeddings": False,
}


@cache
def tiny(name: str) -> Model:
    """The tiny instance of a model module of mlx_lm, float32."""
    return wrap(architectures.build(name), architectures.config(name), name=name)


def tiny_llama(seed: int, **changes) -> nn.Module:
    """A Llama with weights of its own; ``changes`` are keys of its config."""
    model = llama.Model(llama.ModelArgs.from_dict(LLAMA | changes))
    generator = np.random.default_rng(seed)
    parameters = tree_flatten(model.parameters())
    weights = [
        (path, 1 + noise if w.ndim == 1 else noise * 2)
        for path, w in parameters
        for noise in [mx.array(0.1 * generator.standard_normal(w.shape, dtype=np.float32))]
    ]
    model.update(tree_unflatten(weights))
    model.eval()
    mx.eval(model.parameters())
    return model


def in_dtype(module: nn.Module, dtype: mx.Dtype) -> nn.Module:
    """A copy of the module with weights of another float type."""
    made = copy.deepcopy(module)
    made.set_dtype(dtype)
    return made


def tokens(batch: int, length: int, *, vocab: int = 64, seed: int = 0) -> mx.array:
    """Random token ids [batch, position]."""
    return mx.array(np.random.default_rng(seed).integers(0, vocab, (batch, length)))


def off(a, b) -> float:
    """Largest absolute difference of any cell; shapes must agree."""
    a, b = to_numpy(a), to_numpy(b)
    assert a.shape == b.shape
    return float(np.abs(a - b).max())


def to_numpy(array) -> np.ndarray:
    return np.array(array.astype(mx.float32)) if isinstance(array, mx.array) else np.asarray(array)


def same(a, b) -> bool:
    """Bit for bit equal."""
    return np.array_equal(to_numpy(a), to_numpy(b))
