"""Rebuilds the tiny pair from seeds: tokenizer, base, instruct, evaluate.

    python experiments/tiny_pair/build.py --out mlxroles/data/tiny --work /tmp/tiny

A phase that is done is skipped; a training phase resumes from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
with contextlib.suppress(OSError):
    ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)

from mlx_lm.models.llama import Model, ModelArgs
from tokenizers import Tokenizer

from experiments.tiny_pair import datasheet, evaluate, train
from experiments.tiny_pair import tokenizer as tokens

log = logging.getLogger("tiny_pair")

PHASES = ("tokenizer", "base", "instruct", "evaluate")


def build_tokenizer(work: Path, *, seed: int) -> None:
    """Trains the tokenizer once."""
    if not (work / "tokenizer" / "tokenizer.json").exists():
        tokens.save(tokens.train(seed), work / "tokenizer")


def shortened(phases: tuple[train.Phase, ...]) -> tuple[train.Phase, ...]:
    """The phases with a hundredth of their steps: a smoke test of the recipe, not a model."""
    return tuple(replace(phase, steps=max(2, phase.steps // 100)) for phase in phases)


def build_model(name: str, work: Path, *, seed: int, quick: bool = False) -> Model:
    """Trains `base` or `instruct`, the latter from the base model's checkpoint."""
    tokenizer = Tokenizer.from_file(str(work / "tokenizer" / "tokenizer.json"))
    if name == "base":
        model = train.new_model(np.random.default_rng([seed, 1]))
        phases = train.BASE_PHASES
    else:
        model = Model(ModelArgs.from_dict(train.CONFIG))
        model.load_weights(str(work / "exported" / "base" / "model.safetensors"))
        phases = train.INSTRUCT_PHASES
    phases = shortened(phases) if quick else phases
    trained = train.Trainer(model, tokenizer, work / name, seed=seed).run(phases)
    train.export(trained, work / "exported" / name)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(work / "tokenizer" / file, work / "exported" / name / file)
    return trained


def publish(work: Path, out: Path) -> None:
    """Copies both exported models to the package, with a summary of their training."""
    for name in ("base", "instruct"):
        shutil.copytree(work / "exported" / name, out / name, dirs_exist_ok=True)
    phases = train.summary(work / "base", train.BASE_PHASES)
    phases += train.summary(work / "instruct", train.INSTRUCT_PHASES)
    (out / "training.json").write_text(json.dumps(phases, indent=1) + "\n")


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Where the pair goes.")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Checkpoints, logs.")
@click.option("--seed", default=20, show_default=True)
@click.option("--only", type=click.Choice(PHASES), multiple=True, help="Phases; all by default.")
@click.option("--quick", is_flag=True, help="A hundredth of the steps; shows that it runs.")
def main(out: Path, work: Path, seed: int, only: tuple[str, ...], *, quick: bool) -> None:
    """Rebuilds the tiny pair from seeds."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for phase in only or PHASES:
        begin = time.perf_counter()
        if phase == "tokenizer":
            build_tokenizer(work, seed=seed)
        elif phase == "evaluate":
            publish(work, out)
            datasheet.write(out, evaluate.measure_all(out))
        else:
            build_model(phase, work, seed=seed, quick=quick)
        log.info("phase %s: %.0f s", phase, time.perf_counter() - begin)


if __name__ == "__main__":
    main()
