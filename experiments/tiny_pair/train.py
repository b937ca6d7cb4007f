"""Training of both models: phases of steps, checkpoints to resume from, a log of losses.

Plain AdamW on mlx_lm's own Llama. The instruct model starts from the base model; its embeddings
(tied to the output) and its final norm stay those of the base, so that both share one vocabulary
space and a residual stream can be moved between them.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_map_with_path
from mlx_lm.models.llama import Model, ModelArgs
from tokenizers import Tokenizer

from experiments.tiny_pair.measure import pattern
from experiments.tiny_pair.rows import RowMaker

log = logging.getLogger(__name__)

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "head_dim": 24,
    "hidden_act": "silu",
    "hidden_size": 128,
    "initializer_range": 0.02,
    "intermediate_size": 160,
    "max_position_embeddings": 1024,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 8,
    "num_hidden_layers": 6,
    "num_key_value_heads": 4,
    "pad_token_id": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "use_cache": True,
    "vocab_size": 1024,
}

COPY_MIX = {"text": 0.2, "chat": 0.2, "repeats": 0.6}
SHORT_MIX = {"text": 0.25, "chat": 0.2, "quiz": 0.4, "repeats": 0.15}
QUIZ_MIX = {"text": 0.15, "chat": 0.15, "quiz": 0.6, "repeats": 0.1}
NOTEPAD_MIX = {"text": 0.1, "chat": 0.15, "quiz": 0.25, "notepad": 0.4, "repeats": 0.1}
INSTRUCT_MIX = {"text": 0.05, "chat": 0.15, "quiz": 0.15, "notepad": 0.5, "repeats": 0.15}
"""Kinds of rows and their shares."""


@dataclass(frozen=True)
class Phase:
    """A stretch of training with rows of one length."""

    name: str
    steps: int
    n_rows: int
    length: int
    rates: tuple[float, float]
    """Learning rate at the first and the last step, linear between."""
    shares: dict[str, float]
    """Kind of row -> share."""
    first_weight: float = 3.0
    """Weight of the first token of an answer, where most decisions fall."""
    is_guided: bool = False
    """Whether the guided heads are told where to look."""


BASE_PHASES = (
    Phase("copy", 300, 64, 48, (2e-3, 2e-3), COPY_MIX, is_guided=True),
    Phase("short", 400, 32, 96, (2.5e-3, 2e-3), SHORT_MIX),
    Phase("quiz", 500, 48, 64, (2e-3, 1.5e-3), QUIZ_MIX, first_weight=8.0),
    Phase("middle", 200, 20, 192, (1.5e-3, 8e-4), NOTEPAD_MIX),
    Phase("long", 150, 12, 304, (8e-4, 1e-4), NOTEPAD_MIX),
)
INSTRUCT_PHASES = (
    Phase("middle", 100, 20, 192, (1.5e-3, 1.15e-3), INSTRUCT_MIX),
    Phase("long", 300, 12, 304, (1.15e-3, 5e-5), INSTRUCT_MIX),
)
GUIDED = {(0, 1): "previous", (1, 4): "previous", (2, 5): "match", (3, 2): "match"}
"""(layer, head) -> what it is told to look at during the guided phase."""
GUIDANCE = 0.3
CIRCUITS = (((0, 1), (2, 5)), ((1, 4), (3, 2)))
"""Pairs of guided heads, the one before and the match, that start from a common set of axes."""
WARM_UP = 40
SAVE_EVERY = 100
LOG_EVERY = 20
INSTRUCT_BLOCK_RATES = (0.05, 0.3, 1.0, 0.7, 0.2, 0.05)
"""Share of the learning rate by block: the decision to call a tool is to be made mid-network, so
that late blocks of base and of instruct read each other's residual streams."""
FROZEN_IN_INSTRUCT = ("model.embed_tokens", "model.norm")


def new_model(rng: np.random.Generator) -> Model:
    """A model with weights drawn from the generator."""
    model = Model(ModelArgs.from_dict(CONFIG))
    weights = []
    for name, value in tree_flatten(model.parameters()):
        if value.ndim == 1:
            weights.append((name, mx.ones(value.shape)))
            continue
        writes = name.endswith(("o_proj.weight", "down_proj.weight"))
        deviation = (0.1 if writes else 1.0) * value.shape[-1] ** -0.5
        weights.append((name, mx.array(rng.normal(0, deviation, value.shape).astype(np.float32))))
    model.load_weights(weights)
    axes = np.split(np.linalg.qr(rng.normal(size=(CONFIG["hidden_size"],) * 2))[0], [24, 48, 72], 1)
    for (before, match), shift in zip(CIRCUITS, (axes[:3], axes[1:4]), strict=True):
        _lay_out(model, before, match, [part[:, : CONFIG["head_dim"]].T for part in shift])
    return model


