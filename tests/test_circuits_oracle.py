"""Layer 0 rebuilt from matrices alone against transformers' attention: every cell, real RoPE types.

In layer 0 a head reads the embeddings, so the pattern, what heads write and the logits follow from
the matrices, the rotary curve and the tables that `circuits` finds.
"""

import numpy as np
import pytest

pytest.importorskip("torch", reason="the oracle is transformers with torch (extra 'test')")

import oracles

from mlxroles import circuits
from mlxroles.backend import mx
from mlxroles.circuits.ends import sized
from mlxroles.models.load import load

FAMILIES = ("llama-llama3", "qwen2-yarn-factor", "phi3-longrope", "gpt_neox", "gemma2")
CAPS = {"gemma2": 50.0}
LENGTH = 40


@pytest.fixture(scope="module", params=FAMILIES)
def found(request, tmp_path_factory):
    """(oracle, model, heads of layer 0, normed embeddings of the first row)."""
    folder = tmp_path_factory.mktemp(request.param)
    oracle = oracles.oracle(request.param, folder)
    model = load(folder, scan=False)
    heads = circuits.heads_of(model, 0)
    x = circuits.ends_of(model).embedding(oracle.tokens[0, :LENGTH])
    return oracle, model, heads, heads.normed(x)


def scores(rotary, q, k):
    """[head, query, key]; what lies after the query stays 0."""
    table = np.zeros((q.shape[0], LENGTH, LENGTH))
    for distance in range(LENGTH):
        at = np.arange(distance, LENGTH)
        one = (rotary.at(q[:, distance:], distance) * rotary.at(k[:, : LENGTH - distance], 0)).sum(
            axis=-1
        )
        table[:, at, at - distance] = np.array(one) * rotary.scale
    return table


def test_patterns_of_layer_0_follow_from_the_matrices(found):
    oracle, model, heads, x = found
    table = scores(circuits.rotary(model, 0), heads.queries(x), heads.keys(x))
    cap = CAPS.get(oracle.family)
    table = cap * np.tanh(table / cap) if cap else table
    table = np.where(np.tril(np.ones((LENGTH, LENGTH))) > 0, table, -np.inf)
    made = np.exp(table - table.max(axis=-1, keepdims=True))
    made /= made.sum(axis=-1, keepdims=True)
    wanted = oracle.pattern[0, 0, :, :LENGTH, :LENGTH]
    assert np.abs(made - wanted).max() < 3e-4
    assert wanted[:, 20:].max() > 0.2


def test_what_heads_of_layer_0_write_follows_from_the_matrices(found):
    oracle, _, heads, x = found
    pattern = mx.array(oracle.pattern[0, 0, :, :LENGTH, :LENGTH])
    written = np.array(((pattern @ heads.shared(x @ heads.v)) @ heads.o).sum(axis=0))
    wanted = oracle.attn_out[0, 0, :LENGTH]
    if oracle.family == "gemma2":  # the norm after attention divides by a size of each position
        size = (written * wanted).sum(-1, keepdims=True) / (written**2).sum(-1, keepdims=True)
        assert (size > 0).all()
        written = written * size
    off = (written - written[:1]) - (wanted - wanted[:1])  # biases are the same everywhere
    off = written - wanted if oracle.family == "gemma2" else off
    assert np.abs(off).max() < 2e-4 * np.abs(wanted).max()


def test_logits_follow_from_the_table_of_the_head(found):
    oracle, model, _, _ = found
    ends = circuits.ends_of(model)
    stream = mx.array(oracle.resid_post[-1, 0, :LENGTH])
    table = ends.unembedding(np.arange(model.n_ids))
    made = np.array(sized(stream, centred=ends.centred) @ table.T, dtype=np.float64)
    wanted = oracle.logits[0, :LENGTH].astype(np.float64)
    if oracle.family == "gemma2":
        wanted = 30.0 * np.arctanh(wanted / 30.0)
    off = (made - made[:1]) - (wanted - wanted[:1])
    assert np.abs(off).max() < 3e-4 * np.abs(wanted).max() + (4e-4 * ("neox" in oracle.family))
