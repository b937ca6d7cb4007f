"""The small real pair beside the checkout, and a plain layer loop over it to compare with."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from mlxroles.backend import mx
from mlxroles.events import RunFinished
from mlxroles.pairs import pair_of
from mlxroles.prompts import Prompt
from mlxroles.studies.patch_sweep import PatchOptions, PatchSweep
from mlxroles.studies.place import RunPlace
from mlxroles.studies.subject import Subject

TEXT = "User: Where is the puppy?\nAssistant: "
TOOL = 508


class Plain:
    """A Llama of mlx_lm run block by block, without any of our machinery."""

    def __init__(self, folder: Path) -> None:
        from mlx_lm.utils import load_model  # after mlxroles.backend, which loads the fast BLAS

        self.module, _ = load_model(folder)
        self.layers = self.module.model.layers

    def embed(self, ids):
        return self.module.model.embed_tokens(mx.array([list(ids)]))

    def block(self, layer, h):
        return self.layers[layer](h, "causal", None)

    def stream(self, ids):
        """Stream that enters block 0, 1, ... and at the end the one that leaves the last."""
        out = [self.embed(ids)]
        for layer in range(len(self.layers)):
            out.append(self.block(layer, out[-1]))
        return out

    def finish(self, h, start):
        """Logits [position, vocab] of a stream that enters block ``start``."""
        for layer in range(start, len(self.layers)):
            h = self.block(layer, h)
        return self.head(h)

    def head(self, h):
        normed = self.module.model.norm(h)
        return np.array(self.module.model.embed_tokens.as_linear(normed)[0].astype(mx.float32))

    def logits(self, ids):
        return self.head(self.stream(ids)[-1])

    def parts(self, layer, h):
        """attn_out, z [1, position, head, d_head] and mlp_out of a block, by hand."""
        block = self.layers[layer]
        attn, x = block.self_attn, block.input_layernorm(h)
        n, heads, kv = x.shape[1], attn.n_heads, attn.n_kv_heads
        q = attn.rope(attn.q_proj(x).reshape(1, n, heads, -1).swapaxes(1, 2))
        k = attn.rope(attn.k_proj(x).reshape(1, n, kv, -1).swapaxes(1, 2))
        v = attn.v_proj(x).reshape(1, n, kv, -1).swapaxes(1, 2)
        k, v = mx.repeat(k, heads // kv, axis=1), mx.repeat(v, heads // kv, axis=1)
        scores = (q @ k.swapaxes(-1, -2)) * attn.scale
        scores = mx.where(mx.tril(mx.ones((n, n))) > 0, scores, -np.inf)
        z = (mx.softmax(scores, axis=-1) @ v).swapaxes(1, 2)
        attn_out = attn.o_proj(z.reshape(1, n, -1))
        mid = h + attn_out
        return attn_out, z, block.mlp(block.post_attention_layernorm(mid))

    def patched(self, site, layer, h, new):
        """Logits after the block's array at ``site`` became ``new(own)``; h enters the block."""
        if site == "resid_pre":
            return self.finish(new(h), layer)
        if site == "resid_post":
            return self.finish(new(self.block(layer, h)), layer + 1)
        block = self.layers[layer]
        attn_out, z, mlp_out = self.parts(layer, h)
        if site == "mlp_out":
            return self.finish(h + attn_out + new(mlp_out), layer + 1)
        if site == "z":
            attn_out = block.self_attn.o_proj(new(z).reshape(1, h.shape[1], -1))
        else:
            attn_out = new(attn_out)
        mid = h + attn_out
        return self.finish(mid + block.mlp(block.post_attention_layernorm(mid)), layer + 1)

    def at(self, site, layer, streams):
        """This model's own array at the site."""
        if site in ("resid_pre", "resid_post"):
            return streams[layer + (site == "resid_post")]
        return dict(
            zip(("attn_out", "z", "mlp_out"), self.parts(layer, streams[layer]), strict=True)
        )[site]


def softmax(row):
    e = np.exp(row.astype(np.float64) - row.max())
    return e / e.sum()


def subject(models: Path, **fields) -> Subject:
    pair = pair_of(str(models / "stories260K"), str(models / "stories260K-chat"))
    return Subject.of_pair(pair, **fields)


def sweep(models: Path, prompts=(TEXT,), *, resident=2, base=None, **options) -> PatchSweep:
    """A sweep over texts or lists of ids on the stories pair."""
    chat = models / "stories260K-chat"
    pair = pair_of(str(base or models / "stories260K"), str(chat))
    options = {"token_ids": (TOOL,)} | options
    if "strings" in options:
        del options["token_ids"]
    found = [
        Prompt(f"p{n:03d}", text=p) if isinstance(p, str) else Prompt(f"p{n:03d}", ids=tuple(p))
        for n, p in enumerate(prompts)
    ]
    return PatchSweep(Subject.of_pair(pair, resident=resident), found, PatchOptions(**options))


def run(study, folder: Path, events=None, **place):
    """The document of a run in a folder; it must have finished whole unless events are wanted."""
    seen = [] if events is None else events
    doc, finished = study.run(seen.append, RunPlace(folder, out=folder, **place))
    assert isinstance(finished, RunFinished)
    if events is None:
        assert (finished.failed, finished.interrupted) == (0, None)
    return doc


def copied(source: Path, folder: Path, **config) -> Path:
    """A writable copy of a model folder, with other values in its config."""
    shutil.copytree(source, folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def without_times(doc: Any) -> Any:
    """A document without what depends on when and where it was made."""
    skipped = ("time_s", "timestamp", "run", "figures", "estimate")
    if isinstance(doc, dict):
        return {k: without_times(v) for k, v in doc.items() if k not in skipped}
    return [without_times(v) for v in doc] if isinstance(doc, list) else doc