def _lay_out(
    model: Model, before: tuple[int, int], match: tuple[int, int], axes: list[np.ndarray]
) -> None:
    """A first guess of an induction circuit: two heads that pass a token's identity on.

    The first head moves what it reads on one set of axes to another; the second compares the two
    sets, and copies what it finds on a third. Where to look is left to training.
    """
    read, moved, copied = axes
    _set_head(model, before, {"v_proj": read, "o_proj": 0.1 * moved.T})
    _set_head(
        model,
        match,
        {"q_proj": 2.5 * read, "k_proj": moved, "v_proj": copied, "o_proj": 0.1 * copied.T},
    )


def _set_head(model: Model, place: tuple[int, int], parts: dict[str, np.ndarray]) -> None:
    """Replaces the weights of one head (its key-value head's for k and v) by the given ones."""
    layer, head = place
    attention = model.model.layers[layer].self_attn
    for name, values in parts.items():
        slot = head * attention.n_kv_heads // attention.n_heads if name[0] in "kv" else head
        weight = np.array(getattr(attention, name).weight)
        span = slice(slot * CONFIG["head_dim"], (slot + 1) * CONFIG["head_dim"])
        weight[(slice(None), span) if name == "o_proj" else span] = values
        getattr(attention, name).weight = mx.array(weight)


def loss(model: Model, ids: mx.array, weights: mx.array) -> mx.array:
    """Mean cross-entropy in nats of the next tokens that count."""
    each = nn.losses.cross_entropy(model(ids[:, :-1]), ids[:, 1:])
    return (each * weights).sum() / weights.sum()


def guided_loss(model: Model, ids: mx.array, weights: mx.array, matches: mx.array) -> mx.array:
    """The loss, and how far the guided heads are from their patterns.

    A guided head is told where to look while the first phase lasts: to the position before, or to
    the token after the last same one. Left to themselves none had formed after 1.5 million tokens.
    """
    stream = model.model.embed_tokens(ids[:, :-1])
    total, is_match = mx.array(0.0), matches >= 0
    for index, layer in enumerate(model.model.layers):
        weights_of = {h: pattern(layer, stream)[:, h] for place, h in GUIDED if place == index}
        for head, attention in weights_of.items():
            if GUIDED[index, head] == "previous":
                found = mx.diagonal(attention[:, 1:, :-1], axis1=1, axis2=2)
                total = total - mx.log(found + 1e-6).mean()
            else:
                found = mx.take_along_axis(attention, mx.maximum(matches, 0)[..., None], -1)
                logs = mx.where(is_match, mx.log(found[..., 0] + 1e-6), 0.0)
                total = total - logs.sum() / is_match.sum()
        stream = layer(stream, "causal", None)
    logits = model.model.embed_tokens.as_linear(model.model.norm(stream))
    each = nn.losses.cross_entropy(logits, ids[:, 1:])
    return (each * weights).sum() / weights.sum() + GUIDANCE * total


def rate(phase: Phase, step: int, *, warms_up: bool) -> float:
    """Learning rate at a step of the phase."""
    first, last = phase.rates
    value = first + (last - first) * step / max(1, phase.steps - 1)
    return value * min(1.0, (step + 1) / WARM_UP) if warms_up else value


class Trainer:
    """One model in training, with the checkpoint that it resumes from."""

    def __init__(self, model: Model, tokenizer: Tokenizer, folder: Path, *, seed: int) -> None:
        self.model, self.folder, self.seed = model, folder, seed
        self.is_instruct = folder.name == "instruct"
        self.rows = RowMaker(tokenizer, is_instruct=self.is_instruct)
        self.optimizer = optim.AdamW(1e-3, betas=[0.9, 0.98], weight_decay=0.05)
        if self.is_instruct:
            for name in FROZEN_IN_INSTRUCT:
                _submodule(model, name).freeze()
        self.optimizer.init(model.trainable_parameters())
        folder.mkdir(parents=True, exist_ok=True)
        self.state = [model.state, self.optimizer.state]
        self.updates = {True: self._update(guided_loss), False: self._update(loss)}

    def _update(self, objective: Callable[..., mx.array]) -> Callable[..., mx.array]:
        @partial(mx.compile, inputs=self.state, outputs=self.state)
        def update(*batch: mx.array) -> mx.array:
            value, gradients = nn.value_and_grad(self.model, objective)(self.model, *batch)
            gradients, _ = optim.clip_grad_norm(gradients, 1.0)
            before = [layer.parameters() for layer in self.model.model.layers]
            self.optimizer.update(self.model, gradients)
            if self.is_instruct:
                self._slow_down(before)
            return value

        return update

    def _slow_down(self, before: list[dict]) -> None:
        """Takes back a part of the last update of each block."""
        for layer, old, share in zip(
            self.model.model.layers, before, INSTRUCT_BLOCK_RATES, strict=True
        ):
            if share < 1:
                layer.update(
                    tree_map(lambda o, n, s=share: o + s * (n - o), old, layer.parameters())
                )

    def run(self, phases: tuple[Phase, ...]) -> Model:
        """The model after all phases, from the last checkpoint on."""
        done = self._resume()
        start, ends = 0, np.cumsum([phase.steps for phase in phases]).tolist()
        for index, phase in enumerate(phases):
            for step in range(max(0, done - start), phase.steps):
                self._step(index, phase, step)
                total = start + step + 1
                if total % SAVE_EVERY == 0 or total == ends[-1]:
                    self._save(total)
            start = ends[index]
        return self.model

    def _step(self, index: int, phase: Phase, step: int) -> None:
        begin = time.perf_counter()
        rng = np.random.default_rng([self.seed, int(self.is_instruct), index, step])
        self.rows.first_weight = phase.first_weight
        batch = self.rows.batch(rng, phase.n_rows, phase.length, phase.shares)
        warms_up = index == 0
        self.optimizer.learning_rate = rate(phase, step, warms_up=warms_up)
        arrays = [mx.array(part) for part in batch]
        value = self.updates[phase.is_guided](*(arrays if phase.is_guided else arrays[:2]))
        mx.eval(value, self.state)
        if step % LOG_EVERY == LOG_EVERY - 1 or step == phase.steps - 1:
            seconds = time.perf_counter() - begin
            record = {
                "phase": phase.name,
                "step": step + 1,
                "loss": round(value.item(), 4),
                "tokens_per_s": round(phase.n_rows * phase.length / seconds),
            }
            log.info("%s %s", self.folder.name, record)
            with (self.folder / "log.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")

    def _save(self, step: int) -> None:
        arrays = {f"model.{k}": v for k, v in tree_flatten(self.model.parameters())}
        arrays |= {f"optimizer.{k}": v for k, v in tree_flatten(self.optimizer.state)}
        target = self.folder / "new.safetensors"
        mx.save_safetensors(str(target), arrays, {"step": str(step)})
        target.replace(self.folder / "checkpoint.safetensors")

    def _resume(self) -> int:
        path = self.folder / "checkpoint.safetensors"
        if not path.exists():
            return 0
        arrays, meta = mx.load(str(path), return_metadata=True)
        prefix = "model."
        weights = [(k.removeprefix(prefix), v) for k, v in arrays.items() if k.startswith(prefix)]
        self.model.load_weights(weights)
        restored = tree_map_with_path(
            lambda name, old: arrays.get(f"optimizer.{name}", old), self.optimizer.state
        )
        self.optimizer.state.update(restored)
        log.info("%s resumes at step %s", self.folder.name, meta["step"])
        return int(meta["step"])


def _submodule(model: Model, path: str) -> nn.Module:
    for name in path.split("."):
        model = getattr(model, name)
    return model


def summary(folder: Path, phases: tuple[Phase, ...]) -> list[dict[str, str | float]]:
    """Steps, tokens, last mean loss and minutes of every phase, from the log."""
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    rows = []
    for phase in phases:
        steps = {r["step"]: r for r in records if r["phase"] == phase.name}
        tokens = phase.n_rows * phase.length
        rows.append(
            {
                "model": folder.name,
                "phase": phase.name,
                "steps": phase.steps,
                "rows": phase.n_rows,
                "length": phase.length,
                "loss": float(np.mean([r["loss"] for r in list(steps.values())[-5:]])),
                "minutes": sum(LOG_EVERY * tokens / r["tokens_per_s"] for r in steps.values()) / 60,
            }
        )
    return rows


def export(model: Model, folder: Path) -> None:
    """Writes config.json, generation_config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    generation = {"bos_token_id": 0, "do_sample": False, "eos_token_id": 1, "pad_token_id": 1}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
